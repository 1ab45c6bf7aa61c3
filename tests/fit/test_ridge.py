"""Ridge against closed forms and scikit-learn, planted weights, and leakage."""

import numpy as np
import pytest
import torch
from himalaya.backend import get_backend
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from bids_mllm.fit.delays import delay_rows
from bids_mllm.fit.design import feature_design
from bids_mllm.fit.folds import make_folds
from bids_mllm.fit.ridge import alpha_at_edge, alpha_grid, fit_ridge
from bids_mllm.fit.scaling import zscore_segments

ALPHAS = np.logspace(-1, 5, 7)
N_RUNS, N_ROWS = 4, 40
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def runs_of(n_runs=N_RUNS, n_rows=N_ROWS):
    run_of_row = np.repeat(np.arange(n_runs), n_rows)
    position = np.tile(np.arange(n_rows) * 1.0, n_runs)
    return run_of_row, position


def folds_of(run_of_row, position, *, test_runs=None, n_folds=5, purge=0.0):
    n_runs = run_of_row.max() + 1
    names = [f"run{index}" for index in range(n_runs)]
    return make_folds(
        run_of_row,
        position,
        np.arange(n_runs),
        run_names=names,
        test_runs=test_runs,
        n_folds=n_folds,
        purge=purge,
    )


@pytest.fixture(scope="module")
def problem():
    """Runs of unequal length; targets with signal from nothing to much, so that the best alphas differ."""
    rng = np.random.default_rng(0)
    run_of_row = np.repeat(np.arange(N_RUNS), [25, 60, 35, 40])
    position = np.arange(len(run_of_row)) * 1.0
    X = zscore_segments(rng.normal(size=(len(run_of_row), 30)), run_of_row)
    signal = X @ rng.normal(size=(30, 12))
    Y = signal * np.linspace(0, 1.5, 12) + 3 * rng.normal(size=signal.shape)
    (fold,) = folds_of(run_of_row, position, test_runs=[3])
    return X, zscore_segments(Y, run_of_row), fold


def kernel_of(X, device="cpu"):
    return feature_design(X, device=device, form="kernel")


def closed_form(X, Y, alpha):
    return np.linalg.solve(X.T @ X + alpha * np.eye(X.shape[1]), X.T @ Y)


def brute_force(X, Y, fold, alphas):
    """Mean validation R2 of each alpha and target over the inner splits, from the normal equations."""
    X, Y = X[fold.train], Y[fold.train]
    scores = np.zeros((len(alphas), Y.shape[1]))
    for fit, held in fold.inner:
        for index, alpha in enumerate(alphas):
            predicted = X[held] @ closed_form(X[fit], Y[fit], alpha)
            scores[index] += r2_score(Y[held], predicted, multioutput="raw_values") / len(fold.inner)
    return scores


@pytest.mark.parametrize("device", DEVICES)
def test_alphas_scores_and_predictions_are_those_of_brute_force(problem, device):
    X, Y, fold = problem
    fit = fit_ridge(kernel_of(X, device), Y, fold, alphas=ALPHAS, device=device, precision="float64")
    scores = brute_force(X, Y, fold, ALPHAS)
    best = ALPHAS[scores.argmax(axis=0)]
    assert len(set(best)) > 2
    np.testing.assert_array_equal(fit.best_alphas, best)
    np.testing.assert_allclose(fit.cv_r2, scores.max(axis=0), atol=1e-7)
    for target, alpha in enumerate(best):
        weights = closed_form(X[fold.train], Y[fold.train, target], alpha)
        np.testing.assert_allclose(fit.predictions[:, target], X[fold.test] @ weights, atol=1e-8)


def test_predictions_are_those_of_scikit_learn(problem):
    X, Y, fold = problem
    fit = fit_ridge(kernel_of(X), Y, fold, alphas=ALPHAS, precision="float64")
    model = Ridge(alpha=fit.best_alphas, fit_intercept=False).fit(X[fold.train], Y[fold.train])
    np.testing.assert_allclose(fit.predictions, model.predict(X[fold.test]), atol=1e-8)


def test_small_blocks_change_nothing(problem):
    X, Y, fold = problem
    gram = kernel_of(X)
    whole = fit_ridge(gram, Y, fold, alphas=ALPHAS, precision="float64")
    blocks = fit_ridge(gram, Y, fold, alphas=ALPHAS, precision="float64", max_block_bytes=5 * 8 * (3 * 120 + 40))
    np.testing.assert_allclose(blocks.predictions, whole.predictions, atol=1e-10)
    np.testing.assert_array_equal(blocks.best_alphas, whole.best_alphas)
    np.testing.assert_allclose(blocks.cv_r2, whole.cv_r2, atol=1e-10)


