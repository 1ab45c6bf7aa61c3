"""Tests over participants against scipy and by hand; prevalence against the posterior on a grid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, permutation_test, wilcoxon

from bids_mllm.group.inference import prevalence, sign_flip_over_participants, wilcoxon_over_participants

RNG = np.random.default_rng(3)
BOTH = [wilcoxon_over_participants, sign_flip_over_participants]


@pytest.mark.parametrize("test", BOTH)
def test_four_participants_cannot_pass(test):
    result = test(np.arange(1.0, 5.0)[:, None], np.zeros((4, 1)))
    assert result.p[0] == result.smallest_p[0] == 0.125
    assert result.unit == "participant"
    assert result.n_participants[0] == 4
    assert result.difference[0] == 2.5


@pytest.mark.parametrize("n", [5, 9, 20])
def test_wilcoxon_is_scipys(n):
    a, b = RNG.normal(size=(2, n, 6))
    np.testing.assert_allclose(wilcoxon_over_participants(a, b).p, wilcoxon(a, b, axis=0, method="exact").pvalue)


def test_wilcoxon_tries_all_signs_of_tied_ranks_and_drops_zeros():
    """Differences 0, 1, 1, 2, -1: mean ranks 2, 2, 4, -2 of the four that are left."""
    a = np.array([[0.0], [1.0], [1.0], [2.0], [-1.0]])
    result = wilcoxon_over_participants(a, np.zeros((5, 1)))
    sums = [abs(i * 2 + j * 2 + k * 4 + m * 2) for i in (1, -1) for j in (1, -1) for k in (1, -1) for m in (1, -1)]
    assert result.p[0] == np.mean(np.array(sums) >= 6)


@given(st.integers(2, 10), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_sign_flip_is_scipys_exact_permutation(n, seed):
    a, b = np.random.default_rng(seed).normal(size=(2, n, 1))
    expected = permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    np.testing.assert_allclose(sign_flip_over_participants(a, b).p, expected.pvalue)


@pytest.mark.parametrize("test", BOTH)
def test_false_positives_never_exceed_alpha(test):
    a, b = RNG.normal(size=(2, 8, 2000))
    p = test(a, b).p
    for alpha in (0.01, 0.05, 0.2):
        assert np.mean(p <= alpha) <= alpha + 3 * np.sqrt(alpha / 2000)
    assert np.mean(p <= 0.05) > 0.03


def test_random_signs_beyond_sixteen_participants():
    a, b = RNG.normal(size=(2, 17, 3))
    result = sign_flip_over_participants(a, b)
    normal = wilcoxon_over_participants(a, b)
    np.testing.assert_allclose(result.p, normal.p, atol=0.15)
    strong = sign_flip_over_participants(a + 50, b)
    np.testing.assert_allclose(strong.p, strong.smallest_p, atol=2e-4)
    assert strong.smallest_p[0] == 1 / 20_001


@pytest.mark.parametrize("test", BOTH)
def test_missing_participants_are_passed_over_column_by_column(test):
    a, b = RNG.normal(size=(2, 6, 4))
    a[0, 1], b[3, 1], a[:, 2] = np.nan, np.nan, np.nan
    b[:, 3] = a[:, 3]
    result = test(a, b)
    np.testing.assert_array_equal(result.n_participants, [6, 4, 0, 6])
    rows = [1, 2, 4, 5]
    assert result.p[1] == test(a[rows, 1:2], b[rows, 1:2]).p[0]
    np.testing.assert_array_equal(np.isnan(result.p), [False, False, True, False])
    assert result.p[3] == 1
    np.testing.assert_array_equal(result.smallest_p, [2**-5, 2**-3, np.nan, 2**-5])


@pytest.mark.parametrize("test", BOTH)
def test_swapping_models_changes_the_sign_alone(test):
    a, b = RNG.normal(size=(2, 7, 5))
    forward, backward = test(a, b), test(b, a)
    np.testing.assert_allclose(forward.p, backward.p)
    np.testing.assert_allclose(forward.difference, -backward.difference)
    with pytest.raises(ValueError, match=r"\(7, 5\) and \(6, 5\)"):
        test(a, b[1:])


def test_prevalence_counts_and_tests_the_global_null():
    p = np.array([[0.01, 0.2, np.nan], [0.05, 0.3, np.nan], [0.5, 0.9, np.nan], [np.nan, 0.6, np.nan]])
    result = prevalence(p)
    np.testing.assert_array_equal(result.n_significant, [2, 0, 0])
    np.testing.assert_array_equal(result.n_participants, [3, 4, 0])
    np.testing.assert_allclose(result.p, [3 * 0.05**2 * 0.95 + 0.05**3, 1, np.nan])
    np.testing.assert_allclose(result.map, [(2 / 3 - 0.05) / 0.95, 0, np.nan])
    assert np.isnan(result.low[2])
    assert np.isnan(result.high[2])


@pytest.mark.parametrize(("k", "n"), [(0, 4), (1, 30), (2, 4), (3, 4), (4, 4), (13, 50)])
def test_prevalence_interval_is_the_densest_part_of_the_posterior(k, n):
    p = np.where(np.arange(n) < k, 0.01, 0.5)[:, None]
    result = prevalence(p)
    grid = (np.arange(200_000) + 0.5) / 200_000
    density = beta.pdf(0.05 + 0.95 * grid, k + 1, n - k + 1)
    order = np.argsort(-density)
    share = np.cumsum(density[order]) / density.sum()
    inside = grid[order[: np.searchsorted(share, 0.96) + 1]]
    np.testing.assert_allclose([result.low[0], result.high[0]], [inside.min(), inside.max()], atol=2e-3)
    np.testing.assert_allclose(result.map[0], grid[density.argmax()], atol=1e-4)
    assert result.low[0] <= result.map[0] <= result.high[0]


def test_prevalence_of_four_out_of_four():
    """Increasing posterior: the interval is its upper part, in closed form."""
    result = prevalence(np.full((4, 1), 0.001))
    tail = 0.05**5 + 0.04 * (1 - 0.05**5)
    np.testing.assert_allclose(result.low[0], (tail**0.2 - 0.05) / 0.95, rtol=1e-6)
    assert result.high[0] == result.map[0] == 1


@pytest.mark.parametrize("change", [{"alpha": 0.0}, {"confidence": 1.0}])
def test_levels_must_lie_between_zero_and_one(change):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        prevalence(np.full((4, 1), 0.1), **change)
    with pytest.raises(ValueError, match="n_participants, n_columns"):
        prevalence(np.full(4, 0.1))
