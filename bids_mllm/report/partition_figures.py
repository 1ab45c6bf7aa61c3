"""What two instructions explain together and each alone: a heat map over pairs, and Venn diagrams."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from bids_mllm.records import FloatArray
from bids_mllm.report.bar_figures import titled, wrapped
from bids_mllm.report.content import Cell
from bids_mllm.report.figures import FigureData, drawer
from bids_mllm.report.style import INK, PALETTE, new_figure

#: Kinds of figures that are drawn here.
SHARED, VENN = "shared-heat-map", "venn"
#: From dark to light in one hue family that print and colour-blind readers keep in order.
_COLOURS = "cividis"
_BISECTIONS = 60
_VENN_COLOURS = (PALETTE[0], PALETTE[1])
#: Box that the two circles fill, in the units of the axes.
_VENN_WIDTH, _VENN_HEIGHT = 2.2, 1.1


@drawer(SHARED)
def draw_shared_heat_map(data: FigureData) -> Figure:
    """Draw the shared part of each pair of conditions in per cent of the joint, as a triangle with its numbers."""
    names = list(data.options["conditions"])
    shares: FloatArray = np.full((len(names), len(names)), np.nan)
    for row in data.rows:
        if row["shared_percent"] is not None:
            a, b = names.index(str(row["condition_a"])), names.index(str(row["condition_b"]))
            shares[max(a, b), min(a, b)] = float(row["shared_percent"])
    side = max(3.2, 0.42 * len(names))
    figure = new_figure(side + 2.3, side + 1.1)
    axes = figure.subplots()
    mesh = axes.pcolormesh(np.ma.masked_invalid(shares), cmap=_COLOURS, vmin=0, vmax=100, edgecolors="white")
    for row_place, column in zip(*np.nonzero(np.isfinite(shares)), strict=True):
        value = shares[row_place, column]
        axes.text(
            column + 0.5, row_place + 0.5, f"{value:.0f}", ha="center", va="center", fontsize=7,
            color="white" if value < 55 else INK,
        )  # fmt: skip
    labels = [wrapped(data.options["labels"][name], 18) for name in names]
    axes.set_xticks(np.arange(len(names)) + 0.5, labels, rotation=90 if len(max(labels, key=len)) > 4 else 0)
    axes.set_yticks(np.arange(len(names)) + 0.5, labels)
    axes.set_xlim(0, len(names) - 1)
    axes.set_ylim(len(names), 1)
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    beyond = bool(np.any(shares < 0)), bool(np.any(shares > 100))
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    figure.colorbar(mesh, ax=axes, label=str(data.options["label"]), pad=0.02, shrink=0.8, extend=extend)
    titled(figure, data.title)
    return figure


@drawer(VENN)
def draw_venn(data: FigureData) -> Figure:
    """Draw two circles a pair and region, whose areas and overlap are in proportion to the parts."""
    rois = list(dict.fromkeys(str(row["roi"]) for row in data.rows))
    pairs = list(dict.fromkeys((str(row["condition_a"]), str(row["condition_b"])) for row in data.rows))
    figure = new_figure(max(4.2, 3.0 * len(pairs)), 0.7 + 2.3 * len(rois))
    panels = figure.subplots(len(rois), len(pairs), squeeze=False)
    for row in data.rows:
        place = pairs.index((str(row["condition_a"]), str(row["condition_b"])))
        axes = panels[rois.index(str(row["roi"]))][place]
        names = [str(data.options["labels"][row[key]]) for key in ("condition_a", "condition_b")]
        _draw_one(axes, row, names)
    for axes in panels.flat:
        axes.set_axis_off()
    titled(figure, data.title)
    return figure


def _draw_one(axes: Axes, row: Mapping[str, Cell], names: Sequence[str]) -> None:
    """Draw the circles of one pair, the per cent of each part, and above them region and joint score."""
    joint = "n/a" if row["joint"] is None else f"{float(row['joint']):.4f}"
    share = "" if row["shared_percent"] is None else f", {float(row['shared_percent']):.0f} % shared"
    axes.set_title(f"{wrapped(row['roi'], 30)}, {row['pair']}\njoint {row['measure']} {joint}{share}", fontsize=8)
    parts = [max(float(row[key] or 0.0), 0.0) for key in ("unique_a", "shared", "unique_b")]
    axes.set_xlim(-1.25, 1.25)
    axes.set_ylim(-0.95, 0.85)
    axes.set_aspect("equal")
    total = sum(parts)
    if total <= 0:
        axes.text(0, 0, "nothing explained", ha="center", va="center", fontsize=8)
        return
    unique_a, shared, unique_b = (part / total for part in parts)
    left, right, distance = venn_circles(unique_a, shared, unique_b)
    start, end = min(-left, distance - right), max(left, distance + right)
    scale = min(_VENN_WIDTH / (end - start), _VENN_HEIGHT / (2 * max(left, right)))
    middle = (start + end) / 2
    places = ((-middle * scale, left), ((distance - middle) * scale, right))
    for (x, radius), colour, name in zip(places, _VENN_COLOURS, "ab", strict=True):
        circle = Circle((x, 0.05), radius * scale, facecolor=colour, alpha=0.45, edgecolor=INK, linewidth=1.0)
        circle.set_gid(f"set-{name}")
        axes.add_patch(circle)
    for place, name, part, side in ((-1.2, names[0], unique_a, "left"), (1.2, names[1], unique_b, "right")):
        axes.text(
            place, -0.9, f"{wrapped(name, 16)}\nalone {100 * part:.0f} %", ha=side, va="bottom", fontsize=7.5,
            color=INK,
        )  # fmt: skip
    axes.text(0, 0.78, f"both {100 * shared:.0f} %", ha="center", va="top", fontsize=7.5)


def venn_circles(unique_a: float, shared: float, unique_b: float) -> tuple[float, float, float]:
    """Return the radii of two circles and the distance of their centres, so that areas are the parts.

    The circles have the areas ``unique_a + shared`` and ``unique_b + shared``, and overlap in an area of ``shared``;
    the distance is found by bisection.

    Parameters
    ----------
    unique_a, shared, unique_b
        Parts, none of them negative.

    Returns
    -------
    radius_a, radius_b, distance : float
    """
    radius_a, radius_b = (math.sqrt((part + shared) / math.pi) for part in (unique_a, unique_b))
    low, high = abs(radius_a - radius_b), radius_a + radius_b
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if overlap(radius_a, radius_b, middle) > shared else (low, middle)
    return radius_a, radius_b, (low + high) / 2


def overlap(radius_a: float, radius_b: float, distance: float) -> float:
    """Return the area that two circles have in common."""
    if distance >= radius_a + radius_b:
        return 0.0
    if distance <= abs(radius_a - radius_b):
        return math.pi * min(radius_a, radius_b) ** 2
    squares = radius_a**2, radius_b**2, distance**2
    cosine_a = (squares[2] + squares[0] - squares[1]) / (2 * distance * radius_a)
    cosine_b = (squares[2] + squares[1] - squares[0]) / (2 * distance * radius_b)
    angle_a, angle_b = (math.acos(min(1.0, max(-1.0, cosine))) for cosine in (cosine_a, cosine_b))
    triangle = squares[0] * math.sin(2 * angle_a) / 2 + squares[1] * math.sin(2 * angle_b) / 2
    return squares[0] * angle_a + squares[1] * angle_b - triangle
