"""The Boutiques descriptor says what the parser and the settings say, and Boutiques builds command lines from it."""

import argparse
import importlib.util
import itertools
import json
import os
import re
import shlex
import string
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import jsonschema
import pytest
from boutiques.invocationSchemaHandler import generateInvocationSchema
from boutiques.localExec import LocalExecutor
from hypothesis import given
from hypothesis import strategies as st

from bids_mllm import __version__, exceptions
from bids_mllm.cli.parser import build_parser, parse_settings
from bids_mllm.config import Settings
from bids_mllm.exceptions import UsageError

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "reference" / "bids-mllm.boutiques.json"
DESCRIPTOR: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
INPUTS: dict[str, dict[str, Any]] = {entry["id"]: entry for entry in DESCRIPTOR["inputs"]}
OPTIONAL = [key for key, entry in INPUTS.items() if entry["optional"]]
PATHS = [action for action in build_parser()._actions if action.type is Path]
#: Texts that the app reads further than the parser does.
FORMS: dict[str, Any] = {
    "run_id": ["1", "run-02"],
    "space": ["T1w", "fsLR:den-91k"],
    "derivatives": ["fmriprep=prep"],
    "models": ["motionenergy", "tiny=folder"],
    "feature_table": ["words=folder"],
    "alphas": [0.5, 1e4, 7],  # the last is a number of penalties
    "device": "cuda:1",
    "mem": "2G",
    "preset": "settings.toml",
    "config_file": "settings.toml",
    "cv_file": "sub-{participant}_split.json",
    "atlas": ["Glasser", "file"],
}

