"""From a design to the stacked rows that the fit sees; plain functions, usable without nipype."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from bids_mllm.fit.cv_file import folds_from_values
from bids_mllm.fit.delays import delayed_valid
from bids_mllm.fit.design import DelayedRows, delayed_rows
from bids_mllm.fit.folds import Scheme, SegmentClock, group_repeats, make_folds
from bids_mllm.fit.scaling import high_pass_rows, zscore_segments
from bids_mllm.interfaces.viewings import averaged, half_tr, moments_of
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
    run_of_row, volume_of_row : (n_rows,) int
        Run, and volume in it, of each row.
    segment_of_row : (n_rows,) int
    folds
    """

    delays: tuple[int, ...]
    usable: tuple[BoolArray, ...]
    segments: tuple[IntArray, ...]
    run_of_row: IntArray
    volume_of_row: IntArray
    segment_of_row: IntArray
    folds: tuple[Fold, ...]

    @property
    def delayed(self) -> DelayedRows:
        """The rows as the solver takes them."""
        return delayed_rows(self.usable, self.delays)


@dataclass(frozen=True)
class CVOptions:
    """How rows are split.

    Attributes
    ----------
    scheme, n_folds
        As for `make_folds`.
    values
        The folds of a file, by which the split goes instead; None without one.
    source
        Name of that file.
    repeats
        Whether each held-out viewing of a stimulus is scored, or their average; the fit sees single viewings.
    """

    scheme: Scheme = "auto"
    n_folds: int = 5
    values: Sequence[Mapping[str, Any]] | None = None
    source: str = ""
    repeats: Literal["each", "average"] = "each"


# Share of a TR by which a window of whole TRs may be longer on the film's clock.
DRIFT_TRS = 5e-3
# Seconds by which neighbouring segments of a film may overlap; those of Movie10 do by 2 to 4 s.
SEGMENT_OVERLAP = 5.0


def make_rows(design: ParticipantDesign, *, delays: Sequence[int], cv: CVOptions) -> Rows:
    """Select the rows of a design and split them.

    Where all runs show the same film, or there is one run, contiguous parts of it are held out in turn and
    ``max(delay, window)`` TRs on both sides of the held-out part are left out of training. Where numbered segments of
    a film are on both sides, the training rows next to a held-out neighbour are left out by as much and
    `SEGMENT_OVERLAP` seconds more.
    """
    usable = tuple(
        usable_volumes(run, windows, delays) for run, windows in zip(design.runs, design.windows, strict=True)
    )
    groups = group_repeats([set(windows.stim_files) for windows in design.windows])
    position = _positions(design, groups)
    run_of_row = np.concatenate([np.full(int(rows.sum()), number) for number, rows in enumerate(usable)])
    volume_of_row = np.concatenate([np.flatnonzero(rows) for rows in usable])
    position_of_row = np.concatenate([at[rows] for at, rows in zip(position, usable, strict=True)])
    purge = _purge_seconds(design, delays)
    names = [run.label for run in design.runs]
    clock = _segment_clock(design, usable, margin=purge + SEGMENT_OVERLAP)
    if cv.values is not None:
        folds = folds_from_values(
            cv.values, run_of_row, volume_of_row, names, groups,
            position=position_of_row, purge=purge, source=cv.source, segments=clock,
        )  # fmt: skip
    else:
        folds = make_folds(
            run_of_row,
            position_of_row,
            groups,
            run_names=names,
            test_runs=design.test_runs,
            n_folds=cv.n_folds,
            purge=purge,
            scheme=cv.scheme,
            film_of_run=group_repeats([{film_of(name)[0] for name in w.stim_files} for w in design.windows]),
            segments=clock,
        )
    if cv.repeats == "average":
        moments = moments_of(design, usable)
        folds = tuple(averaged(fold, run_of_row, moments, half_tr(design)) for fold in folds)
    segments = _segments(usable, run_of_row, folds)
    segment_of_row = np.concatenate([at[rows] for at, rows in zip(segments, usable, strict=True)])
    return Rows(tuple(delays), usable, segments, run_of_row, volume_of_row, segment_of_row, folds)


def film_of(stim_file: str) -> tuple[str, int | None]:
    """Name of the film and number of the segment by the digits that end a file's name: ``bourne/bourne01.mkv``."""
    path = PurePosixPath(stim_file)
    match = re.fullmatch(r"(.*?\D)(\d+)", path.stem)
    if match is None:
        return str(path.with_suffix("")), None
    return str(path.with_name(match[1])), int(match[2])


