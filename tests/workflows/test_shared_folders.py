"""Tasks of one participant each that share output, store and work folder, and calls that must not share it."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_mllm.config import Settings
from bids_mllm.exceptions import StoreError, UsageError
from bids_mllm.io.derivatives import locked_dataset
from bids_mllm.io.locks import alone_in

OPTIONS = (
    "--map-views", "none",
    "--sloppy", "--nprocs", "1", "--confounds", "none", "--alphas", "1", "1e6", "3", "--test-task", "life*",
    "--instructions", "AR", "ESA", "--poolings", "media", "--permutations", "19", "--block-length", "3",
)  # fmt: skip


def words(study, folder, *labels):
    models = ("motionenergy", f"tiny={study / 'models/qwen25vltiny'}")
    given = (study, folder / "out", "participant", "--participant-label", *labels, *OPTIONS, "--models", *models)
    return [str(word) for word in (*given, "-w", folder / "work")]


def start(given):
    command = [sys.executable, "-m", "bids_mllm.cli.run", *given]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def maps(folder):
    found = sorted((folder / "out").glob("sub-*/func/*_statmap.nii.gz"))
    return {path.name: np.asarray(nib.load(path).dataobj) for path in found}


def test_two_tasks_at_once_give_what_one_call_gives(study, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    tasks = [start(words(study, two, label)) for label in ("01", "02")]
    for task in tasks:
        _, err = task.communicate(timeout=300)
        assert task.returncode == 0, err
    whole = start(words(study, one, "01", "02"))
    assert whole.wait(timeout=300) == 0
    whole.stderr.close()
    expected, found = maps(one), maps(two)
    assert set(found) == set(expected)
    assert {name[:6] for name in found} == {"sub-01", "sub-02"}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)
    # No folder of a step is in two tasks.
    assert sorted(path.name for path in (two / "work").iterdir()) == ["stimuli.json", "sub-01", "sub-02"]
    assert (one / "work/bids_mllm_participant").is_dir()


@pytest.mark.parametrize(
    ("level", "labels", "folder"),
    [
        ("participant", (), "/w"),
        ("participant", ("01",), "/w/sub-01"),
        ("participant", ("01", "02"), "/w"),
        ("group", ("01",), "/w"),
    ],
)
def test_folder_of_the_graph(level, labels, folder):
    settings = Settings(Path("/b"), Path("/o"), level, participant_label=labels, work_dir=Path("/w"))
    assert str(settings.graph_dir) == folder


def test_a_folder_in_use_is_one_sentence(call, study, tmp_path, monkeypatch):
    monkeypatch.setattr("bids_mllm.io.locks.WAIT_SECONDS", 0.1)
    folder = tmp_path / "work/sub-01"
    with alone_in(folder, "participant"):
        result = call(*words(study, tmp_path, "01"))
    assert result.status == 2
    sentence = result.err.splitlines()[-1]
    assert sentence.startswith(f"bids-mllm: The work folder {folder} is in use by another call")
    assert "--work-dir" in sentence
    assert not list(folder.rglob("result_*.pklz"))


HOLDER = """
import sys, time
from pathlib import Path
from bids_mllm.io.locks import alone_in
with alone_in(Path(sys.argv[1]), "participant"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr("bids_mllm.io.locks.WAIT_SECONDS", 0.1)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="in use by another call"), alone_in(tmp_path, "participant"):
            pass
        with alone_in(tmp_path, "group"):  # another level works beside it
            pass
        holder.kill()
    with alone_in(tmp_path, "participant"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch, number):
    def unknown(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unknown)
    for hold in (alone_in(tmp_path / "new", "participant"), locked_dataset(tmp_path / "out")):
        with hold:
            assert (tmp_path / "new").is_dir()


def test_errors_while_the_lock_is_held_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="elsewhere"), alone_in(tmp_path, "participant"):
        raise OSError("elsewhere")


def test_a_data_set_that_stays_locked_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("bids_mllm.io.derivatives.LOCK_SECONDS", 0.1)
    with locked_dataset(tmp_path), pytest.raises(StoreError, match="has been locked by another call"):  # noqa: SIM117
        with locked_dataset(tmp_path):
            pass


def test_clean_workdir_leaves_the_work_of_others(call, study, tmp_path):
    other = tmp_path / "work/sub-02/bids_mllm_participant"
    other.mkdir(parents=True)
    assert call(*words(study, tmp_path, "01"), "--clean-workdir").status == 0
    assert other.is_dir()
    assert not (tmp_path / "work/sub-01").exists()


def test_clean_workdir_of_several_leaves_the_work_of_others(call, study, tmp_path):
    """The group and calls of several work in the folder itself, where tasks of one participant have theirs."""
    work = tmp_path / "work"
    other = work / "sub-03/bids_mllm_participant"
    other.mkdir(parents=True)
    assert call(*words(study, tmp_path, "01", "02"), "--clean-workdir").status == 0
    assert sorted(path.name for path in work.iterdir()) == ["stimuli.json", "sub-03"]
    assert (
        call(
            study, tmp_path / "out", "group", "-w", work, "--nprocs", "1", "--clean-workdir", "--map-views", "none"
        ).status
        == 0
    )
    assert other.is_dir()
    assert sorted(path.name for path in work.iterdir()) == ["stimuli.json", "sub-03"]
