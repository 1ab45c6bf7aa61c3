"""Kernel ridge by block identities: no refit in any split.

With ``Q = (K + alpha I)^-1`` over all training rows, the residual of rows C that are left out of the fit is
``e_C = (Q_CC)^-1 (Q Y)_C``, the identity behind leave-one-out errors (Allen's PRESS) for blocks. It needs no centring
inside the folds: features and targets are z-scored by run beforehand.

- `FewTask` forms ``Q Y`` and solves the small systems ``Q_CC``. Q comes from one eigendecomposition for all penalties,
  ``Q Y = V (S + alpha)^-1 (V'Y)``, or where these are few from one Cholesky factor each; penalties whose systems need
  float64 are counted apart.
- `StackedTask`, for many targets: the operators from Y to the residuals of all splits are stacked and reduced to one
  triangle, ``SSE = ||U y||^2``, half the products of a prediction; or, where splits weigh differently from target to
  target, applied as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bids_mllm.fit.fold_task import FoldTask, part
from bids_mllm.fit.precision import Precision, cholesky, spectrum, spectrum_of
from bids_mllm.fit.splits import InnerSplit, common_weights
from bids_mllm.fit.targets import Targets, as_rows
from bids_mllm.records import Fold

if TYPE_CHECKING:
    import torch

# Targets over training rows from which stacking the operators pays.
STACK_FROM = 2.0
# What an eigendecomposition costs in Cholesky factors with their inverses, by kind of device; measured on a CPU,
# assumed on a GPU.
EIGH_COST = {"cpu": 6, "cuda": 40}
# Targets copied at once for predictions.
PICKED_TARGETS = 4096
# Parts into which the triangle is cut; the products are (1 + 1/parts) / 2 of the full ones.
TRIANGLE_PARTS = 16
# Targets of one product on a CPU, so that its result stays in the cache until it is summed.
CACHED_TARGETS = 2048


class KernelTask(FoldTask):
    """A fold of a kernel."""

    def __init__(
        self,
        gram: "torch.Tensor",
        targets: Targets,
        fold: Fold,
        *,
        alphas: Sequence[float],
        precision: Precision,
        max_block_bytes: int,
    ) -> None:
        super().__init__(targets, fold, alphas=alphas, precision=precision)
        self.gram = part(gram, fold.train, fold.train)
        self.test_gram = part(gram, fold.test, fold.train)
        self.block = self.n_block(self.gram.element_size() * 4 * len(fold.train), max_block_bytes)

    def system(self, number: int) -> "torch.Tensor":
        """Lower factor of ``K + alpha I``."""
        matrix = self.gram.to(self.dtypes[number], copy=True)
        matrix.diagonal().add_(self.alphas[number])
        return cholesky(matrix, self.alphas[number])

    def predict(self, numbers: Sequence[int], predictions: "torch.Tensor") -> None:
        """Fill in ``K_test Q_alpha y`` of the targets that chose one of some penalties; no dual weights."""
        import torch

        chosen = self.chosen.cpu().numpy()
        for number in numbers:
            mine = np.flatnonzero(chosen == number)
            if not mine.size:
                continue
            test = self.test_gram.to(self.dtypes[number])
            hat = torch.cholesky_solve(test.T, self.system(number)).to(self.products)
            for start in range(0, len(mine), min(self.block, PICKED_TARGETS)):
                which = mine[start : start + min(self.block, PICKED_TARGETS)]
                y = self.targets.picked(which, self.rows, self.products)
                place = torch.as_tensor(which, device=predictions.device)
                predictions[place] = (y @ hat).to(predictions.device)


class FewTask(KernelTask):
    """Few targets: dual weights of every penalty and the small systems of the splits."""

    def predictions(self) -> "torch.Tensor":
        """See `FoldTask`."""
        predictions = self.empty_predictions()
        fills = [self._pass(dtype, single) for dtype, single in self._settled()]
        for fill in fills:
            fill(predictions)
        return predictions

    def _settled(self) -> "list[tuple[torch.dtype, Eigen | None]]":
        """Settle the precision; return those that occur, with the eigendecomposition in float32 if it was made."""
        import torch

        single = None
        if self.precision == "auto" and len(self.alphas) > EIGH_COST[self.gram.device.type]:
            single = Eigen(*torch.linalg.eigh(self.gram.to(torch.float32)))
            self.settle(spectrum_of(single.values))
        else:
            self.settle(spectrum(self.gram, min(self.alphas)))
        return [(dtype, single if dtype == torch.float32 else None) for dtype in dict.fromkeys(self.dtypes)]

    def _pass(self, dtype: "torch.dtype", eigen: "Eigen | None") -> "Callable[[torch.Tensor], None]":
        """Score the penalties of one precision; return what fills in the predictions once all are scored."""
        import torch

        numbers = self.of_dtype(dtype)
        if eigen is None and len(numbers) > EIGH_COST[self.gram.device.type]:
            eigen = Eigen(*torch.linalg.eigh(self.gram.to(dtype)))
        if eigen is None:
            self._score_by_factors(numbers)
            return lambda predictions: self.predict(numbers, predictions)
        eigen.values.clamp_(min=0.0)
        self._score_by_spectrum(numbers, eigen)
        return lambda predictions: self._predict_by_spectrum(numbers, eigen, predictions)

    def _score_by_factors(self, numbers: Sequence[int]) -> None:
        import torch

        for number in numbers:
            inverse = torch.cholesky_inverse(self.system(number))
            small = [_held_inverse(part(inverse, s.left_out, s.left_out), s, self.alphas[number]) for s in self.splits]
            for start, stop in self.targets.spans(self.block):
                weights = self.targets.block(start, stop, self.rows, inverse.dtype) @ inverse
                self.offer(number, start, stop, self.block_loss(self._residuals(weights, small), start, stop))

    def _score_by_spectrum(self, numbers: Sequence[int], eigen: "Eigen") -> None:
        basis = eigen.vectors
        small = {number: self._small(number, eigen) for number in numbers}
        for start, stop in self.targets.spans(self.block):
            rotated = self.targets.block(start, stop, self.rows, basis.dtype) @ basis
            for number in numbers:
                weights = (rotated / (eigen.values + self.alphas[number])) @ basis.T
                loss = self.block_loss(self._residuals(weights, small[number]), start, stop)
                self.offer(number, start, stop, loss)

    def _small(self, number: int, eigen: "Eigen") -> "list[torch.Tensor]":
        """``Q_CC^-1`` of every split, (n_left_out, n_held)."""
        shrink = (eigen.values + self.alphas[number]).rsqrt()
        small = []
        for split in self.splits:
            half = part(eigen.vectors, split.left_out) * shrink
            small.append(_held_inverse(_outer(half), split, self.alphas[number]))
        return small

    def _residuals(self, weights: "torch.Tensor", inverses: "Sequence[torch.Tensor]") -> "list[torch.Tensor]":
        """Residuals (n_block, n_held) of every split from the dual weights (n_block, n_train)."""
        pairs = zip(self.splits, inverses, strict=True)
        return [weights[:, as_rows(split.left_out)] @ inverse for split, inverse in pairs]

    def _predict_by_spectrum(self, numbers: Sequence[int], eigen: "Eigen", predictions: "torch.Tensor") -> None:
        """``K_test V (S + alpha)^-1 V'y`` with the penalty of each target."""
        import torch

        dtype = eigen.vectors.dtype
        projected = self.test_gram.to(dtype) @ eigen.vectors
        penalties = torch.tensor(self.alphas, dtype=dtype, device=eigen.values.device)
        mine = np.flatnonzero(np.isin(self.chosen.cpu().numpy(), numbers))
        for start in range(0, len(mine), self.block):
            which = mine[start : start + self.block]
            place = torch.as_tensor(which, device=self.chosen.device)
            rotated = self.targets.picked(which, self.rows, dtype) @ eigen.vectors
            rotated /= eigen.values + penalties[self.chosen[place], None]
            filled = (rotated @ projected.T).to(predictions.device, predictions.dtype)
            predictions[place.to(predictions.device)] = filled


