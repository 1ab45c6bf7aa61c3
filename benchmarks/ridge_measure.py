"""Turns of the app and a rival, how far they agree, and what share of the machine's products the app reaches."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ridge_cases import ALPHAS, DELAYS, Problem, Shape, delayed_columns, make_problem
from ridge_rivals import Fitted, Rival, column_correlation, fit_app
from scipy.linalg import cho_factor, cho_solve

from bids_mllm.fit.design import Design, delayed_design
from bids_mllm.fit.kernel_solver import kernel_task
from bids_mllm.fit.primal_solver import PrimalTask
from bids_mllm.fit.targets import Targets, prepare_targets
from bids_mllm.records import Fold

#: Difference of the cross-validated loss, as a share of the variance, below which two penalties are a tie.
TIE = 1e-5
#: Targets over training rows from which the count of operations is that of stacked operators.
MANY_TARGETS = 2.0
GEMM_SIZE = {"cpu": 1536, "cuda": 8192}
WALL, CPU = 0, 1


def clock(device: str) -> np.ndarray:
    """Wall and CPU seconds, when the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def timed(call: Callable[[], Any], device: str) -> tuple[Any, np.ndarray]:
    """Return what a call gave, and its wall and CPU seconds."""
    gc.collect()
    before = clock(device)
    gave = call()
    return gave, clock(device) - before


@dataclass(frozen=True)
class Agreement:
    """How two fits of one feature space differ, over its targets.

    Attributes
    ----------
    same : (n_targets,) bool
        The same penalty.
    tie : (n_targets,) bool
        Another penalty, whose loss differs by less than `TIE`; False where that was not looked into.
    app_better : (n_targets,) bool
        Another penalty and no tie, with the lower loss on the app's side.
    dr : (n_targets,) float
        Absolute difference of the test correlations.
    """

    same: np.ndarray
    tie: np.ndarray
    app_better: np.ndarray
    dr: np.ndarray


@dataclass(frozen=True)
class Turns:
    """The app and a rival in turns over feature spaces.

    Attributes
    ----------
    app, rival : (n_pairs, 2) float
        Wall and CPU seconds of every turn; those of the app with the share of one space in the preparation of Y.
    delays : (n_pairs, 2) float
        What building the delayed columns took, on neither side.
    agreements
    """

    app: np.ndarray
    rival: np.ndarray
    delays: np.ndarray
    agreements: tuple[Agreement, ...]

    def ratio(self, which: int) -> tuple[float, float, float]:
        """Return median, lowest and highest ratio of a rival's seconds over those of the app, pair by pair."""
        ratios = self.rival[:, which] / self.app[:, which]
        return float(np.median(ratios)), float(ratios.min()), float(ratios.max())

    def over_targets(self, name: str) -> np.ndarray:
        """Join one attribute of all agreements."""
        return np.concatenate([getattr(agreement, name) for agreement in self.agreements])


def direct_losses(delayed: np.ndarray, Y: np.ndarray, fold: Fold, numbers: Sequence[int]) -> np.ndarray:
    """Cross-validated loss ``1 - mean R2`` of some penalties by a float64 solve in each split.

    Parameters
    ----------
    delayed : (n_train, n_columns) float
    Y : (n_train, n_targets) float
    fold
    numbers
        Which of `ALPHAS`.

    Returns
    -------
    losses : (n_numbers, n_targets) float
    """
    gram = delayed.astype(np.float64) @ delayed.astype(np.float64).T
    losses = np.zeros((len(numbers), Y.shape[1]))
    for fit, held in fold.inner:
        own, across, y = gram[np.ix_(fit, fit)], gram[np.ix_(held, fit)], Y[held].astype(np.float64)
        for row, number in zip(losses, numbers, strict=True):
            factor = cho_factor(own + ALPHAS[number] * np.eye(len(own)), lower=True, overwrite_a=True)
            residual = y - across @ cho_solve(factor, Y[fit].astype(np.float64))
            row += (residual**2).mean(axis=0) / y.var(axis=0) / len(fold.inner)
    return losses


