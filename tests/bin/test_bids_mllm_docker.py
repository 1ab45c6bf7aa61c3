"""The wrapper around Docker and Podman: what it binds, how it rewrites arguments, and what it says of its own."""

import argparse
import ast
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from bids_mllm.cli.parser import build_parser

SCRIPT = Path(__file__).parents[2] / "bin" / "bids-mllm-docker"
OLD_PYTHON = "python3.8"


def load() -> ModuleType:
    loader = SourceFileLoader("bids_mllm_docker", str(SCRIPT))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


WRAPPER = load()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    """No engine, cache or templates of this machine take part."""
    for name in ("TEMPLATEFLOW_HOME", "HF_HOME", "XDG_CACHE_HOME", *WRAPPER.NETWORK_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(WRAPPER, "has_driver", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()


@pytest.fixture
def printed(capsys):
    """Return the words of the command that the wrapper would run, and those of the folders it would make."""

    def call(*words: object) -> tuple[list[str], list[str]]:
        capsys.readouterr()
        status = WRAPPER.main(["--print-only", *map(str, words)])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        *made, command = captured.out.splitlines()
        return shlex.split(command), shlex.split(made[0])[2:] if made else []

    return call


@pytest.fixture
def refused(capsys):
    """Return the one sentence that the wrapper says; nothing is run and nothing is made."""

    def call(*words: object, status: int = 2) -> str:
        before = sorted(Path().rglob("*"))
        capsys.readouterr()
        assert WRAPPER.main(list(map(str, words))) == status
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert sorted(Path().rglob("*")) == before
        return captured.err

    return call


def mounts(command: list[str]) -> dict[str, tuple[str, bool]]:
    """Return source and whether it may be written by target."""
    values = [command[place + 1] for place, word in enumerate(command) if word == "--mount"]
    found = {}
    for value in values:
        kind, source, target, *mode = value.split(",")
        assert kind == "type=bind"
        assert mode in ([], ["readonly"])
        found[target.removeprefix("target=")] = (source.removeprefix("source="), not mode)
    assert len(found) == len(values), "two mounts at one place"
    return found


def arguments(command: list[str]) -> list[str]:
    """Return what the app gets."""
    return command[command.index(WRAPPER.IMAGE) + 1 :]


def variables(command: list[str]) -> dict[str, str]:
    given = [command[place + 1].partition("=") for place, word in enumerate(command) if word == "-e"]
    return {name: value for name, _, value in given}


def app_options() -> dict[str, argparse.Action]:
    """Return the options of the app by their spelling with hyphens."""
    found = {}
    for action in build_parser()._actions:
        names = [name for name in action.option_strings if "_" not in name]
        found |= dict.fromkeys(names, action)
    del found["-h"], found["--help"]
    return found


def test_every_option_of_the_app_is_in_the_table():
    assert set(WRAPPER.OPTIONS) == set(app_options())


@pytest.mark.parametrize("name", app_options())
def test_the_table_knows_the_number_of_values_and_the_paths(name):
    action, option = app_options()[name], WRAPPER.OPTIONS[name]
    expected = {None: WRAPPER.ONE, 0: WRAPPER.FLAG, 3: WRAPPER.THREE, "+": WRAPPER.SEVERAL, "*": WRAPPER.SEVERAL}
    assert option.n_values == expected[action.nargs]
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    is_path = action.type is Path or any(word in metavar for word in ("PATH", "DIR", "FILE"))
    assert bool(option.path) == is_path
    if option.path:
        assert option.path in WRAPPER.KINDS
    if "=" in metavar:
        assert option.path in ("named", "model")
    if "|FILE" in metavar:
        assert option.path in ("atlas", "preset")


def test_a_plain_call_binds_data_output_and_work(printed, tmp_path):
    command, made = printed("raw", "out", "participant")
    assert mounts(command) == {
        "/data": (str(tmp_path / "raw"), False),
        "/out": (str(tmp_path / "out"), True),
        "/scratch": (str(tmp_path / "work"), True),
    }
    assert arguments(command) == ["/data", "/out", "participant", "--work-dir", "/scratch"]
    assert made == [str(tmp_path / "out"), str(tmp_path / "work")]
    assert command[:3] == [command[0], "run", "--rm"]
    text = " ".join(command)
    limits = ("--network none", "--stop-timeout 30", "--read-only", "--tmpfs /tmp:")
    for part in (*limits, f"-u {os.getuid()}:{os.getgid()}"):
        assert part in text
    assert "--gpus" not in command
    assert "-t" not in command
    assert variables(command) == {"BIDS_MLLM_CONTAINER": command[0]}
    assert not (tmp_path / "out").exists()


def touch(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("x")


def test_every_kind_of_path_is_bound_and_rewritten(printed, tmp_path):
    touch(
        "f/filter.json", "f/map.tsv", "f/own.toml", "f/demo/d.toml", "f/plugin.yml", "f/rois.toml", "f/set.toml",
        "f/preset.toml", "cv/sub-01/split.json", "atlas/a_dseg.nii.gz", "atlas/a_dseg.tsv", "models/m/config.json",
        "models/bare/config.json", "words/x.tsv",
    )  # fmt: skip
    for folder in ("prep", "xcp d", "stim", "regions"):
        Path(folder).mkdir()
    command, made = printed(
        "raw", "out", "participant", "--bids-filter-file", "f/filter.json", "--bids-database-dir", "db",
        "-d", "fmriprep=prep", "xcp d", "--stimuli-dir=stim", "--stimulus_map", "f/map.tsv",
        "--models", "motionenergy", "owner/name", "key=models/m", "key+random=models/m", "./models/bare+random",
        "own=owner/name", "--instructions-file", "f/own.toml", "--demonstrations", "f/demo/d.toml",
        "--feature-table", "words=words", "--features-dir", "store", "--cv-file", "cv/sub-{participant}/split.json",
        "--atlas", "Glasser", "Schaefer400x17", "atlas/a_dseg.nii.gz", "--atlas-dir", "regions",
        "--rois", "f/rois.toml", "-wscratch", "--nipype-plugin-file", "f/plugin.yml", "--preset", "f/preset.toml",
        "--config-file", "f/set.toml",
    )  # fmt: skip
    expected = {
        "/data": ("raw", False),
        "/out": ("out", True),
        "/inputs/bids-filter-file/filter.json": ("f/filter.json", False),
        "/bids-database-dir": ("db", True),
        "/derivatives/fmriprep": ("prep", False),
        "/derivatives/xcp d": ("xcp d", False),
        "/stimuli": ("stim", False),
        "/inputs/stimulus-map/map.tsv": ("f/map.tsv", False),
        "/models/key": ("models/m", False),
        "/models/bare": ("models/bare", False),
        "/inputs/instructions-file/own.toml": ("f/own.toml", False),
        "/inputs/demonstrations/demo": ("f/demo", False),
        "/tables/words": ("words", False),
        "/features": ("store", True),
        "/inputs/cv-file/cv": ("cv", False),
        "/inputs/atlas/atlas": ("atlas", False),
        "/inputs/atlas-dir/regions": ("regions", False),
        "/inputs/rois/rois.toml": ("f/rois.toml", False),
        "/scratch": ("scratch", True),
        "/inputs/nipype-plugin-file/plugin.yml": ("f/plugin.yml", False),
        "/inputs/preset/preset.toml": ("f/preset.toml", False),
        "/inputs/config-file/set.toml": ("f/set.toml", False),
    }
    assert mounts(command) == {place: (str(tmp_path / path), rw) for place, (path, rw) in expected.items()}
    assert arguments(command) == [
        "/data", "/out", "participant", "--bids-filter-file", "/inputs/bids-filter-file/filter.json",
        "--bids-database-dir", "/bids-database-dir", "-d", "fmriprep=/derivatives/fmriprep", "/derivatives/xcp d",
        "--stimuli-dir", "/stimuli", "--stimulus-map", "/inputs/stimulus-map/map.tsv",
        "--models", "motionenergy", "owner/name", "key=/models/key", "key+random=/models/key", "/models/bare+random",
        "own=owner/name", "--instructions-file", "/inputs/instructions-file/own.toml",
        "--demonstrations", "/inputs/demonstrations/demo/d.toml", "--feature-table", "words=/tables/words",
        "--features-dir", "/features", "--cv-file", "/inputs/cv-file/cv/sub-{participant}/split.json",
        "--atlas", "Glasser", "Schaefer400x17", "/inputs/atlas/atlas/a_dseg.nii.gz",
        "--atlas-dir", "/inputs/atlas-dir/regions", "--rois", "/inputs/rois/rois.toml", "-w", "/scratch",
        "--nipype-plugin-file", "/inputs/nipype-plugin-file/plugin.yml", "--preset", "/inputs/preset/preset.toml",
        "--config-file", "/inputs/config-file/set.toml",
    ]  # fmt: skip
    assert set(made) == {str(tmp_path / name) for name in ("out", "db", "store", "scratch")}


def test_the_app_accepts_what_it_is_given(printed, monkeypatch):
    """The rewritten command line is one of the app, with the same values for all that is no path."""
    words = ["--layers", "0", "2", "-t", "life", "--high-pass", "0", "-vv", "--cv=film", "--window", "-1", "--alphas"]
    command, _ = printed("--dry_run", "--engine", "docker", "raw", "out", "participant", *words, "1", "10", "3")
    given = vars(build_parser().parse_args(arguments(command)))
    expected = {"layers": [0, 2], "task_id": ["life"], "high_pass": 0.0, "verbose": 2, "cv": "film", "window": -1.0}
    assert {name: given[name] for name in expected} == expected
    assert given["alphas"] == [1, 10, 3]
    assert given["dry_run"] is True


def test_options_before_the_data_and_unknown_ones_pass(printed):
    command, _ = printed("--sloppy", "--engine", "podman", "raw", "--future", "a", "b", "--", "out", "group")
    assert command[0] == "podman"
    assert arguments(command) == ["/data", "/out", "group", "--sloppy", "--future", "a", "b", "--work-dir", "/scratch"]


def test_folders_within_bound_ones_keep_their_place(printed, tmp_path):
    for folder in ("raw/derivatives/fmriprep", "raw/stimuli", "raw/code"):
        Path(folder).mkdir(parents=True)
    touch("raw/code/filter.json")
    out = "raw/derivatives/bids-mllm"
    command, _ = printed(
        "raw", out, "participant", "-d", "raw/derivatives/fmriprep", "--stimuli-dir", "raw/stimuli",
        "--bids-filter-file", "raw/code/filter.json", "--features-dir", f"{out}/store", "-w", "w",
    )  # fmt: skip
    assert mounts(command) == {
        "/data": (str(tmp_path / "raw"), False),
        "/data/derivatives/bids-mllm": (str(tmp_path / out), True),
        "/data/derivatives/bids-mllm/store": (str(tmp_path / out / "store"), True),
        "/scratch": (str(tmp_path / "w"), True),
    }
    assert arguments(command)[:3] == ["/data", "/data/derivatives/bids-mllm", "participant"]
    assert arguments(command)[3:] == [
        "-d", "/data/derivatives/fmriprep", "--stimuli-dir", "/data/stimuli", "--bids-filter-file",
        "/data/code/filter.json", "--features-dir", "/data/derivatives/bids-mllm/store", "-w", "/scratch",
    ]  # fmt: skip
    places = [word for word in command if word.startswith("type=bind")]
    assert places == sorted(places, key=lambda word: word.split(",")[2]), "an inner folder would be hidden by an outer"


def test_a_folder_of_a_datalad_data_set_comes_with_the_content(printed, tmp_path):
    Path("ds/.git/annex/objects").mkdir(parents=True)
    for folder in ("ds/prep", "ds/films", "own/.git/annex"):
        Path(folder).mkdir(parents=True)
    command, _ = printed("raw", "out", "participant", "-d", "ds/prep", "own=own", "--stimuli-dir", "ds/films")
    bound = mounts(command)
    assert bound["/derivatives/prep"] == (str(tmp_path / "ds"), False)
    assert bound["/derivatives/own"] == (str(tmp_path / "own"), False)
    assert "/stimuli" not in bound
    assert arguments(command)[3:8] == [
        "-d", "/derivatives/prep/prep", "own=/derivatives/own", "--stimuli-dir", "/derivatives/prep/films",
    ]  # fmt: skip


def test_a_link_out_of_the_data_is_bound_by_itself_and_told(printed, capsys, tmp_path):
    Path("elsewhere/fmriprep").mkdir(parents=True)
    Path("raw/derivatives").mkdir()
    Path("raw/derivatives/fmriprep").symlink_to(tmp_path / "elsewhere" / "fmriprep")
    status = WRAPPER.main(["raw", "out", "participant", "--print-only", "-d", "raw/derivatives/fmriprep"])
    captured = capsys.readouterr()
    assert status == 0
    assert mounts(shlex.split(captured.out.splitlines()[-1]))["/derivatives/fmriprep"] == (
        str(tmp_path / "raw/derivatives/fmriprep"), False,
    )  # fmt: skip
    assert "raw/derivatives/fmriprep is a link to" in captured.err
    assert "--derivatives" in captured.err


def test_two_folders_of_one_name_have_places_of_their_own(printed, tmp_path):
    for folder in ("a/m", "b/m"):
        touch(f"{folder}/config.json")
    command, _ = printed("raw", "out", "participant", "--models", "./a/m", "./b/m", "x=a/m")
    assert arguments(command)[4:7] == ["/models/m", "/models/2/m", "x=/models/m"]
    assert mounts(command)["/models/2/m"] == (str(tmp_path / "b/m"), False)


def test_a_checkpoint_in_the_cache_of_the_hub_comes_with_its_files(printed, refused, tmp_path):
    repository = tmp_path / "cache" / "models--owner--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "abc").write_text("{}")
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    command, _ = printed("raw", "out", "participant", "--models", f"key={snapshot}")
    assert mounts(command)["/models/key"] == (str(repository), False)
    assert "key=/models/key/snapshots/0123" in arguments(command)
    Path("m").mkdir()
    Path("m/config.json").symlink_to(repository / "blobs" / "abc")
    assert "outside its folder; copy the file there" in refused("raw", "out", "participant", "--models", "key=m")


def test_names_with_spaces_and_colons_can_be_pasted(capsys, tmp_path):
    folder = tmp_path / "my data: 1"
    folder.mkdir()
    assert WRAPPER.main([str(folder), "out put", "participant", "--print-only"]) == 0
    made, line = capsys.readouterr().out.splitlines()
    assert mounts(shlex.split(line))["/data"] == (str(folder), False)
    echoed = subprocess.run(
        ["bash", "-c", f"{made}; printf '%s\\n' {line}"], capture_output=True, text=True, check=True
    )
    assert f"type=bind,source={folder},target=/data,readonly" in echoed.stdout.splitlines()
    assert (tmp_path / "out put").is_dir()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["lost", "out", "participant"], "The BIDS folder lost does not exist; give the root of a BIDS data set."),
        (["raw", "raw", "participant"], "The output folder raw is the BIDS folder itself; choose another."),
        (["raw", "out", "participant", "--stimuli-dir", "lost"], "--stimuli-dir: there is no folder lost."),
        (["raw", "out", "participant", "-d", "fmriprep=lost"], "-d: there is no folder lost."),
        (["raw", "out", "participant", "--feature-table", "a=lost"], "--feature-table: there is no folder lost."),
        (["raw", "out", "participant", "--models", "a=./lost"], "--models: there is no folder ./lost."),
        (["raw", "out", "participant", "--models", "/lost"], "--models: there is no folder /lost."),
        (["raw", "out", "participant", "--stimulus-map", "lost.tsv"], "--stimulus-map: there is no file lost.tsv."),
        (["raw", "out", "participant", "--atlas", "lost.nii.gz"], "--atlas: there is no file lost.nii.gz."),
        (["raw", "out", "participant", "--preset", "lost.toml"], "--preset: there is no file lost.toml."),
        (["raw", "out", "participant", "--cv-file", "lost/{participant}"], "--cv-file: there is no folder"),
        (["raw", "out", "participant", "--templates", "lost"], "--templates: there is no folder lost."),
        (["raw", "out", "participant", "--gpus", "a;b"], "--gpus is 'a;b', but must be all, none, or numbers"),
    ],
)  # fmt: skip
def test_what_is_missing_is_told_before_anything_starts(refused, words, sentence):
    said = refused(*words, "--dry-run", "--engine", "docker", "--print-only")
    assert said.startswith(f"bids-mllm-docker: {sentence}")


