"""All scores of one set of predictions in one pass over blocks of targets, on the device of the fit."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bids_mllm.records import FloatArray, Fold, IntArray
from bids_mllm.validation import check_same_samples

if TYPE_CHECKING:
    import torch

BLOCK_TARGETS = 4096


@dataclass(frozen=True)
class ColumnScores:
    """Scores of every target, (n_targets,) float64 each; NaN where the target or the prediction is constant or NaN.

    Attributes
    ----------
    r
        Pearson correlation over all rows.
    r2
        Coefficient of determination; defined where the target varies.
    r_rows
        Pearson correlation over all rows with each run z-scored by itself on both sides; a run in which one side is
        constant counts as 0.
    """

    r: FloatArray
    r2: FloatArray
    r_rows: FloatArray


def score_columns(
    Y: FloatArray, predictions: FloatArray, run_of_row: IntArray, *, rows: IntArray | None = None, device: str = "cpu"
) -> ColumnScores:
    """Score predictions of held-out rows.

    The same as :func:`pearson_r`, :func:`r2_score_columns` and :func:`concatenated_r`, in float64 and centred first.

    Parameters
    ----------
    Y : (n_all_rows, n_targets) float
    predictions : (n_rows, n_targets) float
    run_of_row : (n_rows,) int
    rows : (n_rows,) or (n_viewings, n_rows) int
        Rows of `Y` that are predicted, or of which the mean is, see :func:`mean_of_viewings`; all when None.
    device
        ``cpu``, ``cuda`` or ``cuda:N``.

    Returns
    -------
    scores : ColumnScores
    """
    import torch

    held = None if rows is None else np.atleast_2d(rows)
    n_rows = len(Y) if held is None else held.shape[1]
    check_same_samples("Y", n_rows, "predictions", len(predictions))
    check_same_samples("Y", n_rows, "run_of_row", len(run_of_row))
    runs = [torch.as_tensor(np.flatnonzero(run_of_row == run), device=device) for run in np.unique(run_of_row)]
    columns: list[tuple[FloatArray, ...]] = []
    for start in range(0, Y.shape[1], BLOCK_TARGETS):
        block = slice(start, start + BLOCK_TARGETS)
        truth = Y[:, block] if held is None else mean_of_viewings(Y[:, block], held)
        y, p = (_rows_last(values, device) for values in (truth, predictions[:, block]))
        r = _correlation(y, p)
        error, total = (y - p).square().sum(dim=1), _centred(y).square().sum(dim=1)
        r2 = torch.where(_varies(y) & ~error.isnan(), 1.0 - error / total, torch.nan)
        by_run = torch.stack([_correlation(y[:, run], p[:, run]) * len(run) for run in runs])
        r_rows = torch.where(by_run.isnan().all(dim=0), torch.nan, by_run.nan_to_num(nan=0.0).sum(dim=0) / n_rows)
        columns.append(tuple(value.cpu().numpy() for value in (r, r2, r_rows)))
    return ColumnScores(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))


def mean_of_viewings(values: FloatArray, rows: IntArray) -> FloatArray:
    """Average the rows of several viewings.

    Parameters
    ----------
    values : (n_all_rows, n_targets) float
    rows : (n_viewings, n_rows) int
        Rows of `values` behind each row of the mean; -1 where it has fewer viewings.

    Returns
    -------
    mean : (n_rows, n_targets)
        Of the type of `values`.
    """
    if len(rows) == 1:
        single: FloatArray = values[rows[0]]
        return single
    total: FloatArray = np.zeros((rows.shape[1], values.shape[1]), dtype=values.dtype)
    for own in rows:
        there = own >= 0
        total[there] += values[own[there]]
    total /= (rows >= 0).sum(axis=0)[:, None].astype(values.dtype)
    return total


def scored_predictions(predictions: FloatArray, fold: Fold) -> FloatArray:
    """Predictions of the scored rows of a fold, (n_scored, n_targets), from those of its held-out rows."""
    return predictions if fold.viewings is None else mean_of_viewings(predictions, fold.viewings)


def score_fold(
    Y: FloatArray, scored: FloatArray, fold: Fold, segment_of_row: IntArray, *, device: str = "cpu"
) -> ColumnScores:
    """Score the predictions of a fold's scored rows.

    Parameters
    ----------
    Y : (n_all_rows, n_targets) float
    scored : (n_scored, n_targets) float
        What :func:`scored_predictions` gives.
    fold
    segment_of_row : (n_all_rows,) int
        Run, or part of one, of each row of `Y`; a mean of viewings counts to that of the first.
    device
    """
    rows = fold.scored
    return score_columns(Y, scored, segment_of_row[rows[0]], rows=rows, device=device)


def _rows_last(values: FloatArray, device: str) -> "torch.Tensor":
    import torch

    return torch.as_tensor(np.ascontiguousarray(values.T), device=device).to(torch.float64)


def _centred(values: "torch.Tensor") -> "torch.Tensor":
    return values - values.mean(dim=1, keepdim=True)


def _varies(values: "torch.Tensor") -> "torch.Tensor":
    return values.amax(dim=1) > values.amin(dim=1)


def _correlation(y: "torch.Tensor", p: "torch.Tensor") -> "torch.Tensor":
    import torch

    a, b = _centred(y), _centred(p)
    norm = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    defined = _varies(y) & _varies(p) & (norm > 0)
    return torch.where(defined, (a * b).sum(dim=1) / norm, torch.nan)