#: What an option cannot be given without.
NEEDS: dict[str, dict[str, Any]] = {"train_task": {"test_task": ["a*"]}}


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_boutiques", ROOT / "docs" / "generate_boutiques.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def there(tmp_path, monkeypatch) -> Path:
    """A folder with everything that an invocation may point to, and an empty home."""
    for folder in ("raw", "folder", "home"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "settings.toml").write_text("sloppy = true\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def bosh(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Call Boutiques; what it asked of the network would fail at a proxy that is not there."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [str(Path(sysconfig.get_path("scripts")) / "bosh"), *words]
    environment = os.environ | proxies | variables
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


def simulated(invocation: dict[str, Any]) -> list[str]:
    """Return the arguments of the command line that `bosh exec simulate` prints."""
    done = bosh("exec", "simulate", str(FILE), "-i", json.dumps(invocation))
    assert done.returncode == 0, done.stderr
    name, *arguments = shlex.split(done.stdout.partition("Generated Command:\n")[2])
    assert name == "bids-mllm"
    return arguments


def built(**values: Any) -> list[str]:
    """Return the arguments of the command line that Boutiques' own builder makes."""
    invocation = {"bids_dir": "raw", "output_dir": "out", "analysis_level": "participant"} | values
    options = dict.fromkeys(("forcePathType", "destroyTempScripts", "changeUser", "skipDataCollect"), True)
    executor = LocalExecutor(str(FILE), json.dumps(invocation), options | {"sandbox": False})
    return shlex.split(executor.cmd_line[0])[1:]


def settings(**values: Any) -> Settings:
    return parse_settings(built(**values))


def words(**values: Any) -> list[str]:
    """Return a command line that was not made by Boutiques, which would refuse some values itself."""
    given = {"analysis_level": "participant", "bids_dir": "raw"} | values
    line = [str(given.pop("bids_dir")), str(given.pop("output_dir", "out")), str(given.pop("analysis_level"))]
    for key, value in given.items():
        line.append(INPUTS[key]["command-line-flag"])
        line += [str(item) for item in (value if isinstance(value, list) else [value]) if item is not True]
    return line


def refusal(**values: Any) -> str:
    """Return why the app refuses values, nothing when it takes them."""
    try:
        parse_settings(words(**values))
    except UsageError as error:
        return str(error)
    return ""


def usable(key: str) -> Any:
    """Return a value that the app takes, by the type that the descriptor gives."""
    entry = INPUTS[key]
    if key in FORMS:
        return FORMS[key]
    if entry["type"] == "Flag":
        return True
    if entry["type"] == "Number":
        one = entry.get("minimum", 0) + (95 if entry["integer"] else 95.5)  # no option's default
        several = [one, one + 1, one + 2]
    elif "value-choices" in entry:
        one, several = entry["value-choices"][-1], entry["value-choices"][-1:]
    elif entry["type"] == "File":
        one, several = "folder" if key.endswith("_dir") else "file", []
    else:
        one, several = "a", ["a", "b"]
    return several[: entry.get("max-list-entries")] if entry.get("list") else one


#: Boutiques changes the descriptor from which it makes the schema of invocations.
VALIDATOR = jsonschema.Draft4Validator(generateInvocationSchema(json.loads(FILE.read_text("utf-8"))))


def taken_by_the_descriptor(**values: Any) -> bool:
    invocation = {"bids_dir": "raw", "output_dir": "out", "analysis_level": "participant"} | values
    return bool(VALIDATOR.is_valid(invocation))


def test_the_descriptor_is_not_stale() -> None:
    assert generator().descriptor_text() == FILE.read_text("utf-8"), "run python docs/generate_boutiques.py"


def test_boutiques_finds_it_valid_without_a_network_or_a_trace(there) -> None:
    done = bosh("validate", str(FILE))
    assert (done.returncode, done.stdout.strip()) == (0, "OK")
    assert list((there / "home").iterdir()) == []


def test_boutiques_would_find_a_fault(there) -> None:
    broken = DESCRIPTOR | {"command-line": "bids-mllm [BIDS_DIR]"}
    (there / "broken.json").write_text(json.dumps(broken))
    assert bosh("validate", "broken.json").returncode != 0


def test_every_option_but_those_that_exit_is_an_input() -> None:
    actions = build_parser()._actions
    flags = {name for action in actions for name in action.option_strings if name.startswith("--") and "_" not in name}
    described = {entry["command-line-flag"] for entry in INPUTS.values() if entry["optional"]}
    others = {"--session-id", "--nthreads", "--n-cpus", "--nipype-plugin-file"}
    assert flags - described == {"--help", "--version", "--print-preset"} | others
    assert described < flags
    assert {action.help for action in actions} > {entry["description"] for entry in INPUTS.values()}
    assert [key for key in INPUTS if key not in OPTIONAL] == ["bids_dir", "output_dir", "analysis_level"]


def test_what_the_descriptor_says_of_the_app() -> None:
    assert (DESCRIPTOR["name"], DESCRIPTOR["tool-version"], DESCRIPTOR["schema-version"]) == (
        "bids-mllm",
        __version__,
        "0.5",
    )
    assert DESCRIPTOR["container-image"]["image"].endswith(f":{__version__}")
    assert "doi" not in DESCRIPTOR
    statuses = {error.exit_status for error in vars(exceptions).values() if hasattr(error, "exit_status")}
    assert {error["code"] for error in DESCRIPTOR["error-codes"]} == statuses
    page = (ROOT / "docs" / "reference" / "outputs.md").read_text("utf-8")
    for output in DESCRIPTOR["output-files"]:
        name = output["path-template"].removeprefix("[OUTPUT_DIR]").rpartition("/")[2]
        assert name.replace("*", "<label>").removesuffix(".md") in page, name


def test_variables_are_those_of_the_image() -> None:
    image = (ROOT / "Dockerfile").read_text("utf-8")
    for variable in DESCRIPTOR["environment-variables"]:
        assert f'{variable["name"]}="{variable["value"]}"' in image


def seen(action: argparse.Action, value: Any) -> Any:
    """Return a value as the parser hands it on."""
    if action.nargs == 0:
        return 1 if isinstance(action, argparse._CountAction) else value
    convert = action.type if callable(action.type) else str
    return [convert(str(item)) for item in value] if isinstance(value, list) else convert(str(value))


@pytest.mark.parametrize("key", OPTIONAL)
def test_each_option_alone_arrives_at_the_parser(there, key) -> None:
    action = next(a for a in build_parser()._actions if INPUTS[key]["command-line-flag"] in a.option_strings)
    entry = INPUTS[key]
    values = [usable(key)]
    if "value-choices" in entry and not entry.get("list"):
        values = entry["value-choices"]
    elif entry["type"] in ("File", "String") and "value-choices" not in entry:
        odd = 'it\'s "a" $HOME; b é'
        values += [[odd, "b"]] if entry.get("list") else [odd]
    for value in values:
        needed = NEEDS.get(key, {})
        found = vars(build_parser().parse_args(built(**{key: value}, **needed)))
        assert found.pop(action.dest) == seen(action, value)
        own = {"bids_dir": Path("raw"), "output_dir": Path("out"), "analysis_level": "participant"}
        assert found == own | needed


@pytest.mark.parametrize("key", OPTIONAL)
def test_each_option_alone_changes_the_settings(there, key) -> None:
    needed = NEEDS.get(key, {})
    changed = settings(**{key: usable(key)}, **needed)
    plain = settings(**needed)
    assert (changed != plain) == (key != "notrack")


@hypothesis.settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(string.printable.replace("[", "") + "é", min_size=1), min_size=1, max_size=3))
def test_texts_arrive_as_they_are(texts) -> None:
    labels = [f"a{text}" for text in texts]
    found = build_parser().parse_args(built(task_id=labels, mem=labels[0], sloppy=True))
    assert (found.task_id, found.mem, found.sloppy) == (labels, labels[0], True)


