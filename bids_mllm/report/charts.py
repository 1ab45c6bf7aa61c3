"""Charts of scores, as SVG with text kept as text."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bids_mllm.records import FloatArray
from bids_mllm.report.style import CHART_STYLE, FAINT, PALETTE, new_figure, svg_bytes

MAX_ROIS = 40
_HATCHES = ("", "///", "...", "xxx")
_LINES = ("-", "--", ":", "-.")


def rois_of_bars(kinds: Mapping[str, str], *, max_rois: int = MAX_ROIS) -> tuple[str, ...]:
    """Return the regions that bars are drawn of: of many areas none where there are groups or sets of them.

    Parameters
    ----------
    kinds
        Kind by name of the region: all, area, group or set.
    max_rois
        Areas up to which all are drawn.
    """
    without_areas = tuple(roi for roi, kind in kinds.items() if kind != "area")
    grouped = any(kind in ("group", "set") for kind in kinds.values())
    return without_areas if grouped and len(kinds) - len(without_areas) > max_rois else tuple(kinds)


def roi_bars(
    rois: Sequence[str],
    models: Sequence[str],
    mean_r: FloatArray,
    *,
    label: str = "mean r",
    max_rois: int = MAX_ROIS,
) -> bytes:
    """Draw the mean score of each ROI as horizontal bars, one colour a model.

    Parameters
    ----------
    rois, models
        Names of the columns and the rows of `mean_r`.
    mean_r : (n_models, n_rois) float
        Mean over the voxels of each ROI; NaN draws no bar.
    max_rois
        With more ROIs than this, those of the highest mean over models are drawn and the title says so.

    Returns
    -------
    bytes
        An SVG.
    """
    mean_r = np.asarray(mean_r, dtype=float)
    if mean_r.shape != (len(models), len(rois)):
        raise ValueError(
            f"mean_r has shape {mean_r.shape}, but {len(models)} models x {len(rois)} ROIs were named; "
            "pass one row a model and one column an ROI."
        )
    kept = _highest_columns(mean_r, max_rois)
    with rc_context(dict(CHART_STYLE)):
        figure = new_figure(9.0, 1.0 + len(kept) * max(0.26, 0.11 * len(models)))
        axes = figure.subplots()
        _draw_bars(axes, mean_r[:, kept], models)
        axes.set_yticks(np.arange(len(kept)), [_plain(rois[k]) for k in kept])
        axes.set_ylim(len(kept) - 0.4, -0.6)
        axes.set_xlabel(label)
        axes.grid(axis="x", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        if len(kept) < len(rois):
            axes.set_title(f"The {len(kept)} of {len(rois)} ROIs with the highest mean")
        _legend_outside(figure, axes)
        return svg_bytes(figure)


def _highest_columns(mean_r: FloatArray, n_columns: int) -> list[int]:
    """Return the columns of the highest mean over rows, in their own order; all when they are few."""
    if mean_r.shape[1] <= n_columns:
        return list(range(mean_r.shape[1]))
    counts = np.isfinite(mean_r).sum(axis=0)
    means = np.where(counts > 0, np.nansum(mean_r, axis=0) / np.maximum(counts, 1), -np.inf)
    return sorted(int(i) for i in np.argsort(-means, kind="stable")[:n_columns])


def _draw_bars(axes: Axes, mean_r: FloatArray, models: Sequence[str]) -> None:
    """Draw one group of bars a column of `mean_r`, the models from top to bottom."""
    height = 0.8 / len(models)
    for row, model in enumerate(models):
        centres = np.arange(mean_r.shape[1]) + (row - (len(models) - 1) / 2) * height
        axes.barh(
            centres, np.nan_to_num(mean_r[row]), height=height, label=_plain(model),
            color=PALETTE[row % len(PALETTE)], hatch=_HATCHES[row // len(PALETTE) % len(_HATCHES)],
            edgecolor="white", linewidth=0.4,
        )  # fmt: skip
    axes.axvline(0.0, color="#52606D", linewidth=0.8)


def layer_curves(
    layers: Sequence[int], curves: Mapping[str, FloatArray], *, title: str = "", label: str = "mean r"
) -> bytes:
    """Draw the mean score of each layer, one line a condition.

    Parameters
    ----------
    layers
        Layer numbers; 0 is the embedding.
    curves
        Condition to its mean score of each layer, (n_layers,) float.

    Returns
    -------
    bytes
        An SVG.
    """
    with rc_context(dict(CHART_STYLE)):
        figure = new_figure(9.0, max(3.2, 0.22 * len(curves) + 0.8))
        axes = figure.subplots()
        for i, (name, values) in enumerate(curves.items()):
            axes.plot(
                layers, np.asarray(values, dtype=float), label=_plain(name), color=PALETTE[i % len(PALETTE)],
                linestyle=_LINES[i // len(PALETTE) % len(_LINES)], marker="o", markersize=3.5, linewidth=1.6,
            )  # fmt: skip
        axes.set_xticks(_thinned(layers, 15))
        axes.set_xlabel("layer (0 = embedding)")
        axes.set_ylabel(label)
        axes.set_title(_plain(title))
        axes.grid(axis="y", color=FAINT, linewidth=0.5)
        _legend_outside(figure, axes)
        return svg_bytes(figure)


def layer_heat_map(
    conditions: Sequence[str], layers: Sequence[int], mean_r: FloatArray, *, title: str = "",
    label: str = "mean r",
) -> bytes:  # fmt: skip
    """Draw the mean score of every condition and layer as a heat map, the highest cell ringed.

    Parameters
    ----------
    conditions, layers
        Names of the rows and the columns.
    mean_r : (n_conditions, n_layers) float

    Returns
    -------
    bytes
        An SVG.
    """
    mean_r = np.asarray(mean_r, dtype=float)
    with rc_context(dict(CHART_STYLE)):
        figure = new_figure(9.0, 1.3 + 0.24 * len(conditions))
        axes = figure.subplots()
        edges = np.arange(len(layers) + 1) - 0.5
        mesh = axes.pcolormesh(
            edges, np.arange(len(conditions) + 1) - 0.5, np.ma.masked_invalid(mean_r), cmap="viridis",
            edgecolors="white", linewidth=0.3,
        )  # fmt: skip
        if np.isfinite(mean_r).any():
            row, column = np.unravel_index(int(np.nanargmax(mean_r)), mean_r.shape)
            axes.plot(column, row, marker="o", markersize=7, markerfacecolor="none", markeredgecolor="#D55E00")
        shown = _thinned(range(len(layers)), 15)
        axes.set_xticks(shown, [str(layers[i]) for i in shown])
        axes.set_yticks(np.arange(len(conditions)), [_plain(name) for name in conditions])
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("layer (0 = embedding)")
        axes.set_title(_plain(title))
        figure.colorbar(mesh, ax=axes, label=label, pad=0.02)
        return svg_bytes(figure)


def _thinned(values: Sequence[int], n_most: int) -> list[int]:
    """Return every k-th value so that at most `n_most` remain."""
    step = max(1, math.ceil(len(values) / n_most))
    return list(values[::step])


def _legend_outside(figure: Figure, axes: Axes) -> None:
    """Put the legend to the right of the axes, where it covers no data."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside right upper", fontsize=8, handlelength=2.6)


def _plain(text: str) -> str:
    """Return the text with dollar signs escaped, so that matplotlib sets no mathematics."""
    return text.replace("$", r"\$")
