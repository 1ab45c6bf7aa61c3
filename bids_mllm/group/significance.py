"""Significance of a group of participants taken as it is: tests within participants, combined."""

import numpy as np
from scipy.stats import chi2

from bids_mllm.records import FloatArray


def fisher_combined(p: FloatArray) -> FloatArray:
    """Combine the p-values of participants into one of the hypothesis that nobody has an effect.

    ``-2 sum_i log p_i`` is chi-squared with 2n degrees of freedom when the n tests are independent and their p
    uniform (Fisher 1925). It is a fixed-effects test: one participant with a strong effect is enough, and it says
    nothing of other people. P-values of permutations are no smaller than uniform ones, so it does not err often.

    Parameters
    ----------
    p : (n_participants, n_columns) float
        P-values of the tests within participants; NaN is no test, and the column's others are combined.

    Returns
    -------
    p : (n_columns,) float
        With one participant that one's own; NaN where there is no test.
    """
    if p.ndim != 2:
        raise ValueError(f"p has the shape {p.shape}, but must be (n_participants, n_columns).")
    p = np.asarray(p, dtype=np.float64)
    finite = np.isfinite(p)
    if np.any((p[finite] <= 0) | (p[finite] > 1)):
        raise ValueError("p has values outside of 0 (excluded) to 1 (included), which no permutation gives.")
    n = finite.sum(axis=0)
    statistic = -2.0 * np.log(np.where(finite, p, 1.0)).sum(axis=0)
    combined: FloatArray = np.full(n.shape, np.nan)
    combined[n > 0] = chi2.sf(statistic[n > 0], 2 * n[n > 0])
    return combined
