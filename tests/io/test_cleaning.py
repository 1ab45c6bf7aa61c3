"""Cleaning in place, against nilearn."""

import numpy as np
import pytest
from nilearn.glm.first_level import make_first_level_design_matrix
from nilearn.signal import clean

from bids_mllm.io.cleaning import BLOCK_VOXELS, clean_in_place, cosine_drifts


def series_of(n_volumes, n_voxels=7, seed=0):
    rng = np.random.default_rng(seed)
    return (1000 + 10 * rng.standard_normal((n_volumes, n_voxels)).cumsum(axis=0)).astype(np.float32)


def by_nilearn(series, regressors):
    centred = series - series.mean(axis=0, dtype=np.float64)
    return clean(centred, detrend=False, standardize=None, confounds=regressors, filter=False)


def regressors_of(kind, n_volumes):
    rng = np.random.default_rng(1)
    plain = rng.standard_normal((n_volumes, 12)).cumsum(axis=0)
    return {
        "plain": plain,
        "far from zero": plain * 1e-6 + 400,
        "collinear": np.hstack([plain, plain[:, :3] * 5, plain[:, :2].sum(axis=1, keepdims=True)]),
        "constant": np.hstack([np.full((n_volumes, 1), 3.0), plain, np.zeros((n_volumes, 1))]),
        "one spike": np.hstack([plain, np.eye(n_volumes)[:, [10]]]),
        "as many as volumes": rng.standard_normal((n_volumes, n_volumes - 1)),
    }[kind]


KINDS = ["plain", "far from zero", "collinear", "constant", "one spike", "as many as volumes"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("non_steady_state", [0, 3])
def test_it_equals_nilearn(kind, non_steady_state):
    series = series_of(80)
    regressors = regressors_of(kind, 80)
    expected = by_nilearn(series[non_steady_state:], regressors[non_steady_state:])
    scale = series.std()
    clean_in_place(series, regressors, non_steady_state=non_steady_state)
    assert np.isnan(series[:non_steady_state]).all()
    np.testing.assert_allclose(series[non_steady_state:], expected, atol=1e-6 * scale)


@pytest.mark.parametrize("regressors", [None, np.empty((50, 0)), np.ones((50, 2))])
def test_without_regressors_the_mean_goes(regressors):
    series = series_of(50)
    expected = series - series.mean(axis=0, dtype=np.float64)
    clean_in_place(series, regressors)
    np.testing.assert_allclose(series, expected, atol=1e-4)


def test_blocks_change_nothing():
    series = series_of(40, BLOCK_VOXELS + 3)
    regressors = regressors_of("plain", 40)
    expected = by_nilearn(series, regressors)
    clean_in_place(series, regressors)
    np.testing.assert_allclose(series, expected, atol=1e-4)


def test_runs_of_no_and_of_one_volume():
    series = series_of(2)
    clean_in_place(series, np.ones((2, 3)), non_steady_state=2)
    assert np.isnan(series).all()
    series = series_of(2)
    clean_in_place(series, np.arange(2.0)[:, None], non_steady_state=1)
    np.testing.assert_array_equal(series[1], 0.0)


@pytest.mark.parametrize("high_pass", [0.0, 0.0078125, 0.01, 1 / 128, 0.05])
@pytest.mark.parametrize(("n_volumes", "repetition_time"), [(2, 1.0), (100, 1.5), (405, 1.49), (300, 2.0), (128, 0.5)])
def test_drifts_are_those_of_nilearn(n_volumes, repetition_time, high_pass):
    frames = np.arange(n_volumes) * repetition_time
    design = make_first_level_design_matrix(frames, drift_model="cosine", high_pass=high_pass)
    drifts = cosine_drifts(n_volumes, repetition_time=repetition_time, high_pass=high_pass)
    np.testing.assert_allclose(drifts, design.drop(columns="constant"), atol=1e-12)


def test_one_volume_has_no_drift():
    assert cosine_drifts(1, repetition_time=1.0, high_pass=0.01).shape == (1, 0)
