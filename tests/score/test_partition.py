"""Partitions against hand-made values, planted variance and himalaya's own split scores."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bids_mllm.score.correlation import pearson_r, r2_score_columns
from bids_mllm.score.partition import (
    Partition,
    partition_normalized_r,
    partition_r2,
    partition_sets,
    partition_shares,
    product_measure,
)

N_ROWS, N_TARGETS = 3000, 60
SHARED, ALONE_1, ALONE_2 = 0.2, 0.3, 0.15


def parts_of(partition):
    return np.array([partition.unique_1, partition.unique_2, partition.shared])


def latent(rng, n_columns):
    return rng.normal(size=(2 * N_ROWS, n_columns))


def carried(rng, columns, variance):
    """Targets (2 * N_ROWS, N_TARGETS) that the columns explain with the given variance."""
    weights = rng.normal(size=(columns.shape[1], N_TARGETS))
    return np.sqrt(variance) * columns @ (weights / np.linalg.norm(weights, axis=0))


def fit(Y, *bands):
    """Least squares on the first half of the rows; predictions of the second half by each band."""
    X = np.hstack(bands)
    weights = np.linalg.lstsq(X[:N_ROWS], Y[:N_ROWS], rcond=None)[0]
    split = np.split(weights, np.cumsum([band.shape[1] for band in bands])[:-1])
    return np.stack([band[N_ROWS:] @ part for band, part in zip(bands, split, strict=True)])


def held_out_r2(Y, *bands):
    return r2_score_columns(Y[N_ROWS:], fit(Y, *bands).sum(axis=0))


def held_out_r(Y, *bands):
    return pearson_r(Y[N_ROWS:], fit(Y, *bands).sum(axis=0))


def pair(score, Y, first, second):
    return score(Y, first), score(Y, second), score(Y, first, second)


@pytest.fixture(scope="module")
def planted():
    """Targets and two bands that hold one latent in common and one each of their own."""
    rng = np.random.default_rng(0)
    common, own_1, own_2 = (latent(rng, 4) for _ in range(3))
    Y = carried(rng, common, SHARED) + carried(rng, own_1, ALONE_1) + carried(rng, own_2, ALONE_2)
    Y += np.sqrt(1 - SHARED - ALONE_1 - ALONE_2) * latent(rng, N_TARGETS)
    mixing = rng.normal(size=(2, 8, 8))
    return Y, np.hstack([common, own_1]) @ mixing[0], np.hstack([common, own_2]) @ mixing[1]


@pytest.fixture
def himalaya_scoring():
    from himalaya import scoring
    from himalaya.backend import get_backend, set_backend

    former = get_backend().name
    set_backend("numpy")
    yield scoring
    set_backend(former)


def test_hand_made_values_are_partitioned_and_labelled():
    scores = np.array([0.3, 0.1]), np.array([0.2, 0.1]), np.array([0.4, 0.05])
    for partition, measure in ((partition_r2(*scores), "R2"), (partition_normalized_r(*scores), "normalized r")):
        assert partition.measure == measure
        np.testing.assert_allclose(partition.unique_1, [0.2, -0.05])
        np.testing.assert_allclose(partition.unique_2, [0.1, -0.05])
        np.testing.assert_allclose(partition.shared, [0.1, 0.15])
        np.testing.assert_allclose(partition.joint, scores[2])


@pytest.mark.parametrize("place", range(3))
def test_a_missing_score_leaves_no_part(place):
    scores = np.full((3, 2), 0.5, dtype=np.float32)
    scores[place, 0] = np.nan
    partition = partition_r2(*scores)
    for part in (*parts_of(partition), partition.joint):
        np.testing.assert_array_equal(np.isnan(part), [True, False])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2,\), \(3,\)"):
        partition_r2(np.zeros(2), np.zeros(2), np.zeros(3))


@given(arrays(np.float64, (3, 2, 4), elements=st.floats(-2, 2)))
@settings(max_examples=50, deadline=None)
def test_parts_add_up(scores):
    partition = partition_r2(*scores)
    np.testing.assert_allclose(parts_of(partition).sum(axis=0), scores[2], atol=1e-12)
    np.testing.assert_allclose(partition.unique_1 + partition.shared, scores[0], atol=1e-12)
    np.testing.assert_allclose(partition.unique_2 + partition.shared, scores[1], atol=1e-12)


def test_planted_variance_is_recovered(planted):
    parts = parts_of(partition_r2(*pair(held_out_r2, *planted)))
    np.testing.assert_allclose(parts.mean(axis=1), [ALONE_1, ALONE_2, SHARED], atol=0.02)


def test_identical_bands_share_all(planted):
    Y, first, _ = planted
    partition = partition_r2(*pair(held_out_r2, Y, first, first @ np.diag(np.arange(1.0, 9.0))))
    np.testing.assert_allclose(parts_of(partition)[:2], 0, atol=1e-10)
    np.testing.assert_allclose(partition.shared, partition.joint)


def test_independent_bands_share_no_variance_though_their_correlations_are_not_additive():
    rng = np.random.default_rng(1)
    first, second = latent(rng, 4), latent(rng, 4)
    Y = carried(rng, first, 0.36) + carried(rng, second, 0.36) + np.sqrt(0.28) * latent(rng, N_TARGETS)
    by_r2 = partition_r2(*pair(held_out_r2, Y, first, second))
    by_r = partition_normalized_r(*pair(held_out_r, Y, first, second))
    np.testing.assert_allclose(parts_of(by_r2).mean(axis=1), [0.36, 0.36, 0], atol=0.02)
    np.testing.assert_allclose(by_r.shared.mean(), 1.2 - np.sqrt(0.72), atol=0.02)


def test_shares_are_percent_of_a_positive_joint():
    joint = np.array([0.4, 0.0, -0.1, np.nan])
    shares = partition_shares(Partition(joint / 4, joint / 2, joint / 4, joint, "R2"))
    np.testing.assert_allclose(shares.unique_1, [25, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(shares.unique_2, [50, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(shares.shared, [25, np.nan, np.nan, np.nan])
    assert shares.measure == "R2"


def all_sets(n_bands):
    return [frozenset(chosen) for size in range(1, n_bands + 1) for chosen in combinations(range(n_bands), size)]


def joint_scores(parts, n_bands):
    """A set of bands explains every part that touches it."""
    return {members: sum(part for key, part in parts.items() if key & members) for members in all_sets(n_bands)}


@pytest.mark.parametrize("n_bands", [1, 2, 3, 4])
def test_every_region_of_a_venn_diagram_is_found(n_bands):
    rng = np.random.default_rng(n_bands)
    planted_parts = {members: rng.normal(size=5) for members in all_sets(n_bands)}
    found = partition_sets(joint_scores(planted_parts, n_bands), n_bands)
    assert list(found) == all_sets(n_bands)
    for members, part in planted_parts.items():
        np.testing.assert_allclose(found[members], part, atol=1e-12)


@given(arrays(np.float64, (7, 3), elements=st.floats(-1, 1)))
@settings(max_examples=50, deadline=None)
def test_any_scores_of_three_bands_are_put_together_again(values):
    scores = dict(zip(all_sets(3), values, strict=True))
    again = joint_scores(partition_sets(scores, 3), 3)
    for members, score in scores.items():
        np.testing.assert_allclose(again[members], score, atol=1e-12)


def test_sets_of_two_bands_are_the_pair(planted):
    scores = pair(held_out_r2, *planted)
    partition = partition_r2(*scores)
    found = partition_sets(dict(zip(all_sets(2), scores, strict=True)), 2)
    np.testing.assert_allclose(list(found.values()), parts_of(partition), atol=1e-12)


def test_sets_are_nan_where_a_score_is_missing():
    scores = {members: np.array([0.1, 0.2]) for members in all_sets(3)}
    scores[frozenset({1})] = np.array([np.nan, 0.2])
    for part in partition_sets(scores, 3).values():
        np.testing.assert_array_equal(np.isnan(part), [True, False])


def test_missing_and_unknown_sets_are_named():
    scores = {members: np.zeros(1) for members in all_sets(2)}
    with pytest.raises(ValueError, match=r"missing: \[\[2\], \[0, 2\], \[1, 2\], \[0, 1, 2\]\]"):
        partition_sets(scores, 3)
    with pytest.raises(ValueError, match=r"the sets \[\[1\], \[0, 1\]\]"):
        partition_sets(scores, 1)
    with pytest.raises(ValueError, match="n_bands is 0"):
        partition_sets({}, 0)


@pytest.fixture
def predicted(planted):
    """Held-out targets of mean zero, and the predictions of the two bands of a joint fit."""
    Y, *bands = planted
    return Y[N_ROWS:] - Y[N_ROWS:].mean(axis=0), fit(Y, *bands)


def test_the_r2_split_is_himalayas_and_sums_to_r2(predicted, himalaya_scoring):
    Y, predictions = predicted
    parts = product_measure(Y, predictions)
    np.testing.assert_allclose(parts, himalaya_scoring.r2_score_split(Y, predictions), atol=1e-12)
    np.testing.assert_allclose(parts.sum(axis=0), r2_score_columns(Y, predictions.sum(axis=0)), atol=1e-12)


def test_the_r_split_is_himalayas_and_sums_to_r_whatever_the_means(predicted, himalaya_scoring):
    Y, predictions = predicted[0] + 3, predicted[1] - 1
    parts = product_measure(Y, predictions, measure="r")
    np.testing.assert_allclose(parts, himalaya_scoring.correlation_score_split(Y, predictions), atol=1e-12)
    np.testing.assert_allclose(parts.sum(axis=0), pearson_r(Y, predictions.sum(axis=0)), atol=1e-12)


def test_independent_bands_get_the_variance_each_explains():
    rng = np.random.default_rng(2)
    first, second = latent(rng, 4), latent(rng, 4)
    Y = carried(rng, first, 0.5) + carried(rng, second, 0.2) + np.sqrt(0.3) * latent(rng, N_TARGETS)
    parts = product_measure(Y[N_ROWS:] - Y[N_ROWS:].mean(axis=0), fit(Y, first, second))
    np.testing.assert_allclose(parts.mean(axis=1), [0.5, 0.2], atol=0.02)


@pytest.mark.parametrize("measure", ["r2", "r"])
def test_a_band_against_the_target_has_a_negative_part(measure):
    Y = np.array([[1.0], [-1.0], [2.0], [-2.0]])
    parts = product_measure(Y, np.stack([1.5 * Y, -0.5 * Y]), measure=measure)
    np.testing.assert_allclose(parts, [[1.5], [-0.5]])


@pytest.mark.parametrize("measure", ["r2", "r"])
def test_unusable_targets_are_set_aside(predicted, measure):
    Y, predictions = predicted[0].copy(), predicted[1].copy()
    expected = product_measure(Y, predictions, measure=measure)
    Y[5, 0], predictions[1, 7, 1], predictions[0, 2, 2] = np.nan, np.nan, np.inf
    Y[:, 3] = 0.1
    parts = product_measure(Y, predictions, measure=measure)
    np.testing.assert_array_equal(np.isnan(parts), [[True] * 4 + [False] * (N_TARGETS - 4)] * 2)
    np.testing.assert_allclose(parts[:, 4:], expected[:, 4:])


def test_bands_that_predict_nothing_have_r2_of_zero_and_no_r(predicted):
    Y, predictions = predicted[0], np.zeros_like(predicted[1])
    np.testing.assert_array_equal(product_measure(Y, predictions), 0)
    assert np.isnan(product_measure(Y, predictions, measure="r")).all()


def test_single_precision_is_summed_in_double(predicted):
    Y, predictions = (values.astype(np.float32) for values in predicted)
    parts = product_measure(Y, predictions)
    assert parts.dtype == np.float64
    np.testing.assert_allclose(parts, product_measure(*predicted), atol=1e-6)


def test_inputs_that_do_not_fit_are_refused(predicted):
    Y, predictions = predicted
    with pytest.raises(ValueError, match=r"60 of 60 targets of Y have a mean .* subtract the mean"):
        product_measure(Y + 1, predictions)
    with pytest.raises(ValueError, match="'r', 'r2'"):
        product_measure(Y, predictions, measure="r3")
    with pytest.raises(ValueError, match=r"3000 samples and .* 2999"):
        product_measure(Y, predictions[:, 1:])
    with pytest.raises(ValueError, match=r"shape \(3000, 60\)"):
        product_measure(Y, predictions[0])
