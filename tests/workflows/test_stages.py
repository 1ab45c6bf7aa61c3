"""Features first, fits after: in two calls, on two machines if need be."""

import errno
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_mllm.cli.parser import parse_settings
from bids_mllm.exceptions import UsageError
from bids_mllm.interfaces import conditioning

OPTIONS = (
    "--map-views", "none",
    "--sloppy", "--nprocs", "1", "--confounds", "none", "--alphas", "1", "1e6", "3", "--test-task", "life*",
    "--participant-label", "01", "--instructions", "AR", "ESA", "--poolings", "media", "--permutations", "19",
    "--block-length", "3",
)  # fmt: skip


def words(study, out, work, *more):
    models = ("motionenergy", f"tiny={study / 'models/qwen25vltiny'}")
    return (study, out, "participant", *OPTIONS, "--models", *models, "-w", work, *more)


def maps(out):
    return {
        str(path.relative_to(out)): np.asarray(nib.load(path).dataobj)
        for path in out.glob("sub-*/func/*_statmap.nii.gz")
    }


def test_two_calls_give_what_one_gives(call, study, tmp_path, monkeypatch):
    store = tmp_path / "store"
    whole = call(*words(study, tmp_path / "whole", tmp_path / "w0"))
    assert whole.status == 0, whole.err
    first = call(*words(study, tmp_path / "out", tmp_path / "w1", "--features-dir", store, "--stages", "features"))
    assert first.status == 0, first.err
    assert f"All features are in {store}" in first.err
    assert "--stages fit" in first.err
    assert not list((tmp_path / "out").glob("sub-*/func"))
    assert not list((tmp_path / "out").glob("*.html"))
    assert not list((tmp_path / "w1").rglob("bold_*"))
    assert list((tmp_path / "out/sourcedata/checks").glob("model-tiny_*.tsv"))

    def no_model(*given):
        raise AssertionError("a model was run")

    monkeypatch.setattr("bids_mllm.interfaces.features.extract_film", no_model)
    checks, check = checks_of(tmp_path / "out"), conditioning.check_features
    assert len(checks) > 5
    monkeypatch.setattr(conditioning, "check_features", None)
    # Another work folder: the fits may run on another machine.
    second = call(*words(study, tmp_path / "out", tmp_path / "w2", "--features-dir", store, "--stages", "fit"))
    assert second.status == 0, second.err
    expected, found = maps(tmp_path / "whole"), maps(tmp_path / "out")
    assert set(found) == set(expected)
    assert len(found) > 10
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)
    assert (tmp_path / "out/sub-01.html").is_file()
    assert checks_of(tmp_path / "out") == checks, "what the features stage has checked stands"

    monkeypatch.setattr(conditioning, "check_features", check)
    for path, name in ((path, path.name) for path in (tmp_path / "out/sourcedata/checks").glob("*_covered.json")):
        other = json.loads(path.read_text("utf-8"))
        other["Stimuli"] = dict([*other["Stimuli"].items()][:1])
        path.write_text(json.dumps(other), "utf-8")
        assert checks_of(tmp_path / "out")[name] != checks[name]
    again = call(*words(study, tmp_path / "out", tmp_path / "w2", "--features-dir", store, "--stages", "fit"))
    assert again.status == 0, again.err
    found = checks_of(tmp_path / "out")
    assert {name: text for name, (text, _) in found.items()} == {name: text for name, (text, _) in checks.items()}
    assert found != checks, "checks of other films are made anew where only fits are asked for"

    chunk = next(path for path in sorted(store.rglob("*.safetensors")))
    shutil.move(chunk, tmp_path / "away")
    third = call(*words(study, tmp_path / "out3", tmp_path / "w3", "--features-dir", store, "--stages", "fit"))
    assert third.status == 70
    assert f"The feature store {store} lacks" in third.err


