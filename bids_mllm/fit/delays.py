"""Finite impulse response: copies of the features, each a whole number of TRs late, within one run."""

from collections.abc import Sequence

import numpy as np

from bids_mllm.exceptions import DesignError
from bids_mllm.records import BoolArray, FloatArray


def check_delays(delays: Sequence[int], n_trs: int) -> None:
    """Raise unless the delays are unique non-negative integers and the run is longer than all of them."""
    if not delays or any(int(delay) != delay or delay < 0 for delay in delays):
        raise ValueError(f"delays are {tuple(delays)}, but must be one or more non-negative integers (TRs).")
    if len(set(delays)) != len(delays):
        raise ValueError(f"delays are {tuple(delays)}, but no delay may occur twice.")
    if n_trs <= max(delays):
        raise DesignError(
            f"A run of {n_trs} TRs is not longer than the longest delay of {max(delays)} TRs; "
            "leave the run out or shorten the delays."
        )


def delay_rows(X: FloatArray, delays: Sequence[int]) -> FloatArray:
    """Place delayed copies of the features of ONE run side by side.

    Row t of the block of delay d is ``X[t - d]``. A row before the run is NaN, never a row of another
    run: call this for each run before the runs are stacked.

    Parameters
    ----------
    X : (n_trs, n_features) float
        Features of one run; NaN in rows without a stimulus.
    delays
        Unique non-negative integers in TRs, in the order of the blocks.

    Returns
    -------
    delayed : (n_trs, n_features * len(delays)) float
    """
    n_trs, n_features = X.shape
    check_delays(delays, n_trs)
    delayed = np.full((n_trs, n_features * len(delays)), np.nan, dtype=X.dtype)
    for block, delay in enumerate(delays):
        columns = slice(block * n_features, (block + 1) * n_features)
        delayed[delay:, columns] = X[: n_trs - delay]
    return delayed


def delayed_valid(valid: BoolArray, delays: Sequence[int]) -> BoolArray:
    """Rows of ONE run whose own window and all of whose delayed windows are valid.

    Parameters
    ----------
    valid : (n_trs,) bool
        True where a volume has a complete window.
    delays
        Unique non-negative integers in TRs.

    Returns
    -------
    usable : (n_trs,) bool
    """
    check_delays(delays, len(valid))
    usable = valid.copy()
    for delay in delays:
        usable[:delay] = False
        usable[delay:] &= valid[: len(valid) - delay]
    return usable
