"""Fixtures shared by all tests: one small simulated study, and the command line called in this process."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("NO_ET", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TEMPLATEFLOW_AUTOUPDATE"] = "0"

# Coverage counts what runs in the tests' own processes: calls in others take a fifth longer where it counts them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


@dataclass(frozen=True)
class Call:
    """What a call of the command line gave."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Path:
    """A simulated data set of two participants and five short runs; not to be changed by a test."""
    from bids_mllm.simulate.dataset import simulate_dataset

    folder = tmp_path_factory.mktemp("study") / "bids"
    return simulate_dataset(folder, participants=2, run_seconds=45.0, runs={"bourne": 2, "wolf": 1, "life": 1}, seed=1)


@pytest.fixture
def own_study(study, tmp_path) -> Path:
    """A copy of the study that a test may damage."""
    return Path(shutil.copytree(study, tmp_path / "bids"))


@pytest.fixture
def call(capsys, tmp_path, monkeypatch) -> Callable[..., Call]:
    """Call `bids-mllm` in this process, with its work folder in the test's own folder."""
    from bids_mllm.cli.run import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Call:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = int(error.code or 0)
        captured = capsys.readouterr()
        return Call(status, captured.out, captured.err)

    return run
