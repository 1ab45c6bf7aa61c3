"""Charts of when the films were shown and of the cross-validation, as SVG."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bids_mllm.records import Fold, IntArray, Run, Showing, TRWindows
from bids_mllm.report.style import (
    BOLD,
    CHART_STYLE,
    FAINT,
    FILM,
    MASKED,
    TEST,
    TRAIN,
    UNUSED,
    new_figure,
    svg_bytes,
)

_ROLES = (("train", TRAIN, ""), ("test", TEST, "///"), ("purged or unused", UNUSED, ""))


def constant_stretches(values: IntArray) -> list[tuple[int, int, int]]:
    """Return (value, start, length) of each stretch of equal neighbours.

    Parameters
    ----------
    values : (n,) int

    Returns
    -------
    list
        In order; the lengths add up to n.
    """
    if len(values) == 0:
        return []
    starts = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1])
    lengths = np.diff(np.concatenate([starts, [len(values)]]))
    return [(int(values[s]), int(s), int(n)) for s, n in zip(starts, lengths, strict=True)]


def alignment_chart(runs: Sequence[Run], windows: Sequence[TRWindows]) -> bytes:
    """Draw for every run the extent of the BOLD series, of the film, and the volumes masked out.

    Parameters
    ----------
    runs, windows
        One entry a run, in the same order.

    Returns
    -------
    bytes
        An SVG whose horizontal axis is in seconds on the run's clock.
    """
    with rc_context(dict(CHART_STYLE)):
        figure = new_figure(9.0, 1.2 + 0.36 * len(runs))
        axes = figure.subplots()
        for row, (run, tr_windows) in enumerate(zip(runs, windows, strict=True)):
            _draw_run(axes, row, run, tr_windows)
        axes.set_yticks(np.arange(len(runs)), [run.label for run in runs], fontsize=8)
        axes.set_ylim(len(runs) - 0.4, -0.6)
        axes.set_xlabel("seconds on the run's clock (0 = the first stored volume)")
        axes.grid(axis="x", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        handles = [
            Patch(facecolor=BOLD, label="BOLD, used"),
            Patch(facecolor=MASKED, hatch="////", edgecolor="white", label="BOLD, masked out"),
            Patch(facecolor=FILM, label="stimulus"),
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=8)
        return svg_bytes(figure)


def _draw_run(axes: Axes, row: int, run: Run, windows: TRWindows) -> None:
    """Draw the two bars of one run: the volumes above, the showings of its stimuli below."""
    for valid, start, length in constant_stretches(windows.valid.astype(int)):
        left = run.start_time + start * run.repetition_time
        axes.barh(
            row - 0.18, length * run.repetition_time, left=left, height=0.32,
            color=BOLD if valid else MASKED, hatch="" if valid else "////", edgecolor="white", linewidth=0.0,
        )  # fmt: skip
    for position, showing in enumerate(run.showings):
        left, right = showing_extent(showing, windows, position)
        axes.barh(row + 0.18, right - left, left=left, height=0.26, color=FILM, edgecolor="white", linewidth=0.6)


def showing_extent(showing: Showing, windows: TRWindows, position: int) -> tuple[float, float]:
    """Return when a showing starts and ends, in seconds on the run's clock.

    Where the events give no duration, the stimulus plays to its end as the alignment report states it,
    and without such a statement to the end of the last window that a volume was paired with.
    """
    if showing.duration is not None:
        return showing.run_onset, showing.run_onset + showing.duration
    stimuli = windows.report.get("stimuli", ())
    if position < len(stimuli):
        last = float(stimuli[position]["media_duration"])
    else:
        ends = windows.end[windows.valid & (windows.showing == position)]
        last = float(ends.max()) if ends.size else showing.media_onset
    return showing.run_onset, showing.run_onset + (last - showing.media_onset) / showing.rate


def fold_roles(fold: Fold, n_rows: int) -> IntArray:
    """Return 0 for training rows, 1 for test rows and 2 for the others, shape (n_rows,)."""
    roles = np.full(n_rows, 2)
    roles[fold.train] = 0
    roles[fold.test] = 1
    return roles


def cv_chart(folds: Sequence[Fold], run_of_row: IntArray, run_labels: Sequence[str]) -> bytes:
    """Draw which rows of which runs each outer fold trains and tests on.

    Parameters
    ----------
    folds
        The outer folds.
    run_of_row : (n_rows,) int
        Position in `run_labels` of the run that each stacked row comes from.
    run_labels
        Names of the runs in stacking order.

    Returns
    -------
    bytes
        An SVG with one line a fold and the runs side by side, each as wide as it has rows.
    """
    n_rows = len(run_of_row)
    with rc_context(dict(CHART_STYLE)):
        figure = new_figure(9.0, 2.2 + 0.3 * len(folds))
        axes = figure.subplots()
        for row, fold in enumerate(folds):
            _draw_fold(axes, row, fold_roles(fold, n_rows))
            axes.text(n_rows * 1.012, row, str(len(fold.inner)), va="center", fontsize=8)
        axes.text(n_rows * 1.012, -0.75, "inner folds", va="bottom", fontsize=8)
        _label_runs(axes, run_of_row, run_labels)
        axes.set_yticks(np.arange(len(folds)), [fold.name for fold in folds], fontsize=8)
        axes.set_ylim(len(folds) - 0.5, -0.6)
        axes.set_xlim(0, n_rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_ylabel("held out")
        _role_legend(figure)
        return svg_bytes(figure)


def _draw_fold(axes: Axes, row: int, roles: IntArray) -> None:
    """Draw the stretches of training, test and unused rows of one outer fold."""
    for role, (_name, colour, hatch) in enumerate(_ROLES):
        pieces = [(start, length) for value, start, length in constant_stretches(roles) if value == role]
        if pieces:
            axes.broken_barh(pieces, (row - 0.38, 0.76), facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0)


def _label_runs(axes: Axes, run_of_row: IntArray, run_labels: Sequence[str]) -> None:
    """Mark the borders between runs and write their names under them."""
    stretches = constant_stretches(run_of_row)
    for _run, start, _length in stretches[1:]:
        axes.axvline(start, color="white", linewidth=1.2)
    centres = [start + length / 2 for _run, start, length in stretches]
    names = [run_labels[run] for run, _start, _length in stretches]
    axes.set_xticks(centres, names, rotation=90, fontsize=8 if len(names) <= 40 else 5)


def _role_legend(figure: Figure) -> None:
    """Name the three roles above the chart."""
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0, label=name)
        for name, colour, hatch in _ROLES
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=8)
