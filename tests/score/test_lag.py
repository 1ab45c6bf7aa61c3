"""Lag curves against planted delays: features convolved with a double gamma, sampled at the volumes, with noise."""

import numpy as np
import pytest
from scipy.signal import fftconvolve, lfilter
from scipy.stats import gamma

from bids_mllm.records import FastFeature
from bids_mllm.score.lag import (
    Viewing,
    best_voxels,
    lag_curves,
    lags_of,
    peak_of,
    sampled_at,
    standard,
    without_drift,
)
from bids_mllm.simulate.noise import ar_noise, drift

STEP = 0.1
N_VOXELS, N_DRIVEN = 400, 60


def response(feature):
    """A double gamma that peaks at 5 s."""
    times = np.arange(0.0, 32.0, STEP)
    return fftconvolve(feature, gamma.pdf(times, 6) - gamma.pdf(times, 16) / 6)[: feature.size]


def viewings_with(seed, *, tr, delay=0.0, n_runs=4, n_volumes=400, memory=0.5, driven=N_DRIVEN):
    """Voxels follow a feature that forgets over `memory` seconds `delay` seconds later than a response does.

    Noise is that of the simulated data set: ceilings of 0.45 to 0.9, autocorrelation, drifts; a third of it is common
    to all voxels.
    """
    rng = np.random.default_rng(seed)
    times = np.arange(n_volumes) * tr
    n_bins = int((times[-1] + 40) / STEP)
    centres = (np.arange(n_bins) + 0.5) * STEP
    ceiling, ar = rng.uniform(0.45, 0.9, N_VOXELS), rng.uniform(0.3, 0.5, N_VOXELS)
    size = np.sqrt(1 / ceiling**2 - 1)
    sign = np.where(np.arange(N_VOXELS) % 4, 1, -1) * (np.arange(N_VOXELS) < driven)
    viewings = []
    for _ in range(n_runs):
        feature = lfilter([1], [1, -np.exp(-STEP / memory)], rng.normal(size=n_bins + 500))[500:]
        signal = np.interp(times - delay, centres, response(feature))
        noise = np.sqrt(2 / 3) * ar_noise(n_volumes, ar, rng) + np.sqrt(1 / 3) * ar_noise(n_volumes, ar[:1], rng)
        noise += 0.7 * drift(n_volumes, N_VOXELS, rng)
        series = 100 + (signal / signal.std())[:, None] * sign + noise * size
        fast = FastFeature("sound", 0.0, STEP, feature)
        viewings.append(Viewing(times, series.astype(np.float32), (fast,)))
    return viewings


@pytest.mark.parametrize("tr", [1.49, 2.0])
@pytest.mark.parametrize("memory", [0.2, 2.0])
def test_a_shift_of_a_third_of_a_volume_is_recovered_within_a_fifth_of_a_second(tr, memory):
    lags = lags_of(tr)
    for seed in range(3):
        aligned = lag_curves(viewings_with(seed, tr=tr, memory=memory), lags)["sound"]
        shifted = lag_curves(viewings_with(seed + 50, tr=tr, memory=memory, delay=tr / 3), lags)["sound"]
        assert shifted.peak - aligned.peak == pytest.approx(tr / 3, abs=0.2)


@pytest.mark.parametrize("memory", [0.2, 2.0, 10.0])
def test_without_noise_the_peak_is_that_of_the_response(memory):
    """An autocorrelated feature widens the curve and hardly moves it."""
    views = [
        Viewing(v.times, v.series[:, :N_DRIVEN], v.features)
        for v in viewings_with(0, tr=1.5, memory=memory, n_volumes=600)
    ]
    curve = lag_curves(views, lags_of(1.5))["sound"]
    assert curve.peak == pytest.approx(5.25, abs=0.3)
    assert curve.r.max() > 0.3


def test_a_clock_that_is_six_seconds_late_shows():
    lags = lags_of(2.0)
    late = lag_curves(viewings_with(3, tr=2.0, delay=6.0), lags)["sound"]
    early = lag_curves(viewings_with(3, tr=2.0, delay=-6.0), lags)["sound"]
    assert late.peak == pytest.approx(11.3, abs=0.5)
    assert early.peak == pytest.approx(-0.75, abs=0.5)


def test_noise_says_nothing():
    lags = lags_of(2.0)
    curves = [lag_curves(viewings_with(seed, tr=2.0, n_volumes=150, driven=0), lags)["sound"] for seed in range(10)]
    assert all(np.isnan(curve.peak) and curve.strength < 4.5 for curve in curves)
    assert all(abs(curve.r).max() < 0.3 for curve in curves)


