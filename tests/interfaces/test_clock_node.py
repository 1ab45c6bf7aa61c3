"""From designs and series to playbacks on the clock of their stimulus, and the check of a planted clock."""

import numpy as np
import pytest
from scipy.signal import fftconvolve, lfilter
from scipy.stats import gamma

from bids_mllm.interfaces import clock as clock_module
from bids_mllm.interfaces.clock import check_clock, viewings_of
from bids_mllm.records import FastFeature, ParticipantDesign, Run, Showing

TR = 1.49


def run_of(number, showings, n_volumes, *, start_time=0.0, non_steady=0):
    return Run(
        "01", None, f"t{number}", None, "T1w", None, None, None, TR, start_time, n_volumes, None, tuple(showings),
        non_steady_state=non_steady,
    )  # fmt: skip


def design_of(*runs):
    return ParticipantDesign("01", "T1w", runs, (), (), None)


def ramp(seconds, origin=0.0):
    """A feature whose value is the second at which its bin starts."""
    return (FastFeature("sound", origin, 0.1, origin + 0.1 * np.arange(round((seconds - origin) / 0.1))),)


def numbered(design, n_voxels=3):
    n = sum(run.n_volumes for run in design.runs)
    return np.repeat(np.arange(n, dtype=np.float32)[:, None], n_voxels, axis=1)


def test_volumes_are_placed_on_the_clock_of_the_film():
    """Start time, onset within the film and the rate of the clocks all count, and rows go on from run to run."""
    first = run_of(0, [Showing("a", 10.0)], 60, start_time=0.7)
    second = run_of(1, [Showing("b", -3.0, media_onset=20.0, duration=60.0, rate=1.01)], 50)
    design = design_of(first, second)
    a, b = viewings_of(design, numbered(design), {"a": ramp(1000.0), "b": ramp(1000.0)})
    volumes = a.series[:, 0].astype(float)
    np.testing.assert_allclose(a.times, 0.7 + volumes * TR - 10.0)
    assert a.times[0] >= 6.0 > a.times[0] - TR
    assert volumes[-1] == 59
    volumes = b.series[:, 0].astype(float) - 60
    np.testing.assert_allclose(b.times, 20.0 + 1.01 * (volumes * TR + 3.0))
    assert volumes[-1] * TR < 57.0 <= (volumes[-1] + 1) * TR


def test_what_was_not_shown_is_not_known():
    design = design_of(run_of(0, [Showing("a", 0.0, media_onset=20.0, duration=60.0)], 60))
    (viewing,) = viewings_of(design, numbered(design), {"a": ramp(100.0)})
    known = viewing.features[0].values[np.isfinite(viewing.features[0].values)]
    assert known[[0, -1]] == pytest.approx([20.0, 79.9])


def test_unsteady_volumes_short_playbacks_and_other_stimuli_are_left_out():
    showings = [Showing("a", 0.0, duration=80.0), Showing("a", 85.0, duration=12.0), Showing("table", 100.0)]
    design = design_of(run_of(0, showings, 100, non_steady=8))
    (viewing,) = viewings_of(design, numbered(design), {"a": ramp(200.0)})
    assert viewing.series[0, 0] == 8
    assert viewing.times[-1] < 80.0


def test_a_film_that_ends_before_the_run_ends_there():
    design = design_of(run_of(0, [Showing("a", 5.0)], 100))
    (viewing,) = viewings_of(design, numbered(design), {"a": ramp(60.0)})
    assert 60.0 - TR < viewing.times[-1] < 60.0


def test_voxels_are_bounded_and_evenly_spaced(monkeypatch):
    monkeypatch.setattr(clock_module, "MOST_VOXELS", 40)
    design = design_of(run_of(0, [Showing("a", 0.0)], 50))
    series = numbered(design, 100) * 0 + np.arange(100, dtype=np.float32)
    (viewing,) = viewings_of(design, series, {"a": ramp(200.0)})
    assert viewing.series[0].tolist() == list(range(0, 100, 3))
    monkeypatch.setattr(clock_module, "MOST_VALUES", 50 * 10)
    (viewing,) = viewings_of(design, series, {"a": ramp(200.0)})
    assert viewing.series[0].tolist() == list(range(0, 100, 10))


def planted(*, shift):
    """Three runs of a film shown from second 4 on; BOLD comes `shift` seconds later than StartTime and events say."""
    rng = np.random.default_rng(5)
    seconds, n_volumes = 620.0, 400
    runs, series, features = [], [], {}
    for number in range(3):
        level = lfilter([1], [1, -np.exp(-0.1)], rng.normal(size=round(seconds / 0.1) + 200))[200:]
        hrf = gamma.pdf(np.arange(0, 32, 0.1), 6) - gamma.pdf(np.arange(0, 32, 0.1), 16) / 6
        times = 0.7 + np.arange(n_volumes) * TR - 4.0
        signal = np.interp(times - shift, 0.05 + 0.1 * np.arange(len(level)), fftconvolve(level, hrf)[: len(level)])
        noise = rng.normal(size=(n_volumes, 300)) * signal.std()
        noise[:, :30] += signal[:, None]
        series.append(noise)
        runs.append(run_of(number, [Showing(f"f{number}", 4.0)], n_volumes, start_time=0.7))
        features[f"f{number}"] = (FastFeature("sound", 0.0, 0.1, level),)
    return design_of(*runs), np.concatenate(series).astype(np.float32), features


def test_a_shift_of_a_third_of_a_volume_shows_in_the_check():
    right, late = (check_clock(*planted(shift=shift)) for shift in (0.0, TR / 3))
    assert 3.0 < right.peaks[0] < 8.0
    assert late.peaks[0] - right.peaks[0] == pytest.approx(TR / 3, abs=0.2)
    assert right.features == ("sound",)
    assert right.r.shape == (1, len(right.lags))
    assert right.facts["Viewings"] == 3
    assert right.facts["Voxels"] == 300


def test_a_wrong_start_time_moves_the_peak_by_as_much():
    design, series, features = planted(shift=0.0)
    moved = design_of(
        *(run_of(n, run.showings, run.n_volumes, start_time=0.7 - TR) for n, run in enumerate(design.runs))
    )
    difference = check_clock(moved, series, features).peaks[0] - check_clock(design, series, features).peaks[0]
    assert difference == pytest.approx(-TR, abs=0.1)


def test_a_design_without_a_playback_of_some_length_has_no_curve():
    design = design_of(run_of(0, [Showing("a", 0.0, duration=12.0)], 50))
    check = check_clock(design, numbered(design), {"a": ramp(200.0)})
    assert check.features == ()
    assert check.r.shape == (0, len(check.lags))
