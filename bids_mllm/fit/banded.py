"""Banded ridge: one weight a band and one penalty, chosen per target inside the training rows.

The weights of the bands and the penalty minimise ``||y - sum_i X_i w_i||^2 + alpha sum_i ||w_i||^2 / g_i``, which is
kernel ridge on ``sum_i g_i K_i`` (Dupré la Tour et al. 2022, NeuroImage). The g of a target are looked for among given
points of the simplex, as in himalaya's random search; every point costs one ridge fit of the exact solver.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bids_mllm.fit.backend import himalaya_backend
from bids_mllm.fit.design import Design
from bids_mllm.fit.fold_task import part
from bids_mllm.fit.ridge import SOLVERS, Solver, decompose, dual_weights, fit_ridge
from bids_mllm.fit.targets import Targets, prepare_targets
from bids_mllm.records import FloatArray, Fold
from bids_mllm.validation import check_in_allowed, check_same_samples

if TYPE_CHECKING:
    import torch

# Concentrations of himalaya's default search: sparse weights and even ones.
CONCENTRATION = (0.1, 1.0)


@dataclass(frozen=True)
class BandedFit:
    """Banded ridge on one training set.

    Attributes
    ----------
    band_predictions : (n_bands, n_test, n_targets) float32
        What each band adds to the prediction; their sum is the prediction.
    band_weights : (n_bands, n_targets) float
        Chosen weights g, which sum to 1.
    best_alphas, cv_r2 : (n_targets,) float
        As for a ridge on one feature space.
    """

    band_predictions: FloatArray
    band_weights: FloatArray
    best_alphas: FloatArray
    cv_r2: FloatArray

    @property
    def predictions(self) -> FloatArray:
        """Prediction of all bands together, (n_test, n_targets)."""
        total: FloatArray = self.band_predictions.sum(axis=0)
        return total


def band_weights(n_bands: int, n_points: int = 20, *, seed: int = 0) -> FloatArray:
    """Points of the simplex to search, (n_points, n_bands).

    For two bands they are evenly spaced with both corners. For more, the corners (each band alone) and the middle come
    first, then draws from the Dirichlet distributions of himalaya's random search.

    Parameters
    ----------
    n_bands
    n_points
        At least ``n_bands + 1``.
    seed
    """
    if n_bands < 1 or n_points < n_bands + 1:
        raise ValueError(f"{n_points} points are asked for {n_bands} bands, but at least {n_bands + 1} are needed.")
    if n_bands == 2:
        first = np.linspace(0.0, 1.0, n_points)
        return np.column_stack([first, 1.0 - first])
    fixed = np.vstack([np.eye(n_bands), np.full((1, n_bands), 1.0 / n_bands)])
    rng = np.random.default_rng(seed)
    n_drawn = n_points - len(fixed)
    drawn = [rng.dirichlet(np.full(n_bands, CONCENTRATION[number % 2])) for number in range(n_drawn)]
    return np.vstack([fixed, *drawn]) if drawn else fixed


def gram_of(design: Design) -> "torch.Tensor":
    """Gram matrix (n_rows, n_rows) float64 of a design of either form."""
    return design.values if design.form == "kernel" else design.values @ design.values.T


def band_kernels(designs: Sequence[Design], fold: Fold) -> "list[torch.Tensor]":
    """Gram matrices of the bands, brought to the same mean diagonal over the training rows.

    So a band does not count for more because it has more columns; the common value is the mean over the bands, which
    keeps the scale of the penalties.
    """
    import torch

    grams = [gram_of(one) for one in designs]
    for number, gram in enumerate(grams):
        check_same_samples("Band 0", len(grams[0]), f"band {number}", len(gram))
    train = torch.as_tensor(fold.train, device=grams[0].device)
    sizes = [float(gram.diagonal()[train].mean()) for gram in grams]
    positive = [size for size in sizes if size > 0]
    common = float(np.mean(positive)) if positive else 1.0
    return [gram * (common / size) if size > 0 else gram for gram, size in zip(grams, sizes, strict=True)]


def fit_banded(
    designs: Sequence[Design],
    Y: Targets | FloatArray,
    fold: Fold,
    *,
    alphas: FloatArray,
    weights: FloatArray | None = None,
    solver: Solver = "exact",
    device: str = "cpu",
    max_block_bytes: int = 2**31,
) -> BandedFit:
    """Fit bands of features jointly, with the weights of the bands chosen for each target.

    Parameters
    ----------
    designs
        One a band, over the same rows.
    Y : Targets or (n_rows, n_targets) float
        z-scored per run.
    fold
    alphas : (n_alphas,) float
    weights : (n_points, n_bands) float
        Points of the simplex to search, from :func:`band_weights` when None.
    solver
        ``exact``: one fit of the exact solver a point. ``himalaya``: its multiple-kernel random search over the same
        points, in float64.
    device, max_block_bytes
        As for :func:`fit_ridge`.

    Returns
    -------
    fit : BandedFit
        Of points with equal scores the first is taken. NaN in targets that are set aside.
    """
    check_in_allowed(solver, SOLVERS, "solver")
    points = (
        band_weights(len(designs), max(20, len(designs) + 2))
        if weights is None
        else np.asarray(weights, dtype=np.float64)
    )
    if points.ndim != 2 or points.shape[1] != len(designs) or (points < 0).any() or (points.sum(axis=1) <= 0).any():
        raise ValueError(
            f"The weights have the shape {points.shape}, but must be (n_points, {len(designs)}), not negative and not "
            "all zero in any point."
        )
    wide = "float64" if solver == "himalaya" else "float32"
    targets = Y if isinstance(Y, Targets) else prepare_targets(Y, (fold,), device=device, dtype=wide)
    kernels = band_kernels(designs, fold)
    search = _search_with_himalaya if solver == "himalaya" else _search
    best, best_alphas, score = search(kernels, targets, fold, points, alphas, device, max_block_bytes)
    predictions = _band_predictions(kernels, targets, fold, points, best, best_alphas, max_block_bytes)
    return _expanded(targets, predictions, points[best].T, best_alphas, score)


def _mixed(kernels: "Sequence[torch.Tensor]", point: FloatArray) -> "torch.Tensor":
    total = kernels[0] * float(point[0])
    for kernel, weight in zip(kernels[1:], point[1:], strict=True):
        if weight > 0:
            total.add_(kernel, alpha=float(weight))
    return total


def _search(
    kernels: "Sequence[torch.Tensor]",
    targets: Targets,
    fold: Fold,
    points: FloatArray,
    alphas: FloatArray,
    device: str,
    max_block_bytes: int,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    n_usable = len(targets.usable)
    best = np.zeros(n_usable, dtype=int)
    best_alphas, score = np.full((2, n_usable), np.nan)
    for number, point in enumerate(points):
        design = Design("kernel", _mixed(kernels, point))
        fit = fit_ridge(design, targets, fold, alphas=alphas, device=device, max_block_bytes=max_block_bytes)
        own, own_alphas = fit.cv_r2[targets.usable], fit.best_alphas[targets.usable]
        better = (own > score) | (np.isnan(score) & np.isfinite(own))
        best[better], best_alphas[better], score[better] = number, own_alphas[better], own[better]
    return best, best_alphas, score


def _search_with_himalaya(
    kernels: "Sequence[torch.Tensor]",
    targets: Targets,
    fold: Fold,
    points: FloatArray,
    alphas: FloatArray,
    device: str,
    max_block_bytes: int,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search
    from himalaya.scoring import r2_score

    scores, chosen = [], []
    with himalaya_backend(device) as backend, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="GPU backend", category=UserWarning)
        train = backend.asarray(fold.train, device=targets.device)
        Ks = backend.stack([kernel[train][:, train] for kernel in kernels])
        Y = targets.block(0, len(targets.usable), fold.train, kernels[0].dtype).T
        for point in points:
            _, _, cv_scores, best = solve_multiple_kernel_ridge_random_search(
                Ks, Y, n_iter=backend.asarray(point[None] / point.sum(), dtype=Ks.dtype, device=targets.device),
                alphas=np.asarray(alphas, dtype=np.float64), score_func=r2_score, cv=list(fold.inner),
                progress_bar=False, return_alphas=True, return_weights="dual", n_alphas_batch=1,
                n_targets_batch=max(1, max_block_bytes // (8 * 8 * len(fold.train))),
            )  # fmt: skip
            scores.append(backend.to_numpy(cv_scores)[0])
            chosen.append(backend.to_numpy(best))
    stacked = np.stack(scores)
    first = stacked.argmax(axis=0)
    place = np.arange(stacked.shape[1])
    grid = np.asarray(alphas, dtype=np.float64)
    given = np.stack(chosen)[first, place] * points[first].sum(axis=1)
    nearest = np.abs(np.log(given)[:, None] - np.log(grid)).argmin(axis=1)
    return first, grid[nearest], stacked[first, place]


def _band_predictions(
    kernels: "Sequence[torch.Tensor]",
    targets: Targets,
    fold: Fold,
    points: FloatArray,
    best: FloatArray,
    best_alphas: FloatArray,
    max_block_bytes: int,
) -> FloatArray:
    """``g_i K_i,test c`` with the dual weights c of the joint fit, (n_bands, n_usable, n_test)."""
    predictions = np.zeros((len(kernels), len(best), len(fold.test)), dtype=np.float32)
    test_kernels = [part(kernel, fold.test, fold.train) for kernel in kernels]
    size = max(1, max_block_bytes // (4 * 8 * len(fold.train)))
    for number in np.unique(best[np.isfinite(best_alphas)]):
        eigen = decompose(_mixed(kernels, points[number]), fold)
        mine = np.flatnonzero((best == number) & np.isfinite(best_alphas))
        for start in range(0, len(mine), size):
            which = mine[start : start + size]
            own = dual_weights(eigen, targets, fold, which=which, best_alphas=best_alphas[which])
            for band, kernel in enumerate(test_kernels):
                if points[number, band] > 0:
                    predictions[band, which] = (own @ kernel.T * float(points[number, band])).cpu().numpy()
    return predictions


def _expanded(
    targets: Targets, predictions: FloatArray, weights: FloatArray, best_alphas: FloatArray, score: FloatArray
) -> BandedFit:
    n_bands, _, n_test = predictions.shape
    full = np.full((n_bands, targets.n_targets, n_test), np.nan, dtype=np.float32)
    full[:, targets.usable] = predictions
    chosen = np.full((n_bands, targets.n_targets), np.nan)
    chosen[:, targets.usable] = np.where(np.isfinite(best_alphas), weights, np.nan)
    alphas, scores = np.full((2, targets.n_targets), np.nan)
    alphas[targets.usable], scores[targets.usable] = best_alphas, score
    return BandedFit(full.transpose(0, 2, 1), chosen, alphas, scores)
