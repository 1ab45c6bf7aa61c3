"""Pictures and tables of the pages, from maps and tables on disk."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.io.results import ModelResult, roi_tables
from bids_mllm.records import FloatArray
from bids_mllm.report.charts import layer_curves, layer_heat_map, roi_bars
from bids_mllm.report.content import Picture, Table
from bids_mllm.report.maps import category_map, layer_map, score_map
from bids_mllm.report.pages import ModelPictures
from bids_mllm.report.tables import roi_table


def template_background(space: str) -> Any:
    """Return the T1w template of a space from TemplateFlow's folder if it is there, else None; never downloads."""
    import nibabel as nib

    home = os.environ.get("TEMPLATEFLOW_HOME")
    if not home:
        return None
    for resolution in ("02", "01"):
        path = Path(home) / f"tpl-{space}" / f"tpl-{space}_res-{resolution}_T1w.nii.gz"
        if path.is_file() and path.stat().st_size > 0:
            return nib.load(path)
    return None


def _image(volume: FloatArray, affine: Any) -> Any:
    import nibabel as nib

    return nib.Nifti1Image(np.asarray(volume, dtype=np.float32), affine)


def best_maps(results: Sequence[ModelResult], *, who: str = "this participant") -> tuple[ModelPictures, ...]:
    """Return for each model the maps of the best r, the best layer and the best condition."""
    top = _common_top(results)
    backgrounds = {space: template_background(space) for space in {result.name.space for result in results}}
    return tuple(
        ModelPictures(result.heading(results), _maps_of(result, backgrounds[result.name.space], top=top, who=who))
        for result in results
    )


def _common_top(results: Sequence[ModelResult]) -> float | None:
    """One upper end of the colour scale for all models, so that their maps can be compared by eye."""
    values = [volume[np.isfinite(volume)] for volume in (result.map("r", "best")[0] for result in results)]
    flat = np.concatenate(values) if values else np.array([])
    return float(max(np.percentile(flat, 99.5), 0.05)) if flat.size else None


def _maps_of(result: ModelResult, background: Any, *, top: float | None, who: str) -> tuple[Picture, ...]:
    sidecar = result.sidecar()
    volume, affine = result.map("r", "best")
    many = len(sidecar["Conditions"]) * len(sidecar["Layers"]) > 1
    chosen = ", condition and layer chosen inside training" if many else ""
    peak = _peak_words(volume, affine)
    pictures = [
        Picture(
            score_map(_image(volume, affine), background=background, vmax=top, label="held-out r"),
            f"Slices of the brain coloured by the held-out correlation of {result.model} in {who}; {peak}.",
            f"Held-out r of {result.model}{chosen}.",
        )
    ]
    if len(sidecar["Layers"]) > 1:
        layers, _ = result.map("bestlayer", None)
        positions = np.where(np.isfinite(layers), np.searchsorted(sidecar["Layers"], np.nan_to_num(layers)), np.nan)
        pictures.append(
            Picture(
                layer_map(
                    _image(_only_predicted(positions, volume), affine),
                    sidecar["Layers"],
                    background=background,
                ),
                f"Slices coloured by the layer of {result.model} with the highest training-internal score.",
                "Best layer, chosen inside training, where held-out r is above 0.",
            )
        )
    if len(sidecar["Conditions"]) > 1:
        names, _ = result.map("bestcondition", None)
        pictures.append(
            Picture(
                category_map(
                    _image(_only_predicted(names, volume), affine),
                    sidecar["Conditions"],
                    label="condition",
                    background=background,
                ),
                f"Slices coloured by the condition of {result.model} with the highest training-internal score.",
                "Best condition (pooling and instruction), chosen inside training, where held-out r is above 0.",
            )
        )
    return tuple(pictures)


