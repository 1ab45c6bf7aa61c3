"""Which values of a map are drawn, in which colours, and the key that explains them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from bids_mllm.records import BoolArray, FloatArray
from bids_mllm.report.style import distinct_colours, score_colours

#: Maps fill this share of the width of their figure, the key the rest.
MAP_WIDTH = 0.83
_VMAX_PERCENTILE = 99.5


@dataclass(frozen=True)
class Colouring:
    """Colours of the values of one or several maps.

    Parameters
    ----------
    cmap, norm
        The colour map and its scale.
    is_shown
        Tells of each value whether it is drawn; the others are transparent.
    add_key
        Adds the colour bar or legend to the right of a figure.
    """

    cmap: Colormap
    norm: Normalize
    is_shown: Callable[[FloatArray], BoolArray]
    add_key: Callable[[Figure], None]

    def ranks(self, values: FloatArray) -> NDArray[Any]:
        """Return the position of each value in the colour map, 0 to ``cmap.N - 1``."""
        scaled = np.asarray(self.norm(values))
        ranks = scaled if isinstance(self.norm, BoundaryNorm) else np.floor(scaled * (self.cmap.N - 1) + 0.5)
        return np.asarray(np.clip(ranks, 0, self.cmap.N - 1))


def score_colouring(
    values: FloatArray, *, label: str, diverging: bool = False, threshold: float = 0.0, vmax: float | None = None
) -> Colouring:
    """Return the colours of scores above `threshold`, or of their sizes when `diverging`.

    Parameters
    ----------
    values
        All scores; NaN where there is none.
    label
        Text of the colour bar.
    diverging
        True colours negative and positive scores on one symmetric scale; False shows only the scores
        above `threshold`.
    threshold
        Scores of at most this size stay transparent.
    vmax
        Upper end of the scale; None = the 99.5th percentile of the sizes that are shown.

    Returns
    -------
    Colouring
    """

    def is_shown(some: FloatArray) -> BoolArray:
        sizes = np.abs(some) if diverging else some
        return np.isfinite(some) & (sizes > threshold)

    top = vmax if vmax is not None else _upper_end(np.abs(values[is_shown(values)]))
    cmap: Colormap = colormaps["RdBu_r"] if diverging else score_colours()
    norm = Normalize(vmin=-top if diverging else 0.0, vmax=top)

    def add_key(figure: Figure) -> None:
        _add_colour_bar(figure, cmap, norm, label)

    return Colouring(cmap, norm, is_shown, add_key)


def layer_colouring(values: FloatArray, layers: Sequence[int], *, label: str) -> Colouring:
    """Return sequential colours of positions in `layers`; negative or NaN is transparent."""
    _check_positions(values, len(layers))
    cmap = ListedColormap(colormaps["viridis"](np.linspace(0.0, 1.0, len(layers))))
    norm = BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers))

    def add_key(figure: Figure) -> None:
        bar = _add_colour_bar(figure, cmap, norm, label)
        ticks = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 8)).round().astype(int))
        bar.set_ticks(list(ticks), labels=[str(layers[t]) for t in ticks])
        bar.ax.minorticks_off()

    return Colouring(cmap, norm, _is_position, add_key)


def category_colouring(values: FloatArray, names: Sequence[str], *, label: str) -> Colouring:
    """Return one colour a name of positions in `names`, with shares of all `values` that are shown in the legend."""
    _check_positions(values, len(names))
    colours = distinct_colours(len(names))
    cmap = ListedColormap(list(colours))
    norm = BoundaryNorm(np.arange(len(names) + 1) - 0.5, max(len(names), 1))

    def add_key(figure: Figure) -> None:
        handles = _legend_handles(values[_is_position(values)].astype(int), names, colours)
        figure.legend(
            handles=handles, title=label, loc="center left", bbox_to_anchor=(MAP_WIDTH + 0.005, 0.5),
            fontsize=7.5 if len(names) <= 16 else 5.5, title_fontsize=8.5, handlelength=1.0,
            handleheight=1.0, labelspacing=0.45, borderpad=0,
        )  # fmt: skip

    return Colouring(cmap, norm, _is_position, add_key)


def _is_position(values: FloatArray) -> BoolArray:
    with np.errstate(invalid="ignore"):
        return np.isfinite(values) & (values >= 0)


def _check_positions(values: FloatArray, n_names: int) -> None:
    """Refuse positions beyond `n_names`."""
    positions = values[_is_position(values)]
    if positions.size and positions.max() > n_names - 1:
        raise ValueError(
            f"the index map holds {positions.max():g}, but there are only {n_names} names, so "
            f"values must lie between 0 and {n_names - 1}; pass the names that the map was made with."
        )


def _legend_handles(indices: NDArray[Any], names: Sequence[str], colours: Sequence[str]) -> list[Patch]:
    """Return one patch a name, labelled with its percentage of the shown places."""
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


def _add_colour_bar(figure: Figure, cmap: Colormap, norm: Normalize, label: str) -> Any:
    """Add the colour bar to the right of the maps and return it."""
    axes = figure.add_axes((MAP_WIDTH + 0.035, 0.2, 0.018, 0.6))
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap=cmap), cax=axes, extendfrac=0)
    bar.set_label(label)
    return bar
