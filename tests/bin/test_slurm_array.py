"""bin/slurm-array with a stand-in of Slurm on PATH: scripts, dependencies, labels, reasons, and what is resumed."""

import ast
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from bids_mllm.cli import parser as app_parser
from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "bin" / "slurm-array"
SBATCH = """#!/bin/bash
[ -n "${FAKE_SBATCH_ERROR:-}" ] && case "$*" in *$FAKE_REFUSES*) echo "$FAKE_SBATCH_ERROR" >&2; exit 1;; esac
count=$(($(cat "$FAKE/count" 2>/dev/null || echo 100) + 1))
echo "$count" >"$FAKE/count"
printf '%s\\0' "$@" >"$FAKE/call-$count"
env >"$FAKE/env-$count"
echo "$count;cluster"
"""

SCONTROL = """#!/bin/bash
cut='s/(ArrayTaskId=[^ ]{60})[^ ]*/\\1.../'
[ "${SLURM_BITSTR_LEN:-64}" = 0 ] && cut=
sed -E "$cut" "$FAKE/job-${@: -1}" 2>/dev/null && exit
echo "slurm_load_jobs error: ${FAKE_CONTROLLER_ERROR:-Invalid job id specified}" >&2
exit 1
"""


def load():
    loader = SourceFileLoader("slurm_array", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("slurm_array", loader))
    loader.exec_module(module)
    return module


slurm_array = load()


class Cluster:
    """Calls of slurm-array, what they submitted, and what the stand-in of Slurm is to answer."""

    def __init__(self, folder, capsys):
        self.folder = folder
        self.bids = folder / "bids data"
        self.out = folder / "out put"
        self._capsys = capsys

    def call(self, *words):
        self._capsys.readouterr()
        try:
            status = slurm_array.main([str(self.bids), str(self.out), *map(str, words)])
        except SystemExit as error:
            status = error.code
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err

    def calls(self):
        return [path.read_text().split("\0")[:-1] for path in sorted((self.folder / "fake").glob("call-*"))]

    def show(self, job, *lines):
        (self.folder / "fake" / f"job-{job}").write_text("".join(f"{line}\n" for line in lines))

    def state(self):
        return max((self.out / "logs" / "slurm").iterdir())

    def record(self, job, index, label, status, *, stage="participant", restart=0, stopped="", attempt=1):
        end = None if status is None else "2026-01-01T00:01:00Z"
        content = {
            "stage": stage, "label": label, "job": job, "index": index, "slurm_job_id": job, "node": "n1",
            "attempt": attempt, "restart": restart, "start": "2026-01-01T00:00:00Z", "end": end,
            "exit_status": status, "stopped_by": stopped,
        }  # fmt: skip
        path = self.state() / "tasks" / f"{stage}-{label}_{job}_{index}_{restart}.json"
        path.write_text(json.dumps(content))

    def log(self, job, index, text, stage="participant"):
        (self.state() / "log" / f"{stage}_{job}_{index}.log").write_text(text)

    def script(self, stage="participant", number=1):
        return self.state() / f"{stage}.{number}.sh"


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def cluster(tmp_path, monkeypatch, capsys):
    fake, programs = tmp_path / "fake", tmp_path / "programs"
    fake.mkdir()
    programs.mkdir()
    executable(programs / "sbatch", SBATCH)
    executable(programs / "scontrol", SCONTROL)
    executable(programs / "sacct", '#!/bin/bash\necho "accounting is disabled" >&2\nexit 1\n')
    executable(programs / "scancel", '#!/bin/bash\necho "$@" >>"$FAKE/cancelled"\n')
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(fake))
    monkeypatch.chdir(tmp_path)
    made = Cluster(tmp_path, capsys)
    for label in ("01", "02", "x3"):
        (made.bids / f"sub-{label}").mkdir(parents=True)
    return made


def command_of(script):
    """Return the words that a job script runs, as a shell splits them."""
    lines = re.sub(r"\\\n", " ", script.read_text()).splitlines()
    return shlex.split(next(line for line in lines if line.startswith("set -- ") and '"$work"' in line))[2:]


def own(call):
    """Return the options of a call of sbatch that are not in its script."""
    return call[call.index("--parsable") : -1]


def check_syntax(text):
    for shell in ("bash", "sh"):
        found = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True)
        assert (found.returncode, found.stderr) == (0, "")


# ---- what is submitted


