"""Cross-validation that leaves whole runs or films out; shuffled rows would let autocorrelation score."""

from collections.abc import Collection, Sequence

import numpy as np

from bids_mllm.exceptions import DesignError
from bids_mllm.records import BoolArray, FloatArray, Fold, IntArray
from bids_mllm.validation import check_same_samples

MIN_TRAINING_ROWS = 10
# A correlation or an R2 of fewer rows says nothing.
MIN_HELD_OUT_ROWS = 3
# Seconds by which two times computed from TRs may differ through rounding.
TIME_ROUNDING = 1e-6


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


def make_folds(
    run_of_row: IntArray,
    position: FloatArray,
    group_of_run: IntArray,
    *,
    run_names: Sequence[str],
    test_runs: Sequence[int] | None,
    n_folds: int,
    purge: float,
) -> tuple[Fold, ...]:
    """Outer splits with their inner splits.

    With `test_runs` there is one outer fold. Without, each group of runs that show the same film is held
    out once; where there is one group alone, contiguous parts of its film are. The inner splits follow
    the same rule within the training rows.

    Parameters
    ----------
    run_of_row : (n_rows,) int
        Index of the run of each stacked row.
    position : (n_rows,) float
        Seconds on the run's clock, or on the film's clock where runs repeat a film.
    group_of_run : (n_runs,) int
        From :func:`group_repeats`.
    run_names
        Names of the runs for fold names and errors.
    test_runs
        Indices of the runs to hold out, or None.
    n_folds
        Parts into which a single group is cut; at least 2.
    purge
        Training rows nearer than this many seconds to a held-out position of the same film are left out,
        in all its viewings. At least the longest delay plus the window.

    Returns
    -------
    folds : tuple of Fold
    """
    check_same_samples("run_of_row", len(run_of_row), "position", len(position))
    if n_folds < 2:
        raise DesignError(f"n_folds is {n_folds}, but cross-validation needs at least 2; ask for more folds.")
    group = group_of_run[run_of_row]
    splitter = _Splitter(group, position, n_folds=n_folds, purge=purge)
    outer: list[tuple[str, IntArray, IntArray]] = []
    if test_runs is not None:
        _check_test_runs(run_of_row, group_of_run, run_names, test_runs)
        is_test = np.isin(run_of_row, test_runs)
        outer.append((_name(run_names, test_runs), np.flatnonzero(~is_test), np.flatnonzero(is_test)))
    elif len(np.unique(group)) >= 2:
        outer = [
            (_name(run_names, np.unique(run_of_row[test])), train, test)
            for train, test in splitter.by_group(np.arange(len(group)))
        ]
    else:
        outer = [
            (f"{position[test].min():.1f} to {position[test].max():.1f} s", train, test)
            for train, test in splitter.by_part(np.arange(len(group)))
        ]
    return tuple(_complete(name, train, test, splitter) for name, train, test in outer)


class _Splitter:
    """Splits any set of rows by group or by contiguous parts of one film."""

    def __init__(self, group: IntArray, position: FloatArray, *, n_folds: int, purge: float) -> None:
        self.group = group
        self.position = position
        self.n_folds = n_folds
        self.purge = purge

    def split(self, rows: IntArray) -> list[tuple[IntArray, IntArray]]:
        """Pairs (train, held out) of row numbers."""
        return self.by_group(rows) if len(np.unique(self.group[rows])) >= 2 else self.by_part(rows)

    def by_group(self, rows: IntArray) -> list[tuple[IntArray, IntArray]]:
        """Hold each group out once."""
        group = self.group[rows]
        return [(rows[group != held], rows[group == held]) for held in np.unique(group)]

    def by_part(self, rows: IntArray) -> list[tuple[IntArray, IntArray]]:
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
    _check_rows(f"the fold that holds out {name}", len(train), len(test))
    inner = []
    for part, (fit, held) in enumerate(splitter.split(train), start=1):
        _check_rows(f"inner fold {part} of the fold that holds out {name}", len(fit), len(held))
        inner.append((np.searchsorted(train, fit), np.searchsorted(train, held)))
    return Fold(name=name, train=train, test=test, inner=tuple(inner))


def _check_rows(what: str, n_train: int, n_held: int) -> None:
    if n_train < MIN_TRAINING_ROWS or n_held < MIN_HELD_OUT_ROWS:
        raise DesignError(
            f"In {what}, {n_train} volumes are left for training and {n_held} are held out, but at least "
            f"{MIN_TRAINING_ROWS} and {MIN_HELD_OUT_ROWS} are needed; use longer or more runs, or fewer "
            "folds."
        )
