"""How well a participant is predicted from the others: the scores that a noise ceiling is extrapolated from."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bids_mllm.fit.design import Design
from bids_mllm.fit.ridge import fit_ridge
from bids_mllm.fit.targets import Targets
from bids_mllm.records import FloatArray, Fold

if TYPE_CHECKING:
    import torch

Score = Callable[[FloatArray, Fold], FloatArray]


def scores_from_participants(
    kernels: "Mapping[str, torch.Tensor]",
    Y: Targets,
    folds: Sequence[Fold],
    subsets: Sequence[Sequence[str]],
    *,
    alphas: FloatArray,
    score: Score,
    device: str = "cpu",
    max_block_bytes: int = 2**31,
) -> FloatArray:
    """Predict one participant's targets from all voxels of subsets of the others.

    The features of a subset are the voxels of its participants side by side, so its kernel is the sum of theirs
    (arXiv 2506.08277, after Schrimpf et al. 2021, PNAS). Every participant is brought to the same mean diagonal first.

    Parameters
    ----------
    kernels
        Gram matrix (n_rows, n_rows) float64 of the voxels of each other participant, on the rows of `Y`.
    Y
    folds
        Outer folds, as for the models.
    subsets
        Labels of the participants of each subset.
    alphas : (n_alphas,) float
    score
        ``score(predictions, fold)`` gives (n_targets,) held-out scores.
    device, max_block_bytes
        As for :func:`fit_ridge`.

    Returns
    -------
    scores : (n_subsets, n_targets) float
        Mean over folds.
    """
    sizes = {label: float(kernel.diagonal().mean()) for label, kernel in kernels.items()}
    common = float(np.mean(list(sizes.values())))
    scores = []
    for subset in subsets:
        gram = kernels[subset[0]] * (common / sizes[subset[0]] / len(subset))
        for label in subset[1:]:
            gram.add_(kernels[label], alpha=common / sizes[label] / len(subset))
        own = []
        for fold in folds:
            fit = fit_ridge(
                Design("kernel", gram), Y, fold, alphas=alphas, device=device, max_block_bytes=max_block_bytes
            )
            own.append(score(fit.predictions, fold))
        scores.append(np.mean(own, axis=0))
    return np.stack(scores)
