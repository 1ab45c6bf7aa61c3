"""Whether instructions matter: feature matrices checked one by one and compared between instructions."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.records import BoolArray, Condition, FeatureSpace, FloatArray, IntArray
from bids_mllm.validation import check_same_samples

# Differences below this share of the largest value are rounding of single precision, not variation.
ROUNDING = 1e-6
# Matrices whose relative difference is below this are duplicates.
DUPLICATE = 1e-6
MAX_CLIPS = 2000
MAX_BYTES = 2**30
# float16 ends at 65504; values beyond this are near its end.
NEAR_FLOAT16_END = 6e4
# A column is massive when the magnitude of its mean is this many times the median over columns.
MASSIVE = 100.0
ROWS_AT_ONCE = 64

Reader = Callable[[Condition, int], NDArray[np.floating[Any]]]


def _centred(values: NDArray[np.floating[Any]]) -> NDArray[np.float64] | None:
    """Return float64 columns with mean 0, or None where nothing but rounding varies over the rows."""
    if values.size == 0:
        return None
    double = values.astype(np.float64)
    centred: NDArray[np.float64] = double - double.mean(axis=0)
    if np.abs(centred).max() <= ROUNDING * np.abs(double).max():
        return None
    return centred


def linear_cka(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Return the linear centred kernel alignment of two feature matrices.

    With the columns of A and B centred over the clips,
    ``CKA = ||A.T B||_F ** 2 / (||A.T A||_F * ||B.T B||_F)``. It lies in [0, 1], is 1 where the matrices
    agree up to a rotation, a shift and one common scale, and so ignores a constant that an instruction
    adds to all clips.

    Parameters
    ----------
    a : (n_clips, n_features_a) array
    b : (n_clips, n_features_b) array

    Returns
    -------
    float
        NaN where either matrix does not vary over the clips.

    References
    ----------
    Kornblith, Norouzi, Lee and Hinton (2019), Similarity of neural network representations revisited,
    equation 3 with a linear kernel.
    """
    check_same_samples("a", len(a), "b", len(b))
    a_centred, b_centred = _centred(a), _centred(b)
    if a_centred is None or b_centred is None:
        return float("nan")
    # The Gram matrices over clips give the same norms and never grow with the width of the model.
    gram_a, gram_b = a_centred @ a_centred.T, b_centred @ b_centred.T
    return float(np.sum(gram_a * gram_b) / (np.linalg.norm(gram_a) * np.linalg.norm(gram_b)))


@dataclass(frozen=True)
class MatrixCheck:
    """What one feature matrix (n_clips, n_columns) looks like.

    Attributes
    ----------
    n_nonfinite
        Values that are NaN or infinite.
    n_constant
        Columns that do not vary over the clips but for rounding.
    saturated_share
        Share of the values whose magnitude is beyond 60000, near the end of float16 (65504).
    at_float16_end
        Whether a value is exactly 65504 in magnitude.
    largest
        Highest magnitude of a finite value; NaN where there is none.
    dominance
        Highest magnitude of a column's mean over the median of them; NaN where the median is 0.
    n_massive
        Columns whose mean is at least 100 times that median in magnitude.
    digest
        SHA-256 of the values, by which equal matrices are found.
    """

    space: FeatureSpace
    n_clips: int
    n_columns: int
    n_nonfinite: int
    n_constant: int
    saturated_share: float
    at_float16_end: bool
    largest: float
    dominance: float
    n_massive: int
    digest: str


@dataclass(frozen=True)
class PairCheck:
    """How the features under two instructions of one pooling and layer compare over `n_clips` clips.

    `relative_difference`, `cka` and `cosine` are those of `Similarity`; `duplicate` says that the matrices
    are equal to the bit or that their relative difference is below 1e-6.
    """

    pooling: str
    layer: int
    instruction_a: str
    instruction_b: str
    n_clips: int
    relative_difference: float
    cka: float
    cosine: float
    duplicate: bool


@dataclass(frozen=True)
class Similarity:
    """Every matrix of a set compared with every other, after centring each column over the clips.

    Attributes
    ----------
    n_clips
        Rows without a non-finite value in any of the matrices: those that are compared.
    relative_difference : (n, n) float
        ``||A - B|| / ((||A|| + ||B||) / 2)``; 2 where only one varies over the clips, NaN where neither does.
    cka : (n, n) float
        Linear centred kernel alignment as `linear_cka` gives it; NaN where either does not vary.
    cosine : (n, n) float
        Mean over clips of the cosine between the two centred rows; NaN where either does not vary.
    """

    n_clips: int
    relative_difference: FloatArray
    cka: FloatArray
    cosine: FloatArray


@dataclass(frozen=True)
class ConditioningChecks:
    """All checks of one model: `n_clips` were checked, and `n_compared` of them compared between instructions."""

    model: str
    n_clips: int
    n_compared: int
    n_layers: int
    matrices: tuple[MatrixCheck, ...]
    pairs: tuple[PairCheck, ...]


