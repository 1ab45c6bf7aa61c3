"""Means of the maps within the regions of an atlas, as rows of a long table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_mllm.outcomes import ModelScores
from bids_mllm.records import Atlas, BoolArray, Condition, FloatArray, IntArray
from bids_mllm.score.bootstrap import bootstrap_runs
from bids_mllm.score.ceiling import normalized_correlation
from bids_mllm.score.selection import at_choice
from bids_mllm.validation import check_same_samples

BEST = "best"
# False discovery rate up to which a voxel counts as predicted.
LEVEL = 0.05


@dataclass(frozen=True)
class VoxelStatistics:
    """What is known of the voxels besides the scores of one model.

    Attributes
    ----------
    ceiling : (n_voxels,) float
        Noise ceiling; NaN everywhere where there is none.
    q : (n_voxels,) float
        False discovery rate of the model's nested choice.
    r_by_run : (n_runs, n_voxels) float
        Of the model's nested choice.
    n_rows : (n_runs,) int
        Rows of each run.
    seed
        Of the bootstrap over runs.
    """

    ceiling: FloatArray
    q: FloatArray
    r_by_run: FloatArray
    n_rows: IntArray
    seed: int = 0


def roi_table(scores: ModelScores, atlas: Atlas, known: VoxelStatistics | None = None) -> list[dict[str, Any]]:
    """Mean scores of every feature space in every region.

    Rows come for each condition and layer, for each condition with the layer chosen inside the training
    rows (layer ``best``), and for the model with both chosen (condition and layer ``best``). The `cv_r2`
    and the edge share of ``best`` rows are those of the feature space with the highest mean `cv_r2` of
    each voxel; the held-out scores are those of the choice made in each outer fold.

    Parameters
    ----------
    scores
        Maps (..., n_voxels) of one participant and model.
    atlas
        Regions of the same voxels, which may overlap.
    known
        Ceiling, significance and scores by run; None leaves what needs them NaN.

    Returns
    -------
    rows : list of dict
        Keys model, condition, pooling, instruction, layer (int or ``best``), roi_index (None for groups and sets), roi,
        kind (area, group or set), n_voxels (with a finite r), coverage (voxels in the mask over voxels of the whole
        region), r, r2, cv_r2
        (means over finite voxels, NaN where there is none), alpha_edge_share, r_normalized, noise_ceiling and
        n_ceiling (over voxels with a ceiling of at least 0.05), and in the row of the model's nested choice r_low and
        r_high (95 % bootstrap over runs) and significant_share. `r2` is NaN in the ``best`` rows of a condition, for
        which no held-out R2 is kept.
    """
    check_same_samples("the maps", scores.r.shape[-1], "the atlas", atlas.n_voxels)
    rows: list[dict[str, Any]] = []
    for index, condition in enumerate(scores.conditions):
        heads = _heads(scores.model, condition)
        for layer_index, layer in enumerate(scores.layers):
            place = (index, layer_index)
            maps = {"r": scores.r[place], "r2": scores.r2[place], "cv_r2": scores.cv_r2[place]}
            rows += _region_rows({**heads, "layer": layer}, maps, scores.alpha_edge[place], atlas, known)
        rows += _condition_best_rows(scores, index, heads, atlas, known)
    return rows + _model_best_rows(scores, atlas, known)


def _heads(model: str, condition: Condition) -> dict[str, Any]:
    return {
        "model": model,
        "condition": condition.label,
        "pooling": condition.pooling,
        "instruction": condition.instruction,
    }


def _condition_best_rows(
    scores: ModelScores, index: int, heads: Mapping[str, Any], atlas: Atlas, known: VoxelStatistics | None
) -> list[dict[str, Any]]:
    layer = scores.condition_best_layer[index]
    condition = np.where(layer >= 0, index, -1)
    maps = {
        "r": scores.condition_best_r[index],
        "r2": np.full(layer.shape, np.nan),
        "cv_r2": at_choice(scores.cv_r2, condition, layer, np.nan),
    }
    edge = at_choice(scores.alpha_edge, condition, layer, False)
    return _region_rows({**heads, "layer": BEST}, maps, edge, atlas, known)


def _model_best_rows(scores: ModelScores, atlas: Atlas, known: VoxelStatistics | None) -> list[dict[str, Any]]:
    heads = {"model": scores.model, "condition": BEST, "pooling": BEST, "instruction": None, "layer": BEST}
    place = (scores.best_condition, scores.best_layer)
    maps = {"r": scores.best_r, "r2": scores.best_r2, "cv_r2": at_choice(scores.cv_r2, *place, np.nan)}
    rows = _region_rows(heads, maps, at_choice(scores.alpha_edge, *place, False), atlas, known)
    if known is not None:
        by_run = np.stack([region_means(of_run, atlas) for of_run in known.r_by_run])
        interval = bootstrap_runs(by_run, known.n_rows.astype(np.float64), seed=known.seed)
        tested = np.isfinite(known.q)
        share = _divide(
            _region_sums((tested & (known.q <= LEVEL)).astype(np.float64), atlas),
            _region_sums(tested.astype(np.float64), atlas),
        )
        for number, row in enumerate(rows):
            row |= {"r_low": float(interval.low[number]), "r_high": float(interval.high[number])}
            row["significant_share"] = float(share[number])
    return rows


def _region_rows(
    heads: Mapping[str, Any],
    maps: Mapping[str, FloatArray],
    edge: BoolArray,
    atlas: Atlas,
    known: VoxelStatistics | None,
) -> list[dict[str, Any]]:
    n_in_mask = _region_sums(np.ones(atlas.n_voxels), atlas)
    means = {name: region_means(values, atlas) for name, values in maps.items()}
    ceiling = np.full(atlas.n_voxels, np.nan) if known is None else known.ceiling
    normalized = normalized_correlation(maps["r"], ceiling)
    held = np.isfinite(normalized)
    means |= {
        "r_normalized": region_means(normalized, atlas),
        "noise_ceiling": region_means(np.where(held, ceiling, np.nan), atlas),
    }
    n_ceiling = _region_sums(held.astype(np.float64), atlas)
    finite = np.isfinite(maps["r"])
    n_finite = _region_sums(finite.astype(np.float64), atlas)
    edge_share = _divide(_region_sums((edge & finite).astype(np.float64), atlas), n_finite)
    coverage = _divide(n_in_mask, np.asarray(atlas.total_voxels, dtype=np.float64))
    return [
        {
            **heads,
            "roi_index": roi_index,
            "roi": name,
            "kind": atlas.kinds[row],
            "n_voxels": int(n_finite[row]),
            "coverage": float(coverage[row]),
            **{key: float(values[row]) for key, values in means.items()},
            "alpha_edge_share": float(edge_share[row]),
            "n_ceiling": int(n_ceiling[row]),
            "r_low": float("nan"),
            "r_high": float("nan"),
            "significant_share": float("nan"),
        }
        for row, (roi_index, name) in enumerate(zip(atlas.indices, atlas.names, strict=True))
    ]


def region_means(values: FloatArray, atlas: Atlas) -> FloatArray:
    """Mean over the finite voxels of each region, (n_regions,); NaN where there is none."""
    finite = np.isfinite(values)
    total = _region_sums(np.where(finite, values, 0.0), atlas)
    return _divide(total, _region_sums(finite.astype(np.float64), atlas))


def _region_sums(values: FloatArray, atlas: Atlas) -> FloatArray:
    """Sum over the voxels of each region, shape (n_regions,)."""
    region, position = atlas.flat_members
    return np.bincount(region, weights=values[position], minlength=len(atlas.members)).astype(np.float64)


def _divide(total: FloatArray, count: FloatArray) -> FloatArray:
    ratio: FloatArray = np.full(total.shape, np.nan)
    np.divide(total, count, out=ratio, where=count > 0)
    return ratio
