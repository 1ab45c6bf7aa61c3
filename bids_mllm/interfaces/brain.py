"""The brain data of one participant as targets, whole or part by part."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from bids_mllm.fit.targets import Targets, prepare_targets
from bids_mllm.interfaces.rows import Rows, stack_targets
from bids_mllm.records import FloatArray


class Brain:
    """The brain data of one participant, stacked and brought to the device when a model first asks for them.

    Parameters
    ----------
    series
        File of (n_volumes, n_voxels).
    rows
    device
    wide
        Whether the solver keeps the targets in float64.
    voxels
        Those of the series that are meant.
    """

    def __init__(
        self, series: Path, rows: Rows, device: str, *, wide: bool = False, voxels: slice = slice(None)
    ) -> None:
        self.rows, self.device, self.wide = rows, device, wide
        self._series, self._voxels = series, voxels

    @property
    def n_voxels(self) -> int:
        """Voxels that are meant; their values are not read."""
        return len(range(*self._voxels.indices(np.load(self._series, mmap_mode="r").shape[1])))

    def parts(self, n_part: int) -> "Iterator[Brain]":
        """Give the brain itself where it has so many voxels at most, else part after part of it."""
        n_voxels = self.n_voxels
        if n_part >= n_voxels:
            yield self
            return
        for start in range(0, n_voxels, n_part):
            voxels = slice(start, min(start + n_part, n_voxels))
            yield Brain(self._series, self.rows, self.device, wide=self.wide, voxels=voxels)

    @cached_property
    def Y(self) -> FloatArray:  # noqa: N802  the field's name for targets
        """Targets (n_rows, n_voxels), z-scored per run."""
        return stack_targets(self._series, self.rows, self._voxels)

    @cached_property
    def targets(self) -> Targets:
        """The same on the device."""
        return prepare_targets(self.Y, self.rows.folds, device=self.device, dtype="float64" if self.wide else "float32")
