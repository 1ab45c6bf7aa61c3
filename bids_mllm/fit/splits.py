"""Inner splits as the solver uses them: what is left out together, and what each held-out row weighs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bids_mllm.fit.targets import Targets, as_rows
from bids_mllm.records import Fold, IntArray

if TYPE_CHECKING:
    import torch

# Relative difference of the weights of targets below which one set of weights serves all.
SAME_WEIGHT = 1e-6
BLOCK_BYTES = 2**26


@dataclass(frozen=True)
class InnerSplit:
    """One inner split of the training rows.

    Attributes
    ----------
    fit : (n_fit,) int
        Positions in the training rows that are fitted.
    left_out : (n_left_out,) int
        All others: held out or purged.
    held : (n_held,) int
        Positions in the training rows that are scored.
    held_place : (n_held,) int
        Places of `held` in `left_out`.
    """

    fit: IntArray
    left_out: IntArray
    held: IntArray
    held_place: IntArray


def inner_splits(fold: Fold) -> tuple[InnerSplit, ...]:
    """Complete the inner splits of a fold with what each leaves out."""
    everything = np.arange(len(fold.train))
    splits = []
    for fit, held in fold.inner:
        left_out = np.setdiff1d(everything, fit, assume_unique=True)
        splits.append(InnerSplit(fit, left_out, held, np.searchsorted(left_out, held)))
    return tuple(splits)


def split_weights(targets: Targets, fold: Fold, splits: tuple[InnerSplit, ...]) -> "torch.Tensor":
    """Weights that turn squared errors into ``1 - mean R2`` over the splits, (n_splits, n_usable) float64.

    ``mean R2 = 1 - sum_b w_b SSE_b`` with ``w_b = 1 / (n_splits * SST_b)`` and
    ``SST_b = sum((y - mean(y))^2)`` over the held rows of split b. A split in which a target does not vary has
    weight 0 there and is not counted.
    """
    import torch

    weights = torch.zeros((len(splits), len(targets.usable)), dtype=torch.float64, device=targets.device)
    n_block = max(1, BLOCK_BYTES // (8 * max(len(split.held) for split in splits)))
    for number, split in enumerate(splits):
        rows = as_rows(fold.train[split.held])
        for start, stop in targets.spans(n_block):
            y = targets.block(start, stop, rows, torch.float64)
            total = (y - y.mean(dim=1, keepdim=True)).square_().sum(dim=1)
            varies = y.amax(dim=1) > y.amin(dim=1)
            weights[number, start:stop] = torch.where(varies, 1.0 / total, 0.0)
    counted = (weights > 0).sum(dim=0).clamp_(min=1)
    return weights / counted


def common_weights(weights: "torch.Tensor") -> "torch.Tensor | None":
    """Return the weights (n_splits,) where they are the same for all targets, as after z-scoring by run; else None."""
    low, high = weights.amin(dim=1), weights.amax(dim=1)
    return weights.mean(dim=1) if bool(((high - low) <= SAME_WEIGHT * high).all()) else None
