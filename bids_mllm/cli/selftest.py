"""The command ``python -m bids_mllm.cli.selftest``: whether an installation, such as an image, is whole.

It imports every required package, holds its version against what bids-mllm asks for, and fits a ridge whose weights
are known. It needs no data, model or network, and writes nothing but caches of libraries below TMPDIR.
"""

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement

from bids_mllm import __version__
from bids_mllm.cli.environment import CACHES

#: Modules whose name is not that of their package.
MODULES = {
    "markdown-it-py": "markdown_it",
    "pillow": "PIL",
    "pybids": "bids",
    "pymoten": "moten",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    return argparse.ArgumentParser(
        prog="python -m bids_mllm.cli.selftest",
        description="Import what bids-mllm requires, check the versions and fit a small ridge with known weights. "
        "The exit status is 0 when all is well and 1 when something is not.",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was checked and a sentence for each fault; return 0 without faults, else 1."""
    build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="bids-mllm-selftest-") as folder:
        for variable, name in {**CACHES, "TEMPLATEFLOW_HOME": "templateflow"}.items():
            os.environ.setdefault(variable, str(Path(folder, name)))
        os.environ.update(HF_HUB_OFFLINE="1", TEMPLATEFLOW_AUTOUPDATE="0", NO_ET="1", MPLBACKEND="Agg")
        faults = [*package_faults(), *ridge_faults()]
    for fault in faults:
        sys.stderr.write(f"selftest: {fault}\n")
    sys.stdout.write(f"bids-mllm {__version__}: {'the installation is whole' if not faults else 'NOT whole'}\n")
    return 1 if faults else 0


def package_faults() -> Iterator[str]:
    """Import the required packages, print their versions, and give a sentence for each that does not fit."""
    for text in requires("bids-mllm") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name
        try:
            found = version(name)
            importlib.import_module(MODULES.get(name, name.replace("-", "_")))
        except PackageNotFoundError:
            yield f"The package {name} is not installed, but bids-mllm requires {requirement}; install it."
            continue
        except Exception as error:  # noqa: BLE001 - whatever an import raises is the finding
            yield f"The package {name} {found} cannot be imported ({type(error).__name__}: {error}); install it again."
            continue
        sys.stdout.write(f"{name} {found} (required: {requirement.specifier})\n")
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"The package {name} is {found}, but bids-mllm requires {requirement}; install a version that fits."


def ridge_faults() -> Iterator[str]:
    """Fit targets made from known weights; give a sentence where the fit is not what the closed form says."""
    from bids_mllm.fit import fit_ridge
    from bids_mllm.records import Fold

    rng = np.random.default_rng(0)
    rows, (n_train, n_features, n_targets) = np.arange(80), (60, 5, 4)
    X, weights = rng.standard_normal((len(rows), n_features)), rng.standard_normal((n_features, n_targets))
    Y = X @ weights + 0.1 * rng.standard_normal((len(rows), n_targets))
    train, test = rows[:n_train], rows[n_train:]
    fold = Fold("selftest", train, test, inner=((rows[:40], rows[40:60]), (rows[20:60], rows[:20])))
    fitted = fit_ridge(X, Y, fold, alphas=np.logspace(-2, 4, 7), precision="float64")
    expected = np.column_stack(
        [_closed_form(X[train], y, alpha) for y, alpha in zip(Y[train].T, fitted.best_alphas, strict=True)]
    )
    difference = float(np.abs(fitted.predictions - X[test] @ expected).max())
    error = float(np.abs(expected - weights).max())
    sys.stdout.write(f"ridge: {difference:.1e} from the closed form, weights {error:.2f} from the planted ones\n")
    if not difference < 1e-8:
        yield f"Predictions of a ridge differ from the closed form by {difference:.1e}, expected less than 1e-8."
    if not error < 0.1:
        yield f"Weights of a ridge differ from the planted ones by {error:.2f}, expected less than 0.1."


def _closed_form(X: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
    return np.linalg.solve(X.T @ X + alpha * np.eye(X.shape[1]), X.T @ y)


if __name__ == "__main__":
    sys.exit(main())
