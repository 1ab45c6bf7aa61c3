"""How much two feature matrices say the same about the clips: a check that instructions matter."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.validation import check_same_samples

# Differences below this share of the largest value are rounding of single precision, not variation.
ROUNDING = 1e-6


def _centred(values: NDArray[np.floating[Any]]) -> NDArray[np.float64] | None:
    """Return float64 columns with mean 0, or None where nothing but rounding varies over the rows."""
    if values.size == 0:
        return None
    double = values.astype(np.float64)
    centred: NDArray[np.float64] = double - double.mean(axis=0)
    if np.abs(centred).max() <= ROUNDING * np.abs(double).max():
        return None
    return centred


def linear_cka(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Return the linear centred kernel alignment of two feature matrices.

    With the columns of A and B centred over the clips,
    ``CKA = ||A.T B||_F ** 2 / (||A.T A||_F * ||B.T B||_F)``. It lies in [0, 1], is 1 where the matrices
    agree up to a rotation, a shift and one common scale, and so ignores a constant that an instruction
    adds to all clips.

    Parameters
    ----------
    a : (n_clips, n_features_a) array
    b : (n_clips, n_features_b) array

    Returns
    -------
    float
        NaN where either matrix does not vary over the clips.

    References
    ----------
    Kornblith, Norouzi, Lee and Hinton (2019), Similarity of neural network representations revisited,
    equation 3 with a linear kernel.
    """
    check_same_samples("a", len(a), "b", len(b))
    a_centred, b_centred = _centred(a), _centred(b)
    if a_centred is None or b_centred is None:
        return float("nan")
    # The Gram matrices over clips give the same norms and never grow with the width of the model.
    gram_a, gram_b = a_centred @ a_centred.T, b_centred @ b_centred.T
    return float(np.sum(gram_a * gram_b) / (np.linalg.norm(gram_a) * np.linalg.norm(gram_b)))
