"""Scaling within segments (runs) and removal of slow drifts; the same rules for features and brain."""

import numpy as np

from bids_mllm.exceptions import DesignError
from bids_mllm.records import BoolArray, FloatArray, IntArray
from bids_mllm.validation import check_same_samples

# Spread below this share of a column's size is rounding, not signal: float32 steps are 6e-8 of a value.
CONSTANT_SHARE = 1e-10


def zscore_segments(X: FloatArray, segments: IntArray) -> FloatArray:
    """Z-score every column within every segment: ``(x - mean) / std`` with ddof 0.

    Each segment (a run) is scaled by its own rows, on the training and on the test side alike.
    Columns that are constant within a segment become 0 there. NaN rows are ignored and stay NaN.

    Parameters
    ----------
    X : (n_rows, n_columns) float
    segments : (n_rows,) int
        The segment of each row.

    Returns
    -------
    scaled : (n_rows, n_columns) float64
    """
    check_same_samples("X", len(X), "segments", len(segments))
    scaled = np.full(X.shape, np.nan, dtype=np.float64)
    finite = np.isfinite(X).all(axis=1)
    for segment in np.unique(segments):
        rows = (segments == segment) & finite
        if rows.any():
            scaled[rows] = _zscore(X[rows].astype(np.float64))
    return scaled


def _zscore(block: FloatArray) -> FloatArray:
    size = np.abs(block).max(axis=0)
    centred = block - block.mean(axis=0)
    spread = np.sqrt((centred**2).mean(axis=0))
    varies = spread > CONSTANT_SHARE * size
    scaled: FloatArray = np.where(varies, centred / np.where(varies, spread, 1.0), 0.0)
    return scaled


def cosine_basis(n_trs: int, *, repetition_time: float, high_pass: float) -> FloatArray:
    """Nilearn's cosine drifts of a run with a constant, shape (n_trs, n_drifts + 1); 0 Hz = constant only."""
    from nilearn.glm.first_level import make_first_level_design_matrix

    frame_times = np.arange(n_trs) * repetition_time
    design = make_first_level_design_matrix(frame_times, drift_model="cosine", high_pass=high_pass)
    basis: FloatArray = design.to_numpy(dtype=np.float64)
    return basis


def high_pass_rows(X: FloatArray, valid: BoolArray, *, repetition_time: float, high_pass: float) -> FloatArray:
    """Remove the mean and the cosine drifts below `high_pass` from the valid rows of ONE run.

    The drifts are those of the run's full frame times, restricted to the valid rows, as
    ``nilearn.signal.clean(filter="cosine", sample_mask=...)`` does it for the brain.

    Parameters
    ----------
    X : (n_trs, n_columns) float
        Rows that are not valid are not looked at.
    valid : (n_trs,) bool
    repetition_time
        Seconds between volumes.
    high_pass
        Cut-off in Hz; 0 removes the mean alone.

    Returns
    -------
    filtered : (n_trs, n_columns) float64
        NaN outside the valid rows; 0 in a column of which the drifts leave nothing but rounding.
    """
    check_same_samples("X", len(X), "valid", len(valid))
    basis = cosine_basis(len(X), repetition_time=repetition_time, high_pass=high_pass)[valid]
    if len(basis) <= basis.shape[1]:
        raise DesignError(
            f"A run keeps {len(basis)} volumes with a stimulus, not more than the {basis.shape[1]} drift "
            f"terms of a high-pass of {high_pass:g} Hz; lower the high-pass or leave the run out."
        )
    rows = X[valid].astype(np.float64)
    orthonormal, _ = np.linalg.qr(basis)
    residual = rows - orthonormal @ (orthonormal.T @ rows)
    spread = np.sqrt((residual**2).mean(axis=0))
    residual[:, spread <= CONSTANT_SHARE * np.abs(rows).max(axis=0)] = 0.0
    filtered = np.full(X.shape, np.nan, dtype=np.float64)
    filtered[valid] = residual
    return filtered
