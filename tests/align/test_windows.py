"""Windows against hand-made cases, to the millisecond."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_mllm.align.windows import align_run, grid_for_duration, volume_times, window_starts
from bids_mllm.records import Run, Showing, TRWindows

TR = 1.49
MS = 1e-3


def run_of(*showings: Showing, n_volumes: int = 6, tr: float = TR, start: float = 0.0) -> Run:
    return Run("01", None, "t", None, "T1w", None, None, None, tr, start, n_volumes, None, showings, "one row")


def align(*showings: Showing, film: float = 100.0, window=None, position="end", **run) -> TRWindows:
    films = {s.stim_file: film for s in showings}
    return align_run(run_of(*showings, **run), films, window=window, position=position)


def edges(windows: TRWindows) -> list[tuple[float, float] | None]:
    return [
        (round(a, 3), round(b, 3)) if ok else None
        for a, b, ok in zip(windows.start, windows.end, windows.valid, strict=True)
    ]


def check(windows: TRWindows) -> None:
    """Every valid volume points to the row of its grid that has its edges; all others are masked alike."""
    for number, grid in enumerate(windows.grids):
        mine = windows.showing == number
        assert (windows.index[mine] < grid.n_windows).all()
        np.testing.assert_allclose(windows.start[mine], grid.starts[windows.index[mine]], rtol=0, atol=1.001e-6)
        np.testing.assert_allclose(windows.end[mine], grid.ends[windows.index[mine]], rtol=0, atol=1.001e-6)
    assert (np.isnan(windows.start) == ~windows.valid).all()
    assert ((windows.showing < 0) == ~windows.valid).all()


def test_times_of_volumes():
    np.testing.assert_array_equal(volume_times(3, repetition_time=1.49, start_time=0.745), [0.745, 2.235, 3.725])


def test_positions_of_a_window_longer_than_the_tr():
    times = np.array([0.0, 2.0])
    at = {p: window_starts(times, repetition_time=2.0, window=5.0, position=p) for p in ("end", "center", "start")}
    np.testing.assert_array_equal(at["end"], [-3.0, -1.0])
    np.testing.assert_array_equal(at["center"], [-1.5, 0.5])
    np.testing.assert_array_equal(at["start"], [0.0, 2.0])


def test_start_time_zero():
    windows = align(Showing("a", 0.0), n_volumes=3)
    assert edges(windows) == [(0.0, 1.49), (1.49, 2.98), (2.98, 4.47)]
    assert windows.index.tolist() == [0, 1, 2]
    check(windows)


def test_start_time_in_the_middle_of_the_tr():
    windows = align(Showing("a", 0.0), n_volumes=3, start=TR / 2)
    assert edges(windows) == [(0.745, 2.235), (2.235, 3.725), (3.725, 5.215)]
    assert windows.grids[0].origin == 0.745
    check(windows)


def test_a_film_that_starts_before_the_scan():
    windows = align(Showing("a", -10.0), n_volumes=2)
    assert edges(windows) == [(10.0, 11.49), (11.49, 12.98)]
    # 10 s are six TRs of 1.49 s and 1.06 s
    assert windows.grids[0].origin == 1.06
    assert windows.index.tolist() == [6, 7]
    check(windows)


def test_a_film_that_starts_within_a_volume_masks_the_cut_one():
    windows = align(Showing("a", 2.0), n_volumes=4)
    assert edges(windows) == [None, None, (0.98, 2.47), (2.47, 3.96)]
    assert windows.report["n_masked_before"] == 2
    check(windows)


def test_a_film_shorter_than_the_bold():
    windows = align(Showing("a", 0.0), film=5.0, n_volumes=6)
    assert edges(windows) == [(0.0, 1.49), (1.49, 2.98), (2.98, 4.47), None, None, None]
    assert windows.grids[0].n_windows == 3
    assert windows.report["n_masked_after"] == 3
    assert windows.report["film_minus_bold_seconds"] == round(5.0 - 6 * TR, 3)
    check(windows)


def test_a_film_longer_than_the_bold_keeps_the_grid_of_the_whole_film():
    windows = align(Showing("a", 0.0), film=100.0, n_volumes=3)
    assert windows.valid.all()
    assert windows.grids[0].n_windows == 67  # 67 x 1.49 = 99.83
    assert windows.report["film_minus_bold_seconds"] == round(100 - 3 * TR, 3)


def test_a_film_that_ends_with_a_volume_keeps_it():
    assert align(Showing("a", 0.0), film=100 * TR, n_volumes=101).valid.sum() == 100


def test_a_film_of_whole_volumes_keeps_all_of_them_wherever_it_starts():
    for k in range(300):
        onset, film = round(k * 1.49, 2), 10.43  # seven volumes
        windows = align(Showing("a", onset), film=film, n_volumes=k + 10)
        assert np.flatnonzero(windows.valid).tolist() == list(range(k, k + 7))
        assert windows.index[windows.valid].tolist() == list(range(7))
        assert windows.grids[0].n_windows == 7
        whole = align(Showing("a", 0.0), film=round((k + 1) * 1.49, 2), n_volumes=k + 3)
        assert whole.valid.sum() == whole.grids[0].n_windows == k + 1


def test_where_playbacks_overlap_the_first_wins():
    windows = align_run(run_of(Showing("a", 0.0), Showing("b", 1.49), n_volumes=6), {"a": 4.5, "b": 7.0})
    assert windows.showing.tolist() == [0, 0, 0, 1, 1, -1]
    check(windows)


def test_rows_that_end_before_the_film_end_the_windows():
    windows = align(Showing("a", 0.0, 0.0, 3.0), n_volumes=4)
    assert edges(windows) == [(0.0, 1.49), (1.49, 2.98), None, None]
    assert windows.report["unexplained_seconds"] == 97.0


def test_media_onset_shifts_the_clock_of_the_film():
    windows = align(Showing("a", 2.98, 60.0, 3.0), n_volumes=5)
    assert edges(windows) == [None, None, (60.0, 61.49), (61.49, 62.98), None]
    check(windows)


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("end", [None, None, (1.0, 6.0), (3.0, 8.0), (5.0, 10.0), (7.0, 12.0)]),
        ("center", [None, (0.5, 5.5), (2.5, 7.5), (4.5, 9.5), (6.5, 11.5), (8.5, 13.5)]),
        ("start", [(0.0, 5.0), (2.0, 7.0), (4.0, 9.0), (6.0, 11.0), (8.0, 13.0), (10.0, 15.0)]),
    ],
)
def test_a_window_longer_than_the_tr(position, expected):
    windows = align(Showing("a", 0.0), tr=2.0, window=5.0, position=position)
    assert edges(windows) == expected
    check(windows)


def test_a_window_shorter_than_the_tr():
    windows = align(Showing("a", 0.0), tr=2.0, window=0.5, n_volumes=2)
    assert edges(windows) == [(1.5, 2.0), (3.5, 4.0)]
    check(windows)


def test_a_window_at_the_end_never_reads_what_comes_after_its_volume():
    run = run_of(Showing("a", 0.0), n_volumes=50, start=0.3)
    windows = align_run(run, {"a": 1000.0}, window=4.0)
    after = volume_times(50, repetition_time=TR, start_time=0.3) + TR
    assert (windows.end[windows.valid] <= after[windows.valid] + 1e-9).all()


def test_no_drift_after_a_thousand_volumes():
    windows = align(Showing("a", 0.0), film=2000.0, n_volumes=1200)
    assert windows.valid.all()
    assert windows.index.tolist() == list(range(1200))
    for volume in (1000, 1199):
        # 1.49 s as whole milliseconds, so that the oracle has no float
        assert abs(windows.start[volume] - volume * 1490 / 1000) < 1e-9
        assert abs(windows.grids[0].starts[volume] - volume * 1490 / 1000) < 1e-9
    check(windows)


def test_two_showings_in_one_run():
    windows = align(Showing("a", 0.0, 0.0, 3.0), Showing("a", 5.96, 0.0, 3.0), film=3.0, n_volumes=8)
    assert windows.showing.tolist() == [0, 0, -1, -1, 1, 1, -1, -1]
    assert edges(windows)[4:6] == edges(windows)[:2] == [(0.0, 1.49), (1.49, 2.98)]
    assert windows.stim_files == ("a", "a")
    assert windows.grids[0] == windows.grids[1]
    assert windows.report["n_masked_between"] == 2
    check(windows)


def test_two_films_in_one_run_have_their_own_grids():
    films = {"a": 3.0, "b": 6.0}
    windows = align_run(run_of(Showing("a", 0.0), Showing("b", 4.0), n_volumes=8), films)
    assert windows.showing.tolist() == [0, 0, -1, 1, 1, 1, -1, -1]
    assert [round(float(grid.origin), 3) for grid in windows.grids] == [0.0, 0.47]
    check(windows)


def test_runs_of_one_phase_share_a_grid_whatever_they_recorded():
    whole = align(Showing("a", 0.0), n_volumes=60).grids[0]
    late = align(Showing("a", -7 * TR), n_volumes=10).grids[0]
    early = align(Showing("a", 4 * TR), n_volumes=90).grids[0]
    part = align(Showing("a", 0.0, 20 * TR), n_volumes=5).grids[0]
    assert whole == late == early == part
    assert [np.signbit(g.origin) for g in (whole, late, early, part)] == [False] * 4
    assert align(Showing("a", 0.0), start=TR / 2).grids[0] != whole


def test_nothing_complete_and_no_volumes():
    windows = align(Showing("a", 500.0), n_volumes=3)
    assert not windows.valid.any()
    assert (windows.report["n_masked_before"], windows.report["n_masked_after"]) == (3, 0)
    assert len(align(Showing("a", 0.0), n_volumes=0).index) == 0
    assert align(Showing("a", 0.0), film=1.0).grids[0].n_windows == 0


def test_a_grid_for_a_stream_of_another_length_keeps_its_rows():
    grid = align(Showing("a", 0.0), film=100.0).grids[0]
    longer = grid_for_duration(grid, 110.0)
    assert longer.n_windows == 73  # 73 x 1.49 = 108.77
    np.testing.assert_array_equal(longer.starts[: grid.n_windows], grid.starts)
    assert grid_for_duration(grid, 0.5).n_windows == 0
    assert grid_for_duration(grid, 100.0) == grid


def report_of(*showings, rule="one row", film=100.0, **run):
    made = Run("01", None, "t", None, "T1w", None, None, None, TR, run.pop("start", 0.0), run.pop("n_volumes"), None,
               showings, rule)  # fmt: skip
    return align_run(made, {s.stim_file: film for s in showings}).report


@pytest.mark.parametrize(
    ("showings", "without_film", "without_run"),
    [
        ((Showing("a", 0.0),), 149.0 - 100.0, 0.0),
        ((Showing("a", -30.0),), 149.0 - 70.0, 30.0),
        ((Showing("a", 100.0),), 100.0, 51.0),
        ((Showing("a", 10.0, 0.0, 50.0), Showing("a", 40.0, 0.0, 50.0)), 149.0 - 80.0, 0.0),
        ((Showing("a", 300.0, 0.0, 50.0),), 149.0, 50.0),
        ((Showing("a", 0.0, 0.0, None, 0.5),), 0.0, 51.0),
        ((), 149.0, 0.0),
    ],
)
def test_seconds_of_the_run_without_film_and_of_the_film_without_run(showings, without_film, without_run):
    report = report_of(*showings, n_volumes=100)
    assert report["run_without_film_seconds"] == pytest.approx(without_film, abs=MS)
    assert report["film_without_run_seconds"] == pytest.approx(without_run, abs=MS)


def test_a_series_covers_its_film_whatever_instant_of_a_tr_volumes_stand_for():
    report = report_of(Showing("a", 0.0), n_volumes=10, start=0.745, film=14.9)
    assert report["run_without_film_seconds"] == 0.0
    assert report["film_without_run_seconds"] == 0.0


@pytest.mark.parametrize(
    ("rule", "duration", "seconds"),
    [
        ("one row", 90.0, 10.0),
        ("one continuous playback", 103.0, 3.0),
        ("one row and stimulus map", 90.0, 10.0),
        ("stimulus map", 90.0, 0.0),
        ("explicit column", 103.0, 3.0),
        ("frame clock", 90.0, 0.0),
    ],
)
def test_what_is_unexplained_depends_on_whether_the_part_shown_is_stated(rule, duration, seconds):
    assert report_of(Showing("a", 0.0, 0.0, duration), rule=rule, n_volumes=50)["unexplained_seconds"] == seconds


def test_a_run_without_a_frame_clock_has_no_residual():
    report = report_of(Showing("a", 0.0), n_volumes=10)
    assert report["frame_clock_residual_seconds"] is None
    assert report["frame_clock_drift_seconds"] is None


seconds = st.integers(-50_000_000, 50_000_000).map(lambda us: us / 1e6)


@settings(max_examples=300, deadline=None)
@given(
    tr=st.integers(200_000, 4_000_000).map(lambda us: us / 1e6),
    start=st.integers(0, 2_000_000).map(lambda us: us / 1e6),
    onset=seconds,
    media_onset=st.integers(0, 20_000_000).map(lambda us: us / 1e6),
    duration=st.none() | st.integers(0, 90_000_000).map(lambda us: us / 1e6),
    film=st.integers(0, 120_000_000).map(lambda us: us / 1e6),
    window=st.none() | st.integers(100_000, 9_000_000).map(lambda us: us / 1e6),
    position=st.sampled_from(["end", "center", "start"]),
    n_volumes=st.integers(0, 80),
    rate=st.just(1.0) | st.integers(950_000, 1_050_000).map(lambda ppm: ppm / 1e6),
)
def test_every_valid_window_equals_its_row_and_lies_inside(
    tr, start, onset, media_onset, duration, film, window, position, n_volumes, rate
):
    showing = Showing("a", onset, media_onset, duration, rate)
    windows = align(showing, film=film, window=window, position=position, tr=tr, start=start, n_volumes=n_volumes)
    check(windows)
    length = tr if window is None else window
    asked, length = length, windows.grids[0].length
    assert length == pytest.approx(asked * rate, abs=5e-4)
    last = film if duration is None else min(film, media_onset + duration * rate)
    first, end = windows.start[windows.valid], windows.end[windows.valid]
    assert (first >= media_onset - 1.001e-6).all()
    assert (end <= last + 1.001e-6).all()
    np.testing.assert_allclose(end - first, length, atol=1e-9)
    # the volumes left out do not fit
    anchor = {"end": tr, "center": tr / 2, "start": 0.0}[position]
    before = {"end": length, "center": length / 2, "start": 0.0}[position]
    at = (start + np.arange(n_volumes) * tr + anchor - onset) * rate - before + media_onset
    fits = (at >= media_onset + 1e-5) & (at + length <= last - 1e-5)
    assert not (fits & ~windows.valid).any()
