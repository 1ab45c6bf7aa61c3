"""Colours, fonts and export shared by the charts and the maps."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure

# Okabe and Ito (2008), without black and with yellow last: it is pale on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7A5195", "#B8A600")
TRAIN, TEST, UNUSED = "#0072B2", "#E69F00", "#D9DDE3"
BOLD, FILM, MASKED = "#9AA5B1", "#0072B2", "#D55E00"
INK, FAINT = "#1F2933", "#C8CED6"

# Paul Tol, "Colour schemes" (2021): the rainbow that stays ordered for colour-blind readers.
_RAINBOW = (
    "#882E72", "#1965B0", "#5289C7", "#7BAFDE", "#4EB265", "#90C987", "#CAE0AB",
    "#F7F056", "#F6C141", "#F1932D", "#E8601C", "#DC050C", "#72190E",
)  # fmt: skip
MAX_DISTINCT_COLOURS = len(_RAINBOW)
#: What follows the colours of the style, or these and their halves, where there is one name more, such as 13 or 26
#: instructions and the film itself.
_LAST = "#1A1A1A"

# DejaVu ships with matplotlib, which measures with it; Verdana has nearly the same widths.
CHART_STYLE: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "bids-mllm",
}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure of `width` x `height` inches that pyplot does not know of."""
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def svg_bytes(figure: Figure) -> bytes:
    """Return the figure as SVG with its text kept as text and without a date."""
    buffer = io.BytesIO()
    with rc_context(dict(CHART_STYLE)):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def png_bytes(figure: Figure, *, dpi: int = 90) -> bytes:
    """Return the figure as PNG at `dpi` dots an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def distinct_colours(n_colours: int) -> tuple[str, ...]:
    """Return `n_colours` colours for unordered names; beyond 13 of them the colours repeat."""
    if n_colours <= len(PALETTE):
        return PALETTE[:n_colours]
    if n_colours <= MAX_DISTINCT_COLOURS:
        last = MAX_DISTINCT_COLOURS - 1
        return tuple(_RAINBOW[round(i * last / (n_colours - 1))] for i in range(n_colours))
    return tuple(_RAINBOW[i % MAX_DISTINCT_COLOURS] for i in range(n_colours))


def name_colours(n_names: int) -> tuple[str, ...]:
    """Return colours for names; those that would repeat are half white, and one name more than these is dark.

    Beyond 27 names, such as the regions of an atlas, these colours repeat.
    """
    colours = [
        colour if number // MAX_DISTINCT_COLOURS % 2 == 0 else to_hex(0.5 + 0.5 * np.array(to_rgb(colour)))
        for number, colour in enumerate(distinct_colours(n_names))
    ]
    if n_names in (MAX_DISTINCT_COLOURS + 1, 2 * MAX_DISTINCT_COLOURS + 1):
        colours = [*name_colours(n_names - 1), _LAST]
    return tuple(colours)


def score_colours() -> LinearSegmentedColormap:
    """Return the one-sided colour map of the scores: dark purple over red to pale yellow."""
    stops = ("#3B0F70", "#8C2981", "#DE4968", "#FE9F6D", "#FCFDBF")
    return LinearSegmentedColormap.from_list("bids_mllm_scores", stops)
