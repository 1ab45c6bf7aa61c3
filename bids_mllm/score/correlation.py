"""Scores of predictions, column by column."""

import numpy as np

from bids_mllm.records import FloatArray
from bids_mllm.validation import check_same_samples


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
    y_true, y_pred = y_true.astype(np.float64), y_pred.astype(np.float64)
    error = ((y_true - y_pred) ** 2).sum(axis=0)
    total = ((y_true - y_true.mean(axis=0)) ** 2).sum(axis=0)
    ratio: FloatArray = np.full(y_true.shape[1], np.nan)
    np.divide(error, total, out=ratio, where=np.ptp(y_true, axis=0) > 0)
    return 1.0 - ratio
