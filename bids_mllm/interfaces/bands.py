"""Nodes that fit several feature spaces jointly: bands of models, and pairs of instructions of one model."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, InputMultiPath, SimpleInterface, TraitedSpec, traits
from tqdm import tqdm

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.banded import BandedFit, band_weights, fit_banded, gram_of
from bids_mllm.fit.design import Design
from bids_mllm.fit.memory import joint_memory, part_of_targets
from bids_mllm.fit.ridge import alpha_grid, fit_ridge
from bids_mllm.interfaces.brain import Brain
from bids_mllm.interfaces.device import on_its_device
from bids_mllm.interfaces.encoding import (
    FitOptions,
    ModelFeatures,
    Space,
    fit_options_from_json,
    lost_windows,
)
from bids_mllm.interfaces.rows import make_rows, without_windows
from bids_mllm.io.design import read_design
from bids_mllm.io.files import read_json, write_json
from bids_mllm.io.scores import load_scores, save_bands, save_pairs
from bids_mllm.outcomes import BandScores, ModelScores, PairScores
from bids_mllm.records import Condition, FloatArray, Fold
from bids_mllm.score.held_out import ColumnScores, mean_of_viewings, score_fold, scored_predictions
from bids_mllm.score.partition import product_measure

# Points of the simplex for a pair, corners included; every pair costs as many fits.
PAIR_POINTS = 5


@dataclass(frozen=True)
class Band:
    """What a band is made of: the best feature space of a model, or some of its instructions side by side.

    Attributes
    ----------
    name
        As the user gave it.
    model
        Key of the model or table.
    instructions
        Keys whose features stand side by side, at the layer that training prefers; empty for the feature space that
        training prefers.
    """

    name: str
    model: str
    instructions: tuple[str, ...] = ()


class _JointInputSpec(BaseInterfaceInputSpec):
    design = File(exists=True, mandatory=True, desc="JSON of a ParticipantDesign")
    bold = File(exists=True, mandatory=True, desc="JSON that PrepareBold wrote")
    manifests = InputMultiPath(File(exists=True), mandatory=True, desc="JSONs of feature entries")
    scores = File(exists=True, mandatory=True, desc="JSON that FitScores wrote")
    options = traits.Str(mandatory=True, desc="JSON of FitOptions")
    bands = traits.Str("[]", usedefault=True, desc="JSON list of the fields of each Band to fit jointly")
    partition = traits.Str("{}", usedefault=True, desc="JSON: for each model the keys of the instructions to pair")
    device = traits.Str("cpu", usedefault=True, nohash=True)
    memory_bytes = traits.Int(2**34, usedefault=True, nohash=True, desc="memory that may be taken in all")
    max_block_bytes = traits.Int(2**31, usedefault=True, nohash=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    app_version = traits.Str(mandatory=True)


class _JointOutputSpec(TraitedSpec):
    joint = File(exists=True, desc="JSON: files of the bands and of the pairs of each model")


class FitJointly(SimpleInterface):
    """Fit bands of models jointly and part the variance of pairs of instructions."""

    input_spec = _JointInputSpec
    output_spec = _JointOutputSpec

    @on_its_device
    def _run_interface(self, runtime: Any) -> Any:
        folder = Path(runtime.cwd)
        options = fit_options_from_json(self.inputs.options)
        work = _Joint.open(self.inputs, options)
        written: dict[str, Any] = {"bands": None, "pairs": {}}
        bands = _bands(self.inputs.bands)
        if bands:
            written["bands"] = str(folder / "bands.npz")
            parts = work.parts(len(bands), len(bands), self.inputs.memory_bytes)
            save_bands(folder / "bands.npz", join_bands([part.fit_bands(bands) for part in parts]))
        for number, (model, instructions) in enumerate(json.loads(self.inputs.partition).items()):
            path = folder / f"pairs_{number}.npz"
            parts = work.parts(len(instructions), 2, self.inputs.memory_bytes)
            save_pairs(path, join_pairs([part.fit_pairs(model, instructions) for part in parts]))
            written["pairs"][model] = str(path)
        write_json(folder / "joint.json", written)
        self._results["joint"] = str(folder / "joint.json")
        return runtime


def _bands(text: str) -> list[Band]:
    return [Band(one["name"], one["model"], tuple(one["instructions"])) for one in json.loads(text)]


class _Joint:
    """The brain, the features and the single scores of one participant."""

    def __init__(
        self,
        brain: Brain,
        features: Mapping[str, ModelFeatures],
        scores: Mapping[str, ModelScores],
        options: FitOptions,
        max_block_bytes: int,
    ) -> None:
        self.brain, self.features, self.scores, self.options = brain, features, scores, options
        self.max_block_bytes = max_block_bytes
        low, high, number = options.alphas
        self.alphas = alpha_grid(low, high, int(number))

    @classmethod
    def open(cls, inputs: Any, options: FitOptions) -> "_Joint":
        manifests = [read_json(Path(path)) for path in inputs.manifests]
        design = read_design(Path(inputs.design))
        lost = lost_windows(manifests)
        design = without_windows(design, {key: set(reasons) for key, reasons in lost.items()})
        rows = make_rows(design, delays=options.delays, cv=options.cv)
        brain = Brain(
            Path(read_json(Path(inputs.bold))["series"]), rows, inputs.device, wide=options.solver == "himalaya"
        )
        wanted = dict.fromkeys([*(band.model for band in _bands(inputs.bands)), *json.loads(inputs.partition)])
        features = {
            model: ModelFeatures(design, model, [one for one in manifests if one["model"] == model], options)
            for model in wanted
        }
        index = read_json(Path(inputs.scores))["models"]
        scores = {model: load_scores(Path(index[model]["scores"])) for model in wanted}
        return cls(brain, features, scores, options, inputs.max_block_bytes)

    def parts(self, n_kernels: int, n_joint: int, memory_bytes: int) -> "Iterator[_Joint]":
        """Give the same work in as many voxels at once as fit into memory."""
        rows, brain = self.brain.rows, self.brain
        n_test = max(len(fold.test) for fold in rows.folds)
        need = joint_memory(
            len(rows.run_of_row), n_test, brain.n_voxels, n_kernels=n_kernels, n_joint=n_joint, wide=brain.wide
        )
        for part in brain.parts(part_of_targets(need, brain.n_voxels, memory_bytes)):
            yield _Joint(part, self.features, self.scores, self.options, self.max_block_bytes)

    def design(self, model: str, condition: Condition, layer: int) -> Design:
        """Design of one feature space."""
        return Space(self.features[model].matrix(self.brain.rows, condition, layer), self.brain, None).whole

    def fit_bands(self, bands: Sequence[Band]) -> BandScores:
        """Fit bands jointly, and jointly without each."""
        names = [band.name for band in bands]
        parts: list[tuple[Any, ...]] = []
        spaces = []
        for number, fold in enumerate(tqdm(self.brain.rows.folds, desc=f"fit bands {', '.join(names)}", unit="fold")):
            designs, labels = zip(*(self.band_design(band, number) for band in bands), strict=True)
            spaces.append(labels)
            joint = self._banded(designs, fold)
            scores = self._score(joint.predictions, fold)
            without = [self._without(designs, place, fold) for place in range(len(bands))]
            truth = mean_of_viewings(self.brain.Y, fold.scored)
            parted = joint.band_predictions
            if fold.viewings is not None:
                parted = np.stack([scored_predictions(own, fold) for own in parted])
            less = (np.stack([one.r for one in without]), np.stack([one.r2 for one in without]))
            parts.append((scores.r, scores.r2, _product(truth, parted), *less, joint.band_weights))
        return BandScores(tuple(names), tuple(spaces), *_means(parts))

    def fit_pairs(self, model: str, instructions: Sequence[str]) -> PairScores:
        """Fit every condition of a model and every pair of them, at the layer that training prefers."""
        scores = self.scores[model]
        conditions = instructed_conditions(model, scores.conditions, instructions, least=2)
        pairs = tuple(combinations(range(len(conditions)), 2))
        parts: list[tuple[Any, ...]] = []
        layers = []
        for number, fold in enumerate(self.brain.rows.folds):
            layers.append(self._best_layer(model, conditions, number))
            designs = [self.design(model, condition, layers[-1]) for condition in conditions]
            single = [self._single(design, fold) for design in designs]
            joint = [
                self._score(self._banded([designs[a], designs[b]], fold).predictions, fold)
                for a, b in tqdm(pairs, desc=f"fit pairs {model} {fold.name}", unit="pair")
            ]
            parts.append(
                tuple(
                    np.stack([getattr(one, name) for one in some]) for some in (single, joint) for name in ("r", "r2")
                )
            )
        labels = tuple(condition.label for condition in conditions)
        return PairScores(model, labels, tuple(layers), pairs, *_means(parts))

    def band_design(self, band: Band, fold: int) -> tuple[Design, str]:
        """Design of a band in one outer fold, and what it is made of."""
        if not band.instructions:
            condition, layer = self._best_space(band.model, fold)
            return self.design(band.model, condition, layer), f"{condition.label} layer {layer}"
        conditions = instructed_conditions(band.model, self.scores[band.model].conditions, band.instructions, least=1)
        layer = self._best_layer(band.model, conditions, fold)
        # The Gram matrix of columns side by side is the sum of theirs.
        grams = (gram_of(self.design(band.model, condition, layer)) for condition in conditions)
        total = next(grams).clone()
        for gram in grams:
            total.add_(gram)
        return Design("kernel", total), f"{' '.join(condition.label for condition in conditions)} layer {layer}"

    def _best_layer(self, model: str, conditions: Sequence[Condition], fold: int) -> int:
        """Layer with the highest training score of the whole brain, mean over some conditions."""
        scores = self.scores[model]
        own = [scores.conditions.index(condition) for condition in conditions]
        return scores.layers[int(np.nan_to_num(scores.fold_cv_r2[fold][own].mean(axis=0), nan=-1.0).argmax())]

    def _best_space(self, model: str, fold: int) -> tuple[Condition, int]:
        scores = self.scores[model]
        values = np.nan_to_num(scores.fold_cv_r2[fold], nan=-1.0)
        condition, layer = np.unravel_index(int(values.argmax()), values.shape)
        return scores.conditions[condition], scores.layers[layer]

    def _banded(self, designs: Sequence[Design], fold: Fold) -> BandedFit:
        weights = band_weights(2, PAIR_POINTS) if len(designs) == 2 else None
        return fit_banded(
            designs, self.brain.targets, fold, alphas=self.alphas, weights=weights, solver=self.options.solver,
            device=self.brain.device, max_block_bytes=self.max_block_bytes,
        )  # fmt: skip

    def _single(self, design: Design, fold: Fold) -> ColumnScores:
        fit = fit_ridge(
            design, self.brain.targets, fold, alphas=self.alphas, solver=self.options.solver,
            device=self.brain.device, max_block_bytes=self.max_block_bytes,
        )  # fmt: skip
        return self._score(fit.predictions, fold)

    def _without(self, designs: Sequence[Design], band: int, fold: Fold) -> ColumnScores:
        others = [design for number, design in enumerate(designs) if number != band]
        if len(others) == 1:
            return self._single(others[0], fold)
        return self._score(self._banded(others, fold).predictions, fold)

    def _score(self, predictions: FloatArray, fold: Fold) -> ColumnScores:
        scored = scored_predictions(predictions, fold)
        return score_fold(self.brain.Y, scored, fold, self.brain.rows.segment_of_row, device=self.brain.device)


def join_bands(parts: Sequence[BandScores]) -> BandScores:
    """Put together the scores of parts of the voxels, in their order."""
    names = ("r", "r2", "product_r2", "r_without", "r2_without", "weights")
    return replace(parts[0], **_concatenated(parts, names))


def join_pairs(parts: Sequence[PairScores]) -> PairScores:
    """Put together the scores of parts of the voxels, in their order."""
    return replace(parts[0], **_concatenated(parts, ("r", "r2", "pair_r", "pair_r2")))


def _concatenated(parts: Sequence[BandScores] | Sequence[PairScores], names: Sequence[str]) -> dict[str, Any]:
    return {name: np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names}


def instructed_conditions(
    model: str, conditions: Sequence[Condition], instructions: Sequence[str], *, least: int
) -> tuple[Condition, ...]:
    """Conditions of the first pooling that carries at least so many of the instructions.

    Raises
    ------
    DesignError
        When no pooling does.
    """
    for pooling in dict.fromkeys(condition.pooling for condition in conditions):
        own = tuple(c for c in conditions if c.pooling == pooling and c.instruction in instructions)
        if len(own) >= least:
            return own
    raise DesignError(
        f"{model} has fewer than {least} of the instructions {', '.join(instructions)} under any pooling; name a model "
        "that follows instructions and ask for these."
    )


def _product(truth: FloatArray, band_predictions: FloatArray) -> FloatArray:
    """Product measure about the mean of the held-out rows, to which R2 refers, in blocks of voxels."""
    centred = truth - truth.mean(axis=0)
    parts = []
    for start in range(0, truth.shape[1], 4096):
        block = slice(start, start + 4096)
        predicted = band_predictions[:, :, block] - truth[:, block].mean(axis=0) / len(band_predictions)
        parts.append(product_measure(centred[:, block], predicted))
    return np.concatenate(parts, axis=1)


def _means(parts: Sequence[tuple[Any, ...]]) -> list[FloatArray]:
    """Mean over folds of each array, float32."""
    return [np.mean(np.stack(arrays), axis=0).astype(np.float32) for arrays in zip(*parts, strict=True)]
