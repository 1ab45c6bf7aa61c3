"""Pictures and tables of the pages, from maps and tables on disk."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from bids_mllm.io.files import read_tsv
from bids_mllm.io.results import ModelResult, table_paths
from bids_mllm.records import FloatArray
from bids_mllm.report.content import Picture, Table
from bids_mllm.report.pages import ModelPictures
from bids_mllm.report.tables import roi_table
from bids_mllm.workflows.canvas import canvas_of


def best_maps(results: Sequence[ModelResult], *, who: str = "this participant") -> tuple[ModelPictures, ...]:
    """Return for each model the maps of the best r, the best layer and the best condition."""
    tops = {place: _common_top([one for one in results if one.name.place == place]) for place in _places(results)}
    return tuple(
        ModelPictures(result.heading(results), _maps_of(result, top=tops[result.name.place], who=who))
        for result in results
    )


def _places(results: Sequence[ModelResult]) -> list[str]:
    return list(dict.fromkeys(result.name.place for result in results))


def _common_top(results: Sequence[ModelResult]) -> float | None:
    """One upper end of the colour scale for all models, so that their maps can be compared by eye."""
    values = [one[np.isfinite(one)] for one in (result.map("r", "best")[0] for result in results)]
    flat = np.concatenate(values) if values else np.array([])
    return float(max(np.percentile(flat, 99.5), 0.05)) if flat.size else None


def _maps_of(result: ModelResult, *, top: float | None, who: str) -> tuple[Picture, ...]:
    sidecar = result.sidecar()
    values, grid = result.map("r", "best")
    canvas = canvas_of(result.name, grid)
    many = len(sidecar["Conditions"]) * len(sidecar["Layers"]) > 1
    chosen = ", condition and layer chosen inside training" if many else ""
    where = canvas.words
    mean = ", mean over participants" if result.name.participant is None else ""
    pictures = [
        Picture(
            canvas.scores(values, top=top, label="held-out r"),
            f"{where} the held-out correlation of {result.model} in {who}; {canvas.peak(values)}.",
            f"Held-out r of {result.model}{mean}{chosen}; r below 0 is not coloured. {canvas.note}".rstrip(),
        )
    ]
    if len(sidecar["Layers"]) > 1:
        layers, _ = result.map("bestlayer", None)
        positions = np.where(np.isfinite(layers), np.searchsorted(sidecar["Layers"], np.nan_to_num(layers)), np.nan)
        pictures.append(
            Picture(
                canvas.layers(_only_predicted(positions, values), sidecar["Layers"]),
                f"{where} the layer of {result.model} with the highest training-internal score.",
                "Best layer, chosen inside training, where held-out r is above 0.",
            )
        )
    if len(sidecar["Conditions"]) > 1:
        names, _ = result.map("bestcondition", None)
        pictures.append(
            Picture(
                canvas.categories(_only_predicted(names, values), sidecar["Conditions"], label="condition"),
                f"{where} the condition of {result.model} with the highest training-internal score.",
                "Best condition (pooling and instruction), chosen inside training, where held-out r is above 0.",
            )
        )
    return tuple(pictures)


def _only_predicted(values: FloatArray, scores: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore"):
        return np.where(scores > 0, values, np.nan)


def score_table(results: Sequence[ModelResult]) -> Table:
    """Return per model how its nested choice scores over the brain."""
    units, rows = units_of(results), []
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
        "Model", units.capitalize(), "Mean r", "Median r", "95th percentile", "Highest r", "Share with q <= .05",
        "Mean r / ceiling",
    )  # fmt: skip
    return Table(f"Held-out r over all {units}; condition and layer chosen inside training.", columns, tuple(rows))


def units_of(results: Sequence[ModelResult]) -> str:
    """Say what the places of some results are: voxels, vertices, grayordinates, parcels; places where they differ."""
    names = {result.name.units for result in results}
    return names.pop() if len(names) == 1 else "places"


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


def region_tables(results: Sequence[ModelResult]) -> tuple[Table, ...]:
    """Return a table for each atlas of each model's nested choice."""
    by_atlas: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(dict)
    for result in results:
        for atlas, path in table_paths(result, "scores").items():
            by_atlas[atlas][result.model] = read_tsv(path, lambda row: row["condition"] == row["layer"] == "best")
    tables = []
    for atlas, of_model in by_atlas.items():
        kinds = {row["roi"]: row["kind"] for rows in of_model.values() for row in rows}
        rois = sorted(kinds, key=lambda roi: kinds[roi] == "area")
        mean_r = np.array([[_value(rows, roi, "r") for roi in rois] for rows in of_model.values()])
        of_any = [row for rows in of_model.values() for row in rows]
        voxels = [int(_value(of_any, roi, "n_voxels")) for roi in rois]
        caption = f"Mean r of each ROI of {atlas}."
        tables.append(
            roi_table(rois, list(of_model), mean_r, n_voxels=voxels, units=units_of(results), caption=caption)
        )
    return tuple(tables)


def _value(rows: Sequence[dict[str, str]], roi: str, column: str) -> float:
    text = next((row[column] for row in rows if row["roi"] == roi), "n/a")
    return float("nan") if text == "n/a" else float(text)
