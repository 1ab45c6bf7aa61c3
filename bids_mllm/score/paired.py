"""Does one model predict a participant better than another: sign flips of parts of the correlation."""

from dataclasses import dataclass

import numpy as np

from bids_mllm.exceptions import DesignError
from bids_mllm.records import BoolArray, FloatArray, IntArray
from bids_mllm.score.permutation import TIE, bounds_of, check_scored, cosine_transform, run_rows, standardize


@dataclass(frozen=True)
class BlockScores:
    """What each block adds to the correlation of one model.

    Attributes
    ----------
    products : (n_blocks, n_targets) float32
        Add up to r over blocks; NaN for targets that are constant or not finite.
    energies : (n_blocks, n_targets) float32
        Share of each block in the variance of the predictions; add up to 1.
    """

    products: FloatArray
    energies: FloatArray


@dataclass(frozen=True)
class PairedTest:
    """Difference of two models in one participant.

    Attributes
    ----------
    difference : (n_targets,) float
        r of the first minus r of the second model.
    p : (n_targets,) float
        Two-sided, each target for itself.
    p_max : (n_targets,) float
        Two-sided and family-wise, against the maximum over targets of ``|difference| / standard error``.
    smallest_p
        Smallest attainable p: ``max(1 / (1 + n_permutations), 2^(1 - n_blocks))``.
    n_permutations, n_blocks
        Random sign patterns, and the blocks that they flip.
    """

    difference: FloatArray
    p: FloatArray
    p_max: FloatArray
    smallest_p: float
    n_permutations: int
    n_blocks: int