def check_matrix(space: FeatureSpace, values: NDArray[np.floating[Any]]) -> MatrixCheck:
    """Return what a feature matrix looks like.

    Parameters
    ----------
    space
        Whose features they are.
    values : (n_clips, n_columns) float
        Taken a few rows at a time, so that no copy of a long one is made.
    """
    n_clips, n_columns = values.shape
    low, high = np.full(n_columns, np.inf), np.full(n_columns, -np.inf)
    total, count = np.zeros(n_columns), np.zeros(n_columns)
    n_saturated, at_end = 0, False
    digest = hashlib.sha256(repr(values.shape).encode())
    for start in range(0, n_clips, ROWS_AT_ONCE):
        rows = np.ascontiguousarray(values[start : start + ROWS_AT_ONCE], dtype=np.float32)
        digest.update(rows.tobytes())
        finite = np.isfinite(rows)
        low = np.minimum(low, np.where(finite, rows, np.inf).min(axis=0))
        high = np.maximum(high, np.where(finite, rows, -np.inf).max(axis=0))
        total += np.where(finite, rows, 0.0).sum(axis=0, dtype=np.float64)
        count += finite.sum(axis=0)
        size = np.abs(rows)
        n_saturated += int(np.count_nonzero(size > NEAR_FLOAT16_END))
        at_end = at_end or bool((size == np.finfo(np.float16).max).any())
    seen = count > 0
    sizes = np.maximum(np.abs(low[seen]), np.abs(high[seen]))
    means = np.abs(total[seen] / count[seen])
    middle = float(np.median(means)) if means.size else 0.0
    return MatrixCheck(
        space=space,
        n_clips=n_clips,
        n_columns=n_columns,
        n_nonfinite=int(values.size - count.sum()),
        n_constant=int(np.count_nonzero(high[seen] - low[seen] <= ROUNDING * sizes)),
        saturated_share=n_saturated / values.size if values.size else 0.0,
        at_float16_end=at_end,
        largest=float(sizes.max()) if sizes.size else float("nan"),
        dominance=float(means.max()) / middle if middle > 0 else float("nan"),
        n_massive=int(np.count_nonzero(means >= MASSIVE * middle)) if middle > 0 else 0,
        digest=digest.hexdigest(),
    )


def compare_matrices(matrices: Sequence[NDArray[np.floating[Any]]]) -> Similarity:
    """Return how every feature matrix compares with every other.

    Each is centred in double precision and kept in single precision; its Gram matrix over clips is made once.

    Parameters
    ----------
    matrices
        Of one shape (n_clips, n_columns) each.
    """
    finite = np.logical_and.reduce([np.isfinite(matrix).all(axis=1) for matrix in matrices])
    n_clips = int(finite.sum())
    centred = np.zeros((len(matrices), n_clips, matrices[0].shape[1]), dtype=np.float32)
    varies = np.zeros(len(matrices), dtype=bool)
    for i, matrix in enumerate(matrices):
        values = _centred(matrix[finite])
        if values is not None:
            centred[i], varies[i] = values, True
    inner, cosine = _row_products(centred, varies)
    return Similarity(n_clips, _relative_difference(centred, inner), _cka(centred, varies), cosine)