def test_array_and_group_job(cluster):
    status, out, err = cluster.call(
        "--partition", "cpu", "--account", "lab", "--qos", "high", "--time", "08:00:00", "--mem", "32G",
        "--cpus-per-task", 8, "--max-running", 2, "--gres", "gpu:1", "--requeue", "--sbatch-option=--constraint=avx512",
        "--job-name", "films", "--work-dir", "the work", "--", "--models", "motionenergy", "--test-task", "life*",
        "--mem", "20G",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "participant: job 101, 3 tasks\ngroup: job 102, 1 task\n" in out
    array, group = cluster.calls()
    log = f"{cluster.state()}/log"
    assert own(array) == ["--parsable", f"--output={log}/participant_%A_%a.log", "--array=1-3%2"]
    assert own(group) == [
        "--parsable", f"--output={log}/group_%j_0.log", "--dependency=afterok:101", "--kill-on-invalid-dep=yes"
    ]  # fmt: skip
    lines = [line for line in cluster.script().read_text().splitlines() if line.startswith("#SBATCH")]
    assert lines == [
        "#SBATCH --job-name=films-participant", "#SBATCH --open-mode=append", "#SBATCH --partition=cpu",
        "#SBATCH --account=lab", "#SBATCH --qos=high", "#SBATCH --gres=gpu:1", "#SBATCH --time=08:00:00",
        "#SBATCH --mem=32G", "#SBATCH --cpus-per-task=8", "#SBATCH --requeue", "#SBATCH --constraint=avx512",
    ]  # fmt: skip
    # Variables such as SBATCH_PARTITION override lines of a script, but no options.
    assert array[: len(lines)] == [line.partition(" ")[2] for line in lines]
    assert "gpu" not in cluster.script("group").read_text()
    assert command_of(cluster.script()) == [
        "bids-mllm", str(cluster.bids), str(cluster.out), "participant", "--models", "motionenergy", "--test-task",
        "life*", "--mem", "20G", "--participant-label", "$label", "--work-dir", "$work",
    ]  # fmt: skip
    assert command_of(cluster.script("group")) == [
        "bids-mllm", str(cluster.bids), str(cluster.out), "group", "--mem", "20G", "--work-dir", "$work",
    ]  # fmt: skip
    assert (cluster.state() / "labels.txt").read_text() == "01\n02\nx3\n"


def test_nothing_is_set_that_was_not_asked_for(cluster):
    assert cluster.call()[0] == 0
    lines = [line for line in cluster.script().read_text().splitlines() if line.startswith("#SBATCH")]
    assert lines == ["#SBATCH --job-name=bids-mllm-participant", "#SBATCH --open-mode=append"]


def test_work_folder_may_be_a_disk_that_only_nodes_have(cluster):
    assert cluster.call("--work-dir", "/proc/none/work")[0] == 0
    assert "work=/proc/none/work/" in cluster.script().read_text()


def test_group_after_any_and_no_group(cluster):
    cluster.call("--group-after", "any", "--participant-label", "01")
    assert "--dependency=afterany:101" in cluster.calls()[1]
    assert not any("kill-on-invalid-dep" in word for word in cluster.calls()[1])
    assert "--participant-label" not in command_of(cluster.script("group"))
    cluster.call("--no-group", "--participant-label", "02")
    assert len(cluster.calls()) == 3


def test_group_job_is_of_the_participants_that_were_asked_for(cluster):
    cluster.call("--participant-label", "sub-x3", "01")
    assert command_of(cluster.script("group"))[4:7] == ["--participant-label", "x3", "01"]


def test_features_in_a_job_of_their_own(cluster):
    status, _, _ = cluster.call(
        "--partition", "cpu", "--mem", "8G", "--features-partition", "gpu", "--features-gres", "gpu:1",
        "--features-time", "01:00:00", "--features-cpus", 4, "--features-tasks", 2, "--features-dir", "store",
    )  # fmt: skip
    assert status == 0
    features, array, group = cluster.calls()
    assert "--array=1-2" in features
    assert own(array)[3:] == ["--dependency=afterok:101", "--kill-on-invalid-dep=yes"]
    assert "--dependency=afterok:102" in group
    text = cluster.script("features").read_text()
    for line in ("partition=gpu", "gres=gpu:1", "time=01:00:00", "cpus-per-task=4", "mem=8G"):
        assert f"#SBATCH --{line}\n" in text
    assert "#SBATCH --partition=cpu\n" in cluster.script().read_text()
    assert "gres" not in cluster.script().read_text()
    store = str(cluster.folder / "store")
    assert command_of(cluster.script("features"))[4:] == [
        "--features-dir", store, "--stages", "features", "--participant-label", "01", "02", "x3", "--work-dir", "$work"
    ]  # fmt: skip
    assert command_of(cluster.script())[4:8] == ["--features-dir", store, "--stages", "fit"]
    assert store not in command_of(cluster.script("group"))


def test_a_feature_store_alone_makes_no_features_job(cluster):
    cluster.call("--features-dir", "store")
    assert len(cluster.calls()) == 2
    assert "--stages" not in command_of(cluster.script())


def test_variables_of_a_surrounding_job_are_not_inherited(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    cluster.call()
    seen = (cluster.folder / "fake" / "env-101").read_text()
    assert "SLURM_CONF=/etc/slurm.conf\n" in seen
    assert "SLURM_CPUS_PER_TASK" not in seen
    assert "SLURM_MEM_PER_NODE" not in seen


def test_percent_signs_of_folders_are_no_fields_of_slurm(cluster):
    cluster.out = cluster.folder / "50%j"
    cluster.call()
    assert own(cluster.calls()[0])[1].startswith(f"--output={cluster.folder}/50%%j/logs/slurm/")


def test_dry_run_prints_scripts_and_submits_nothing(cluster):
    status, out, _ = cluster.call("--dry-run", "--features-partition", "gpu", "--", "--models", "motionenergy")
    assert status == 0
    assert out.count("#!/bin/sh\n") == 3
    assert "# participant: sbatch --job-name=bids-mllm-participant --open-mode=append --parsable" in out
    assert "--dependency=afterok:ID-OF-FEATURES" in out
    check_syntax(out)
    assert not cluster.out.exists()
    assert not cluster.calls()


@pytest.mark.parametrize("words", [(), ("--image", "image.sif", "--nv"), ("--features-tasks", 2)])
def test_scripts_are_plain_shell(cluster, words):
    (cluster.folder / "image.sif").touch()
    cluster.call(*words, "--env", "A=b c", "--", "--task-id", "it's=a b", "$(touch x)", "`id`")
    for script in cluster.state().glob("*.sh"):
        check_syntax(script.read_text())


def test_group_options_are_those_of_the_app():
    spelled = {name: action.dest for action in app_parser.build_parser()._actions for name in action.option_strings}
    given = {"participant_label", "work_dir", "dry_run"}
    allowed = app_parser.GROUP_OPTIONS - given
    kept = {name for name, dest in spelled.items() if dest in allowed and "_" not in name}
    assert slurm_array.GROUP_OPTIONS - {"-vv"} == kept


# ---- participants


def test_labels_from_participants_tsv(cluster):
    table = "\ufeffparticipant_id\tage\nsub-02\t3\nsub-x3\t4\nsub-09\t4\n"
    (cluster.bids / "participants.tsv").write_text(table, encoding="utf-8")
    _, _, err = cluster.call()
    assert (cluster.state() / "labels.txt").read_text() == "02\nx3\n"
    assert err == (
        "slurm-array: sub-09 is in participants.tsv but has no folder; it is left out.\n"
        "slurm-array: left out, because participants.tsv does not have them: sub-01.\n"
    )


def test_labels_may_be_given_in_several_options(cluster):
    assert cluster.call("--participant-label", "01", "--participant-label", "x3")[0] == 0
    assert (cluster.state() / "labels.txt").read_text() == "01\nx3\n"


def test_unknown_label(cluster):
    status, _, err = cluster.call("--participant-label", "01", "sub-07", "08")
    assert status == 2
    assert err == f"slurm-array: {cluster.bids} has no participant 07, 08; there are 01, 02, x3.\n"
    assert not cluster.calls()


# ---- bad input


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--", "--work-dir", "w"), "--work-dir stands behind --, but slurm-array gives it itself; give it before --."),
        (("--", "--participant_label", "01"), "--participant_label stands behind --"),
        (("--", "--stages", "fit"), "--stages stands behind --.*ask for --features-partition"),
        (("--", "participant"), "'participant' stands behind --, where only options are expected"),
        (("--partition", "a b"), "--partition is 'a b', but one word without quotes was expected."),
        (("--sbatch-option=--x\nrm",), "--sbatch-option is .* but one line that begins with - was expected."),
        (("--image", "none.sif"), "The image .*none.sif does not exist; build it or give another --image."),
        (("--env", "A"), "--env is 'A', but NAME=VALUE was expected."),
        (("--app", "'x"), "--app is .*, which a shell cannot part into words"),
        (("--sbatch-option=--comment='x",), "--sbatch-option is .*, which a shell cannot part into words"),
        (("--image", "bids data", "--app", "bids-mllm"), "argument --app: not allowed with argument --image"),
        (("--submission", "x"), "--submission names an earlier submission; give it with --status or --resume."),
        (("--status",), "has no record of a submission by slurm-array; submit one first."),
        (("--resume",), "has no record of a submission by slurm-array; submit one first."),
        (("--max-running", "0"), "'0' is not a positive whole number"),
    ],
)
def test_bad_input_is_one_sentence(cluster, words, sentence):
    status, _, err = cluster.call(*words)
    assert status == 2
    assert re.search(sentence, err)
    assert len(err.splitlines()) == 1 or err.startswith("usage:")
    assert not cluster.calls()


