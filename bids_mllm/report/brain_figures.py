"""Brain maps as figures: glass brains, slices, and inflated and flat surfaces, one row of panels each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bids_mllm.records import FloatArray, IntArray
from bids_mllm.report.brain_colours import Paint, places_in_palette
from bids_mllm.report.colouring import MAP_WIDTH, Colouring
from bids_mllm.report.maps import WIDTH, SpatialImage, draw_cuts, row_heights
from bids_mllm.report.style import INK
from bids_mllm.report.surfaces import Hemispheres, Mesh, view_of, view_pixels

_TITLE = 0.24
_HEIGHTS = {"glass": 2.3, "inflated": 1.75 + _TITLE, "flat": 3.75 + _TITLE}
_PANELS = (("left", "lateral"), ("left", "medial"), ("right", "medial"), ("right", "lateral"))
_SIDES = ("left", "right")
#: Grey of a surface without sulci, lighter than any value, and the share of it that depends on where it faces.
_PLAIN, _RELIEF = 240, 0.25
#: Names of regions that are written on a flat map at most, and how far apart, as shares of its width.
_MAX_NAMES, _NAME_HEIGHT, _LETTER_WIDTH = 60, 0.03, 0.011


@dataclass(frozen=True)
class Brain:
    """Where the places of a map lie.

    Parameters
    ----------
    inflated, flat
        Surfaces; None where there are none.
    left, right : (n_vertices,) int
        The place that each vertex shows, -1 for none.
    volume
        Image of the places: voxels hold the position of their place, -1 for none; None where there are no voxels.
    anatomy
        What lies below slices, of `bids_mllm.report.maps.anatomy_of`.
    """

    inflated: Hemispheres | None = None
    flat: Hemispheres | None = None
    left: IntArray | None = None
    right: IntArray | None = None
    volume: SpatialImage | None = None
    anatomy: Any = None


def draw_brain_map(brain: Brain, paint: Paint, views: Sequence[str], *, names: Sequence[str] = ()) -> Figure:
    """Draw a map.

    Parameters
    ----------
    brain
        Where its places lie.
    paint
        Their colours, and the key.
    views
        Rows of panels: glass (maximum along the line of sight), slices, inflated, flat.
    names
        Of the colours, to be written on the flat map; none = nothing is written.

    Returns
    -------
    matplotlib.figure.Figure
        The left hemisphere is on the left everywhere, and marked so.
    """
    heights = [row_heights(brain.anatomy)["z"] + 0.05 if view == "slices" else _HEIGHTS[view] for view in views]
    figure = Figure(figsize=(WIDTH, max(sum(heights), 2.4)), facecolor="white")
    top = 1.0
    for view, inches in zip(views, heights, strict=True):
        height = inches / figure.get_figheight()
        if view in ("glass", "slices"):
            _draw_volume(figure, brain, paint, view, top=top, height=height)
        elif view == "inflated":
            _draw_inflated(figure, brain, paint, top=top, height=height)
        else:
            _draw_flat(figure, brain, paint, names, top=top, height=height)
        top -= height
    paint.add_key(figure)
    return figure


def _draw_volume(figure: Figure, brain: Brain, paint: Paint, view: str, *, top: float, height: float) -> None:
    places = np.asarray(brain.volume.get_fdata(), dtype=np.int64)  # type: ignore[union-attr]
    ranks = np.where(places >= 0, places_in_palette(paint.ranks, places), np.nan)
    if view == "slices":
        own = {"z": height * figure.get_figheight()}
        draw_cuts(
            figure, brain.volume, ranks, paint.colouring, anatomy=brain.anatomy, heights=own, top=top  # type: ignore[arg-type]
        )  # fmt: skip
    else:
        _draw_glass(figure, ranks, np.asarray(brain.volume.affine), paint.colouring, top=top, height=height)  # type: ignore[union-attr]


def _draw_glass(
    figure: Figure, ranks: FloatArray, affine: FloatArray, colouring: Colouring, *, top: float, height: float
) -> None:
    """Draw the highest rank along each line of sight; ranks begin with 1, because nilearn takes 0 as empty."""
    import nibabel as nib
    from nilearn import plotting

    shown = np.nan_to_num(ranks, nan=-1.0) >= 0
    stored = np.where(shown, ranks + 1.0, 0.0).astype(np.float32)
    display = plotting.plot_glass_brain(
        None, display_mode="lyrz", figure=figure, axes=(0.0, top - height, MAP_WIDTH, height), annotate=False,
        black_bg=False, colorbar=False,
    )  # fmt: skip
    display.annotate(size=8)
    if shown.any():
        display.add_overlay(
            nib.nifti1.Nifti1Image(stored, affine), cmap=colouring.cmap, threshold=0.5, vmin=1.0,
            vmax=float(colouring.cmap.N), resampling_interpolation="nearest",
        )  # fmt: skip


def _draw_inflated(figure: Figure, brain: Brain, paint: Paint, *, top: float, height: float) -> None:
    """Draw the left hemisphere from outside and from the middle, then the right one from the middle and outside."""
    width = MAP_WIDTH / len(_PANELS)
    share = _TITLE / figure.get_figheight()
    for number, (side, name) in enumerate(_PANELS):
        axes = _panel(figure, (number * width + 0.004, top - height, width - 0.008, height - share))
        _draw_view(axes, _mesh(brain.inflated, side), side, name, brain, paint)
        _head(figure, (number + 0.5) * width, top - 0.6 * share, f"{side[0].upper()} {name}")


def _draw_flat(figure: Figure, brain: Brain, paint: Paint, names: Sequence[str], *, top: float, height: float) -> None:
    width = MAP_WIDTH / 2
    share = _TITLE / figure.get_figheight()
    for number, side in enumerate(_SIDES):
        axes = _panel(figure, (number * width + 0.004, top - height, width - 0.008, height - share))
        seen = _draw_view(axes, _mesh(brain.flat, side), side, "lateral", brain, paint)
        _write_names(axes, seen, names)
        _head(figure, (number + 0.5) * width, top - 0.6 * share, f"{side[0].upper()} flat")


def _mesh(hemispheres: Hemispheres | None, side: str) -> Mesh:
    mesh: Mesh = getattr(hemispheres, side)
    return mesh


def _panel(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    axes = figure.add_axes(box)
    axes.set_axis_off()
    return axes


def _head(figure: Figure, x: float, y: float, text: str) -> None:
    figure.text(x, y, text, ha="center", va="center", fontsize=8.5, color=INK)


def _draw_view(axes: Axes, mesh: Mesh, side: str, name: str, brain: Brain, paint: Paint) -> FloatArray:
    """Draw a hemisphere and return the rank that is seen at every pixel, -1 for none."""
    lookup = brain.left if side == "left" else brain.right
    ranks = places_in_palette(paint.ranks, np.asarray(lookup))
    view = view_of(mesh, side, name)
    seen = np.where(view.vertex >= 0, ranks[np.maximum(view.vertex, 0)], -1.0)
    pixels = view_pixels(view, ranks, paint.colouring)
    if paint.plain:
        bare = (view.vertex >= 0) & (seen < 0)
        light = view.relief[bare]
        pixels[bare, :3] = np.round(_PLAIN * (1 - _RELIEF + _RELIEF * light / light.max(initial=1e-6)))[:, None]
    axes.imshow(pixels, interpolation="antialiased")
    return seen


def _write_names(axes: Axes, seen: FloatArray, names: Sequence[str]) -> None:
    """Write the names of the largest regions at their middle, where they do not run into each other."""
    if not names:
        return
    width = seen.shape[1]
    sizes = np.bincount(seen[seen >= 0].astype(int), minlength=len(names))
    written: list[tuple[float, float, float]] = []
    for region in np.argsort(-sizes, kind="stable")[:_MAX_NAMES]:
        if sizes[region] == 0:
            return
        rows, columns = np.nonzero(seen == region)
        nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
        x, y, reach = float(columns[nearest]), float(rows[nearest]), _LETTER_WIDTH / 2 * len(names[region]) * width
        if all(abs(x - one) > reach + own or abs(y - two) > _NAME_HEIGHT * width for one, two, own in written):
            written.append((x, y, reach))
            axes.text(
                x, y, names[region], ha="center", va="center", fontsize=5.5, color=INK, clip_on=True,
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
