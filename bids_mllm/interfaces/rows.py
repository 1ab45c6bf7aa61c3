"""From a design to the stacked rows that the fit sees; plain functions, usable without nipype."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bids_mllm.fit.delays import delay_rows, delayed_valid
from bids_mllm.fit.folds import group_repeats, make_folds
from bids_mllm.fit.scaling import high_pass_rows, zscore_segments
from bids_mllm.records import BoolArray, FloatArray, Fold, IntArray, ParticipantDesign, Run, TRWindows, WindowGrid


@dataclass(frozen=True)
class Rows:
    """Which volumes take part, and how they are split.

    Attributes
    ----------
    delays
        TRs.
    usable
        One array a run: volumes whose own and delayed windows are complete.
    segments
        One array a run: the segment in which each volume is scaled; runs, or the contiguous parts of a run
        that must be cut.
    run_of_row : (n_rows,) int
    segment_of_row : (n_rows,) int
    folds
    """

    delays: tuple[int, ...]
    usable: tuple[BoolArray, ...]
    segments: tuple[IntArray, ...]
    run_of_row: IntArray
    segment_of_row: IntArray
    folds: tuple[Fold, ...]


def make_rows(design: ParticipantDesign, *, delays: Sequence[int], n_folds: int) -> Rows:
    """Select the rows of a design and split them.

    Where all runs show the same film, or there is one run, contiguous parts of it are held out in turn and
    ``max(delay, window)`` TRs on both sides of the held-out part are left out of training.
    """
    usable = tuple(
        usable_volumes(run, windows, delays) for run, windows in zip(design.runs, design.windows, strict=True)
    )
    groups = group_repeats([set(windows.stim_files) for windows in design.windows])
    position = _positions(design, groups)
    run_of_row = np.concatenate([np.full(int(rows.sum()), number) for number, rows in enumerate(usable)])
    position_of_row = np.concatenate([at[rows] for at, rows in zip(position, usable, strict=True)])
    folds = make_folds(
        run_of_row,
        position_of_row,
        groups,
        run_names=[run.label for run in design.runs],
        test_runs=design.test_runs,
        n_folds=n_folds,
        purge=_purge_seconds(design, delays),
    )
    # Damage may leave rows of one film alone where the runs show several.
    segments = _segments(position, folds, position_of_row, cut=len(np.unique(groups[run_of_row])) == 1)
    segment_of_row = np.concatenate([at[rows] for at, rows in zip(segments, usable, strict=True)])
    return Rows(tuple(delays), usable, segments, run_of_row, segment_of_row, folds)


#: A grid of windows of one stimulus: stim_file, origin, step and length.
GridKey = tuple[str, float, float, float]


def grid_key(stim_file: str, grid: WindowGrid) -> GridKey:
    """Return what tells one grid of windows from another."""
    return stim_file, grid.origin, grid.step, grid.length


def without_windows(design: ParticipantDesign, masked: Mapping[GridKey, Collection[int]]) -> ParticipantDesign:
    """Return the design in which volumes whose window has no features are masked.

    Parameters
    ----------
    masked
        For each grid the numbers of the windows that have none.
    """
    windows = tuple(_masked_windows(of_run, masked) for of_run in design.windows)
    return replace(design, windows=windows)


def _masked_windows(windows: TRWindows, masked: Mapping[GridKey, Collection[int]]) -> TRWindows:
    index = windows.index.copy()
    for showing, (stim_file, grid) in enumerate(zip(windows.stim_files, windows.grids, strict=True)):
        bad = masked.get(grid_key(stim_file, grid), ())
        index[(windows.showing == showing) & np.isin(windows.index, list(bad))] = -1
    return replace(windows, index=index, showing=np.where(index < 0, -1, windows.showing))


def usable_volumes(run: Run, windows: TRWindows, delays: Sequence[int]) -> BoolArray:
    """Volumes of a run whose own and delayed windows are complete and whose magnetisation was steady, (n_trs,)."""
    usable = delayed_valid(windows.valid, delays)
    usable[: run.non_steady_state] = False
    return usable


def _positions(design: ParticipantDesign, groups: IntArray) -> list[FloatArray]:
    """Seconds by which each volume is placed where a group of runs must be cut.

    A run that shares no stimulus with another, nor repeats one, is cut on its own clock, so that its films stay
    in the order in which they were shown; repeats are cut on the film's clock, so that all viewings of one
    instant are on one side.
    """
    alone = np.bincount(groups)[groups] == 1
    positions = []
    for run, windows, is_alone in zip(design.runs, design.windows, alone, strict=True):
        repeats = len(set(windows.stim_files)) < len(windows.stim_files)
        clock = run.start_time + np.arange(run.n_volumes) * run.repetition_time
        positions.append(clock if is_alone and not repeats else windows.start)
    return positions


def _purge_seconds(design: ParticipantDesign, delays: Sequence[int]) -> float:
    """One TR more than max(delay, window) TRs: rows nearer than that are purged, so that number of TRs is."""
    purge = 0.0
    for run, windows in zip(design.runs, design.windows, strict=True):
        window_trs = max(int(np.ceil(grid.length / grid.step - 1e-6)) for grid in windows.grids)
        purge = max(purge, (max(*delays, window_trs) + 1) * run.repetition_time)
    return purge


def _segments(
    position: Sequence[FloatArray], folds: Sequence[Fold], position_of_row: FloatArray, *, cut: bool
) -> tuple[IntArray, ...]:
    """Number the segments over all runs; with `cut` each part of a run that a fold holds out is one."""
    if not cut:
        return tuple(np.full(len(at), number) for number, at in enumerate(position))
    edges = np.sort([position_of_row[fold.test].min() for fold in folds])[1:]
    parts = [np.searchsorted(edges, at, side="right") for at in position]
    return tuple(number * len(folds) + part for number, part in enumerate(parts))


def stack_targets(series: FloatArray, rows: Rows) -> FloatArray:
    """Select and z-score the rows of the cleaned BOLD, (n_volumes of all runs, V) -> (n_rows, V)."""
    return zscore_segments(series[np.concatenate(rows.usable)], rows.segment_of_row)


def stack_features(
    design: ParticipantDesign,
    rows: Rows,
    read: Callable[[int, int], FloatArray],
    *,
    high_pass: float,
) -> FloatArray:
    """Build the delayed, z-scored design matrix of one feature space, shape (n_rows, n_features * n_delays).

    Parameters
    ----------
    read
        ``read(run, showing)`` gives the features (n_windows, n_features) of that playback's stimulus.
    high_pass
        Hz; the drifts taken out of the BOLD are taken out of the features too.
    """
    parts = []
    for number, (run, windows) in enumerate(zip(design.runs, design.windows, strict=True)):
        if not rows.usable[number].any():
            continue
        X = _by_volume(number, run.n_volumes, windows.showing, windows.index, read)
        valid: BoolArray = np.asarray(np.isfinite(X).all(axis=1))
        filtered = high_pass_rows(X, valid, repetition_time=run.repetition_time, high_pass=high_pass)
        scaled = zscore_segments(filtered, rows.segments[number])
        parts.append(delay_rows(scaled, rows.delays)[rows.usable[number]])
    return np.concatenate(parts)


def _by_volume(
    run: int, n_volumes: int, showing: IntArray, index: IntArray, read: Callable[[int, int], FloatArray]
) -> FloatArray:
    X: FloatArray | None = None
    for number in np.unique(showing[showing >= 0]):
        features = read(run, int(number))
        if X is None:
            X = np.full((n_volumes, features.shape[1]), np.nan)
        mine = showing == number
        X[mine] = features[index[mine]]
    if X is None:
        raise ValueError(f"Run {run} has no volume with a complete window.")
    return X