def _row_products(centred: NDArray[np.float32], varies: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return the inner products of all pairs of matrices, and the mean cosine of their rows, each (n, n)."""
    n_matrices = len(centred)
    inner, cosines, counts = (np.zeros((n_matrices, n_matrices)) for _ in range(3))
    for start in range(0, centred.shape[1], ROWS_AT_ONCE):
        rows = centred[:, start : start + ROWS_AT_ONCE].transpose(1, 0, 2).astype(np.float64)
        products = rows @ rows.transpose(0, 2, 1)
        norms = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
        scale = norms[:, :, None] * norms[:, None, :]
        inner += products.sum(axis=0)
        cosines += np.divide(products, scale, out=np.zeros_like(products), where=scale > 0).sum(axis=0)
        counts += (scale > 0).sum(axis=0)
    both = varies[:, None] & varies[None, :]
    mean = np.divide(cosines, counts, out=np.full_like(cosines, np.nan), where=both & (counts > 0))
    return inner, mean


def _relative_difference(centred: NDArray[np.float32], inner: FloatArray) -> FloatArray:
    """Return the relative difference of all pairs, (n, n), from their inner products."""
    norms = np.sqrt(np.diagonal(inner))
    scale = (norms[:, None] + norms[None, :]) / 2
    square = np.maximum(norms[:, None] ** 2 + norms[None, :] ** 2 - 2 * inner, 0.0)
    difference: FloatArray = np.divide(np.sqrt(square), scale, out=np.full_like(inner, np.nan), where=scale > 0)
    # Where nearly everything cancels, the difference itself is formed.
    for i, j in np.argwhere(difference < 1e-4):
        if i < j:
            step = centred[i].astype(np.float64) - centred[j]
            difference[i, j] = difference[j, i] = np.linalg.norm(step) / scale[i, j]
    np.fill_diagonal(difference, np.where(norms > 0, 0.0, np.nan))
    return difference


def _cka(centred: NDArray[np.float32], varies: BoolArray) -> FloatArray:
    """Return the linear CKA of all pairs, (n, n), from one Gram matrix each."""
    n_matrices, n_clips, _ = centred.shape
    grams = np.zeros((n_matrices, n_clips, n_clips), dtype=np.float32)
    for i in np.flatnonzero(varies):
        scaled = centred[i] / np.abs(centred[i]).max()
        grams[i] = scaled @ scaled.T
    products = np.zeros((n_matrices, n_matrices))
    for start in range(0, n_clips, ROWS_AT_ONCE):
        rows = grams[:, start : start + ROWS_AT_ONCE].reshape(n_matrices, -1).astype(np.float64)
        products += rows @ rows.T
    norms = np.sqrt(np.diagonal(products))
    scale = norms[:, None] * norms[None, :]
    cka: FloatArray = np.divide(products, scale, out=np.full_like(products, np.nan), where=scale > 0)
    return cka.clip(0.0, 1.0)


def compared_rows(
    n_clips: int, n_matrices: int, width: int, *, max_clips: int = MAX_CLIPS, max_bytes: int = MAX_BYTES
) -> IntArray:
    """Return which clips are compared: evenly spaced over all, first and last among them.

    At most `max_clips`, and fewer where `n_matrices` float32 matrices of so many rows and of `width` columns,
    as read and centred, and their Gram matrices would take more than `max_bytes`.
    """
    # The largest n with 4 * n_matrices * (2 * n * width + n ** 2) <= max_bytes.
    fitting = int(np.sqrt(width**2 + max_bytes / (4 * max(n_matrices, 1))) - width)
    n_compared = min(n_clips, max_clips, max(fitting, 2))
    return np.round(np.linspace(0, max(n_clips - 1, 0), n_compared)).astype(int)


def check_conditioning(
    model: str,
    conditions: Sequence[Condition],
    n_layers: int,
    read: Reader,
    *,
    nulls: Collection[str] = (),
    max_clips: int = MAX_CLIPS,
    max_bytes: int = MAX_BYTES,
) -> ConditioningChecks:
    """Check every feature matrix of a model, and compare those of one pooling and layer between instructions.

    Parameters
    ----------
    model
        Its key.
    conditions
        All its conditions; those without an instruction are not compared.
    n_layers
        Layers with the embedding, which is layer 0.
    read
        Gives the (n_clips, width) features of one condition and layer, the clips in one order for all.
    nulls
        Keys of null instructions: compared with the real ones, not with one another.
    max_clips, max_bytes
        Bounds of the comparison, as in `compared_rows`.

    Raises
    ------
    ValueError
        When two conditions have unequal numbers of clips.
    """
    groups: dict[str, list[Condition]] = {}
    for condition in conditions:
        groups.setdefault(condition.pooling, []).append(condition)
    most = max(sum(condition.instruction is not None for condition in group) for group in groups.values())
    rows: IntArray | None = None
    first = conditions[0]
    n_clips = 0
    matrices: list[MatrixCheck] = []
    pairs: list[PairCheck] = []
    for group in groups.values():
        for layer in range(n_layers):
            kept, checks = [], []
            for condition in group:
                values = read(condition, layer)
                if rows is None:
                    n_clips = len(values)
                    rows = compared_rows(n_clips, most, values.shape[1], max_clips=max_clips, max_bytes=max_bytes)
                check_same_samples(first.label, n_clips, f"{condition.label} layer {layer}", len(values))
                checks.append(check_matrix(FeatureSpace(model, condition, layer), values))
                kept.append(values[rows])
            matrices += checks
            pairs += _pair_checks(kept, checks, nulls)
    return ConditioningChecks(model, n_clips, 0 if rows is None else len(rows), n_layers, tuple(matrices), tuple(pairs))


def _pair_checks(
    kept: Sequence[NDArray[np.floating[Any]]], checks: Sequence[MatrixCheck], nulls: Collection[str]
) -> list[PairCheck]:
    """Return the pairs of instructions of one pooling and layer in which at least one is real."""
    instructed = [
        (check.space.condition.instruction, values, check)
        for values, check in zip(kept, checks, strict=True)
        if check.space.condition.instruction is not None
    ]
    if len(instructed) < 2:
        return []
    similarity = compare_matrices([values for _, values, _ in instructed])
    pairs = []
    for i, (a, _, check_a) in enumerate(instructed):
        for j, (b, _, check_b) in enumerate(instructed[i + 1 :], start=i + 1):
            if a in nulls and b in nulls:
                continue
            difference = float(similarity.relative_difference[i, j])
            pairs.append(
                PairCheck(
                    pooling=check_a.space.condition.pooling,
                    layer=check_a.space.layer,
                    instruction_a=a,
                    instruction_b=b,
                    n_clips=similarity.n_clips,
                    relative_difference=difference,
                    cka=float(similarity.cka[i, j]),
                    cosine=float(similarity.cosine[i, j]),
                    duplicate=check_a.digest == check_b.digest or difference < DUPLICATE,
                )
            )
    return pairs
