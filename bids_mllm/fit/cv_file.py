"""A split as plain values, by the labels of runs and the numbers of volumes, so that it can be read and used again."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.folds import TIME_ROUNDING, SegmentClock, check_fold_rows
from bids_mllm.records import FloatArray, Fold, IntArray

SIDES = ("Train", "Test")
INNER_SIDES = ("Fit", "Validation")


def folds_to_values(
    folds: Sequence[Fold], run_of_row: IntArray, volume_of_row: IntArray, run_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Describe splits as JSON values.

    Parameters
    ----------
    folds
    run_of_row, volume_of_row : (n_rows,) int
        Run and volume (from 0) of each row.
    run_names
        Labels of the runs.

    Returns
    -------
    values : list of dict
        For each outer fold `Name`, `Train` and `Test`, and `Inner`: a list with `Fit` and `Validation`. Each side maps
        the label of a run to half-open ranges of volumes, ``[[first, end], ...]``.
    """

    def side(rows: IntArray) -> dict[str, list[list[int]]]:
        return _ranges(rows, run_of_row, volume_of_row, run_names)

    return [
        {
            "Name": fold.name,
            "Train": side(fold.train),
            "Test": side(fold.test),
            "Inner": [{"Fit": side(fold.train[fit]), "Validation": side(fold.train[held])} for fit, held in fold.inner],
        }
        for fold in folds
    ]


def _ranges(
    rows: IntArray, run_of_row: IntArray, volume_of_row: IntArray, run_names: Sequence[str]
) -> dict[str, list[list[int]]]:
    rows = rows[np.lexsort((volume_of_row[rows], run_of_row[rows]))]
    run, volume = run_of_row[rows], volume_of_row[rows]
    breaks = np.flatnonzero((np.diff(run) != 0) | (np.diff(volume) > 1))
    firsts, lasts = np.r_[0, breaks + 1], np.r_[breaks, len(rows) - 1]
    ranges: dict[str, list[list[int]]] = {}
    for number, first, last in zip(run[firsts].tolist(), volume[firsts].tolist(), volume[lasts].tolist(), strict=True):
        ranges.setdefault(run_names[number], []).append([first, last + 1])
    return ranges


def folds_from_values(
    values: Sequence[Mapping[str, Any]],
    run_of_row: IntArray,
    volume_of_row: IntArray,
    run_names: Sequence[str],
    group_of_run: IntArray,
    *,
    position: FloatArray,
    purge: float,
    source: str,
    segments: SegmentClock | None = None,
) -> tuple[Fold, ...]:
    """Make splits of values that :func:`folds_to_values` wrote, or that were written by hand.

    Volumes that are no rows (without a stimulus, at the start of a run) are passed over.

    Parameters
    ----------
    values
    run_of_row, volume_of_row, run_names
        As in :func:`folds_to_values`.
    group_of_run : (n_runs,) int
        Runs of one group show the same stimulus.
    position : (n_rows,) float
        Seconds on the clock of the film, or of the run where it repeats nothing, as for :func:`make_folds`.
    purge
        A split is refused where rows of one group are nearer than this many seconds on both sides.
    source
        Name of the file for errors.
    segments
        As for :func:`make_folds`; a split that keeps training rows next to a held-out neighbour is refused.

    Returns
    -------
    folds : tuple of Fold

    Raises
    ------
    DesignError
        One sentence: a key that is missing, a run that is not there, a volume on both sides, too few rows.
    """
    known = {name: number for number, name in enumerate(run_names)}
    reader = _Reader(run_of_row, volume_of_row, known, group_of_run[run_of_row], position, purge, source, segments)
    if not values:
        raise DesignError(f"{source} holds no folds; expected a list Folds with Train, Test and Inner of each.")
    folds = tuple(reader.fold(number, entry) for number, entry in enumerate(values, start=1))
    tested, times = np.unique(np.concatenate([fold.test for fold in folds]), return_counts=True)
    if (times > 1).any():
        row = int(tested[times > 1][0])
        raise DesignError(
            f"{source}: volume {volume_of_row[row]} of {reader.name(row)} is tested in two folds; test each once."
        )
    return folds