def test_bids_folder_must_be_there(cluster):
    cluster.bids = cluster.folder / "none"
    assert cluster.call()[2].startswith(f"slurm-array: The BIDS folder {cluster.bids} does not exist;")
    cluster.bids.mkdir()
    assert "has neither a participants.tsv nor a folder sub-*" in cluster.call()[2]


def test_refusal_of_sbatch_is_one_sentence_and_leaves_nothing(cluster, monkeypatch):
    error = "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: Invalid name"
    monkeypatch.setenv("FAKE_SBATCH_ERROR", error)
    monkeypatch.setenv("FAKE_REFUSES", "group")
    status, _, err = cluster.call()
    assert status == 1
    assert err == (
        "slurm-array: sbatch refused group.1.sh (invalid partition specified: x; Batch job submission failed: Invalid "
        "name); nothing stays submitted.\n"
    )
    assert (cluster.folder / "fake" / "cancelled").read_text() == "101\n"
    assert not list((cluster.out / "logs" / "slurm").glob("*/"))


def test_sbatch_is_missing(cluster, monkeypatch):
    monkeypatch.setenv("PATH", str(cluster.folder))
    status, _, err = cluster.call()
    assert status == 1
    assert err == "slurm-array: sbatch was not found; run slurm-array on a login node of the cluster.\n"


def test_participants_that_are_queued_are_not_submitted_twice(cluster):
    cluster.call("--participant-label", "01", "02")
    cluster.show(101, "JobId=101 ArrayJobId=101 ArrayTaskId=1-2%3 JobState=PENDING Reason=Priority")
    status, _, err = cluster.call("--participant-label", "02", "x3")
    assert status == 2
    first = cluster.state().name
    sentence = f"slurm-array: 02 of the submission {first} (job 101) are still queued or running; wait for them, see "
    assert err.startswith(sentence)
    assert cluster.call("--participant-label", "x3")[0] == 0
    # The last submission is done with 02, but the one before is not.
    assert cluster.call("--participant-label", "02")[2].startswith(sentence)
    assert len(cluster.calls()) == 4


@pytest.mark.parametrize("locks", [True, False])
def test_two_calls_at_once_do_not_both_submit(cluster, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(slurm_array.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(38, "no locks")))
    with slurm_array.alone(cluster.out):
        for words in ((), ("--resume",)):
            if words:
                (cluster.out / "logs" / "slurm" / "20260101T000000Z").mkdir()
                (cluster.out / "logs" / "slurm" / "20260101T000000Z" / "settings.json").write_text("{}")
            status, out, err = cluster.call(*words)
            assert (status, out) == (2, "")
            assert err.startswith(f"slurm-array: Another slurm-array is submitting to {cluster.out}; wait until it has")
            assert len(err.splitlines()) == 1
    assert not cluster.calls()
    (cluster.out / "logs" / "slurm" / "20260101T000000Z" / "settings.json").unlink()
    assert cluster.call()[0] == 0


def test_arrays_that_the_cluster_does_not_allow(cluster):
    cluster.show("config", "Configuration data as of 2026", "MaxArraySize            = 3", "MaxJobCount = 2")
    status, _, err = cluster.call()
    assert status == 2
    assert err.startswith("slurm-array: 3 tasks are more than the 2 that an array of this cluster may have (MaxArraySi")
    assert len(err.splitlines()) == 1
    assert not cluster.calls()
    assert cluster.call("--participant-label", "01", "x3")[0] == 0


def test_output_folder_that_cannot_be_made(cluster):
    cluster.out = cluster.folder / "file" / "out"
    cluster.out.parent.touch()
    status, _, err = cluster.call()
    assert (status, err) == (
        2, f"slurm-array: The folder {cluster.out}/logs/slurm cannot be made (Not a directory); choose another.\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (("--stimuli-dir", "none"), "none"),
        (("--preset=none.toml",), "none.toml"),
        (("--models", "q=./none/q"), "none/q"),
        (("--models", "./none+random"), "none"),
        (("-d", "fmriprep=none"), "none"),
        (("-dnone",), "none"),
        (("--atlas", "Schaefer2018", "none/lh.annot"), "none/lh.annot"),
        (("--cv-file", "none/{participant}/s.json"), "none"),
        (("--config_file", "none"), "none"),
    ],
)
def test_paths_that_are_missing_are_told_before_anything_is_submitted(cluster, words, missing):
    status, _, err = cluster.call("--", *words)
    option = re.match("--[a-z_-]+|-d", words[0]).group().replace("_", "-")
    assert status == 2
    assert err == (
        f"slurm-array: {option} names {cluster.folder}/{missing}, which does not exist; correct it and submit again.\n"
    )
    assert not cluster.calls()


def test_paths_that_only_the_image_has_by_an_own_bind_are_not_missing(cluster):
    (cluster.folder / "image.sif").touch()
    words = ("--image", "image.sif", "--bind", f"{cluster.bids}:/licences:ro", "--", "--models", "q=/licences/q")
    assert cluster.call(*words)[0] == 0
    assert "q=/licences/q" in cluster.script().read_text()


def test_variables_that_would_change_what_a_job_is_are_not_inherited(cluster, monkeypatch):
    for name in ("SBATCH_ARRAY_INX", "SBATCH_WAIT", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "1")
    cluster.call()
    seen = (cluster.folder / "fake" / "env-102").read_text()
    assert "SBATCH_ACCOUNT=1\n" in seen
    assert "SBATCH_ARRAY_INX" not in seen
    assert "SBATCH_WAIT" not in seen


# ---- images


def image_command(cluster, *words):
    (cluster.folder / "image.sif").touch()
    status, _, err = cluster.call("--image", "image.sif", "--work-dir", "work", *words)
    assert (status, err) == (0, "")
    return words_of_image(cluster.script())


def words_of_image(script):
    text = re.sub(r"\\\n", " ", script.read_text())
    return shlex.split(next(line for line in text.splitlines() if line.startswith('set -- "$runner"')))[3:]


def bound(words):
    return [words[place + 1] for place, word in enumerate(words) if word == "-B"]


