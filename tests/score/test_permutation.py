"""Permutation tests against permuting rows by brute force, and their rules."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_mllm.exceptions import DesignError
from bids_mllm.score import permutation
from bids_mllm.score.permutation import bounds_of, join_tests, permutation_test, standardize

RNG = np.random.default_rng(0)


def correlation(y, x, pieces):
    """Pearson r of rows that were z-scored within each piece, one column."""
    y, x = (np.concatenate([(v[p] - v[p].mean()) / v[p].std() for p in pieces]) for v in (y, x))
    return np.corrcoef(y, x)[0, 1]


def shuffled_blocks(rows, length, order):
    return np.concatenate([rows[block * length : (block + 1) * length] for block in order])


def closest(values, candidates):
    return np.abs(values[:, None] - candidates[None]).min(axis=1)


def test_block_null_values_are_those_of_permuted_rows():
    """Two runs of 5 blocks of 2 rows, one row left over in each."""
    y, x = RNG.normal(size=(2, 22, 1))
    runs = np.repeat([3, 1], 11)
    pieces = [np.arange(11, 21), np.arange(10)]
    kept = np.concatenate(pieces)
    pieces = [np.arange(10), np.arange(10, 20)]
    orders = [np.array(one) for one in permutations(range(5))]
    possible = np.array(
        [
            correlation(
                y[kept, 0],
                np.concatenate(
                    [x[kept[p], 0][shuffled_blocks(np.arange(10), 2, o)] for p, o in zip(pieces, both, strict=True)]
                ),
                pieces,
            )
            for both in product(orders, orders)
        ]
    )
    test = permutation_test(y, x, runs, block_length=2, n_permutations=300, studentized=False)
    assert closest(test.null_max, possible).max() < 1e-6
    assert test.n_rows == 20
    np.testing.assert_allclose(test.r[0], correlation(y[kept, 0], x[kept, 0], pieces))
    assert test.p[0] == (1 + (test.null_max >= test.r[0]).sum()) / 301
    assert abs(test.p[0] - (possible >= test.r[0] - 1e-9).mean()) < 0.1


def test_studentising_centres_and_scales_the_null_exactly():
    y, x = RNG.normal(size=(2, 20, 1))
    runs = np.repeat([0, 1], 10)
    plain = permutation_test(y, x, runs, block_length=2, n_permutations=200, studentized=False)
    test = permutation_test(y, x, runs, block_length=2, n_permutations=200)
    pieces = bounds_of([10, 10])
    a, b = standardize(x, pieces)[0][:, 0], standardize(y, pieces)[0][:, 0]
    mean, variance = 0.0, 0.0
    for start, stop in pieces:
        gram = a[start:stop].reshape(5, 2) @ b[start:stop].reshape(5, 2).T
        sums = [gram[list(order), np.arange(5)].sum() for order in permutations(range(5))]
        mean, variance = mean + np.mean(sums), variance + np.var(sums)
    np.testing.assert_allclose(test.null_max, (plain.null_max - mean) / np.sqrt(variance), atol=1e-5)
    k, t = np.meshgrid(np.arange(10), np.arange(10), indexing="ij")
    cosines = np.sqrt(2 / 10) * np.cos(np.pi * k * (2 * t + 1) / 20)
    expected = sum((((cosines @ a[i:j]) * (cosines @ b[i:j]))[1:] ** 2).sum() for i, j in pieces)
    np.testing.assert_allclose(test.inflation[0] ** 2, expected / variance, rtol=1e-5)
    np.testing.assert_allclose(test.statistic[0], a @ b / np.sqrt(expected))


def test_circular_null_values_are_those_of_shifted_rows():
    y, x = RNG.normal(size=(2, 51, 1))
    runs = np.repeat([0, 1], [30, 21])
    pieces = [np.arange(30), np.arange(30, 51)]
    offsets = [range(5, 26), range(5, 17)]
    possible = np.array(
        [
            correlation(
                y[:, 0], np.concatenate([np.roll(x[p, 0], o) for p, o in zip(pieces, both, strict=True)]), pieces
            )
            for both in product(*offsets)
        ]
    )
    test = permutation_test(y, x, runs, method="circular", block_length=5, n_permutations=300, studentized=False)
    assert closest(test.null_max, possible).max() < 1e-6
    assert len(np.unique(np.round(test.null_max, 5))) > 100
    assert test.smallest_p == 1 / (1 + len(possible))
    assert test.n_rows == 51


def test_short_runs_are_left_out_of_circular_shifts():
    y, x = RNG.normal(size=(2, 150, 2))
    runs = np.repeat([0, 1], [130, 20])
    test = permutation_test(y, x, runs, method="circular", n_permutations=20)
    assert test.n_rows == 130
    alone = permutation_test(y[:130], x[:130], runs[:130], method="circular", n_permutations=20)
    np.testing.assert_array_equal(test.p, alone.p)


def test_runs_with_few_blocks_share_their_blocks():
    y, x = RNG.normal(size=(2, 60, 1))
    test = permutation_test(y, x, np.repeat([0, 1], [40, 20]), n_permutations=50)
    assert test.exchanged == "over runs"
    assert permutation_test(y, x, np.zeros(60, dtype=int), n_permutations=50).exchanged == "within runs"
    assert len(np.unique(test.null_max)) > 40


def test_p_max_is_the_share_of_maxima_and_never_below_p():
    y, x = RNG.normal(size=(2, 200, 30))
    y[:, 0] += x[:, 0]
    test = permutation_test(y, x, np.repeat([0, 1], 100), n_permutations=400)
    expected = (1 + (test.null_max[None] >= test.statistic[:, None] - 1e-5).sum(axis=1)) / 401
    np.testing.assert_array_equal(test.p_max, expected)
    assert (test.p_max >= test.p).all()
    assert test.p[0] == test.p_max[0] == test.smallest_p == 1 / 401


@pytest.mark.parametrize("method", ["block", "circular"])
def test_tiles_and_threads_of_targets_change_nothing(method, monkeypatch):
    y, x = RNG.normal(size=(2, 200, 11)).astype(np.float32)
    runs = np.repeat([0, 1], 100)
    whole = permutation_test(y, x, runs, method=method, n_permutations=99)
    tiled = permutation_test(y, x, runs, method=method, n_permutations=99, max_block_bytes=1)
    np.testing.assert_allclose(tiled.r, whole.r)
    np.testing.assert_array_equal(tiled.p, whole.p)
    np.testing.assert_allclose(tiled.null_max, whole.null_max, atol=1e-6)


@pytest.mark.parametrize("method", ["block", "circular"])
def test_tests_of_parts_are_put_together_to_that_of_all(method):
    """A part alone has lower maxima, and one of its parts holds no target that varies."""
    y, x = np.random.default_rng(0).normal(size=(2, 200, 40)).astype(np.float32)
    x[:, ::3] += 0.3 * y[:, ::3]
    y[:, 10:20] = 1.0
    runs = np.repeat([0, 1], 100)
    whole = permutation_test(y, x, runs, method=method, n_permutations=199)
    spans = [slice(0, 10), slice(10, 20), slice(20, 40)]
    parts = [permutation_test(y[:, span], x[:, span], runs, method=method, n_permutations=199) for span in spans]
    joined = join_tests(parts)
    for name in ("r", "statistic", "p", "p_max", "inflation"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name), rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(joined.null_max, whole.null_max, atol=1e-5)
    assert (np.concatenate([part.p_max for part in parts]) < whole.p_max).any()
    assert np.isnan(join_tests(parts[1:2]).p_max).all()


def test_working_memory_stays_below_its_bound(monkeypatch):
    widths = []
    monkeypatch.setattr(
        permutation,
        "_tile_null",
        lambda x, y, *a, inner=permutation._tile_null: widths.append(x.shape[1]) or inner(x, y, *a),
    )
    y, x = RNG.normal(size=(2, 400, 40)).astype(np.float32)
    permutation_test(y, x, np.zeros(400, dtype=int), n_permutations=500, max_block_bytes=2**20)
    assert max(widths) * (400 * 8 * 8 + 40 * 40 * 8 + 500 * 12) <= 2**20


def test_targets_without_variance_or_with_missing_values_are_nan():
    y, x = RNG.normal(size=(2, 120, 6))
    y[:, 0], x[:, 1], y[5, 2], x[7, 3] = 0.1, 3.0, np.nan, np.inf
    x[:60, 4] = 2.0
    test = permutation_test(y, x, np.repeat([0, 1], 60), n_permutations=50)
    for values in (test.r, test.statistic, test.p, test.p_max, test.inflation):
        np.testing.assert_array_equal(np.isnan(values), [True] * 4 + [False] * 2)
    assert np.isfinite(test.null_max).all()
    assert np.isnan(permutation_test(y[:, :3], x[:, :3], np.repeat([0, 1], 60), n_permutations=9).null_max).all()


@given(st.integers(0, 2**31), st.floats(0.1, 100), st.floats(-50, 50))
@settings(max_examples=15, deadline=None)
def test_scale_and_shift_of_a_run_do_not_matter(seed, scale, shift):
    y, x = np.random.default_rng(seed).normal(size=(2, 100, 2))
    runs = np.repeat([0, 1], 50)
    moved = np.where(runs[:, None] == 1, scale * y + shift, y)
    test, other = (permutation_test(one, x, runs, block_length=5, n_permutations=50) for one in (y, moved))
    np.testing.assert_allclose(other.r, test.r, atol=1e-9)
    np.testing.assert_allclose(other.null_max, test.null_max, atol=1e-5)


def test_seed_settles_the_permutations():
    y, x = RNG.normal(size=(2, 100, 2))
    runs = np.zeros(100, dtype=int)
    one, same, other = (permutation_test(y, x, runs, n_permutations=30, seed=seed).null_max for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "rows"}, ValueError, "'block', 'circular'"),
        ({"block_length": 0}, ValueError, "block_length is 0"),
        ({"n_permutations": 0}, ValueError, "n_permutations is 0"),
        ({"block_length": 11}, DesignError, "hold 4 whole blocks of 11 rows"),
        ({"method": "circular", "block_length": 16}, DesignError, "allow 19 circular shifts"),
        ({"method": "circular", "block_length": 30}, DesignError, "allow 0 circular shifts"),
    ],
)
def test_what_cannot_be_tested_is_refused(change, error, message):
    y, x = RNG.normal(size=(2, 50, 1))
    with pytest.raises(error, match=message):
        permutation_test(y, x, np.zeros(50, dtype=int), **change)


def test_shapes_must_agree():
    y = RNG.normal(size=(50, 2))
    runs = np.zeros(50, dtype=int)
    with pytest.raises(ValueError, match="50 samples and predictions has 49"):
        permutation_test(y, y[1:], runs)
    with pytest.raises(ValueError, match="50 samples and runs has 49"):
        permutation_test(y, y, runs[1:])
    with pytest.raises(ValueError, match=r"\(50, 2\) and predictions \(50, 1\)"):
        permutation_test(y, y[:, :1], runs)