def test_a_store_that_cannot_be_written_serves_fits(call, study, tmp_path, monkeypatch):
    store = tmp_path / "store"
    first = call(*words(study, tmp_path / "out", tmp_path / "w1", "--features-dir", store, "--stages", "features"))
    assert first.status == 0, first.err
    for marker in store.rglob("used"):
        marker.unlink()
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    forbid_writing(monkeypatch, store)
    second = call(*words(study, tmp_path / "out", tmp_path / "w2", "--features-dir", store, "--stages", "fit"))
    assert second.status == 0, second.err
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before

    more = ("--features-dir", store, "--stages", "fit", "--window", "3")
    third = call(*words(study, tmp_path / "out3", tmp_path / "w3", *more))
    assert third.status == 70
    sentence = third.err.strip().splitlines()[-1]
    assert sentence.startswith(f"bids-mllm: The feature store {store} lacks ")
    assert "--stages features first" in sentence
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def checks_of(out):
    """Text and time of the files with checks, by name."""
    files = (out / "sourcedata/checks").glob("[!.]*")
    return {path.name: (path.read_text("utf-8"), path.stat().st_mtime_ns) for path in files}


def forbid_writing(monkeypatch, folder):
    """Let every write below a folder end as on a read-only file system, also for root."""
    real_mkdir, real_touch, real_open, real_unlink = Path.mkdir, Path.touch, Path.open, Path.unlink

    def guarded(real, writes):
        def call(path, *args, **options):
            if folder in (path, *path.parents) and writes(args, options):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, *args, **options)

        return call

    def always(args, options):
        return True

    def by_mode(args, options):
        return set((args or (options.get("mode", "r"),))[0]) & set("wax+")

    monkeypatch.setattr(Path, "mkdir", guarded(real_mkdir, always))
    monkeypatch.setattr(Path, "touch", guarded(real_touch, always))
    monkeypatch.setattr(Path, "unlink", guarded(real_unlink, always))
    monkeypatch.setattr(Path, "open", guarded(real_open, by_mode))


def test_fits_without_features_end_before_anything_runs(call, study, tmp_path):
    result = call(*words(study, tmp_path / "out", tmp_path / "w", "--stages", "fit"))
    assert result.status == 70
    sentence = result.err.strip().splitlines()[-1]
    store = tmp_path / "out/sourcedata/features"
    assert sentence.startswith(f"bids-mllm: The feature store {store} lacks ")
    assert "clips of motionenergy from " in sentence
    assert " of 5 others" in sentence  # 2 models x 4 films, three of which are named
    assert "--stages features first" in sentence
    assert not list((tmp_path / "w").rglob("result_*.pklz"))
    assert not store.exists(), "nothing is put into the store before the refusal"


@pytest.mark.parametrize(
    ("given", "stages"),
    [
        ([], ("features", "fit")),
        (["features,fit"], ("features", "fit")),
        (["fit", "features"], ("features", "fit")),
        (["fit"], ("fit",)),
    ],
)
def test_spellings(study, tmp_path, given, stages):
    option = ["--stages", *given] if given else []
    assert parse_settings([str(study), str(tmp_path), "participant", *option]).stages == stages


@pytest.mark.parametrize(("given", "told"), [("fits", "--stages is fits, but must be"), (",", "names no stage")])
def test_a_stage_that_does_not_exist(study, tmp_path, given, told):
    with pytest.raises(UsageError, match=told):
        parse_settings([str(study), str(tmp_path), "participant", "--stages", given])


def test_a_settings_file_does_not_bring_stages_back(study, tmp_path):
    from bids_mllm.config import settings_to_toml

    settings = parse_settings([str(study), str(tmp_path), "participant", "--stages", "features"])
    file = tmp_path / "bids-mllm.toml"
    file.write_text(settings_to_toml(settings), "utf-8")
    again = parse_settings([str(study), str(tmp_path), "participant", "--config-file", str(file)])
    assert again.stages == ("features", "fit")
