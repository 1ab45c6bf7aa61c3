"""Mosaics of statistic maps over an anatomical background, as PNG."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bids_mllm.records import FloatArray
from bids_mllm.report.colouring import MAP_WIDTH, Colouring, category_colouring, layer_colouring, score_colouring
from bids_mllm.report.style import CHART_STYLE, png_bytes

N_CUTS = 7
_ROWS = ("z", "y", "x")
#: Inches of width of a picture.
WIDTH = 10.0
_EMPTY = 1e-6


class SpatialImage(Protocol):
    """What is asked of a nibabel image: its grid and its numbers."""

    @property
    def affine(self) -> Any:
        """From voxel indices to world millimetres, shape (4, 4)."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        ...

    def get_fdata(self) -> NDArray[Any]:
        """Return the numbers as floats."""
        ...


def score_map(
    image: SpatialImage,
    *,
    label: str = "Pearson r",
    background: SpatialImage | None = None,
    diverging: bool = False,
    threshold: float = 0.0,
    vmax: float | None = None,
    dpi: int = 110,
) -> bytes:
    """Draw a mosaic of a map of scores.

    Parameters
    ----------
    image
        Three-dimensional image in world millimetres; NaN outside the mask.
    label
        Text of the colour bar.
    background
        Anatomical image in the same space; None = the MNI152 template of nilearn.
    diverging
        True colours negative and positive scores on one symmetric scale; False shows only the scores
        above `threshold`.
    threshold
        Scores of at most this size stay transparent.
    vmax
        Upper end of the scale; None = the 99.5th percentile of the finite sizes.

    Returns
    -------
    bytes
        A PNG; the left hemisphere is on the left and marked L.
    """
    values = np.asarray(image.get_fdata(), dtype=float)
    colouring = score_colouring(values, label=label, diverging=diverging, threshold=threshold, vmax=vmax)
    return _picture(image, values, colouring, background=background, dpi=dpi)


def layer_map(
    image: SpatialImage,
    layers: Sequence[int],
    *,
    label: str = "layer",
    background: SpatialImage | None = None,
    dpi: int = 110,
) -> bytes:
    """Draw a mosaic of the best layer, in a sequential colour map.

    Parameters
    ----------
    image
        Values are positions in `layers`; negative or NaN = set aside or outside the mask.
    layers
        Layer numbers in increasing order.

    Returns
    -------
    bytes
        A PNG.
    """
    values = np.asarray(image.get_fdata(), dtype=float)
    colouring = layer_colouring(values, layers, label=label)
    return _picture(image, values, colouring, background=background, dpi=dpi)


def category_map(
    image: SpatialImage,
    names: Sequence[str],
    *,
    label: str = "instruction",
    background: SpatialImage | None = None,
    dpi: int = 110,
) -> bytes:
    """Draw a mosaic of unordered names, one colour each, with the share of voxels in the legend.

    Parameters
    ----------
    image
        Values are positions in `names`; negative or NaN = set aside or outside the mask.
    names
        Names of the legend, for example the instructions.

    Returns
    -------
    bytes
        A PNG.
    """
    values = np.asarray(image.get_fdata(), dtype=float)
    colouring = category_colouring(values, names, label=label)
    return _picture(image, values, colouring, background=background, dpi=dpi)


def cut_coordinates(shown: NDArray[np.bool_], affine: NDArray[Any], *, n_cuts: int = N_CUTS) -> dict[str, list[float]]:
    """Return evenly spaced cuts through what is shown.

    Parameters
    ----------
    shown : (n_x, n_y, n_z) bool
    affine : (4, 4) float
        From voxel indices to world millimetres.

    Returns
    -------
    dict
        ``x``, ``y`` and ``z`` to `n_cuts` world coordinates in millimetres, inside the middle 80 % of
        the extent.
    """
    voxels = np.argwhere(shown) if shown.any() else np.argwhere(np.ones_like(shown))
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    low, high = world.min(axis=0), world.max(axis=0)
    margin = 0.1 * (high - low)
    return {axis: np.linspace(low[i] + margin[i], high[i] - margin[i], n_cuts).tolist() for i, axis in enumerate("xyz")}


