"""What every exact solver shares: one fold, its targets, and the best penalty of each target so far."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bids_mllm.fit.precision import Precision, Spectrum, working_dtype
from bids_mllm.fit.splits import inner_splits, split_weights
from bids_mllm.fit.targets import Targets, as_rows
from bids_mllm.records import Fold, IntArray

if TYPE_CHECKING:
    import torch


class FoldTask:
    """One fold of one feature space: chooses the penalty of every target and predicts the test rows."""

    def __init__(
        self,
        targets: Targets,
        fold: Fold,
        *,
        alphas: Sequence[float],
        precision: Precision,
    ) -> None:
        import torch

        self.targets, self.fold, self.alphas = targets, fold, tuple(alphas)
        self.rows = as_rows(fold.train)
        self.splits = inner_splits(fold)
        self.weights = split_weights(targets, fold, self.splits)
        self.precision: Precision = precision
        self.dtypes: list[torch.dtype] = []
        self.products = torch.float64 if precision == "float64" else torch.float32
        n_usable = len(targets.usable)
        self.score = torch.full((n_usable,), -torch.inf, dtype=torch.float64, device=targets.device)
        self.chosen = torch.zeros(n_usable, dtype=torch.int64, device=targets.device)

    def solve(self) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """Return predictions (n_usable, n_test), chosen penalty numbers and scores (n_usable,)."""
        predictions = self.predictions()
        # A target that varies in no held row has no score, however well it is predicted.
        self.score[self.weights.sum(dim=0) == 0] = float("nan")
        return predictions, self.chosen, self.score

    def settle(self, bounds: Spectrum) -> None:
        """Choose the precision of every penalty's system."""
        self.dtypes = [working_dtype(alpha, bounds, self.precision) for alpha in self.alphas]

    def of_dtype(self, dtype: "torch.dtype") -> list[int]:
        """Numbers of the penalties whose systems have this precision."""
        return [number for number, own in enumerate(self.dtypes) if own == dtype]

    def predictions(self) -> "torch.Tensor":
        """Score all penalties and return the predictions at the best ones, (n_usable, n_test)."""
        raise NotImplementedError

    def offer(self, number: int, start: int, stop: int, loss: "torch.Tensor") -> None:
        """Take penalty `number` for the targets it suits best so far, of equal ones the lowest."""
        import torch

        score, best = 1.0 - loss.to(torch.float64), self.score[start:stop]
        better = (score > best) | ((score == best) & (self.chosen[start:stop] > number))
        self.score[start:stop] = torch.where(better, score, best)
        self.chosen[start:stop].masked_fill_(better, number)

    def empty_predictions(self) -> "torch.Tensor":
        """Room for the predictions, (n_usable, n_test), beside the targets."""
        import torch

        shape = (len(self.targets.usable), len(self.fold.test))
        return torch.empty(shape, dtype=self.products, device=self.targets.values.device)

    def block_loss(self, residuals: "Sequence[torch.Tensor]", start: int, stop: int) -> "torch.Tensor":
        """Weighted squared errors of some targets from the residuals (n_block, n_held) of every split."""
        import torch

        loss = torch.zeros(stop - start, dtype=torch.float64, device=self.targets.device)
        for residual, weight in zip(residuals, self.weights[:, start:stop], strict=True):
            loss += weight * torch.linalg.vector_norm(residual, dim=1).square()
        return loss

    def n_block(self, bytes_per_target: int, max_block_bytes: int) -> int:
        """Targets of one block; on a GPU it takes at most half of what is free there."""
        import torch

        if self.targets.device != "cpu":
            max_block_bytes = min(max_block_bytes, torch.cuda.mem_get_info(torch.device(self.targets.device))[0] // 2)
        return max(1, max_block_bytes // bytes_per_target)


def part(matrix: "torch.Tensor", rows: IntArray, columns: IntArray | None = None) -> "torch.Tensor":
    """Rows (and columns) of a matrix; a view where they are consecutive."""
    import torch

    where = as_rows(rows)
    chosen = matrix[where] if isinstance(where, slice) else matrix[torch.as_tensor(rows, device=matrix.device)]
    if columns is None:
        return chosen
    across = as_rows(columns)
    if isinstance(across, slice):
        return chosen[:, across]
    return chosen[:, torch.as_tensor(columns, device=matrix.device)]