def test_slow_trends_that_feature_and_voxels_share_do_not_count():
    views = viewings_with(0, tr=2.0, driven=0, n_runs=2)
    trend = np.linspace(0, 60, 400)
    own = [
        Viewing(
            v.times,
            v.series + trend[:, None].astype(np.float32),
            (FastFeature("sound", 0.0, STEP, v.features[0].values + np.linspace(0, 60, v.features[0].values.size)),),
        )
        for v in views
    ]
    assert np.isnan(lag_curves(own, lags_of(2.0))["sound"].peak)


def test_voxels_are_drawn_with_other_volumes_than_they_were_chosen_on():
    """Of 400 voxels of pure noise the best have a correlation of 0.2 where they are chosen, and none where drawn."""
    curve = lag_curves(viewings_with(1, tr=2.0, driven=0, n_runs=1), lags_of(2.0))["sound"]
    assert abs(curve.r[np.abs(curve.r).argmax()]) < 0.15


def test_too_few_volumes_are_not_judged():
    curve = lag_curves(viewings_with(0, tr=2.0, n_runs=1, n_volumes=30), lags_of(2.0))["sound"]
    assert np.isnan(curve.peak)
    assert np.isnan(curve.strength)


def test_each_feature_uses_the_viewings_that_have_it():
    views = viewings_with(0, tr=2.0)
    other = [Viewing(v.times, v.series, ()) for v in viewings_with(9, tr=2.0)]
    both = lag_curves([*views, *other], lags_of(2.0))
    np.testing.assert_array_equal(both["sound"].r, lag_curves(views, lags_of(2.0))["sound"].r)
    assert lag_curves(other, lags_of(2.0)) == {}


def test_silence_is_no_feature():
    silent = [
        Viewing(v.times, v.series, (FastFeature("sound", 0.0, STEP, np.full(v.features[0].values.size, -3.0)),))
        for v in viewings_with(0, tr=2.0)
    ]
    curve = lag_curves(silent, lags_of(2.0))["sound"]
    assert not curve.r.any()
    assert np.isnan(curve.peak)


@pytest.mark.parametrize(("tr", "step"), [(0.5, 0.125), (1.49, 0.25), (2.0, 0.25)])
def test_lags_go_from_minus_six_to_twelve_in_steps_under_a_volume(tr, step):
    lags = lags_of(tr)
    assert (lags[0], lags[-1]) == (-6.0, 12.0)
    assert np.diff(lags) == pytest.approx(np.diff(lags)[0])
    assert np.diff(lags)[0] <= step + 1e-9


def test_a_parabola_gives_its_own_top():
    lags = lags_of(2.0)
    assert peak_of(lags, 1 - (lags - 4.37) ** 2 / 100) == pytest.approx(4.37)
    assert peak_of(lags, lags) == 12.0
    assert peak_of(lags, -lags) == -6.0


def test_bins_are_averaged_exactly_and_only_where_they_are_known():
    feature = FastFeature("sound", 1.0, 0.5, np.array([1.0, 2.0, 4.0, np.nan, 8.0]))
    times = np.array([1.5, 2.0, 1.25, 1.1, 2.5, 3.25])
    np.testing.assert_allclose(sampled_at(feature, times, 1.0), [1.5, 3.0, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(sampled_at(feature, times[2:3], 0.5), [1.0])
    np.testing.assert_allclose(sampled_at(feature, np.array([1.5]), 0.5), [1.5])


def test_best_voxels_are_a_hundredth_with_their_sign():
    r = np.zeros((3000, 4))
    r[10:40, 2] = 0.5
    r[20, 2] = -0.9
    chosen = best_voxels(r)
    assert np.flatnonzero(chosen).tolist() == list(range(10, 40))
    assert chosen[20] == -1
    assert chosen.sum() == 28
    assert np.abs(best_voxels(np.ones((5, 2)))).sum() == 5


def test_drifts_are_taken_from_what_is_known():
    n = 200
    slow = np.cos(np.pi * (np.arange(n) + 0.5) / n * 2)
    fast = np.sin(np.arange(n))
    values = np.stack([3 + 5 * slow + fast, 3 + 5 * slow], axis=1)
    values[:20, 0] = np.nan
    cleaned = without_drift(values, 2.0)
    assert np.isnan(cleaned[:20, 0]).all()
    assert np.corrcoef(cleaned[20:, 0], fast[20:])[0, 1] > 0.99
    np.testing.assert_allclose(cleaned[:, 1], 0.0, atol=1e-9)


def test_z_scores_leave_unknown_and_constant_values_at_zero():
    values = np.array([[1.0, 5.0], [3.0, 5.0], [np.nan, 5.0]])
    np.testing.assert_allclose(standard(values), [[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
