"""BOLD series as (n_volumes, n_places) arrays, masked and cleaned run by run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.cleaning import clean_in_place, cosine_drifts
from bids_mllm.io.confounds import load_confounds
from bids_mllm.io.files import atomic_path
from bids_mllm.io.grids import Grid, same_grid
from bids_mllm.io.series import brain_places, read_series, series_grid
from bids_mllm.records import BoolArray, FloatArray, Run

#: Bytes that are copied at once where places are taken out of a series on disk.
COPIED_BYTES = 2**28


@dataclass(frozen=True)
class Prepared:
    """The cleaned series of all runs of a participant in one place, which lie in a file.

    Attributes
    ----------
    grid
        Of the columns before masking.
    mask : (n_places,) bool
        Inside the mask of every run.
    usable : (n_places,) bool
        And with a finite series that varies in every run: the columns of the file.
    confounds
        Names of the regressors.
    """

    grid: Grid
    mask: BoolArray
    usable: BoolArray
    confounds: tuple[str, ...]


def common_mask(runs: Sequence[Run]) -> tuple[BoolArray, Grid]:
    """Return the places inside the brain in every run (n_places,) and their grid.

    A run without a mask file counts every place as brain. Runs on different grids are an error.
    """
    grid = series_grid(runs[0])
    mask = np.ones(grid.n_places, dtype=bool)
    for run in runs:
        own = series_grid(run)
        if not same_grid(own, grid):
            raise InputDataError(
                f"{run.bold} is on another grid than {runs[0].bold} ({own.words} against {grid.words}); all runs of a "
                "participant in one space must share one: choose one resolution or density with --space, or leave the "
                "run out with --task-id or --bids-filter-file."
            )
        mask &= brain_places(run, grid)
    if not mask.any():
        raise InputDataError(
            f"The masks of sub-{runs[0].participant} in space {runs[0].space} have no voxel in common; check them "
            "or leave the differing run out."
        )
    return mask, grid


def unusable_voxels(series: FloatArray) -> BoolArray:
    """Return True for places with a non-finite or a constant series, shape (n_places,)."""
    highest, lowest = series.max(axis=0), series.min(axis=0)
    # The highest and lowest of a series with a value that is not finite are not finite, or both infinite.
    unusable: BoolArray = ~np.isfinite(highest) | ~np.isfinite(lowest) | (highest == lowest)
    return unusable


def clean_run(
    series: FloatArray,
    confounds: FloatArray | None,
    *,
    repetition_time: float,
    high_pass: float,
    non_steady_state: int = 0,
) -> None:
    """Regress confounds and cosine drifts out of one run in one step, in place.

    The drifts are regressors like the others: with ``filter="cosine"`` nilearn leaves all of them out as soon as
    one confound, such as a slow movement, correlates above 0.9 with one of them.

    Parameters
    ----------
    series : (n_volumes, n_voxels) float32
        Changed in place.
    confounds : (n_volumes, n_confounds) or None
    high_pass
        Hz; 0 removes the mean only.
    non_steady_state
        First volumes that take no part in the regression; they come out as NaN.
    """
    drifts = cosine_drifts(len(series), repetition_time=repetition_time, high_pass=high_pass)
    regressors = drifts if confounds is None else np.hstack([drifts, confounds])
    clean_in_place(series, regressors, non_steady_state=non_steady_state)


def prepare_runs(runs: Sequence[Run], out: Path, *, strategy: str, high_pass: float) -> Prepared:
    """Load, mask and clean all runs of one participant in one space, one run in memory at a time.

    Parameters
    ----------
    runs
    out
        File to write, .npy of (n_volumes of all runs, n_usable) float32 in the order of `runs`.
    strategy
        Of confounds.
    high_pass
        Hz.

    Raises
    ------
    InputDataError
        When grids differ, a file is damaged or nothing is left.
    """
    mask, grid = common_mask(runs)
    bad = np.zeros(int(mask.sum()), dtype=bool)
    names: tuple[str, ...] = ()
    with atomic_path(out) as scratch:
        shape = (sum(run.n_volumes for run in runs), len(bad))
        whole = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.float32, shape=shape)
        first = 0
        for run in runs:
            rows = slice(first, first + run.n_volumes)
            first = rows.stop
            whole[rows], unusable, names = _prepare_run(run, mask, strategy=strategy, high_pass=high_pass)
            bad |= unusable
        whole.flush()
        if bad.all():
            raise InputDataError(
                f"Every voxel of sub-{runs[0].participant} in space {runs[0].space} is constant or not finite in some "
                "run; check the BOLD files."
            )
        if bad.any():
            _take_columns(scratch, ~bad)
    usable = mask.copy()
    usable[mask] = ~bad
    return Prepared(grid, mask, usable, names)


def _prepare_run(
    run: Run, mask: BoolArray, *, strategy: str, high_pass: float
) -> tuple[FloatArray, BoolArray, tuple[str, ...]]:
    """One run's cleaned series, the columns that are not usable, and the names of its confounds."""
    series = read_series(run, mask)
    unusable = unusable_voxels(series)
    series[:, unusable] = 0.0
    confounds, names = load_confounds(run, strategy)
    clean_run(
        series,
        confounds,
        repetition_time=run.repetition_time,
        high_pass=high_pass,
        non_steady_state=run.non_steady_state,
    )
    return series, unusable, names


def _take_columns(path: Path, kept: BoolArray) -> None:
    """Leave some columns of an array on disk, a few rows in memory at a time."""
    whole = np.load(path, mmap_mode="r")
    smaller = path.with_name(f"{path.stem}-kept.npy")
    try:
        part = np.lib.format.open_memmap(smaller, mode="w+", dtype=whole.dtype, shape=(len(whole), int(kept.sum())))
        step = max(1, COPIED_BYTES // (whole.itemsize * whole.shape[1]))
        for start in range(0, len(whole), step):
            part[start : start + step] = whole[start : start + step][:, kept]
        part.flush()
        smaller.replace(path)
    finally:
        smaller.unlink(missing_ok=True)