@dataclass(frozen=True)
class Eigen:
    """Eigenvalues (n,) and eigenvectors (n, n) of a Gram matrix."""

    values: "torch.Tensor"
    vectors: "torch.Tensor"


class StackedTask(KernelTask):
    """Many targets: squared errors by operators on Y, then predictions penalty by penalty."""

    def predictions(self) -> "torch.Tensor":
        """See `FoldTask`."""
        self.settle(spectrum(self.gram, min(self.alphas)))
        if self.gram.device.type == "cpu":
            self.block = min(self.block, CACHED_TARGETS)
        common = common_weights(self.weights)
        for number in range(len(self.alphas)):
            operators = self._operators(number)
            if common is None:
                self._score_by_split(number, operators)
            else:
                self._score_by_triangle(number, operators, common)
        predictions = self.empty_predictions()
        self.predict(range(len(self.alphas)), predictions)
        return predictions

    def _operators(self, number: int) -> "list[torch.Tensor]":
        """For each split the map from Y to the residuals of the held rows, (n_held, n_train)."""
        import torch

        inverse = torch.cholesky_inverse(self.system(number))
        operators = []
        for split in self.splits:
            left_out = torch.as_tensor(split.left_out, device=inverse.device)
            rows = part(inverse, split.left_out)
            residual = torch.cholesky_solve(rows, cholesky(rows[:, left_out], self.alphas[number]))
            residual[:, left_out] = torch.eye(len(left_out), dtype=residual.dtype, device=residual.device)
            operators.append(part(residual, split.held_place))
        return operators

    def _score_by_triangle(self, number: int, operators: "list[torch.Tensor]", common: "torch.Tensor") -> None:
        import torch

        stacked = torch.cat([own * weight.sqrt() for own, weight in zip(operators, common, strict=True)])
        operators.clear()
        triangle = torch.linalg.qr(stacked, mode="r").R.to(self.products)
        del stacked
        size = -(-triangle.shape[0] // TRIANGLE_PARTS)
        bands = [(first, triangle[first : first + size, first:]) for first in range(0, triangle.shape[0], size)]
        for start, stop in self.targets.spans(self.block):
            y = self.targets.block(start, stop, self.rows, self.products)
            loss = torch.zeros(stop - start, dtype=torch.float64, device=y.device)
            for first, band in bands:
                loss += torch.linalg.vector_norm(y[:, first:] @ band.T, dim=1).square()
            self.offer(number, start, stop, loss)

    def _score_by_split(self, number: int, operators: "list[torch.Tensor]") -> None:
        single = [operator.to(self.products) for operator in operators]
        operators.clear()
        for start, stop in self.targets.spans(self.block):
            y = self.targets.block(start, stop, self.rows, self.products)
            self.offer(number, start, stop, self.block_loss([y @ own.T for own in single], start, stop))


def kernel_task(targets: Targets, fold: Fold) -> type[KernelTask]:
    """Return the cheaper way for this many targets and rows."""
    return StackedTask if len(targets.usable) > STACK_FROM * len(fold.train) else FewTask


def _outer(half: "torch.Tensor") -> "torch.Tensor":
    """``half half'`` from its lower part and the mirror of that: three quarters of the products."""
    import torch

    middle = half.shape[0] // 2
    upper, lower = half[:middle], half[middle:]
    product = torch.empty((half.shape[0], half.shape[0]), dtype=half.dtype, device=half.device)
    torch.matmul(upper, upper.T, out=product[:middle, :middle])
    product[middle:] = lower @ half.T
    product[:middle, middle:] = product[middle:, :middle].T
    return product


def _held_inverse(matrix: "torch.Tensor", split: InnerSplit, alpha: float) -> "torch.Tensor":
    """``Q_CC^-1`` in the columns of the held rows, (n_left_out, n_held)."""
    import torch

    inverse = torch.cholesky_inverse(cholesky(matrix, alpha))
    return inverse[:, as_rows(split.held_place)]
