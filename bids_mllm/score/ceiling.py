"""Noise ceilings: the correlation that a perfect model would reach, from repeats or from other participants.

The *reliability* rho of a response is the share of its variance that is the same at every viewing; a prediction
equal to that part correlates ``sqrt(rho)`` with the response, the ceiling. Estimates of a reliability near zero
come out negative at times, and the ceiling is NaN there: what remains is their upper part, which biases means
over targets with ``rho < 1 / sqrt(n)``, n independent samples in time, upwards (two viewings, n = 500: by 0.17
at rho = 0, by 0.01 at 0.05).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np

from bids_mllm.exceptions import DesignError
from bids_mllm.records import BoolArray, FloatArray, IntArray
from bids_mllm.validation import check_in_allowed

RepeatMethod = Literal["explainable_variance", "split_half"]
Curve = Literal["exponential", "reliability"]

# Float64 values that a block of targets may hold; 64 MB, times three or four for temporaries.
BLOCK_VALUES = 2**23
N_TAUS = 64
MIN_TAU = 0.1
# Largest tau as a multiple of the largest number of predictors; the reasons are in `extrapolate_ceiling`.
MAX_TAU: dict[Curve, float] = {"exponential": 1.0, "reliability": 10.0}


@dataclass(frozen=True)
class ExtrapolatedCeiling:
    """Ceiling of each target for infinitely many predicting participants.

    Attributes
    ----------
    ceiling, tau : (n_targets,) float
        Median over bootstraps of the asymptote (a correlation) and of the scale (in participants).
    low, high : (n_targets,) float
        Ends of the 95 % bootstrap interval of the ceiling: 2.5th and 97.5th percentile.
    """

    ceiling: FloatArray
    tau: FloatArray
    low: FloatArray
    high: FloatArray


def explainable_variance(repeats: FloatArray, *, bias_correction: bool = True) -> FloatArray:
    """Share of the variance of a single viewing that repeats.

    Each repeat is z-scored over time. With ``residual = response - mean over repeats``,
    ``EV = 1 - var(residual) / var(response)``, which counts ``1 / n`` of the noise as signal since the mean
    holds it; the correction ``EV - (1 - EV) / (n - 1)`` makes it unbiased. For z-scored repeats it then equals
    the mean correlation of all pairs of repeats. Sources: Sahani & Linden 2003 (NeurIPS 15); Hsu, Borst &
    Theunissen 2004 (Network 15:91); Schoppe et al. 2016 (Front. Comput. Neurosci. 10:10).

    Parameters
    ----------
    repeats : (n_repeats, n_times, n_targets) float
        Responses to the same stimulus, rows in the same order; leave rows out that are missing in any repeat.
    bias_correction
        Without it, EV of pure noise is ``1 / n_repeats``.

    Returns
    -------
    ev : (n_targets,) float
        From ``-1 / (n - 1)`` to 1, at or below 0 where nothing repeats; NaN where a repeat is constant or not
        finite.
    """
    n_repeats = _count(repeats, "viewings of the same film")
    ev: FloatArray = _over_blocks(repeats, lambda correlations: correlations.mean(axis=(0, 1)), n_rows=1)[0]
    corrected: FloatArray = ev - (1 - ev) / (n_repeats - 1)
    return corrected if bias_correction else ev


def split_half_reliability(repeats: FloatArray, *, n_splits: int = 100, seed: int = 0) -> FloatArray:
    """Reliability of the mean of all repeats, from correlations of half means.

    Halves of ``a`` and ``b`` viewings whose single reliability is rho correlate
    ``r = rho * sqrt(a * b / ((1 + (a - 1) * rho) * (1 + (b - 1) * rho)))``. The mean of r over splits is
    solved for rho, which is exact for unequal halves too (an odd number of repeats), and Spearman-Brown's
    prophecy ``n * rho / (1 + (n - 1) * rho)`` gives the mean of all n; ``2 * r / (1 + r)`` for equal halves
    (Spearman 1910, Br. J. Psychol. 3:271; Brown 1910, Br. J. Psychol. 3:296).

    Parameters
    ----------
    repeats : (n_repeats, n_times, n_targets) float
        As in `explainable_variance`; each repeat is z-scored.
    n_splits, seed
        All distinct splits are used when there are no more than this, else so many drawn with `seed`.

    Returns
    -------
    reliability : (n_targets,) float
        In (0, 1]; NaN where it is not positive, and where a repeat is constant or not finite.
    """
    n_repeats = _count(repeats, "viewings of the same film")
    halves = _half_masks(n_repeats, n_splits, seed)

    def mean_over_splits(correlations: FloatArray) -> FloatArray:
        mean: FloatArray = np.mean([_half_correlation(correlations, half) for half in halves], axis=0)
        return mean

    r: FloatArray = _over_blocks(repeats, mean_over_splits, n_rows=1)[0]
    return _reliability_of_mean(_single_reliability(r, n_repeats // 2, n_repeats - n_repeats // 2), n_repeats)


def repeat_ceiling(repeats: FloatArray, *, method: RepeatMethod = "explainable_variance", averaged: bool) -> FloatArray:
    """Highest correlation that any prediction can have on average, from repeated viewings.

    ``sqrt(rho)`` against one viewing and ``sqrt(n * rho / (1 + (n - 1) * rho))`` against the mean of n, with
    rho the reliability of one viewing. The estimate of rho is unbiased; its root is too low by about
    ``var(rho) / (8 * rho**1.5)``, below 0.01 from rho = 0.1 on with 500 independent rows.

    Parameters
    ----------
    repeats : (n_repeats, n_times, n_targets) float
        As in `explainable_variance`.
    method
        The two agree closely; `split_half` uses halves of about equal size.
    averaged
        Whether predictions are scored against the mean of all z-scored viewings or against one viewing.

    Returns
    -------
    ceiling : (n_targets,) float
        In (0, 1]; NaN where the reliability is not positive, constant or not finite.
    """
    check_in_allowed(method, ("explainable_variance", "split_half"), "method")
    n = _count(repeats, "viewings of the same film")
    if method == "explainable_variance":
        ev = explainable_variance(repeats)
        single = np.where(ev > 0, ev, np.nan)
        return np.sqrt(_reliability_of_mean(single, n) if averaged else single)
    mean = split_half_reliability(repeats)
    return np.sqrt(mean if averaged else mean / (n - (n - 1) * mean))


def all_subsets(participants: Sequence[str], *, exclude: str) -> tuple[tuple[str, ...], ...]:
    """All non-empty sets of the participants other than `exclude`, from which it may be predicted.

    Parameters
    ----------
    participants
        Labels; their order does not matter. N others make ``2**N - 1`` sets.
    exclude
        The participant to be predicted, one of `participants`.

    Returns
    -------
    subsets
        By size, and in alphabetical order within a size; empty for a participant alone.
    """
    check_in_allowed(exclude, participants, "exclude")
    others = sorted(set(participants) - {exclude})
    return tuple(subset for size in range(1, len(others) + 1) for subset in combinations(others, size))


def extrapolate_ceiling(
    n_predictors: IntArray, scores: FloatArray, *, curve: Curve = "exponential", n_bootstraps: int = 100, seed: int = 0
) -> ExtrapolatedCeiling:
    """Ceiling from the prediction of one participant by ever more others.

    ``exponential`` fits ``v = v0 * (1 - exp(-x / tau))`` to scores v from x participants (Schrimpf et al. 2021,
    PNAS 118:e2105646118; arXiv 2506.08277), ``reliability`` fits ``v = v0 * sqrt(x / (x + tau))``, Spearman-Brown's
    prophecy attenuated by the participant's own noise. The ceiling is the median of v0 over bootstraps. Each
    bootstrap draws subsets with replacement within every size, so that no size is lost, and fits the mean scores
    of the sizes, each with equal weight, by least squares with ``0 <= v0 <= 1``: v0 in closed form given tau.

    When participants share a signal and have independent noise, the mean of x others predicts at exactly the
    reliability curve, with ``v0 = sqrt(rho)`` of the participant predicted and ``tau = (1 - rho) / rho`` of the
    others, who need not be equally reliable. That curve nears its limit as ``1 / x``, an exponential far faster,
    so the exponential asymptote is below the true ceiling however long the recording (by 0.06 to 0.15 with sizes
    1 to 3, most at low reliability), and ratios to it are too high. Use it to compare with published values.
    ``reliability`` is unbiased while errors of the scores are small against their growth (sizes 1 to 3 and
    tau = 4: independent errors of 2 % of v0 make its mean over targets 3 % too high, of 5 % 15 %, its median is
    right), and at low reliability twice as noisy. No curve gives back what a regression on many columns loses to
    the error of its weights, more with every participant: ridge on the same place in each participant, or their
    mean, reaches the ceiling within 0.02 (1,000 rows); ridge on 40 voxels of each with 20 dimensions in common
    stays 0.10 below (2,000 rows, rho = 0.2).

    tau is bounded since growth in a straight line holds no asymptote. Exponential: ``tau <= max(x)``, a ceiling
    of at most 1.58 times the curve at max(x); independent noise gives no growth faster than ``sqrt(x)``, where
    tau is about half of max(x). Reliability: ``tau <= 10 * max(x)``, at most 3.3 times. The interval is of the
    choice of subsets alone; these overlap, and the largest size has only one, so that it is too narrow: with 7
    subsets of independent noise it holds the truth in 4 of 10 targets.

    Parameters
    ----------
    n_predictors : (n_subsets,) int
        How many other participants each subset holds, at least 1.
    scores : (n_subsets, n_targets) float
        Held-out r of predicting the participant from each subset; NaN where there is none.
    curve
        Which of the two curves.
    n_bootstraps, seed
        How many resamples, and the seed they are drawn with.

    Returns
    -------
    extrapolated
        NaN where fewer than two sizes have finite scores, and where their mean is not positive.
    """
    check_in_allowed(curve, ("exponential", "reliability"), "curve")
    _check_predictors(n_predictors, scores, n_bootstraps)
    result = np.full((4, scores.shape[1]), np.nan)
    sizes = np.unique(n_predictors)
    if len(sizes) >= 2:
        draws = _draws_within_sizes(n_predictors, n_bootstraps, seed)
        for block in _blocks(scores.shape[1], 6 * N_TAUS + 4 * n_bootstraps):
            result[:, block] = _extrapolate_block(draws, sizes, scores[:, block].astype(np.float64), curve)
    return ExtrapolatedCeiling(*result)


def leave_one_out_ceiling(series: FloatArray, *, target: int | None = None, correct: bool = True) -> FloatArray:
    """Ceiling of each participant from the mean of the others.

    The correlation c of a participant with the mean of the m z-scored others is a lower bound of the ceiling,
    since the others' mean is noisy too. When all have the same reliability rho,
    ``c**2 = rho * m * rho / (1 + (m - 1) * rho)``; solved for rho, the corrected ceiling is ``sqrt(rho)``
    (with two participants, ``sqrt(c)``). What is consistent in one participant alone is noise here.
    Where participants differ in reliability, the corrected ceilings are pulled towards a common one, too high for
    the noisiest (0.08 at rho = 0.2 with three others at 0.5), though about right on average over participants;
    `extrapolate_ceiling` with the reliability curve is free of that.

    Parameters
    ----------
    series : (n_participants, n_times, n_targets) float
        Responses to the same stimulus in a common space.
    target
        Index of the only participant wanted; all when None.
    correct
        Whether to correct for the noise of the others' mean; False gives c itself.

    Returns
    -------
    ceiling : (n_participants, n_targets) float
        One row when `target` is given. NaN where the participant's own series or those of all others are
        constant or not finite (only usable others enter the mean), and, when corrected, where c is not positive.
    """
    participants = range(_count(series, "participants"))
    rows = participants if target is None else [participants[target]]

    def ceilings(correlations: FloatArray) -> FloatArray:
        usable = np.isfinite(np.einsum("iiv->iv", correlations))
        return np.array([_with_others(np.nan_to_num(correlations), usable, row, correct) for row in rows])

    return _over_blocks(series, ceilings, n_rows=len(rows))


def normalized_correlation(r: FloatArray, ceiling: FloatArray, *, threshold: float = 0.05) -> FloatArray:
    """Correlation as a share of its ceiling, ``r / ceiling``: not ``(r / ceiling)**2``, the share of variance.

    Not clipped: a ratio above 1 says that the ceiling was estimated too low there, or r too high, and clipping
    it would bias means.

    Parameters
    ----------
    r : (..., n_targets) float
    ceiling : (n_targets,) float
        Or any shape that broadcasts against `r`.
    threshold
        Smallest ceiling that is divided by, above 0; arXiv 2506.08277 uses 0.05.

    Returns
    -------
    normalized : (..., n_targets) float
        NaN where the ceiling is not finite or below the threshold.
    """
    if threshold <= 0:
        raise ValueError(f"threshold is {threshold}, but must be above 0 since correlations are divided by ceilings.")
    usable = np.isfinite(ceiling) & (ceiling >= threshold)
    return r / np.where(usable, ceiling, np.nan)


def _count(series: FloatArray, what: str) -> int:
    """Return the length of the first axis, or raise when there are fewer than two."""
    if len(series) < 2:
        raise DesignError(f"A noise ceiling needs at least two {what}, not {len(series)}.")
    return len(series)


def _blocks(n_targets: int, values_per_target: int) -> Iterator[slice]:
    """Slices of targets that hold BLOCK_VALUES values at most, or one target."""
    size = max(1, BLOCK_VALUES // max(1, values_per_target))
    for start in range(0, n_targets, size):
        yield slice(start, min(start + size, n_targets))


def _over_blocks(series: FloatArray, function: Callable[[FloatArray], FloatArray], *, n_rows: int) -> FloatArray:
    """Apply `function` of the (n, n, n_block) correlations to blocks of targets; return (n_rows, n_targets)."""
    n_series, n_times, n_targets = series.shape
    result: FloatArray = np.empty((n_rows, n_targets))
    for block in _blocks(n_targets, n_series * n_times):
        result[:, block] = function(_correlations(series[:, :, block]))
    return result


def _correlations(series: FloatArray) -> FloatArray:
    """Pearson r of all pairs of series, (n, n, n_targets), NaN for a series that is constant or not finite."""
    finite: BoolArray = np.all(np.isfinite(series), axis=1)
    centred = np.where(finite[:, None], series, 0.0).astype(np.float64, copy=False)
    usable = finite & (centred.max(axis=1) > centred.min(axis=1))
    centred -= centred.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.einsum("itv,itv->iv", centred, centred))
    centred /= np.where(usable, norm, np.nan)[:, None]
    correlations = np.empty((len(series), *centred.shape[::2]))
    for i, first in enumerate(centred):
        for j, second in enumerate(centred[: i + 1]):
            correlations[i, j] = correlations[j, i] = np.einsum("tv,tv->v", first, second)
    return correlations


def _reliability_of_mean(single: FloatArray, n: int) -> FloatArray:
    """Spearman-Brown: reliability of the mean of n viewings."""
    reliability: FloatArray = n * single / (1 + (n - 1) * single)
    return reliability


def _single_reliability(r: FloatArray, a: int | IntArray, b: int | IntArray) -> FloatArray:
    """Reliability rho of one viewing from the correlation r of the means of a and of b others, NaN for r <= 0.

    The positive root of ``(a b - r^2 (a-1) (b-1)) rho^2 - r^2 (a+b-2) rho - r^2 = 0``, which is
    ``r^2 = a rho / (1 + (a-1) rho) * b rho / (1 + (b-1) rho)`` multiplied out.
    """
    r = np.where(r > 0, r, np.nan)
    root = np.sqrt((r * (a - b)) ** 2 + 4 * a * b)
    reliability: FloatArray = r * (r * (a + b - 2) + root) / (2 * (a * b - r**2 * (a - 1) * (b - 1)))
    return reliability


def _half_masks(n_repeats: int, n_splits: int, seed: int) -> BoolArray:
    """Members of the first half in each split, (n_splits, n_repeats); the first half is never the larger."""
    size = n_repeats // 2
    mirrored = n_repeats == 2 * size
    if comb(n_repeats, size) // (2 if mirrored else 1) > n_splits:
        rng = np.random.default_rng(seed)
        return rng.permuted(np.tile(np.arange(n_repeats) < size, (n_splits, 1)), axis=1)
    halves = [half for half in combinations(range(n_repeats), size) if not mirrored or half[0] == 0]
    return np.array([np.isin(np.arange(n_repeats), half) for half in halves])


def _half_correlation(correlations: FloatArray, half: BoolArray) -> FloatArray:
    """Correlation of the mean of the series in `half` with the mean of the rest, (n_targets,)."""
    first, cross, second = (
        correlations[np.ix_(a, b)].sum(axis=(0, 1)) for a, b in ((half, half), (half, ~half), (~half, ~half))
    )
    variances = first * second
    r: FloatArray = cross / np.sqrt(np.where(variances > 0, variances, np.nan))
    return r


def _with_others(correlations: FloatArray, usable: BoolArray, row: int, correct: bool) -> FloatArray:
    """Ceiling of one series from the mean of the others; `correlations` are 0 where not `usable` (n, n_targets)."""
    others = np.arange(len(usable)) != row
    variance = correlations[np.ix_(others, others)].sum(axis=(0, 1))
    defined = usable[row] & (variance > 0)
    r = correlations[row, others].sum(axis=0) / np.sqrt(np.where(defined, variance, np.nan))
    return np.sqrt(_single_reliability(r, 1, usable[others].sum(axis=0))) if correct else r


def _check_predictors(n_predictors: IntArray, scores: FloatArray, n_bootstraps: int) -> None:
    """Raise when the subsets cannot be paired with scores or resampled."""
    if n_predictors.shape != scores.shape[:1]:
        raise ValueError(f"n_predictors has {len(n_predictors)} subsets and scores has {len(scores)}; both need all.")
    if (n_predictors < 1).any():
        raise ValueError(f"n_predictors holds {n_predictors.min()}, but every subset needs at least one participant.")
    if n_bootstraps < 1:
        raise ValueError(f"n_bootstraps is {n_bootstraps}, but must be at least 1.")


def _draws_within_sizes(n_predictors: IntArray, n_bootstraps: int, seed: int) -> FloatArray:
    """How often each subset is drawn, (1 + n_bootstraps, n_sizes, n_subsets); the first draw has each once."""
    rng = np.random.default_rng(seed)
    sizes = np.unique(n_predictors)
    draws = np.zeros((1 + n_bootstraps, len(sizes), len(n_predictors)))
    for row, size in enumerate(sizes):
        members = np.flatnonzero(n_predictors == size)
        draws[0, row, members] = 1
        equal = np.full(len(members), 1 / len(members))
        draws[1:, row, members] = rng.multinomial(len(members), equal, size=n_bootstraps)
    return draws


def _extrapolate_block(draws: FloatArray, sizes: IntArray, scores: FloatArray, curve: Curve) -> FloatArray:
    """Ceiling, tau, low and high of a block of targets, (4, n_block)."""
    finite = np.isfinite(scores)
    means = _mean_scores(draws[0], scores, finite)
    valid = (np.isfinite(means).sum(axis=0) >= 2) & (np.nan_to_num(means).sum(axis=0) > 0)
    result = np.full((4, scores.shape[1]), np.nan)
    if not valid.any():
        return result
    means, scores, finite = means[:, valid], scores[:, valid], finite[:, valid]
    taus = np.geomspace(MIN_TAU, MAX_TAU[curve] * sizes.max(), N_TAUS)
    fits = np.empty((len(draws) - 1, 2, scores.shape[1]))
    for fit, draw in zip(fits, draws[1:], strict=True):
        drawn = _mean_scores(draw, scores, finite)
        # A size of which only subsets without a score were drawn keeps the mean of those that have one.
        fit[:] = _fit_curve(np.where(np.isfinite(drawn), drawn, means), sizes, taus, curve)
    low, median, high = np.percentile(fits[:, 0], [2.5, 50, 97.5], axis=0)
    values = np.array([median, np.median(fits[:, 1], axis=0), low, high])
    result[:, valid] = np.where(median > 0, values, np.nan)
    return result


def _mean_scores(draw: FloatArray, scores: FloatArray, finite: BoolArray) -> FloatArray:
    """Mean of the finite scores of each size, (n_sizes, n_targets), weighted by how often each was drawn."""
    count = draw @ finite
    return draw @ np.where(finite, scores, 0) / np.where(count > 0, count, np.nan)


def _growth(x: IntArray, tau: FloatArray, curve: Curve) -> FloatArray:
    """The curve with an asymptote of 1 at x participants, x and tau broadcast."""
    grown: FloatArray = 1 - np.exp(-x / tau) if curve == "exponential" else np.sqrt(x / (x + tau))
    return grown


def _fit_curve(means: FloatArray, sizes: IntArray, taus: FloatArray, curve: Curve) -> tuple[FloatArray, FloatArray]:
    """Least-squares v0 and tau, each (n_targets,), of mean scores (n_sizes, n_targets), NaN where a size is absent.

    Given tau, with growth f, ``v0 = sum(f * v) / sum(f^2)`` at least 0, and the loss is ``-v0 * sum(f * v)`` but
    for a constant. A parabola through the best of the log-spaced `taus` and its neighbours refines tau. Where
    that v0 is above 1, the best tau for ``v0 = 1`` is taken, with the loss ``sum(f^2) - 2 * sum(f * v)``.
    """
    present = np.isfinite(means).astype(np.float64)
    means = np.where(present > 0, means, 0)
    growth = _growth(sizes, taus[:, None], curve)
    product, square = growth @ means, growth**2 @ present
    tau = np.exp(_parabola_minimum(np.log(taus), -(np.maximum(product, 0) ** 2) / square))
    fitted = _growth(sizes[:, None], tau, curve) * present
    v0 = np.maximum((fitted * means).sum(axis=0) / (fitted**2).sum(axis=0), 0)
    above = v0 > 1
    tau[above] = np.exp(_parabola_minimum(np.log(taus), square[:, above] - 2 * product[:, above]))
    return np.minimum(v0, 1), tau


def _parabola_minimum(grid: FloatArray, loss: FloatArray) -> FloatArray:
    """Place of the smallest loss (n_grid, n_targets) on an equally spaced grid, refined between its neighbours."""
    centre = np.clip(loss.argmin(axis=0), 1, len(grid) - 2)
    before, at, after = np.take_along_axis(loss, centre + np.array([[-1], [0], [1]]), axis=0)
    slope, curvature = after - before, before - 2 * at + after
    offset = -0.5 * slope / np.where(curvature > 0, curvature, np.inf)
    refined: FloatArray = grid[centre] + np.clip(offset, -1, 1) * (grid[1] - grid[0])
    return refined
