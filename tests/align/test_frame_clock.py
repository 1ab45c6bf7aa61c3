"""The film's clock from single frames against planted clocks, and the windows it gives to the millisecond."""

from dataclasses import dataclass

import numpy as np
import pytest

from bids_mllm.align.frame_clock import showings_from_frames
from bids_mllm.align.windows import align_run
from bids_mllm.exceptions import InputDataError
from bids_mllm.records import Run, Showing

MS = 1e-3
TR = 2.0


@dataclass(frozen=True)
class Frames:
    onset: np.ndarray
    frame_index: np.ndarray
    video_time: np.ndarray


def frames_of(*, rate=1.0, first=0.0, seconds=900.0, fps=25.0, unit=1.0, jitter=0.0, keep=None, digits=3):
    """Frame k of the film is at k / fps in it, and came on at ``first + k / fps / rate``, rounded as in a file."""
    index = np.arange(round(seconds * fps))
    if keep is not None:
        index = index[keep(index)]
    onset = first + index / fps / rate + np.random.default_rng(0).uniform(-jitter, jitter, len(index))
    return Frames(np.round(onset, digits), index.astype(float), np.round(index / fps / unit, 3))


def fit(frames):
    return showings_from_frames(frames, "film.mkv", source="x_events.tsv")


def windows_of(showings, *, n_volumes=450, film=900.0, start=0.0, window=None, position="end"):
    run = Run("01", None, "m", 1, "T1w", None, None, None, TR, start, n_volumes, None, tuple(showings), "frame clock")
    return align_run(run, {"film.mkv": film}, window=window, position=position)


def test_a_clock_without_drift_is_exactly_one():
    (showing,) = fit(frames_of(first=0.021))
    assert showing.rate == 1.0
    assert showing.stim_file == "film.mkv"
    assert showing.run_onset == 0.021
    assert showing.media_onset == pytest.approx(0.0, abs=0.5 * MS)
    assert showing.duration == pytest.approx(900.0, abs=MS)
    assert showing.residual == pytest.approx(0.0, abs=MS)


@pytest.mark.parametrize("drift", [0.9, -0.9])
def test_less_than_a_millisecond_of_drift_is_none(drift):
    (showing,) = fit(frames_of(rate=1 + drift * MS / 900, digits=6))
    assert showing.rate == 1.0
    (drifting,) = fit(frames_of(rate=1 + 3 * drift * MS / 900, digits=6))
    assert drifting.rate == pytest.approx(1 + 3 * drift * MS / 900, abs=1e-4 / 900)


@pytest.mark.parametrize("rate", [1.001, 0.999, 1.00004, 0.96])
@pytest.mark.parametrize("first", [0.021, -3.5, 4.0])
def test_windows_are_right_to_a_millisecond_from_the_first_to_the_last(rate, first):
    (showing,) = fit(frames_of(rate=rate, first=first))
    assert showing.rate == pytest.approx(rate, abs=2e-4 / 900)
    windows = windows_of([showing])
    at = np.flatnonzero(windows.valid)
    truth = (at * TR - first) * rate
    np.testing.assert_allclose(windows.start[at], truth, rtol=0, atol=MS)
    np.testing.assert_allclose(windows.end[at], truth + TR * rate, rtol=0, atol=MS)
    grid = windows.grids[0]
    np.testing.assert_allclose(grid.starts[windows.index[at]], truth, rtol=0, atol=MS)
    np.testing.assert_allclose(grid.ends[windows.index[at]], truth + TR * rate, rtol=0, atol=MS)
    # All volumes whose TR lies within the playback, to a frame, and no other.
    whole = (np.arange(450) * TR >= first) & ((np.arange(450) + 1) * TR <= first + 900 / rate)
    np.testing.assert_array_equal(windows.valid, whole)


@pytest.mark.parametrize(("position", "window"), [("end", 5.0), ("center", 5.0), ("start", 5.0), ("start", 0.5)])
def test_windows_of_another_length_and_place(position, window):
    (showing,) = fit(frames_of(rate=1.001, first=1.0))
    windows = windows_of([showing], window=window, position=position)
    at = np.flatnonzero(windows.valid)
    shift = {"end": TR - window, "center": (TR - window) / 2, "start": 0.0}[position]
    truth = (at * TR + shift - 1.0) * 1.001
    np.testing.assert_allclose(windows.start[at], truth, rtol=0, atol=MS)
    np.testing.assert_allclose(windows.end[at], truth + window * 1.001, rtol=0, atol=MS)


