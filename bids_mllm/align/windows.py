"""One window of the stimulus for each volume: the only place where seconds become indices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bids_mllm.records import BoolArray, FloatArray, Run, Showing, TRWindows, WindowGrid, WindowPosition

#: Edges closer than this count as equal (seconds); floats of an hour are exact to 1e-12.
EDGE_TOLERANCE = 1e-6


def volume_times(n_volumes: int, *, repetition_time: float, start_time: float) -> FloatArray:
    """Return the time of each volume on the run's clock in seconds, shape (n_volumes,)."""
    return start_time + np.arange(n_volumes) * repetition_time


def window_starts(times: FloatArray, *, repetition_time: float, window: float, position: str) -> FloatArray:
    """Return where the window of each volume starts on the run's clock, in seconds.

    `end`: the window ends with the TR, at ``time + repetition_time``; `center`: their middles coincide
    (a window longer than the TR then holds frames shown after it); `start`: the window starts with it.
    """
    offsets = {
        "end": repetition_time - window,
        "center": (repetition_time - window) / 2,
        "start": 0.0,
    }
    return times + offsets[position]


def align_run(
    run: Run,
    media_durations: Mapping[str, float],
    *,
    window: float | None = None,
    position: WindowPosition = "end",
) -> TRWindows:
    """Pair each volume of `run` with a window of what was shown.

    A volume is masked (index -1) when its window is not wholly inside one playback: before the film,
    after it, or cut by either end.

    Parameters
    ----------
    run
        With its showings.
    media_durations
        Seconds of each stimulus that every model asked for can read.
    window
        Seconds; the TR when None.
    position
        See `window_starts`.
    """
    length = run.repetition_time if window is None else window
    times = volume_times(run.n_volumes, repetition_time=run.repetition_time, start_time=run.start_time)
    starts = window_starts(times, repetition_time=run.repetition_time, window=length, position=position)
    showing_of = np.full(run.n_volumes, -1)
    index_of = np.full(run.n_volumes, -1)
    media_start = np.full(run.n_volumes, np.nan)
    grids = []
    for number, showing in enumerate(run.showings):
        on_media = starts - showing.run_onset + showing.media_onset
        grid = _grid(on_media, step=run.repetition_time, length=length, duration=media_durations[showing.stim_file])
        grids.append(grid)
        inside = _inside(on_media, length, showing, media_durations[showing.stim_file]) & (showing_of < 0)
        showing_of[inside] = number
        index_of[inside] = np.rint((on_media[inside] - grid.origin) / grid.step).astype(int)
        media_start[inside] = on_media[inside]
    return TRWindows(
        run_label=run.label,
        showing=showing_of,
        index=index_of,
        start=media_start,
        end=media_start + length,
        stim_files=tuple(showing.stim_file for showing in run.showings),
        grids=tuple(grids),
        report=_report(run, showing_of >= 0, media_durations, window=length, position=position),
    )


def _inside(on_media: FloatArray, length: float, showing: Showing, duration: float) -> BoolArray:
    last = duration
    if showing.duration is not None:
        last = min(last, showing.media_onset + showing.duration)
    first = max(0.0, showing.media_onset)
    return (on_media >= first - EDGE_TOLERANCE) & (on_media + length <= last + EDGE_TOLERANCE)


def _grid(on_media: FloatArray, *, step: float, length: float, duration: float) -> WindowGrid:
    """Windows over the whole stimulus in the phase of this playback, so that runs that showed the film at
    the same phase share one grid whatever part of it they recorded.
    """
    phase = float(on_media[0]) if on_media.size else 0.0
    origin = max(0.0, round(float(phase - np.floor((phase + EDGE_TOLERANCE) / step) * step), 6))
    return WindowGrid(origin, step, length, _n_windows(origin, step=step, length=length, duration=duration))


def _n_windows(origin: float, *, step: float, length: float, duration: float) -> int:
    """Windows that end within `duration`; the tolerance is above what `_inside` and the rounding of `origin` let
    pass together, so that every volume inside has its row.
    """
    return max(0, int(np.floor((duration - length - origin + 3 * EDGE_TOLERANCE) / step)) + 1)


def grid_for_duration(grid: WindowGrid, duration: float) -> WindowGrid:
    """Return `grid` extended or cut to what a stream of `duration` seconds holds; rows keep their index."""
    n_windows = _n_windows(grid.origin, step=grid.step, length=grid.length, duration=duration)
    return WindowGrid(grid.origin, grid.step, grid.length, n_windows)


def _report(
    run: Run, valid: BoolArray, media_durations: Mapping[str, float], *, window: float, position: str
) -> dict[str, Any]:
    """Facts about the alignment of one run, as plain JSON values."""
    rows = np.flatnonzero(valid)
    n_before = int(rows[0]) if rows.size else run.n_volumes
    n_after = int(run.n_volumes - 1 - rows[-1]) if rows.size else 0
    bold_duration = run.n_volumes * run.repetition_time
    shown = _shown_seconds(run.showings, media_durations)
    return {
        "run": run.label,
        "rule": run.showings_rule,
        "repetition_time": run.repetition_time,
        "start_time": run.start_time,
        "n_volumes": run.n_volumes,
        "bold_duration": round(bold_duration, 3),
        "window": window,
        "window_position": position,
        "stimuli": [
            {
                "stim_file": showing.stim_file,
                "run_onset": showing.run_onset,
                "media_onset": showing.media_onset,
                "row_duration": showing.duration,
                "media_duration": round(media_durations[showing.stim_file], 3),
            }
            for showing in run.showings
        ],
        "n_windows": int(valid.sum()),
        "n_masked_before": n_before,
        "n_masked_after": n_after,
        "n_masked_between": int(run.n_volumes - valid.sum()) - n_before - n_after,
        "film_minus_bold_seconds": round(shown - bold_duration, 3),
        "unexplained_seconds": _unexplained(run.showings, media_durations),
    }


def _shown_seconds(showings: Sequence[Showing], media_durations: Mapping[str, float]) -> float:
    ends = [
        s.run_onset + (media_durations[s.stim_file] - s.media_onset if s.duration is None else s.duration)
        for s in showings
    ]
    return max(ends, default=0.0)


def _unexplained(showings: Sequence[Showing], media_durations: Mapping[str, float]) -> float:
    """Seconds by which the rows' durations and the media's differ, summed over playbacks."""
    differences = [
        abs(media_durations[s.stim_file] - s.media_onset - s.duration) for s in showings if s.duration is not None
    ]
    return round(float(sum(differences)), 3)
