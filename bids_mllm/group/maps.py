"""Means of maps over participants, and the feature space that fits a group best."""

from collections.abc import Sequence

import numpy as np

from bids_mllm.records import BoolArray, FloatArray, IntArray


def mean_maps(maps: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray, IntArray]:
    """Mean and standard error over participants, each entry from the participants that have it.

    Parameters
    ----------
    maps
        One array (..., n_voxels) a participant, NaN where undefined. Correlations are averaged as they
        are, without Fisher's z.

    Returns
    -------
    mean, sem : (..., n_voxels) float
        NaN where no participant (for sem: fewer than two) has a value; sem is the standard deviation
        (ddof 1) over the root of the count.
    n : (..., n_voxels) int
        Participants with a value.
    """
    shapes = {np.shape(one) for one in maps}
    if len(shapes) != 1:
        raise ValueError(f"The maps have the shapes {sorted(shapes)}, but all must have the same one.")
    stacked = np.asarray(maps, dtype=np.float64)
    finite = np.isfinite(stacked)
    n = finite.sum(axis=0)
    mean = _ratio(np.where(finite, stacked, 0.0).sum(axis=0), n, n > 0)
    squares = np.where(finite, (stacked - mean) ** 2, 0.0).sum(axis=0)
    variance = _ratio(squares, n - 1, n > 1)
    sem = np.sqrt(_ratio(variance, n, n > 1))
    return mean, sem, n


def _ratio(total: FloatArray, count: IntArray, where: BoolArray) -> FloatArray:
    ratio: FloatArray = np.full(np.shape(total), np.nan)
    np.divide(total, count, out=ratio, where=where)
    return ratio


def group_choice(cv_r2: FloatArray) -> tuple[IntArray, IntArray]:
    """The condition and the layer with the highest training-internal score, mean over participants.

    Held-out scores take no part. In each voxel the participants that have any score there are averaged;
    a feature space that one of them lacks cannot be chosen, since its mean would be of fewer people.

    Parameters
    ----------
    cv_r2 : (n_participants, n_conditions, n_layers, n_voxels) float

    Returns
    -------
    best_condition, best_layer : (n_voxels,) int16
        Indices on axes 1 and 2; -1 where no feature space can be chosen.
    """
    n_participants, n_conditions, n_layers, n_voxels = cv_r2.shape
    flat = cv_r2.reshape(n_participants, n_conditions * n_layers, n_voxels)
    finite: BoolArray = np.isfinite(flat)
    present: BoolArray = np.asarray(finite.any(axis=1))
    everyone = np.asarray((finite | ~present[:, None]).all(axis=0))
    complete: BoolArray = everyone & present.any(axis=0)
    total = np.where(finite, flat, 0.0).sum(axis=0, dtype=np.float64)
    # All candidates of a voxel have the same participants, so sums rank as means do.
    candidates = np.where(complete, total, -np.inf)
    chosen = candidates.argmax(axis=0)
    found = complete.any(axis=0)
    best_condition = np.where(found, chosen // n_layers, -1).astype(np.int16)
    best_layer = np.where(found, chosen % n_layers, -1).astype(np.int16)
    return best_condition, best_layer
