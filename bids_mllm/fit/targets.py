"""The brain data as the solver keeps them: prepared once, used by every feature space."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bids_mllm.records import BoolArray, FloatArray, Fold, IntArray

if TYPE_CHECKING:
    import torch

# Targets looked at or copied at once, so that no second copy of all targets is made.
CHECKED_TARGETS = 4096


@dataclass(frozen=True)
class Targets:
    """Usable targets, one a row of memory, so that a block of targets is contiguous.

    Attributes
    ----------
    values : torch.Tensor, (n_usable, n_rows)
        On the device of the fit where they fit there, else in the memory of the host.
    usable : (n_usable,) int
        Which columns of Y these are.
    n_targets
        Columns of Y.
    device
        Where blocks are brought for products.
    """

    values: "torch.Tensor"
    usable: IntArray
    n_targets: int
    device: str

    @property
    def n_rows(self) -> int:
        """Rows of Y."""
        return int(self.values.shape[1])

    def block(self, start: int, stop: int, rows: IntArray | slice, dtype: "torch.dtype") -> "torch.Tensor":
        """Return some targets in some rows on the device, (n_block, n_chosen_rows)."""
        return self._chosen(self.values[start:stop], rows, dtype)

    def picked(self, which: IntArray, rows: IntArray | slice, dtype: "torch.dtype") -> "torch.Tensor":
        """Return the targets numbered `which` among the usable ones, (n_picked, n_chosen_rows)."""
        import torch

        return self._chosen(self.values[torch.as_tensor(which, device=self.values.device)], rows, dtype)

    def _chosen(self, values: "torch.Tensor", rows: IntArray | slice, dtype: "torch.dtype") -> "torch.Tensor":
        import torch

        if not isinstance(rows, slice):
            values = values.index_select(1, torch.as_tensor(rows, device=values.device))
        else:
            values = values[:, rows]
        return values.to(device=self.device, dtype=dtype, non_blocking=True)

    def spans(self, n_block: int) -> Iterator[tuple[int, int]]:
        """Give (start, stop) of blocks of at most `n_block` usable targets."""
        for start in range(0, len(self.usable), n_block):
            yield start, min(start + n_block, len(self.usable))


def as_rows(rows: IntArray) -> IntArray | slice:
    """Return a slice where the row numbers are consecutive, which needs no copy; else the numbers."""
    if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return slice(int(rows[0]), int(rows[0]) + len(rows))
    return rows


def prepare_targets(Y: FloatArray, folds: Sequence[Fold], *, device: str = "cpu", dtype: str = "float32") -> Targets:
    """Set unusable targets aside and bring the others to the device once, for all feature spaces.

    Parameters
    ----------
    Y : (n_rows, n_targets) float
        Targets, z-scored per run.
    folds
        A target is usable when it is finite in the rows of every fold and varies in the training rows of each.
    device
        ``cpu``, ``cuda`` or ``cuda:N``.
    dtype
        ``float32`` or ``float64``.

    Returns
    -------
    targets : Targets
    """
    import torch

    usable = np.flatnonzero(_usable(Y, folds))
    shape = (len(usable), len(Y))
    where = _home(shape, device, dtype)
    values = torch.empty(shape, dtype=getattr(torch, dtype), device=where)
    for start in range(0, len(usable), CHECKED_TARGETS):
        columns = usable[start : start + CHECKED_TARGETS]
        block = np.ascontiguousarray(Y[:, columns].T, dtype=dtype)
        values[start : start + len(columns)] = torch.from_numpy(block).to(where)
    return Targets(values, usable, Y.shape[1], device)


def _home(shape: tuple[int, int], device: str, dtype: str) -> str:
    """Device where the targets stay: the fit's own, unless they would take more than half of its free memory."""
    if device == "cpu":
        return device
    import torch

    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return device if shape[0] * shape[1] * np.dtype(dtype).itemsize <= free / 2 else "cpu"


def _usable(Y: FloatArray, folds: Sequence[Fold]) -> BoolArray:
    usable: BoolArray = np.zeros(Y.shape[1], dtype=bool)
    rows = np.unique(np.concatenate([np.concatenate((fold.train, fold.test)) for fold in folds]))
    for start in range(0, Y.shape[1], CHECKED_TARGETS):
        columns = slice(start, start + CHECKED_TARGETS)
        good = np.isfinite(Y[rows, columns]).all(axis=0)
        for fold in folds:
            good &= np.ptp(Y[fold.train, columns], axis=0) > 0
        usable[columns] = good
    return usable
