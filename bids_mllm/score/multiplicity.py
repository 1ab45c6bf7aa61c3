"""Corrections for the number of tests: voxels, and the models, layers and instructions that were compared."""

from typing import Literal

import numpy as np
from scipy.special import digamma
from scipy.stats import false_discovery_control

from bids_mllm.records import FloatArray
from bids_mllm.validation import check_in_allowed


def count_comparisons(p: FloatArray) -> int:
    """Number of tests in `p` (any shape): its finite entries."""
    return int(np.count_nonzero(np.isfinite(p)))


def fdr(p: FloatArray, *, method: Literal["bh", "by"] = "bh", n_comparisons: int | None = None) -> FloatArray:
    """Adjust p-values for the false discovery rate, over all entries jointly.

    ``q_(i) = min over j >= i of p_(j) c m / j`` of the sorted p, at most 1, with m tests; c is 1 for ``bh``
    (Benjamini and Hochberg 1995; tests independent or positively dependent, as smooth maps are) and
    ``1 + 1/2 + ... + 1/m`` for ``by`` (Benjamini and Yekutieli 2001; any dependence).

    Parameters
    ----------
    p : (...) float
        P-values of any shape, e.g. (n_conditions, n_layers, n_voxels), so that layers and instructions are
        counted with the voxels; NaN is no test.
    method
        ``bh`` or ``by``.
    n_comparisons
        Tests that were tried, where that is more than are handed in; those left out count as p of 1.

    Returns
    -------
    q : (...) float
        Adjusted p-values of the same shape; NaN stays NaN. ``q <= alpha`` holds the rate at alpha.
    """
    check_in_allowed(method, ("bh", "by"), "method")
    p = np.asarray(p, dtype=np.float64)
    finite = np.isfinite(p)
    q: FloatArray = np.full(p.shape, np.nan)
    n_finite = count_comparisons(p)
    if n_finite == 0:
        return q
    n_tried = max(n_finite, n_comparisons or 0)
    factor = n_tried / n_finite
    if method == "by":
        factor *= (digamma(n_tried + 1) - digamma(1)) / (digamma(n_finite + 1) - digamma(1))
    q[finite] = np.minimum(1.0, factor * false_discovery_control(p[finite], method=method))
    return q


def simes(p: FloatArray) -> float:
    """Combine the p-values of several tests into one of the hypothesis that none of them has an effect.

    ``min over i of m p_(i) / i`` of the m sorted p (Simes 1986): the smallest Benjamini-Hochberg rate. It holds its
    level for independent and for positively dependent tests, as those of neighbouring voxels are. It says that there
    is an effect in some test, not in which.

    Parameters
    ----------
    p : (n,) float
        P-values; NaN is no test.

    Returns
    -------
    p : float
        NaN where there is no test.
    """
    q = fdr(np.ravel(p))
    finite = q[np.isfinite(q)]
    return float(finite.min()) if finite.size else float("nan")