def test_a_comma_cannot_be_bound(refused):
    Path("a,b").mkdir()
    assert "has a comma, a quotation mark or a line break" in refused("a,b", "raw", "group", "--print-only")


def test_a_dry_run_makes_nothing_and_binds_only_what_is_there(printed, tmp_path):
    Path("out").mkdir()
    command, made = printed("raw", "out", "group", "--dry-run")
    assert set(mounts(command)) == {"/data", "/out"}
    assert made == []


def test_gpus(printed, monkeypatch):
    assert "--gpus" not in printed("raw", "out", "participant")[0]
    monkeypatch.setattr(WRAPPER, "has_driver", lambda: True)

    def shown(*words: str) -> str:
        command = printed("raw", "out", *words)[0]
        return " ".join(command[: command.index(WRAPPER.IMAGE)])

    assert "--gpus all" in shown("participant")
    assert "--gpus" not in shown("participant", "--device", "cpu")
    assert "--gpus all" in shown("participant", "--device", "cuda:1")
    assert "--gpus" not in shown("group")
    assert "--gpus" not in shown("participant", "--gpus", "none")
    assert '--gpus "device=0,2"' in shown("participant", "--gpus", "0,2", "--engine", "docker")
    assert "--device nvidia.com/gpu=0 --device nvidia.com/gpu=2" in shown(
        "participant", "--gpus", "0,2", "--engine", "podman"
    )


