"""Tests within participants, combined."""

import numpy as np
import pytest
from scipy.stats import combine_pvalues

from bids_mllm.group.significance import fisher_combined
from bids_mllm.score.multiplicity import fdr

NAN = np.nan


def test_combined_p_is_that_of_scipy_over_those_who_were_tested():
    p = np.array([[0.01, 0.5, NAN, NAN], [0.04, 1.0, 0.3, NAN], [0.2, 0.9, 0.02, NAN]])
    expected = [combine_pvalues(column[np.isfinite(column)]).pvalue for column in p.T[:3]]
    np.testing.assert_allclose(fisher_combined(p), [*expected, NAN])


def test_with_one_participant_it_is_the_own_p():
    p = np.array([[0.001, 0.3, 1.0, NAN]])
    np.testing.assert_allclose(fisher_combined(p), p[0])


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.1])
def test_what_is_no_p_of_permutations_is_refused(bad):
    with pytest.raises(ValueError, match="no permutation gives"):
        fisher_combined(np.array([[0.5, bad]]))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        fisher_combined(np.ones(3))


@pytest.mark.parametrize("n_permutations", [None, 999])
def test_maps_of_noise_have_something_no_more_often_than_by_chance(n_permutations):
    rng = np.random.default_rng(3)
    n_maps, hits = 600, 0
    for _ in range(n_maps):
        p = 1 - rng.uniform(size=(4, 150))
        if n_permutations:
            p = (1 + rng.binomial(n_permutations, p)) / (1 + n_permutations)
        hits += bool((fdr(fisher_combined(p)) <= 0.05).any())
    assert hits / n_maps <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / n_maps)


def test_an_effect_in_everyone_is_found_where_it_is():
    p = np.random.default_rng(0).uniform(0.1, 1, size=(4, 100))
    p[:, :10] = 0.001
    np.testing.assert_array_equal(np.flatnonzero(fdr(fisher_combined(p)) <= 0.05), np.arange(10))
