"""What the checks of the features say, in numbers for each pooling and in words where something is wrong."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bids_mllm.features.conditioning import ConditioningChecks, MatrixCheck, PairCheck

# Below this relative difference two instructions count as making no difference.
NO_DIFFERENCE = 1e-3
# From this share of constant columns on, a layer above the embedding is worth a warning.
MANY_CONSTANT = 0.1


@dataclass(frozen=True)
class Range:
    """Median and ends of the values of all pairs on all layers above the embedding; NaN where there are none."""

    median: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class PoolingVerdict:
    """Whether the instructions of one pooling make a difference.

    Attributes
    ----------
    n_instructions, n_pairs
        Real instructions, and pairs of them.
    relative_difference, cka
        Over pairs of real instructions.
    same_layers
        Layers above the embedding on which every pair of real instructions differs by less than 0.1 %.
    conditioned
        False where `same_layers` are all; None with fewer than two real instructions.
    null_difference
        Kind of null instruction to the median relative difference between a real instruction and its own null
        instruction of that kind, over the layers above the embedding.
    """

    pooling: str
    n_instructions: int
    n_pairs: int
    relative_difference: Range
    cka: Range
    same_layers: tuple[int, ...]
    conditioned: bool | None
    null_difference: Mapping[str, float] = field(default_factory=dict)


def layer_words(layers: Sequence[int]) -> str:
    """Return layers in words, neighbours joined, e.g. ``layers 1-3 and 7`` or ``layer 2``."""
    ordered = sorted(set(layers))
    starts = [layer for layer in ordered if layer - 1 not in ordered]
    ends = [layer for layer in ordered if layer + 1 not in ordered]
    parts = [f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    noun = "layer" if len(ordered) == 1 else "layers"
    return f"{noun} {' and '.join(filter(None, [', '.join(parts[:-1]), parts[-1]]))}"


def judge(checks: ConditioningChecks, nulls: Mapping[str, str]) -> tuple[PoolingVerdict, ...]:
    """Return the verdict on each pooling that has instructions.

    Parameters
    ----------
    checks
    nulls
        Key of each null instruction to its kind (``empty``, ``scrambled``, ``unrelated``).
    """
    keys: dict[str, list[str]] = {}
    for matrix in checks.matrices:
        condition = matrix.space.condition
        if condition.instruction is not None and matrix.space.layer == 0:
            keys.setdefault(condition.pooling, []).append(condition.instruction)
    return tuple(_judge_pooling(checks, pooling, own, nulls) for pooling, own in keys.items())


def _judge_pooling(
    checks: ConditioningChecks, pooling: str, keys: Sequence[str], nulls: Mapping[str, str]
) -> PoolingVerdict:
    above = _judged(checks, pooling)
    real = [pair for pair in above if not _null_keys(pair, nulls)]
    same = _same_layers(real)
    n_real = sum(key not in nulls for key in keys)
    kinds = dict.fromkeys(nulls[key] for key in keys if key in nulls)
    return PoolingVerdict(
        pooling=pooling,
        n_instructions=n_real,
        n_pairs=n_real * (n_real - 1) // 2,
        relative_difference=_range(real, lambda pair: pair.relative_difference),
        cka=_range(real, lambda pair: pair.cka),
        same_layers=same,
        conditioned=len(same) < len({pair.layer for pair in real}) if real else None,
        null_difference={
            kind: _range(_own_null_pairs(above, nulls, kind), lambda pair: pair.relative_difference).median
            for kind in kinds
        },
    )


def _judged(checks: ConditioningChecks, pooling: str) -> list[PairCheck]:
    """Return the pairs of a pooling above the embedding for which there were clips to compare."""
    return [pair for pair in checks.pairs if pair.pooling == pooling and pair.layer > 0 and pair.n_clips > 1]


def _null_keys(pair: PairCheck, nulls: Mapping[str, str]) -> list[str]:
    return [key for key in (pair.instruction_a, pair.instruction_b) if key in nulls]


def _own_null_pairs(pairs: Sequence[PairCheck], nulls: Mapping[str, str], kind: str) -> list[PairCheck]:
    """Return the pairs of a real instruction with its own null instruction of one kind (the empty one is all's)."""
    own = []
    for pair in pairs:
        null = next(iter(_null_keys(pair, nulls)), None)
        if null is None or nulls[null] != kind:
            continue
        real = pair.instruction_b if null == pair.instruction_a else pair.instruction_a
        if kind == "empty" or null == f"{real}{kind}":
            own.append(pair)
    return own


def _no_difference(pair: PairCheck) -> bool:
    """Whether two instructions make no difference, which holds also where neither varies over the clips."""
    return pair.duplicate or not pair.relative_difference >= NO_DIFFERENCE


def _same_layers(pairs: Sequence[PairCheck]) -> tuple[int, ...]:
    by_layer: dict[int, list[PairCheck]] = defaultdict(list)
    for pair in pairs:
        by_layer[pair.layer].append(pair)
    return tuple(layer for layer, own in sorted(by_layer.items()) if all(map(_no_difference, own)))


def _range(pairs: Sequence[PairCheck], value: Callable[[PairCheck], float]) -> Range:
    values = np.array([value(pair) for pair in pairs], dtype=float)
    values = values[np.isfinite(values)]
    if not values.size:
        return Range(*[float("nan")] * 3)
    return Range(float(np.median(values)), float(values.min()), float(values.max()))


def conditioning_warnings(
    checks: ConditioningChecks, nulls: Mapping[str, str], *, dtype: str = "float32"
) -> tuple[str, ...]:
    """Return one sentence for each thing that is wrong with the features of a model.

    Parameters
    ----------
    checks
    nulls
        Key of each null instruction to its kind.
    dtype
        In which the model computed: values near the end of float16 are an overflow only there.
    """
    if checks.n_clips == 0:
        return (f"{checks.model} has no clip with features, so nothing about its instructions could be checked.",)
    sentences: list[str] = []
    for verdict in judge(checks, nulls):
        sentences += _instruction_sentences(checks, verdict, nulls)
    equal = _equal_spaces(checks)
    if equal:
        sentences.append(
            f"{checks.model} has {_count(len(equal), 'set')} of feature matrices that are equal to the bit across "
            f"poolings or layers (first: {' and '.join(equal[0][:2])}); they are one feature space under several names."
        )
    return (*sentences, *_matrix_sentences(checks, dtype))


def _instruction_sentences(checks: ConditioningChecks, verdict: PoolingVerdict, nulls: Mapping[str, str]) -> list[str]:
    """Return what is wrong with how the instructions of one pooling differ."""
    model, pooling = checks.model, verdict.pooling
    above = _judged(checks, pooling)
    if verdict.conditioned is False:
        return [
            f"The instructions make no difference to {model} with the pooling {pooling}: on "
            f"{layer_words(verdict.same_layers)} the features under its {verdict.n_instructions} instructions differ "
            f"by less than {NO_DIFFERENCE:.1%} from one another after centring over clips, so its best instruction "
            "means nothing."
        ]
    sentences = []
    for kind in verdict.null_difference:
        own = _own_null_pairs(above, nulls, kind)
        if own and all(map(_no_difference, own)):
            sentences.append(
                f"{model} with the pooling {pooling} does not tell its instructions from the null instructions "
                f"'{kind}': they differ by less than {NO_DIFFERENCE:.1%} on "
                f"{layer_words([pair.layer for pair in own])}."
            )
    twins: dict[tuple[str, str], list[int]] = defaultdict(list)
    for pair in above:
        if pair.duplicate:
            twins[pair.instruction_a, pair.instruction_b].append(pair.layer)
    if twins and not sentences:
        (a, b), layers = next(iter(twins.items()))
        sentences.append(
            f"{model} with the pooling {pooling} gives the same features for {_count(len(twins), 'pair')} of "
            f"instructions (first: {a} and {b}, on {layer_words(layers)})."
        )
    return sentences


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _equal_spaces(checks: ConditioningChecks) -> list[list[str]]:
    """Return the sets of equal matrices above the embedding that do not all belong to one pooling and layer."""
    by_digest: dict[str, list[MatrixCheck]] = defaultdict(list)
    for matrix in checks.matrices:
        varies = matrix.n_constant < matrix.n_columns and np.isfinite(matrix.largest)
        if matrix.space.layer > 0 and varies:
            by_digest[matrix.digest].append(matrix)
    sets = []
    for own in by_digest.values():
        places = {(matrix.space.condition.pooling, matrix.space.layer) for matrix in own}
        if len(places) > 1:
            sets.append([_name(matrix) for matrix in own])
    return sets


def _matrix_sentences(checks: ConditioningChecks, dtype: str) -> list[str]:
    """Return what is wrong with feature matrices by themselves."""
    model = checks.model
    nonfinite = [m for m in checks.matrices if m.n_nonfinite]
    saturated = [m for m in checks.matrices if m.at_float16_end or (dtype == "float16" and m.saturated_share > 0)]
    above = [m for m in checks.matrices if m.space.layer > 0]
    constant = [m for m in above if m.n_constant >= MANY_CONSTANT * m.n_columns]
    sentences = []
    if nonfinite:
        sentences.append(
            f"{model} has values that are not finite in {len(nonfinite)} of {len(checks.matrices)} feature matrices "
            f"(first: {_name(nonfinite[0])}, {_count(nonfinite[0].n_nonfinite, 'value')}); run it with another dtype."
        )
    if saturated:
        sentences.append(
            f"{model} has values at the end of float16 (65504) in {len(saturated)} of {len(checks.matrices)} feature "
            f"matrices (first: {_name(saturated[0])}); they may have overflowed, so run it in bfloat16 or float32."
        )
    if constant:
        worst = max(constant, key=lambda m: m.n_constant / m.n_columns)
        sentences.append(
            f"{model} has constant columns in {len(constant)} of {len(above)} feature matrices above the embedding "
            f"({_name(worst)}: {worst.n_constant} of {worst.n_columns}); they can predict nothing."
        )
    return sentences


def _name(matrix: MatrixCheck) -> str:
    return f"{matrix.space.condition.label} layer {matrix.space.layer}"