def block_scores(
    Y: FloatArray,
    predictions: FloatArray,
    runs: IntArray,
    *,
    block_length: int = 10,
    max_block_bytes: int = 2**28,
) -> BlockScores:
    """Cut a correlation into parts that are uncorrelated with one another although the series are not.

    Blocks of contiguous rows are correlated across their edges (flipping their signs gave false positives
    of 0.08 to 0.11 at 0.05 in simulated BOLD). Here a block is a set of frequencies instead: each run is
    z-scored and taken through the orthonormal discrete cosine transform, ``r = sum_k x_k y_k`` over its
    coefficients, which are nearly uncorrelated for series with a decaying autocorrelation (Ahmed, Natarajan
    and Rao 1974). A run of n rows has ``m = max(1, n // block_length)`` blocks, and coefficient k belongs to
    block ``k mod m``: every block samples the whole spectrum, so that models that differ in smoothness do
    not differ in single blocks for this reason alone. No row is left out.

    Parameters
    ----------
    Y, predictions : (n_rows, n_targets) float
        Held-out rows in time order within each run.
    runs : (n_rows,) int
        Run (or continuous segment) of each row; alone, with `block_length`, it settles the blocks.
    block_length
        Coefficients of a block.
    max_block_bytes
        Bound on the working memory beside the result; targets are taken in tiles that fit.

    Returns
    -------
    scores : BlockScores
        Two arrays (n_blocks, n_targets), blocks run after run.
    """
    check_scored(Y, predictions, runs)
    if block_length < 1:
        raise ValueError(f"block_length is {block_length}, but must be at least 1.")
    rows = run_rows(runs)
    order = np.concatenate(rows)
    bounds = bounds_of([len(one) for one in rows])
    blocks = bounds_of([max(1, len(one) // block_length) for one in rows])
    shape = (blocks[-1][1], Y.shape[1])
    products, energies = np.full((2, *shape), np.nan, dtype=np.float32)
    width = max(1, max_block_bytes // (64 * len(order)))
    for start in range(0, shape[1], width):
        tile = slice(start, start + width)
        y, valid_y = standardize(Y[order, tile], bounds)
        x, valid_x = standardize(predictions[order, tile], bounds)
        for (first, last), (block, end) in zip(bounds, blocks, strict=True):
            x_k, y_k = cosine_transform(x[first:last]), cosine_transform(y[first:last])
            products[block:end, tile] = _interleaved_sums(x_k * y_k, end - block)
            energies[block:end, tile] = _interleaved_sums(x_k**2, end - block)
        products[:, tile][:, ~(valid_x & valid_y)] = np.nan
        energies[:, tile][:, ~valid_x] = np.nan
    return BlockScores(products, energies)


def _interleaved_sums(values: FloatArray, n_blocks: int) -> FloatArray:
    """Sums (n_blocks, n_targets) of the rows k with the same ``k mod n_blocks``."""
    n_full = -(-len(values) // n_blocks)
    padded = np.zeros((n_full * n_blocks, values.shape[1]))
    padded[: len(values)] = values
    sums: FloatArray = padded.reshape(n_full, n_blocks, -1).sum(axis=0)
    return sums


def paired_sign_flip(
    scores_a: BlockScores,
    scores_b: BlockScores,
    *,
    n_permutations: int = 5000,
    seed: int = 0,
    max_block_bytes: int = 2**28,
) -> PairedTest:
    r"""Test within one participant whether two models predict equally well.

    If they do, the part that each block adds to the difference of the correlations is as likely negative
    as positive. That part is

    .. math:: d_i = p^a_i - p^b_i - \frac{\bar r_{-i}}{2} (e^a_i - e^b_i)

    with products p and energies e of `block_scores` and the mean r of both models from all blocks but i: the
    influence function of Pearson's r (Devlin, Gnanadesikan and Kettenring 1975) under the hypothesis of equal
    r. Without its last term the test of two models that predict well is far too strict (0.01 at 0.05); with
    block i in the mean it is slightly liberal. Each of `n_permutations` random sign patterns, the same for
    all targets, gives ``sum_i s_i d_i`` by a matrix product, and
    ``p = (1 + #{|flipped| >= |difference|}) / (1 + n_permutations)``.

    Parameters
    ----------
    scores_a, scores_b
        Block scores (n_blocks, n_targets) of two models on the same rows of `Y`.
    n_permutations
        Random sign patterns.
    seed
        Of the patterns.
    max_block_bytes
        Bound on the working memory; targets are taken in tiles that fit.

    Returns
    -------
    test : PairedTest
        Difference and p-values; NaN where either model has no correlation.
    """
    n_blocks, n_targets = _check_paired(scores_a, scores_b, n_permutations)
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], dtype=np.float32), size=(n_permutations, n_blocks))
    difference, statistic = np.full((2, n_targets), np.nan)
    reached: IntArray = np.zeros(n_targets, dtype=np.int64)
    null_max: FloatArray = np.zeros(n_permutations)
    width = max(1, max_block_bytes // (16 * n_permutations + 64 * n_blocks))
    for start in range(0, n_targets, width):
        tile = slice(start, start + width)
        parts, difference[tile], valid = _difference_parts(scores_a, scores_b, tile)
        norm = np.sqrt((parts**2).sum(axis=0))
        parts *= np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
        statistic[tile] = np.where(valid, np.abs(parts.sum(axis=0)), np.nan)
        flipped = np.abs(signs @ parts.astype(np.float32))
        reached[tile] = np.count_nonzero(flipped >= statistic[tile] - TIE, axis=0)
        np.maximum(null_max, flipped.max(axis=1), out=null_max)
    reached_max = n_permutations - np.searchsorted(np.sort(null_max), statistic - TIE, side="left")
    p, p_max = (
        np.where(np.isfinite(statistic), (1 + count) / (1 + n_permutations), np.nan) for count in (reached, reached_max)
    )
    smallest = max(1 / (1 + n_permutations), 2.0 ** (1 - n_blocks))
    return PairedTest(difference, p, p_max, smallest, n_permutations, n_blocks)


def region_sign_flip(
    scores_a: BlockScores,
    scores_b: BlockScores,
    regions: BoolArray,
    *,
    n_permutations: int = 5000,
    seed: int = 0,
    max_block_bytes: int = 2**28,
) -> PairedTest:
    """Test whether two models predict a region equally well on average over its targets.

    The parts of :func:`paired_sign_flip` are averaged over the targets of a region that both models have, and the
    signs of these averages flipped: targets of one region count as one, however alike they are.

    Parameters
    ----------
    scores_a, scores_b
        As for :func:`paired_sign_flip`.
    regions : (n_regions, n_targets) bool
        Targets of each region.
    n_permutations, seed, max_block_bytes
        As for :func:`paired_sign_flip`.

    Returns
    -------
    test : PairedTest
        One entry a region: the mean difference of r and its p; NaN for a region without targets.
    """
    n_blocks, n_targets = _check_paired(scores_a, scores_b, n_permutations)
    total = np.zeros((n_blocks, len(regions)))
    count = np.zeros(len(regions))
    width = max(1, max_block_bytes // (64 * n_blocks))
    for start in range(0, n_targets, width):
        tile = slice(start, start + width)
        parts, _, valid = _difference_parts(scores_a, scores_b, tile)
        inside = (regions[:, tile] & valid).astype(np.float64)
        total += parts @ inside.T
        count += inside.sum(axis=1)
    mean: FloatArray = np.full(total.shape, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    nothing = np.zeros_like(mean)
    return paired_sign_flip(
        BlockScores(mean, nothing), BlockScores(nothing, nothing), n_permutations=n_permutations, seed=seed
    )


def _check_paired(scores_a: BlockScores, scores_b: BlockScores, n_permutations: int) -> tuple[int, int]:
    shape_a, shape_b = scores_a.products.shape, scores_b.products.shape
    if shape_a != shape_b:
        raise ValueError(f"The block scores have the shapes {shape_a} and {shape_b}, but must come from the same rows.")
    if n_permutations < 1:
        raise ValueError(f"n_permutations is {n_permutations}, but must be at least 1.")
    n_blocks, n_targets = shape_a
    if n_blocks < 2:
        raise DesignError(f"There is {n_blocks} block, but a sign-flip test needs at least 2; give more rows.")
    return n_blocks, n_targets


def _difference_parts(
    scores_a: BlockScores, scores_b: BlockScores, tile: slice
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Parts d_i (n_blocks, n_targets) with 0 for NaN, the difference of r, and where it is defined.

    Leaving out the own block makes the parts add up to slightly more or less than the difference; what is
    missing is spread evenly, so that they add up to it.
    """
    p_a, p_b, e_a, e_b = (
        values[:, tile].astype(np.float64)
        for values in (scores_a.products, scores_b.products, scores_a.energies, scores_b.energies)
    )
    mean = (p_a + p_b) / 2
    without_own = (mean.sum(axis=0) - mean) * (len(mean) / (len(mean) - 1))
    parts = p_a - p_b - without_own / 2 * (e_a - e_b)
    difference = (p_a - p_b).sum(axis=0)
    parts += (difference - parts.sum(axis=0)) / len(parts)
    valid = np.isfinite(parts).all(axis=0)
    return np.where(valid, parts, 0.0), np.where(valid, difference, np.nan), valid
