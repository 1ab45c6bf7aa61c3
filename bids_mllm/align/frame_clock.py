"""From the times of single frames to playbacks: the film's clock against the run's."""

from typing import Protocol

import numpy as np

from bids_mllm.exceptions import InputDataError
from bids_mllm.records import FloatArray, IntArray, Showing

#: Seconds by which the film may jump against the run within one playback.
JUMP = 0.5
#: Seconds of drift over a playback below which the two clocks count as one.
SAME_CLOCK = 1e-3
#: Seconds that rounding the rate may move either end of a playback.
ROUNDING = 1e-4
#: Share by which a film may be faster or slower than its file.
MAX_RATE = 0.05
UNITS = {"seconds": 1.0, "milliseconds": 1e-3, "microseconds": 1e-6}
#: Frames over which the pace is measured, so that single late frames do not count.
PACE_FRAMES = 250
MIN_FRAME, MAX_FRAME = 1 / 500, 1 / 5


class Frames(Protocol):
    """Frames of one film in order of onset, each array (n_frames,)."""

    @property
    def onset(self) -> FloatArray:
        """Seconds on the run's clock."""
        ...

    @property
    def frame_index(self) -> FloatArray:
        """Number of the frame."""
        ...

    @property
    def video_time(self) -> FloatArray:
        """Time in the film, in the unit of the file."""
        ...


def showings_from_frames(frames: Frames, stim_file: str, *, source: str) -> tuple[Showing, ...]:
    """Fit ``media time = media_onset + rate * (run time - run_onset)`` to each continuous piece by least squares.

    Parameters
    ----------
    frames
        At least two.
    stim_file
        The film.
    source
        File that the frames came from, for messages.

    Notes
    -----
    A new piece begins where the film jumps against the run by more than 0.5 s; pieces shorter than that are left
    out, and the last frame of a piece lasts as long as others do. The rate is exactly 1 where the clocks drift by
    less than 1 ms over the piece, and is else rounded so that the error stays below 0.1 ms.

    Raises
    ------
    InputDataError
        When the unit of the film's time cannot be told from its pace against the run and the frames.
    """
    media = frames.video_time * _unit(frames, source)
    jumps = np.flatnonzero(np.abs(np.diff(media - frames.onset)) > JUMP) + 1
    pieces = np.split(np.arange(len(media)), jumps)
    fitted = [_piece(frames, media, rows, stim_file) for rows in pieces]
    showings = tuple(showing for showing in fitted if showing.duration is not None and showing.duration >= JUMP)
    if not showings:
        raise InputDataError(
            f"{source} holds no {JUMP:g} s of frames in which videotime keeps pace with onset; correct the file or say "
            "what was shown with --stimulus-map."
        )
    return showings


def _piece(frames: Frames, media: FloatArray, rows: IntArray, stim_file: str) -> Showing:
    onset, media = frames.onset[rows], media[rows]
    since = onset - onset[0]
    rate = _rate(since, media)
    start = float(np.mean(media) - rate * np.mean(since))
    # The last frame may have stayed on the screen while the film stood still.
    last = float(np.median(np.diff(onset))) if len(rows) > 1 else 0.0
    return Showing(
        stim_file,
        run_onset=float(onset[0]),
        media_onset=round(start, 6),
        duration=round(float(since[-1]) + last, 6),
        rate=rate,
        residual=round(float(np.abs(media - start - rate * since).max()), 6),
    )


def _rate(since: FloatArray, media: FloatArray) -> float:
    """Slope of the least-squares line, rounded."""
    spread = since - np.mean(since)
    total = float(spread @ spread)
    if total == 0:
        return 1.0
    slope = float(spread @ (media - np.mean(media))) / total
    if abs(slope - 1) * float(since[-1]) < SAME_CLOCK:
        return 1.0
    # The line goes through the middle of the piece, so that rounding moves its ends by half of it.
    decimals = int(np.ceil(np.log10(0.5 * float(since[-1]) / ROUNDING)))
    return round(slope, max(decimals, 0))


def _unit(frames: Frames, source: str) -> float:
    """Seconds of one unit of the film's time."""
    pace = _pace(frames.video_time, frames.onset)
    unit = next((name for name, seconds in UNITS.items() if abs(pace * seconds - 1) <= MAX_RATE), None)
    if unit is None:
        raise InputDataError(
            f"{source}: videotime advances by {pace:g} in a second of onset, but seconds would by 1 and milliseconds "
            "by 1000; correct the file or say what was shown with --stimulus-map."
        )
    frame = _pace(frames.video_time, frames.frame_index) * UNITS[unit]
    if not MIN_FRAME <= frame <= MAX_FRAME:
        raise InputDataError(
            f"{source}: from one frameidx to the next videotime advances by {frame:g} s if it is in {unit}, which is "
            "no frame of a film; correct the file or say what was shown with --stimulus-map."
        )
    return UNITS[unit]


def _pace(values: FloatArray, against: FloatArray) -> float:
    """Median advance of `values` for each unit of `against`; NaN where that does not advance."""
    lag = min(PACE_FRAMES, len(values) - 1)
    if lag < 1:
        return float("nan")
    steps = against[lag:] - against[:-lag]
    forward = steps > 0
    return float(np.median((values[lag:] - values[:-lag])[forward] / steps[forward])) if forward.any() else float("nan")
