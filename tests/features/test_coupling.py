"""Coupling of texts and representations against closed forms, scipy and enumeration."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import binom, kstest, pearsonr
from sklearn.feature_extraction.text import TfidfVectorizer

from bids_mllm.features.conditioning import PairCheck
from bids_mllm.features.coupling import cosine_similarity, mantel, pair_matrix, tfidf_similarity
from bids_mllm.features.instructions import load_instructions


def symmetric(rng: np.random.Generator, n: int) -> np.ndarray:
    values = rng.normal(size=(n, n))
    return values + values.T


def upper(matrix: np.ndarray) -> np.ndarray:
    return matrix[np.triu_indices(len(matrix), k=1)]


def test_cosines_of_known_angles() -> None:
    angle = np.deg2rad(np.array([0.0, 30.0, 90.0, 180.0]))
    vectors = np.array([1.0, 5.0, 0.1, 2.0])[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(cosine_similarity(vectors), np.cos(angle[:, None] - angle[None, :]), atol=1e-12)


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_vector_without_direction_has_no_cosine(bad: float) -> None:
    found = cosine_similarity(np.array([[1.0, 0.0], [bad, bad], [0.0, 2.0]]))
    np.testing.assert_array_equal(np.isnan(found), [[0, 1, 0], [1, 1, 1], [0, 1, 0]])


def test_tfidf_by_hand() -> None:
    """idf = 1 + ln((1 + n) / (1 + df)) for n = 3 texts: 'video' in two, each other word in one."""
    common, rare = 1 + np.log(4 / 3), 1 + np.log(4 / 2)
    found = tfidf_similarity(["Describe video", "caption VIDEO", "hello"])
    assert found[0, 1] == pytest.approx(common**2 / (common**2 + rare**2))
    assert found[0, 2] == found[1, 2] == 0.0
    np.testing.assert_allclose(np.diag(found), 1.0)


def test_tfidf_of_the_built_in_instructions_is_that_of_scikit_learn() -> None:
    texts = [instruction.text for instruction in load_instructions()]
    weights = TfidfVectorizer().fit_transform(texts)
    np.testing.assert_allclose(tfidf_similarity(texts), (weights @ weights.T).toarray(), atol=1e-12)


def test_texts_without_words_have_no_similarity() -> None:
    found = tfidf_similarity(["a video", "", "the video"])
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[0, 2])
    assert np.isnan(tfidf_similarity(["", "?"])).all()


def test_pairs_as_a_matrix() -> None:
    pairs = [
        PairCheck("last", 1, a, b, 9, value, value / 2, value / 4, False)
        for a, b, value in (("A", "B", 0.2), ("C", "A", 0.4), ("A", "Empty", 0.8))
    ]
    n = np.nan
    np.testing.assert_array_equal(pair_matrix(pairs, ["A", "B", "C"], "cka"), [[n, 0.1, 0.2], [0.1, n, n], [0.2, n, n]])
    assert pair_matrix(pairs, ["B", "A"], "cosine")[0, 1] == 0.05


@pytest.mark.parametrize("n", [3, 6, 13])
def test_r_is_that_of_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = symmetric(rng, n), symmetric(rng, n)
    found = mantel(a, b)
    assert found.r == pytest.approx(pearsonr(upper(a), upper(b)).statistic, abs=1e-12)
    assert (found.n_instructions, found.n_pairs) == (n, n * (n - 1) // 2)


def test_four_instructions_against_enumeration_by_hand() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        a, b = symmetric(rng, 4), symmetric(rng, 4)
        observed = pearsonr(upper(a), upper(b)).statistic
        every = [pearsonr(upper(a[np.ix_(o, o)]), upper(b)).statistic for o in permutations(range(4))]
        found = mantel(a, b)
        assert found.n_permutations == 23
        # The identity is one of the 24 orders and as extreme as itself.
        assert found.p == pytest.approx(sum(abs(r) >= abs(observed) - 1e-9 for r in every) / 24)


@pytest.mark.parametrize(("n", "expected"), [(3, 5), (5, 119), (7, 5039), (8, 10_000), (13, 10_000)])
def test_all_permutations_where_they_are_few_else_ten_thousand(n: int, expected: int) -> None:
    rng = np.random.default_rng(1)
    assert mantel(symmetric(rng, n), symmetric(rng, n)).n_permutations == expected


def test_planted_coupling_is_found_in_either_direction() -> None:
    rng = np.random.default_rng(2)
    a = symmetric(rng, 13)
    b = 0.6 * a + 0.4 * symmetric(rng, 13)
    up, down = mantel(a, b), mantel(a, -b)
    assert up.r > 0.7
    assert down.r == pytest.approx(-up.r)
    assert up.p == down.p == pytest.approx(1 / 10_001)


def test_without_coupling_p_is_uniform() -> None:
    """Similarities of points in the plane, whose pairs depend on one another as those of texts do."""
    rng = np.random.default_rng(3)
    found = []
    for seed in range(400):
        a, b = (cosine_similarity(rng.normal(size=(9, 2))) for _ in range(2))
        found.append(mantel(a, b, n_permutations=199, seed=seed).p)
    p = np.array(found)
    for level in (0.05, 0.2):
        low, high = binom.ppf([0.001, 0.999], len(p), level)
        assert low <= np.count_nonzero(p <= level) <= high
    assert kstest(p - rng.random(len(p)) / 200, "uniform").pvalue > 0.001


def test_random_permutations_come_from_the_seed() -> None:
    rng = np.random.default_rng(4)
    a, b = symmetric(rng, 10), symmetric(rng, 10)
    p = [mantel(a, b, n_permutations=500, seed=seed).p for seed in (1, 1, 2, 3)]
    assert p[0] == p[1]
    assert len(set(p)) > 1
    # Near the p of many more permutations, within its own standard error.
    exact = mantel(a, b, n_permutations=50_000).p
    assert abs(p[0] - exact) < 4 * np.sqrt(exact * (1 - exact) / 500) + 1 / 501


def test_instructions_without_a_similarity_are_left_out() -> None:
    rng = np.random.default_rng(5)
    a, b = symmetric(rng, 6), symmetric(rng, 6)
    expected = mantel(a[1:, 1:], b[1:, 1:])
    a[0], a[:, 0] = np.nan, np.nan
    np.fill_diagonal(b, np.nan)
    assert mantel(a, b) == expected
    assert expected.n_instructions == 5


def test_where_there_is_no_correlation() -> None:
    rng = np.random.default_rng(6)
    a = symmetric(rng, 5)
    missing = a.copy()
    missing[1, 2] = missing[2, 1] = np.nan
    for b in (np.full((5, 5), 0.3), np.full((5, 5), np.nan), missing):
        found = mantel(a, b)
        assert np.isnan([found.r, found.p]).all()
        assert found.n_permutations == 0
    assert np.isnan(mantel(a[:2, :2], a[:2, :2]).r)