def _segment_clock(design: ParticipantDesign, usable: Sequence[BoolArray], *, margin: float) -> SegmentClock | None:
    """Place every row in its numbered segment; None where no film has two segments."""
    films = {name: film_of(name) for windows in design.windows for name in windows.stim_files}
    numbered = {name: film for name, film in films.items() if film[1] is not None}
    if len({film for film, _ in numbered.values()}) == len(numbered):
        return None
    index = {film: place for place, film in enumerate(dict.fromkeys(film for film, _ in films.values()))}
    ends = _ends(design)
    parts = []
    for windows, rows in zip(design.windows, usable, strict=True):
        names = [windows.stim_files[number] for number in windows.showing[rows]]
        film = np.array([index[films[name][0]] for name in names], dtype=int)
        number = np.array([-1 if films[name][1] is None else films[name][1] for name in names], dtype=int)
        until = np.array([ends[name] for name in names]) - windows.end[rows]
        parts.append((film, number, windows.start[rows], until))
    film, number, since, until = (np.concatenate(column) for column in zip(*parts, strict=True))
    return SegmentClock(film, number, since, until, margin)


def _ends(design: ParticipantDesign) -> dict[str, float]:
    """Last second of each stimulus that any window reaches."""
    ends: dict[str, float] = {}
    for windows in design.windows:
        for number, name in enumerate(windows.stim_files):
            mine = windows.end[(windows.showing == number) & windows.valid]
            if mine.size:
                ends[name] = max(ends.get(name, 0.0), float(mine.max()))
    return ends


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
        # The film's clock may drift against the run's, which makes a window of whole TRs no longer.
        window_trs = max(int(np.ceil(grid.length / grid.step - DRIFT_TRS)) for grid in windows.grids)
        purge = max(purge, (max(*delays, window_trs) + 1) * run.repetition_time)
    return purge


def _segments(usable: Sequence[BoolArray], run_of_row: IntArray, folds: Sequence[Fold]) -> tuple[IntArray, ...]:
    """Number the segments over all runs: a run, or where folds cut it each part that one fold holds out."""
    held_by = np.full(len(run_of_row), -1)
    for number, fold in enumerate(folds):
        held_by[fold.test] = number
    segments, first = [], 0
    for run, rows in enumerate(usable):
        own = held_by[run_of_row == run]
        # Volumes that are no rows go with the next row, at the end with the last.
        nearest = np.minimum(np.cumsum(rows) - rows, max(len(own) - 1, 0))
        parts = own[nearest] if len(own) else np.zeros(len(rows), dtype=int)
        places = np.unique(parts, return_inverse=True)[1]
        segments.append(first + places)
        first += int(places.max()) + 1
    return tuple(segments)


# Bytes of the values scaled at once, in float64; a few copies of them are made.
SCALED_BYTES = 2**24


def stack_targets(series: FloatArray | Path, rows: Rows, voxels: slice = slice(None)) -> FloatArray:
    """Select and z-score the rows of the cleaned BOLD of some voxels.

    Parameters
    ----------
    series : (n_volumes of all runs, n_all_voxels)
        The array, or the .npy file that holds it, of which only a few rows are in memory at a time.
    rows
    voxels
        Which of them.

    Returns
    -------
    Y : (n_rows, n_voxels) float32
    """
    volumes = np.flatnonzero(np.concatenate(rows.usable))
    n_voxels = len(range(*voxels.indices(_opened(series).shape[1])))
    Y = np.empty((len(volumes), n_voxels), dtype=np.float32)
    for segment in np.unique(rows.segment_of_row):
        own = np.flatnonzero(rows.segment_of_row == segment)
        # Opened for each segment, so that what was read of the ones before is given back.
        values = _opened(series)[:, voxels]
        step = max(1, SCALED_BYTES // (8 * len(own)))
        for start in range(0, n_voxels, step):
            block = slice(start, start + step)
            Y[own, block] = zscore_segments(values[volumes[own], block], rows.segment_of_row[own])
    return Y


def _opened(series: FloatArray | Path) -> FloatArray:
    return np.load(series, mmap_mode="r") if isinstance(series, Path) else series


def stack_features(
    design: ParticipantDesign,
    rows: Rows,
    read: Callable[[int, int], FloatArray],
    *,
    high_pass: float,
) -> FloatArray:
    """Build the z-scored features of one feature space in all volumes, shape (n_volumes of all runs, n_features).

    Parameters
    ----------
    read
        ``read(run, showing)`` gives the features (n_windows, n_features) of that playback's stimulus.
    high_pass
        Hz; the drifts taken out of the BOLD are taken out of the features too.

    Returns
    -------
    X : (n_volumes, n_features) float64
        NaN in volumes without a complete window and in runs that have no row.
    """
    parts: list[FloatArray | None] = []
    for number, (run, windows) in enumerate(zip(design.runs, design.windows, strict=True)):
        if not rows.usable[number].any():
            parts.append(None)
            continue
        X = _by_volume(number, run.n_volumes, windows.showing, windows.index, read)
        valid: BoolArray = np.asarray(np.isfinite(X).all(axis=1))
        filtered = high_pass_rows(X, valid, repetition_time=run.repetition_time, high_pass=high_pass)
        parts.append(zscore_segments(filtered, rows.segments[number]))
    width = next(part.shape[1] for part in parts if part is not None)
    empty = (np.full((run.n_volumes, width), np.nan) for run in design.runs)
    return np.concatenate([nan if part is None else part for part, nan in zip(parts, empty, strict=True)])


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