def correlation_of(fitted: Fitted, problem: Problem) -> np.ndarray:
    """Correlation of predictions and Y in the test rows, in float64."""
    return column_correlation(fitted.predictions.astype(np.float64), problem.y_test.astype(np.float64))


def compare(app: Fitted, rival: Fitted, problem: Problem, delayed: np.ndarray, *, look_into: bool) -> Agreement:
    """Compare penalties and test correlations; `look_into` whether other penalties are ties."""
    same = np.isclose(app.best_alphas, rival.best_alphas, rtol=1e-6)
    tie, app_better = np.zeros((2, len(same)), dtype=bool)
    others = np.flatnonzero(~same)
    if look_into and len(others):
        places = [np.abs(ALPHAS[:, None] - fit.best_alphas[others]).argmin(axis=0) for fit in (app, rival)]
        numbers = np.unique(places)
        n_train = problem.shape.n_train
        losses = direct_losses(delayed[:n_train], problem.Y[:n_train, others], problem.shape.fold(), numbers.tolist())
        of_app, of_rival = (losses[np.searchsorted(numbers, place), np.arange(len(others))] for place in places)
        tie[others] = np.abs(of_app - of_rival) < TIE
        app_better[others] = ~tie[others] & (of_app < of_rival)
    return Agreement(same, tie, app_better, np.abs(correlation_of(app, problem) - correlation_of(rival, problem)))


def prepare_y(problem: Problem, device: str) -> tuple[Targets, np.ndarray]:
    """Prepare Y once for all feature spaces, and return what that took."""
    return timed(lambda: prepare_targets(problem.Y, (problem.shape.fold(),), device=device), device)


@dataclass(frozen=True)
class Budget:
    """How many feature spaces a rival is timed on: `n_spaces`, or fewer once `seconds` are over, `least` at least."""

    n_spaces: int
    seconds: float
    least: int = 1


def take_turns(problem: Problem, rival: Rival, budget: Budget, device: str, *, exact: bool) -> Turns:
    """Time the app and a rival in turns, space by space.

    Parameters
    ----------
    problem
    rival
    budget
    device
    exact
        Whether the rival minimises the same loss, so that other penalties are to be looked into.
    """
    shape, begin = problem.shape, time.perf_counter()
    fold = shape.fold()
    targets, preparing = prepare_y(problem, device)
    app_s, rival_s, delays_s, agreements = [], [], [], []
    for number in range(budget.n_spaces):
        if number >= budget.least and time.perf_counter() - begin > budget.seconds:
            break
        X = problem.space(number)
        delayed, building = timed(lambda X=X: delayed_columns(X, shape), device)
        data = rival.ready(delayed, problem.Y, fold, device)
        app, of_app = timed(lambda X=X: fit_app(X, targets, shape, device), device)
        other, of_rival = timed(lambda data=data: rival.fit(data), device)
        app_s.append(of_app + preparing / budget.n_spaces)
        rival_s.append(of_rival)
        delays_s.append(building)
        agreements.append(compare(app, other, problem, delayed, look_into=exact))
    return Turns(np.array(app_s), np.array(rival_s), np.array(delays_s), tuple(agreements))


def gemm_rate(device: str, which: int) -> float:
    """Best rate of three float32 matrix products, GFLOP/s by the wall or the CPU clock."""
    n = GEMM_SIZE[device.partition(":")[0]]
    a, b = torch.randn((2, n, n), device=device)
    timed(lambda: a @ b, device)
    return 2e-9 * n**3 / min(float(timed(lambda: a @ b, device)[1][which]) for _ in range(3))


