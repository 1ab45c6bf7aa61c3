"""Colours of the places of a brain map, and the key that explains them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bids_mllm.records import BoolArray, FloatArray, IntArray
from bids_mllm.report.colouring import MAP_WIDTH, Colouring
from bids_mllm.report.style import FAINT, INK, name_colours, score_colours

#: Colours of a scale.
_STEPS = 256
#: Colours along each side of a scale of two models.
_SIDE = 16
#: What a place is coloured where neither, the first, the second and both models predict it best.
CORNERS = ("#F7F7F7", "#0072B2", "#E69F00", "#1A1A1A")
_GREYS = ("#DADADA", "#4D4D4D")
_KEY_LEFT, _BAR_WIDTH = MAP_WIDTH + 0.035, 0.018
#: Names in the key of a map of regions; more are told by the map itself.
MAX_KEY_NAMES = 40


@dataclass(frozen=True)
class Paint:
    """Colours of some places.

    Parameters
    ----------
    ranks : (n_places,) float
        Position of each place in the palette, -1 where it is not coloured.
    palette : (n_colours, 3) float
        Where places lie behind each other, as in a glass brain, later colours cover earlier ones.
    add_key
        Adds the key to the right of a figure.
    plain
        Surfaces show no sulci, whose greys would be taken for values.
    """

    ranks: FloatArray
    palette: FloatArray
    add_key: Callable[[Figure], None]
    plain: bool = False

    @property
    def colouring(self) -> Colouring:
        """The same for the drawing of slices and surfaces, whose values are the ranks."""
        # Of one colour there would be no scale.
        palette = np.vstack([self.palette, self.palette[-1:]])
        norm = Normalize(0, len(palette) - 1)
        return Colouring(ListedColormap([tuple(row) for row in palette]), norm, lambda ranks: ranks >= 0, self.add_key)


def score_paint(values: FloatArray, *, top: float, label: str) -> Paint:
    """Return one-sided colours of scores above 0.

    Parameters
    ----------
    values : (n_places,) float
    top
        Upper end of the scale.
    label
        Of the colour bar.
    """
    cmap = score_colours()

    def add_key(figure: Figure) -> None:
        _add_bar(figure, cmap, top, label, bottom=0.2, height=0.6)

    return Paint(_ranks(values, values > 0, top), _steps(cmap), add_key)


def thresholded_paint(values: FloatArray, significant: BoolArray, *, top: float, label: str) -> Paint:
    """Return colours of significant scores and greys of the other ones above 0.

    Parameters
    ----------
    values : (n_places,) float
    significant : (n_places,) bool
    top
        Upper end of both scales.
    label
        Of the colour bars.
    """
    cmap, greys = score_colours(), LinearSegmentedColormap.from_list("bids_mllm_greys", _GREYS)
    coloured = significant & (values > 0)
    ranks = np.where(coloured, _ranks(values, coloured, top) + _STEPS, _ranks(values, ~coloured & (values > 0), top))

    def add_key(figure: Figure) -> None:
        _add_bar(figure, cmap, top, f"{label}, significant", bottom=0.54, height=0.38)
        _add_bar(figure, greys, top, f"{label}, not significant", bottom=0.08, height=0.38)

    return Paint(ranks, np.vstack([_steps(greys), _steps(cmap)]), add_key, plain=True)


def contrast_paint(values: FloatArray, values_b: FloatArray, *, top: float, names: Sequence[str], label: str) -> Paint:
    """Return colours of two scores at once: bluer for the first, more orange for the second, darker for both.

    Parameters
    ----------
    values, values_b : (n_places,) float
        Of the first and of the second model; places with no score above 0 are not coloured.
    top
        Upper end of both scales.
    names
        Of both models.
    label
        What the scores are.
    """
    first, second = (np.clip(np.nan_to_num(one) / top, 0, 1) * (_SIDE - 1) for one in (values, values_b))
    ranks = np.round(second) * _SIDE + np.round(first)
    shown = (np.nan_to_num(values) > 0) | (np.nan_to_num(values_b) > 0)
    steps = np.linspace(0, 1, _SIDE)
    x, y = (one.ravel()[:, None] for one in np.meshgrid(steps, steps))
    none, blue, orange, both = (np.array(to_rgb(corner)) for corner in CORNERS)
    palette = (1 - x) * (1 - y) * none + x * (1 - y) * blue + (1 - x) * y * orange + x * y * both

    def add_key(figure: Figure) -> None:
        width = 0.09
        height = width * figure.get_figwidth() / figure.get_figheight()
        axes = figure.add_axes((MAP_WIDTH + 0.055, 0.5 - height / 2, width, height))
        axes.imshow(palette.reshape(_SIDE, _SIDE, 3), origin="lower", extent=(0, top, 0, top), interpolation="nearest")
        axes.set_xticks([0, top], labels=["0", f"{top:.2g}"], fontsize=7.5)
        axes.get_xticklabels()[1].set_horizontalalignment("right")
        axes.set_yticks([0, top], labels=["0", f"{top:.2g}"], fontsize=7.5)
        axes.set_xlabel(f"{label} of\n{names[0]}", fontsize=7.5, labelpad=1)
        axes.set_ylabel(f"{label} of\n{names[1]}", fontsize=7.5, labelpad=-4)

    return Paint(np.where(shown, ranks, -1.0), palette, add_key, plain=True)


def layer_paint(positions: FloatArray, layers: Sequence[int], *, label: str) -> Paint:
    """Return sequential colours of positions in the list of layers."""
    palette = colormaps["viridis"](np.linspace(0, 1, len(layers)))[:, :3]

    def add_key(figure: Figure) -> None:
        axes = figure.add_axes((_KEY_LEFT, 0.2, _BAR_WIDTH, 0.6))
        axes.imshow(palette[:, None, :], origin="lower", aspect="auto", interpolation="nearest")
        ticks = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 8)).round().astype(int))
        axes.set_yticks(ticks, labels=[str(layers[tick]) for tick in ticks])
        axes.set_xticks([])
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
        axes.set_ylabel(label)

    return Paint(_positions(positions, len(layers)), palette, add_key)


def category_paint(positions: FloatArray, names: Sequence[str], *, label: str) -> Paint:
    """Return one colour a name; the key has the number of places of each and their share.

    Parameters
    ----------
    positions : (n_places,) float
        In `names`; negative or NaN is not coloured.
    names
        Of the key, in its order.
    label
        Title of the key.
    """
    ranks = _positions(positions, len(names))
    counts = np.bincount(ranks[ranks >= 0].astype(int), minlength=len(names))
    shares = 100.0 * counts / max(int(counts.sum()), 1)
    texts = [f"{name}: {count} ({share:.0f} %)" for name, count, share in zip(names, counts, shares, strict=True)]
    return Paint(ranks, _distinct(len(names)), _key_of_names(texts, label))


def label_paint(positions: FloatArray, names: Sequence[str], *, label: str) -> Paint:
    """Return one colour a region; neighbours in a long list differ, and its key is left out."""
    texts = list(names) if len(names) <= MAX_KEY_NAMES else []
    title = label if texts else f"{label}:\n{len(names)} regions;\ncolours repeat"
    return Paint(_positions(positions, len(names)), _distinct(len(names)), _key_of_names(texts, title))


def _distinct(n_names: int) -> FloatArray:
    return np.array([to_rgb(colour) for colour in name_colours(n_names)]).reshape(-1, 3)


def _positions(values: FloatArray, n_names: int) -> FloatArray:
    """Return positions with -1 for none, and refuse those beyond the names."""
    positions = np.where(np.isfinite(values) & (values >= 0), np.nan_to_num(values), -1.0)
    if positions.size and positions.max() > n_names - 1:
        raise ValueError(
            f"The map holds {positions.max():g}, but there are only {n_names} names; pass those it was made with."
        )
    return positions


def _ranks(values: FloatArray, shown: BoolArray, top: float) -> FloatArray:
    scaled = np.clip(np.nan_to_num(values) / top, 0, 1)
    return np.where(shown, np.floor(scaled * (_STEPS - 1) + 0.5), -1.0)


def _steps(cmap: LinearSegmentedColormap) -> FloatArray:
    return np.asarray(cmap(np.linspace(0, 1, _STEPS)))[:, :3]


def _add_bar(
    figure: Figure, cmap: LinearSegmentedColormap, top: float, label: str, *, bottom: float, height: float
) -> None:
    axes = figure.add_axes((_KEY_LEFT, bottom, _BAR_WIDTH, height))
    bar = figure.colorbar(ScalarMappable(norm=Normalize(0, top), cmap=cmap), cax=axes)
    bar.set_label(label)
    bar.outline.set_edgecolor(FAINT)


def _key_of_names(texts: Sequence[str], label: str) -> Callable[[Figure], None]:
    colours = name_colours(len(texts))

    def add_key(figure: Figure) -> None:
        handles = [Patch(facecolor=colour, label=text) for colour, text in zip(colours, texts, strict=True)]
        if not handles:
            figure.text(MAP_WIDTH + 0.01, 0.5, label, fontsize=8.5, color=INK, va="center")
            return
        figure.legend(
            handles=handles, title=label, loc="center left", bbox_to_anchor=(MAP_WIDTH + 0.002, 0.5),
            fontsize=7.5 if len(texts) <= 16 else 5.5, title_fontsize=8.5, handlelength=1.0, handleheight=1.0,
            handletextpad=0.5, labelspacing=0.45, borderpad=0,
        )  # fmt: skip

    return add_key


def places_in_palette(ranks: FloatArray, lookup: IntArray) -> FloatArray:
    """Return the rank of what each vertex shows, -1 for nothing."""
    if not ranks.size:
        return np.full(lookup.shape, -1.0)
    return np.where(lookup >= 0, ranks[np.maximum(lookup, 0)], -1.0)
