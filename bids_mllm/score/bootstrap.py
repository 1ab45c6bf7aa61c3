"""How sure is a mean over runs: intervals by resampling runs."""

from dataclasses import dataclass

import numpy as np

from bids_mllm.records import BoolArray, FloatArray, IntArray
from bids_mllm.validation import check_same_samples

TILE_COLUMNS = 1024


@dataclass(frozen=True)
class BootstrapInterval:
    """Mean over runs and its interval, each (n_columns,); `n_runs` counts the runs with a value."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray
    n_runs: IntArray
    confidence: float


def bootstrap_runs(
    values: FloatArray,
    weights: FloatArray | None = None,
    *,
    n_bootstraps: int = 5000,
    seed: int = 0,
    confidence: float = 0.95,
) -> BootstrapInterval:
    """Percentile interval of a mean over runs, by drawing runs with replacement.

    ``mean = sum_i w_i v_i / sum_i w_i`` over the runs drawn that have a value. The interval speaks of other
    runs of the same participant, not of other participants. With few runs it is too narrow: the spread of
    resampled means is smaller than the standard error by ``sqrt((n - 1) / n)`` and its tails are short, so
    that an interval of 95 % covers about 0.50 for 2 normal runs (which allow only three distinct means),
    0.75 for 3, 0.83 for 5 and 0.90 for 10 (Efron and Tibshirani 1993, chapter 13, on the percentile method).

    Parameters
    ----------
    values : (n_runs, n_columns) float
        Scores of each run, e.g. means of r in regions; NaN where a run has none.
    weights : (n_runs,) float, optional
        Not negative, e.g. rows of each run; equal where not given.
    n_bootstraps
        Resamples.
    seed
        Of the resamples; all columns get the same.
    confidence
        Share of the resampled means within the interval.

    Returns
    -------
    interval : BootstrapInterval
        `low` and `high` are NaN for columns with fewer than 2 runs, `mean` for columns with none.
    """
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    check_same_samples("values", len(values), "weights", len(weights))
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("The weights of the runs must be finite and not negative.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, but must lie between 0 and 1.")
    if n_bootstraps < 1:
        raise ValueError(f"n_bootstraps is {n_bootstraps}, but must be at least 1.")
    n_runs, n_columns = values.shape
    present = np.isfinite(values) & (weights > 0)[:, None]
    count = present.sum(axis=0)
    once = np.ones((1, n_runs))
    drawn = np.random.default_rng(seed).multinomial(n_runs, np.full(n_runs, 1 / max(n_runs, 1)), size=n_bootstraps)
    mean, low, high = np.full((3, n_columns), np.nan)
    tail = 100 * (1 - confidence) / 2
    for start in range(0, n_columns, TILE_COLUMNS):
        tile = slice(start, start + TILE_COLUMNS)
        mean[tile] = _means(once, values[:, tile], weights, present[:, tile])[0]
        columns = start + np.flatnonzero(count[tile] >= 2)
        if columns.size:
            means = _means(drawn, values[:, columns], weights, present[:, columns])
            low[columns], high[columns] = np.nanpercentile(means, [tail, 100 - tail], axis=0)
    return BootstrapInterval(mean, low, high, count, confidence)


def _means(drawn: FloatArray | IntArray, values: FloatArray, weights: FloatArray, present: BoolArray) -> FloatArray:
    """Weighted means (n_bootstraps, n_columns) of the runs drawn so often; NaN where none has a value."""
    total = drawn @ (weights[:, None] * np.where(present, values, 0.0))
    share = drawn @ (weights[:, None] * present)
    means: FloatArray = np.full(total.shape, np.nan)
    np.divide(total, share, out=means, where=share > 0)
    return means
