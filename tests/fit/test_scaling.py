"""Scaling against scikit-learn and drifts against nilearn."""

import numpy as np
import pytest
from nilearn.signal import clean
from sklearn.preprocessing import StandardScaler

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.scaling import high_pass_rows, zscore_segments

RNG = np.random.default_rng(0)
TR = 1.49
HIGH_PASS = 1 / 128


def test_each_segment_is_scaled_by_its_own_rows():
    X = RNG.normal(5, 3, (30, 4))
    segments = np.repeat([0, 1], [10, 20])
    expected = np.concatenate([StandardScaler().fit_transform(part) for part in (X[:10], X[10:])])
    np.testing.assert_allclose(zscore_segments(X, segments), expected)


def test_another_run_has_no_influence():
    X = RNG.normal(size=(20, 3))
    changed = X.copy()
    changed[10:] = 100 * changed[10:] + 7
    segments = np.repeat([0, 1], 10)
    np.testing.assert_array_equal(zscore_segments(X, segments)[:10], zscore_segments(changed, segments)[:10])
    np.testing.assert_allclose(zscore_segments(X, segments), zscore_segments(changed, segments))


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6 / 3])
def test_a_column_constant_within_a_segment_is_zero_there(value):
    X = RNG.normal(size=(13, 2))
    X[:7, 0] = value
    scaled = zscore_segments(X, np.repeat([0, 1], [7, 6]))
    np.testing.assert_array_equal(scaled[:7, 0], 0)
    assert scaled[7:, 0].std() == pytest.approx(1)


def test_a_small_float32_variation_on_a_large_mean_is_kept():
    X = (1000 + 0.01 * RNG.normal(size=(200, 1))).astype(np.float32)
    assert zscore_segments(X, np.zeros(200, dtype=int)).std() == pytest.approx(1)


def test_missing_rows_are_ignored_and_kept():
    X = RNG.normal(size=(8, 2))
    X[3] = np.nan
    scaled = zscore_segments(X, np.zeros(8, dtype=int))
    rest = np.delete(np.arange(8), 3)
    assert np.isnan(scaled[3]).all()
    np.testing.assert_allclose(scaled[rest], StandardScaler().fit_transform(X[rest]))


def test_a_segment_of_missing_rows_stays_missing():
    X = np.full((4, 1), np.nan)
    X[2:] = [[1.0], [3.0]]
    np.testing.assert_array_equal(zscore_segments(X, np.array([0, 0, 1, 1]))[:, 0], [np.nan, np.nan, -1, 1])


def test_drifts_are_removed_as_nilearn_removes_them_from_the_brain():
    n_trs = 200
    X = RNG.normal(size=(n_trs, 5)) + np.linspace(0, 10, n_trs)[:, None] + 50
    valid = np.ones(n_trs, dtype=bool)
    valid[:6] = valid[90:100] = False
    X[~valid] = np.nan
    filled = np.where(np.isnan(X), 0.0, X)
    expected = clean(
        filled,
        detrend=False,
        standardize=None,
        filter="cosine",
        high_pass=HIGH_PASS,
        t_r=TR,
        sample_mask=np.flatnonzero(valid),
    )
    filtered = high_pass_rows(X, valid, repetition_time=TR, high_pass=HIGH_PASS)
    assert np.isnan(filtered[~valid]).all()
    np.testing.assert_allclose(filtered[valid], expected - expected.mean(axis=0), atol=1e-9)


def test_a_drift_below_the_cut_off_goes_and_a_fast_wave_stays():
    n_trs = 300
    time = np.arange(n_trs)
    drift = np.cos(np.pi * (time + 0.5) / n_trs * 2)
    wave = np.cos(np.pi * (time + 0.5) / n_trs * 60)
    filtered = high_pass_rows(
        np.column_stack([drift, wave]), np.ones(n_trs, dtype=bool), repetition_time=TR, high_pass=HIGH_PASS
    )
    np.testing.assert_allclose(filtered, np.column_stack([0 * drift, wave]), atol=1e-9)


@pytest.mark.parametrize("value", [0.1, 12345.678])
def test_a_constant_column_stays_without_signal_after_scaling(value):
    X = np.full((100, 1), value)
    valid = np.arange(100) > 3
    filtered = high_pass_rows(X, valid, repetition_time=TR, high_pass=HIGH_PASS)
    np.testing.assert_array_equal(zscore_segments(filtered, np.zeros(100, dtype=int))[valid], 0)


def test_zero_hertz_removes_the_mean_alone():
    X = RNG.normal(3, 1, (50, 2))
    filtered = high_pass_rows(X, np.ones(50, dtype=bool), repetition_time=TR, high_pass=0)
    np.testing.assert_allclose(filtered, X - X.mean(axis=0), atol=1e-12)


def test_too_few_valid_rows_are_refused():
    valid = np.zeros(400, dtype=bool)
    valid[:5] = True
    with pytest.raises(DesignError, match="keeps 5 volumes"):
        high_pass_rows(np.ones((400, 1)), valid, repetition_time=TR, high_pass=HIGH_PASS)
