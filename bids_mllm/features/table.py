"""Feature tables: rows with an onset and a duration, brought to the windows of a stimulus."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bids_mllm.exceptions import StimulusError
from bids_mllm.records import BoolArray, FloatArray

Aggregation = Literal["mean", "sum"]
# Rows whose edges differ by less than this many seconds touch: times in TSV files are rounded.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class FeatureTable:
    """Values of a stimulus over time, one row an interval.

    Attributes
    ----------
    stim_file
        The stimulus whose clock the rows are on.
    columns
        Names of the features.
    onset, duration : (n_rows,) float
        Seconds on the stimulus clock.
    values : (n_rows, n_columns) float
    aggregation
        For each column ``"mean"`` (a level that holds for the row's duration) or ``"sum"`` (an amount,
        such as a count of words, spread evenly over the row's duration).
    """

    stim_file: str
    columns: tuple[str, ...]
    onset: FloatArray
    duration: FloatArray
    values: FloatArray
    aggregation: tuple[Aggregation, ...]


def table_windows(table: FeatureTable, starts: FloatArray, ends: FloatArray) -> FloatArray:
    """Bring the columns of a table to windows.

    A ``mean`` column gives ``sum(value * overlap) / sum(overlap)``, and NaN where the rows do not cover
    the whole window. A ``sum`` column gives ``sum(value * overlap / duration)``, 0 where there is no
    row; a row without duration counts wholly in the window that contains its onset.

    Parameters
    ----------
    table
        The rows, in any order.
    starts, ends : (n_windows,) float
        Edges of the windows in seconds on the stimulus clock.

    Returns
    -------
    features : (n_windows, n_columns) float
    """
    order = np.argsort(table.onset, kind="stable")
    onset, duration = table.onset[order].astype(np.float64), table.duration[order].astype(np.float64)
    values = table.values[order].astype(np.float64)
    offset = onset + duration
    is_sum = np.array([kind == "sum" for kind in table.aggregation], dtype=bool)
    # A row before the first one that reaches the window's start cannot touch the window.
    lower = np.searchsorted(np.maximum.accumulate(offset), starts, side="left")
    upper = np.searchsorted(onset, ends, side="left")
    features = np.empty((len(starts), len(table.columns)))
    for window, (start, end) in enumerate(zip(starts, ends, strict=True)):
        rows = slice(lower[window], max(upper[window], lower[window]))
        overlap = np.minimum(offset[rows], end) - np.maximum(onset[rows], start)
        overlap = np.clip(overlap, 0.0, None)
        inside = (onset[rows] >= start) & (onset[rows] < end)
        features[window, is_sum] = _sums(values[rows][:, is_sum], overlap, duration[rows], inside)
        features[window, ~is_sum] = _means(values[rows][:, ~is_sum], overlap, end - start)
    return features


def _sums(values: FloatArray, overlap: FloatArray, duration: FloatArray, inside: BoolArray) -> FloatArray:
    share = np.divide(overlap, duration, out=inside.astype(np.float64), where=duration > 0)
    touching = share > 0
    sums: FloatArray = share[touching] @ values[touching]
    return sums


def _means(values: FloatArray, overlap: FloatArray, length: float) -> FloatArray:
    touching = overlap > 0
    covered = overlap[touching].sum()
    if covered < length - TOLERANCE or covered == 0:
        return np.full(values.shape[1], np.nan)
    means: FloatArray = overlap[touching] @ values[touching] / covered
    return means


def check_table(table: FeatureTable, span: float, *, window: float = 0.0) -> None:
    """Raise a StimulusError when a table cannot describe the seconds [0, span] of its stimulus.

    A table needs two rows or more with finite times; the rows that ``mean`` columns are read from may
    neither overlap nor leave a gap of more than 1 ms, and must reach ``span - window``. Columns of
    ``sum`` are free: no row means that nothing happened.

    Parameters
    ----------
    table
        The rows, in any order.
    span
        Seconds of the stimulus that are used.
    window
        Seconds of one window: rows may end this much before `span`.
    """
    faults = _row_faults(table)
    if not faults:
        means = [name for name, kind in zip(table.columns, table.aggregation, strict=True) if kind == "mean"]
        faults = _cover_faults(table, means, span, window) if means else []
    if faults:
        raise StimulusError(" ".join(faults))


def _row_faults(table: FeatureTable) -> list[str]:
    where = f"The feature table of {table.stim_file}"
    if len(table.onset) < 2:
        return [f"{where} has {len(table.onset)} rows, but needs at least two; check that it is complete."]
    bad = ~(np.isfinite(table.onset) & np.isfinite(table.duration) & (table.duration >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        return [
            f"{where} has onset {table.onset[row]:g} and duration {table.duration[row]:g} in row {row + 1}, "
            "but both must be finite and the duration not negative; correct or remove the row."
        ]
    return []


def _cover_faults(table: FeatureTable, means: list[str], span: float, window: float) -> list[str]:
    order = np.argsort(table.onset, kind="stable")
    onset, offset = table.onset[order], (table.onset + table.duration)[order]
    column = f"column {means[0]}" if len(means) == 1 else f"columns {', '.join(means)}"
    where = f"The feature table of {table.stim_file}, {column} (aggregation mean),"
    faults = []
    reached = np.concatenate([[0.0], np.maximum.accumulate(offset)])
    needed = (onset < span) | (reached[:-1] < span - window)
    gaps = np.flatnonzero((onset - reached[:-1] > TOLERANCE) & (reached[:-1] < span) & needed)
    if gaps.size:
        second, until = reached[gaps[0]], onset[gaps[0]]
        faults.append(
            f"{where} has no row from second {second:.3f} to {until:.3f}; add the missing rows or use the "
            "aggregation sum."
        )
    overlaps = np.flatnonzero(reached[1:-1] - onset[1:] > TOLERANCE)
    if overlaps.size:
        faults.append(
            f"{where} has rows that overlap at second {onset[overlaps[0] + 1]:.3f}, so that the value there "
            "is not defined; shorten the earlier row."
        )
    if reached[-1] < span - window - TOLERANCE:
        faults.append(f"{where} ends at second {reached[-1]:.3f}, but the windows need {span:.3f}; complete the table.")
    return faults
