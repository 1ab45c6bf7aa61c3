"""Collect the scores of feature spaces as they come, and choose among them by training scores alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bids_mllm.outcomes import ModelScores
from bids_mllm.records import BoolArray, Condition, FloatArray, IntArray

NONE = -1


class RunningBest:
    """For each entry, the scores of the candidate with the highest training score seen so far.

    The order in which candidates come does not matter: of equal training scores the lowest candidate
    number wins. A NaN training score never wins.
    """

    def __init__(self, n_voxels: int, n_rows: int = 0) -> None:
        self.chosen: IntArray = np.full(n_voxels, NONE, dtype=np.int32)
        self.predictions: FloatArray = np.full((n_voxels, n_rows), np.nan, dtype=np.float32)
        self.cv_r2: FloatArray = np.full(n_voxels, -np.inf, dtype=np.float64)
        self.r: FloatArray = np.full(n_voxels, np.nan, dtype=np.float32)
        self.r2: FloatArray = np.full(n_voxels, np.nan, dtype=np.float32)

    def offer(
        self,
        candidate: int,
        cv_r2: FloatArray,
        r: FloatArray,
        r2: FloatArray,
        predictions: FloatArray | None = None,
    ) -> None:
        """Take the candidate where its `cv_r2` is the highest; arrays (n_voxels,), predictions (n_rows, n_voxels)."""
        earlier = (self.chosen == NONE) | (candidate < self.chosen)
        wins = (cv_r2 > self.cv_r2) | ((cv_r2 == self.cv_r2) & earlier)
        self.chosen[wins] = candidate
        for kept, new in ((self.cv_r2, cv_r2), (self.r, r), (self.r2, r2)):
            kept[wins] = new[wins]
        if predictions is not None:
            self.predictions[wins] = predictions.T[wins]


class ScoreBoard:
    """Accumulates the scores of every (fold, condition, layer) of one model, in any order.

    Memory is five maps a feature space plus, for each fold, the running best maps of the model and of
    each condition, and the held-out predictions of the model's best; it does not grow with folds times feature spaces.

    Parameters
    ----------
    conditions, layers
        The axes of the maps.
    n_voxels
    n_test
        Held-out rows of each outer fold.
    """

    def __init__(
        self, conditions: Sequence[Condition], layers: Sequence[int], n_voxels: int, n_test: Sequence[int]
    ) -> None:
        self.conditions = tuple(conditions)
        self.layers = tuple(layers)
        shape = (len(self.conditions), len(self.layers), n_voxels)
        n_folds = len(n_test)
        self._n_test = tuple(n_test)
        self._r, self._r2, self._cv_r2, self._log_alpha, self._concatenated = (
            np.zeros(shape, dtype=np.float32) for _ in range(5)
        )
        self._edge: BoolArray = np.zeros(shape, dtype=bool)
        self._fold_cv_r2: FloatArray = np.full((n_folds, *shape[:2]), np.nan, dtype=np.float32)
        self._seen: BoolArray = np.zeros((n_folds, *shape[:2]), dtype=bool)
        self._best = [RunningBest(n_voxels, n_rows) for n_rows in n_test]
        self._condition_best = [[RunningBest(n_voxels) for _ in self.conditions] for _ in range(n_folds)]

    def add(
        self,
        fold_index: int,
        condition_index: int,
        layer_index: int,
        r: FloatArray,
        r2: FloatArray,
        r_rows: FloatArray,
        cv_r2: FloatArray,
        alpha: FloatArray,
        at_edge: BoolArray,
        predictions: FloatArray,
    ) -> None:
        """Add the scores of one feature space in one outer fold; arrays (n_voxels,), predictions (n_test, n_voxels).

        `r_rows` is the r of the fold's rows with each run z-scored by itself. NaN marks voxels set aside. Adding the
        same place twice raises a ValueError.
        """
        place = (fold_index, condition_index, layer_index)
        if self._seen[place]:
            raise ValueError(f"The scores of (fold, condition, layer) {place} were added before.")
        self._seen[place] = True
        space = (condition_index, layer_index)
        self._r[space] += r
        self._r2[space] += r2
        self._cv_r2[space] += cv_r2
        self._concatenated[space] += r_rows * np.float32(self._n_test[fold_index])
        self._log_alpha[space] += np.log(alpha)
        self._edge[space] |= at_edge
        finite = cv_r2[np.isfinite(cv_r2)]
        if finite.size:
            self._fold_cv_r2[place] = np.maximum(finite, 0.0).mean()
        candidate = condition_index * len(self.layers) + layer_index
        self._best[fold_index].offer(candidate, cv_r2, r, r2, predictions)
        self._condition_best[fold_index][condition_index].offer(layer_index, cv_r2, r, r2)

    def best_predictions(self, fold_index: int) -> FloatArray:
        """Held-out predictions of each voxel's best feature space in one outer fold, (n_test, n_voxels) float32."""
        return self._best[fold_index].predictions.T

    def result(self, model: str, fold_names: Sequence[str], warnings: Sequence[str] = ()) -> ModelScores:
        """Means over the outer folds; a voxel that is NaN in any fold is NaN in the mean."""
        n_folds = len(self._best)
        if len(fold_names) != n_folds:
            raise ValueError(f"There are {len(fold_names)} fold names for {n_folds} folds.")
        if not self._seen.all():
            raise ValueError(
                f"{np.count_nonzero(~self._seen)} of {self._seen.size} scores (fold, condition, layer) are missing."
            )
        cv_r2: FloatArray = self._cv_r2 / np.float32(n_folds)
        best_condition, best_layer = _argbest(cv_r2)
        by_condition = [_argbest(one[None])[1] for one in cv_r2]
        condition_best_r = [_mean_of([best.r for best in folds]) for folds in zip(*self._condition_best, strict=True)]
        return ModelScores(
            model=model,
            conditions=self.conditions,
            layers=self.layers,
            r=self._r / np.float32(n_folds),
            r_concatenated=self._concatenated / np.float32(sum(self._n_test)),
            r2=self._r2 / np.float32(n_folds),
            cv_r2=cv_r2,
            alpha=np.exp(self._log_alpha / np.float32(n_folds)),
            alpha_edge=self._edge.copy(),
            best_r=_mean_of([best.r for best in self._best]),
            best_r2=_mean_of([best.r2 for best in self._best]),
            best_condition=best_condition,
            best_layer=best_layer,
            condition_best_r=np.stack(condition_best_r),
            condition_best_layer=np.stack(by_condition),
            fold_cv_r2=self._fold_cv_r2,
            fold_names=tuple(fold_names),
            warnings=tuple(warnings),
        )