def test_a_small_drift_leaves_the_length_of_windows_as_asked_and_their_end_in_place():
    (showing,) = fit(frames_of(rate=1.0002))
    windows = windows_of([showing])
    assert windows.grids[0].length == TR
    assert windows.grids[0].step == TR * showing.rate
    at = np.flatnonzero(windows.valid)
    np.testing.assert_allclose(windows.end[at], (at + 1) * TR * 1.0002, rtol=0, atol=0.6 * MS)


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e-6])
def test_the_unit_is_told_by_its_pace(unit):
    (showing,) = fit(frames_of(rate=1.001, unit=unit))
    assert showing.rate == pytest.approx(1.001, abs=2e-4 / 900)


@pytest.mark.parametrize("unit", [0.04, 60.0, 0.1])
def test_another_unit_is_refused(unit):
    with pytest.raises(InputDataError, match=r"x_events.tsv: videotime advances by .* in a second of onset"):
        fit(frames_of(unit=unit))


def test_frames_that_last_as_no_frame_does_are_refused():
    frames = frames_of(seconds=60.0)
    coarse = Frames(frames.onset, np.floor(frames.frame_index / 25), frames.video_time)
    with pytest.raises(InputDataError, match=r"frameidx to the next videotime advances by 1 s if it is in seconds"):
        fit(coarse)


def test_a_single_frame_tells_no_pace():
    frames = frames_of(seconds=0.04)
    assert len(frames.onset) == 1
    with pytest.raises(InputDataError, match=r"videotime advances by nan"):
        fit(frames)


def test_dropped_and_jittered_frames_do_not_move_the_clock():
    frames = frames_of(rate=1.0005, first=0.3, jitter=0.016, keep=lambda k: k % 7 != 3)
    (showing,) = fit(frames)
    windows = windows_of([showing])
    at = np.flatnonzero(windows.valid)
    np.testing.assert_allclose(windows.end[at], ((at + 1) * TR - 0.3) * 1.0005, rtol=0, atol=MS)
    assert 0.01 < showing.residual < 0.018
    assert windows.report["frame_clock_residual_seconds"] == round(showing.residual, 3)
    assert windows.report["frame_clock_drift_seconds"] == pytest.approx(0.45, abs=2 * MS)


def test_a_jump_begins_a_new_piece():
    """After 300 s the film was paused for 4 s; after 600 s of it, 30 s were skipped."""
    frames = frames_of(keep=lambda k: (k < 600 * 25) | (k >= 630 * 25))
    late = frames.frame_index >= 300 * 25
    skipped = frames.frame_index >= 630 * 25
    moved = Frames(frames.onset + 4.0 * late - 30.0 * skipped, frames.frame_index, frames.video_time)
    pieces = fit(moved)
    assert [(s.run_onset, s.media_onset, s.rate) for s in pieces] == [
        (0.0, 0.0, 1.0),
        (304.0, 300.0, 1.0),
        (604.0, 630.0, 1.0),
    ]
    assert [s.duration for s in pieces[1:]] == pytest.approx([300.0, 270.0], abs=MS)
    windows = windows_of(pieces)
    volumes = np.arange(450) * TR
    expected = np.select([volumes < 300, volumes < 304, volumes < 604, volumes < 874],
                         [volumes, np.nan, volumes - 4, volumes + 26], np.nan)  # fmt: skip
    np.testing.assert_allclose(windows.start, expected, rtol=0, atol=MS)
    assert windows.report["unexplained_seconds"] == 0.0
    assert windows.report["run_without_film_seconds"] == pytest.approx(4 + 26, abs=2 * MS)


def test_less_than_half_a_second_of_stalling_is_a_residual():
    frames = frames_of()
    stalled = Frames(frames.onset + 0.4 * (frames.onset > 450), frames.frame_index, frames.video_time)
    (showing,) = fit(stalled)
    assert showing.residual > 0.1


def test_pieces_in_which_no_window_fits_are_left_out():
    frames = frames_of(seconds=100.0)
    glitch = np.where((frames.frame_index > 1000) & (frames.frame_index < 1006), 70.0, frames.video_time)
    pieces = fit(Frames(frames.onset, frames.frame_index, glitch))
    assert [s.media_onset for s in pieces] == pytest.approx([0.0, 1006 / 25], abs=MS)


def test_the_last_frame_lasts_as_long_as_others():
    assert fit(frames_of(seconds=10.0)) == (Showing("film.mkv", 0.0, 0.0, 10.0, 1.0, 0.0),)
