"""Scores of the layers of one model in each region: small curves, and a heat map."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bids_mllm.records import FloatArray
from bids_mllm.report.bar_figures import titled, wrapped
from bids_mllm.report.content import Cell
from bids_mllm.report.figures import FigureData, drawer
from bids_mllm.report.style import FAINT, INK, PALETTE, new_figure, score_colours

#: Kinds of figures that are drawn here.
CURVES, HEAT_MAP = "layer-curves", "layer-heat-map"
WIDTH = 9.0
_COLUMNS = 4
_PANEL_HEIGHT = 1.45
_MOST_TICKS = 16
_RING = "#1F2933"
_BELOW = "#E4E7EB"


@drawer(CURVES)
def draw_layer_curves(data: FigureData) -> Figure:
    """Draw one small panel a region: its curve with a standard error and its highest layer, on the range of all."""
    rois, layers, means = _grid(data.rows, "r")
    _, _, errors = _grid(data.rows, "r_sem")
    known = np.ma.masked_invalid(means)
    lowest, highest = known.min(axis=0), known.max(axis=0)
    n_columns = min(_COLUMNS, len(rois))
    n_rows = math.ceil(len(rois) / n_columns)
    figure = new_figure(WIDTH, 1.0 + _PANEL_HEIGHT * n_rows)
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place >= len(rois):
            axes.set_visible(False)
            continue
        axes.fill_between(layers, lowest, highest, color=_BELOW, linewidth=0, zorder=0)
        _draw_curve(axes, layers, means[place], errors[place])
        axes.set_title(wrapped(rois[place], 26), fontsize=8.5)
        if place + n_columns >= len(rois):
            axes.tick_params(labelbottom=True)
    ticks = _thinned(layers, 6)
    panels.flat[0].set_xticks(ticks, [str(layer) for layer in ticks])
    figure.supxlabel("layer (0 = embedding)", fontsize=9)
    figure.supylabel(str(data.options["label"]), fontsize=9)
    titled(figure, data.title)
    return figure


def _draw_curve(axes: Axes, layers: Sequence[int], mean: FloatArray, sem: FloatArray) -> None:
    """Draw one curve, its band and a ring on its highest layer."""
    error = np.nan_to_num(sem)
    axes.fill_between(layers, mean - error, mean + error, color=PALETTE[0], alpha=0.25, linewidth=0, zorder=2)
    axes.plot(layers, mean, color=PALETTE[0], linewidth=1.6, zorder=3, gid="curve")
    if np.isfinite(mean).any():
        best = int(np.nanargmax(mean))
        axes.plot(
            layers[best], mean[best], marker="o", markersize=6, markerfacecolor="white", markeredgecolor=PALETTE[4],
            markeredgewidth=1.5, zorder=4, gid="highest",
        )  # fmt: skip
    axes.axhline(0.0, color=INK, linewidth=0.6, zorder=1)
    axes.grid(axis="y", color=FAINT, linewidth=0.4)


@drawer(HEAT_MAP)
def draw_layer_heat_map(data: FigureData) -> Figure:
    """Draw regions by layers as colours, with a ring on the highest layer of each region."""
    rois, layers, means = _grid(data.rows, "r")
    figure = new_figure(WIDTH, 1.5 + 0.24 * max(3, len(rois)))
    axes = figure.subplots()
    finite = means[np.isfinite(means)]
    top = max(float(finite.max()) if finite.size else 0.0, 0.01)
    colours = score_colours().with_extremes(under=_BELOW)
    mesh = axes.pcolormesh(
        np.arange(len(layers) + 1) - 0.5, np.arange(len(rois) + 1) - 0.5, np.ma.masked_invalid(means), cmap=colours,
        vmin=0.0, vmax=top, edgecolors="white", linewidth=0.3,
    )  # fmt: skip
    known = [row for row in range(len(rois)) if np.isfinite(means[row]).any()]
    best = [int(np.nanargmax(means[row])) for row in known]
    axes.plot(
        best, known, linestyle="none", marker="o", markersize=6, markerfacecolor="white", markeredgecolor=_RING,
        gid="highest",
    )  # fmt: skip
    ticks = _thinned(range(len(layers)), _MOST_TICKS)
    axes.set_xticks(ticks, [str(layers[i]) for i in ticks])
    axes.set_yticks(range(len(rois)), [wrapped(roi) for roi in rois])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer (0 = embedding); ring = highest of the region")
    below = bool(finite.size and finite.min() < 0)
    figure.colorbar(mesh, ax=axes, label=str(data.options["label"]), pad=0.02, extend="min" if below else "neither")
    titled(figure, data.title)
    return figure


def _grid(rows: Sequence[Mapping[str, Cell]], column: str) -> tuple[list[str], list[int], FloatArray]:
    """Return regions, layers and one column as (n_rois, n_layers); NaN where there is no row."""
    rois = list(dict.fromkeys(str(row["roi"]) for row in rows))
    layers = sorted({int(row["layer"] or 0) for row in rows})
    values: FloatArray = np.full((len(rois), len(layers)), np.nan)
    for row in rows:
        if row[column] is not None:
            values[rois.index(str(row["roi"])), layers.index(int(row["layer"] or 0))] = float(row[column] or 0.0)
    return rois, layers, values


def _thinned(values: Sequence[int], n_most: int) -> list[int]:
    """Return every k-th value so that at most `n_most` remain."""
    return list(values[:: max(1, math.ceil(len(values) / n_most))])
