"""Intervals over runs against all resamples, and what they cover."""

from itertools import product

import numpy as np
import pytest

from bids_mllm.score.bootstrap import bootstrap_runs

RNG = np.random.default_rng(2)


def test_interval_is_that_of_all_resamples():
    values = RNG.normal(size=(5, 3))
    weights = np.array([1.0, 2.0, 1.0, 0.5, 3.0])
    means = []
    for drawn in product(range(5), repeat=5):
        rows = list(drawn)
        means.append(weights[rows] @ values[rows] / weights[rows].sum())
    result = bootstrap_runs(values, weights, n_bootstraps=40_000)
    np.testing.assert_allclose(result.mean, weights @ values / weights.sum())
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    np.testing.assert_allclose(result.low, low, atol=0.03)
    np.testing.assert_allclose(result.high, high, atol=0.03)
    np.testing.assert_array_equal(result.n_runs, 5)


def test_equal_runs_have_an_interval_of_one_point():
    result = bootstrap_runs(np.full((4, 2), 0.3))
    for values in (result.mean, result.low, result.high):
        np.testing.assert_allclose(values, 0.3)


def test_runs_without_a_value_are_passed_over():
    values = np.array([[0.1, np.nan, np.nan], [0.3, 0.3, np.nan], [np.nan, np.nan, np.nan], [0.5, np.nan, np.nan]])
    result = bootstrap_runs(values, n_bootstraps=500)
    np.testing.assert_allclose(result.mean, [0.3, 0.3, np.nan])
    np.testing.assert_array_equal(result.n_runs, [3, 1, 0])
    np.testing.assert_array_equal(np.isnan(result.low), [False, True, True])
    np.testing.assert_array_equal(np.isnan(result.high), [False, True, True])
    assert 0.1 <= result.low[0] < 0.3 < result.high[0] <= 0.5


def test_a_run_of_no_weight_does_not_count():
    result = bootstrap_runs(RNG.normal(size=(2, 1)), np.array([1.0, 0.0]))
    assert result.n_runs[0] == 1
    assert np.isnan(result.low[0])


@pytest.mark.parametrize(("n_runs", "expected"), [(2, 0.50), (3, 0.75), (5, 0.83), (10, 0.90)])
def test_coverage_is_what_the_docstring_says(n_runs, expected):
    """Columns are independent data sets of normal runs with mean 0."""
    result = bootstrap_runs(RNG.normal(size=(n_runs, 4000)), n_bootstraps=2000)
    covered = np.mean((result.low <= 0) & (result.high >= 0))
    assert abs(covered - expected) < 0.03


def test_columns_get_the_same_resamples_whatever_stands_beside_them():
    values = RNG.normal(size=(4, 1100))
    whole = bootstrap_runs(values, n_bootstraps=200)
    np.testing.assert_allclose(bootstrap_runs(values[:, 1050:], n_bootstraps=200).low, whole.low[1050:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": np.ones(3)}, "values has 4 samples and weights has 3"),
        ({"weights": np.array([1.0, 1.0, -1.0, 1.0])}, "not negative"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"n_bootstraps": 0}, "n_bootstraps is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_runs(np.ones((4, 1)), **arguments)