def test_image_sees_the_folders_of_the_options_read_only(cluster):
    fmriprep, models = cluster.folder / "fmriprep", cluster.folder / "models" / "qwen"
    stimuli, store = cluster.folder / "stimuli", cluster.folder / "store"
    for folder in (fmriprep, models, stimuli):
        folder.mkdir(parents=True)
    split = cluster.folder / "splits" / "sub-{participant}_split.json"
    split.parent.mkdir()
    (cluster.bids / "words").mkdir()
    words = image_command(
        cluster, "--features-dir", "store", "--bind", "/opt/licence:/licence:ro", "--", "-d", f"fmriprep={fmriprep}",
        "--models", "motionenergy", f"qwen={models}", f"--stimuli-dir={stimuli}", "--cv-file", split,
        "--bids-database-dir", "index", "--feature-table", f"words={cluster.bids}/words",
    )  # fmt: skip
    root = cluster.folder
    assert bound(words) == [
        *(f"{path}:{path}:{mode}" for path, mode in [
            (cluster.bids, "ro"), (fmriprep, "ro"), (root / "index", "rw"), (models, "ro"), (cluster.out, "rw"),
            (split.parent, "ro"), (stimuli, "ro"), (store, "rw"), (root / "work", "rw"),
        ]),
        "/opt/licence:/licence:ro",
    ]  # fmt: skip
    assert words[:4] == ["run", "--cleanenv", "--containall", "--no-home"]
    assert store.is_dir()
    assert (root / "index").is_dir()
    assert words[words.index("--bids-database-dir") + 1] == str(root / "index")
    # The group level reads the data set, the output and what its own options name.
    assert bound(words_of_image(cluster.script("group"))) == [
        *(f"{path}:{path}:{mode}" for path, mode in [
            (cluster.bids, "ro"), (cluster.out, "rw"), (root / "work", "rw")
        ]),
        "/opt/licence:/licence:ro",
    ]  # fmt: skip


def test_output_inside_the_data_set_is_bound_after_it(cluster):
    cluster.out = cluster.bids / "derivatives" / "out"
    places = bound(image_command(cluster))
    assert places == [
        f"{cluster.bids}:{cluster.bids}:ro", f"{cluster.out}:{cluster.out}:rw",
        f"{cluster.folder}/work:{cluster.folder}/work:rw",
    ]  # fmt: skip


def test_targets_of_links_are_bound(cluster):
    blobs, films = cluster.folder / "hub" / "blobs", cluster.folder / "films"
    snapshot = cluster.folder / "hub" / "snapshots" / "rev"
    for folder in (blobs, films, snapshot):
        folder.mkdir(parents=True)
    (blobs / "1").touch()
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    (cluster.bids / "stimuli").symlink_to(films)
    places = bound(image_command(cluster, "--", "--models", f"qwen={snapshot}"))
    for folder in (blobs, films, snapshot):
        assert f"{folder}:{folder}:ro" in places


def test_targets_of_links_in_written_folders_are_bound_for_writing(cluster):
    other, big, work = (cluster.folder / name for name in ("other disk", "big", "real work"))
    for folder in (other, big, work, cluster.out / "sourcedata"):
        folder.mkdir(parents=True)
    (cluster.out / "feat").symlink_to(other)
    (cluster.out / "sourcedata" / "features").symlink_to(big)
    (cluster.out / "sourcedata" / "raw").symlink_to(cluster.bids / "sub-01")
    (cluster.folder / "work").symlink_to("real work")
    assert bound(image_command(cluster, "--features-dir", cluster.out / "feat")) == [
        f"{path}:{path}:{mode}" for path, mode in [
            (cluster.bids, "ro"), (big, "rw"), (other, "rw"), (cluster.out, "rw"), (cluster.folder / "work", "rw"),
        ]
    ]  # fmt: skip


def test_a_folder_that_only_seems_to_be_in_a_bound_one_is_bound(cluster):
    films, store = cluster.folder / "elsewhere" / "films", cluster.out / "a" / "b" / "c" / "store"
    films.mkdir(parents=True)
    (cluster.bids / "stimuli").symlink_to("../elsewhere")
    store.parent.mkdir(parents=True)
    store.symlink_to(films.parent / "other")
    (films.parent / "other").mkdir()
    words = ("--features-dir", store, "--", "--stimuli-dir", cluster.bids / "stimuli" / "films")
    assert bound(image_command(cluster, *words)) == [
        f"{path}:{path}:{mode}" for path, mode in [
            (cluster.bids, "ro"), (films.parent, "ro"), (films.parent / "other", "rw"), (cluster.out, "rw"),
            (cluster.folder / "work", "rw"),
        ]
    ]  # fmt: skip


def test_relative_links_behind_links_are_seen_where_they_lead_in_the_image(cluster):
    disk, films = cluster.folder / "disk" / "a" / "data", cluster.folder / "disk" / "a" / "films"
    films.mkdir(parents=True)
    (disk / "sub-01").mkdir(parents=True)
    (disk / "stimuli").symlink_to("../films")
    cluster.bids = cluster.folder / "data"
    cluster.bids.symlink_to(disk)
    places = bound(image_command(cluster))
    assert f"{cluster.bids}:{cluster.bids}:ro" in places
    assert f"{films}:{cluster.folder}/films:ro" in places


def annexed(root, link):
    """Make a link to content in a DataLad data set."""
    content = root / ".git" / "annex" / "objects" / "x" / link.name / link.name
    content.parent.mkdir(parents=True)
    content.touch()
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(content, link.parent))


def test_a_part_of_a_datalad_data_set_is_seen_with_the_whole(cluster):
    root = cluster.folder / "super"
    cluster.bids = root / "raw"
    (cluster.bids / "sub-01").mkdir(parents=True)
    for name in ("1.mp4", "2.mp4"):
        annexed(root, cluster.bids / "stimuli" / "of" / "many" / "deep" / "folders" / name)
    assert bound(image_command(cluster)) == [
        f"{cluster.out}:{cluster.out}:rw", f"{root}:{root}:ro", f"{cluster.folder}/work:{cluster.folder}/work:rw"
    ]  # fmt: skip


def test_content_of_a_datalad_data_set_elsewhere_is_bound_with_one_folder(cluster):
    root, films = cluster.folder / "super", cluster.folder / "films"
    for name in ("1.mp4", "2.mp4"):
        annexed(root, films / "life" / name)
    assert bound(image_command(cluster, "--", "--stimuli-dir", films)) == [
        f"{path}:{path}:{mode}" for path, mode in [
            (cluster.bids, "ro"), (films, "ro"), (cluster.out, "rw"), (root, "ro"), (cluster.folder / "work", "rw")
        ]
    ]  # fmt: skip