def test_planted_weights_are_recovered_from_delayed_features():
    rng = np.random.default_rng(1)
    run_of_row, position = runs_of(4, 60)
    features = rng.normal(size=(len(run_of_row), 5))
    delayed = np.concatenate([delay_rows(features[run_of_row == run], (1, 2, 3)) for run in range(4)])
    usable = np.isfinite(delayed).all(axis=1)
    X = zscore_segments(delayed[usable], run_of_row[usable])
    weights = rng.normal(size=(15, 6))
    Y = X @ weights
    (fold,) = folds_of(run_of_row[usable], position[usable], test_runs=[1])
    fit = fit_ridge(kernel_of(X), Y, fold, alphas=np.array([1e-6, 1.0, 1e3]), precision="float64")
    np.testing.assert_array_equal(fit.best_alphas, 1e-6)
    np.testing.assert_allclose(fit.predictions, Y[fold.test], atol=1e-5)
    assert np.all(fit.cv_r2 > 0.9999)


def test_test_rows_have_no_influence_on_the_choice(problem):
    X, Y, fold = problem
    changed = Y.copy()
    changed[fold.test] = np.random.default_rng(5).normal(size=(len(fold.test), Y.shape[1]))
    gram = kernel_of(X)
    first, second = (fit_ridge(gram, one, fold, alphas=ALPHAS) for one in (Y, changed))
    np.testing.assert_array_equal(first.best_alphas, second.best_alphas)
    np.testing.assert_array_equal(first.predictions, second.predictions)
    np.testing.assert_array_equal(first.cv_r2, second.cv_r2)


def test_a_space_without_variance_is_set_aside(problem):
    X, Y, fold = problem
    fit = fit_ridge(kernel_of(np.zeros_like(X)), Y, fold, alphas=ALPHAS)
    np.testing.assert_array_equal(fit.predictions, 0)
    assert np.isnan(fit.cv_r2).all()
    assert np.isnan(fit.best_alphas).all()


def test_bad_targets_are_set_aside_and_leave_the_others_alone(problem):
    X, Y, fold = problem
    broken = Y.copy()
    broken[5, 2] = np.nan
    broken[fold.train, 4] = 0.0
    gram = kernel_of(X)
    fit, whole = fit_ridge(gram, broken, fold, alphas=ALPHAS), fit_ridge(gram, Y, fold, alphas=ALPHAS)
    bad = np.isin(np.arange(Y.shape[1]), [2, 4])
    assert np.isnan(fit.predictions[:, bad]).all()
    assert np.isnan(fit.cv_r2[bad]).all()
    np.testing.assert_allclose(fit.predictions[:, ~bad], whole.predictions[:, ~bad], atol=1e-10)


def test_the_backend_is_left_as_it_was(problem):
    X, Y, fold = problem
    before = get_backend().name
    fit = fit_ridge(kernel_of(X), Y, fold, alphas=ALPHAS)
    assert get_backend().name == before
    assert type(fit.predictions) is np.ndarray


def test_a_singular_gram_of_large_scale_is_solved(problem):
    """Repeated columns and a tiny alpha: float32 fails here, float64 does not."""
    X, Y, fold = problem
    repeated = np.tile(X, (1, 50))
    alphas = np.array([1e-1, 1e1, 1e3])
    fit = fit_ridge(kernel_of(repeated), Y, fold, alphas=alphas)
    scores = brute_force(repeated, Y, fold, alphas)
    np.testing.assert_allclose(fit.cv_r2, scores.max(axis=0), atol=1e-6)


def test_missing_features_are_refused(problem):
    X, _, _ = problem
    gap = X.copy()
    gap[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 non-finite"):
        kernel_of(gap)


def test_the_grid_and_its_edges():
    grid = alpha_grid(1, 1e4, 5)
    np.testing.assert_allclose(grid, [1, 10, 100, 1e3, 1e4])
    chosen = np.array([1.0, 10, 1e3, 1e4, np.nan])
    np.testing.assert_array_equal(alpha_at_edge(chosen, grid), [True, False, False, True, False])
    with pytest.raises(ValueError, match="must rise"):
        alpha_grid(10, 1, 3)


def autocorrelated(rng, n_rows, n_columns, memory=0.9):
    noise = rng.normal(size=(n_rows, n_columns))
    for row in range(1, n_rows):
        noise[row] += memory * noise[row - 1]
    return noise


def test_contiguous_folds_of_noise_have_no_bias():
    """One run of autocorrelated noise, unrelated features: the held-out correlation is around zero."""
    rng = np.random.default_rng(4)
    means = []
    for _ in range(30):
        X = zscore_segments(autocorrelated(rng, 300, 20), np.zeros(300, dtype=int))
        Y = zscore_segments(autocorrelated(rng, 300, 60), np.zeros(300, dtype=int))
        run_of_row, position = runs_of(1, 300)
        gram = kernel_of(X)
        for fold in folds_of(run_of_row, position, n_folds=3, purge=20.0):
            predicted = fit_ridge(gram, Y, fold, alphas=np.logspace(0, 4, 5)).predictions
            correlations = [np.corrcoef(p, y)[0, 1] for p, y in zip(predicted.T, Y[fold.test].T, strict=True)]
            means.append(np.mean(correlations))
    assert abs(np.mean(means)) < 0.02