def useful_flops(shape: Shape) -> float:
    """Operations that one feature space needs, in the form that the app takes.

    With T training rows, N volumes, D columns, p = D x delays, V targets, A penalties, n_b rows of split b and m test
    rows:

    - kernel: Gram matrix ``N^2 D`` (half of it, mirrored); factor and inverse ``A T^3``, also where one
      eigendecomposition stands for them; predictions ``2 T m V``.
      Few targets: ``A (2 T^2 V + sum_b (n_b^3 + 2 n_b^2 V))``. Many: ``A (sum_b 2 n_b^2 T + 4/3 T^3 + T^2 V)``,
      operators, their reduction to a triangle and its product with Y.
    - primal (p at most T / 2): ``T p^2``, ``4 T p V`` for X'Y of all rows and of each split's, then
      ``A sum_b (p^3 / 3 + 2 p^2 n_b) + A 2 T p V`` and predictions ``2 p m V``.

    Copies, the shifted sums and the estimate of the precision count for nothing.
    """
    T, D, V, m, A = shape.n_train, shape.n_features, shape.n_targets, shape.n_test, len(ALPHAS)
    held = np.array([len(held) for _, held in shape.fold().inner], dtype=float)
    p, volumes = D * len(DELAYS), len(shape.run_of_volume)
    if p <= T / 2:
        return T * p**2 + 4 * T * p * V + A * ((p**3 / 3 + 2 * p**2 * held).sum() + 2 * T * p * V) + 2 * p * m * V
    common = volumes**2 * D + A * T**3 + 2 * T * m * V
    if V > MANY_TARGETS * T:
        return common + A * (2 * (held**2).sum() * T + 4 / 3 * T**3 + T**2 * V)
    return common + A * (2 * T**2 * V + (held**3 + 2 * held**2 * V).sum())


def stages(problem: Problem, device: str) -> dict[str, float]:
    """Return seconds of the design and the rest of one space, and how many penalties took a float64 factor."""
    shape = problem.shape
    X, fold = problem.space(0), shape.fold()
    targets, preparing = prepare_y(problem, device)
    design, building = timed(lambda: delayed_design(X, shape.rows(), device=device), device)
    return {
        "prepare_y_s": round(float(preparing[WALL]), 4),
        "design_s": round(float(building[WALL]), 4),
        "float64_alphas": n_float64(design, targets, fold),
    }


def n_float64(design: Design, targets: Targets, fold: Fold) -> int:
    """How many penalties of the grid the app factors in float64."""
    task = kernel_task(targets, fold) if design.form == "kernel" else PrimalTask
    work = task(design.values, targets, fold, alphas=ALPHAS.tolist(), precision="auto", max_block_bytes=2**31)
    work.solve()
    return sum(dtype == torch.float64 for dtype in work.dtypes)


def seconds_of(shape: Shape, n_spaces: int, device: str, which: int) -> float:
    """Seconds of the app for some feature spaces, Y's preparation with them."""
    problem = make_problem(shape, "random")
    targets, preparing = prepare_y(problem, device)
    total = float(preparing[which])
    for number in range(n_spaces):
        X = problem.space(number)
        total += float(timed(lambda X=X: fit_app(X, targets, shape, device), device)[1][which])
    return total


def growth(device: str, which: int, *, quick: bool) -> dict[str, dict[str, float]]:
    """Seconds of the app over the number of rows, columns, targets and feature spaces, one varied at a time."""
    T, D, V = (200, 128, 200) if quick else (1000, 512, 1000)
    sizes = {
        "T": [(T * k, D, V, 1) for k in (1, 2, 3)],
        "D": [(T, D * k, V, 1) for k in (1, 2, 4)],
        "V": [(T, D, V * k, 1) for k in (1, 4, 16)],
        "spaces": [(T, D, V, n) for n in (1, 3, 10)],
    }
    seconds_of(Shape("first", T, D, V, 10, 5), 1, device, which)
    return {
        what: {
            str(size["TDV".index(what)] if what in "TDV" else size[3]): seconds_of(
                Shape("grown", *size[:3], 10, 5), size[3], device, which
            )
            for size in row
        }
        for what, row in sizes.items()
    }