def test_gpus_are_given_to_the_image_where_a_gres_names_one(cluster):
    assert "--nv" in image_command(cluster, "--gres", "gpu:a100:1", "--participant-label", "01")
    assert "--nv" not in image_command(cluster, "--gres", "tmpdisk:10", "--participant-label", "02")
    assert "--nv" not in cluster.script("group").read_text()


@pytest.mark.parametrize("line", ["--gpus-per-node=1", "-G 1", "-G1", "--gpus 2", "--gres gpu:1"])
def test_gpus_are_given_to_the_image_where_a_line_for_sbatch_asks_for_one(cluster, line):
    assert "--nv" in image_command(cluster, f"--sbatch-option={line}")


def test_gpus_are_given_to_the_image_where_that_is_asked_for(cluster):
    assert "--nv" in image_command(cluster, "--nv")


def test_gpus_of_the_features_alone(cluster):
    assert "--nv" not in image_command(cluster, "--features-gres", "gpu:1")
    assert "--nv" in cluster.script("features").read_text()


def test_paths_that_apptainer_cannot_bind(cluster):
    (cluster.folder / "image.sif").touch()
    cluster.out = cluster.folder / "a,b"
    status, _, err = cluster.call("--image", "image.sif")
    assert status == 2
    assert err.endswith("cannot be bound into an image, because it has a colon or a comma; rename it.\n")


def test_relative_paths_become_absolute_but_words_do_not(cluster, monkeypatch):
    for name in ("models/qwen", "motionenergy", "films", "fmriprep", "cv"):
        (cluster.folder / name).mkdir(parents=True)
    for name in ("c.toml", "lh.annot", "stories.json", "story"):
        (cluster.folder / name).touch()
    (cluster.folder / "image.sif").touch()
    words = [
        "--models", "motionenergy", "q=models/qwen", "models/qwen+random", "hub/name", "r=hub/name",
        "--stimuli-dir=films", "-d", "fmriprep=fmriprep", "fmriprep", "--preset", "c.toml", "--atlas", "Schaefer",
        "lh.annot", "--cv-file", "cv/{participant}/s.json", "--bids-database-dir", "db", "--demonstrations",
        "./stories.json", "--rois", "story", "--test-task", "films", "none/here",
    ]  # fmt: skip
    given = image_command(cluster, "--", *words)
    here = str(cluster.folder)
    start = given.index("--models")
    assert given[start : start + len(words)] == [
        "--models", "motionenergy", f"q={here}/models/qwen", f"{here}/models/qwen+random", "hub/name", "r=hub/name",
        f"--stimuli-dir={here}/films", "-d", f"fmriprep={here}/fmriprep", f"{here}/fmriprep", "--preset",
        f"{here}/c.toml", "--atlas", "Schaefer", f"{here}/lh.annot", "--cv-file", f"{here}/cv/{{participant}}/s.json",
        "--bids-database-dir", f"{here}/db", "--demonstrations", f"{here}/stories.json", "--rois", f"{here}/story",
        "--test-task", "films", "none/here",
    ]  # fmt: skip
    # Beside a demonstration and an atlas lie other files that the app looks for.
    assert bound(given) == [f"{here}:{here}:ro", *(
        f"{path}:{path}:rw" for path in (cluster.folder / "db", cluster.out, cluster.folder / "work")
    )]  # fmt: skip
    cluster.call("--image", "image.sif", "--dry-run", "--", "--preset", "c.toml", "--models", "q=models/qwen")
    words = ("--participant-label", "01", "--", "--preset", "c.toml", "--cv-file", "cv/{participant}/s.json")
    places = bound(image_command(cluster, *words))
    assert f"{here}/c.toml:{here}/c.toml:ro" in places
    assert f"{here}/cv:{here}/cv:ro" in places


def test_table_of_paths_is_that_of_the_app():
    own_options = {"--features-dir", "--work-dir", "-w"}
    found = {}
    for action in app_parser.build_parser()._actions:
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        if action.type is Path or any(word in metavar for word in ("PATH", "DIR", "FILE")):
            found |= {name: metavar for name in action.option_strings if "_" not in name and name not in own_options}
    assert set(slurm_array.PATHS) == set(found)
    for name, metavar in found.items():
        kind = slurm_array.PATHS[name]
        assert (kind in ("named", "model")) == ("=" in metavar)
        assert (kind in ("atlas", "preset")) == ("|FILE" in metavar)


# ---- the job script


