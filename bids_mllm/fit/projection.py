"""Principal components fitted in training rows, so that wide and narrow models compare at the same rank."""

from typing import TYPE_CHECKING

import numpy as np

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.design import DelayedRows
from bids_mllm.records import FloatArray, Fold
from bids_mllm.validation import check_finite, check_same_samples

if TYPE_CHECKING:
    pass


def equal_rank_columns(X: FloatArray, rows: DelayedRows, fold: Fold, *, rank: int, device: str = "cpu") -> FloatArray:
    """Project features on their first principal components in the volumes of the training rows.

    Features are z-scored per run, so the components are those of ``X'X`` without a mean. The projections keep their
    variance, so that a ridge penalty weighs them as it weighs the features.

    Parameters
    ----------
    X : (n_volumes, n_features) float
        Stacked features of all runs, before delays.
    rows
    fold
        Held-out rows take no part in the components.
    rank
        Components; at most the features and the training rows.
    device

    Returns
    -------
    projected : (n_volumes, rank) float64
        Fewer columns where the features have a lower rank, as constant columns do.

    Raises
    ------
    DesignError
        When there are fewer features or training rows than components asked for.
    """
    check_same_samples("X", len(X), "the volumes of the runs", len(rows.usable))
    own = X[rows.volumes[fold.train]]
    check_finite("X", own)
    if rank > min(own.shape):
        raise DesignError(
            f"{rank} components are asked for, but there are {own.shape[1]} features and {own.shape[0]} training rows; "
            "ask for a rank that every model has."
        )
    components = _components(own, rank, device)
    projected: FloatArray = np.asarray(X, dtype=np.float64) @ components
    return projected


def _components(own: FloatArray, rank: int, device: str) -> FloatArray:
    """First right singular vectors, (n_features, rank), from the smaller of the two square matrices."""
    import torch

    rows: torch.Tensor = torch.as_tensor(np.ascontiguousarray(own, dtype=np.float64), device=device)
    wide = rows.shape[1] > rows.shape[0]
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    kept = values > values[0] * 1e-12 if float(values[0]) > 0 else torch.zeros_like(values, dtype=torch.bool)
    values, vectors = values[kept], vectors[:, kept]
    components: FloatArray = (rows.T @ vectors / values.sqrt() if wide else vectors).cpu().numpy()
    return components