def test_templates_and_the_cache_of_the_hub(printed, monkeypatch, tmp_path):
    for folder in ("tf", "other", "hub"):
        Path(folder).mkdir()
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "tf"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    command, _ = printed("raw", "out", "participant")
    assert mounts(command)["/templateflow"] == (str(tmp_path / "tf"), False)
    assert mounts(command)["/huggingface"] == (str(tmp_path / "hub"), False)
    assert variables(command)["TEMPLATEFLOW_HOME"] == "/templateflow"
    assert variables(command)["HF_HOME"] == "/huggingface"
    command, _ = printed("raw", "out", "participant", "--templates", "other")
    assert mounts(command)["/templateflow"] == (str(tmp_path / "other"), False)


def test_only_downloads_have_a_network_and_may_write_the_caches(printed, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "secret")
    command, made = printed("raw", "out", "participant", "--allow-download")
    assert "--network" not in command
    caches = tmp_path / "home" / ".cache"
    assert mounts(command)["/templateflow"] == (str(caches / "templateflow"), True)
    assert mounts(command)["/huggingface"] == (str(caches / "huggingface"), True)
    assert {str(caches / "templateflow"), str(caches / "huggingface")} < set(made)
    assert command[command.index("HF_TOKEN") - 1] == "-e"
    assert "secret" not in " ".join(command)
    assert "HF_TOKEN" not in printed("raw", "out", "participant")[0]


