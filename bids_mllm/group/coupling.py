"""How alike instructions are, in their texts and in the features that they give: one number an instruction."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from bids_mllm.records import FloatArray


def text_means(similarity: FloatArray) -> FloatArray:
    """Mean similarity of each instruction to the others.

    Parameters
    ----------
    similarity : (n, n) float
        Symmetric; the diagonal and NaN do not count.

    Returns
    -------
    means : (n,) float
        NaN where there is no other instruction.
    """
    others = np.array(similarity, dtype=np.float64)
    np.fill_diagonal(others, np.nan)
    known = np.isfinite(others)
    means: FloatArray = np.full(len(others), np.nan)
    np.divide(np.where(known, others, 0.0).sum(axis=1), known.sum(axis=1), out=means, where=known.any(axis=1))
    return means


def pair_means(pairs: Iterable[tuple[str, str, float]], keys: Sequence[str]) -> dict[str, float]:
    """Mean over the pairs of each instruction with others.

    Parameters
    ----------
    pairs
        First key, second key and value; NaN does not count.
    keys
        Instructions that count.

    Returns
    -------
    means : dict
        By key; NaN where an instruction has no pair.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for a, b, value in pairs:
        if a in keys and b in keys and np.isfinite(value):
            values[a].append(value)
            values[b].append(value)
    return {key: float(np.mean(values[key])) if values[key] else float("nan") for key in keys}


def best_layer(cv_r2: FloatArray) -> int | None:
    """Index of the layer whose training-internal score is highest on average over voxels.

    Parameters
    ----------
    cv_r2 : (n_layers, n_voxels) float
        NaN where undefined.

    Returns
    -------
    index : int or None
        None where no layer has a score.
    """
    finite = np.isfinite(cv_r2)
    count = finite.sum(axis=1)
    if not count.any():
        return None
    means = np.where(finite, cv_r2, 0.0).sum(axis=1, dtype=np.float64) / np.maximum(count, 1)
    return int(np.where(count > 0, means, -np.inf).argmax())
