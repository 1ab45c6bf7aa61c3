"""Tests over participants, and the prevalence of an effect among them.

The unit of every test here is the participant. With n participants an exact two-sided test cannot give a p
below 2^(1 - n): 0.125 for four.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import beta, binom, rankdata, wilcoxon

from bids_mllm.records import BoolArray, FloatArray, IntArray

EXACT_UP_TO = 16
N_RANDOM = 20_000
TILE_COLUMNS = 256
# Relative; sums of the same numbers in another order are ties.
TIE = 1e-9

ColumnTest = Callable[[FloatArray, int], FloatArray]


@dataclass(frozen=True)
class GroupTest:
    """A paired test of two models over participants.

    Attributes
    ----------
    difference : (n_columns,) float
        Mean over participants of the first minus the second.
    p : (n_columns,) float
        Two-sided; 1 where all differences are 0, NaN where no participant has both scores.
    n_participants : (n_columns,) int
        Participants with both scores.
    smallest_p : (n_columns,) float
        Smallest attainable p for so many participants.
    unit
        What was sampled.
    """

    difference: FloatArray
    p: FloatArray
    n_participants: IntArray
    smallest_p: FloatArray
    unit: str = "participant"


@dataclass(frozen=True)
class Prevalence:
    """How many participants show an effect, and how many of the population would.

    Attributes
    ----------
    n_significant, n_participants : (n_columns,) int
        Participants with p at most alpha, and with a p at all.
    p : (n_columns,) float
        Binomial p against the global null, that nobody has the effect.
    map, low, high : (n_columns,) float
        Most probable prevalence and its highest-posterior-density interval.
    alpha, confidence
        Level of the tests within participants; probability of the interval.
    """

    n_significant: IntArray
    n_participants: IntArray
    p: FloatArray
    map: FloatArray
    low: FloatArray
    high: FloatArray
    alpha: float
    confidence: float
    unit: str = "participant"


def wilcoxon_over_participants(a: FloatArray, b: FloatArray, *, seed: int = 0) -> GroupTest:
    """Wilcoxon's signed-rank test of two models over participants, column by column.

    ``W+ = sum of the ranks of |a - b| where a > b``, two-sided. Zero differences are dropped before ranking
    (Wilcoxon 1945). Without ties the distribution is scipy's (exact up to 50 participants); with ties or
    zeros all signs of the mean ranks are tried (a random 20,000 beyond 16 participants).

    Parameters
    ----------
    a, b : (n_participants, n_columns) float
        Scores of two models; a participant counts in the columns where both are finite.
    seed
        Of the random signs.

    Returns
    -------
    test : GroupTest
    """
    return _test_columns(a, b, _wilcoxon_p, seed)


def sign_flip_over_participants(a: FloatArray, b: FloatArray, *, seed: int = 0) -> GroupTest:
    """Sign-flip test of the mean difference of two models over participants, column by column.

    ``p`` is the share of sign patterns s with ``|sum_i s_i d_i| >= |sum_i d_i|``, ``d = a - b``: over all
    2^n patterns up to 16 participants, else (1 + count) / (1 + 20,000) over random ones (Fisher 1935).

    Parameters
    ----------
    a, b : (n_participants, n_columns) float
        Scores of two models; a participant counts in the columns where both are finite.
    seed
        Of the random signs.

    Returns
    -------
    test : GroupTest
    """
    return _test_columns(a, b, _sign_flip_p, seed)


def prevalence(p: FloatArray, *, alpha: float = 0.05, confidence: float = 0.96) -> Prevalence:
    r"""Bayesian prevalence of an effect from tests within participants.

    Of n participants k are significant. With prevalence g and tests of sensitivity 1 (assumed: an insensitive
    test makes the estimate one of the detectable effect), a participant is significant with probability
    ``t = alpha + (1 - alpha) g``. A uniform prior on g gives t a Beta(k + 1, n - k + 1) truncated to
    [alpha, 1], with its mode at

    .. math:: g = \max(0, (k / n - alpha) / (1 - alpha))

    (Ince, Paton, Kay and Schyns 2021, eLife 10:e62461). It generalises to the population without a test of
    the mean, so it can be used with four participants; p-values must be valid within each.

    Parameters
    ----------
    p : (n_participants, n_columns) float
        P-values of the tests within participants, corrected over columns where one is to be picked; NaN is
        no test.
    alpha
        A participant is significant where ``p <= alpha``.
    confidence
        Posterior probability of the interval.

    Returns
    -------
    prevalence : Prevalence
        `p` is ``P(K >= k)`` for K binomial (n, alpha); NaN where n is 0.
    """
    if p.ndim != 2:
        raise ValueError(f"p has the shape {p.shape}, but must be (n_participants, n_columns).")
    for name, value in (("alpha", alpha), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value}, but must lie between 0 and 1.")
    n = np.isfinite(p).sum(axis=0)
    k = (p <= alpha).sum(axis=0)
    global_p = np.where(n > 0, binom.sf(k - 1, n, alpha), np.nan)
    pairs, place = np.unique(np.stack([k, n]), axis=1, return_inverse=True)
    found = np.array([_posterior(int(one), int(of), alpha, confidence) for one, of in pairs.T]).reshape(-1, 3)
    most, low, high = found[place.ravel()].T
    return Prevalence(k, n, global_p, most, low, high, alpha, confidence)


def _posterior(k: int, n: int, alpha: float, confidence: float) -> tuple[float, float, float]:
    """Mode and shortest interval of the prevalence after k of n participants were significant."""
    if n == 0:
        return float("nan"), float("nan"), float("nan")
    posterior = beta(k + 1, n - k + 1)
    below = posterior.cdf(alpha)

    def quantile(share: float) -> float:
        return float(posterior.ppf(below + (1 - below) * share))

    def width(tail: float) -> float:
        return quantile(min(1.0, tail + confidence)) - quantile(tail)

    # One peak: the interval starts at a border, or where the width is least.
    spare = 1 - confidence
    inner = minimize_scalar(width, bounds=(0, spare), method="bounded", options={"xatol": 1e-9}).x
    tail = min((0.0, float(inner), spare), key=width)
    low, high = ((quantile(share) - alpha) / (1 - alpha) for share in (tail, min(1.0, tail + confidence)))
    return max(0.0, (k / n - alpha) / (1 - alpha)), max(0.0, low), min(1.0, high)


def _test_columns(a: FloatArray, b: FloatArray, test: ColumnTest, seed: int) -> GroupTest:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"The scores have the shapes {a.shape} and {b.shape}; both must be 2-D and equal.")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    mean, p, smallest = np.full((3, difference.shape[1]), np.nan)
    present = np.isfinite(difference)
    for people, columns in _same_people(present):
        part = difference[np.ix_(people, columns)]
        mean[columns] = part.mean(axis=0)
        p[columns] = test(part, seed)
        smallest[columns] = _smallest_p(len(people))
    return GroupTest(mean, p, present.sum(axis=0), smallest)


def _smallest_p(n_people: int) -> float:
    """All signs alike, and its mirror image, of 2^n patterns; one of the random patterns beyond those tried all."""
    exact = 2.0 ** (1 - n_people)
    return exact if n_people <= EXACT_UP_TO else max(exact, 1 / (1 + N_RANDOM))


def _same_people(present: BoolArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Participants and the columns that have just these, a set at a time; columns without any are left out."""
    patterns, place = np.unique(present, axis=1, return_inverse=True)
    for index, pattern in enumerate(patterns.T):
        if pattern.any():
            yield np.flatnonzero(pattern), np.flatnonzero(place.ravel() == index)


