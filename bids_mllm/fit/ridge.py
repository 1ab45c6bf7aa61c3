"""Ridge regression of many targets on one feature space, with the penalty chosen per target.

Features and targets are z-scored per run before they come here, so no intercept is fitted: the mean of a set of whole
runs is zero.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np

from bids_mllm.fit.backend import check_device
from bids_mllm.fit.design import Design, feature_design
from bids_mllm.fit.fold_task import part
from bids_mllm.fit.himalaya_ridge import solve_with_himalaya
from bids_mllm.fit.kernel_solver import Eigen, kernel_task
from bids_mllm.fit.precision import Precision
from bids_mllm.fit.primal_solver import PrimalTask
from bids_mllm.fit.targets import Targets, prepare_targets
from bids_mllm.records import BoolArray, FloatArray, Fold, IntArray, RidgeFit
from bids_mllm.validation import check_in_allowed, check_same_samples

if TYPE_CHECKING:
    import torch

Solver = Literal["exact", "himalaya"]
SOLVERS = ("exact", "himalaya")


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


def fit_ridge(
    design: Design | FloatArray,
    Y: Targets | FloatArray,
    fold: Fold,
    *,
    alphas: FloatArray,
    device: str = "cpu",
    solver: Solver = "exact",
    precision: Precision = "auto",
    max_block_bytes: int = 2**31,
) -> RidgeFit:
    """Fit the training rows of a fold, choose alpha for each target inside them, predict the test rows.

    The weights minimise ``||y - X w||^2 + alpha ||w||^2``. For each target, the alpha with the highest
    mean over inner splits of the validation R2 is taken, the lower of equal ones; `cv_r2` is that mean. R2 is
    ``1 - sum((y - p)^2) / sum((y - mean(y))^2)`` over the validation rows of a split.

    Parameters
    ----------
    design : Design or (n_rows, n_features) float
        From :func:`delayed_design`, :func:`feature_design` or :func:`kernel_design`, or plain features.
    Y : Targets or (n_rows, n_targets) float
        Targets, z-scored per run; from :func:`prepare_targets` where many feature spaces share them.
    fold
        Train and test rows, and the inner splits.
    alphas : (n_alphas,) float
        Rising penalties.
    device
        ``cpu``, ``cuda`` or ``cuda:N``; that of `design` and `Y` where these are prepared.
    solver
        ``exact``: block identities and Cholesky factors, or columns where these are few. ``himalaya``: its
        KernelRidgeCV.
    precision
        ``auto``: float32 for products with Y, float64 for factors of ill-conditioned systems; ``float32`` or
        ``float64``: all of it.
    max_block_bytes
        Bound of the working arrays of one block of targets.

    Returns
    -------
    fit : RidgeFit
        NaN in targets that are not finite or do not vary in the training rows. A feature space without
        variance in the training rows predicts 0 and has NaN for `best_alphas` and `cv_r2`.
    """
    check_in_allowed(solver, SOLVERS, "solver")
    check_device(device)
    design = design if isinstance(design, Design) else feature_design(design, device=device)
    if not isinstance(Y, Targets):
        wide = precision == "float64" or solver == "himalaya"
        Y = prepare_targets(Y, (fold,), device=device, dtype="float64" if wide else "float32")
    check_same_samples("The design", design.n_rows, "Y", Y.n_rows)
    grid = np.asarray(alphas, dtype=np.float64)
    if not _varies(design, fold):
        return _constant_fit(Y, fold)
    if solver == "himalaya":
        gram = design.values if design.form == "kernel" else design.values @ design.values.T
        results = solve_with_himalaya(gram, Y, fold, alphas=grid.tolist(), max_block_bytes=max_block_bytes)
        return _expanded(Y, *results)
    task = kernel_task(Y, fold) if design.form == "kernel" else PrimalTask
    work = task(design.values, Y, fold, alphas=grid.tolist(), precision=precision, max_block_bytes=max_block_bytes)
    predictions, chosen, score = work.solve()
    return _expanded(Y, predictions.cpu().numpy(), grid[chosen.cpu().numpy()], score.cpu().numpy())


def _varies(design: Design, fold: Fold) -> bool:
    """Whether the features differ from zero in the training rows."""
    if design.form == "kernel":
        return bool((design.values.diagonal()[_index(fold.train, design)] > 0).any())
    return bool(design.values[_index(fold.train, design)].any())


def _index(rows: IntArray, design: Design) -> "torch.Tensor":
    import torch

    return torch.as_tensor(rows, device=design.values.device)


def _constant_fit(targets: Targets, fold: Fold) -> RidgeFit:
    nothing = np.full(len(targets.usable), np.nan)
    return _expanded(targets, np.zeros((len(targets.usable), len(fold.test)), dtype=np.float32), nothing, nothing)


def _expanded(targets: Targets, predictions: FloatArray, best_alphas: FloatArray, score: FloatArray) -> RidgeFit:
    """Place the usable targets among all, NaN elsewhere; predictions come as (n_usable, n_test)."""
    n_targets = targets.n_targets
    if len(targets.usable) == n_targets:
        return RidgeFit(predictions.T, best_alphas, score)
    full = np.full((n_targets, predictions.shape[1]), np.nan, dtype=predictions.dtype)
    full[targets.usable] = predictions
    alphas, scores = np.full((2, n_targets), np.nan)
    alphas[targets.usable], scores[targets.usable] = best_alphas, score
    return RidgeFit(full.T, alphas, scores)


def decompose(gram: "torch.Tensor", fold: Fold) -> Eigen:
    """Eigendecomposition of the training rows of a Gram matrix (n_rows, n_rows), in float64."""
    import torch

    values, vectors = torch.linalg.eigh(part(gram, fold.train, fold.train))
    return Eigen(values.clamp_(min=0.0), vectors)


def dual_weights(
    eigen: Eigen, targets: Targets, fold: Fold, *, which: IntArray, best_alphas: FloatArray
) -> "torch.Tensor":
    """Dual weights ``(K + alpha I)^-1 y`` of the training rows with a penalty for each target.

    Parameters
    ----------
    eigen : Eigen
        Of the Gram matrix of the training rows, from :func:`decompose`.
    targets
    fold
    which : (n_chosen,) int
        Numbers among the usable targets.
    best_alphas : (n_chosen,) float
        Their penalties.

    Returns
    -------
    weights : torch.Tensor, (n_chosen, n_train) float64
    """
    import torch

    rotated = targets.picked(which, fold.train, torch.float64) @ eigen.vectors
    penalties = torch.as_tensor(np.asarray(best_alphas, dtype=np.float64), device=eigen.values.device)
    weights: torch.Tensor = (rotated / (eigen.values + penalties[:, None])) @ eigen.vectors.T
    return weights
