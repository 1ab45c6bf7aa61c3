"""Is a correlation above chance: permutation tests that respect the autocorrelation of fMRI.

Neither test refits or permutes anything. A permutation only chooses which products of a block (or a shift)
of the predictions with one of `Y` are added, so all products are made once for each target, and a
permutation is a sum of a few of their rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.fft import dct, irfft, rfft

from bids_mllm.exceptions import DesignError
from bids_mllm.records import BoolArray, FloatArray, IntArray
from bids_mllm.validation import check_in_allowed, check_same_samples

METHODS = ("block", "circular")
MIN_BLOCKS = 5
MIN_SHIFTS = 100
# Values that differ by less are ties, and a tie counts against the finding: null values are float32.
TIE = 1e-5
# Wider tiles fall out of the cache of a core.
TILE_TARGETS = 64

Bounds = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PermutationTest:
    """Correlations and their permutation p-values; NaN for targets that are constant or not finite.

    Attributes
    ----------
    r : (n_targets,) float
        Correlation of the rows concatenated over runs, both sides z-scored within each run.
    statistic : (n_targets,) float
        What is compared: r over its standard error under independence; r itself where `studentized` is off.
    p : (n_targets,) float
        One-sided (greater), each target for itself: ``(1 + #{null >= statistic}) / (1 + n_permutations)``.
    p_max : (n_targets,) float
        The same against the maximum over targets of each permutation: family-wise error is controlled.
    null_max : (n_permutations,) float
        That maximum: the map of the statistic is thresholded at its quantile ``1 - alpha``.
    inflation : (n_targets,) float
        Standard error of r under independence over that of the permutations; 1 where `studentized` is off.
    n_permutations, method, block_length
        As asked for.
    n_rows
        Rows that entered, in the observed and the permuted statistic alike.
    exchanged
        ``within runs``, or ``over runs`` where a run has too few blocks to be permuted alone.
    smallest_p
        Smallest attainable p.
    """

    r: FloatArray
    statistic: FloatArray
    p: FloatArray
    p_max: FloatArray
    null_max: FloatArray
    inflation: FloatArray
    n_permutations: int
    method: str
    block_length: int
    n_rows: int
    exchanged: str
    smallest_p: float


@dataclass(frozen=True)
class _Scheme:
    """Rows that enter, where runs and exchangeable groups lie among them, and the random draws.

    `whole` are all rows of the runs with their bounds, `kept` the positions among them that enter, `groups`
    bounds among those. `draws` holds one array (n_permutations, n_terms) a group: the rows of its table that
    are added.
    """

    method: str
    block_length: int
    whole: IntArray
    whole_runs: Bounds
    kept: IntArray
    runs: Bounds
    groups: Bounds
    draws: tuple[IntArray, ...]
    arrangements: float


def permutation_test(
    Y: FloatArray,
    predictions: FloatArray,
    runs: IntArray,
    *,
    method: Literal["block", "circular"] = "block",
    block_length: int = 10,
    n_permutations: int = 5000,
    seed: int = 0,
    studentized: bool = True,
    max_block_bytes: int = 2**28,
) -> PermutationTest:
    r"""Test whether predictions of held-out rows correlate with `Y` above chance.

    ``block``: the predictions of each run are cut into blocks of `block_length` rows and the blocks are
    permuted within the run; rows left over at its end do not enter. Where any run has fewer than 5 blocks,
    the blocks of all runs are permuted together. ``circular``: the predictions of each run are shifted
    around by an offset of its own, at least `block_length` rows either way; a run shorter than three times
    that does not enter. All targets get the same permutations.

    Permuting blocks forgets the dependence across the edges of blocks, and shifting around joins the two
    ends of a run, so the plain tests err (false positives 0.03 to 0.09 at 0.05 in simulated BOLD). Both
    sides are therefore studentised, the observed r by its standard error under independence and each null
    value by that of the permutations:

    .. math:: T = r / \sqrt V, \quad T_\pi = (r_\pi - E_\pi) / \sqrt{V_\pi},
        \quad V = \sum_{run} \sum_k \hat x_k^2 \hat y_k^2

    where ``E`` and ``V`` with index pi are the exact mean and variance of r over all permutations, and x_k,
    y_k are the coefficients of the orthonormal discrete cosine transform of a run. It decorrelates series
    with a decaying autocorrelation (Ahmed, Natarajan and Rao 1974) and takes a cosine high-pass without
    leakage; in it Bartlett's variance of a correlation of two autocorrelated series is a sum of products of
    powers. Studentising observed and permuted statistics makes a permutation test valid for dependent series
    (Romano and Tirlea 2022, Journal of Time Series Analysis 43:781; for fMRI compare Afyouni, Smith and
    Nichols 2019, NeuroImage 199:609), and no target dominates the maximum for its autocorrelation. Within a
    run both sides are assumed stationary but for a high-pass.

    Parameters
    ----------
    Y, predictions : (n_rows, n_targets) float
        Held-out rows in time order within each run.
    runs : (n_rows,) int
        Run (or continuous segment) of each row.
    method
        What is exchanged.
    block_length
        Rows of a block; least offset of a shift.
    n_permutations
        Random permutations.
    seed
        Of the permutations.
    studentized
        False gives the plain test, which reproduces published numbers but is not calibrated.
    max_block_bytes
        Bound on the working memory; targets are taken in tiles that fit.

    Returns
    -------
    test : PermutationTest
        Correlations, p-values for each target and family-wise, and how the test was done.
    """
    check_scored(Y, predictions, runs)
    scheme = _scheme(runs, check_in_allowed(method, METHODS, "method"), block_length, n_permutations, seed)
    n_targets = Y.shape[1]
    r, statistic, inflation = np.full((3, n_targets), np.nan)
    reached: IntArray = np.zeros(n_targets, dtype=np.int64)
    null_max: FloatArray = np.full(n_permutations, -np.inf)
    width = _tile_width(scheme, max_block_bytes)
    for start in range(0, n_targets, width):
        tile = slice(start, start + width)
        y, x = Y[scheme.whole, tile], predictions[scheme.whole, tile]
        r[tile], statistic[tile], null, inflation[tile] = _tile_null(x, y, scheme, studentized)
        reached[tile] = np.count_nonzero(null >= statistic[tile] - TIE, axis=0)
        np.maximum(null_max, null[:, np.isfinite(r[tile])].max(axis=1, initial=-np.inf), out=null_max)
    return _summary(r, statistic, reached, null_max, inflation, scheme)


def _summary(
    r: FloatArray,
    statistic: FloatArray,
    reached: IntArray,
    null_max: FloatArray,
    inflation: FloatArray,
    scheme: _Scheme,
) -> PermutationTest:
    valid = np.isfinite(r)
    if not valid.any():
        null_max = np.full(len(null_max), np.nan)
    n_permutations = len(null_max)
    smallest = 1 / (1 + min(n_permutations, scheme.arrangements))
    return PermutationTest(
        r=r,
        statistic=statistic,
        p=_p_of_counts(reached, valid, n_permutations, smallest),
        p_max=_family_wise(statistic, null_max, smallest),
        null_max=null_max,
        inflation=inflation,
        n_permutations=n_permutations,
        method=scheme.method,
        block_length=scheme.block_length,
        n_rows=len(scheme.kept),
        exchanged="within runs" if len(scheme.groups) == len(scheme.runs) else "over runs",
        smallest_p=smallest,
    )


def _p_of_counts(reached: IntArray, valid: BoolArray, n_permutations: int, smallest: float) -> FloatArray:
    return np.where(valid, np.maximum((1 + reached) / (1 + n_permutations), smallest), np.nan)


def _family_wise(statistic: FloatArray, null_max: FloatArray, smallest: float) -> FloatArray:
    """P against the maximum over targets, NaN where the statistic is."""
    reached = len(null_max) - np.searchsorted(np.sort(null_max), statistic - TIE, side="left")
    return _p_of_counts(reached, np.isfinite(statistic), len(null_max), smallest)


def join_tests(parts: Sequence[PermutationTest]) -> PermutationTest:
    """Put together the tests of parts of the targets, on the same rows and with the same permutations.

    The maximum over targets of each permutation is that of all parts.
    """
    by_target = ("r", "statistic", "p", "inflation")
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in by_target}
    # fmax takes a part without a valid target, whose maximum is NaN, for none.
    null_max = np.fmax.reduce([part.null_max for part in parts])
    p_max = _family_wise(joined["statistic"], null_max, parts[0].smallest_p)
    return replace(parts[0], p_max=p_max, null_max=null_max, **joined)


def check_scored(Y: FloatArray, predictions: FloatArray, runs: IntArray) -> None:
    """Raise a ValueError unless `Y` and `predictions` have one shape and `runs` has one entry a row."""
    check_same_samples("Y", len(Y), "predictions", len(predictions))
    check_same_samples("Y", len(Y), "runs", len(runs))
    if Y.ndim != 2 or Y.shape != predictions.shape:
        raise ValueError(f"Y has the shape {Y.shape} and predictions {predictions.shape}; both must be 2-D and equal.")


def run_rows(runs: IntArray) -> list[IntArray]:
    """Rows of each run in their order, runs in the order of their numbers."""
    return [np.flatnonzero(runs == run) for run in np.unique(runs)]


def bounds_of(lengths: list[int]) -> Bounds:
    """First and last-plus-one position of pieces of these lengths laid end to end."""
    ends = np.cumsum(lengths).tolist()
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def standardize(values: FloatArray, runs: Bounds) -> tuple[FloatArray, BoolArray]:
    """Z-score within runs, then scale each column to unit norm, so that r is the sum of products.

    A column that is constant in one run is 0 there.

    Parameters
    ----------
    values : (n_rows, n_targets) float
    runs
        Bounds of the runs among the rows.

    Returns
    -------
    scaled : (n_rows, n_targets) float64
        0 in columns that are not valid.
    valid : (n_targets,) bool
        False where a column is constant in every run or holds a value that is not finite.
    """
    finite = np.isfinite(values).all(axis=0)
    scaled = np.where(finite, values, 0.0).astype(np.float64)
    for start, stop in runs:
        part = scaled[start:stop]
        varies = np.ptp(part, axis=0) > 0
        part -= part.mean(axis=0)
        deviation = np.sqrt((part**2).mean(axis=0))
        part *= np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies & (deviation > 0))
    norm = np.sqrt((scaled**2).sum(axis=0))
    valid: BoolArray = norm > 0
    scaled *= np.divide(1.0, norm, out=np.zeros_like(norm), where=valid)
    return scaled, valid


def _scheme(runs: IntArray, method: str, block_length: int, n_permutations: int, seed: int) -> _Scheme:
    for name, value in (("block_length", block_length), ("n_permutations", n_permutations)):
        if value < 1:
            raise ValueError(f"{name} is {value}, but must be at least 1.")
    rng = np.random.default_rng(seed)
    lay_out = _block_scheme if method == "block" else _circular_scheme
    return lay_out(run_rows(runs), block_length, n_permutations, rng)


def _block_scheme(rows: list[IntArray], length: int, n_permutations: int, rng: np.random.Generator) -> _Scheme:
    rows = [one for one in rows if len(one) >= length]
    counts = [len(one) // length for one in rows]
    if sum(counts) < MIN_BLOCKS:
        raise DesignError(
            f"The runs hold {sum(counts)} whole blocks of {length} rows, but a permutation test needs at least "
            f"{MIN_BLOCKS}; give more rows or a smaller block_length."
        )
    bounds, whole = bounds_of([n * length for n in counts]), bounds_of([len(one) for one in rows])
    kept = [start + np.arange(n * length) for (start, _), n in zip(whole, counts, strict=True)]
    within = min(counts) >= MIN_BLOCKS
    sizes = counts if within else [sum(counts)]
    orders = [rng.permuted(np.tile(np.arange(n, dtype=np.int32), (n_permutations, 1)), axis=1) for n in sizes]
    return _Scheme(
        method="block",
        block_length=length,
        whole=np.concatenate(rows),
        whole_runs=whole,
        kept=np.concatenate(kept),
        runs=bounds,
        groups=bounds if within else ((0, bounds[-1][1]),),
        draws=tuple(order * n + np.arange(n, dtype=np.int32) for order, n in zip(orders, sizes, strict=True)),
        arrangements=math.prod(float(math.factorial(min(n, 20))) for n in sizes),
    )


def _circular_scheme(rows: list[IntArray], length: int, n_permutations: int, rng: np.random.Generator) -> _Scheme:
    kept = [one for one in rows if len(one) >= 3 * length]
    n_shifts = [len(one) - 2 * length + 1 for one in kept]
    arrangements = math.prod(float(n) for n in n_shifts) if kept else 0.0
    if arrangements < MIN_SHIFTS:
        raise DesignError(
            f"The runs allow {arrangements:.0f} circular shifts of at least {length} rows, but a test needs at least "
            f"{MIN_SHIFTS}; give more rows or a smaller block_length."
        )
    bounds = bounds_of([len(one) for one in kept])
    return _Scheme(
        method="circular",
        block_length=length,
        whole=np.concatenate(kept),
        whole_runs=bounds,
        kept=np.arange(bounds[-1][1]),
        runs=bounds,
        groups=bounds,
        draws=tuple(rng.integers(n, size=(n_permutations, 1), dtype=np.int32) for n in n_shifts),
        arrangements=arrangements,
    )


def _tile_width(scheme: _Scheme, max_block_bytes: int) -> int:
    """Targets whose rows (some float64 copies), largest table (with a copy) and null values fit."""
    lengths = [stop - start for start, stop in scheme.groups]
    entries = [(n // scheme.block_length) ** 2 if scheme.method == "block" else n for n in lengths]
    n_permutations = len(scheme.draws[0])
    per_target = 8 * (10 * len(scheme.whole) + 2 * max(entries) + 3 * n_permutations)
    return int(np.clip(max_block_bytes // per_target, 1, TILE_TARGETS))


def _tile_null(
    x: FloatArray, y: FloatArray, scheme: _Scheme, studentized: bool
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Correlation and statistic (n_targets,), null values (n_permutations, n_targets), and the inflation.

    The variance under independence comes from whole runs, since a high-pass acts on these.
    """
    y_whole, valid_y = standardize(y, scheme.whole_runs)
    x_whole, valid_x = standardize(x, scheme.whole_runs)
    y_kept, x_kept = y_whole, x_whole
    if len(scheme.kept) < len(scheme.whole):
        y_kept, still_y = standardize(y_whole[scheme.kept], scheme.runs)
        x_kept, still_x = standardize(x_whole[scheme.kept], scheme.runs)
        valid_y, valid_x = valid_y & still_y, valid_x & still_x
    valid = valid_y & valid_x
    r = np.where(valid, (x_kept * y_kept).sum(axis=0), np.nan)
    null, mean, variance = _permuted(x_kept.astype(np.float32), y_kept.astype(np.float32), scheme)
    if not studentized:
        return r, r, null, np.where(valid, 1.0, np.nan)
    expected = _variance_if_independent(x_whole, y_whole, scheme.whole_runs) * len(x_whole) / len(x_kept)
    null -= mean.astype(np.float32)
    null *= _inverse_root(variance).astype(np.float32)
    inflation = np.sqrt(expected) * _inverse_root(variance)
    return r, r * _inverse_root(expected), null, np.where(valid, inflation, np.nan)


def _inverse_root(variance: FloatArray) -> FloatArray:
    """``1 / sqrt(variance)``, 0 where there is none."""
    root = np.sqrt(np.maximum(variance, 0.0))
    inverse: FloatArray = np.zeros_like(root)
    np.divide(1.0, root, out=inverse, where=root > 0)
    return inverse


def _permuted(x: FloatArray, y: FloatArray, scheme: _Scheme) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Permuted r (n_permutations, n_targets), and the mean and variance (n_targets,) over all permutations."""
    import torch

    n_targets = x.shape[1]
    null: FloatArray = np.zeros((len(scheme.draws[0]), n_targets), dtype=np.float32)
    mean, variance = np.zeros((2, n_targets))
    table_of = _block_table if scheme.method == "block" else _circular_table
    for (start, stop), draws in zip(scheme.groups, scheme.draws, strict=True):
        table, table_mean, table_variance = table_of(x[start:stop], y[start:stop], scheme.block_length)
        # The product of a sparse 0/1 matrix with the table; four times faster than scipy's.
        null += torch.nn.functional.embedding_bag(torch.from_numpy(draws), table, mode="sum").numpy()
        mean += table_mean
        variance += table_variance
    return null, mean, variance


def _variance_if_independent(x: FloatArray, y: FloatArray, runs: Bounds) -> FloatArray:
    """Variance of ``sum(x * y)`` of two independent autocorrelated series, from their cosine transforms."""
    variance: FloatArray = np.zeros(x.shape[1])
    for start, stop in runs:
        products = cosine_transform(x[start:stop]) * cosine_transform(y[start:stop])
        variance += (products**2).sum(axis=0)
    return variance


def cosine_transform(values: FloatArray) -> FloatArray:
    """Orthonormal discrete cosine transform (type II) of each column: sums of products are unchanged."""
    coefficients: FloatArray = dct(values, axis=0, norm="ortho")
    return coefficients


def _block_table(x: FloatArray, y: FloatArray, block_length: int) -> tuple[Any, FloatArray, FloatArray]:
    """Products of every block j of `x` with every block i of `y`: row ``j * n_blocks + i`` of the table.

    Returns the table (n_blocks ** 2, n_targets), a float32 tensor, and the mean and variance over all
    permutations of ``sum_i G[perm(i), i]`` (Hoeffding 1951):
    ``n mean(G)`` and ``sum of squares of the doubly centred G / (n - 1)``.
    """
    import torch

    n_blocks = len(x) // block_length
    shape = (n_blocks, block_length, x.shape[1])
    blocks_x = torch.from_numpy(x).reshape(shape).permute(2, 0, 1)
    blocks_y = torch.from_numpy(y).reshape(shape).permute(2, 1, 0)
    gram = torch.bmm(blocks_x, blocks_y)
    by_x = torch.bmm(blocks_x, blocks_y.sum(dim=2, keepdim=True)).double()
    by_y = torch.bmm(blocks_x.sum(dim=1, keepdim=True), blocks_y).double()
    total = by_x.sum(dim=(1, 2))
    marginal = ((by_x**2).sum(dim=(1, 2)) + (by_y**2).sum(dim=(1, 2))) / n_blocks - (total / n_blocks) ** 2
    squares = torch.linalg.vector_norm(gram, dim=(1, 2)).double() ** 2 - marginal
    table = gram.reshape(x.shape[1], -1).T.contiguous()
    return table, (total / n_blocks).numpy(), (squares / (n_blocks - 1)).numpy()


def _circular_table(x: FloatArray, y: FloatArray, block_length: int) -> tuple[Any, FloatArray, FloatArray]:
    """``sum_t x[t - offset] y[t]`` around the run for offsets `block_length` to ``n - block_length``.

    Returns the table (n_offsets, n_targets), a float32 tensor, and the mean and variance of its rows.
    """
    import torch

    spectrum = np.conj(rfft(x, axis=0)) * rfft(y, axis=0)
    table: FloatArray = irfft(spectrum, n=len(x), axis=0)[block_length : len(x) - block_length + 1]
    moments = table.mean(axis=0, dtype=np.float64), table.var(axis=0, dtype=np.float64)
    return torch.from_numpy(np.ascontiguousarray(table, dtype=np.float32)), *moments
