"""How many voxels of a region prefer each condition and each layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bids_mllm.records import FloatArray, IntArray


def choice_counts(best: IntArray | FloatArray, r: FloatArray, n_choices: int) -> IntArray:
    """Count the voxels that prefer each choice, among those that the model predicts at all.

    Parameters
    ----------
    best : (n_voxels,) int or float
        Index of the choice with the highest training-internal score; negative or NaN where there is none.
    r : (n_voxels,) float
        Held-out correlation; voxels where it is not above 0 do not count, since a choice among predictions that
        fail says nothing.
    n_choices

    Returns
    -------
    counts : (n_choices,) int
    """
    best = np.asarray(best, dtype=np.float64)
    counted = (best >= 0) & (np.asarray(r) > 0)
    counts: IntArray = np.bincount(best[counted].astype(np.int64), minlength=n_choices)
    return counts


def choice_rows(
    heads: Mapping[str, Any], choices: Mapping[str, tuple[IntArray | FloatArray, Sequence[Any]]], r: FloatArray
) -> list[dict[str, Any]]:
    """Return one row a value of each choice in one region, also of values that no voxel prefers.

    Parameters
    ----------
    heads
        What every row begins with: participant, model and region.
    choices
        For each choice (condition, layer) the best index of each voxel of the region, and what the indices stand for.
    r : (n_voxels,) float
        Held-out correlation of the nested choice in these voxels.

    Returns
    -------
    rows : list of dict
        The heads, choice, value, count, n_voxels (all that count) and share (of these, NaN where there is none).
    """
    rows = []
    for choice, (best, values) in choices.items():
        counts = choice_counts(best, r, len(values))
        total = int(counts.sum())
        for value, count in zip(values, counts.tolist(), strict=True):
            share = count / total if total else float("nan")
            own = {"choice": choice, "value": value, "count": count, "n_voxels": total, "share": share}
            rows.append({**heads, **own})
    return rows
