"""The self-test of an installation: what it checks, what it says of faults, and that it leaves nothing behind."""

import importlib.metadata
import os
import subprocess
import sys
import types
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from bids_mllm import fit
from bids_mllm.cli import selftest
from bids_mllm.records import RidgeFit


def test_this_installation_is_whole_and_nothing_is_left_behind(tmp_path):
    folders = {name: tmp_path / name for name in ("home", "tmp", "here")}
    for folder in folders.values():
        folder.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folders["home"]),
        "TMPDIR": str(folders["tmp"]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-W", "ignore", "-m", "bids_mllm.cli.selftest"]
    done = subprocess.run(command, cwd=folders["here"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    named = {line.split()[0] for line in done.stdout.splitlines()}
    assert named >= {"pybids", "nibabel", "nilearn", "nipype", "torch", "transformers", "himalaya", "templateflow"}
    assert f"torch {importlib.metadata.version('torch')} (required: >=2.6)" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("the installation is whole")
    left = [path for folder in folders.values() for path in folder.rglob("*")]
    assert left == []


@pytest.fixture
def one_requirement(monkeypatch):
    """Let bids-mllm require one package, of which a version is there or not."""

    def require(text, found):
        def version(name):
            if found is None:
                raise PackageNotFoundError(name)
            return found

        monkeypatch.setattr(selftest, "requires", lambda name: [text, "never; extra == 'test'"])
        monkeypatch.setattr(selftest, "version", version)

    return require


def test_a_package_that_is_missing_is_named(one_requirement):
    one_requirement("himalaya>=0.4.6", None)
    (fault,) = selftest.package_faults()
    assert fault == "The package himalaya is not installed, but bids-mllm requires himalaya>=0.4.6; install it."


def test_a_version_that_does_not_fit_is_named(one_requirement, monkeypatch):
    one_requirement("pybids>=0.18", "0.17.2")
    monkeypatch.setitem(sys.modules, "bids", types.ModuleType("bids"))
    (fault,) = selftest.package_faults()
    assert "pybids is 0.17.2" in fault
    assert "requires pybids>=0.18" in fault


def test_a_package_that_cannot_be_imported_is_named(one_requirement, monkeypatch):
    one_requirement("nilearn>=0.12", "0.13.0")
    monkeypatch.setitem(sys.modules, "nilearn", None)
    (fault,) = selftest.package_faults()
    assert "nilearn 0.13.0 cannot be imported (ModuleNotFoundError" in fault


def shifted(by):
    """Return a ridge whose predictions are off by a constant."""

    def fit_ridge(*args, **kwargs):
        right = original(*args, **kwargs)
        return RidgeFit(right.predictions + by, right.best_alphas, right.cv_r2)

    original = fit.fit_ridge
    return fit_ridge


def test_a_fit_that_is_not_the_closed_form_is_a_fault(monkeypatch):
    assert list(selftest.ridge_faults()) == []
    monkeypatch.setattr(fit, "fit_ridge", shifted(1e-6))
    (fault,) = selftest.ridge_faults()
    assert "differ from the closed form by 1.0e-06" in fault


def test_a_fit_with_a_penalty_that_hides_the_weights_is_a_fault(monkeypatch):
    right = selftest._closed_form
    monkeypatch.setattr(selftest, "_closed_form", lambda X, y, alpha: right(X, y, alpha) + 1)
    faults = list(selftest.ridge_faults())
    assert any("differ from the planted ones" in fault for fault in faults)


def test_faults_give_status_1_and_a_sentence_each(monkeypatch, capsys):
    monkeypatch.setattr(selftest, "package_faults", lambda: iter(["One is missing."]))
    monkeypatch.setattr(selftest, "ridge_faults", lambda: iter(["The ridge is off."]))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert selftest.main([]) == 1
    captured = capsys.readouterr()
    assert captured.err == "selftest: One is missing.\nselftest: The ridge is off.\n"
    assert captured.out.endswith("NOT whole\n")


def test_closed_form_of_one_feature_by_hand():
    # (x'x + a)^-1 x'y = (1 + 4 + 1)^-1 (1 + 4)
    assert selftest._closed_form(np.array([[1.0], [2.0]]), np.array([1.0, 2.0]), 1.0) == pytest.approx(5 / 6)
