"""The sizes that the ridge is measured at, and data with planted signals for them.

Several feature spaces share one Y. Each space sees the same content in its own way, so that all predict and the best
penalties spread over the grid. Two kinds of features:

- ``random``: independent normal numbers; the Gram matrix is well conditioned.
- ``realistic``: smooth in time, a spectrum that decays as a power of the rank, and one direction far above the others
  that shows in all columns, as the massive dimensions of language models leave it. Ill conditioned.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter1d

from bids_mllm.fit.delays import delay_rows
from bids_mllm.fit.design import DelayedRows, delayed_rows
from bids_mllm.fit.scaling import zscore_segments
from bids_mllm.records import Fold

Kind = Literal["random", "realistic"]
KINDS: tuple[Kind, ...] = ("random", "realistic")
DELAYS = (1, 2, 3, 4, 5)
ALPHAS = np.logspace(1, 6, 10)
#: Standard deviation of the planted signal over that of the noise, at most.
STRONGEST = 1.5
#: Of the realistic features: exponent of the decay, size of the one direction over the next, smoothness in TRs.
DECAY, MASSIVE, SMOOTH_TRS = 0.75, 10.0, 1.5
#: Targets that are planted at once.
PLANTED = 2048


@dataclass(frozen=True)
class Shape:
    """Sizes of one case.

    Attributes
    ----------
    n_train
        Training rows; every run has ``max(DELAYS)`` more volumes, which are no rows.
    n_features
        Columns before the delays.
    n_targets
        Columns of Y.
    n_runs
        Training runs of equal length; one more run is the test.
    n_folds
        Inner splits, each of whole runs.
    """

    name: str
    n_train: int
    n_features: int
    n_targets: int
    n_runs: int
    n_folds: int

    @property
    def n_test(self) -> int:
        """Rows of one run."""
        return self.n_train // self.n_runs

    @property
    def run_of_row(self) -> np.ndarray:
        """Run of every row, the test run last."""
        return np.repeat(np.arange(self.n_runs + 1), self.n_test)

    @property
    def run_of_volume(self) -> np.ndarray:
        """Run of every volume, the test run last."""
        return np.repeat(np.arange(self.n_runs + 1), self.n_test + max(DELAYS))

    def rows(self) -> DelayedRows:
        """Which volumes are rows."""
        usable = np.arange(self.n_test + max(DELAYS)) >= max(DELAYS)
        return delayed_rows([usable] * (self.n_runs + 1), DELAYS)

    def fold(self) -> Fold:
        """All runs but the last for training, with inner splits of whole runs."""
        train = np.arange(self.n_train)
        runs = self.run_of_row[: self.n_train]
        left_out = [np.isin(runs, group) for group in np.array_split(np.arange(self.n_runs), self.n_folds)]
        inner = tuple((np.flatnonzero(~out), np.flatnonzero(out)) for out in left_out)
        return Fold("film", train, self.n_train + np.arange(self.n_test), inner)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("parcel5", n_train=3000, n_features=1024, n_targets=1000, n_runs=10, n_folds=5),
        Shape("parcel27", n_train=2970, n_features=1024, n_targets=1000, n_runs=27, n_folds=27),
        Shape("voxel5", n_train=2000, n_features=512, n_targets=20000, n_runs=10, n_folds=5),
        Shape("primal", n_train=2400, n_features=128, n_targets=20000, n_runs=10, n_folds=5),
    )
}
QUICK_SHAPES = {
    shape.name: shape
    for shape in (
        Shape("parcel5", n_train=500, n_features=160, n_targets=200, n_runs=10, n_folds=5),
        Shape("parcel27", n_train=324, n_features=128, n_targets=100, n_runs=27, n_folds=27),
        Shape("voxel5", n_train=300, n_features=96, n_targets=2000, n_runs=10, n_folds=5),
        Shape("primal", n_train=400, n_features=20, n_targets=2000, n_runs=10, n_folds=5),
    )
}


@dataclass(frozen=True)
class Problem:
    """Feature spaces and the Y that they share.

    Attributes
    ----------
    shape
    kind
    content : (n_volumes, n_features) float32
        What all spaces see.
    Y : (n_rows, n_targets) float32
        Z-scored per run.
    """

    shape: Shape
    kind: Kind
    content: np.ndarray
    Y: np.ndarray

    def space(self, number: int) -> np.ndarray:
        """Undelayed features of one space, (n_volumes, n_features) float32, z-scored per run."""
        rng = np.random.default_rng([1, number])
        own = rng.standard_normal(self.content.shape, dtype=np.float32)
        if self.kind == "random":
            return self._scaled(self.content + own)
        mixing = rng.standard_normal((self.shape.n_features,) * 2, dtype=np.float32)
        seen = (self.content * _sizes(self.shape.n_features)) @ mixing
        return self._scaled(seen + 0.1 * gaussian_filter1d(own, SMOOTH_TRS, axis=0))

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        return zscore_segments(X, self.shape.run_of_volume).astype(np.float32)

    @property
    def y_test(self) -> np.ndarray:
        """Y in the test rows."""
        return self.Y[self.shape.n_train :]


def delayed_columns(X: np.ndarray, shape: Shape) -> np.ndarray:
    """Delayed features as columns, (n_rows, n_features * n_delays) float32."""
    rows = shape.rows()
    runs = [delay_rows(X[rows.run_of_volume == run], DELAYS) for run in range(shape.n_runs + 1)]
    return np.concatenate(runs)[rows.usable]


def make_problem(shape: Shape, kind: Kind) -> Problem:
    """Draw the content of the feature spaces, and Y from its delayed copies and noise."""
    rng = np.random.default_rng(0)
    content = rng.standard_normal((len(shape.run_of_volume), shape.n_features), dtype=np.float32)
    visible = content
    if kind == "realistic":
        content = gaussian_filter1d(content, SMOOTH_TRS, axis=0)
        content /= content.std(axis=0)
        visible = content * np.sqrt(_sizes(shape.n_features))
    delayed = delayed_columns(visible, shape)
    Y = np.empty((len(delayed), shape.n_targets), dtype=np.float32)
    for start in range(0, shape.n_targets, PLANTED):
        planted = Y[:, start : start + PLANTED]
        signal = delayed @ rng.standard_normal((delayed.shape[1], planted.shape[1]), dtype=np.float32)
        signal *= rng.uniform(0, STRONGEST, planted.shape[1]).astype(np.float32) / signal.std(axis=0)
        noise = rng.standard_normal(planted.shape, dtype=np.float32)
        planted[:] = zscore_segments(signal + noise, shape.run_of_row)
    return Problem(shape, kind, content, Y)


def _sizes(n: int) -> np.ndarray:
    """Size of each direction of realistic features."""
    sizes = np.arange(1, n + 1, dtype=np.float32) ** -DECAY
    sizes[0] = MASSIVE
    return sizes