def run_task(cluster, index, *, shell="bash", **variables):
    environment = {**os.environ, "SLURM_ARRAY_JOB_ID": "101", "SLURM_ARRAY_TASK_ID": str(index), "SLURM_JOB_ID": "107"}
    environment |= {"SLURMD_NODENAME": "n7", **variables}
    return subprocess.Popen(
        [shell, cluster.script()], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def own_record(cluster, name):
    return json.loads((cluster.state() / "tasks" / name).read_text())


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_job_script_runs_the_app_and_records_it(cluster, shell):
    program = 'printf "%s|" "$@" >"$FAKE/app"; echo "cpus $SLURM_CPUS_PER_TASK mem $SLURM_MEM_PER_NODE" >"$FAKE/seen"'
    app = executable(cluster.folder / "my app", f"#!/bin/bash\n{program}; exit 70\n")
    cluster.call("--app", shlex.quote(str(app)), "--env", "SECRET=a b", "--", "--test-task", "$HOME `x` 'y'")
    first = run_task(cluster, 2, shell=shell, SLURM_CPUS_ON_NODE="4", SLURM_MEM_PER_CPU="500")
    out, _ = first.communicate()
    assert first.returncode == 70
    assert "slurm-array: participant 02, task 101_2, attempt 1, on n7" in out
    assert (cluster.folder / "fake" / "seen").read_text() == "cpus 4 mem 2000\n"
    words = (cluster.folder / "fake" / "app").read_text().split("|")[:-1]
    assert words[3:] == [
        "--test-task", "$HOME `x` 'y'", "--participant-label", "02", "--work-dir", f"{cluster.folder}/work/sub-02"
    ]  # fmt: skip
    record = own_record(cluster, "participant-02_101_2_0.json")
    assert {name: record[name] for name in ("label", "job", "index", "node", "attempt", "exit_status")} == {
        "label": "02", "job": 101, "index": 2, "node": "n7", "attempt": 1, "exit_status": 70
    }  # fmt: skip
    assert record["start"] <= record["end"]
    run_task(cluster, 2, shell=shell, SLURM_RESTART_COUNT="1").communicate()
    assert own_record(cluster, "participant-02_101_2_1.json")["attempt"] == 2


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_job_script_hands_sigterm_on_and_waits(cluster, shell):
    program = 'trap \'sleep 1; echo cleaned >"$FAKE/cleaned"; exit 143\' TERM; touch "$FAKE/up"; sleep 3 & wait; wait'
    app = executable(cluster.folder / "app", f"#!/bin/bash\n{program}\n")
    cluster.call("--app", app)
    task = run_task(cluster, 1, shell=shell)
    while not (cluster.folder / "fake" / "up").exists():
        time.sleep(0.05)
    assert own_record(cluster, "participant-01_101_1_0.json")["end"] is None
    task.send_signal(signal.SIGTERM)
    assert task.wait() == 143
    task.stdout.close()
    assert (cluster.folder / "fake" / "cleaned").read_text() == "cleaned\n"
    record = own_record(cluster, "participant-01_101_1_0.json")
    assert (record["exit_status"], record["stopped_by"]) == (143, "TERM")


def test_image_is_told_what_the_job_may_use(cluster, monkeypatch):
    text = '#!/bin/bash\nprintf "%s\\n" "$@" >"$FAKE/apptainer"; env >"$FAKE/env"\n'
    executable(cluster.folder / "programs" / "apptainer", text)
    image_command(cluster, "--env", "HF_HOME=/a b", "--env", "WORDS=a,b=$x")
    task = run_task(cluster, 3, SLURM_CPUS_PER_TASK="4", SLURM_MEM_PER_NODE="8000", CUDA_VISIBLE_DEVICES="0,1")
    assert (task.communicate()[0].count("slurm-array:"), task.returncode) == (1, 0)
    words = (cluster.folder / "fake" / "apptainer").read_text().splitlines()
    # Apptainer parts what --env gives at commas.
    assert "--env" not in words
    seen = (cluster.folder / "fake" / "env").read_text().splitlines()
    given = {line.partition("_")[2] for line in seen if line.startswith("APPTAINERENV_")}
    assert given == {
        "HF_HOME=/a b", "WORDS=a,b=$x", "SLURM_CPUS_PER_TASK=4", "SLURM_MEM_PER_NODE=8000", "CUDA_VISIBLE_DEVICES=0,1"
    }  # fmt: skip
    image = words.index(str(cluster.folder / "image.sif"))
    assert words[image + 1 : image + 4] == [str(cluster.bids), str(cluster.out), "participant"]
    assert words[-1] == f"{cluster.folder}/work/sub-x3"
    assert (Path(words[words.index("--workdir") + 1])).is_dir()


# ---- what became of the tasks


def reasons(cluster):
    status, out, _ = cluster.call("--status")
    table = [line.split("\t") for line in (cluster.state() / "failed.tsv").read_text().splitlines()]
    rows = [dict(zip(table[0], line, strict=True)) for line in table[1:]]
    return status, out, {row["task"]: row["reason"] for row in rows}


@pytest.mark.parametrize(
    ("status", "log", "line", "reason"),
    [
        (None, "slurmstepd-n1: error: Exceeded job memory limit\n", "", "out of memory"),
        (137, "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=1.batch\n", "", "out of memory"),
        (1, "", "JobState=OUT_OF_MEMORY", "out of memory"),
        (143, "slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***\n", "", "cancelled"),
        (143, "", "JobState=CANCELLED", "cancelled"),
        (None, "slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***\n", "", "time limit"),
        (None, "", "JobState=TIMEOUT", "time limit"),
        (None, "slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026 DUE TO PREEMPTION ***\n", "", "preempted"),
        (None, "", "JobState=NODE_FAIL", "node failed"),
        (137, "Killed\n", "JobState=FAILED", "killed by signal 9 (SIGKILL)"),
        (70, "bids-mllm: No film.\nx\n", "", "exit status 70: bids-mllm: No film."),
        (127, "app: not found\n", "", "exit status 127: app: not found"),
        (255, "INFO: x\nFATAL:   no such image\nlast\n", "", "exit status 255: FATAL:   no such image"),
        (255, "INFO: x\nlast\n", "", "exit status 255: last"),
        (193, "last\n", "", "exit status 193: last"),
        (192, "last\n", "", "killed by signal 64 (SIGRTMAX)"),
        (1, "a film about an oom-kill event\n", "", "exit status 1 (a crash; see LOG)"),
    ],
)
def test_reasons(cluster, status, log, line, reason):
    cluster.call("--participant-label", "01", "--no-group")
    cluster.record(101, 1, "01", status)
    cluster.log(101, 1, f"slurm-array: participant 01, task 101_1, attempt 1, on n1, T\n{log}")
    if line:
        cluster.show(101, f"JobId=101 ArrayJobId=101 ArrayTaskId=1 {line} Reason=None")
    found, out, table = reasons(cluster)
    path = cluster.state() / "log" / "participant_101_1.log"
    assert table == {"101_1": reason.replace("LOG", str(path))}
    assert found == 1
    assert f"0 done, 0 running, 0 pending, 1 failed. Records and logs: {cluster.state()}" in out


def test_a_task_that_was_asked_to_end(cluster):
    cluster.call("--participant-label", "01", "--no-group")
    cluster.record(101, 1, "01", 143, stopped="TERM")
    assert reasons(cluster)[2] == {"101_1": "stopped by SIGTERM"}


def test_a_task_without_an_end_was_killed_with_its_script(cluster):
    cluster.call("--participant-label", "01", "--no-group")
    cluster.record(101, 1, "01", None)
    assert reasons(cluster)[2]["101_1"].startswith("killed with its job script, which wrote no end; see ")


def test_slurm_knows_that_a_task_is_done_whose_last_record_could_not_be_written(cluster):
    cluster.call("--participant-label", "01", "--no-group")
    cluster.record(101, 1, "01", None)
    cluster.show(101, "JobId=101 ArrayJobId=101 ArrayTaskId=1 JobState=COMPLETED Reason=None")
    assert reasons(cluster)[::2] == (0, {})


def test_tasks_that_never_started(cluster):
    cluster.call("--features-tasks", 1)
    cluster.record(101, 1, "all", 1, stage="features")
    cluster.show(102, "JobId=102 ArrayJobId=102 ArrayTaskId=1-3%2 JobState=PENDING Reason=DependencyNeverSatisfied")
    cluster.show(103, "JobId=103 JobState=CANCELLED Reason=DependencyNeverSatisfied")
    _, _, table = reasons(cluster)
    assert table["102_3"] == "never started, because 101_1 failed"
    assert table["103"].startswith("never started, because 101_1, 102_1")


def test_never_started_and_cancelled_in_the_queue(cluster):
    cluster.call("--no-group")
    cluster.show(101, "JobId=101 ArrayJobId=101 ArrayTaskId=2 JobState=CANCELLED Reason=None")
    _, _, table = reasons(cluster)
    assert table["101_1"] == "never started"
    assert table["101_2"] == "cancelled before it started"


def test_why_slurm_could_not_start_a_task(cluster):
    cluster.call("--features-tasks", 1)
    cluster.record(101, 1, "all", 1, stage="features")
    cluster.show(102, "JobId=102 ArrayJobId=102 ArrayTaskId=2 JobState=FAILED Reason=JobLaunchFailure")
    _, _, table = reasons(cluster)
    assert table["102_1"] == "never started, because 101_1 failed"
    assert table["102_2"] == "never started (FAILED, JobLaunchFailure)"


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("1-99:2", range(1, 100, 2)), ("0-10:5%3", (0, 5, 10)), ("[1-3,7-9:2%2]", (1, 2, 3, 7, 9)), ("4", (4,)),
    ],
)  # fmt: skip
def test_indices_as_slurm_writes_them(text, indices):
    assert slurm_array._indices(text) == list(indices)


