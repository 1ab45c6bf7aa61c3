"""Scores of predictions, column by column."""

from collections.abc import Iterator

import numpy as np

from bids_mllm.records import FloatArray, IntArray
from bids_mllm.validation import check_same_samples

BLOCK_COLUMNS = 4096


def pearson_r(a: FloatArray, b: FloatArray) -> FloatArray:
    """Pearson correlation of each column of `a` with the same column of `b`.

    ``r = sum(da * db) / sqrt(sum(da^2) * sum(db^2))`` with ``da = a - mean(a)``: centred first (two
    passes, float64), because the one-pass formula loses digits.

    Parameters
    ----------
    a, b : (n_rows, n_columns) float

    Returns
    -------
    r : (n_columns,) float
        NaN where either column is constant or holds a NaN.
    """
    check_same_samples("a", len(a), "b", len(b))
    parts = [_pearson_r(a[:, columns], b[:, columns]) for columns in _blocks(a.shape[1])]
    return np.concatenate(parts) if parts else np.empty(0)


def _blocks(n_columns: int) -> Iterator[slice]:
    """Blocks of columns, so that the float64 copies stay small."""
    return (slice(start, start + BLOCK_COLUMNS) for start in range(0, n_columns, BLOCK_COLUMNS))


def _pearson_r(a: FloatArray, b: FloatArray) -> FloatArray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    flat = (np.ptp(a, axis=0) == 0) | (np.ptp(b, axis=0) == 0)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    varies = ~flat & (norm > 0)
    r: FloatArray = np.full(a.shape[1], np.nan)
    np.divide((a * b).sum(axis=0), norm, out=r, where=varies)
    return r


def r2_score_columns(y_true: FloatArray, y_pred: FloatArray) -> FloatArray:
    """Coefficient of determination of each column.

    ``R2 = 1 - sum((y_true - y_pred)^2) / sum((y_true - mean(y_true))^2)``

    Parameters
    ----------
    y_true, y_pred : (n_rows, n_columns) float

    Returns
    -------
    r2 : (n_columns,) float
        NaN where `y_true` is constant or either column holds a NaN.
    """
    check_same_samples("y_true", len(y_true), "y_pred", len(y_pred))
    parts = [_r2_score(y_true[:, columns], y_pred[:, columns]) for columns in _blocks(y_true.shape[1])]
    return np.concatenate(parts) if parts else np.empty(0)


def pearson_r_by_run(a: FloatArray, b: FloatArray, run_of_row: IntArray) -> tuple[FloatArray, IntArray]:
    """Pearson correlation of each column within each run, and the number of rows of each.

    The r of all rows, each run z-scored by itself on both sides, is the mean of these weighted by rows
    (:func:`concatenated_r`): z-scored products add up.

    Parameters
    ----------
    a, b : (n_rows, n_columns) float
    run_of_row : (n_rows,) int

    Returns
    -------
    r : (n_runs, n_columns) float
        In the order of the run numbers; NaN where either column is constant in the run.
    n_rows : (n_runs,) int
    """
    check_same_samples("a", len(a), "run_of_row", len(run_of_row))
    runs, n_rows = np.unique(run_of_row, return_counts=True)
    return np.stack([pearson_r(a[run_of_row == run], b[run_of_row == run]) for run in runs]), n_rows


def concatenated_r(r_by_run: FloatArray, n_rows: IntArray) -> FloatArray:
    """Pearson r over the rows of all runs, each run z-scored by itself, (n_columns,).

    Predictions of different folds have different penalties and so different sizes; without the scaling the fold with
    the largest would count most. A run in which a column has no correlation counts as 0.

    Parameters
    ----------
    r_by_run : (n_runs, n_columns) float
    n_rows : (n_runs,) int

    Returns
    -------
    r : (n_columns,) float
        NaN where no run has one.
    """
    defined = np.isfinite(r_by_run)
    total: FloatArray = np.where(defined, r_by_run, 0.0).T @ n_rows / n_rows.sum()
    return np.where(defined.any(axis=0), total, np.nan)


def _r2_score(y_true: FloatArray, y_pred: FloatArray) -> FloatArray:
    y_true, y_pred = y_true.astype(np.float64), y_pred.astype(np.float64)
    error = ((y_true - y_pred) ** 2).sum(axis=0)
    total = ((y_true - y_true.mean(axis=0)) ** 2).sum(axis=0)
    ratio: FloatArray = np.full(y_true.shape[1], np.nan)
    np.divide(error, total, out=ratio, where=np.ptp(y_true, axis=0) > 0)
    return 1.0 - ratio