def _only_predicted(values: FloatArray, scores: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore"):
        return np.where(scores > 0, values, np.nan)


def _peak_words(volume: FloatArray, affine: Any) -> str:
    if not np.isfinite(volume).any():
        return "no voxel has a score"
    place = np.unravel_index(int(np.nanargmax(volume)), volume.shape)
    x, y, z = (affine @ np.array([*place, 1.0]))[:3]
    return f"the highest, {np.nanmax(volume):.2f}, lies at x {x:.0f}, y {y:.0f}, z {z:.0f} mm"


def score_table(results: Sequence[ModelResult]) -> Table:
    """Return per model how its nested choice scores over the brain."""
    rows = []
    for result in results:
        r, _ = result.map("r", "best")
        values = r[np.isfinite(r)]
        best = values if values.size else np.array([np.nan])
        rows.append(
            (
                result.heading(results),
                int(values.size),
                float(best.mean()),
                float(np.median(best)),
                float(np.percentile(best, 95)),
                float(best.max()),
                _share_significant(result),
                _mean_or_none(result, "rnormalized"),
            )
        )
    columns = (
        "Model", "Voxels", "Mean r", "Median r", "95th percentile", "Highest r", "Share with q <= .05",
        "Mean r / ceiling",
    )  # fmt: skip
    return Table("Held-out r over all voxels; condition and layer chosen inside training.", columns, tuple(rows))


def _share_significant(result: ModelResult) -> float | None:
    """Share of the tested voxels with a false discovery rate of at most .05; None where nothing was tested."""
    if not result.path("q", "best").is_file():
        return None
    q, _ = result.map("q", "best")
    tested = np.isfinite(q)
    return float((q[tested] <= 0.05).mean()) if tested.any() else None


def _mean_or_none(result: ModelResult, stat: str) -> float | None:
    """Mean of a map of the nested choice; None where there is no such map."""
    if not result.path(stat, "best").is_file():
        return None
    values, _ = result.map(stat, "best")
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def roi_content(results: Sequence[ModelResult]) -> tuple[tuple[Picture, ...], tuple[Table, ...]]:
    """Return bars and a table for each atlas, of each model's nested choice."""
    by_atlas: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(dict)
    for result in results:
        for atlas, rows in roi_tables(result).items():
            by_atlas[atlas][result.model] = [r for r in rows if r["condition"] == "best" and r["layer"] == "best"]
    pictures, tables = [], []
    for atlas, of_model in by_atlas.items():
        models = list(of_model)
        rois = list(dict.fromkeys(row["roi"] for rows in of_model.values() for row in rows))
        mean_r = np.array([[_value(rows, roi, "r") for roi in rois] for rows in of_model.values()])
        voxels = [int(_value(next(iter(of_model.values())), roi, "n_voxels")) for roi in rois]
        words = f"Mean held-out r of each ROI of {atlas}, one bar a model; the table below gives the numbers."
        pictures.append(Picture(roi_bars(rois, models, mean_r), words, f"ROIs of {atlas}."))
        tables.append(roi_table(rois, models, mean_r, n_voxels=voxels, caption=f"Mean r of each ROI of {atlas}."))
    return tuple(pictures), tuple(tables)


def _value(rows: Sequence[dict[str, str]], roi: str, column: str) -> float:
    text = next((row[column] for row in rows if row["roi"] == roi), "n/a")
    return float("nan") if text == "n/a" else float(text)


def layer_pictures(results: Sequence[ModelResult]) -> tuple[ModelPictures, ...]:
    """Return, for models with several layers, curves and a heat map over the voxels that the model predicts."""
    pictures = []
    for result in results:
        sidecar = result.sidecar()
        layers, conditions = sidecar["Layers"], sidecar["Conditions"]
        if len(layers) < 2:
            continue
        chosen = _top_tenth(result.map("cvr2", "best")[0])
        means = np.array([_layer_means(result, condition, chosen) for condition in conditions])
        note = "mean over the tenth of voxels that the model predicts best inside training"
        curves = {name: means[number] for number, name in enumerate(conditions)}
        own = (
            Picture(
                layer_curves(layers, curves, title=result.model),
                f"Mean held-out r against the layer of {result.model}, one line a condition.",
                f"Held-out r by layer; {note}.",
            ),
            Picture(
                layer_heat_map(conditions, layers, means, title=result.model),
                f"Mean held-out r of {result.model} by condition and layer, as colours.",
                f"Held-out r by condition and layer; {note}.",
            ),
        )
        pictures.append(ModelPictures(result.heading(results), own))
    return tuple(pictures)


def _top_tenth(best: FloatArray) -> Any:
    finite = np.isfinite(best)
    threshold = np.percentile(best[finite], 90) if finite.any() else np.inf
    return finite & (np.nan_to_num(best, nan=-np.inf) >= threshold)


def _layer_means(result: ModelResult, condition: str, chosen: Any) -> FloatArray:
    volume, _ = result.map("r", condition)
    values = volume[chosen]
    finite = np.isfinite(values)
    total = np.where(finite, values, 0).sum(axis=0)
    count = finite.sum(axis=0)
    means: FloatArray = np.full(total.shape, np.nan, dtype=float)
    np.divide(total, count, out=means, where=count > 0)
    return means