def test_an_invocation_of_a_participant_gives_the_settings_meant(there) -> None:
    (there / "raw data").mkdir()
    found = parse_settings(
        simulated(
            {
                "bids_dir": str(there / "raw data"),
                "output_dir": "derivatives/bids-mllm",
                "analysis_level": "participant",
                "participant_label": ["sub-01", "02"],
                "derivatives": ["fmriprep=/data/fmri prep"],
                "space": ["MNI152NLin6Asym:res-2", "T1w"],
                "stimuli_dir": "folder",
                "models": ["motionenergy", "qwen25vl7b=/models/qwen25vl7b", "qwen25vl7b+random=/models/qwen25vl7b"],
                "test_task": ["life*"],
                "layers": [12, 0],
                "alphas": [0.1, 1e9, 5],
                "window": 2.5,
                "high_pass": 0,
                "poolings": ["generated", "media"],
                "mem": "16G",
                "work_dir": "work dir",
                "nprocs": 3,
                "dry_run": True,
                "sloppy": False,
                "verbose": True,
            }
        )
    )
    assert (found.bids_dir, found.output_dir) == (there / "raw data", there / "derivatives" / "bids-mllm")
    assert (found.analysis_level, found.participant_label) == ("participant", ("01", "02"))
    assert found.derivatives == {"fmriprep": Path("/data/fmri prep")}
    assert found.space == ("MNI152NLin6Asym:res-2", "T1w")
    assert found.stimuli_dir == there / "folder"
    assert found.models[1:] == ("qwen25vl7b=/models/qwen25vl7b", "qwen25vl7b+random=/models/qwen25vl7b")
    assert (found.test_task, found.layers, found.alphas) == (("life*",), (0, 12), (0.1, 1e9, 5))
    assert (found.window, found.high_pass, found.poolings) == (2.5, 0.0, ("generated", "media"))
    assert (found.mem_mb, found.nprocs, found.work_dir) == (16 * 1024, 3, there / "work dir")
    assert (found.dry_run, found.sloppy, found.verbose) == (True, False, 1)


