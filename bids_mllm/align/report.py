"""What a reader should know about how one run was aligned, as plain JSON values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bids_mllm.records import BoolArray, Run, Showing

#: Rules by which the data themselves say which part of a stimulus was shown; it need not be the whole of it.
STATED = frozenset({"explicit column", "stimulus map", "frame clock"})


def alignment_report(
    run: Run, valid: BoolArray, media_durations: Mapping[str, float], *, window: float, position: str
) -> dict[str, Any]:
    """Return the facts about the alignment of one run.

    Parameters
    ----------
    valid : (n_trs,) bool
        Volumes that have a complete window.
    media_durations
        Seconds of each stimulus.
    window, position
        Length of the windows in seconds, and where they lie.

    Returns
    -------
    dict
        Seconds are rounded to milliseconds. `unexplained_seconds` is by how much rows and media disagree,
        `run_without_film_seconds` what of the series lies outside every playback, `film_without_run_seconds` what of
        the playbacks lies outside the series. The two of the frame clock are None where no row a frame was given.
    """
    rows = np.flatnonzero(valid)
    n_before = int(rows[0]) if rows.size else run.n_volumes
    n_after = int(run.n_volumes - 1 - rows[-1]) if rows.size else 0
    bold_duration = run.n_volumes * run.repetition_time
    spans = [_span(showing, media_durations) for showing in run.showings]
    residuals = [showing.residual for showing in run.showings if showing.residual is not None]
    drifts = [_drift(showing) for showing in run.showings if showing.residual is not None]
    return {
        "run": run.label,
        "rule": run.showings_rule,
        "repetition_time": run.repetition_time,
        "start_time": run.start_time,
        "n_volumes": run.n_volumes,
        "bold_duration": round(bold_duration, 3),
        "window": window,
        "window_position": position,
        "stimuli": [_facts(showing, media_durations[showing.stim_file]) for showing in run.showings],
        "n_windows": int(valid.sum()),
        "n_masked_before": n_before,
        "n_masked_after": n_after,
        "n_masked_between": int(run.n_volumes - valid.sum()) - n_before - n_after,
        "film_minus_bold_seconds": round(max((end for _, end in spans), default=0.0) - bold_duration, 3),
        "unexplained_seconds": _unexplained(run, media_durations),
        **_uncovered(spans, bold_duration),
        "frame_clock_residual_seconds": round(max(residuals), 3) if residuals else None,
        "frame_clock_drift_seconds": round(sorted(drifts, key=abs)[-1], 3) if drifts else None,
    }


def _facts(showing: Showing, media_duration: float) -> dict[str, Any]:
    return {
        "stim_file": showing.stim_file,
        "run_onset": showing.run_onset,
        "media_onset": showing.media_onset,
        "row_duration": showing.duration,
        "rate": showing.rate,
        "media_duration": round(media_duration, 3),
    }


def _span(showing: Showing, media_durations: Mapping[str, float]) -> tuple[float, float]:
    """When a playback starts and ends on the run's clock; without a duration it lasts to the end of the media."""
    duration = showing.duration
    if duration is None:
        duration = max(0.0, media_durations[showing.stim_file] - showing.media_onset) / showing.rate
    return showing.run_onset, showing.run_onset + duration


def _drift(showing: Showing) -> float:
    """Seconds that the film gains on the run over its playback."""
    return (showing.rate - 1) * (showing.duration or 0.0)


def _uncovered(spans: Sequence[tuple[float, float]], last: float) -> dict[str, float]:
    """Seconds of the series that no playback covers, and of playbacks that the series does not.

    The series is acquired from 0 to `last` on the run's clock, whatever instant of its TR a volume stands for.
    """
    covered, reached, shown = 0.0, 0.0, 0.0
    for start, end in sorted(spans):
        inside = max(0.0, min(end, last) - max(start, 0.0))
        shown += (end - start) - inside
        covered += max(0.0, min(end, last) - max(start, reached))
        reached = max(reached, end)
    return {
        "run_without_film_seconds": round(last - covered, 3),
        "film_without_run_seconds": round(shown, 3),
    }


def _unexplained(run: Run, media_durations: Mapping[str, float]) -> float:
    """Seconds by which the rows' durations and the media's differ, summed over playbacks.

    Where the data say which part was shown, only what would lie after the end of the media is unexplained.
    """
    stated = set(run.showings_rule.split(" and ")) <= STATED
    seconds = 0.0
    for showing in run.showings:
        if showing.duration is None:
            continue
        beyond = showing.media_onset + showing.duration * showing.rate - media_durations[showing.stim_file]
        seconds += max(0.0, beyond) if stated else abs(beyond)
    return round(seconds, 3)
