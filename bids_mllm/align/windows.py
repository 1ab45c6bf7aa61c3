"""One window of the stimulus for each volume: the only place where seconds become indices."""

from collections.abc import Mapping

import numpy as np

from bids_mllm.align.report import alignment_report
from bids_mllm.records import BoolArray, FloatArray, Run, Showing, TRWindows, WindowGrid, WindowPosition

#: Edges closer than this count as equal (seconds); floats of an hour are exact to 1e-12.
EDGE_TOLERANCE = 1e-6
#: Seconds by which a window may be longer or shorter on the clock of the stimulus than on the run's.
LENGTH_TOLERANCE = 5e-4
#: Share of the window that lies before the instant that its position names.
ANCHORS = {"end": 1.0, "center": 0.5, "start": 0.0}


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
    window = run.repetition_time if window is None else window
    showing_of = np.full(run.n_volumes, -1)
    index_of = np.full(run.n_volumes, -1)
    media_start = np.full(run.n_volumes, np.nan)
    media_end = np.full(run.n_volumes, np.nan)
    grids = []
    for number, showing in enumerate(run.showings):
        duration = media_durations[showing.stim_file]
        length = _length(window, showing.rate)
        on_media = _on_media(run, showing, window=window, length=length, position=position)
        grid = _grid(on_media, step=run.repetition_time * showing.rate, length=length, duration=duration)
        grids.append(grid)
        inside = _inside(on_media, length, showing, duration) & (showing_of < 0)
        showing_of[inside] = number
        index_of[inside] = np.rint((on_media[inside] - grid.origin) / grid.step).astype(int)
        media_start[inside] = on_media[inside]
        media_end[inside] = on_media[inside] + length
    return TRWindows(
        run_label=run.label,
        showing=showing_of,
        index=index_of,
        start=media_start,
        end=media_end,
        stim_files=tuple(showing.stim_file for showing in run.showings),
        grids=tuple(grids),
        report=alignment_report(run, showing_of >= 0, media_durations, window=window, position=position),
    )


def _length(window: float, rate: float) -> float:
    """Seconds of the stimulus in a window; exactly `window` where the drift within it does not count, so that runs of
    slightly different clocks share the reading of the film.
    """
    return window if abs(rate - 1) * window < LENGTH_TOLERANCE else window * rate


def _on_media(run: Run, showing: Showing, *, window: float, length: float, position: str) -> FloatArray:
    """Seconds on the stimulus clock at which the window of each volume starts.

    The instant that `position` names, the end, the middle or the start of the window, is carried from the run's
    clock to that of the stimulus.
    """
    times = volume_times(run.n_volumes, repetition_time=run.repetition_time, start_time=run.start_time)
    starts = window_starts(times, repetition_time=run.repetition_time, window=window, position=position)
    if showing.rate == 1.0:
        return starts - showing.run_onset + showing.media_onset
    share = ANCHORS[position]
    anchors = starts + share * window
    return showing.media_onset + (anchors - showing.run_onset) * showing.rate - share * length


def _inside(on_media: FloatArray, length: float, showing: Showing, duration: float) -> BoolArray:
    last = duration
    if showing.duration is not None:
        last = min(last, showing.media_onset + showing.duration * showing.rate)
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