def _wilcoxon_p(difference: FloatArray, seed: int) -> FloatArray:
    size = np.sort(np.abs(difference), axis=0)
    tied = (size[:1] == 0).any(axis=0) | (np.diff(size, axis=0) == 0).any(axis=0)
    p: FloatArray = np.ones(difference.shape[1])
    if not tied.all():
        p[~tied] = wilcoxon(difference[:, ~tied], axis=0).pvalue
    if tied.any():
        p[tied] = _sign_flip_p(_signed_ranks(difference[:, tied]), seed)
    return p


def _signed_ranks(difference: FloatArray) -> FloatArray:
    """Mean ranks of the sizes of the differences that are not 0, with their signs; 0 stays 0."""
    n_zero = np.count_nonzero(difference == 0, axis=0)
    ranks: FloatArray = np.sign(difference) * (rankdata(np.abs(difference), axis=0) - n_zero)
    return ranks


def _sign_flip_p(difference: FloatArray, seed: int) -> FloatArray:
    signs, observed_is_among = _signs(len(difference), seed)
    p: FloatArray = np.empty(difference.shape[1])
    for start in range(0, len(p), TILE_COLUMNS):
        part = difference[:, start : start + TILE_COLUMNS]
        slack = TIE * np.abs(part).sum(axis=0)
        reached = np.count_nonzero(np.abs(signs @ part) >= np.abs(part.sum(axis=0)) - slack, axis=0)
        extra = 0 if observed_is_among else 1
        p[start : start + TILE_COLUMNS] = (extra + reached) / (extra + len(signs))
    return p


def _signs(n: int, seed: int) -> tuple[FloatArray, bool]:
    """Sign patterns, one a row: all that differ by more than a common sign, or random ones."""
    if n > EXACT_UP_TO:
        return np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), size=(N_RANDOM, n)), False
    bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n)
    return 1.0 - 2.0 * (bits & 1), True
