"""Which maps are made of a participant's scores: plain functions from records to (stat, desc, values, extra)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_mllm.outcomes import BandScores, CeilingMap, HeldOut, ModelScores, PairScores
from bids_mllm.records import FloatArray
from bids_mllm.score.ceiling import normalized_correlation
from bids_mllm.score.layers import preferred_depth_argmax, preferred_depth_mass
from bids_mllm.score.partition import Partition, partition_normalized_r, partition_r2
from bids_mllm.score.selection import at_choice

Map = tuple[str, str | None, FloatArray, dict[str, Any]]


@dataclass(frozen=True)
class ModelResults:
    """All that was found of one model in one participant.

    `q` is the false discovery rate of `held_out.p` over all models; `equal_rank` None where it was not asked for;
    `n_layers` counts all layers of the model.
    """

    scores: ModelScores
    held_out: HeldOut
    q: FloatArray
    ceiling: CeilingMap | None
    equal_rank: ModelScores | None
    n_layers: int


def model_maps(results: ModelResults) -> Iterator[Map]:
    """Give every map of one model; r of the nested choice comes last, since by it a model counts as finished."""
    scores = results.scores
    chosen = {"Conditions": [c.label for c in scores.conditions], "Layers": list(scores.layers)}
    yield "r2", "best", scores.best_r2, chosen
    yield "cvr2", "best", at_choice(scores.cv_r2, scores.best_condition, scores.best_layer, np.nan), chosen
    yield "bestcondition", None, _index(scores.best_condition), chosen
    yield "bestlayer", None, _layer_numbers(scores), chosen
    yield from _inference_maps(results, chosen)
    for number in range(len(scores.conditions)):
        yield from _condition_maps(results, number)
    yield "r", "best", scores.best_r, chosen


def _inference_maps(results: ModelResults, chosen: Mapping[str, Any]) -> Iterator[Map]:
    held_out = results.held_out
    tested = {**chosen, "Test": dict(held_out.facts)}
    yield "rconcat", "best", held_out.r_concatenated, dict(chosen)
    yield "p", "best", held_out.p, tested
    yield "pfwe", "best", held_out.p_max, tested
    yield "q", "best", results.q, tested
    by_run = held_out.r_by_run[0] if len(held_out.r_by_run) == 1 else held_out.r_by_run
    yield "rbyrun", "best", by_run, {**chosen, "Runs": list(held_out.run_names)}
    if results.ceiling is not None:
        yield (
            "rnormalized",
            "best",
            normalized_correlation(results.scores.best_r, results.ceiling.ceiling),
            dict(chosen),
        )
    if results.equal_rank is not None:
        yield "requalrank", "best", results.equal_rank.best_r, dict(chosen)


def _condition_maps(results: ModelResults, number: int) -> Iterator[Map]:
    scores = results.scores
    condition, layers = scores.conditions[number], list(scores.layers)
    depths = relative_depths(scores, results.n_layers)
    extra = {"Condition": condition.label, "Layers": layers, "Depths": depths.tolist(), "Pooling": condition.pooling}
    extra |= {"Instruction": condition.instruction} if condition.instruction else {}
    arrays = {
        "r": scores.r, "rconcat": scores.r_concatenated, "r2": scores.r2, "cvr2": scores.cv_r2, "alpha": scores.alpha,
        "alphaedge": scores.alpha_edge,
    }  # fmt: skip
    if results.ceiling is not None:
        arrays["rnormalized"] = normalized_correlation(scores.r, results.ceiling.ceiling)
    if results.equal_rank is not None:
        arrays["requalrank"] = results.equal_rank.r
    for stat, array in arrays.items():
        values = np.asarray(array[number], dtype=np.float32)
        yield stat, condition.label, values[0] if len(layers) == 1 else values, dict(extra)
    if len(layers) > 1:
        whole = {name: value for name, value in extra.items() if name != "Layers"}
        for stat, preferred in (("depth", preferred_depth_argmax), ("depthmass", preferred_depth_mass)):
            yield stat, condition.label, preferred(scores.cv_r2[number], depths=depths), dict(whole)


def relative_depths(scores: ModelScores, n_layers: int) -> FloatArray:
    """Relative depth of the layers that were fitted, (n_fitted,), among all of the model."""
    return np.asarray(scores.layers, dtype=np.float64) / max(1, n_layers - 1)


def bands_maps(scores: BandScores, ceiling: CeilingMap | None) -> Iterator[Map]:
    """Give every map of a banded ridge."""
    chosen = {"Bands": list(scores.names), "Spaces": [list(own) for own in scores.spaces]}
    yield "r", "joint", scores.r, chosen
    yield "r2", "joint", scores.r2, chosen
    for number, name in enumerate(scores.names):
        extra = {**chosen, "Band": name}
        desc = re.sub("[^0-9a-zA-Z]", "", name)
        yield "r2product", desc, scores.product_r2[number], extra
        yield "bandweight", desc, scores.weights[number], extra
        yield "r2unique", desc, scores.r2 - scores.r2_without[number], extra
        if ceiling is not None:
            joint, less = (normalized_correlation(r, ceiling.ceiling) for r in (scores.r, scores.r_without[number]))
            yield "rnormalizedunique", desc, joint - less, extra
    if len(scores.names) == 2:
        # What is left of the joint fit without one band is the other band alone.
        yield "r2shared", "joint", partition_r2(scores.r2_without[1], scores.r2_without[0], scores.r2).shared, chosen


def pair_partitions(scores: PairScores, ceiling: CeilingMap | None) -> list[Partition]:
    """Part every pair, in R2 and where there is a ceiling in normalized r: arrays (n_pairs, n_voxels)."""
    first, second = (np.array([pair[side] for pair in scores.pairs]) for side in (0, 1))
    parts = [partition_r2(scores.r2[first], scores.r2[second], scores.pair_r2)]
    if ceiling is not None:
        single, joint = (normalized_correlation(r, ceiling.ceiling) for r in (scores.r, scores.pair_r))
        parts.append(partition_normalized_r(single[first], single[second], joint))
    return parts


def pairs_maps(scores: PairScores, ceiling: CeilingMap | None) -> Iterator[Map]:
    """Give every map of the pairs of one model, one volume a pair."""
    pairs = [[scores.conditions[a], scores.conditions[b]] for a, b in scores.pairs]
    extra = {"Pairs": pairs, "LayerByFold": list(scores.layers)}
    for partition in pair_partitions(scores, ceiling):
        name = "r2" if partition.measure == "R2" else "rnormalized"
        for part in ("joint", "shared", "unique_1", "unique_2"):
            stat = name + {"unique_1": "first", "unique_2": "second"}.get(part, part)
            values = getattr(partition, part)
            yield stat, "pairs", values[0] if len(pairs) == 1 else values, {**extra, "Measure": partition.measure}


def _index(choice: Any) -> FloatArray:
    return np.where(choice >= 0, choice, np.nan).astype(np.float32)


def _layer_numbers(scores: ModelScores) -> FloatArray:
    numbers = np.asarray(scores.layers, dtype=np.float32)[np.maximum(scores.best_layer, 0)]
    return np.where(scores.best_layer >= 0, numbers, np.nan).astype(np.float32)


def pair_labels(models: Sequence[str]) -> list[tuple[str, str]]:
    """Every pair of models in the order of the models."""
    return [(a, b) for number, a in enumerate(models) for b in models[number + 1 :]]
