"""Whether instructions with similar texts give similar representations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from bids_mllm.features.conditioning import PairCheck
from bids_mllm.records import BoolArray, FloatArray, IntArray

N_PERMUTATIONS = 10_000
# Permutations whose correlations are formed at once.
AT_ONCE = 1000
# Correlations that are equal but for the order of their sums count as equal.
TIE = 1e-12


@dataclass(frozen=True)
class Coupling:
    """Correlation of text similarity with similarity of representations over pairs of instructions.

    `r` is Pearson's, `p` two-sided by permutation of `n_permutations` (the identity not counted); both NaN
    where either similarity is the same for all pairs or fewer than three instructions remain.
    """

    r: float
    p: float
    n_instructions: int
    n_pairs: int
    n_permutations: int


def cosine_similarity(vectors: NDArray[np.floating]) -> FloatArray:
    """Return the cosine of every pair of rows.

    Parameters
    ----------
    vectors : (n, width) float

    Returns
    -------
    (n, n) float
        NaN in the row and the column of a vector that is zero or not finite.
    """
    double = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(double, axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    units = np.divide(double, norms[:, None], out=np.full_like(double, np.nan), where=usable[:, None])
    cosine: FloatArray = units @ units.T
    return cosine


def tfidf_similarity(texts: Sequence[str]) -> FloatArray:
    """Return the cosine of every pair of texts by the words they share, rare words counting more.

    The weights are those of scikit-learn's `TfidfVectorizer` as it comes: lower case, words of at least two
    letters or digits, smoothed inverse document frequency over these texts, unit length.

    Returns
    -------
    (n_texts, n_texts) float
        NaN in the row and the column of a text without a word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        weights = TfidfVectorizer().fit_transform(texts).toarray()
    except ValueError:
        # What scikit-learn raises for an empty vocabulary.
        weights = np.zeros((len(texts), 1))
    return cosine_similarity(weights)


def pair_matrix(pairs: Sequence[PairCheck], keys: Sequence[str], measure: str) -> FloatArray:
    """Return a measure of pairs of instructions as a symmetric matrix.

    Parameters
    ----------
    pairs
        Of one pooling and layer.
    keys
        Instructions, in the order of rows and columns; others are left out.
    measure
        ``cka``, ``cosine`` or ``relative_difference``.

    Returns
    -------
    (n, n) float
        NaN on the diagonal and for pairs that were not compared.
    """
    place = {key: i for i, key in enumerate(keys)}
    matrix = np.full((len(keys), len(keys)), np.nan)
    for pair in pairs:
        if pair.instruction_a in place and pair.instruction_b in place:
            i, j = place[pair.instruction_a], place[pair.instruction_b]
            matrix[i, j] = matrix[j, i] = getattr(pair, measure)
    return matrix


def mantel(a: FloatArray, b: FloatArray, *, n_permutations: int = N_PERMUTATIONS, seed: int = 0) -> Coupling:
    """Correlate two similarity matrices over their pairs, with a permutation test.

    ``r = corr(a[i, j], b[i, j])`` over i < j. Pairs that share an instruction are not independent, so labels
    are permuted, not pairs: rows and columns of `a` together. With b the permutations whose r is at least as
    large in magnitude and m all of them, ``p = (b + 1) / (m + 1)``. All ``n! - 1`` permutations other than the
    identity are taken where they are no more than `n_permutations`, else so many at random.

    Parameters
    ----------
    a, b : (n, n) float
        Symmetric; the diagonal does not count. Instructions that have no value with any other are left out;
        with a value missing among the rest there is no r.
    n_permutations
        At most.
    seed
        Of the random permutations.

    References
    ----------
    Mantel (1967), The detection of disease clustering and a generalized regression approach. Phipson and
    Smyth (2010), Permutation p-values should never be zero.
    """
    usable = ~(_empty(a) | _empty(b))
    a, b = a[np.ix_(usable, usable)], b[np.ix_(usable, usable)]
    n = len(a)
    upper = np.triu_indices(n, k=1)
    x, y = _standardised(a[upper]), _standardised(b[upper])
    if n < 3 or x is None or y is None:
        return Coupling(float("nan"), float("nan"), n, n * (n - 1) // 2, 0)
    r = float(x @ y)
    full = np.zeros((n, n))
    full[upper] = x
    full += full.T
    orders = _orders(n, n_permutations, seed)
    n_extreme = 0
    for start in range(0, len(orders), AT_ONCE):
        block = orders[start : start + AT_ONCE]
        permuted = full[block[:, upper[0]], block[:, upper[1]]] @ y
        n_extreme += int(np.count_nonzero(np.abs(permuted) >= abs(r) - TIE))
    return Coupling(r, (n_extreme + 1) / (len(orders) + 1), n, len(x), len(orders))


def _empty(matrix: FloatArray) -> BoolArray:
    """Return which instructions have no value with any other."""
    known = np.isfinite(matrix)
    np.fill_diagonal(known, False)
    empty: BoolArray = known.sum(axis=1) == 0
    return empty


def _standardised(values: FloatArray) -> FloatArray | None:
    """Return values with mean 0 and sum of squares 1, or None where they do not vary or one is missing."""
    if values.size < 2 or not np.isfinite(values).all():
        return None
    centred = values - values.mean()
    norm = float(np.linalg.norm(centred))
    if norm <= TIE * float(np.linalg.norm(values)):
        return None
    scaled: FloatArray = centred / norm
    return scaled


def _orders(n: int, n_permutations: int, seed: int) -> IntArray:
    """Return the permutations of n labels to try, (m, n), the identity left out of a full enumeration."""
    if math.factorial(n) - 1 <= n_permutations:
        return np.array(list(permutations(range(n)))[1:])
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(n), (n_permutations, 1)), axis=1)
