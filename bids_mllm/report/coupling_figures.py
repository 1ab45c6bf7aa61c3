"""Scatters of one quantity of the features against another quantity, with regression lines."""

import numpy as np
from matplotlib.figure import Figure

from bids_mllm.report.bar_figures import titled, wrapped
from bids_mllm.report.figures import FigureData, drawer
from bids_mllm.report.style import FAINT, INK, PALETTE, new_figure

#: Kind of the figures that are drawn here.
SCATTER = "coupling-scatter"
WIDTH = 9.0
#: With more points than this, none is named; of fewer, so many at most.
MOST_POINTS, MOST_NAMED = 40, 12


@drawer(SCATTER)
def draw_coupling(data: FigureData) -> Figure:
    """Draw one panel a comparison: its points, named where few, and the regression line of its options."""
    panels = list(data.options["panels"])
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = new_figure(WIDTH if n_columns > 1 else 5.2, 0.6 + 3.2 * n_rows)
    all_axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in all_axes.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(all_axes.flat, panels, strict=False):
        rows = [row for row in data.rows if row["panel"] == panel["name"]]
        x, y = (np.array([float(row[key] or 0.0) for row in rows]) for key in ("x", "y"))
        axes.plot(
            x, y, linestyle="none", marker="o", markersize=5, markerfacecolor=PALETTE[5], markeredgecolor=INK,
            markeredgewidth=0.6, gid="points",
        )  # fmt: skip
        if panel["slope"] is not None:
            ends = np.array([x.min(), x.max()])
            axes.plot(ends, panel["intercept"] + panel["slope"] * ends, color=PALETTE[4], linewidth=1.8, gid="line")
        if len(rows) <= MOST_POINTS:
            for row, right, up in list(zip(rows, x, y, strict=True))[:: -(-len(rows) // MOST_NAMED)]:
                axes.annotate(
                    str(row["point"]).replace("$", r"\$"), (right, up), xytext=(4, 3), textcoords="offset points",
                    fontsize=6.5, color=INK,
                )  # fmt: skip
        axes.margins(0.08)
        axes.set_xlabel(wrapped(panel["x_label"], 48))
        axes.set_ylabel(wrapped(panel["y_label"], 36))
        axes.set_title(wrapped(panel["title"], 46), fontsize=9)
        axes.grid(color=FAINT, linewidth=0.4)
        axes.set_axisbelow(True)
    titled(figure, data.title)
    return figure