def test_indices_that_cannot_be_read_are_not_taken_for_none():
    with pytest.raises(slurm_array.SlurmError, match=r"'1,3\.\.\.', which cannot be read"):
        slurm_array._indices("1,3...")


@pytest.mark.parametrize("program", ["scontrol", "sacct"])
@pytest.mark.parametrize("text", ["1-99:2", ",".join(str(index) for index in range(1, 91) if index % 3)])
def test_long_lists_of_queued_tasks_are_read_whole(cluster, text, program):
    for index in range(4, 101):
        (cluster.bids / f"sub-{index:03}").mkdir()
    cluster.call("--no-group")
    if program == "scontrol":
        cluster.show(101, f"JobId=101 ArrayJobId=101 ArrayTaskId={text}%4 JobState=PENDING Reason=Priority")
    else:
        answer = f'[ "$SLURM_BITSTR_LEN" = 0 ] && echo "101_[{text}%4]|PENDING" || echo "101_[1,2...]|PENDING"'
        executable(cluster.folder / "programs" / "sacct", f"#!/bin/bash\n{answer}\n")
    queued = 50 if ":" in text else 60
    assert f" {queued} pending, {100 - queued} failed." in cluster.call("--status")[1]
    cluster.call("--resume")
    resumed = next(word for word in cluster.calls()[1] if word.startswith("--array"))
    assert len(slurm_array._indices(resumed.partition("=")[2])) == 100 - queued


def test_states_of_accounting_serve_where_the_controller_has_forgotten(cluster):
    cluster.call("--no-group")
    text = '#!/bin/bash\nprintf "%s\\n" "101_1|OUT_OF_MEMORY" "101_[2-3]|PENDING"\n'
    executable(cluster.folder / "programs" / "sacct", text)
    cluster.record(101, 1, "01", 1)
    found, out, table = reasons(cluster)
    assert (found, table) == (1, {"101_1": "out of memory"})
    assert "0 done, 0 running, 2 pending, 1 failed." in out


def test_running_tasks_are_not_taken_for_killed_where_slurm_does_not_answer(cluster, monkeypatch):
    cluster.call("--no-group")
    cluster.record(101, 1, "01", None)
    monkeypatch.setenv("FAKE_CONTROLLER_ERROR", "Unable to contact slurm controller")
    for action in ("--status", "--resume"):
        status, out, err = cluster.call(action)
        assert (status, out) == (1, "")
        assert err == (
            "slurm-array: Slurm does not tell the state of job 101 (slurm_load_jobs error: Unable to contact slurm "
            "controller); try again later.\n"
        )
    assert len(cluster.calls()) == 1


def test_status_does_not_need_to_write(cluster, monkeypatch):
    cluster.call("--no-group")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(slurm_array, "write_failed", refuse)
    status, out, err = cluster.call("--status")
    assert (status, err) == (
        1, f"slurm-array: {cluster.state()}/failed.tsv cannot be written (Permission denied).\n"
    )  # fmt: skip
    assert "0 done, 0 running, 0 pending, 3 failed." in out


def test_earlier_submissions_are_named_and_have_their_own_table(cluster):
    cluster.call("--no-group", "--participant-label", "01")
    first = cluster.state()
    cluster.record(101, 1, "01", 0)
    assert "Other submissions" not in cluster.call("--status")[1]
    cluster.call("--no-group", "--participant-label", "02")
    assert cluster.state() != first
    assert cluster.call("--status")[1].splitlines()[-1].endswith(f"--submission STAMP: {first.name}")
    status, out, _ = cluster.call("--status", "--submission", first.name)
    assert status == 0
    assert "1 done, 0 running, 0 pending, 0 failed." in out
    status, _, err = cluster.call("--status", "--submission", "x")
    assert status == 2
    assert err.endswith(f"has no record of the submission x; there are {first.name}, {cluster.state().name}.\n")


def test_only_the_last_attempt_of_a_log_counts(cluster):
    cluster.call("--participant-label", "01", "--no-group", "--requeue")
    for restart in (3, 0, 1, 2):
        cluster.record(101, 1, "01", 1 if restart == 3 else None, restart=restart, attempt=restart + 1)
    start = "slurm-array: participant 01, task 101_1, attempt {}, on n1, T\n"
    cut = "slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026 DUE TO PREEMPTION ***\n"
    cluster.log(101, 1, start.format(1) + cut + start.format(2) + "broken\n")
    assert reasons(cluster)[2]["101_1"].startswith("exit status 1 (a crash; see ")


def test_status_of_running_and_done_tasks(cluster):
    cluster.call()
    cluster.record(101, 1, "01", 0)
    cluster.record(101, 2, "02", None)
    cluster.show(
        101, "JobId=101 ArrayJobId=101 ArrayTaskId=2 JobState=RUNNING Reason=None",
        "JobId=104 ArrayJobId=101 ArrayTaskId=3 JobState=PENDING Reason=Resources",
    )  # fmt: skip
    cluster.show(102, "JobId=102 JobState=PENDING Reason=Dependency")
    status, out, _ = cluster.call("--status")
    assert status == 0
    assert "1 done, 1 running, 2 pending, 0 failed." in out
    assert re.search(r"participant +x3 +101_3 +pending +Resources", out)


# ---- resuming


def test_resume_submits_what_failed_with_the_same_settings(cluster):
    cluster.call("--mem", "1G", "--time", "5", "--max-running", 2, "--", "--models", "motionenergy")
    cluster.record(101, 1, "01", None)
    cluster.record(101, 2, "02", 0)
    status, out, _ = cluster.call("--resume", "--mem", "2G")
    assert status == 0
    array, group = cluster.calls()[2:]
    assert "--array=1,3%2" in array
    assert array[-1] == str(cluster.script(number=2))
    assert "--dependency=afterok:103" in group
    text = cluster.script(number=2).read_text()
    assert "#SBATCH --mem=2G\n" in text
    assert "#SBATCH --time=5\n" in text
    assert "--models motionenergy" in text
    assert "participant: job 103, 2 tasks" in out
    cluster.record(103, 1, "01", 0, attempt=2)
    cluster.record(103, 3, "x3", 1)
    assert set(reasons(cluster)[2]) == {"103_3", "104"}
    cluster.call("--resume")
    assert "--array=3%2" in cluster.calls()[4]
    assert "#SBATCH --mem=2G\n" in cluster.script(number=3).read_text()


