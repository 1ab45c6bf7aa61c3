"""Brain maps of the figures, gathered from the maps on disk, and drawn again from their tables."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.exceptions import InputDataError, UsageError
from bids_mllm.group.classes import class_pairs
from bids_mllm.io.atlas import AtlasFiles, load_atlas
from bids_mllm.io.derivatives import MapName, sidecar_path
from bids_mllm.io.files import read_json
from bids_mllm.io.grids import Grid, ParcelGrid, VolumeGrid, same_grid
from bids_mllm.io.results import ModelResult
from bids_mllm.records import MAP_VIEWS, BoolArray, FloatArray
from bids_mllm.report.figures import ColumnRows, FigureData
from bids_mllm.workflows.brain_drawing import PREFIX, draw_brain, views_of
from bids_mllm.workflows.canvas import canvas_of
from bids_mllm.workflows.figure_tables import classes_of, figure_name
from bids_mllm.workflows.figures import read_figure

__all__ = ["PREFIX", "brain_figures", "draw_brain", "label_figures"]

#: Pairs of models of a place that are contrasted at most.
MAX_CONTRASTS = 6
#: Classes whose best model is contrasted with the best one of every other class before other pairs are.
_ANCHORS = frozenset({"multimodal", "unimodal"})
#: Largest false discovery rate of a significant place.
LEVEL = 0.05
_LEAST_TOP = 0.05
R = "held-out r"
#: Views of significant scores only: the glass brain has the highest value along each line of sight, which tells nothing
#: of maps that are shown wherever they are above 0.
_FOR_SIGNIFICANCE = frozenset({"glass"})


@dataclass(frozen=True)
class _Shown:
    """The grid of the maps of a place, and the views in which they are drawn."""

    grid: Grid
    views: tuple[str, ...]

    def everywhere(self) -> tuple[str, ...]:
        """Return the views of maps that are not limited to significant places."""
        return tuple(view for view in self.views if view not in _FOR_SIGNIFICANCE)


def _shown(name: MapName, grid: Grid, views: Sequence[str]) -> _Shown:
    return _Shown(grid, tuple(view for view in views_of(name.space, grid) if view in views))


def brain_figures(
    output_dir: Path,
    results: Sequence[ModelResult],
    *,
    atlases: Sequence[AtlasFiles] = (),
    views: Sequence[str] = MAP_VIEWS,
) -> list[FigureData]:
    """Return the brain maps of some results that are on disk.

    Parameters
    ----------
    output_dir
        Folder of the outputs.
    results
        All of one participant, or all of the group.
    atlases
        Whose regions are shown; of the group without any, those that were drawn for participants.
    views
        Rows of panels that are drawn where a place has them: glass, slices, inflated, flat.

    Returns
    -------
    figures : list of FigureData
        For each place its noise ceiling, the regions of the atlases and contrasts of models; for each model its
        scores, these with significance, its best layer and its best condition, over all and within each group of
        instructions. Places that have none of the views, such as parcels, have no figures.
    """
    figures: list[FigureData] = []
    for name in dict.fromkeys(result.name for result in results):
        own = [result for result in results if result.name == name]
        shown = _shown(name, own[0].map("r", "best")[1], views)
        if not shown.views:
            continue
        scores = [result.map("r", "best")[0] for result in own]
        top = _top(np.stack(scores))
        for result, values in zip(own, scores, strict=True):
            figures += _figures_of_model(output_dir, result, values, shown, top)
        figures += _contrasts(output_dir, own, scores, shown, top)
        figures += _ceilings(output_dir, own[0], shown)
        labels = label_figures(output_dir, own[0], atlases, views=views)
        figures += labels or (_labels_of_participants(output_dir, own[0], shown) if name.participant is None else [])
    return figures


def label_figures(
    output_dir: Path, result: ModelResult, atlases: Sequence[AtlasFiles], *, views: Sequence[str] = MAP_VIEWS
) -> list[FigureData]:
    """Return the regions of atlases on the grid of a result; none of those that do not serve it."""
    grid = result.map("r", "best")[1]
    shown = _shown(result.name, grid, views)
    figures = []
    for files in atlases if shown.everywhere() and not isinstance(grid, ParcelGrid) else ():
        try:
            atlas = load_atlas(files, grid, np.ones(grid.n_places, dtype=bool))
        except UsageError:
            continue
        areas = [number for number, kind in enumerate(atlas.kinds) if kind == "area"]
        names = [atlas.names[number] for number in areas]
        positions = np.full(grid.n_places, np.nan)
        for position, number in enumerate(areas):
            positions[atlas.members[number]] = position
        figures.append(
            FigureData(
                f"{PREFIX}labels",
                figure_name(result.name, "maplabels", atlas=files.name),
                f"Regions of {files.name}",
                f"Brain maps of the {len(names)} regions of the atlas {files.name}.",
                f"The {len(names)} regions of {files.name} that the tables average over.{_note(result.name, shown)}",
                _rows(positions),
                _options(output_dir, result, ("r", "best"), shown.everywhere(), names=names, label=files.name),
            )
        )
    return figures


def _labels_of_participants(output_dir: Path, result: ModelResult, shown: _Shown) -> list[FigureData]:
    """Return by atlas the regions that were drawn for the first participant of the group on the same grid.

    What cannot be read is passed over, since those of another participant do as well.
    """
    found: dict[str, FigureData] = {}
    for label in result.sidecar().get("Participants", ()):
        one = replace(result, name=replace(result.name, participant=label))
        pattern = figure_name(one.name, "maplabels", atlas="*")
        for path in sorted((output_dir / f"sub-{label}" / "figures").glob(f"{pattern}.json")):
            atlas = path.name.partition("_atlas-")[2].partition("_")[0]
            if atlas in found:
                continue
            try:
                data, own_grid = read_figure(path), one.map("r", "best")[1]
            except (InputDataError, OSError, EOFError, ValueError, KeyError, IndexError, zlib.error):
                continue
            if same_grid(own_grid, shown.grid) and shown.everywhere():
                sources = [_relative(output_dir, result, ("r", "best"))]
                options = {**data.options, "Sources": sources, "Views": list(shown.everywhere())}
                name = figure_name(result.name, "maplabels", atlas=atlas)
                found[atlas] = replace(data, name=name, options=options)
    return list(found.values())


def _figures_of_model(
    output_dir: Path, result: ModelResult, values: FloatArray, shown: _Shown, top: float
) -> list[FigureData]:
    significant, rule = _significance(result)
    figures = []
    if shown.everywhere():
        figures.append(_scores(output_dir, result, values, shown, top))
    if significant is not None:
        figures.append(_thresholded(output_dir, result, values, significant, shown, top, rule))
    if not shown.everywhere():
        return figures
    positive = np.nan_to_num(values) > 0
    some = significant is not None and bool(significant.any())
    at, where = (significant, rule) if significant is not None and some else (positive, f"{R} is above 0")
    sidecar = result.sidecar()
    if len(sidecar["Layers"]) > 1 and result.path("bestlayer", None).is_file():
        figures.append(_layers(output_dir, result, sidecar["Layers"], at, shown, where))
    figures += _categories(output_dir, result, at, shown, where)
    return figures


def _significance(result: ModelResult) -> tuple[BoolArray | None, str]:
    """Return where the nested choice is significant, None where nothing was tested, and the rule in words."""
    if result.path("rthresholded", "best").is_file():
        values, _ = result.map("rthresholded", "best")
        return np.isfinite(values) & (values != 0), f"the participants' combined tests have a q of at most {LEVEL:g}"
    if result.name.participant is not None and result.path("q", "best").is_file():
        with np.errstate(invalid="ignore"):
            return np.asarray(result.map("q", "best")[0] <= LEVEL), f"{R} is significant (q of at most {LEVEL:g})"
    return None, ""


def _scores(output_dir: Path, result: ModelResult, values: FloatArray, shown: _Shown, top: float) -> FigureData:
    return FigureData(
        f"{PREFIX}scores",
        figure_name(result.name, "mapscores", model=result.model),
        f"Scores of {result.model}",
        f"Brain maps of the {R} of {result.model} in {_who(result)}; {_peak(result.name, shown.grid, values)}.",
        f"{_mean(result)}{R} of {result.model}; where it is not above 0 nothing is coloured."
        f"{_note(result.name, shown)}",
        _rows(values),
        _options(output_dir, result, ("r", "best"), shown.everywhere(), top=top, label=R),
    )


def _thresholded(
    output_dir: Path,
    result: ModelResult,
    values: FloatArray,
    significant: BoolArray,
    shown: _Shown,
    top: float,
    rule: str,
) -> FigureData:
    share = f"{int(significant.sum())} of {int(np.isfinite(values).sum())} {result.name.units}"
    return FigureData(
        f"{PREFIX}thresholded",
        figure_name(result.name, "mapthresholded", model=result.model),
        f"Significant scores of {result.model}",
        f"Brain maps of the {R} of {result.model} in {_who(result)}, coloured in the {share} where {rule}.",
        f"{_mean(result)}{R} of {result.model}: in colour where {rule} ({share}), in grey elsewhere above 0."
        f"{_note(result.name, shown)}",
        _rows(values, significant=np.where(np.isfinite(values), significant, np.nan)),
        _options(output_dir, result, ("r", "best"), shown.views, top=top, label=R),
    )


def _layers(
    output_dir: Path, result: ModelResult, layers: Sequence[int], at: BoolArray, shown: _Shown, where: str
) -> FigureData:
    values, _ = result.map("bestlayer", None)
    values = np.where(at, values, np.nan)
    names = [int(one) for one in layers]
    return FigureData(
        f"{PREFIX}layer",
        figure_name(result.name, "maplayer", model=result.model),
        f"Best layer of {result.model}",
        f"Brain maps of the layer of {result.model} with the highest training-internal score in {_who(result)}.",
        f"Best layer of {result.model}, chosen inside training, where {where}.{_note(result.name, shown)}",
        _rows(values),
        _options(output_dir, result, ("bestlayer", None), shown.everywhere(), names=names, label="layer"),
    )


def _categories(output_dir: Path, result: ModelResult, at: BoolArray, shown: _Shown, where: str) -> list[FigureData]:
    """Best condition over all, and within each group of instructions where there is a map of it."""
    pattern = result.path("bestcondition", "*")
    descs = [path.name.partition("_desc-")[2].partition("_")[0] for path in sorted(pattern.parent.glob(pattern.name))]
    views = shown.everywhere()
    figures = []
    for desc in [None, *descs]:
        path = result.path("bestcondition", desc)
        described = read_json(sidecar_path(path)) if path.is_file() else {}
        conditions = [str(one) for one in described.get("Conditions", ())]
        names = [str(one) for one in described.get("ChosenAmong", conditions)]
        if len(names) < 2:
            continue
        values = _among(np.where(at, result.map("bestcondition", desc)[0], np.nan), conditions, names)
        within = f" among the instructions of the group {desc}" if desc else ""
        figures.append(
            FigureData(
                f"{PREFIX}category",
                figure_name(result.name, "mapcategory", model=result.model, desc=desc),
                f"Best condition of {result.model}{within}",
                f"Brain maps of the condition of {result.model} with the highest training-internal score{within} in "
                f"{_who(result)}.",
                f"Best condition of {result.model}{within}, chosen inside training, where {where}; the key counts "
                f"{result.name.units}.{_note(result.name, shown)}",
                _rows(values),
                _options(output_dir, result, ("bestcondition", desc), views, names=names, label="condition"),
            )
        )
    return figures


def _among(values: FloatArray, conditions: Sequence[str], names: Sequence[str]) -> FloatArray:
    """Return positions in some of the conditions from positions in all of them."""
    positions = np.full(values.shape, np.nan)
    for position, name in enumerate(names):
        positions[values == conditions.index(name)] = position
    return positions


def _contrasts(
    output_dir: Path, results: Sequence[ModelResult], scores: Sequence[FloatArray], shown: _Shown, top: float
) -> list[FigureData]:
    figures = []
    views = shown.everywhere()
    pairs = _pairs(results, scores) if views else []
    left_out = _left_out(len(results), len(pairs))
    for one, two in pairs:
        first, second = results[one], results[two]
        names = [first.model, second.model]
        options = _options(output_dir, first, ("r", "best"), views, top=top, names=names, label=R)
        options["Sources"] = [*options["Sources"], _relative(output_dir, second, ("r", "best"))]
        figures.append(
            FigureData(
                f"{PREFIX}contrast",
                figure_name(first.name, "mapcontrast", model=first.model, desc=f"vs{second.model}"),
                f"{first.model} and {second.model}",
                f"Brain maps of the {R} of {first.model} and of {second.model} in {_who(first)}, in two colours.",
                f"{_mean(first)}{R} of two models at once: blue where {first.model} scores higher, orange where "
                f"{second.model} does, dark where both do, pale where neither does."
                f"{_unshared(first, second)}{left_out}{_note(first.name, shown)}",
                _rows(scores[one], value_b=scores[two]),
                options,
            )
        )
    return figures


def _pairs(results: Sequence[ModelResult], scores: Sequence[FloatArray]) -> list[tuple[int, int]]:
    """Return which results are contrasted, each pair in their order.

    The best model of each class against the best multimodal and the best unimodal one comes first, then other pairs of
    these best models, then those of all others; a model is the better the higher its mean over all places.
    """
    if len(results) < 2:
        return []
    finite = [values[np.isfinite(values)] for values in scores]
    means = [float(own.mean()) if own.size else -np.inf for own in finite]
    ranked = sorted(range(len(results)), key=lambda number: -means[number])
    classes = classes_of(results)
    best: dict[str, int] = {}
    for number in ranked:
        best.setdefault(classes[results[number].model], number)
    of_classes = sorted(class_pairs(classes), key=lambda pair: _ANCHORS.isdisjoint(pair))
    pairs = [*((best[a], best[b]) for a, b in of_classes), *combinations(ranked, 2)]
    return list(dict.fromkeys((min(pair), max(pair)) for pair in pairs))[:MAX_CONTRASTS]


def _left_out(n_models: int, n_drawn: int) -> str:
    n_pairs = n_models * (n_models - 1) // 2
    if n_drawn == n_pairs:
        return ""
    return (
        f" Only {n_drawn} of the {n_pairs} pairs of models are drawn: first those of the best model of each class, by "
        "the mean over all places, with the best multimodal and the best unimodal one."
    )


def _unshared(first: ModelResult, second: ModelResult) -> str:
    """Say where two means of the group are not over the same participants."""
    one, two = (dict.fromkeys(result.sidecar().get("Participants", ())) for result in (first, second))
    alone = [(first.model, [label for label in one if label not in two])]
    alone.append((second.model, [label for label in two if label not in one]))
    words = [f"only {model} has {', '.join(f'sub-{label}' for label in labels)}" for model, labels in alone if labels]
    return f" The two means are not over the same participants: {' and '.join(words)}." if words else ""


def _ceilings(output_dir: Path, result: ModelResult, shown: _Shown) -> list[FigureData]:
    ceiling = _OfPlace(result.name, "", output_dir)
    if not shown.everywhere() or not ceiling.path("noiseceiling", None).is_file():
        return []
    values, _ = ceiling.map("noiseceiling", None)
    if not np.isfinite(values).any():
        return []
    label = "noise ceiling"
    return [
        FigureData(
            f"{PREFIX}ceiling",
            figure_name(result.name, "mapceiling"),
            "Noise ceiling",
            f"Brain maps of the noise ceiling in {_who(result)}; {_peak(result.name, shown.grid, values)}.",
            f"{_mean(result)}{label}: the highest correlation that a prediction can have on average, given the noise "
            f"of the data.{_note(result.name, shown)}",
            _rows(values),
            _options(output_dir, ceiling, ("noiseceiling", None), shown.everywhere(), top=_top(values), label=label),
        )
    ]


class _OfPlace(ModelResult):
    """Maps of a place that belong to no model."""

    def path(self, stat: str, desc: str | None, *, extension: str | None = None, atlas: str | None = None) -> Path:
        """Return the path of one of its outputs."""
        return self.name.path(self.output_dir, stat=stat, desc=desc, extension=extension, atlas=atlas)


def _top(values: FloatArray) -> float:
    """Upper end of a scale: the 99.5th percentile, so that single places do not set it."""
    finite = values[np.isfinite(values)]
    return round(max(float(np.percentile(finite, 99.5)), _LEAST_TOP), 3) if finite.size else 1.0


def _who(result: ModelResult) -> str:
    return "the group" if result.name.participant is None else f"sub-{result.name.participant}"


def _mean(result: ModelResult) -> str:
    return "Mean over participants of the " if result.name.participant is None else "The "


def _note(name: MapName, shown: _Shown) -> str:
    """Say what the drawing does not tell by itself, as a sentence with a space before it."""
    if isinstance(shown.grid, VolumeGrid) and {"inflated", "flat"} & set(shown.views):
        return " Surfaces are those of fsaverage5; each vertex shows the voxel at the middle of the cortex."
    note = canvas_of(name, shown.grid).note
    return f" {note}" if note else ""


def _peak(name: MapName, grid: Grid, values: FloatArray) -> str:
    return canvas_of(name, grid).peak(values)


def _rows(values: FloatArray, **others: FloatArray) -> ColumnRows:
    """Return a row for each place with a value, with the digits that tables have."""
    columns = {"value": values, **others}
    places = np.flatnonzero(np.any([np.isfinite(column) for column in columns.values()], axis=0))
    return ColumnRows(
        {"place": places, **{name: _as_written(np.asarray(column)[places]) for name, column in columns.items()}}
    )


def _as_written(values: FloatArray) -> FloatArray:
    numbers = np.where(np.isfinite(values), values, np.nan)
    rounded: FloatArray = np.char.mod("%.6g", numbers).astype(np.float64)
    return rounded


def _relative(output_dir: Path, result: ModelResult, what: tuple[str, str | None]) -> str:
    return result.path(*what).relative_to(output_dir).as_posix()


def _options(
    output_dir: Path, result: ModelResult, what: tuple[str, str | None], views: Sequence[str], **others: Any
) -> dict[str, Any]:
    """Return the map whose grid the places are of, its space, the views, and what the drawing of the kind needs."""
    written = {key.capitalize(): value for key, value in others.items()}
    sources = [_relative(output_dir, result, what)]
    return {"Sources": sources, "Space": result.name.space, "Views": list(views), **written}
