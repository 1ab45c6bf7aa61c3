"""The app's ridge and what it is measured against, each as one call on data that lie ready.

The app is handed undelayed features and builds what it needs of them, every time anew. The others are handed delayed
columns, and Y on their device; making these is not counted against them.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.ridge import RidgeCV
from ridge_cases import ALPHAS, Shape
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV as LeaveOneOutRidge

from bids_mllm.fit.backend import himalaya_backend
from bids_mllm.fit.design import delayed_design
from bids_mllm.fit.ridge import fit_ridge
from bids_mllm.fit.targets import Targets
from bids_mllm.records import Fold

#: Random held-out sets of the bootstrap ridge, fewer than the 15 to 50 of the scripts in use; rows of a chunk; share.
N_BOOTS, CHUNK_ROWS, HELD_SHARE = 5, 40, 0.2


@dataclass(frozen=True)
class Fitted:
    """What a fit of one feature space gives.

    Attributes
    ----------
    best_alphas : (n_targets,) float
    predictions : (n_test, n_targets) float
    """

    best_alphas: np.ndarray
    predictions: np.ndarray


@dataclass(frozen=True)
class Columns:
    """What a rival is handed: NumPy arrays, or tensors on its device."""

    train: Any
    test: Any
    Y: Any
    fold: Fold
    device: str


@dataclass(frozen=True)
class Rival:
    """Another way to fit the same ridge.

    Attributes
    ----------
    label
        For the table.
    fit
    on_device
        Whether it takes tensors, on a GPU where there is one.
    dtype
        Of its data.
    """

    label: str
    fit: Callable[[Columns], Fitted]
    on_device: bool = False
    dtype: str = "float32"

    def ready(self, delayed: np.ndarray, Y: np.ndarray, fold: Fold, device: str) -> Columns:
        """Cut training and test rows, which are consecutive, and place them; views where nothing need change."""
        n_train = len(fold.train)
        parts = [part.astype(self.dtype, copy=False) for part in (delayed[:n_train], delayed[n_train:], Y[:n_train])]
        if self.on_device:
            return Columns(*(torch.from_numpy(part).to(device) for part in parts), fold, device)
        return Columns(*parts, fold, device)


def fit_app(X: np.ndarray, targets: Targets, shape: Shape, device: str) -> Fitted:
    """Fit by the app, from undelayed features to predictions."""
    design = delayed_design(X, shape.rows(), device=device)
    fit = fit_ridge(design, targets, shape.fold(), alphas=ALPHAS, device=device)
    return Fitted(fit.best_alphas, fit.predictions)


def _fit_himalaya(model: Any, data: Columns) -> Fitted:
    with himalaya_backend(data.device) as backend, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(data.train, data.Y)
        predictions = backend.to_numpy(model.predict(data.test))
        chosen = backend.to_numpy(model.best_alphas_)
    return Fitted(on_grid(chosen), predictions)


def fit_kernel_ridge_cv(data: Columns) -> Fitted:
    """KernelRidgeCV of himalaya with its own batches."""
    return _fit_himalaya(KernelRidgeCV(alphas=ALPHAS, cv=list(data.fold.inner)), data)


def fit_ridge_cv(data: Columns) -> Fitted:
    """RidgeCV of himalaya with its own batches."""
    return _fit_himalaya(RidgeCV(alphas=ALPHAS, cv=list(data.fold.inner)), data)


def draw_held(n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Draw chunks of consecutive rows at random until the share to be held out is reached, (n_rows,) bool."""
    n_chunks = max(2, -(-n_rows // CHUNK_ROWS))
    held = np.zeros(n_rows, dtype=bool)
    for chunk in rng.permutation(n_chunks)[: max(1, round(HELD_SHARE * n_chunks))]:
        held[np.arange(n_rows) * n_chunks // n_rows == chunk] = True
    return held


def column_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of the columns of two arrays, in their precision; 0 where one does not vary."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    return np.divide((a * b).sum(axis=0), scale, out=np.zeros_like(scale), where=scale > 0)


def fit_bootstrap(data: Columns) -> Fitted:
    """Ridge by SVD, the penalty by correlation in random held-out chunks, as the field's older scripts do it."""
    rng = np.random.default_rng(0)
    total = np.zeros((len(ALPHAS), data.Y.shape[1]))
    for _ in range(N_BOOTS):
        held = draw_held(len(data.train), rng)
        left, size, right = np.linalg.svd(data.train[~held], full_matrices=False)
        rotated, projected = left.T @ data.Y[~held], data.train[held] @ right.T
        for row, alpha in zip(total, ALPHAS.astype(size.dtype), strict=True):
            row += column_correlation((projected * (size / (size**2 + alpha))) @ rotated, data.Y[held])
    chosen = total.argmax(axis=0)
    left, size, right = np.linalg.svd(data.train, full_matrices=False)
    rotated = left.T @ data.Y
    weights = np.empty((data.train.shape[1], data.Y.shape[1]), dtype=data.train.dtype)
    for number in np.unique(chosen):
        mine = chosen == number
        shrunk = size / (size**2 + size.dtype.type(ALPHAS[number]))
        weights[:, mine] = right.T @ (shrunk[:, None] * rotated[:, mine])
    return Fitted(ALPHAS[chosen], data.test @ weights)


def fit_sklearn(data: Columns) -> Fitted:
    """scikit-learn's KernelRidge, fitted for each split and penalty; the same splits and grid."""
    gram = data.train @ data.train.T
    loss = np.zeros((len(ALPHAS), data.Y.shape[1]))
    for fit, held in data.fold.inner:
        own, across = gram[np.ix_(fit, fit)], gram[np.ix_(held, fit)]
        for row, alpha in zip(loss, ALPHAS, strict=True):
            model = KernelRidge(alpha=alpha, kernel="precomputed").fit(own, data.Y[fit])
            row += ((data.Y[held] - model.predict(across)) ** 2).mean(axis=0)
    chosen = loss.argmin(axis=0)
    across = data.test @ data.train.T
    predictions = np.empty((len(data.test), data.Y.shape[1]), dtype=data.Y.dtype)
    for number in np.unique(chosen):
        mine = chosen == number
        model = KernelRidge(alpha=ALPHAS[number], kernel="precomputed").fit(gram, data.Y[:, mine])
        predictions[:, mine] = model.predict(across)
    return Fitted(ALPHAS[chosen], predictions)


def fit_leave_one_out(data: Columns) -> Fitted:
    """scikit-learn's RidgeCV as most call it: leave one row out, a penalty for each target. Its penalties differ."""
    model = LeaveOneOutRidge(alphas=ALPHAS, fit_intercept=False, alpha_per_target=True)
    model.fit(data.train, data.Y)
    return Fitted(np.asarray(model.alpha_), model.predict(data.test))


def on_grid(alphas: np.ndarray) -> np.ndarray:
    """Return the grid's own values; himalaya hands penalties back through a logarithm in float32."""
    nearest = np.abs(np.log(alphas.astype(np.float64))[:, None] - np.log(ALPHAS)).argmin(axis=1)
    return ALPHAS[nearest]


RIVALS = {
    "kernelridgecv": Rival("himalaya KernelRidgeCV", fit_kernel_ridge_cv, on_device=True),
    "kernelridgecv_float64": Rival(
        "himalaya KernelRidgeCV, float64", fit_kernel_ridge_cv, on_device=True, dtype="float64"
    ),
    "ridgecv": Rival("himalaya RidgeCV", fit_ridge_cv, on_device=True),
    "bootstrap": Rival(f"bootstrap ridge, {N_BOOTS} draws", fit_bootstrap),
    "sklearn": Rival("scikit-learn KernelRidge, loop", fit_sklearn),
    "sklearn_loo": Rival("scikit-learn RidgeCV, other alphas", fit_leave_one_out),
}
