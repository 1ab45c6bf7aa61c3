"""The viewer and the explorer of a page, from maps and tables on disk."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bids_mllm.io.derivatives import sidecar_path
from bids_mllm.io.files import read_json
from bids_mllm.io.grids import ParcelGrid
from bids_mllm.io.maps import load_map
from bids_mllm.io.results import ModelResult
from bids_mllm.records import FloatArray
from bids_mllm.report import explorer, viewer
from bids_mllm.report.content import ExplorerBlock, Picture, ViewerBlock
from bids_mllm.report.viewer import Place, Scale, ViewerMap, VolumePlace
from bids_mllm.workflows.canvas import GrayordinateCanvas, SurfaceCanvas, VolumeCanvas, canvas_of

DrawnCanvas = VolumeCanvas | SurfaceCanvas | GrayordinateCanvas
_WHOLE, _CONDITIONS = "condition and layer chosen inside training", "one condition, layer chosen inside training"
#: What the models share is listed under this name.
_SHARED = "all models"
#: Columns of the tables of regions that are offered, and what they are called.
_MEASURES = {"r": "held-out r", "r_normalized": "r / noise ceiling"}
_SCORES, _CEILING, _NORMALIZED = 0, 1, 2


def viewer_block(results: Sequence[ModelResult]) -> ViewerBlock | None:
    """Return a viewer of the maps of one participant or of the group.

    Parameters
    ----------
    results
        Its models; where they lie in several places or were held out on several films, those with the first one's.

    Returns
    -------
    ViewerBlock or None
        None for parcels, where no surface of the space is at hand, and without results.
    """
    if not results:
        return None
    own = [one for one in results if one.name == results[0].name]
    best, grid = own[0].map("r", "best")
    canvas = canvas_of(own[0].name, grid)
    if isinstance(grid, ParcelGrid) or not isinstance(canvas, DrawnCanvas):
        return None
    place = _place(canvas)
    scales = [
        viewer.score_scale("held-out r", _top(own)),
        viewer.score_scale("noise ceiling", 1.0),
        viewer.score_scale("r / noise ceiling", 1.0),
    ]
    whole, single = [], []
    for result in own:
        whole += _whole_maps(result, scales, canvas)
        single += _condition_maps(result, scales, canvas)
    maps = [*whole, *_ceiling_maps(own[0], scales, canvas), *single]
    alt = f"{canvas.words} the held-out correlation of {own[0].model}; {canvas.peak(best)}."
    still = Picture(canvas.scores(best, top=_top(own), label="held-out r"), alt, f"Held-out r of {own[0].model}.")
    return viewer.viewer_block(place, scales, maps, picture=still, caption=_caption(own[0], canvas))


def _caption(result: ModelResult, canvas: DrawnCanvas) -> str:
    who = "the group, means over participants" if result.name.participant is None else f"sub-{result.name.participant}"
    below = " What lies below the cortex is in the still pictures only." if _is_deep(canvas) else ""
    note = f" {canvas.note}" if canvas.note else ""
    return f"Maps of {who}, {result.name.place}, films {result.name.task}.{note}{below}"


def _is_deep(canvas: DrawnCanvas) -> bool:
    return isinstance(canvas, GrayordinateCanvas) and bool(np.any(canvas.grid.axis.volume_mask))


def _place(canvas: DrawnCanvas) -> Place:
    if isinstance(canvas, VolumeCanvas):
        return VolumePlace(canvas.grid.shape, np.asarray(canvas.grid.affine), canvas.background)
    return canvas.meshes


def _drawn(values: FloatArray, canvas: DrawnCanvas) -> FloatArray:
    """Return the values that the viewer draws: all voxels, or the vertices of both meshes."""
    if isinstance(canvas, VolumeCanvas):
        return values
    sides = zip(canvas.sides(values), (canvas.meshes.left, canvas.meshes.right), strict=True)
    return np.concatenate([own[: len(mesh.points)] for own, mesh in sides])


def _top(results: Sequence[ModelResult]) -> float:
    """One upper end of the colours of all models, so that their maps can be compared by eye."""
    values = np.concatenate([result.map("r", "best")[0] for result in results])
    finite = values[np.isfinite(values)]
    return float(max(np.percentile(finite, 99.5), 0.05)) if finite.size else 0.05


def _whole_maps(result: ModelResult, scales: list[Scale], canvas: DrawnCanvas) -> list[ViewerMap]:
    """Return the maps of the nested choice; scales of names are added to `scales`."""
    sidecar = result.sidecar()
    best, _ = result.map("r", "best")
    found: list[tuple[str, int, FloatArray]] = [("held-out r", _SCORES, best)]
    if result.path("q", "best").is_file():
        q, _ = result.map("q", "best")
        found.append(("held-out r where q <= .05", _SCORES, np.where(np.nan_to_num(q, nan=1.0) <= 0.05, best, np.nan)))
    if result.path("rthresholded", "best").is_file():
        found.append(("held-out r where the combined q <= .05", _SCORES, result.map("rthresholded", "best")[0]))
    if result.path("rnormalized", "best").is_file():
        found.append(("r / noise ceiling", _NORMALIZED, result.map("rnormalized", "best")[0]))
    made = [
        ViewerMap(result.model, name, _WHOLE, scale, viewer.score_codes(_drawn(values, canvas), scales[scale]))
        for name, scale, values in found
    ]
    layers, conditions = sidecar["Layers"], sidecar["Conditions"]
    if len(layers) > 1:
        numbers, _ = result.map("bestlayer", None)
        positions = np.where(np.isfinite(numbers), np.searchsorted(layers, np.nan_to_num(numbers)), np.nan)
        scales.append(viewer.name_scale("layer", [f"layer {layer}" for layer in layers], ordered=True))
        made.append(_name_map(result, "best layer", positions, best, len(scales) - 1, canvas))
    if len(conditions) > 1:
        positions, _ = result.map("bestcondition", None)
        scales.append(viewer.name_scale("condition", conditions))
        made.append(_name_map(result, "best condition", positions, best, len(scales) - 1, canvas))
    return made + _choices_within_groups(result, best, scales, canvas)


def _choices_within_groups(
    result: ModelResult, best: FloatArray, scales: list[Scale], canvas: DrawnCanvas
) -> list[ViewerMap]:
    """Return the best condition within each group of instructions; their scales of names are added to `scales`."""
    pattern = result.path("bestcondition", "*")
    made = []
    for path in sorted(pattern.parent.glob(pattern.name)):
        group = path.name.partition("_desc-")[2].partition("_")[0]
        described = read_json(sidecar_path(path))
        conditions = described["Conditions"]
        names = described.get("ChosenAmong", conditions)
        numbers, _ = result.map("bestcondition", group)
        positions = np.full(numbers.shape, np.nan)
        for position, name in enumerate(names):
            positions[numbers == conditions.index(name)] = position
        scales.append(viewer.name_scale(f"condition of {group}", names))
        made.append(_name_map(result, f"best condition of {group}", positions, best, len(scales) - 1, canvas))
    return made


def _name_map(
    result: ModelResult,
    name: str,
    positions: FloatArray,
    best: FloatArray,
    scale: int,
    canvas: DrawnCanvas,
) -> ViewerMap:
    """Return a map of positions where the held-out r is above 0."""
    with np.errstate(invalid="ignore"):
        shown = np.where(best > 0, positions, np.nan)
    return ViewerMap(result.model, name, _WHOLE, scale, viewer.name_codes(_drawn(shown, canvas)))


def _condition_maps(result: ModelResult, scales: Sequence[Scale], canvas: DrawnCanvas) -> list[ViewerMap]:
    """Return the held-out r of each condition at each place's best layer."""
    sidecar = result.sidecar()
    layers, conditions = sidecar["Layers"], sidecar["Conditions"]
    if len(conditions) < 2:
        return []
    numbers = result.map("bestlayer", None)[0] if len(layers) > 1 else np.full(1, float(layers[0]))
    chosen = np.where(np.isfinite(numbers), np.searchsorted(layers, np.nan_to_num(numbers, nan=layers[0])), 0)
    maps = []
    for condition in conditions:
        if not result.path("r", condition).is_file():
            continue
        values = np.atleast_2d(result.map("r", condition)[0])
        picked = np.take_along_axis(values, np.broadcast_to(chosen, values.shape[1:])[None], axis=0)[0]
        codes = viewer.score_codes(_drawn(picked, canvas), scales[_SCORES])
        maps.append(ViewerMap(result.model, f"r of {condition}", _CONDITIONS, _SCORES, codes))
    return maps


