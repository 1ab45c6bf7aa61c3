"""Bars of models in one region, and of how often each condition or layer was chosen there."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bids_mllm.report.content import Cell
from bids_mllm.report.figures import FigureData, drawer
from bids_mllm.report.style import FAINT, INK, PALETTE, distinct_colours, new_figure

#: Kinds of figures that are drawn here.
BARS, CHOICES = "model-bars", "choice-bars"
#: Colour and hatch of each class of models; a class that is not named here is drawn as the last.
CLASS_STYLES: Mapping[str, tuple[str, str]] = {
    "instruction-tuned": (PALETTE[0], ""),
    "in-context": (PALETTE[3], "///"),
    "multimodal": (PALETTE[1], "..."),
    "unimodal": (PALETTE[2], "xx"),
    "low-level": ("#9AA5B1", "\\\\\\"),
    "feature table": (PALETTE[5], "++"),
    "random weights": ("#D9DDE3", "oo"),
}
#: Marker and size of the flag for being better than each model of a class.
FLAGS: Mapping[str, tuple[str, float]] = {"multimodal": ("*", 10.0), "unimodal": ("D", 5.5)}
WIDTH = 9.0
_NAME_WIDTH = 34
#: Of a title on an inch.
_TITLE_CHARACTERS = 9.5
#: How far below the middle of its bar a dot stands, in bars.
_DOT_PLACE = 0.2
_LEGEND_COLUMNS = 4
#: Share of a region that is as wide as one character of a name.
_NAMED_SHARE = 0.016
_MOST_IN_LEGEND = 16
_HATCHES = ("", "///", "...", "xx")


def wrapped(name: object, width: int = _NAME_WIDTH) -> str:
    """Return a name on as many lines as it needs, with dollar signs escaped, so that nothing of it is cut."""
    text = str(name).replace("$", r"\$")
    return "\n".join(textwrap.wrap(text, width)) or text


def titled(figure: Figure, title: str) -> None:
    """Put the title of a figure above its panels, on the left, on as many lines as its width asks for."""
    figure.suptitle(
        wrapped(title, int(_TITLE_CHARACTERS * figure.get_figwidth())),
        x=0.01,
        ha="left",
        fontsize=10,
        fontweight="bold",
    )


@drawer(BARS)
def draw_model_bars(data: FigureData) -> Figure:
    """Draw one bar a model with its standard error, a dot a participant and flags; one panel a measure."""
    means = [row for row in data.rows if row["participant"] is None]
    measures = list(dict.fromkeys(str(row["measure"]) for row in means))
    models = list(dict.fromkeys(str(row["model"]) for row in means))
    n_lines = sum(max(1, wrapped(model).count("\n") + 1) for model in models)
    figure = new_figure(WIDTH, 1.7 + 0.34 * max(2, len(models)) + 0.12 * (n_lines - len(models)))
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        own = [row for row in data.rows if row["measure"] == measure]
        _draw_bars(axes, own, models)
        axes.set_xlabel(wrapped(data.options["labels"][measure], 44))
    panels[0].set_yticks(range(len(models)), [wrapped(model) for model in models])
    panels[0].set_ylim(len(models) - 0.4, -0.6)
    titled(figure, data.title)
    handles = _bar_legend(means, dots=any(row["participant"] is not None for row in data.rows))
    figure.legend(handles=handles, loc="outside lower left", ncols=_LEGEND_COLUMNS, fontsize=8)
    return figure


def _draw_bars(axes: Axes, rows: Sequence[Mapping[str, Cell]], models: Sequence[str]) -> None:
    """Draw the bars, errors, dots and flags of one measure; flags stand in columns right of all bars."""
    means = {str(row["model"]): row for row in rows if row["participant"] is None}
    ends = [0.0]
    for place, model in enumerate(models):
        row = means.get(model)
        if row is None or row["value"] is None:
            continue
        value, sem = _number(row["value"]), _number(row["sem"] or 0.0)
        colour, hatch = _style_of(row["class"])
        axes.barh(place, value, height=0.66, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
        if sem > 0:
            axes.errorbar(value, place, xerr=sem, color=INK, capsize=3.5, linewidth=1.3, zorder=4)
        ends += [value - sem, value + sem]
    dots = [row for row in rows if row["participant"] is not None and row["value"] is not None]
    x = [_number(row["value"]) for row in dots]
    y = [models.index(str(row["model"])) + _DOT_PLACE for row in dots]
    axes.plot(
        x, y, linestyle="none", marker="o", markersize=4, markerfacecolor="white", markeredgecolor=INK, zorder=3,
        gid="participants",
    )  # fmt: skip
    low, high = min([*ends, *x]), max([*ends, *x])
    span = (high - low) or 1.0
    flags = [flag for flag in FLAGS if any(row[f"better_than_{flag}"] for row in means.values())]
    for column, flag in enumerate(flags):
        starred = [models.index(model) for model, row in means.items() if row[f"better_than_{flag}"]]
        marker, size = FLAGS[flag]
        axes.plot(
            [high + span * (0.06 + 0.06 * column)] * len(starred), starred, linestyle="none", marker=marker,
            markersize=size, color=INK, gid=f"flag-{flag}",
        )  # fmt: skip
    axes.set_xlim(low - 0.03 * span if low < 0 else 0.0, high + span * (0.05 + 0.07 * len(flags)))
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def _style_of(name: Cell) -> tuple[str, str]:
    return CLASS_STYLES.get(str(name), tuple(CLASS_STYLES.values())[-1])


def _bar_legend(means: Sequence[Mapping[str, Cell]], *, dots: bool) -> list[Any]:
    """Name the classes, the dots, the errors and the flags that are drawn."""
    handles: list[Any] = []
    for name in dict.fromkeys(str(row["class"]) for row in means):
        colour, hatch = _style_of(name)
        handles.append(Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=name))
    if dots:
        dot = Line2D([], [], linestyle="none", marker="o", markersize=4, markerfacecolor="white", markeredgecolor=INK)
        dot.set_label("participant")
        handles.append(dot)
    if any(row["sem"] for row in means):
        handles.append(Line2D([], [], color=INK, linewidth=1.3, marker="|", label="SEM over participants"))
    for flag, (marker, size) in FLAGS.items():
        if any(row[f"better_than_{flag}"] for row in means):
            words = f"better than every {flag} model"
            handles.append(
                Line2D([], [], linestyle="none", marker=marker, markersize=size * 0.8, color=INK, label=words)
            )
    return handles


@drawer(CHOICES)
def draw_choice_bars(data: FigureData) -> Figure:
    """Draw the share of each choice as one stacked bar a region, with the names of the choices that are wide enough."""
    rois = list(dict.fromkeys(str(row["roi"]) for row in data.rows))
    values = list(dict.fromkeys(str(row["value"]) for row in data.rows))
    colours, hatches = _choice_styles(len(values), ordered=bool(data.options["ordered"]))
    figure = new_figure(WIDTH, 1.3 + 0.32 * max(2, len(rois)) + 0.04 * min(len(values), _MOST_IN_LEGEND))
    axes = figure.subplots()
    share = {(str(row["roi"]), str(row["value"])): _number(row["share"] or 0.0) for row in data.rows}
    for place, roi in enumerate(rois):
        left = 0.0
        for value, colour, hatch in zip(values, colours, hatches, strict=True):
            width = share.get((roi, value), 0.0)
            if width > 0:
                axes.barh(
                    place, width, left=left, height=0.72, color=colour, hatch=hatch, edgecolor="white", linewidth=0.6
                )
                name = wrapped(data.options["labels"].get(value, value))
                _name_inside(axes, left + width / 2, place, name=name, width=width, colour=colour, hatch=hatch)
            left += width
    axes.set_yticks(range(len(rois)), [wrapped(roi) for roi in rois])
    axes.set_ylim(len(rois) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel(str(data.options["label"]))
    axes.tick_params(axis="y", length=0)
    titled(figure, data.title)
    step = -(-len(values) // _MOST_IN_LEGEND) if data.options["ordered"] else 1
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=wrapped(data.options["labels"].get(value, value)))
        for value, colour, hatch in list(zip(values, colours, hatches, strict=True))[::step]
    ]
    figure.legend(
        handles=handles, loc="outside right upper", title=str(data.options["what"]), fontsize=7.5, title_fontsize=8
    )
    return figure


def _choice_styles(n: int, *, ordered: bool) -> tuple[list[Any], list[str]]:
    """Return colours and hatches: dark to light where the choices have an order, else each its own."""
    if ordered:
        return list(colormaps["viridis"](np.linspace(0.0, 1.0, n))), [""] * n
    colours = list(distinct_colours(min(n, len(PALETTE))))
    rounds = [_HATCHES[i // len(colours) % len(_HATCHES)] for i in range(n)]
    return [colours[i % len(colours)] for i in range(n)], rounds


def _name_inside(axes: Axes, x: float, y: int, *, name: str, width: float, colour: Any, hatch: str) -> None:
    """Write the name of a choice into its part of the bar, where it fits."""
    if width < _NAMED_SHARE * (len(name) + 0.4):
        return
    red, green, blue = to_rgb(colour)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    box = {"facecolor": colour, "edgecolor": "none", "pad": 0.8} if hatch else None
    axes.text(x, y, name, ha="center", va="center", fontsize=7, color="white" if dark else INK, bbox=box)


def _number(value: Cell) -> float:
    return float("nan") if value is None else float(value)
