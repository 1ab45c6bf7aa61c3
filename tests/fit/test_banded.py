"""Banded ridge against himalaya's random search, against a ridge on stacked columns, and planted parts."""

import numpy as np
import pytest
import torch

from bids_mllm.fit.banded import band_kernels, band_weights, fit_banded
from bids_mllm.fit.design import Design, feature_design
from bids_mllm.fit.ridge import fit_ridge
from bids_mllm.records import Fold

ALPHAS = np.logspace(-1, 4, 6)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fold_of(n_rows, n_runs=5):
    run = np.repeat(np.arange(n_runs), n_rows // n_runs)
    train, test = np.flatnonzero(run < n_runs - 1), np.flatnonzero(run == n_runs - 1)
    own = run[train]
    inner = tuple((np.flatnonzero(own != r), np.flatnonzero(own == r)) for r in range(n_runs - 1))
    return Fold("last", train, test, inner)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    bands = [rng.normal(size=(150, width)) for width in (5, 40, 12)]
    signals = [X @ rng.normal(size=(X.shape[1], 9)) / np.sqrt(X.shape[1]) for X in bands]
    mixture = rng.dirichlet(np.ones(3) * 0.5, size=9).T
    Y = sum(np.sqrt(share) * signal for share, signal in zip(mixture, signals, strict=True))
    return [feature_design(X) for X in bands], Y + rng.normal(size=Y.shape), fold_of(150)


def test_weights_cover_the_simplex():
    two = band_weights(2, 5)
    np.testing.assert_allclose(two, [[0, 1], [0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [1, 0]])
    many = band_weights(4, 30)
    assert many.shape == (30, 4)
    np.testing.assert_allclose(many.sum(axis=1), 1)
    np.testing.assert_array_equal(many[:4], np.eye(4))
    np.testing.assert_array_equal(many, band_weights(4, 30))
    with pytest.raises(ValueError, match="3 points are asked for 3 bands"):
        band_weights(3, 3)


def test_the_search_is_that_of_himalaya(problem):
    designs, Y, fold = problem
    weights = band_weights(3, 12)
    own = fit_banded(designs, Y, fold, alphas=ALPHAS, weights=weights)
    oracle = fit_banded(designs, Y, fold, alphas=ALPHAS, weights=weights, solver="himalaya")
    assert len(np.unique(own.band_weights, axis=1).T) > 2
    np.testing.assert_allclose(own.cv_r2, oracle.cv_r2, atol=1e-5)
    np.testing.assert_allclose(own.band_weights, oracle.band_weights, atol=1e-12)
    np.testing.assert_array_equal(own.best_alphas, oracle.best_alphas)
    np.testing.assert_allclose(own.band_predictions, oracle.band_predictions, atol=1e-5)


def test_himalayas_own_dual_weights_give_the_same_prediction(problem):
    """The whole search by one call of himalaya, with its kernel weights and dual weights."""
    from himalaya.backend import get_backend, set_backend
    from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search
    from himalaya.scoring import r2_score

    designs, Y, fold = problem
    weights = band_weights(3, 12)
    kernels = [kernel.numpy() for kernel in band_kernels(designs, fold)]
    former = get_backend().name
    try:
        set_backend("numpy")
        Ks = np.stack([kernel[np.ix_(fold.train, fold.train)] for kernel in kernels])
        with np.errstate(divide="ignore"):  # the logarithm of a weight of zero
            deltas, dual, _ = solve_multiple_kernel_ridge_random_search(
                Ks, Y[fold.train], n_iter=weights, alphas=ALPHAS, score_func=r2_score, cv=list(fold.inner),
                return_weights="dual", progress_bar=False,
            )  # fmt: skip
    finally:
        set_backend(former)
    expected = sum(
        kernel[np.ix_(fold.test, fold.train)] @ (dual * np.exp(delta))
        for kernel, delta in zip(kernels, deltas, strict=True)
    )
    own = fit_banded(designs, Y, fold, alphas=ALPHAS, weights=weights)
    np.testing.assert_allclose(own.predictions, expected, atol=1e-4)


def test_even_weights_are_a_ridge_on_the_scaled_columns(problem):
    designs, Y, fold = problem
    kernels = band_kernels(designs, fold)
    sizes = [float(kernel.diagonal()[fold.train].mean()) for kernel in kernels]
    assert sizes[0] == pytest.approx(sizes[1]) == pytest.approx(sizes[2])
    joint = fit_ridge(Design("kernel", sum(kernels) / 3), Y, fold, alphas=ALPHAS)
    own = fit_banded(designs, Y, fold, alphas=ALPHAS, weights=np.full((1, 3), 1 / 3))
    np.testing.assert_allclose(own.predictions, joint.predictions, atol=1e-5)
    np.testing.assert_array_equal(own.best_alphas, joint.best_alphas)


def test_a_band_of_noise_gets_no_weight_and_predicts_nothing():
    rng = np.random.default_rng(1)
    good, noise = rng.normal(size=(500, 10)), rng.normal(size=(500, 200))
    Y = good @ rng.normal(size=(10, 20)) + rng.normal(size=(500, 20))
    own = fit_banded([feature_design(good), feature_design(noise)], Y, fold_of(500), alphas=np.logspace(-1, 5, 7))
    assert own.band_weights[0].min() > 0.7
    plain = fit_ridge(np.hstack([good, noise]), Y, fold_of(500), alphas=np.logspace(-1, 5, 7))
    truth = Y[fold_of(500).test]
    assert np.mean((truth - own.predictions) ** 2) < np.mean((truth - plain.predictions) ** 2)


def test_targets_set_aside_and_bands_without_variance(problem):
    designs, Y, fold = problem
    broken = Y.copy()
    broken[3, 2] = np.nan
    flat = feature_design(np.zeros((150, 4)))
    own = fit_banded([*designs[:2], flat], broken, fold, alphas=ALPHAS, weights=band_weights(3, 8))
    assert np.isnan(own.predictions[:, 2]).all()
    assert np.isnan(own.band_weights[:, 2]).all()
    good = np.arange(9) != 2
    np.testing.assert_array_equal(own.band_predictions[2][:, good], 0)
    assert np.isfinite(own.cv_r2[good]).all()


def test_bands_that_do_not_fit_together_are_named(problem):
    designs, Y, fold = problem
    with pytest.raises(ValueError, match="Band 0 has 150 samples and band 1 has 149"):
        fit_banded([designs[0], feature_design(np.ones((149, 2)))], Y, fold, alphas=ALPHAS)
    with pytest.raises(ValueError, match="must be \\(n_points, 3\\)"):
        fit_banded(designs, Y, fold, alphas=ALPHAS, weights=np.ones((4, 2)))
