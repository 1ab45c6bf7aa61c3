"""Drawing of brain maps from the table and the options of a figure; only the grid comes from a map on disk."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np
from matplotlib.figure import Figure

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.cortex import cortex_of
from bids_mllm.io.grids import GrayordinateGrid, Grid, VolumeGrid
from bids_mllm.io.maps import load_map
from bids_mllm.io.templates import DEEP_SPACE
from bids_mllm.records import BoolArray, FloatArray
from bids_mllm.report import brain_colours
from bids_mllm.report.brain_colours import Paint
from bids_mllm.report.brain_figures import Brain, draw_brain_map
from bids_mllm.report.figures import FigureData, columns_of
from bids_mllm.report.maps import anatomy_of
from bids_mllm.workflows.canvas import template_background

#: How the kinds of brain maps begin.
PREFIX = "map-"

Columns = Mapping[str, FloatArray]
#: From the values of every place and the options to colours, by the kind of figure.
_PAINTS: Mapping[str, Callable[[Columns, Mapping[str, Any]], Paint]] = {
    "map-scores": lambda of, o: brain_colours.score_paint(of["value"], top=o["Top"], label=o["Label"]),
    "map-ceiling": lambda of, o: brain_colours.score_paint(of["value"], top=o["Top"], label=o["Label"]),
    "map-thresholded": lambda of, o: brain_colours.thresholded_paint(
        of["value"], np.nan_to_num(of["significant"]) > 0, top=o["Top"], label=o["Label"]
    ),
    "map-contrast": lambda of, o: brain_colours.contrast_paint(
        of["value"], of["value_b"], top=o["Top"], names=o["Names"], label=o["Label"]
    ),
    "map-layer": lambda of, o: brain_colours.layer_paint(_positions(of["value"], o), o["Names"], label=o["Label"]),
    "map-category": lambda of, o: brain_colours.category_paint(of["value"], o["Names"], label=o["Label"]),
    "map-labels": lambda of, o: brain_colours.label_paint(of["value"], o["Names"], label=o["Label"]),
}


def _positions(layers: FloatArray, options: Mapping[str, Any]) -> FloatArray:
    return np.where(np.isfinite(layers), np.searchsorted(options["Names"], np.nan_to_num(layers)), np.nan)


def views_of(space: str, grid: Grid) -> tuple[str, ...]:
    """Return the rows of panels that maps of a space can be drawn as; none where no surface is at hand.

    Parameters
    ----------
    space
        Label of the space.
    grid
        Of its maps.
    """
    nothing = np.zeros(grid.n_places, dtype=bool)
    cortex = cortex_of(space, grid, nothing)
    surfaces = () if cortex is None else ("inflated",) if cortex.flat is None else ("inflated", "flat")
    if isinstance(grid, VolumeGrid):
        return ("glass", "slices", *surfaces) if surfaces else ("slices",)
    if isinstance(grid, GrayordinateGrid) and surfaces and np.any(grid.axis.volume_mask):
        return ("slices", *surfaces)
    return surfaces


def draw_brain(data: FigureData, output_dir: Path) -> Figure:
    """Draw a brain map.

    Parameters
    ----------
    data
        Of a kind that begins with ``map-``: in its rows the column ``place``, the position in the map of
        ``options["Sources"][0]`` counted from 0, and the values.
    output_dir
        Folder of the outputs, in which the grid of that map is found.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputDataError
        When the kind is unknown, or the map cannot be read or has other places.
    """
    if data.kind not in _PAINTS:
        raise InputDataError(f"The figure {data.name} is of the kind {data.kind!r}; known are {', '.join(_PAINTS)}.")
    grid = _grid_of(data, output_dir)
    columns, shown = _columns(data, grid)
    paint = _PAINTS[data.kind](columns, data.options)
    names = data.options["Names"] if data.kind == "map-labels" else ()
    brain = _brain_of(data.options["Space"], grid, shown)
    return draw_brain_map(brain, paint, data.options["Views"], names=names)


def _grid_of(data: FigureData, output_dir: Path) -> Grid:
    import zlib

    from nibabel.filebasedimages import ImageFileError

    path = output_dir / data.options["Sources"][0]
    try:
        return load_map(path)[1]
    except (OSError, EOFError, ValueError, KeyError, IndexError, zlib.error, ImageFileError, ExpatError) as error:
        raise InputDataError(
            f"The figure {data.name} lies on the grid of {path}, which cannot be read ({error}); run the level that "
            "writes this map again."
        ) from error


def _columns(data: FigureData, grid: Grid) -> tuple[dict[str, FloatArray], BoolArray]:
    """Return the values of every place, NaN where a row has none, and which places have a row."""
    rows = columns_of(data.rows)
    places = rows.pop("place", np.zeros(0)).astype(np.int64)
    if places.size and not 0 <= places.min() <= places.max() < grid.n_places:
        raise InputDataError(
            f"The figure {data.name} has the place {places.max()}, but {data.options['Sources'][0]} has {grid.words}; "
            "write the figure anew by running the same level with --reports-only."
        )
    shown = np.zeros(grid.n_places, dtype=bool)
    shown[places] = True
    columns = {name: np.full(grid.n_places, np.nan) for name in (rows or ("value", "value_b", "significant"))}
    for name, values in rows.items():
        columns[name][places] = values
    return columns, shown


def _brain_of(space: str, grid: Grid, shown: BoolArray) -> Brain:
    cortex = cortex_of(space, grid, shown)
    volume = _volume_of(grid, shown)
    background = space if isinstance(grid, VolumeGrid) else DEEP_SPACE
    anatomy = anatomy_of(template_background(background)) if volume is not None else None
    if cortex is None:
        return Brain(volume=volume, anatomy=anatomy)
    return Brain(cortex.inflated, cortex.flat, cortex.left, cortex.right, volume, anatomy)


def _volume_of(grid: Grid, shown: BoolArray) -> Any:
    """Return an image with the place of each voxel that is shown, -1 elsewhere; None without voxels."""
    import nibabel as nib

    places = np.where(shown, np.arange(grid.n_places), -1)
    if isinstance(grid, VolumeGrid):
        return nib.Nifti1Image(places.reshape(grid.shape).astype(np.int32), grid.affine)
    if not isinstance(grid, GrayordinateGrid) or not np.any(grid.axis.volume_mask):
        return None
    axis = grid.axis
    volume = np.full(axis.volume_shape, -1, dtype=np.int32)
    volume[tuple(axis.voxel[axis.volume_mask].T)] = places[axis.volume_mask]
    return nib.Nifti1Image(volume, axis.affine)
