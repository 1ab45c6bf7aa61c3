"""Maps on inflated surfaces from the side and from the middle, as PNG.

A view is rasterised once: for every pixel the vertex that is seen there. A picture is then a lookup of colours.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bids_mllm.records import BoolArray, FloatArray, IntArray
from bids_mllm.report.colouring import MAP_WIDTH, Colouring, category_colouring, layer_colouring, score_colouring
from bids_mllm.report.maps import WIDTH, SpatialImage, anatomy_of, draw_cuts, row_heights
from bids_mllm.report.style import CHART_STYLE, INK, png_bytes

#: Pixels of a view along the longer of its sides; more than are printed, so that edges are smooth.
_PIXELS = 640
_VIEWS = ("lateral", "medial")
_SIDES = ("left", "right")
_VIEW_HEIGHT = 2.9
_TITLE_HEIGHT = 0.25
_GYRUS, _SULCUS = 0.86, 0.72
#: Share of the light that does not depend on where a surface faces.
_AMBIENT = 0.55


class Mesh(Hashable, Protocol):
    """One inflated hemisphere; hashed by identity."""

    @property
    def points(self) -> FloatArray:
        """Right, anterior and superior millimetres, shape (n_vertices, 3)."""
        ...

    @property
    def faces(self) -> IntArray:
        """Vertices of the triangles, shape (n_faces, 3)."""
        ...

    @property
    def sulci(self) -> BoolArray | None:
        """Where the folded surface goes inwards, shape (n_vertices,)."""
        ...


class Hemispheres(Protocol):
    """The surfaces that maps are drawn on.

    A map may have more vertices than its surface: the first ones are drawn, which in the fsaverage family are
    those of the coarser surface.
    """

    @property
    def left(self) -> Mesh:
        """The left hemisphere."""
        ...

    @property
    def right(self) -> Mesh:
        """The right hemisphere."""
        ...


@dataclass(frozen=True)
class Deep:
    """Values of a volume that are drawn as axial cuts below the surfaces, NaN where there are none."""

    image: SpatialImage
    background: SpatialImage | None = None

    @property
    def values(self) -> FloatArray:
        """The numbers as an array."""
        return np.asarray(self.image.get_fdata(), dtype=float)


@dataclass(frozen=True)
class View:
    """A hemisphere from one direction.

    Parameters
    ----------
    vertex : (height, width) int
        The vertex that is seen at each pixel, -1 beside the surface; the first row is the upper one.
    grey : (height, width) float
        How bright the bare surface is, darker in sulci.
    relief : (height, width) float
        The same without sulci: 1 where the surface faces the viewer.
    """

    vertex: IntArray
    grey: FloatArray
    relief: FloatArray


def score_surface(
    hemispheres: Hemispheres,
    left: FloatArray,
    right: FloatArray,
    *,
    label: str = "Pearson r",
    threshold: float = 0.0,
    vmax: float | None = None,
    deep: Deep | None = None,
    dpi: int = 110,
) -> bytes:
    """Draw scores on both hemispheres.

    Parameters
    ----------
    hemispheres
        The surfaces.
    left, right : (n_vertices,) float
        Scores; NaN leaves the surface grey.
    label
        Text of the colour bar.
    threshold
        Scores of at most this size leave the surface grey.
    vmax
        Upper end of the scale; None = the 99.5th percentile of the scores that are shown.
    deep
        Scores of a volume that belong to the same map.

    Returns
    -------
    bytes
        A PNG; the left hemisphere is on the left, seen from the side above and from the middle below.
    """
    values = _all_values(left, right, deep)
    colouring = score_colouring(values, label=label, threshold=threshold, vmax=vmax)
    return _picture(hemispheres, (left, right), colouring, deep=deep, dpi=dpi)


def layer_surface(
    hemispheres: Hemispheres,
    left: FloatArray,
    right: FloatArray,
    layers: Sequence[int],
    *,
    label: str = "layer",
    deep: Deep | None = None,
    dpi: int = 110,
) -> bytes:
    """Draw positions in `layers` on both hemispheres, in a sequential colour map; see `score_surface`."""
    colouring = layer_colouring(_all_values(left, right, deep), layers, label=label)
    return _picture(hemispheres, (left, right), colouring, deep=deep, dpi=dpi)


def category_surface(
    hemispheres: Hemispheres,
    left: FloatArray,
    right: FloatArray,
    names: Sequence[str],
    *,
    label: str = "instruction",
    deep: Deep | None = None,
    dpi: int = 110,
) -> bytes:
    """Draw positions in `names` on both hemispheres, one colour each; see `score_surface`."""
    colouring = category_colouring(_all_values(left, right, deep), names, label=label)
    return _picture(hemispheres, (left, right), colouring, deep=deep, dpi=dpi)


def _all_values(left: FloatArray, right: FloatArray, deep: Deep | None) -> FloatArray:
    parts = [left, right] if deep is None else [left, right, deep.values.reshape(-1)]
    return np.concatenate([np.asarray(part, dtype=float) for part in parts])


def _picture(
    hemispheres: Hemispheres,
    sides: tuple[FloatArray, FloatArray],
    colouring: Colouring,
    *,
    deep: Deep | None,
    dpi: int,
) -> bytes:
    """Return a PNG of two views a hemisphere, a row of cuts if there is something deep, and the key."""
    views_height = 2 * _VIEW_HEIGHT + _TITLE_HEIGHT
    anatomy = anatomy_of(deep.background) if deep is not None else None
    cuts = {"z": row_heights(anatomy)["z"]} if anatomy is not None else {}
    height = views_height + sum(cuts.values())
    with rc_context(dict(CHART_STYLE)):
        figure = Figure(figsize=(WIDTH, height), facecolor="white")
        for column, (mesh, values) in enumerate(zip((hemispheres.left, hemispheres.right), sides, strict=True)):
            _draw_side(figure, mesh, np.asarray(values, dtype=float), colouring, column=column)
        if deep is not None and anatomy is not None:
            top = 1.0 - views_height / height
            draw_cuts(figure, deep.image, deep.values, colouring, anatomy=anatomy, heights=cuts, top=top)
        colouring.add_key(figure)
        return png_bytes(figure, dpi=dpi)


def _draw_side(figure: Figure, mesh: Mesh, values: FloatArray, colouring: Colouring, *, column: int) -> None:
    """Draw the lateral view of a hemisphere above its medial view."""
    side, height = _SIDES[column], figure.get_figheight()
    half = MAP_WIDTH / 2
    figure.text(
        (column + 0.5) * half, 1.0 - 0.7 * _TITLE_HEIGHT / height, f"{side[0].upper()} ({side} hemisphere)",
        ha="center", va="center", fontsize=9, color=INK,
    )  # fmt: skip
    for row, name in enumerate(_VIEWS):
        bottom = 1.0 - (_TITLE_HEIGHT + (row + 1) * _VIEW_HEIGHT) / height
        axes = figure.add_axes((column * half + 0.005, bottom, half - 0.01, _VIEW_HEIGHT / height))
        axes.set_axis_off()
        axes.imshow(view_pixels(view_of(mesh, side, name), values, colouring), interpolation="antialiased")
        axes.text(0.02, 0.02, name, transform=axes.transAxes, fontsize=7.5, color=INK)


def view_pixels(view: View, values: FloatArray, colouring: Colouring) -> NDArray[np.uint8]:
    """Return a view in colours.

    Parameters
    ----------
    view
        What is seen where.
    values : (n_vertices,) float
        Of at least the vertices of the surface.
    colouring
        Their colours; they are not shaded, so that they can be read from the key.

    Returns
    -------
    (height, width, 4) uint8
        Red, green, blue and opacity; grey where nothing is shown.
    """
    seen = view.vertex >= 0
    at = np.where(seen, values[np.maximum(view.vertex, 0)], np.nan)
    shown = seen & colouring.is_shown(at)
    pixels = np.empty((*view.vertex.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.round(255 * view.grey)[..., None]
    pixels[..., 3] = np.where(seen, 255, 0)
    table = np.asarray(colouring.cmap(np.arange(colouring.cmap.N), bytes=True))
    pixels[shown] = table[np.asarray(colouring.ranks(at[shown]), dtype=int)]
    return pixels


@lru_cache(maxsize=16)
def view_of(mesh: Mesh, side: str, name: str, n_pixels: int = _PIXELS) -> View:
    """Return what is seen of a hemisphere from far away.

    Parameters
    ----------
    mesh
        The hemisphere.
    side
        ``left`` or ``right``.
    name
        ``lateral``, from outside, or ``medial``, from the other hemisphere.
    n_pixels
        Pixels of the longer side of the view.

    Returns
    -------
    View
    """
    points = np.asarray(mesh.points, dtype=float)
    # Seen from the right, the front is at the right.
    from_right = (side == "right") == (name == "lateral")
    sign = 1.0 if from_right else -1.0
    flat = np.stack([sign * points[:, 1], -points[:, 2]], axis=1)
    low, high = flat.min(axis=0), flat.max(axis=0)
    scale = (n_pixels - 1) / (high - low).max()
    flat = (flat - low) * scale
    width, height = (int(extent) + 1 for extent in np.ceil(flat.max(axis=0)))
    vertex = _seen(flat, sign * points[:, 0], np.asarray(mesh.faces), (height, width))
    bare = _GYRUS if mesh.sulci is None else np.where(mesh.sulci, _SULCUS, _GYRUS)
    relief = _relief(mesh, points)
    grey, plain = (np.where(vertex >= 0, shades[np.maximum(vertex, 0)], 1.0) for shades in (bare * relief, relief))
    return View(vertex, grey, plain)


def _seen(flat: FloatArray, nearness: FloatArray, faces: IntArray, shape: tuple[int, int]) -> IntArray:
    """Return the vertex next to each pixel of the nearest triangle there, -1 where there is none.

    All pixels in the boxes of all triangles are tried at once; the nearest is written last.
    """
    corners = flat[faces]
    low = np.ceil(corners.min(axis=1)).astype(int)
    size = np.floor(corners.max(axis=1)).astype(int) - low + 1
    counts = size.prod(axis=1) * (size > 0).all(axis=1)
    face = np.repeat(np.arange(len(faces)), counts)
    within = np.arange(len(face)) - np.repeat(np.cumsum(counts) - counts, counts)
    column = low[face, 0] + within % size[face, 0]
    row = low[face, 1] + within // size[face, 0]
    weights = _barycentric(corners[face], np.stack([column, row], axis=1))
    inside = (weights >= -1e-9).all(axis=1)
    face, column, row, weights = face[inside], column[inside], row[inside], weights[inside]
    order = np.argsort((nearness[faces[face]] * weights).sum(axis=1), kind="stable")
    closest = faces[face, weights.argmax(axis=1)]
    vertex = np.full(shape, -1, dtype=np.int64)
    vertex[row[order], column[order]] = closest[order]
    return vertex


def _barycentric(corners: FloatArray, at: NDArray[Any]) -> FloatArray:
    """Return the weights of the three corners at points of the plane; negative outside, and for empty triangles."""
    one, two, three = corners[:, 0], corners[:, 1], corners[:, 2]
    area = _cross(two - one, three - one)
    parts = np.stack([_cross(two - at, three - at), _cross(three - at, one - at), _cross(one - at, two - at)], axis=1)
    weights: FloatArray = np.full(parts.shape, -1.0)
    np.divide(parts, area[:, None], out=weights, where=np.abs(area[:, None]) > 1e-12)
    return weights


def _cross(one: FloatArray, two: FloatArray) -> FloatArray:
    product: FloatArray = one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]
    return product


def _relief(mesh: Mesh, points: FloatArray) -> FloatArray:
    """Return how bright each vertex is: 1 where the surface faces the viewer, _AMBIENT where it turns away."""
    corners = points[np.asarray(mesh.faces)]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(points)
    for corner in range(3):
        np.add.at(normals, np.asarray(mesh.faces)[:, corner], across)
    length = np.linalg.norm(normals, axis=1)
    relief: FloatArray = _AMBIENT + (1.0 - _AMBIENT) * np.abs(normals[:, 0]) / np.where(length > 0, length, 1.0)
    return relief