def _ceiling_maps(result: ModelResult, scales: Sequence[Scale], canvas: DrawnCanvas) -> list[ViewerMap]:
    path = result.name.path(result.output_dir, stat="noiseceiling")
    if not path.is_file():
        return []
    codes = viewer.score_codes(_drawn(load_map(path)[0], canvas), scales[_CEILING])
    return [ViewerMap(_SHARED, "noise ceiling", "of the data", _CEILING, codes)]


def explorer_block(rows: Iterable[Mapping[str, str]], *, caption: str = "") -> ExplorerBlock | None:
    """Return an explorer of the scores of regions over layers.

    Parameters
    ----------
    rows
        Rows of the tables of regions of one atlas, as text, of one or more participants and models; scores of several
        participants are averaged.
    caption
        What the curves are of.

    Returns
    -------
    ExplorerBlock or None
        None where no model has several layers.
    """
    scored = [row for row in rows if row["layer"].isdigit()]
    kinds = {row["roi"]: row["kind"] for row in scored}
    # Sets and groups of areas first, since there are few of them.
    rois = sorted(kinds, key=lambda roi: kinds[roi] == "area")
    headings = {kind: [roi for roi in rois if kinds[roi] == kind] for kind in dict.fromkeys(kinds[roi] for roi in rois)}
    models = list(dict.fromkeys(row["model"] for row in scored))
    order = [roi for own in headings.values() for roi in own]
    scores = [_layer_scores([row for row in scored if row["model"] == model], model, order) for model in models]
    scores = [one for one in scores if len(one.layers) > 1]
    if not scores:
        return None
    return explorer.explorer_block(headings, scores, caption=caption or "Scores of regions by layer.")


def _layer_scores(rows: Sequence[Mapping[str, str]], model: str, rois: Sequence[str]) -> explorer.LayerScores:
    layers = sorted({int(row["layer"]) for row in rows})
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    roi_at, condition_at = ({name: at for at, name in enumerate(names)} for names in (rois, conditions))
    values = {}
    for column, label in _MEASURES.items():
        total, count = np.zeros((2, len(rois), len(conditions), len(layers)))
        for row in rows:
            if row.get(column, "n/a") != "n/a":
                place = roi_at[row["roi"]], condition_at[row["condition"]], layers.index(int(row["layer"]))
                total[place] += float(row[column])
                count[place] += 1
        means = np.full(total.shape, np.nan)
        np.divide(total, count, out=means, where=count > 0)
        values[label] = means
    return explorer.LayerScores(model, tuple(layers), tuple(conditions), values)
