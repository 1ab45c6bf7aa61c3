"""Charts of maps that no brain can be drawn of: the highest parcels, and how often each value occurs, as PNG."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bids_mllm.records import FloatArray
from bids_mllm.report.style import (
    CHART_STYLE,
    FAINT,
    INK,
    PALETTE,
    distinct_colours,
    new_figure,
    png_bytes,
    score_colours,
)

MAX_BARS = 30
_WIDTH = 9.0
_LONGEST_NAME = 48
_DPI = 110
_N_BINS = 50
#: Keeps pale bars apart from the white ground.
_EDGE_WIDTH = 0.4
#: Room beyond the longest bar.
_ROOM = 1.05


def ranked_bars(values: FloatArray, names: Sequence[str], *, label: str, vmax: float | None = None) -> bytes:
    """Draw the highest scores as horizontal bars, the highest on top.

    Parameters
    ----------
    values : (n_names,) float
        Scores; NaN draws no bar.
    names
        What each score is of.
    label
        Text of the axis.
    vmax
        Score up to which axis and colours reach, for charts that are compared; higher bars extend the axis.

    Returns
    -------
    bytes
        A PNG.
    """
    finite = np.flatnonzero(np.isfinite(values))
    kept = finite[np.argsort(-values[finite], kind="stable")][:MAX_BARS]
    top = vmax or (float(values[kept].max()) if kept.size and values[kept].max() > 0 else 1.0)
    with rc_context(dict(CHART_STYLE)):
        figure, axes = _bar_chart(len(kept))
        colours = score_colours()(np.clip(values[kept] / top, 0, 1))
        axes.barh(np.arange(len(kept)), values[kept], color=colours, edgecolor=INK, linewidth=_EDGE_WIDTH)
        axes.set_yticks(np.arange(len(kept)), [_short(names[place]) for place in kept])
        axes.set_xlim(_ROOM * min(0.0, *values[kept], 0.0), _ROOM * max(top, *values[kept], 0.0))
        axes.set_xlabel(label)
        if len(kept) < len(finite):
            scored = "" if len(finite) == len(values) else " with a score"
            axes.set_title(f"The {len(kept)} highest of {len(finite)} parcels{scored}")
        return png_bytes(figure, dpi=_DPI)


def count_bars(positions: FloatArray, names: Sequence[str], *, label: str, what: str, ordered: bool = False) -> bytes:
    """Draw how often each position in `names` occurs, as horizontal bars in the order of the names.

    Parameters
    ----------
    positions : (n_places,) float
        Positions in `names`; negative or NaN = set aside.
    names
        What the positions mean.
    label
        What the names are, for example ``layer``.
    what
        What is counted, for example ``parcels``.
    ordered
        True colours the names from dark to light, as layers; False gives each its own colour.

    Returns
    -------
    bytes
        A PNG.
    """
    shown = positions[np.isfinite(positions) & (np.nan_to_num(positions, nan=-1.0) >= 0)].astype(int)
    counts = np.bincount(shown, minlength=len(names))
    if len(counts) > len(names):
        raise ValueError(f"the positions reach {len(counts) - 1}, but there are only {len(names)} names.")
    steps = np.linspace(0.0, 1.0, len(names))
    colours = list(colormaps["viridis"](steps)) if ordered else list(distinct_colours(len(names)))
    with rc_context(dict(CHART_STYLE)):
        figure, axes = _bar_chart(len(names))
        axes.barh(np.arange(len(names)), counts, color=colours, edgecolor=INK, linewidth=_EDGE_WIDTH)
        axes.set_yticks(np.arange(len(names)), [_short(name) for name in names])
        axes.set_xlim(0, _ROOM * max(int(counts.max(initial=0)), 1))
        axes.set_ylabel(label)
        axes.set_xlabel(f"number of {what}")
        return png_bytes(figure, dpi=_DPI)


def histogram(values: FloatArray, *, label: str, what: str, vmax: float | None = None) -> bytes:
    """Draw how many places have which score.

    Parameters
    ----------
    values : (n_places,) float
        Scores; NaN is not counted.
    label
        Text of the axis of scores.
    what
        What is counted, for example ``vertices``.
    vmax
        The axis of scores reaches at least this.

    Returns
    -------
    bytes
        A PNG.
    """
    finite: NDArray[np.floating] = values[np.isfinite(values)]
    with rc_context(dict(CHART_STYLE)):
        figure = new_figure(_WIDTH, 3.2)
        axes = figure.subplots()
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        span = (min(low, 0.0), max(high, vmax or 0.0, 1e-3))
        axes.hist(finite, bins=_N_BINS, range=span, color=PALETTE[0])
        axes.set_xlim(*span)
        axes.set_xlabel(label)
        axes.set_ylabel(f"number of {what}")
        return png_bytes(figure, dpi=_DPI)


def _bar_chart(n_bars: int) -> tuple[Figure, Axes]:
    """Return a figure for horizontal bars from top to bottom."""
    figure = new_figure(_WIDTH, 0.9 + 0.22 * max(n_bars, 3))
    axes = figure.subplots()
    axes.set_ylim(max(n_bars, 3) - 0.4, -0.6)
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def _short(name: object) -> str:
    """Return a name without the mark-up of matplotlib and cut where it is long."""
    text = str(name).replace("$", r"\$")
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 3] + "..."