class _Reader:
    """Turns the sides of a file into rows."""

    def __init__(
        self,
        run_of_row: IntArray,
        volume_of_row: IntArray,
        known: Mapping[str, int],
        group: IntArray,
        position: FloatArray,
        purge: float,
        source: str,
        segments: SegmentClock | None,
    ) -> None:
        self.run_of_row, self.volume_of_row, self.known = run_of_row, volume_of_row, known
        self.group, self.position, self.purge, self.source = group, position, purge, source
        self.segments = segments

    def fold(self, number: int, entry: Mapping[str, Any]) -> Fold:
        name = str(entry.get("Name", number)) if isinstance(entry, dict) else str(number)
        train, test = self.pair(entry, SIDES, f"fold {name}")
        inner = []
        for place, own in enumerate(self.value(entry, "Inner", f"fold {name}"), start=1):
            what = f"inner fold {place} of fold {name}"
            fit, held = self.pair(own, INNER_SIDES, what)
            if not np.isin(np.concatenate((fit, held)), train).all():
                raise DesignError(f"{self.source}: {what} has volumes that are not in Train; take them out.")
            inner.append((np.searchsorted(train, fit), np.searchsorted(train, held)))
        if not inner:
            raise DesignError(f"{self.source}: fold {name} has no inner folds, which choose the penalty; add some.")
        return Fold(name, train, test, tuple(inner))

    def pair(self, entry: Mapping[str, Any], sides: tuple[str, str], what: str) -> tuple[IntArray, IntArray]:
        first, second = (self.rows(self.value(entry, side, what), f"{side} of {what}") for side in sides)
        shared = np.intersect1d(first, second)
        if shared.size:
            raise DesignError(
                f"{self.source}: volume {self.volume_of_row[shared[0]]} of {self.name(shared[0])} is on both sides of "
                f"{what}; take it out of one."
            )
        self.check_apart(first, second, what)
        self.check_neighbours(first, second, what)
        check_fold_rows(f"{what} of {self.source}", len(first), len(second))
        return first, second

    def value(self, entry: Any, key: str, what: str) -> Any:
        if not isinstance(entry, dict) or key not in entry:
            raise DesignError(
                f"{self.source}: {what} has no {key}; expected Train, Test and Inner with Fit, Validation."
            )
        return entry[key]

    def rows(self, side: Any, what: str) -> IntArray:
        chosen = np.zeros(len(self.run_of_row), dtype=bool)
        for label, ranges in side.items() if isinstance(side, dict) else ():
            if label not in self.known:
                raise DesignError(
                    f"{self.source}: {what} names the run {label}, which takes no part; there are "
                    f"{', '.join(self.known)}."
                )
            mine = self.run_of_row == self.known[label]
            try:
                for first, end in ranges:
                    chosen |= mine & (self.volume_of_row >= int(first)) & (self.volume_of_row < int(end))
            except (TypeError, ValueError):
                raise DesignError(
                    f"{self.source}: {what} has {ranges!r} for the run {label}, but must have a list of [first, end]."
                ) from None
        return np.flatnonzero(chosen)

    def check_apart(self, first: IntArray, second: IntArray, what: str) -> None:
        """Refuse rows of one film on both sides that are nearer than the purge, in whatever viewing."""
        for group in np.intersect1d(self.group[first], self.group[second]):
            train = first[self.group[first] == group]
            train = train[np.argsort(self.position[train])]
            test = second[self.group[second] == group]
            place = np.searchsorted(self.position[train], self.position[test])
            for neighbour in (np.maximum(place - 1, 0), np.minimum(place, len(train) - 1)):
                apart = np.abs(self.position[train[neighbour]] - self.position[test])
                worst = int(apart.argmin())
                if apart[worst] < self.purge - TIME_ROUNDING:
                    one, other = train[neighbour[worst]], test[worst]
                    raise DesignError(
                        f"{self.source}: volume {self.volume_of_row[one]} of {self.name(one)} and volume "
                        f"{self.volume_of_row[other]} of {self.name(other)} show one film {apart[worst]:.2f} s apart "
                        f"and are on both sides of {what}; keep viewings together and leave {self.purge:.2f} s out "
                        "where a film is cut."
                    )

    def check_neighbours(self, first: IntArray, second: IntArray, what: str) -> None:
        """Refuse training rows next to a held-out segment of the same film, which may show the same seconds."""
        if self.segments is None:
            return
        touching = first[self.segments.touches(first, second)]
        if touching.size:
            raise DesignError(
                f"{self.source}: volume {self.volume_of_row[touching[0]]} of {self.name(touching[0])} trains in {what} "
                f"within {self.segments.margin:.2f} s of a neighbouring segment that is held out, and neighbours may "
                "overlap; leave these volumes out."
            )

    def name(self, row: int) -> str:
        return str(list(self.known)[self.run_of_row[row]])