def _picture(
    image: SpatialImage, values: FloatArray, colouring: Colouring, *, background: SpatialImage | None, dpi: int
) -> bytes:
    """Return a PNG with one row of cuts a direction and the key."""
    anatomy = anatomy_of(background)
    heights = row_heights(anatomy)
    with rc_context(dict(CHART_STYLE)):
        figure = Figure(figsize=(WIDTH, sum(heights.values())), facecolor="white")
        draw_cuts(figure, image, values, colouring, anatomy=anatomy, heights=heights)
        colouring.add_key(figure)
        return png_bytes(figure, dpi=dpi)


def draw_cuts(
    figure: Figure,
    image: SpatialImage,
    values: FloatArray,
    colouring: Colouring,
    *,
    anatomy: SpatialImage,
    heights: Mapping[str, float],
    top: float = 1.0,
) -> None:
    """Draw rows of cuts into a figure; voxels that are not shown are transparent.

    The values are coloured through their rank in the colour map, from 1, because nilearn treats 0 as
    empty; nearest-neighbour sampling keeps the voxels as they were scored.

    Parameters
    ----------
    figure
        What is drawn into.
    image
        Where the voxels lie.
    values
        Its numbers, of the same shape.
    colouring
        Their colours.
    anatomy
        What lies below, of `anatomy_of`.
    heights
        From the direction of a row of cuts, ``x``, ``y`` or ``z``, to its height in inches.
    top
        Where the first row begins, as a share of the height of the figure.
    """
    import nibabel as nib
    from nilearn import plotting

    shown = colouring.is_shown(values)
    ranks = np.zeros(values.shape, dtype=np.float32)
    ranks[shown] = 1.0 + colouring.ranks(values[shown])
    overlay = nib.nifti1.Nifti1Image(ranks, np.asarray(image.affine))
    cuts = cut_coordinates(_anatomy_extent(values, shown), np.asarray(image.affine))
    bottom = top
    for axis, inches in heights.items():
        height = inches / figure.get_figheight()
        bottom -= height
        display = plotting.plot_anat(
            anatomy, display_mode=axis, cut_coords=cuts[axis], figure=figure,
            axes=(0.0, bottom, MAP_WIDTH, height), annotate=False, draw_cross=False,
            black_bg=False, colorbar=False, dim=-0.3, threshold=_EMPTY,
        )  # fmt: skip
        display.annotate(size=8)
        if shown.any():
            display.add_overlay(
                overlay, cmap=colouring.cmap, threshold=0.5, vmin=1.0, vmax=float(colouring.cmap.N),
                resampling_interpolation="nearest",
            )  # fmt: skip


def anatomy_of(background: SpatialImage | None) -> Any:
    """Return what lies below a mosaic, without its empty margins; None = the MNI152 template of nilearn."""
    return _cropped(background) if background is not None else _template()


@lru_cache(maxsize=1)
def _template() -> Any:
    """Return the MNI152 template that nilearn brings along, at 2 mm."""
    from nilearn.datasets import load_mni152_template

    return _cropped(load_mni152_template(resolution=2))


def _cropped(anatomy: SpatialImage) -> Any:
    """Return the background cut to the box of its non-zero voxels, zero where it is not finite."""
    import nibabel as nib

    affine = np.array(anatomy.affine, dtype=float)
    values = np.nan_to_num(np.asarray(anatomy.get_fdata(), dtype=np.float32))
    filled = np.argwhere(np.abs(values) > _EMPTY)
    if filled.size == 0:
        return nib.nifti1.Nifti1Image(values, affine)
    low, high = filled.min(axis=0), filled.max(axis=0) + 1
    affine[:3, 3] += affine[:3, :3] @ low
    box = values[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    return nib.nifti1.Nifti1Image(np.ascontiguousarray(box), affine)


def row_heights(anatomy: SpatialImage) -> dict[str, float]:
    """Return inches of height of the rows of axial, coronal and sagittal cuts that fill their width, by direction."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    world = (corners * anatomy.shape[:3]) @ np.asarray(anatomy.affine)[:3, :3].T
    x, y, z = np.ptp(world, axis=0)
    cell = WIDTH * MAP_WIDTH / N_CUTS
    return dict(zip(_ROWS, (1.2 * cell * ratio for ratio in (y / x, z / x, z / y)), strict=True))


def _anatomy_extent(values: FloatArray, shown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the voxels inside the mask (finite), or those shown where nothing is masked out."""
    finite = np.isfinite(values)
    return shown if finite.all() else finite