def test_resume_of_the_group_alone_and_of_nothing(cluster):
    cluster.call("--participant-label", "01")
    cluster.record(101, 1, "01", 0)
    cluster.record(102, 0, "group", 1, stage="group")
    cluster.call("--resume")
    (group,) = cluster.calls()[2:]
    assert not any(word.startswith("--dependency") for word in group)
    cluster.record(103, 0, "group", 0, stage="group")
    status, out, _ = cluster.call("--resume")
    assert (status, out) == (0, "No task failed (0 are queued or running); nothing is submitted.\n")
    assert len(cluster.calls()) == 3


def test_resumed_group_waits_for_what_still_runs(cluster):
    cluster.call("--group-after", "any")
    cluster.record(101, 1, "01", 1)
    cluster.record(101, 2, "02", None)
    cluster.show(
        101, "JobId=101 ArrayJobId=101 ArrayTaskId=2 JobState=RUNNING Reason=None",
        "JobId=104 ArrayJobId=101 ArrayTaskId=3 JobState=PENDING Reason=Resources",
    )  # fmt: skip
    cluster.show(102, "JobId=102 JobState=PENDING Reason=Dependency")
    assert cluster.call("--resume")[0] == 0
    array, group = cluster.calls()[2:]
    assert "--array=1" in array
    assert "--dependency=afterany:103:101_2:101_3" in group
    assert (cluster.folder / "fake" / "cancelled").read_text() == "102\n"


def test_resume_after_failed_features(cluster):
    cluster.call("--features-tasks", 2)
    cluster.record(101, 1, "all", 0, stage="features")
    cluster.record(101, 2, "all", 1, stage="features")
    cluster.call("--resume")
    features, array, group = cluster.calls()[3:]
    assert "--array=2" in features
    assert "--array=1-3" in array
    assert "--dependency=afterok:104" in array
    assert "--dependency=afterok:105" in group


def test_resume_refuses_other_participants_and_data(cluster):
    cluster.call("--participant-label", "01")
    assert (
        "--participant-label cannot be changed by --resume" in cluster.call("--resume", "--participant-label", "02")[2]
    )
    assert "has no job for the features" in cluster.call("--resume", "--features-mem", "2G")[2]
    cluster.bids = cluster.folder
    assert "The submission to resume was of" in cluster.call("--resume")[2]


def test_resume_of_an_earlier_submission_does_not_touch_what_a_later_one_is_at(cluster):
    cluster.call("--no-group", "--participant-label", "01", "02")
    first = cluster.state().name
    cluster.record(101, 1, "01", 0)
    cluster.record(101, 2, "02", 1)
    cluster.call("--no-group", "--participant-label", "02")
    cluster.show(102, "JobId=102 ArrayJobId=102 ArrayTaskId=1 JobState=PENDING Reason=Priority")
    status, _, err = cluster.call("--resume", "--submission", first)
    assert status == 2
    assert err.startswith(f"slurm-array: 02 of the submission {cluster.state().name} (job 102) are still queued")
    cluster.show(102, "JobId=102 ArrayJobId=102 ArrayTaskId=1 JobState=CANCELLED Reason=None")
    assert cluster.call("--resume", "--submission", first)[0] == 0
    assert "--array=2" in cluster.calls()[2]


def test_resumed_participants_wait_for_features_that_still_run(cluster):
    cluster.call("--features-tasks", 2)
    cluster.record(101, 1, "all", 1, stage="features")
    cluster.record(101, 2, "all", None, stage="features")
    cluster.show(101, "JobId=101 ArrayJobId=101 ArrayTaskId=2 JobState=RUNNING Reason=None")
    cluster.show(102, "JobId=102 ArrayJobId=102 ArrayTaskId=1-3 JobState=PENDING Reason=DependencyNeverSatisfied")
    cluster.call("--resume")
    _, array, _ = cluster.calls()[3:]
    assert "--dependency=afterok:104:101_2" in array


def test_resume_takes_new_paths_from_the_current_folder_and_leaves_old_ones(cluster, monkeypatch):
    for name in ("films", "there/films", "there/work"):
        (cluster.folder / name).mkdir(parents=True)
    cluster.call("--work-dir", "work", "--", "--stimuli-dir", "films")
    monkeypatch.chdir(cluster.folder / "there")
    cluster.call("--resume")
    assert f"--stimuli-dir {cluster.folder}/films" in cluster.script(number=2).read_text()
    assert f"work={cluster.folder}/work/" in cluster.script(number=2).read_text()
    cluster.call("--resume", "--work-dir", "work", "--", "--stimuli-dir", "films")
    assert f"--stimuli-dir {cluster.folder}/there/films" in cluster.script(number=3).read_text()
    assert f"work={cluster.folder}/there/work/" in cluster.script(number=3).read_text()


def test_resume_knows_folders_by_other_names(cluster):
    cluster.call()
    for name in ("bids", "out"):
        (cluster.folder / f"link to {name}").symlink_to(getattr(cluster, name))
        setattr(cluster, name, cluster.folder / "fake" / ".." / f"link to {name}")
    assert cluster.call("--resume")[0] == 0
    assert len(cluster.calls()) == 4


def test_resume_refuses_a_copy_of_an_output(cluster):
    cluster.call()
    moved, first = cluster.folder / "moved", cluster.out
    cluster.out = cluster.out.rename(moved)
    status, _, err = cluster.call("--resume")
    assert status == 2
    assert err == (
        f"slurm-array: The submission to resume wrote to {first}, of which {moved} is a copy or a new place; submit "
        "anew without --resume.\n"
    )


def test_resume_refuses_a_command_on_the_host_beside_an_image(cluster):
    (cluster.folder / "image.sif").touch()
    cluster.call("--image", "image.sif")
    assert "give one of them" in cluster.call("--resume", "--app", "app")[2]


def test_help_has_two_examples(capsys):
    with pytest.raises(SystemExit) as end:
        slurm_array.main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.count("    slurm-array /data/movies /data/out --") == 4
    assert "Exit status: 0 done; 1 " in out


def test_script_runs_by_itself():
    found = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True)
    assert found.returncode == 0


def test_script_is_python_of_old_login_nodes():
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 8))
