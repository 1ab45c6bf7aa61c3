"""Ridge regression of many targets on one feature space, with the penalty chosen per target.

Features and targets are z-scored per run before they come here, so no intercept is fitted: the mean of
a set of whole runs is zero. Everything is computed in float64, since the first rows of a Gram matrix of
delayed features make it singular.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bids_mllm.fit.backend import himalaya_backend
from bids_mllm.records import BoolArray, FloatArray, Fold, IntArray, RidgeFit
from bids_mllm.validation import check_finite, check_same_samples

BYTES = 8
# Arrays of the size of the predictions that scoring holds at once: predictions, difference, square.
SCORING_COPIES = 3
# Targets checked at once, so that no copy of all targets is made.
CHECKED_TARGETS = 4096


def alpha_grid(low: float = 1e-1, high: float = 1e9, n: int = 11) -> FloatArray:
    """Penalties in equal logarithmic steps, shape (n,).

    The Gram matrix of z-scored features has a trace of rows times columns, up to 1e8, most of it in few
    directions; useful penalties range from below one row's share to the whole trace. The default grid
    covers that in decades.
    """
    if not 0 < low < high or n < 2:
        raise ValueError(f"The grid runs from {low:g} to {high:g} in {n} steps, but must rise from above 0.")
    return np.logspace(np.log10(low), np.log10(high), n)


def alpha_at_edge(best_alphas: FloatArray, alphas: FloatArray) -> BoolArray:
    """True where the chosen penalty is the first or the last of the grid; False where it is NaN."""
    low, high = np.min(alphas), np.max(alphas)
    at_edge: BoolArray = np.isclose(best_alphas, low, rtol=1e-6) | np.isclose(best_alphas, high, rtol=1e-6)
    return at_edge


def linear_gram(X: FloatArray, *, device: str = "cpu") -> NDArray[np.float64]:
    """Gram matrix ``X X'`` in float64, shape (n_rows, n_rows); all folds share it.

    Parameters
    ----------
    X : (n_rows, n_features) float
        Delayed features, z-scored per run.
    device
        ``"cpu"`` or ``"cuda"``: where the product is computed.
    """
    import torch

    check_finite("X", X)
    rows = torch.as_tensor(np.ascontiguousarray(X, dtype=np.float64), device=device)
    gram: NDArray[np.float64] = (rows @ rows.T).cpu().numpy()
    return gram


def fit_ridge(
    gram: FloatArray,
    Y: FloatArray,
    fold: Fold,
    *,
    alphas: FloatArray,
    device: str = "cpu",
    max_block_bytes: int = 2**31,
) -> RidgeFit:
    """Fit the training rows of a fold, choose alpha for each target inside them, predict the test rows.

    The weights minimise ``||y - X w||^2 + alpha ||w||^2``. For each target, the alpha with the highest
    mean over inner splits of the validation R2 is taken; `cv_r2` is that mean. R2 is
    ``1 - sum((y - p)^2) / sum((y - mean(y))^2)`` over the validation rows of a split.

    Parameters
    ----------
    gram : (n_rows, n_rows) float
        From :func:`linear_gram` over all stacked rows.
    Y : (n_rows, n_targets) float
        Targets, z-scored per run.
    fold
        Train and test rows, and the inner splits.
    alphas : (n_alphas,) float
    device
        ``"cpu"`` or ``"cuda"``.
    max_block_bytes
        Bound of the working arrays of one block of targets; smaller blocks repeat the factorisations.

    Returns
    -------
    fit : RidgeFit
        NaN in targets that are not finite or do not vary in the training rows. A feature space without
        variance in the training rows predicts 0 and has NaN for `best_alphas` and `cv_r2`.
    """
    check_same_samples("gram", len(gram), "Y", len(Y))
    n_targets = Y.shape[1]
    usable = _usable_targets(Y, fold)
    predictions = np.full((len(fold.test), n_targets), np.nan)
    best_alphas, cv_r2 = np.full((2, n_targets), np.nan)
    train_gram = np.ascontiguousarray(gram[np.ix_(fold.train, fold.train)], dtype=np.float64)
    if not np.any(np.diagonal(train_gram) > 0):
        predictions[:, usable] = 0.0
        return RidgeFit(predictions, best_alphas, cv_r2)
    test_gram = np.ascontiguousarray(gram[np.ix_(fold.test, fold.train)], dtype=np.float64)
    for block in _target_blocks(usable, fold, max_block_bytes):
        targets = np.ascontiguousarray(Y[np.ix_(fold.train, block)], dtype=np.float64)
        fitted = _fit_block(
            train_gram, test_gram, targets, fold, alphas=alphas, device=device, max_bytes=max_block_bytes
        )
        predictions[:, block], best_alphas[block], cv_r2[block] = fitted
    return RidgeFit(predictions, best_alphas, cv_r2)


def _usable_targets(Y: FloatArray, fold: Fold) -> IntArray:
    """Targets that are finite in train and test rows and vary in the training rows."""
    usable: BoolArray = np.zeros(Y.shape[1], dtype=bool)
    for start in range(0, Y.shape[1], CHECKED_TARGETS):
        columns = slice(start, start + CHECKED_TARGETS)
        train, test = Y[fold.train, columns], Y[fold.test, columns]
        finite = np.isfinite(train).all(axis=0) & np.isfinite(test).all(axis=0)
        usable[columns] = finite & (np.ptp(train, axis=0) > 0)
    return np.flatnonzero(usable)


def _target_blocks(usable: IntArray, fold: Fold, max_bytes: int) -> Sequence[IntArray]:
    """Blocks of targets whose training values, dual weights (twice) and predictions fit `max_bytes`."""
    per_target = BYTES * (3 * len(fold.train) + len(fold.test))
    size = max(1, max_bytes // per_target)
    return [usable[start : start + size] for start in range(0, len(usable), size)]


def _fit_block(
    train_gram: FloatArray,
    test_gram: FloatArray,
    targets: FloatArray,
    fold: Fold,
    *,
    alphas: FloatArray,
    device: str,
    max_bytes: int,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    from himalaya.kernel_ridge import KernelRidgeCV
    from himalaya.scoring import r2_score

    with himalaya_backend(device) as backend, warnings.catch_warnings():
        # float64 is meant: see the module's docstring.
        warnings.filterwarnings("ignore", message="GPU backend", category=UserWarning)
        model = KernelRidgeCV(
            alphas=np.asarray(alphas, dtype=np.float64),
            kernel="precomputed",
            cv=list(fold.inner),
            solver_params={
                "score_func": r2_score,
                "local_alpha": True,
                "n_alphas_batch": 1,
                "n_targets_batch": _scoring_batch(fold, max_bytes),
                "n_targets_batch_refit": _scoring_batch(fold, max_bytes),
            },
            Y_in_cpu=False,
        )
        model.fit(train_gram, targets)
        results = (model.predict(test_gram), model.best_alphas_, model.cv_scores_)
        predictions, chosen, cv_r2 = (backend.to_numpy(value) for value in results)
    # himalaya hands alpha back through a logarithm, so it is matched with the grid again.
    nearest = np.abs(np.log(chosen)[:, None] - np.log(alphas)).argmin(axis=1)
    return predictions, np.asarray(alphas)[nearest], cv_r2


def _scoring_batch(fold: Fold, max_bytes: int) -> int:
    """Targets of which the validation predictions of one alpha fit `max_bytes`."""
    longest = max(len(held) for _, held in fold.inner)
    return max(1, max_bytes // (BYTES * SCORING_COPIES * longest))