def test_an_invocation_of_the_group_gives_the_settings_meant(there) -> None:
    invocation = {"bids_dir": "raw", "output_dir": "out", "analysis_level": "group", "reports_only": True}
    found = parse_settings(simulated(invocation))
    assert (found.analysis_level, found.reports_only, found.dry_run) == ("group", True, False)


def test_an_invocation_with_tables_alone_and_an_empty_list_of_models(there) -> None:
    invocation = {
        "bids_dir": "raw", "output_dir": "out", "analysis_level": "participant",
        "models": [], "feature_table": ["words=folder"], "cv": "kfold", "n_folds": 3,
    }  # fmt: skip
    found = parse_settings(simulated(invocation))
    assert (found.models, found.feature_table) == ((), {"words": there / "folder"})
    assert (found.cv, found.n_folds) == ("kfold", 3)


def test_examples_of_boutiques_are_taken(there) -> None:
    short = json.loads(bosh("example", str(FILE)).stdout)
    assert set(short) == {"bids_dir", "output_dir", "analysis_level"}
    (there / short["bids_dir"]).mkdir()
    assert parse_settings(simulated(short)).analysis_level == short["analysis_level"]
    full = json.loads(bosh("example", "--complete", str(FILE)).stdout)
    assert len(set(INPUTS) - set(full)) == 1  # of what excludes one another
    found = build_parser().parse_args(simulated(full))
    assert found.participant_label == full["participant_label"]


@pytest.mark.parametrize("key", [key for key, entry in INPUTS.items() if entry["type"] == "Number"])
def test_bounds_of_numbers_are_those_of_the_app(there, key) -> None:
    entry = INPUTS[key]
    if "minimum" not in entry:
        assert not refusal(**{key: -7})
        return
    step = 1 if entry["integer"] else 1e-3
    least = entry["minimum"] + step if entry.get("exclusive-minimum") else entry["minimum"]
    tried = {number: _entries(key, number) for number in (least, least - step)}
    assert not refusal(**{key: tried[least]})
    assert "must be" in refusal(**{key: tried[least - step]})
    assert taken_by_the_descriptor(**{key: tried[least]})
    assert not taken_by_the_descriptor(**{key: tried[least - step]})


@pytest.mark.parametrize("key", [key for key, entry in INPUTS.items() if entry["type"] == "Number"])
def test_numbers_are_whole_where_the_app_wants_them_whole(there, key) -> None:
    fraction = INPUTS[key].get("minimum", 0) + 0.25
    assert taken_by_the_descriptor(**{key: _entries(key, fraction)}) == (not INPUTS[key]["integer"])
    if INPUTS[key]["integer"]:
        with pytest.raises(SystemExit):
            refusal(**{key: _entries(key, fraction)})
    else:
        assert not refusal(**{key: _entries(key, fraction)})


def _entries(key: str, number: float) -> Any:
    if key == "alphas":
        return [number, 1.0, 2.0]
    return [number] if INPUTS[key].get("list") else number


@pytest.mark.parametrize("key", [key for key, entry in INPUTS.items() if entry.get("list")])
def test_the_shortest_list_is_taken_and_a_shorter_one_refused_by_both(there, key) -> None:
    least = INPUTS[key].get("min-list-entries", 0)
    needed = NEEDS.get(key, {}) | ({"feature_table": FORMS["feature_table"]} if key == "models" else {})
    values = usable(key)[:least]
    assert len(values) == least
    assert not refusal(**{key: values}, **needed)
    assert taken_by_the_descriptor(**{key: values}, **needed)
    if least:
        with pytest.raises((UsageError, SystemExit)):
            parse_settings(words(**{key: values[1:]}, **needed))
        assert not taken_by_the_descriptor(**{key: values[1:]}, **needed)


