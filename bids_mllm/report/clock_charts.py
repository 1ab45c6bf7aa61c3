"""What a page says of the check of the clocks: a chart of the lag curves, their peaks, and warnings."""

import numpy as np
from matplotlib import rc_context

from bids_mllm.outcomes import EXPECTED_PEAK, ClockCheck
from bids_mllm.report.content import Block, Paragraph, Picture, Table
from bids_mllm.report.style import CHART_STYLE, FAINT, INK, UNUSED, distinct_colours, new_figure, svg_bytes

EXPLANATION = (
    "Where the clocks of runs and stimuli agree, BOLD follows the sound and the cuts of a film by the lag of a "
    "haemodynamic response. The curve is the mean correlation of the {units} that follow a feature best, chosen on one "
    "half of the volumes and drawn with the other, both ways."
)
NOT_CLEAR = "No fast feature of the stimuli finds {units} that follow it: the clock cannot be checked."
_LINES = ("-", "--", ":", "-.")


def clock_blocks(check: ClockCheck, *, units: str = "voxels") -> tuple[Block, ...]:
    """Return what the page shows of a check: a sentence where no playback was long enough.

    Parameters
    ----------
    check
    units
        What the places of the series are called, in the plural.
    """
    if not check.features:
        return (Paragraph("No playback of a film or sound is long enough: the clock cannot be checked."),)
    first = () if np.isfinite(check.peaks).any() else (Paragraph(NOT_CLEAR.format(units=units)),)
    caption = f"How strongly the best {units} follow at each lag."
    picture = Picture(clock_chart(check, units=units), _alternative(check, units), caption)
    table = Table(
        "Peaks of the lag curves.",
        ("Feature", "Peak (s)", "Highest r", "Times its spread by chance"),
        tuple(
            (name, float(peak), float(r.max()), float(strength))
            for name, peak, r, strength in zip(check.features, check.peaks, check.r, check.strengths, strict=True)
        ),
    )
    return (Paragraph(EXPLANATION.format(units=units)), *first, picture, table)


def clock_warnings(check: ClockCheck) -> tuple[str, ...]:
    """Return one sentence for each curve that stands out and peaks where no haemodynamic response does."""
    low, high = EXPECTED_PEAK
    return tuple(
        f"BOLD follows the {name} of the stimuli best after {_seconds(check, peak)}, but a haemodynamic response "
        f"peaks {low:g} to {high:g} s after what it answers to, so the clocks of runs and stimuli seem to disagree: "
        "check StartTime and the onsets of the events, whether each run is paired with the film that it showed, and "
        "whether volumes were removed."
        for name, peak in zip(check.features, check.peaks, strict=True)
        if np.isfinite(peak) and not low <= peak <= high
    )


def _seconds(check: ClockCheck, peak: float) -> str:
    """Return a peak as text; at an end of the curve it may lie beyond."""
    if peak >= check.lags[-1]:
        return f"{peak:.1f} s or more"
    return f"{peak:.1f} s or less" if peak <= check.lags[0] else f"{peak:.1f} s"


def _alternative(check: ClockCheck, units: str) -> str:
    peaks = [
        f"that of {name} is highest at {_seconds(check, peak)} (r = {r.max():.3f})"
        if np.isfinite(peak)
        else f"that of {name} does not stand out (r up to {r.max():.3f})"
        for name, peak, r in zip(check.features, check.peaks, check.r, strict=True)
    ]
    low, high = EXPECTED_PEAK
    return (
        f"Curves of the correlation of the best {units} against lag from {check.lags[0]:g} to {check.lags[-1]:g} s; "
        f"{', '.join(peaks)}. "
        f"A haemodynamic response peaks between {low:g} and {high:g} s."
    )


def clock_chart(check: ClockCheck, *, units: str = "voxels") -> bytes:
    """Draw the lag curve of every feature, its peak, and where a haemodynamic response peaks.

    Parameters
    ----------
    check
    units
        What the places of the series are called, in the plural.

    Returns
    -------
    bytes
        An SVG.
    """
    with rc_context(dict(CHART_STYLE)):
        figure = new_figure(7.0, 3.2)
        axes = figure.subplots()
        axes.axvspan(*EXPECTED_PEAK, color=UNUSED, linewidth=0, label="peak of a haemodynamic response")
        axes.axhline(0.0, color=FAINT, linewidth=0.8)
        colours = distinct_colours(len(check.features))
        for number, (name, r, peak) in enumerate(zip(check.features, check.r, check.peaks, strict=True)):
            axes.plot(check.lags, r, color=colours[number], linestyle=_LINES[number % len(_LINES)], label=name)
            if np.isfinite(peak):
                height = float(np.interp(peak, check.lags, r))
                axes.plot([peak], [height], "o", color=colours[number], markeredgecolor=INK)
                axes.annotate(f"{peak:.1f} s", (peak, height), xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set_xlim(float(check.lags[0]), float(check.lags[-1]))
        axes.set_xlabel("seconds from the feature to the BOLD")
        axes.set_ylabel(f"mean r of the best {units}")
        figure.legend(loc="outside upper left", ncols=3, fontsize=8)
        return svg_bytes(figure)
