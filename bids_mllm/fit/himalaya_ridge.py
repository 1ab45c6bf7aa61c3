"""The same fit by himalaya's KernelRidgeCV: an eigendecomposition a split, in float64."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bids_mllm.fit.backend import himalaya_backend
from bids_mllm.fit.targets import Targets
from bids_mllm.records import FloatArray, Fold

if TYPE_CHECKING:
    import torch

BYTES = 8
# Arrays of the size of the predictions that scoring holds at once: predictions, difference, square.
SCORING_COPIES = 3


def solve_with_himalaya(
    gram: "torch.Tensor", targets: Targets, fold: Fold, *, alphas: Sequence[float], max_block_bytes: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return predictions (n_usable, n_test), penalties and scores (n_usable,) of one fold."""
    train_gram = gram[fold.train][:, fold.train]
    test_gram = gram[fold.test][:, fold.train]
    n_usable = len(targets.usable)
    predictions = np.empty((n_usable, len(fold.test)))
    best_alphas, score = np.empty((2, n_usable))
    per_target = BYTES * (3 * len(fold.train) + len(fold.test))
    for start, stop in targets.spans(max(1, max_block_bytes // per_target)):
        y = targets.block(start, stop, fold.train, train_gram.dtype).T
        own = _fit_block(train_gram, test_gram, y, fold, alphas, max_block_bytes, targets.device)
        predictions[start:stop], best_alphas[start:stop], score[start:stop] = own
    return predictions, best_alphas, score


def _fit_block(
    train_gram: "torch.Tensor",
    test_gram: "torch.Tensor",
    y: "torch.Tensor",
    fold: Fold,
    alphas: Sequence[float],
    max_bytes: int,
    device: str,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    from himalaya.kernel_ridge import KernelRidgeCV
    from himalaya.scoring import r2_score

    with himalaya_backend(device) as backend, warnings.catch_warnings():
        # float64 is meant: the first rows of a delayed design make its Gram matrix singular.
        warnings.filterwarnings("ignore", message="GPU backend", category=UserWarning)
        batch = _scoring_batch(fold, max_bytes)
        model = KernelRidgeCV(
            alphas=np.asarray(alphas, dtype=np.float64),
            kernel="precomputed",
            cv=list(fold.inner),
            solver_params={
                "score_func": r2_score,
                "local_alpha": True,
                "n_alphas_batch": 1,
                "n_targets_batch": batch,
                "n_targets_batch_refit": batch,
            },
            Y_in_cpu=False,
        )
        model.fit(train_gram, y)
        results = (model.predict(test_gram), model.best_alphas_, model.cv_scores_)
        predictions, chosen, score = (backend.to_numpy(value) for value in results)
    # himalaya hands alpha back through a logarithm, so it is matched with the grid again.
    nearest = np.abs(np.log(chosen)[:, None] - np.log(alphas)).argmin(axis=1)
    return predictions.T, np.asarray(alphas)[nearest], score


def _scoring_batch(fold: Fold, max_bytes: int) -> int:
    """Targets of which the validation predictions of one penalty fit `max_bytes`."""
    longest = max(len(held) for _, held in fold.inner)
    return max(1, max_bytes // (BYTES * SCORING_COPIES * longest))
