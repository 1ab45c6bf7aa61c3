"""Cross-validation that leaves whole runs or films out; shuffled rows would let autocorrelation score."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from bids_mllm.exceptions import DesignError
from bids_mllm.records import BoolArray, FloatArray, Fold, IntArray
from bids_mllm.validation import check_same_samples

MIN_TRAINING_ROWS = 10
# A correlation or an R2 of fewer rows says nothing.
MIN_HELD_OUT_ROWS = 3
Scheme = Literal["auto", "run", "film", "kfold"]
SCHEMES: tuple[str, ...] = get_args(Scheme)
# Seconds by which two times computed from TRs may differ through rounding.
TIME_ROUNDING = 1e-6


def check_scheme(name: str) -> Scheme:
    """Return the scheme of this name, else raise a ValueError that lists them."""
    for scheme in get_args(Scheme):
        if name == scheme:
            return cast("Scheme", scheme)
    raise ValueError(f"scheme is {name!r}, but must be one of {', '.join(SCHEMES)}.")


def group_repeats(stim_files_by_run: Sequence[Collection[str]]) -> IntArray:
    """Give runs that share a stimulus file, directly or through other runs, the same group.

    Parameters
    ----------
    stim_files_by_run
        The stimulus files of each run.

    Returns
    -------
    group : (n_runs,) int
        Numbered from 0 in the order of first appearance.
    """
    group = np.arange(len(stim_files_by_run))
    owner: dict[str, int] = {}
    for run, stim_files in enumerate(stim_files_by_run):
        for stim_file in stim_files:
            first = owner.setdefault(stim_file, run)
            low, high = sorted((group[first], group[run]))
            group[group == high] = low
    # Every group carries the number of its earliest run, so sorting keeps the order of appearance.
    numbered: IntArray = np.unique(group, return_inverse=True)[1].ravel()
    return numbered


@dataclass(frozen=True)
class SegmentClock:
    """Where each row lies in a film that is cut into numbered segments, whose ends may overlap.

    Attributes
    ----------
    film : (n_rows,) int
        Which film.
    number : (n_rows,) int
        Which segment of it; -1 where the film is not cut into numbered segments.
    since_start, until_end : (n_rows,) float
        Seconds from the start and to the end of the segment.
    margin
        Training rows nearer than this many seconds to the end that a held-out neighbour adjoins are left out.
    """

    film: IntArray
    number: IntArray
    since_start: FloatArray
    until_end: FloatArray
    margin: float

    def touches(self, rows: IntArray, held: IntArray) -> BoolArray:
        """Which of `rows` adjoin a segment of `held`, shape (len(rows),)."""
        # One number a segment, with room between films for the neighbours of the first and the last.
        code = self.film * (int(self.number.max(initial=0)) + 3) + self.number
        segments = np.unique(code[held[self.number[held] >= 0]])
        own, numbered = code[rows], self.number[rows] >= 0
        follows = np.isin(own - 1, segments) & (self.since_start[rows] < self.margin)
        leads = np.isin(own + 1, segments) & (self.until_end[rows] < self.margin)
        touching: BoolArray = numbered & (follows | leads)
        return touching


def make_folds(
    run_of_row: IntArray,
    position: FloatArray,
    group_of_run: IntArray,
    *,
    run_names: Sequence[str],
    test_runs: Sequence[int] | None,
    n_folds: int,
    purge: float,
    scheme: Scheme = "auto",
    film_of_run: IntArray | None = None,
    segments: SegmentClock | None = None,
) -> tuple[Fold, ...]:
    """Outer splits with their inner splits.

    With `test_runs` there is one outer fold. Without, `scheme` says what is held out in turn:

    - ``auto``, ``run``: each group of runs that show the same stimulus file;
    - ``film``: all runs of a film;
    - ``kfold``: `n_folds` sets of neighbouring groups.

    Where there is one group alone, contiguous parts of it are held out. The inner splits follow the same rule within
    the training rows.

    Parameters
    ----------
    run_of_row : (n_rows,) int
        Index of the run of each stacked row.
    position : (n_rows,) float
        Seconds on the run's clock, or on the film's clock where runs repeat a film.
    group_of_run : (n_runs,) int
        From :func:`group_repeats`: runs that stay on one side of every split.
    run_names
        Names of the runs for fold names and errors.
    test_runs
        Indices of the runs to hold out, or None.
    n_folds
        Sets of ``kfold``, or parts into which a single group is cut; at least 2.
    purge
        Where a group is cut, training rows nearer than this many seconds to a held-out position of the same film
        are left out, in all its viewings. At least the longest delay plus the window.
    scheme
        One of `SCHEMES`.
    film_of_run : (n_runs,) int
        For ``film``; runs of one group have the same film.
    segments
        Numbered segments of films, of which neighbours may overlap; None where there are none.

    Returns
    -------
    folds : tuple of Fold
    """
    check_same_samples("run_of_row", len(run_of_row), "position", len(position))
    if n_folds < 2:
        raise DesignError(f"n_folds is {n_folds}, but cross-validation needs at least 2; ask for more folds.")
    check_scheme(scheme)
    group = group_of_run[run_of_row]
    film = group if film_of_run is None or scheme != "film" else film_of_run[run_of_row]
    splitter = _Splitter(group, film, position, segments, n_folds=n_folds, purge=purge, k_sets=scheme == "kfold")
    everything = np.arange(len(group))
    if test_runs is not None:
        _check_test_runs(run_of_row, group_of_run, run_names, test_runs)
        is_test = np.isin(run_of_row, test_runs)
        train = splitter.clear_of(np.flatnonzero(~is_test), np.flatnonzero(is_test))
        return (_complete(_name(run_names, test_runs), train, np.flatnonzero(is_test), splitter),)
    if scheme == "kfold":
        _check_sets(len(np.unique(group)), n_folds)
    whole = len(np.unique(group)) >= 2
    return tuple(
        _complete(
            _name(run_names, np.unique(run_of_row[test]))
            if whole
            else f"{position[test].min():.1f} to {position[test].max():.1f} s",
            train,
            test,
            splitter,
        )
        for train, test in splitter.split(everything)
    )


class _Splitter:
    """Splits any set of rows by film, by group of runs or by contiguous parts of one film."""

    def __init__(
        self,
        group: IntArray,
        film: IntArray,
        position: FloatArray,
        segments: SegmentClock | None,
        *,
        n_folds: int,
        purge: float,
        k_sets: bool,
    ) -> None:
        self.group, self.film, self.position, self.segments = group, film, position, segments
        self.n_folds, self.purge, self.k_sets = n_folds, purge, k_sets

    def split(self, rows: IntArray) -> list[tuple[IntArray, IntArray]]:
        """Pairs (train, held out) of row numbers."""
        for unit in (self.film, self.group):
            if len(np.unique(unit[rows])) >= 2:
                return self._by_unit(rows, unit)
        return self._by_part(rows)

    def clear_of(self, train: IntArray, held: IntArray) -> IntArray:
        """Leave out the training rows that adjoin a held-out segment of the same film."""
        return train if self.segments is None else train[~self.segments.touches(train, held)]

    def _by_unit(self, rows: IntArray, unit: IntArray) -> list[tuple[IntArray, IntArray]]:
        """Hold each unit, or each of `n_folds` sets of neighbouring units, out once."""
        units = np.unique(unit[rows])
        sets = np.array_split(units, min(self.n_folds, len(units)) if self.k_sets else len(units))
        splits = []
        for held_units in sets:
            held = np.isin(unit[rows], held_units)
            splits.append((self.clear_of(rows[~held], rows[held]), rows[held]))
        return splits

    def _by_part(self, rows: IntArray) -> list[tuple[IntArray, IntArray]]:
        """Hold out contiguous parts with equal numbers of distinct positions, purged on both sides."""
        position = self.position[rows]
        distinct = np.unique(position)
        if len(distinct) < self.n_folds:
            raise DesignError(
                f"Only {len(distinct)} distinct volumes are left to cut into {self.n_folds} folds; "
                "use longer or more runs, or fewer folds."
            )
        splits = []
        for part in np.array_split(distinct, self.n_folds):
            held: BoolArray = (position >= part[0]) & (position <= part[-1])
            distance = np.maximum(part[0] - position, position - part[-1])
            splits.append((rows[~held & (distance >= self.purge - TIME_ROUNDING)], rows[held]))
        return splits


def _check_sets(n_groups: int, n_folds: int) -> None:
    if n_groups < n_folds:
        raise DesignError(
            f"{n_folds} folds of runs are asked for, but there are {n_groups} groups of runs that may be parted (runs "
            "of one stimulus stay together); ask for fewer folds or use more runs."
        )


def _name(run_names: Sequence[str], runs: Collection[int] | IntArray) -> str:
    return ", ".join(run_names[run] for run in runs)


def _check_test_runs(
    run_of_row: IntArray, group_of_run: IntArray, run_names: Sequence[str], test_runs: Sequence[int]
) -> None:
    present = set(np.unique(run_of_row).tolist())
    test, train = present & set(test_runs), present - set(test_runs)
    if not test or not train:
        raise DesignError(
            f"Of {len(present)} runs with usable volumes, {len(test)} are for testing and {len(train)} for "
            "training, but at least one of each is needed; choose other test runs."
        )
    for held in sorted(test):
        for run in sorted(train):
            if group_of_run[held] == group_of_run[run]:
                raise DesignError(
                    f"Training run {run_names[run]} and test run {run_names[held]} show the same film, which "
                    "must stay on one side of the split; test on both runs or leave one out."
                )


def _complete(name: str, train: IntArray, test: IntArray, splitter: _Splitter) -> Fold:
    check_fold_rows(f"the fold that holds out {name}", len(train), len(test))
    inner = []
    for part, (fit, held) in enumerate(splitter.split(train), start=1):
        check_fold_rows(f"inner fold {part} of the fold that holds out {name}", len(fit), len(held))
        inner.append((np.searchsorted(train, fit), np.searchsorted(train, held)))
    return Fold(name=name, train=train, test=test, inner=tuple(inner))


def check_fold_rows(what: str, n_train: int, n_held: int) -> None:
    """Raise a DesignError where a side of a split has too few rows to fit or to score."""
    if n_train < MIN_TRAINING_ROWS or n_held < MIN_HELD_OUT_ROWS:
        raise DesignError(
            f"In {what}, {n_train} volumes are left for training and {n_held} are held out, but at least "
            f"{MIN_TRAINING_ROWS} and {MIN_HELD_OUT_ROWS} are needed; use longer or more runs, or fewer "
            "folds."
        )
