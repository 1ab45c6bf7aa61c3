"""Delayed features without delayed copies: Gram matrices from shifted Gram matrices, or columns where these are few."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.delays import check_delays, delay_rows
from bids_mllm.records import BoolArray, FloatArray, IntArray
from bids_mllm.validation import check_finite, check_same_samples

if TYPE_CHECKING:
    import torch

Form = Literal["kernel", "primal"]
# Rows of one panel of the Gram matrix; bounds what is held besides the matrix itself.
PANEL_ROWS = 512
# Share of the rows up to which columns are cheaper than a Gram matrix: 2 n p V against n^2 V operations a penalty.
PRIMAL_SHARE = 0.5


@dataclass(frozen=True)
class DelayedRows:
    """The rows of a delayed design, as places in the stacked volumes of all runs.

    Attributes
    ----------
    delays
        TRs; unique and not negative.
    usable : (n_volumes,) bool
        Volumes that are rows; the volume ``delay`` earlier lies in the same run for every delay.
    run_of_volume : (n_volumes,) int
    """

    delays: tuple[int, ...]
    usable: BoolArray
    run_of_volume: IntArray

    @property
    def volumes(self) -> IntArray:
        """Stacked volume of each row, shape (n_rows,)."""
        return np.flatnonzero(self.usable)

    def panels(self) -> list[tuple[int, int, int]]:
        """Stretches of consecutive volumes: (first row, first volume, number of rows), `PANEL_ROWS` at most."""
        volumes = self.volumes
        breaks = np.flatnonzero(np.diff(volumes) != 1) + 1
        edges = [0, *breaks.tolist(), len(volumes)]
        return [
            (row, int(volumes[row]), min(PANEL_ROWS, stop - row))
            for start, stop in pairwise(edges)
            for row in range(start, stop, PANEL_ROWS)
        ]


def delayed_rows(usable: Sequence[BoolArray], delays: Sequence[int]) -> DelayedRows:
    """Describe the rows of a delayed design of several runs.

    Parameters
    ----------
    usable
        One array (n_trs,) bool a run: volumes that are rows, never the first ``max(delays)`` of a run.
    delays
        Unique non-negative integers in TRs.

    Returns
    -------
    rows : DelayedRows

    Raises
    ------
    DesignError
        When a run is not longer than the longest delay, or uses one of its first volumes.
    """
    longest = max(delays)
    for number, of_run in enumerate(usable):
        check_delays(delays, len(of_run))
        if of_run[:longest].any():
            raise DesignError(
                f"Run {number} uses one of its first {longest} volumes, whose delayed features would lie before the "
                "run; leave them out."
            )
    run_of_volume = np.repeat(np.arange(len(usable)), [len(of_run) for of_run in usable])
    return DelayedRows(tuple(delays), np.concatenate(usable), run_of_volume)


@dataclass(frozen=True)
class Design:
    """What the solver needs of one feature space.

    Attributes
    ----------
    form
        ``kernel``: `values` is the Gram matrix (n_rows, n_rows); ``primal``: the columns (n_rows, n_features).
    values : torch.Tensor
        float64, on the device of the fit.
    """

    form: Form
    values: "torch.Tensor"

    @property
    def n_rows(self) -> int:
        """Rows of the design."""
        return int(self.values.shape[0])

    @property
    def varies(self) -> bool:
        """Whether any feature differs from zero."""
        return bool(self.values.any())


def delayed_design(
    X: FloatArray, rows: DelayedRows, *, device: str = "cpu", form: Literal["auto", "kernel", "primal"] = "auto"
) -> Design:
    """Build the design of delayed features.

    Parameters
    ----------
    X : (n_volumes, n_features) float
        Features of all runs, stacked and z-scored per run; volumes without features are 0 or NaN.
    rows
        Which volumes are rows, and the delays.
    device
        ``cpu``, ``cuda`` or ``cuda:N``.
    form
        ``auto``: columns where ``n_features * n_delays`` is at most half of the rows, else a Gram matrix.

    Returns
    -------
    design : Design
    """
    check_same_samples("X", len(X), "the volumes of the runs", len(rows.usable))
    n_rows, n_columns = int(rows.usable.sum()), X.shape[1] * len(rows.delays)
    if form == "auto":
        form = "primal" if n_columns <= PRIMAL_SHARE * n_rows else "kernel"
    if form == "kernel":
        return Design("kernel", delayed_gram(X, rows, device=device))
    runs = [delay_rows(X[rows.run_of_volume == run], rows.delays) for run in np.unique(rows.run_of_volume)]
    columns = np.concatenate(runs)[rows.usable]
    check_finite("X", columns)
    return Design("primal", _tensor(columns, device))


def feature_design(X: FloatArray, *, device: str = "cpu", form: Literal["auto", "kernel", "primal"] = "auto") -> Design:
    """Build the design of features that need no delays, (n_rows, n_features)."""
    rows = DelayedRows((0,), np.ones(len(X), dtype=bool), np.zeros(len(X), dtype=int))
    return delayed_design(X, rows, device=device, form=form)


def kernel_design(gram: FloatArray, *, device: str = "cpu") -> Design:
    """Wrap a Gram matrix (n_rows, n_rows) of one's own, such as a weighted sum over bands."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"The Gram matrix has the shape {gram.shape}, but must be square.")
    check_finite("The Gram matrix", gram)
    return Design("kernel", _tensor(gram, device))


def delayed_gram(X: FloatArray, rows: DelayedRows, *, device: str = "cpu") -> "torch.Tensor":
    """Gram matrix of delayed features from shifted parts of the Gram matrix of the features.

    ``K[t, s] = sum over delays d of X[t - d] . X[s - d]``, with ``t - d`` counted within the run of t. The products
    are formed once for all delays, panel by panel, so neither the delayed columns nor the whole undelayed Gram
    matrix exist.

    Parameters
    ----------
    X : (n_volumes, n_features) float
        Stacked features of all runs; NaN in volumes that no row reaches.
    rows
    device

    Returns
    -------
    gram : torch.Tensor, (n_rows, n_rows) float64
    """
    import torch

    reached = np.unique(np.concatenate([rows.volumes - delay for delay in rows.delays]))
    check_finite("X", X[reached])
    features = _tensor(np.nan_to_num(X, copy=True, nan=0.0, posinf=0.0, neginf=0.0), device)
    n_rows = int(rows.usable.sum())
    gram = torch.zeros((n_rows, n_rows), dtype=torch.float64, device=features.device)
    longest = max(rows.delays)
    panels = rows.panels()
    for number, (row, volume, n) in enumerate(panels):
        first = volume - longest
        products = features[first : volume + n] @ features[: volume + n].T
        for other_row, other_volume, m in panels[: number + 1]:
            block = gram[row : row + n, other_row : other_row + m]
            for delay in rows.delays:
                block += products[longest - delay :][:n, other_volume - delay : other_volume - delay + m]
            if other_row != row:
                gram[other_row : other_row + m, row : row + n] = block.T
    return gram


def _tensor(values: FloatArray, device: str) -> "torch.Tensor":
    import torch

    return torch.as_tensor(np.ascontiguousarray(values, dtype=np.float64), device=device)
