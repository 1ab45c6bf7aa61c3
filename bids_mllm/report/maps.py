"""Mosaics of statistic maps over an anatomical background, as PNG."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from bids_mllm.records import FloatArray
from bids_mllm.report.style import CHART_STYLE, distinct_colours, png_bytes, score_colours

N_CUTS = 7
_ROWS = ("z", "y", "x")
_WIDTH = 10.0
_MAP_WIDTH = 0.83
_VMAX_PERCENTILE = 99.5
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
    sizes = np.abs(values) if diverging else values
    shown = np.isfinite(values) & (sizes > threshold)
    top = vmax if vmax is not None else _upper_end(sizes[shown])
    cmap: Colormap = colormaps["RdBu_r"] if diverging else score_colours()
    norm = Normalize(vmin=-top if diverging else 0.0, vmax=top)
    with rc_context(dict(CHART_STYLE)):
        figure = _mosaic(image, values, shown, cmap=cmap, norm=norm, background=background)
        _add_colour_bar(figure, cmap, norm, label)
        return png_bytes(figure, dpi=dpi)


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
    values, shown = _checked_indices(image, len(layers))
    cmap = ListedColormap(colormaps["viridis"](np.linspace(0.0, 1.0, len(layers))))
    norm = BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers))
    with rc_context(dict(CHART_STYLE)):
        figure = _mosaic(image, values, shown, cmap=cmap, norm=norm, background=background)
        bar = _add_colour_bar(figure, cmap, norm, label)
        ticks = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 8)).round().astype(int))
        bar.set_ticks(list(ticks), labels=[str(layers[t]) for t in ticks])
        bar.ax.minorticks_off()
        return png_bytes(figure, dpi=dpi)


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
    values, shown = _checked_indices(image, len(names))
    colours = distinct_colours(len(names))
    cmap = ListedColormap(list(colours))
    norm = BoundaryNorm(np.arange(len(names) + 1) - 0.5, max(len(names), 1))
    with rc_context(dict(CHART_STYLE)):
        figure = _mosaic(image, values, shown, cmap=cmap, norm=norm, background=background)
        handles = _legend_handles(values[shown].astype(int), names, colours)
        figure.legend(
            handles=handles, title=label, loc="center left", bbox_to_anchor=(_MAP_WIDTH + 0.005, 0.5),
            fontsize=7.5 if len(names) <= 16 else 5.5, title_fontsize=8.5, handlelength=1.0,
            handleheight=1.0, labelspacing=0.45, borderpad=0,
        )  # fmt: skip
        return png_bytes(figure, dpi=dpi)


def _legend_handles(indices: NDArray[Any], names: Sequence[str], colours: Sequence[str]) -> list[Patch]:
    """Return one patch a name, labelled with its percentage of the shown voxels."""
    counts = np.bincount(indices, minlength=len(names))
    shares = 100.0 * counts / max(int(counts.sum()), 1)
    return [
        Patch(facecolor=colour, label=f"{name} ({share:.0f} %)")
        for name, colour, share in zip(names, colours, shares, strict=True)
    ]


def _upper_end(sizes: FloatArray) -> float:
    """Return a positive upper end of the colour scale for scores of any number, none included."""
    if sizes.size == 0:
        return 1.0
    return float(np.percentile(sizes, _VMAX_PERCENTILE)) or 1.0


def _checked_indices(image: SpatialImage, n_names: int) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return the values and where they are positions below `n_names`; refuse larger ones."""
    values = np.asarray(image.get_fdata(), dtype=float)
    shown = np.isfinite(values) & (values >= 0)
    if shown.any() and values[shown].max() > n_names - 1:
        raise ValueError(
            f"the index map holds {values[shown].max():g}, but there are only {n_names} names, so "
            f"values must lie between 0 and {n_names - 1}; pass the names that the map was made with."
        )
    return values, shown


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


def _mosaic(
    image: SpatialImage,
    values: FloatArray,
    shown: NDArray[np.bool_],
    *,
    cmap: Colormap,
    norm: Normalize,
    background: SpatialImage | None,
) -> Figure:
    """Return a figure with one row of cuts a direction; voxels that are not shown are transparent.

    The values are coloured through their rank in the colour map, from 1, because nilearn treats 0 as
    empty; nearest-neighbour sampling keeps the voxels as they were scored.
    """
    import nibabel as nib
    from nilearn import plotting

    anatomy = _cropped(background) if background is not None else _template()
    ranks = np.zeros(values.shape, dtype=np.float32)
    ranks[shown] = 1.0 + np.clip(_colour_ranks(values[shown], cmap, norm), 0, cmap.N - 1)
    overlay = nib.nifti1.Nifti1Image(ranks, np.asarray(image.affine))
    cuts = cut_coordinates(_anatomy_extent(values, shown), np.asarray(image.affine))
    heights = _row_heights(anatomy)
    figure = Figure(figsize=(_WIDTH, sum(heights)), facecolor="white")
    bottom = 1.0
    for axis, height in zip(_ROWS, heights, strict=True):
        bottom -= height / sum(heights)
        display = plotting.plot_anat(
            anatomy, display_mode=axis, cut_coords=cuts[axis], figure=figure,
            axes=(0.0, bottom, _MAP_WIDTH, height / sum(heights)), annotate=False, draw_cross=False,
            black_bg=False, colorbar=False, dim=-0.3, threshold=_EMPTY,
        )  # fmt: skip
        display.annotate(size=8)
        if shown.any():
            display.add_overlay(
                overlay, cmap=cmap, threshold=0.5, vmin=1.0, vmax=float(cmap.N),
                resampling_interpolation="nearest",
            )  # fmt: skip
    return figure


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


def _row_heights(anatomy: SpatialImage) -> tuple[float, ...]:
    """Return inches of height of the axial, coronal and sagittal rows, for cuts that fill their width."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    world = (corners * anatomy.shape[:3]) @ np.asarray(anatomy.affine)[:3, :3].T
    x, y, z = np.ptp(world, axis=0)
    cell = _WIDTH * _MAP_WIDTH / N_CUTS
    return tuple(1.2 * cell * ratio for ratio in (y / x, z / x, z / y))


def _colour_ranks(values: FloatArray, cmap: Colormap, norm: Normalize) -> NDArray[Any]:
    """Return the position of each value in the colour map, 0 to ``cmap.N - 1``."""
    scaled = np.asarray(norm(values))
    if isinstance(norm, BoundaryNorm):
        return scaled
    return np.floor(scaled * (cmap.N - 1) + 0.5)


def _anatomy_extent(values: FloatArray, shown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the voxels inside the mask (finite), or those shown where nothing is masked out."""
    finite = np.isfinite(values)
    return shown if finite.all() else finite


def _add_colour_bar(figure: Figure, cmap: Colormap, norm: Normalize, label: str) -> Any:
    """Add the colour bar to the right of the maps and return it."""
    axes = figure.add_axes((_MAP_WIDTH + 0.035, 0.2, 0.018, 0.6))
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap=cmap), cax=axes, extendfrac=0)
    bar.set_label(label)
    return bar
