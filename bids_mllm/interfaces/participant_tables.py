"""Rows of a participant's tables, and the comparison of its models: plain functions, usable without nipype."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bids_mllm.group.counts import choice_rows
from bids_mllm.interfaces.participant_maps import ModelResults, pair_labels, pair_partitions, relative_depths
from bids_mllm.outcomes import CeilingMap, PairScores
from bids_mllm.records import Atlas, BoolArray, FloatArray, IntArray
from bids_mllm.score.layers import (
    hierarchy_correlation,
    layer_profile,
    preferred_depth_argmax,
    preferred_depth_mass,
)
from bids_mllm.score.multiplicity import fdr, simes
from bids_mllm.score.paired import BlockScores, PairedTest, paired_sign_flip, region_sign_flip
from bids_mllm.score.roi import BEST, LEVEL, VoxelStatistics, region_means, roi_table

ALL = "all"
# Blocks from which signs can be flipped; the smallest attainable p stands beside every test.
MIN_BLOCKS = 2
Method = Literal["bh", "by"]


@dataclass(frozen=True)
class ComparisonOptions:
    """How models are compared and p-values are adjusted."""

    fdr: Method = "bh"
    n_permutations: int = 5000
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """One pair of models: the test of every voxel, its false discovery rate over all pairs, and that of regions."""

    model_a: str
    model_b: str
    test: PairedTest
    q: FloatArray
    regional: PairedTest


def rate_of(results: Mapping[str, FloatArray], method: Method) -> dict[str, FloatArray]:
    """False discovery rate over the voxels of all models together; `results` are p-values (n_voxels,) by model."""
    if not results:
        return {}
    q = fdr(np.stack(list(results.values())), method=method)
    return dict(zip(results, q, strict=True))


def compare_pairs(
    models: Sequence[str],
    blocks: Callable[[str], BlockScores],
    atlases: Sequence[Atlas],
    options: ComparisonOptions,
) -> list[Comparison]:
    """Compare every pair of models on the same held-out rows.

    Parameters
    ----------
    models
    blocks
        Gives the block scores of a model; those of two are held at once.
    atlases
    options

    Returns
    -------
    comparisons : list of Comparison
        None where there are fewer than two models or blocks.
    """
    found: list[tuple[str, str, PairedTest, PairedTest]] = []
    held: dict[str, BlockScores] = {}
    for a, b in pair_labels(models):
        held = {model: held[model] if model in held else blocks(model) for model in (a, b)}
        first, second = held[a], held[b]
        if len(first.products) < MIN_BLOCKS:
            return []
        regions = _masks(_regions(atlases, first.products.shape[1]), first.products.shape[1])
        chosen = (options.n_permutations, options.seed)
        test = paired_sign_flip(first, second, n_permutations=chosen[0], seed=chosen[1])
        regional = region_sign_flip(first, second, regions, n_permutations=chosen[0], seed=chosen[1])
        found.append((a, b, test, regional))
    if not found:
        return []
    rates = fdr(np.stack([test.p for _, _, test, _ in found]), method=options.fdr)
    return [Comparison(a, b, test, q, regional) for (a, b, test, regional), q in zip(found, rates, strict=True)]


def comparison_rows(
    participant: str, comparisons: Sequence[Comparison], atlases: Sequence[Atlas], options: ComparisonOptions
) -> list[dict[str, Any]]:
    """One row a pair and region: the mean difference over the voxels of the region and its sign-flip p."""
    rows = []
    for one in comparisons:
        for number, region in enumerate(_regions(atlases, len(one.q))):
            voxels = region.members[np.isfinite(one.test.difference[region.members])]
            own = one.test.difference[voxels]
            significant = one.q[voxels] <= LEVEL
            rows.append(
                {
                    "participant": participant,
                    "model_a": one.model_a,
                    "model_b": one.model_b,
                    "roi": region.name,
                    "kind": region.kind,
                    "coverage": region.coverage,
                    "mean_difference": float(one.regional.difference[number]),
                    "share_a_higher": float((own > 0).mean()) if own.size else float("nan"),
                    "n_voxels": int(own.size),
                    "p": float(one.regional.p[number]),
                    "smallest_p": one.regional.smallest_p,
                    "n_a_higher": int((significant & (own > 0)).sum()),
                    "n_b_higher": int((significant & (own < 0)).sum()),
                }
            )
    if rows:
        for row, q in zip(rows, fdr(np.array([row["p"] for row in rows]), method=options.fdr), strict=True):
            row["q"] = float(q)
    return rows


@dataclass(frozen=True)
class _Region:
    """A region that has rows, and the positions of its voxels."""

    name: str
    kind: str
    members: IntArray
    coverage: float


def _regions(atlases: Sequence[Atlas], n_voxels: int) -> list[_Region]:
    """Return everything that has rows: all voxels, then the regions of every atlas."""
    regions = [_Region(ALL, ALL, np.arange(n_voxels), 1.0)]
    for atlas in atlases:
        prefix = f"{atlas.name}:" if len(atlases) > 1 else ""
        parts = zip(atlas.names, atlas.kinds, atlas.members, atlas.total_voxels, strict=True)
        regions += [_Region(f"{prefix}{name}", kind, own, len(own) / total) for name, kind, own, total in parts]
    return regions


def _masks(regions: Sequence[_Region], n_voxels: int) -> BoolArray:
    """Return the voxels of each region, (n_regions, n_voxels)."""
    masks = np.zeros((len(regions), n_voxels), dtype=bool)
    for mask, region in zip(masks, regions, strict=True):
        mask[region.members] = True
    return masks


def with_whole(atlas: Atlas) -> Atlas:
    """Return the atlas with all voxels that have scores as its first region, unless it has one of that name."""
    if ALL in atlas.names:
        return atlas
    return replace(
        atlas,
        members=(np.arange(atlas.n_voxels), *atlas.members),
        names=(ALL, *atlas.names),
        kinds=(ALL, *atlas.kinds),
        indices=(None, *atlas.indices),
        total_voxels=(atlas.n_voxels, *atlas.total_voxels),
        hierarchy=(float("nan"), *atlas.hierarchy) if atlas.hierarchy else (),
    )


def score_rows(participant: str, results: ModelResults, atlas: Atlas, seed: int) -> list[dict[str, Any]]:
    """Rows of the table of scores of one model: all voxels and every region of the atlas.

    Rows of the nested choice have `p`, Simes' combination of the p of the region's voxels: of the hypothesis that
    the model predicts none of them.
    """
    held_out = results.held_out
    atlas = with_whole(atlas)
    n_voxels = len(held_out.p)
    ceiling = np.full(n_voxels, np.nan) if results.ceiling is None else results.ceiling.ceiling
    known = VoxelStatistics(
        ceiling, results.q, held_out.r_by_run, np.asarray(held_out.facts["RowsByRun"], dtype=int), seed
    )
    depths = dict(zip(results.scores.layers, relative_depths(results.scores, results.n_layers).tolist(), strict=True))
    rows = roi_table(results.scores, atlas, known)
    tested = {name: simes(held_out.p[own]) for name, own in zip(atlas.names, atlas.members, strict=True)}
    nan = float("nan")
    return [
        {
            "participant": participant,
            **row,
            "depth": depths.get(row["layer"], nan),
            "p": tested[row["roi"]] if row["condition"] == row["layer"] == BEST else nan,
        }
        for row in rows
    ]


def count_rows(participant: str, results: ModelResults, atlas: Atlas) -> list[dict[str, Any]]:
    """Count in every region the voxels that prefer each condition and layer by training-internal scores."""
    scores = results.scores
    atlas = with_whole(atlas)
    rows = []
    for place, own in enumerate(atlas.members):
        heads = {
            "participant": participant,
            "model": scores.model,
            "roi_index": atlas.indices[place],
            "roi": atlas.names[place],
            "kind": atlas.kinds[place],
        }
        choices: dict[str, tuple[IntArray | FloatArray, Sequence[Any]]] = {
            "condition": (scores.best_condition[own], [condition.label for condition in scores.conditions]),
            "layer": (scores.best_layer[own], scores.layers),
        }
        rows += choice_rows(heads, choices, scores.best_r[own])
    return rows


def layer_rows(participant: str, results: ModelResults, atlas: Atlas) -> list[dict[str, Any]]:
    """Preferred depth of every region under every condition, by training-internal scores."""
    scores = results.scores
    if len(scores.layers) < 2:
        return []
    depths = relative_depths(scores, results.n_layers)
    rows = []
    for number, condition in enumerate(scores.conditions):
        profile = layer_profile(scores.cv_r2[number], atlas.members).T
        by_voxel = preferred_depth_argmax(scores.cv_r2[number], depths=depths)
        columns = {
            "depth": preferred_depth_argmax(profile, depths=depths),
            "depth_mass": preferred_depth_mass(profile, depths=depths),
            "depth_voxels": region_means(by_voxel, atlas),
        }
        for place, name in enumerate(atlas.names):
            rows.append(
                {
                    "participant": participant,
                    "model": scores.model,
                    "condition": condition.label,
                    "roi_index": atlas.indices[place],
                    "roi": name,
                    "kind": atlas.kinds[place],
                    "hierarchy": atlas.hierarchy[place] if atlas.hierarchy else float("nan"),
                    "n_voxels": int(np.isfinite(by_voxel[atlas.members[place]]).sum()),
                    **{measure: float(values[place]) for measure, values in columns.items()},
                }
            )
    return rows


def hierarchy_rows(rows: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Correlate the depths of `layer_rows` with the hierarchy, one row a condition and measure."""
    found = []
    for model, condition in dict.fromkeys((row["model"], row["condition"]) for row in rows):
        own = [row for row in rows if (row["model"], row["condition"]) == (model, condition)]
        ranks = np.array([row["hierarchy"] for row in own], dtype=np.float64)
        if not np.isfinite(ranks).any():
            continue
        for measure in ("depth", "depth_mass", "depth_voxels"):
            outcome = hierarchy_correlation(np.array([row[measure] for row in own]), ranks, seed=seed)
            found.append(
                {
                    "participant": own[0]["participant"],
                    "model": model,
                    "condition": condition,
                    "measure": measure,
                    "rho": outcome.rho,
                    "p": outcome.p_value,
                    "smallest_p": outcome.smallest_p,
                    "n_rois": outcome.n_rois,
                }
            )
    return found


def partition_rows(
    participant: str, scores: PairScores, ceiling: CeilingMap | None, atlases: Sequence[Atlas]
) -> list[dict[str, Any]]:
    """Mean unique and shared parts of every pair in every region, in each measure."""
    rows = []
    for partition in pair_partitions(scores, ceiling):
        for region in _regions(atlases, scores.r.shape[1]):
            for number, (a, b) in enumerate(scores.pairs):
                parts = {
                    "unique_a": partition.unique_1[number], "unique_b": partition.unique_2[number],
                    "shared": partition.shared[number], "joint": partition.joint[number],
                }  # fmt: skip
                voxels = region.members[np.isfinite(parts["joint"][region.members])]
                rows.append(
                    {
                        "participant": participant,
                        "model": scores.model,
                        "condition_a": scores.conditions[a],
                        "condition_b": scores.conditions[b],
                        "roi": region.name,
                        "kind": region.kind,
                        "measure": partition.measure,
                        **{k: float(v[voxels].mean()) if voxels.size else float("nan") for k, v in parts.items()},
                        "n_voxels": int(voxels.size),
                    }
                )
    return rows