def test_a_shell_has_the_same_mounts(printed):
    plain, _ = printed("raw", "out", "participant")
    command, _ = printed("raw", "out", "participant", "--shell")
    assert mounts(command) == mounts(plain)
    assert command[-3:] == ["--entrypoint", "/bin/bash", WRAPPER.IMAGE]
    assert command[3:5] == ["-i", "-t"]
    assert printed("raw", "out", "participant", "--shell", "--no-tty")[0][3:5] == ["-i", "--read-only"]


ENGINE = """#!/usr/bin/env python3
import os, sys, time, signal
with open({log!r}, "a") as stream:
    stream.write(" ".join(sys.argv[1:]) + chr(10))
if sys.argv[1] == "image":
    sys.exit({inspect})
if sys.argv[1] == "version":
    sys.stderr.write("Cannot connect to the daemon." + chr(10))
    sys.exit({version})
def end(number, frame):
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
sys.stdout.write("output of the app" + chr(10))
sys.stdout.flush()
time.sleep({sleep})
sys.exit({status})
"""


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Put a stand-in for an engine first on the path; returns where it notes how it was called."""

    def make(*, name: str = "docker", inspect: int = 0, version: int = 0, status: int = 0, sleep: float = 0.0) -> Path:
        log = tmp_path / "calls"
        script = tmp_path / "engines" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(
            ENGINE.format(log=str(log), inspect=inspect, version=version, status=status, sleep=sleep), "utf-8"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        return log

    return make


@pytest.mark.parametrize("status", [0, 1, 2, 70, 143])
def test_the_exit_status_is_that_of_the_container(engine, capfd, status, tmp_path):
    log = engine(status=status)
    assert WRAPPER.main(["raw", "out", "participant", "--participant-label", "01"]) == status
    captured = capfd.readouterr()
    assert captured.out == "output of the app\n"
    assert shlex.split(captured.err.splitlines()[0])[1:] == shlex.split(log.read_text().splitlines()[-1])
    assert (tmp_path / "out").is_dir()
    assert (tmp_path / "work").is_dir()


def test_a_container_that_cannot_be_started(engine, capfd):
    engine(status=125)
    assert WRAPPER.main(["raw", "out", "participant", "--gpus", "all"]) == 125
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("bids-mllm-docker: docker could not start the container; its reason is above.")
    assert "--gpus none does without" in said


def test_an_image_that_is_not_there(engine, capfd):
    engine(inspect=1)
    assert WRAPPER.main(["raw", "out", "participant", "--image", "other:1"]) == 70
    said = capfd.readouterr().err
    assert said.startswith("bids-mllm-docker: docker has no image other:1; build it in a clone of bids-mllm with ")
    assert said.count("\n") == 1


def test_an_engine_that_does_not_answer(engine, capfd):
    engine(inspect=1, version=1)
    assert WRAPPER.main(["raw", "out", "participant"]) == 70
    assert capfd.readouterr().err == (
        "bids-mllm-docker: docker does not answer (Cannot connect to the daemon); start it, ask for access to it, or "
        "choose another with --engine.\n"
    )


def test_no_engine(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "docker and podman cannot be found; install Docker or Podman" in refused("raw", "out", "group", status=70)
    said = refused("raw", "out", "group", "--engine", "podman", status=70)
    assert said.startswith("bids-mllm-docker: podman cannot be found")


def test_podman_is_taken_where_there_is_no_docker(engine, monkeypatch, tmp_path, capfd):
    log = engine(name="podman")
    monkeypatch.setenv("PATH", f"{tmp_path / 'engines'}:{Path(sys.executable).parent}:/bin")
    monkeypatch.setattr(WRAPPER.shutil, "which", lambda name: None if name == "docker" else f"/x/{name}")
    assert WRAPPER.main(["raw", "out", "group"]) == 0
    assert log.read_text().splitlines()[-1].startswith("run --rm")
    assert "-e BIDS_MLLM_CONTAINER=podman" in capfd.readouterr().err


def test_a_signal_ends_the_container(engine, tmp_path):
    log = engine(sleep=60)
    running = subprocess.Popen([str(SCRIPT), "raw", "out", "group"], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "output of the app\n"
    began = time.monotonic()
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=20) == 143
    assert time.monotonic() - began < 10
    running.stdout.close()
    assert log.is_file()


def test_texts_of_the_app_need_no_data(engine, capfd):
    log = engine()
    assert WRAPPER.main(["--app-help"]) == 0
    assert WRAPPER.main(["--version", "--image", "other:1"]) == 0
    assert WRAPPER.main(["--print-preset", "oota2025"]) == 0
    calls = [line for line in log.read_text().splitlines() if line.startswith("run")]
    assert [line.rpartition(" none ")[2] for line in calls] == [
        f"{WRAPPER.IMAGE} --help",
        "other:1 --version",
        f"{WRAPPER.IMAGE} --print-preset oota2025",
    ]
    capfd.readouterr()


def test_wrong_usage(capsys):
    for words in ([], ["raw", "out"], ["raw", "out", "session"], ["raw", "out", "group", "more"]):
        with pytest.raises(SystemExit) as caught:
            WRAPPER.main(words)
        assert caught.value.code == 2
        assert "usage: bids-mllm-docker" in capsys.readouterr().err


def test_an_old_python_without_packages_runs_it(tmp_path):
    ast.parse(SCRIPT.read_text("utf-8"), feature_version=(3, 8))
    try:
        subprocess.run([OLD_PYTHON, "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"{OLD_PYTHON} is not installed here")
    words = [OLD_PYTHON, "-I", str(SCRIPT), "raw", "out", "group", "--print-only"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "/data /out group" in done.stdout