# Fields of ModelScores whose last axis is that of voxels.
VOXELWISE = (
    "r", "r_concatenated", "r2", "cv_r2", "alpha", "alpha_edge", "best_r", "best_r2", "best_condition", "best_layer",
    "condition_best_r", "condition_best_layer",
)  # fmt: skip


def join_scores(parts: Sequence[ModelScores], n_usable: Sequence[int]) -> ModelScores:
    """Put together the scores of parts of the voxels, in their order.

    Parameters
    ----------
    parts
        Of one model, with the same conditions, layers and folds.
    n_usable
        Voxels of each part that were fitted, by which the means over voxels count.
    """
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in VOXELWISE
    }
    means = np.stack([part.fold_cv_r2 for part in parts]).astype(np.float64)
    counts = np.isfinite(means) * np.reshape(n_usable, (-1, 1, 1, 1))
    total = counts.sum(axis=0)
    mean = np.divide(
        (np.nan_to_num(means) * counts).sum(axis=0), total, out=np.full(total.shape, np.nan), where=total > 0
    )
    return replace(parts[0], fold_cv_r2=mean.astype(np.float32), **joined)


def _mean_of(maps: Sequence[FloatArray]) -> FloatArray:
    mean: FloatArray = np.stack(maps).mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def _argbest(cv_r2: FloatArray) -> tuple[IntArray, IntArray]:
    """Indices (n_voxels,) int16 on axes 0 and 1 of the highest finite score; -1 where there is none."""
    n_conditions, n_layers, n_voxels = cv_r2.shape
    best = RunningBest(n_voxels)
    for condition in range(n_conditions):
        for layer in range(n_layers):
            scores = cv_r2[condition, layer]
            best.offer(condition * n_layers + layer, scores, scores, scores)
    found = best.chosen != NONE
    condition_index = np.where(found, best.chosen // n_layers, NONE).astype(np.int16)
    layer_index = np.where(found, best.chosen % n_layers, NONE).astype(np.int16)
    return condition_index, layer_index


def at_choice(values: Any, condition: IntArray, layer: IntArray, missing: float | bool) -> Any:
    """Return the value of the chosen condition and layer in every voxel.

    Parameters
    ----------
    values : (n_conditions, n_layers, n_voxels)
    condition, layer : (n_voxels,) int
        Indices; -1 where nothing was chosen.
    missing
        What stands where nothing was chosen.
    """
    chosen = values[np.maximum(condition, 0), np.maximum(layer, 0), np.arange(values.shape[-1])]
    return np.where((condition >= 0) & (layer >= 0), chosen, missing)
