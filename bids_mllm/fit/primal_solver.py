"""Ridge on columns, for fewer features than rows.

The prediction of held rows b is ``X_b (C - C_b + alpha I)^-1 (X'Y - X_b'Y_b)`` with ``C = X'X`` and b standing for
what the split leaves out: an operator of the size of X times a small product with Y that all penalties share. No
weights are formed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bids_mllm.fit.fold_task import FoldTask, part
from bids_mllm.fit.precision import Precision, Spectrum, cholesky, spectrum
from bids_mllm.fit.targets import Targets, as_rows
from bids_mllm.records import Fold

if TYPE_CHECKING:
    import torch

BYTES = 8
BLOCK_TARGETS = 4096
# Largest eigenvalue over penalty up to which products with Y are in float32: errors of the predictions below 3e-6.
PRODUCT_CONDITION = 1e4


class PrimalTask(FoldTask):
    """A fold of a set of columns."""

    def __init__(
        self,
        columns: "torch.Tensor",
        targets: Targets,
        fold: Fold,
        *,
        alphas: Sequence[float],
        precision: Precision,
        max_block_bytes: int,
    ) -> None:
        self.X, self.X_test = part(columns, fold.train), part(columns, fold.test)
        self.covariance = self.X.T @ self.X
        super().__init__(targets, fold, alphas=alphas, precision=precision)
        self.settle(Spectrum(spectrum(self.covariance, np.inf).largest))
        n_train, n_columns = self.X.shape
        per_target = BYTES * (2 * n_train + (1 + len(self.splits)) * n_columns)
        self.block = min(self.n_block(per_target, max_block_bytes), BLOCK_TARGETS)
        times = np.bincount(np.concatenate([split.left_out for split in self.splits]), minlength=n_train)
        self.cover = bool((times == 1).all())
        self.n_alphas = max(1, max_block_bytes // (BYTES * n_train * n_columns))

    def settle(self, bounds: Spectrum) -> None:
        """Choose the precision of the products; factors are in float64, since columns are few.

        Rounding of ``X'Y`` reaches the predictions multiplied by at most half the root of largest eigenvalue over
        penalty, so products in float32 serve to a condition of its square.
        """
        import torch

        auto = [
            torch.float32 if bounds.largest <= PRODUCT_CONDITION * alpha else torch.float64 for alpha in self.alphas
        ]
        self.dtypes = auto if self.precision == "auto" else [self.products] * len(self.alphas)

    def predictions(self) -> "torch.Tensor":
        """See `FoldTask`."""
        for dtype in dict.fromkeys(self.dtypes):
            numbers = self.of_dtype(dtype)
            for first in range(0, len(numbers), self.n_alphas):
                self._score(numbers[first : first + self.n_alphas], dtype)
        return self._predictions()

    def _score(self, numbers: Sequence[int], dtype: "torch.dtype") -> None:
        """Score some penalties on all targets; the products of X and Y are formed once for them."""
        import torch

        operators = [self._operators(number) for number in numbers]
        X = self.X.to(dtype)
        for start, stop in self.targets.spans(self.block):
            y = self.targets.block(start, stop, self.rows, dtype)
            outs = [as_rows(split.left_out) for split in self.splits]
            products = [y[:, out] @ X[out] for out in outs]
            whole = torch.stack(products).sum(dim=0) if self.cover else y @ X
            losses = torch.zeros((len(numbers), stop - start), dtype=torch.float64, device=y.device)
            for place, split in enumerate(self.splits):
                fitted = whole - products[place]
                held = y[:, as_rows(split.held)]
                for row, of_alpha in enumerate(operators):
                    residual = torch.addmm(held, fitted, of_alpha[place], alpha=-1.0)
                    error = torch.linalg.vector_norm(residual, dim=1).square()
                    losses[row] += self.weights[place, start:stop] * error
            for number, loss in zip(numbers, losses, strict=True):
                self.offer(number, start, stop, loss)

    def _operators(self, number: int) -> "list[torch.Tensor]":
        """For each split ``(C - C_b + alpha I)^-1 X_b'`` of its held rows, (n_features, n_held)."""
        import torch

        operators = []
        for split in self.splits:
            left_out = part(self.X, split.left_out)
            matrix = self.covariance - left_out.T @ left_out
            matrix.diagonal().add_(self.alphas[number])
            solved = torch.cholesky_solve(part(self.X, split.held).T, cholesky(matrix, self.alphas[number]))
            operators.append(solved.to(self.dtypes[number]))
        return operators

    def _predictions(self) -> "torch.Tensor":
        """``X_test (C + alpha I)^-1 X'y`` with the penalty that each target chose."""
        import torch

        predictions = self.empty_predictions()
        for number in np.unique(self.chosen.cpu().numpy()).tolist():
            dtype = self.dtypes[number]
            matrix = self.covariance.clone()
            matrix.diagonal().add_(self.alphas[number])
            hat = torch.cholesky_solve(self.X_test.T, cholesky(matrix, self.alphas[number])).to(dtype)
            mine = np.flatnonzero((self.chosen == number).cpu().numpy())
            for start in range(0, len(mine), self.block):
                which = mine[start : start + self.block]
                products = self.targets.picked(which, self.rows, dtype) @ self.X.to(dtype)
                place = torch.as_tensor(which, device=predictions.device)
                predictions[place] = (products @ hat).to(predictions.device, predictions.dtype)
        return predictions
