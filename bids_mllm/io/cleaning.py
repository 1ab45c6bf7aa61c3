"""Confounds and drifts regressed out of a series in place."""

import numpy as np

from bids_mllm.records import FloatArray

# Voxels whose products are formed at once, in float64.
BLOCK_VOXELS = 4096
# Diagonal of R from which a regressor counts as one of its own, as in nilearn.signal.clean.
INDEPENDENT = np.finfo(np.float64).eps * 100.0


def clean_in_place(series: FloatArray, regressors: FloatArray | None, *, non_steady_state: int = 0) -> None:
    """Take the mean and the regressors out of every voxel, in place.

    The same as nilearn's ``signal.clean(centred, detrend=False, standardize=None, confounds=regressors,
    filter=False)``: ``y - Q Q'y`` with an orthonormal basis Q of the standardized regressors, in float64 for a block
    of voxels at a time.

    Parameters
    ----------
    series : (n_volumes, n_voxels) float32
        Changed in place.
    regressors : (n_volumes, n_regressors) float or None
        Constant and collinear ones add nothing.
    non_steady_state
        First volumes that take no part in the regression; they become NaN.
    """
    kept = series[non_steady_state:]
    series[:non_steady_state] = np.nan
    if not len(kept):
        return
    basis = _basis(np.empty((len(kept), 0)) if regressors is None else regressors[non_steady_state:])
    for start in range(0, kept.shape[1], BLOCK_VOXELS):
        block = kept[:, start : start + BLOCK_VOXELS].astype(np.float64)
        block -= block.mean(axis=0)
        block -= basis @ (basis.T @ block)
        kept[:, start : start + BLOCK_VOXELS] = block


def _basis(regressors: FloatArray) -> FloatArray:
    """Orthonormal columns that span the standardized regressors, (n_volumes, rank) float64."""
    from scipy.linalg import qr

    if regressors.shape[1] == 0 or len(regressors) == 1:
        return np.empty((len(regressors), 0))
    standardized = regressors - regressors.mean(axis=0, dtype=np.float64)
    deviation = standardized.std(axis=0, ddof=1)
    deviation[deviation < np.finfo(np.float64).eps] = 1.0
    columns, triangle, _ = qr(standardized / deviation, mode="economic", pivoting=True)
    basis: FloatArray = columns[:, np.abs(np.diag(triangle)) > INDEPENDENT]
    return basis


def cosine_drifts(n_volumes: int, *, repetition_time: float, high_pass: float) -> FloatArray:
    """Nilearn's cosine drifts below `high_pass` (Hz) without the constant, (n_volumes, n_drifts); none at 0 Hz."""
    from nilearn.glm.first_level import make_first_level_design_matrix

    if high_pass == 0 or n_volumes < 2:
        return np.empty((n_volumes, 0))
    frame_times = np.arange(n_volumes) * repetition_time
    design = make_first_level_design_matrix(frame_times, drift_model="cosine", high_pass=high_pass)
    drifts: FloatArray = design.drop(columns="constant").to_numpy(dtype=np.float64)
    return drifts
