"""Block scores against Parseval, and the paired test against flipping signs by hand."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_mllm.exceptions import DesignError
from bids_mllm.score.correlation import pearson_r
from bids_mllm.score.paired import (
    BlockScores,
    _difference_parts,
    block_scores,
    paired_sign_flip,
    region_sign_flip,
)

RNG = np.random.default_rng(1)


def z_scored(values, runs):
    out = np.array(values, dtype=float)
    for run in np.unique(runs):
        rows = runs == run
        out[rows] = (out[rows] - out[rows].mean(axis=0)) / out[rows].std(axis=0)
    return out


@given(st.integers(0, 2**31), st.integers(1, 30), st.lists(st.integers(3, 40), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_block_scores_add_up_to_the_correlation_of_all_rows(seed, block_length, lengths):
    y, x = np.random.default_rng(seed).normal(size=(2, sum(lengths), 3))
    runs = np.repeat(np.arange(len(lengths)), lengths)
    scores = block_scores(y, x, runs, block_length=block_length)
    assert scores.products.shape == (sum(max(1, n // block_length) for n in lengths), 3)
    np.testing.assert_allclose(scores.products.sum(axis=0), pearson_r(z_scored(y, runs), z_scored(x, runs)), atol=1e-5)
    np.testing.assert_allclose(scores.energies.sum(axis=0), 1, atol=1e-5)


def test_a_block_holds_every_nth_frequency():
    """A cosine of frequency 7 in a run of 40 rows with 4 blocks is all in block 3."""
    cosine = np.cos(np.pi * 7 * (2 * np.arange(40) + 1) / 80)[:, None]
    scores = block_scores(cosine, 3 * cosine + 1, np.zeros(40, dtype=int))
    np.testing.assert_allclose(scores.products[:, 0], [0, 0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(scores.energies[:, 0], [0, 0, 0, 1], atol=1e-6)


def test_blocks_depend_on_runs_alone_and_tiles_change_nothing():
    y, x = RNG.normal(size=(2, 90, 5)).astype(np.float32)
    runs = np.repeat([2, 5], 45)
    whole, tiled = block_scores(y, x, runs), block_scores(y, x, runs, max_block_bytes=1)
    np.testing.assert_allclose(tiled.products, whole.products, atol=1e-6)
    order = np.argsort(-runs, kind="stable")
    np.testing.assert_allclose(block_scores(y[order], x[order], runs[order]).products, whole.products, atol=1e-6)


def test_missing_targets_are_nan():
    y, x = RNG.normal(size=(2, 60, 4))
    y[:, 0], x[:, 1], x[3, 2] = 1.0, 1.0, np.nan
    a = block_scores(y, x, np.zeros(60, dtype=int))
    np.testing.assert_array_equal(np.isnan(a.products).all(axis=0), [True, True, True, False])
    b = block_scores(y, RNG.normal(size=y.shape), np.zeros(60, dtype=int))
    test = paired_sign_flip(a, b, n_permutations=20)
    for values in (test.difference, test.p, test.p_max):
        np.testing.assert_array_equal(np.isnan(values), [True, True, True, False])


def test_p_is_that_of_all_sign_patterns():
    """Equal energies: the parts are plain differences, and 2^8 patterns can be tried."""
    n_blocks = 8
    energies = np.full((n_blocks, 3), 1 / n_blocks)
    a, b = (BlockScores(RNG.normal(size=(n_blocks, 3)) + shift, energies) for shift in (0.6, 0.0))
    test = paired_sign_flip(a, b, n_permutations=20_000)
    parts = a.products - b.products
    signs = np.array(list(product([-1, 1], repeat=n_blocks)))
    exact = (np.abs(signs @ parts) >= np.abs(parts.sum(axis=0)) - 1e-9).mean(axis=0)
    np.testing.assert_allclose(test.p, exact, atol=0.015)
    np.testing.assert_allclose(test.difference, parts.sum(axis=0))
    scaled = parts / np.sqrt((parts**2).sum(axis=0))
    most = np.abs(signs @ scaled).max(axis=1)
    exact_max = (most[:, None] >= np.abs(scaled.sum(axis=0)) - 1e-9).mean(axis=0)
    np.testing.assert_allclose(test.p_max, exact_max, atol=0.015)
    assert test.smallest_p == 2.0**-7
    assert test.n_blocks == 8


def test_parts_are_influences_that_add_up_to_the_difference():
    y, x_a, x_b = RNG.normal(size=(3, 80, 3))
    a, b = (block_scores(y, x, np.zeros(80, dtype=int)) for x in (y + x_a, y + x_b))
    parts, difference, valid = _difference_parts(a, b, slice(0, 3))
    assert valid.all()
    np.testing.assert_allclose(parts.sum(axis=0), difference)
    np.testing.assert_allclose(difference, pearson_r(y, y + x_a) - pearson_r(y, y + x_b), atol=1e-5)
    for block in range(8):
        others = np.delete((a.products + b.products) / 2, block, axis=0).sum(axis=0) * 8 / 7
        part = a.products[block] - b.products[block] - others / 2 * (a.energies[block] - b.energies[block])
        np.testing.assert_allclose(parts[block], part, atol=0.02)


def test_order_of_models_changes_the_sign_alone():
    y, x_a, x_b = RNG.normal(size=(3, 200, 4))
    runs = np.repeat([0, 1], 100)
    a, b = (block_scores(y, x, runs) for x in (y + x_a, y + 2 * x_b))
    forward, backward = paired_sign_flip(a, b, n_permutations=500), paired_sign_flip(b, a, n_permutations=500)
    np.testing.assert_allclose(forward.difference, -backward.difference)
    np.testing.assert_array_equal(forward.p, backward.p)
    assert (forward.difference > 0).all()
    assert (forward.p_max >= forward.p).all()


def test_a_model_does_not_differ_from_itself():
    y, x = RNG.normal(size=(2, 100, 2))
    scores = block_scores(y, x, np.zeros(100, dtype=int))
    test = paired_sign_flip(scores, scores, n_permutations=50)
    np.testing.assert_array_equal(test.p, 1)
    np.testing.assert_array_equal(test.p_max, 1)


def test_tiles_of_targets_change_nothing():
    y, x_a, x_b = RNG.normal(size=(3, 100, 7))
    a, b = (block_scores(y, x, np.zeros(100, dtype=int)) for x in (x_a, x_b))
    whole, tiled = (paired_sign_flip(a, b, n_permutations=99, max_block_bytes=size) for size in (2**28, 1))
    np.testing.assert_array_equal(whole.p, tiled.p)
    np.testing.assert_array_equal(whole.p_max, tiled.p_max)


def test_what_cannot_be_tested_is_refused():
    y = RNG.normal(size=(30, 2))
    runs = np.zeros(30, dtype=int)
    one, three = block_scores(y, y, runs, block_length=30), block_scores(y, y, runs)
    with pytest.raises(DesignError, match="1 block"):
        paired_sign_flip(one, one)
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(3, 2\)"):
        paired_sign_flip(one, three)
    with pytest.raises(ValueError, match="n_permutations is 0"):
        paired_sign_flip(three, three, n_permutations=0)
    with pytest.raises(ValueError, match="block_length is 0"):
        block_scores(y, y, runs, block_length=0)


def test_a_region_of_one_voxel_is_that_voxel_and_copies_of_a_voxel_count_as_one():
    rng = np.random.default_rng(8)
    runs = np.repeat(np.arange(3), 70)
    y = rng.normal(size=(210, 4))
    models = [block_scores(y, 0.3 * weight * y + rng.normal(size=y.shape), runs) for weight in (1, 0)]
    copies = [BlockScores(*(np.repeat(part, 5, axis=1) for part in (m.products, m.energies))) for m in models]
    single = paired_sign_flip(*models, n_permutations=999)
    alone = region_sign_flip(*models, np.eye(4, dtype=bool), n_permutations=999)
    np.testing.assert_allclose(alone.difference, single.difference, atol=1e-6)
    np.testing.assert_allclose(alone.p, single.p, atol=2e-3)
    many = region_sign_flip(*copies, np.repeat(np.eye(4, dtype=bool), 5, axis=1), n_permutations=999)
    np.testing.assert_allclose(many.p, alone.p)


def test_a_region_is_the_mean_over_the_targets_that_both_models_have():
    rng = np.random.default_rng(9)
    runs = np.repeat(np.arange(2), 60)
    y, a, b = rng.normal(size=(3, 120, 3))
    b[:, 2] = 0.0
    scores = block_scores(y, a, runs), block_scores(y, b, runs)
    test = region_sign_flip(*scores, np.array([[True, True, True], [False, False, True]]), n_permutations=99)
    expected = paired_sign_flip(*scores, n_permutations=99).difference[:2].mean()
    assert test.difference[0] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(test.p[1])