@pytest.mark.parametrize("key", [key for key, entry in INPUTS.items() if entry["type"] == "String"])
def test_what_must_be_of_a_few_words_has_its_choices(there, key) -> None:
    entry = INPUTS[key]
    for choice in entry.get("value-choices", ()):
        assert not refusal(**{key: choice})
    if "value-choices" in entry:
        assert not taken_by_the_descriptor(**{key: ["nonsense"] if entry.get("list") else "nonsense"})
    else:
        assert "must be of" not in refusal(**{key: ["nonsense"] if entry.get("list") else "nonsense"})


@pytest.mark.parametrize("dest", [action.dest for action in PATHS])
def test_what_boutiques_wants_to_be_there_is_what_the_app_wants_to_be_there(there, dest) -> None:
    missing = "sub-{participant}" if dest == "cv_file" else "nowhere"
    assert bool(refusal(**{dest: missing})) == (INPUTS[dest]["type"] == "File")


def test_pairs_of_options_are_taken_as_by_the_app(there) -> None:
    values = {key: usable(key) for key in OPTIONAL}
    differing = []
    for one, other in itertools.combinations(OPTIONAL, 2):
        pair = {key: values[key] for key in (one, other)}
        needed = NEEDS.get(one, {}) | NEEDS.get(other, {})
        for both in (pair, needed | pair) if needed else (pair,):
            said = refusal(**both)
            if taken_by_the_descriptor(**both) == bool(said):
                differing.append((one, other, said))
    assert differing == []


@pytest.mark.parametrize("key", OPTIONAL)
def test_what_is_disabled_at_the_group_level_is_refused_there(there, key) -> None:
    disabled = INPUTS["analysis_level"]["value-disables"]
    assert disabled["participant"] == []
    said = refusal(analysis_level="group", **{key: usable(key)})
    assert ("has no effect at the group level" in said) == (key in disabled["group"])


#: As the engines do it: Docker calls the shell with the script, Apptainer calls the script.
FAKE_ENGINE = """#!{python}
import json, pathlib, subprocess, sys
if sys.argv[1] in ("run", "exec"):
    pathlib.Path("call.json").write_text(json.dumps(sys.argv[1:]))
    shell = [word.partition("=")[2] for word in sys.argv if word.startswith("--entrypoint=")]
    sys.exit(subprocess.run([*shell, sys.argv[-1]]).returncode)
"""
FAKE_APP = '#!/bin/bash\nprintf "%s\\n" "$@"\nmkdir "$2"\ntouch "$2/group.html"\nexit 70\n'


@pytest.mark.parametrize("engine", ["docker", "apptainer"])
def test_a_call_in_a_container_gets_folders_mounted_and_finds_the_app(there, engine) -> None:
    """Engine and app are stood in for by scripts that note what they are given."""
    (there / "bin").mkdir()
    for name, text in {engine: FAKE_ENGINE.format(python=sys.executable), "bids-mllm": FAKE_APP}.items():
        (there / "bin" / name).write_text(text)
        (there / "bin" / name).chmod(0o755)
    invocation = there / "invocation.json"
    invocation.write_text(json.dumps({"bids_dir": str(there / "raw"), "output_dir": "out", "analysis_level": "group"}))
    (there / "image.sif").touch()
    done = bosh(
        "exec", "launch", f"--force-{engine}", "--no-pull", "--imagepath", str(there / "image.sif"),
        "--skip-data-collection", str(FILE), str(invocation), PATH=f"{there / 'bin'}:{os.environ['PATH']}",
    )  # fmt: skip
    assert done.returncode == 70, done.stderr
    assert "the data do not allow what was asked" in done.stdout
    assert f"{there / 'raw'}\nout\ngroup" in done.stdout
    assert set(re.findall(r"- (\S+) \((\w+),", done.stdout)) == {("out", "results"), ("out/group.html", "group_report")}
    call = json.loads((there / "call.json").read_text())
    assert f"{there / 'raw'}:{there / 'raw'}" in call
    if engine == "docker":
        assert f"bids-mllm:{__version__}" in call
        assert "HF_HUB_OFFLINE=1" in call
    assert list((there / "home").iterdir()) == []
