"""Depth profiles and preferred depths on planted layers, and rank tests against SciPy and enumeration."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import permutation_test, spearmanr

from bids_mllm.score.layers import (
    hierarchy_correlation,
    layer_profile,
    nested_depth_scores,
    preferred_depth_argmax,
    preferred_depth_mass,
    relative_depth,
    resample_profile,
)

N_LAYERS = 21
PREFERRED = (preferred_depth_argmax, preferred_depth_mass)


def bump(centre, *, width=0.1, n_layers=N_LAYERS):
    return 0.3 * np.exp(-(((relative_depth(n_layers) - centre) / width) ** 2))


def test_depth_runs_from_embedding_to_last_layer():
    np.testing.assert_allclose(relative_depth(5), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(relative_depth(1), [0])
    with pytest.raises(ValueError, match="n_layers is 0"):
        relative_depth(0)


def test_regions_are_averaged_over_their_finite_voxels():
    scores = np.array([[1.0, 3.0, 5.0, 7.0], [2.0, np.nan, 6.0, np.nan]], dtype=np.float32)
    members = [np.array(own, dtype=int) for own in ([2], [0, 1], [3], [], [1, 2])]
    profile = layer_profile(scores, members)
    np.testing.assert_allclose(profile, [[5, 6], [2, 2], [7, np.nan], [np.nan, np.nan], [4, 6]])


def test_profiles_of_models_of_different_size_meet_on_a_common_grid():
    coarse, fine = (3 * relative_depth(n)[None] + np.array([[0.0], [1.0]]) for n in (13, 33))
    np.testing.assert_allclose(resample_profile(coarse, 20), resample_profile(fine, 20))
    np.testing.assert_allclose(resample_profile(np.array([0.0, 1.0, 0.0]), 5), [0, 0.5, 1, 0.5, 0])


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_resampling_is_numpys_interpolation(n_layers, n_points, seed):
    profile = np.random.default_rng(seed).normal(size=n_layers)
    expected = np.interp(relative_depth(n_points), relative_depth(n_layers), profile)
    np.testing.assert_allclose(resample_profile(profile, n_points), expected, atol=1e-10)


def test_a_missing_layer_spoils_its_neighbourhood_alone():
    profile = np.array([0.0, np.nan, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(resample_profile(profile, 9), [0, np.nan, np.nan, np.nan, 2, 2.5, 3, 3.5, 4])


def test_layers_that_were_left_out_are_bridged_but_not_made_up():
    depths = np.array([0.25, 0.5, 1.0])
    np.testing.assert_allclose(resample_profile(depths * 2, 5, depths=depths), [np.nan, 0.5, 1, 1.5, 2])


def test_profiles_that_cannot_be_resampled_are_refused():
    with pytest.raises(ValueError, match="1 layers at 4 points"):
        resample_profile(np.zeros((2, 1)), 4)
    with pytest.raises(ValueError, match=r"\[0.0, 0.0, 1.0\]"):
        resample_profile(np.zeros(3), 4, depths=np.array([0.0, 0.0, 1.0]))


def test_planted_depths_are_found():
    centres = np.array([0.3, 0.5, 0.7])
    scores = np.stack([bump(centre) for centre in centres], axis=1)
    np.testing.assert_allclose(preferred_depth_argmax(scores), centres)
    np.testing.assert_allclose(preferred_depth_mass(scores), centres, atol=0.01)


def test_hand_made_mass_and_the_first_of_equal_layers():
    scores = np.array([[0.1, 0.0], [0.4, 0.2], [0.2, 0.2]])
    np.testing.assert_allclose(preferred_depth_mass(scores), [(0.5 * 0.3 + 1 * 0.1) / 0.4, 0.75])
    np.testing.assert_allclose(preferred_depth_argmax(scores), [0.5, 0.5])


@pytest.mark.parametrize("preferred", PREFERRED)
@given(
    scores=arrays(np.float64, (6, 4), elements=st.integers(1, 100).map(float)),
    offset=st.integers(0, 1000),
    factor=st.sampled_from([0.5, 1.0, 4.0]),
)
@settings(max_examples=40, deadline=None)
def test_a_floor_or_a_factor_moves_no_depth(preferred, scores, offset, factor):
    np.testing.assert_allclose(preferred(factor * scores + offset), preferred(scores))


def test_a_floor_would_move_the_centre_of_positive_scores():
    scores = bump(0.2)[:, None] + 0.2
    positive_part = relative_depth(N_LAYERS) @ scores / scores.sum(axis=0)
    assert positive_part[0] > 0.35
    assert preferred_depth_mass(scores)[0] == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("preferred", PREFERRED)
def test_there_is_no_preference_without_positive_varying_scores(preferred):
    nothing, flat, negative, one = np.full(5, np.nan), np.full(5, 0.3), -np.arange(5.0), np.full(5, np.nan)
    one[2] = 0.4
    scores = np.stack([nothing, flat, negative, one, bump(0.5, n_layers=5)], axis=1)
    np.testing.assert_allclose(preferred(scores), [np.nan, np.nan, np.nan, np.nan, 0.5])
    assert np.isnan(preferred(np.ones((1, 2)))).all()


def test_missing_layers_are_left_out_and_kept_layers_have_their_own_depths():
    scores = np.array([[0.0], [np.nan], [0.1], [0.2], [np.inf]])
    assert preferred_depth_argmax(scores)[0] == 0.75
    assert preferred_depth_mass(scores)[0] == pytest.approx((0.5 * 0.1 + 0.75 * 0.2) / 0.3)
    depths = np.array([0.0, 0.1, 1.0])
    kept = np.array([[0.0], [0.2], [0.2]])
    assert preferred_depth_argmax(kept, depths=depths)[0] == 0.1
    assert preferred_depth_mass(kept, depths=depths)[0] == pytest.approx(0.55)


def test_each_fold_is_scored_at_the_layer_its_own_training_chose():
    training = np.array([[[0.1, 0.1], [0.2, np.nan], [0.0, 0.3]], [[0.1, np.nan], [0.2, np.nan], [0.4, np.nan]]])
    test = np.arange(12.0).reshape(2, 3, 2)
    nested = nested_depth_scores(training, test)
    np.testing.assert_array_equal(nested.chosen_layer, [[1, 2], [2, -1]])
    np.testing.assert_allclose(nested.test_score, [(2 + 10) / 2, np.nan])
    np.testing.assert_allclose(nested.depth_argmax, [0.75, np.nan])
    mass = [(0.1 * 0 + 0.2 * 0.5) / 0.3, (0.1 * 0.5 + 0.3 * 1) / 0.4]
    np.testing.assert_allclose(nested.depth_mass, [np.mean(mass), np.nan])


def test_a_choice_is_scored_where_nothing_is_predicted_but_has_no_depth():
    nested = nested_depth_scores(np.array([[[-0.2], [-0.1]]]), np.array([[[5.0], [-3.0]]]))
    assert nested.test_score[0] == -3
    assert np.isnan(nested.depth_argmax[0])
    assert np.isnan(nested.depth_mass[0])


def test_choosing_by_test_scores_lifts_noise_and_the_nested_choice_does_not():
    rng = np.random.default_rng(0)
    training, test = 0.05 * rng.normal(size=(2, 4, 30, 2000))
    nested = nested_depth_scores(training, test)
    assert abs(nested.test_score.mean()) < 0.002
    assert nested_depth_scores(test, test).test_score.mean() > 0.09
    assert test.mean(axis=0).max(axis=0).mean() > 0.04


def test_held_out_scores_leave_the_choice_and_the_depths_alone():
    rng = np.random.default_rng(1)
    training, test, other = rng.normal(size=(3, 2, 6, 20))
    one, another = nested_depth_scores(training, test), nested_depth_scores(training, other)
    np.testing.assert_array_equal(one.chosen_layer, another.chosen_layer)
    np.testing.assert_array_equal(one.depth_argmax, another.depth_argmax)
    np.testing.assert_array_equal(one.depth_mass, another.depth_mass)
    with pytest.raises(ValueError, match=r"\(2, 6, 20\) and the test scores \(2, 6, 19\)"):
        nested_depth_scores(training, test[..., 1:])


def test_a_small_hierarchy_is_tested_exactly_as_scipy_does():
    depths = np.array([0.1, 0.5, 0.3, 0.9, 0.6, 0.8])
    ranks = np.array([1, 2, 2, 3, 5, 4])
    found = hierarchy_correlation(depths, ranks)
    # Rounded as equal coefficients of different permutations differ in their last digit.
    oracle = permutation_test(
        (depths,), lambda one: np.round(spearmanr(one, ranks).statistic, 9), permutation_type="pairings"
    )
    assert found.rho == pytest.approx(spearmanr(depths, ranks).statistic)
    assert found.p_value == pytest.approx(two_sided(oracle.null_distribution, found.rho))
    assert (found.n_rois, found.n_permutations, found.exact) == (6, 720, True)


def two_sided(null, rho):
    return np.mean(np.abs(null) >= abs(rho) - 1e-8)


def test_three_regions_cannot_be_significant():
    found = hierarchy_correlation(np.array([0.2, 0.4, 0.9]), np.array([1, 2, 3]))
    assert found.rho == pytest.approx(1)
    assert found.p_value == found.smallest_p == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("depths", "ranks"),
    [
        ([1, 2, 3, 4, 5], [1, 1, 2, 2, 3]),
        ([1, 1, 2, 3, 3], [1, 1, 1, 2, 2]),
        ([1, 1, 1, 1, 2], [1, 2, 3, 4, 4]),
        ([1, 2, 2, 2, 3, 4], [1, 1, 1, 2, 2, 2]),
    ],
)
def test_the_smallest_p_counts_ties(depths, ranks):
    depths, ranks = np.array(depths, dtype=float), np.array(ranks)
    every_p = [hierarchy_correlation(np.array(order), ranks).p_value for order in set(permutations(depths))]
    found = hierarchy_correlation(depths, ranks)
    assert found.smallest_p == pytest.approx(min(every_p))


def test_a_long_hierarchy_is_tested_by_random_permutations():
    rng = np.random.default_rng(3)
    ranks = np.arange(40)
    along = hierarchy_correlation(ranks + rng.normal(size=40), ranks, n_permutations=999)
    assert along.rho > 0.95
    assert along.p_value == along.smallest_p == pytest.approx(1 / 1000)
    assert (along.n_permutations, along.exact) == (999, False)
    assert hierarchy_correlation(ranks + rng.normal(size=40), ranks, seed=1).rho > 0.9


def test_random_permutations_agree_with_all_and_the_seed_repeats_them():
    rng = np.random.default_rng(4)
    depths, ranks = rng.normal(size=7), rng.normal(size=7)
    exact = hierarchy_correlation(depths, ranks, n_permutations=5040)
    drawn = hierarchy_correlation(depths, ranks, n_permutations=5039, seed=2)
    assert (exact.exact, drawn.exact) == (True, False)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.03)
    assert drawn == hierarchy_correlation(depths, ranks, n_permutations=5039, seed=2)
    assert drawn.smallest_p == pytest.approx(max(2 / 5040, 1 / 5040))


def test_two_levels_limit_the_p_however_many_permutations_are_drawn():
    found = hierarchy_correlation(np.arange(8.0), np.repeat([1, 2], 4))
    assert not found.exact
    assert found.smallest_p == pytest.approx(2 / 70)


def test_p_values_are_uniform_without_a_hierarchy():
    rng = np.random.default_rng(5)
    p = [hierarchy_correlation(rng.normal(size=12), np.arange(12), n_permutations=199).p_value for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize(
    ("depths", "ranks", "n_rois"),
    [
        ([0.1, np.nan, 0.3, np.nan], [1, 2, 3, 4], 2),
        ([0.2, 0.2, 0.2, np.nan], [1, 2, 3, 4], 3),
        ([0.1, 0.2, 0.3, 0.4], [1, 1, 1, np.nan], 3),
        ([], [], 0),
    ],
)
def test_too_few_or_flat_regions_have_no_correlation(depths, ranks, n_rois):
    found = hierarchy_correlation(np.array(depths), np.array(ranks))
    assert np.isnan([found.rho, found.p_value, found.smallest_p]).all()
    assert (found.n_rois, found.n_permutations) == (n_rois, 0)


def test_regions_without_a_depth_are_set_aside():
    full = hierarchy_correlation(np.array([0.1, 0.3, 0.2, 0.8]), np.array([1, 2, 3, 4]))
    assert full == hierarchy_correlation(np.array([0.1, 0.3, np.nan, 0.2, 0.8]), np.array([1, 2, 9, 3, 4]))


def test_arguments_of_the_hierarchy_are_checked():
    with pytest.raises(ValueError, match=r"\(3,\) and ranks \(4,\)"):
        hierarchy_correlation(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="n_permutations is 0"):
        hierarchy_correlation(np.zeros(3), np.zeros(3), n_permutations=0)
