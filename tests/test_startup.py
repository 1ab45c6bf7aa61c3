"""Every command tells its help and its version without what takes long to import."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
SCRIPTS = [
    path for path in sorted((ROOT / "bin").iterdir()) if path.read_bytes().startswith(b"#!/usr/bin/env python3\n")
]
HEAVY = (
    "numpy", "pandas", "scipy", "sklearn", "torch", "transformers", "himalaya", "huggingface_hub", "safetensors",
    "nipype", "bids", "nibabel", "nilearn", "templateflow", "librosa", "moten", "av", "h5py", "matplotlib", "psutil",
)  # fmt: skip
#: The settings are checked with types that are numpy's, which takes a tenth of a second.
NEEDED = {"bids-mllm": {"numpy"}}
#: Calls a command as its installed script does, and tells what it imported.
CALL = """
import atexit, sys
heavy = {heavy}
atexit.register(lambda: sys.stderr.write(" ".join(sorted(heavy & set(sys.modules)))))
from {module} import {function}
sys.exit({function}())
"""


def call(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_commands_start_without_what_is_heavy(name: str, option: str) -> None:
    module, _, function = COMMANDS[name].partition(":")
    heavy = set(HEAVY) - NEEDED.get(name, set())
    done = call(sys.executable, "-c", CALL.format(heavy=heavy, module=module, function=function), option)
    assert (done.returncode, done.stderr) == (0, "")
    assert (f"usage: {name}" if option == "--help" else f"{name} ") in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_start_on_the_standard_library(path: Path) -> None:
    done = call(sys.executable, "-I", "-S", str(path), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {path.name}" in done.stdout


def test_there_are_scripts_to_look_at() -> None:
    assert {path.name for path in SCRIPTS} == {"bids-mllm-docker", "slurm-array"}
