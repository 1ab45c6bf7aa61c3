"""Linear CKA against closed forms; checks of feature matrices and of pairs against hand-made cases; the verdict."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from bids_mllm.features.conditioning import (
    ConditioningChecks,
    check_conditioning,
    check_matrix,
    compare_matrices,
    compared_rows,
    linear_cka,
)
from bids_mllm.features.verdict import conditioning_warnings, judge, layer_words
from bids_mllm.records import Condition, FeatureSpace

SPACE = FeatureSpace("m", Condition("generated", "AR"), 3)
KEYS = ("AR", "VU", "SU")
NULLS = {"NULLempty": "empty", "ARscrambled": "scrambled", "VUscrambled": "scrambled"}
Features = dict[tuple[str, int], np.ndarray]


def test_rotation_shift_and_scale_change_nothing() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(30, 6))
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert linear_cka(a, 3.0 * a @ rotation + rng.normal(size=6)) == pytest.approx(1.0, abs=1e-12)


def test_orthogonal_directions_share_nothing() -> None:
    a = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    b = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    assert linear_cka(a, b) == pytest.approx(0.0, abs=1e-12)


def test_one_column_each_is_the_squared_correlation() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(50, 1))
    b = a + rng.normal(size=(50, 1))
    assert linear_cka(a, b) == pytest.approx(np.corrcoef(a[:, 0], b[:, 0])[0, 1] ** 2, abs=1e-12)


def test_orthonormal_columns_give_a_known_value() -> None:
    """With centred orthonormal columns, A sharing k of its p columns with B of q: k / sqrt(p * q)."""
    rng = np.random.default_rng(2)
    columns = rng.normal(size=(40, 8))
    basis, _ = np.linalg.qr(columns - columns.mean(axis=0))
    assert linear_cka(basis[:, :4], basis[:, 2:8]) == pytest.approx(2 / np.sqrt(4 * 6), abs=1e-12)


@pytest.mark.parametrize("constant", [0.0, 1.7])
def test_a_matrix_without_variation_has_no_value(constant: float) -> None:
    a = np.random.default_rng(3).normal(size=(10, 2)).astype(np.float32)
    assert np.isnan(linear_cka(a, np.full((10, 3), constant, dtype=np.float32)))


def test_unequal_numbers_of_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="a has 3 samples and b has 4"):
        linear_cka(np.zeros((3, 2)), np.zeros((4, 2)))


def test_a_matrix_is_described_as_counted_by_hand() -> None:
    values = np.zeros((4, 6), dtype=np.float32)
    values[:, 0] = [1, 2, 3, 4]
    values[:, 1] = 7.0
    values[:, 2] = [np.nan, 1, np.inf, 2]
    values[:, 3] = [65504, -65504, 60001, 59999]
    values[:, 4] = [-1, -2, -3, -4]
    values[:, 5] = [1e4, 1e4 + 1e-3, 1e4, 1e4]
    check = check_matrix(SPACE, values)
    assert (check.n_clips, check.n_columns) == (4, 6)
    assert check.n_nonfinite == 2
    assert check.n_constant == 2, "7.0 and, but for rounding, 1e4"
    # Infinity lies beyond the end of float16, too.
    assert check.saturated_share == pytest.approx(4 / 24)
    assert check.at_float16_end
    assert check.largest == 65504
    # Means 2.5, 7, 1.5, 30000, 2.5 and 10000: the median is 4.75.
    assert check.dominance == pytest.approx(30000 / 4.75, rel=1e-6)
    assert check.n_massive == 2


def test_the_digest_tells_matrices_apart_whatever_the_order_of_bytes() -> None:
    values = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    digest = check_matrix(SPACE, values).digest
    assert check_matrix(SPACE, np.asfortranarray(values)).digest == digest
    assert check_matrix(SPACE, values[::-1]).digest != digest
    assert check_matrix(SPACE, values.reshape(150, 10)).digest != digest


def test_a_matrix_without_a_finite_value_or_without_clips() -> None:
    nothing = check_matrix(SPACE, np.full((3, 2), np.nan, dtype=np.float32))
    assert (nothing.n_nonfinite, nothing.n_constant, nothing.n_massive) == (6, 0, 0)
    assert np.isnan([nothing.largest, nothing.dominance]).all()
    assert check_matrix(SPACE, np.zeros((0, 2), dtype=np.float32)).saturated_share == 0.0


def test_all_pairs_equal_what_each_pair_gives_by_itself() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(150, 12))
    matrices = [(shared + k * rng.normal(size=(150, 12)) + 5 * k).astype(np.float32) for k in range(4)]
    similarity = compare_matrices(matrices)
    assert similarity.n_clips == 150
    for i, j in combinations(range(4), 2):
        a, b = (m.astype(float) - m.astype(float).mean(axis=0) for m in (matrices[i], matrices[j]))
        difference = np.linalg.norm(a - b) / ((np.linalg.norm(a) + np.linalg.norm(b)) / 2)
        cosine = np.mean([x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in zip(a, b, strict=True)])
        assert similarity.relative_difference[i, j] == pytest.approx(difference, rel=1e-6)
        assert similarity.cosine[i, j] == pytest.approx(cosine, abs=1e-6)
        assert similarity.cka[i, j] == pytest.approx(linear_cka(matrices[i], matrices[j]), abs=1e-6)
    for matrix in (similarity.relative_difference, similarity.cosine, similarity.cka):
        np.testing.assert_array_equal(matrix, matrix.T)


@pytest.mark.parametrize("size", [1e-3, 1e-5, 3e-7])
def test_a_small_difference_is_measured_though_nearly_all_cancels(size: float) -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(400, 30))
    b = a + size * rng.normal(size=(400, 30))
    a, b = a.astype(np.float32), b.astype(np.float32)
    centred = [m.astype(float) - m.astype(float).mean(axis=0) for m in (a, b)]
    expected = np.linalg.norm(centred[0] - centred[1]) / np.linalg.norm(centred[0])
    # Single precision resolves 6e-8 of a value.
    found = compare_matrices([a, b]).relative_difference[0, 1]
    assert found == pytest.approx(expected, rel=1e-5, abs=6e-8)


def test_a_shift_of_all_clips_is_no_difference() -> None:
    values = np.random.default_rng(2).normal(size=(40, 8)).astype(np.float32)
    similarity = compare_matrices([values, values + np.float32(2.0)])
    assert similarity.relative_difference[0, 1] < 1e-6
    assert similarity.cosine[0, 1] == pytest.approx(1.0)


def test_matrices_that_do_not_vary() -> None:
    values = np.random.default_rng(3).normal(size=(20, 4)).astype(np.float32)
    similarity = compare_matrices([values, np.ones_like(values), np.full_like(values, 2.0)])
    assert similarity.relative_difference[0, 1] == pytest.approx(2.0)
    assert np.isnan(similarity.relative_difference[1, 2])
    assert np.isnan(similarity.cka[0, 1])
    assert np.isnan(similarity.cosine[0, 1])


def test_clips_with_a_value_that_is_not_finite_are_not_compared() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 30, 5)).astype(np.float32)
    a[4, 1], b[9] = np.inf, np.nan
    kept = np.delete(np.arange(30), [4, 9])
    similarity = compare_matrices([a, b])
    assert similarity.n_clips == 28
    assert similarity.cka[0, 1] == pytest.approx(linear_cka(a[kept], b[kept]), abs=1e-6)
    assert compare_matrices([a, np.full_like(b, np.nan)]).n_clips == 0


def test_the_clips_compared_are_evenly_spaced_and_fit_into_memory() -> None:
    np.testing.assert_array_equal(compared_rows(9, 3, 10, max_clips=5), [0, 2, 4, 6, 8])
    np.testing.assert_array_equal(compared_rows(4, 3, 10), np.arange(4))
    assert compared_rows(0, 3, 10).size == 0
    assert len(compared_rows(24_000, 13, 3584)) == 2000
    for n_matrices, width in ((13, 8192), (40, 3584), (200, 4096)):
        n = len(compared_rows(24_000, n_matrices, width))
        needed = [4 * n_matrices * (2 * m * width + m * m) for m in (n, n + 1)]
        assert needed[0] <= 2**30 < needed[1]


def made_features(*, n_clips: int = 60, n_layers: int = 4, width: int = 8) -> Features:
    """Features of three instructions and their null instructions, all different, by condition label and layer."""
    rng = np.random.default_rng(5)
    labels = ["media", *(f"{pooling}{key}" for pooling in ("generated", "last") for key in (*KEYS, *NULLS))]
    return {
        (label, layer): rng.normal(size=(n_clips, width)).astype(np.float32)
        for label in labels
        for layer in range(n_layers)
    }


def run(features: Features, *, n_layers: int = 4, **bounds: int) -> ConditioningChecks:
    conditions = [Condition("media")]
    conditions += [Condition(p, k) for p in ("generated", "last") for k in (*KEYS, *NULLS)]
    return check_conditioning(
        "m", conditions, n_layers, lambda condition, layer: features[condition.label, layer], nulls=NULLS, **bounds
    )


def test_every_matrix_is_checked_and_every_pair_with_a_real_instruction() -> None:
    checks = run(made_features())
    assert (checks.n_clips, checks.n_compared) == (60, 60)
    assert len(checks.matrices) == 13 * 4
    pairs = {(p.instruction_a, p.instruction_b) for p in checks.pairs}
    assert pairs == {(a, b) for a, b in combinations((*KEYS, *NULLS), 2) if a in KEYS}
    assert len(checks.pairs) == len(pairs) * 2 * 4
    assert conditioning_warnings(checks, NULLS) == ()


def test_matrices_are_checked_on_all_clips_and_compared_on_some() -> None:
    features = made_features()
    features["lastAR", 2][31] = np.nan
    checks = run(features, max_clips=20)
    (bad,) = (matrix for matrix in checks.matrices if matrix.n_nonfinite)
    assert (bad.space.condition.label, bad.space.layer, bad.n_nonfinite, bad.n_clips) == ("lastAR", 2, 8, 60)
    assert checks.n_compared == 20
    rows = np.round(np.linspace(0, 59, 20)).astype(int)
    pair = next(p for p in checks.pairs if (p.pooling, p.layer, p.instruction_b) == ("generated", 1, "VU"))
    expected = linear_cka(features["generatedAR", 1][rows], features["generatedVU", 1][rows])
    assert pair.cka == pytest.approx(expected, abs=1e-6)
    (warning,) = conditioning_warnings(checks, NULLS)
    assert warning.startswith("m has values that are not finite in 1 of 52 feature matrices (first: lastAR layer 2, 8")


def test_unequal_numbers_of_clips_between_conditions_are_refused() -> None:
    features = made_features()
    features["lastVU", 1] = features["lastVU", 1][:-1]
    with pytest.raises(ValueError, match="media has 60 samples and lastVU layer 1 has 59"):
        run(features)


def shifted(features: Features, pooling: str, *, layers: range, step: float = 0.0) -> None:
    """Let the real instructions of a pooling do no more than add a constant and a share `step` of noise."""
    rng = np.random.default_rng(6)
    for layer in layers:
        base = features[f"{pooling}{KEYS[0]}", layer]
        for number, key in enumerate(KEYS[1:], start=1):
            noise = step * rng.normal(size=base.shape).astype(np.float32)
            features[f"{pooling}{key}", layer] = base + np.float32(number) + noise


def test_a_model_whose_instructions_only_shift_its_features_is_named() -> None:
    features = made_features()
    shifted(features, "last", layers=range(1, 4), step=3e-4)
    checks = run(features)
    verdicts = {verdict.pooling: verdict for verdict in judge(checks, NULLS)}
    assert verdicts["last"].conditioned is False
    assert verdicts["last"].same_layers == (1, 2, 3)
    assert verdicts["generated"].conditioned is True
    assert conditioning_warnings(checks, NULLS) == (
        "The instructions make no difference to m with the pooling last: on layers 1-3 the features under its 3 "
        "instructions differ by less than 0.1% from one another after centring over clips, so its best instruction "
        "means nothing.",
    )


def test_one_layer_with_a_difference_is_enough() -> None:
    features = made_features()
    shifted(features, "last", layers=range(1, 3), step=3e-4)
    checks = run(features)
    verdict = judge(checks, NULLS)[1]
    assert (verdict.conditioned, verdict.same_layers) == (True, (1, 2))
    assert conditioning_warnings(checks, NULLS) == ()


def test_the_numbers_of_a_verdict_are_over_real_pairs_above_the_embedding() -> None:
    features = made_features()
    shifted(features, "generated", layers=range(1))
    checks = run(features)
    verdict = judge(checks, NULLS)[0]
    values = [
        p.relative_difference
        for p in checks.pairs
        if p.pooling == "generated" and p.layer > 0 and p.instruction_a in KEYS and p.instruction_b in KEYS
    ]
    assert len(values) == 9
    assert (verdict.n_instructions, verdict.n_pairs) == (3, 3)
    found = verdict.relative_difference
    assert (found.median, found.smallest, found.largest) == (np.median(values), min(values), max(values))
    own = [
        p.relative_difference
        for p in checks.pairs
        if p.pooling == "generated" and p.layer > 0 and f"{p.instruction_a}scrambled" == p.instruction_b
    ]
    assert len(own) == 6
    assert verdict.null_difference["scrambled"] == np.median(own)
    assert set(verdict.null_difference) == {"empty", "scrambled"}


def test_equal_pairs_are_named_where_others_differ() -> None:
    features = made_features()
    for layer in (1, 3):
        features["generatedSU", layer] = features["generatedAR", layer].copy()
    (warning,) = conditioning_warnings(run(features), NULLS)
    assert warning == (
        "m with the pooling generated gives the same features for 1 pair of instructions (first: AR and SU, on layers "
        "1 and 3)."
    )


def test_instructions_that_do_what_their_null_instructions_do_are_named() -> None:
    features = made_features()
    for layer in range(1, 4):
        for key in ("AR", "VU"):
            features[f"last{key}scrambled", layer] = features[f"last{key}", layer] + np.float32(1)
    (warning,) = conditioning_warnings(run(features), NULLS)
    assert warning == (
        "m with the pooling last does not tell its instructions from the null instructions 'scrambled': they differ by "
        "less than 0.1% on layers 1-3."
    )


def test_matrices_that_are_equal_across_poolings_or_layers_are_named() -> None:
    features = made_features()
    features["generatedAR", 2] = features["lastAR", 3]
    (warning,) = conditioning_warnings(run(features), NULLS)
    assert "1 set of feature matrices that are equal to the bit" in warning
    assert "(first: generatedAR layer 2 and lastAR layer 3)" in warning


def test_a_constant_embedding_is_no_fault_but_a_constant_layer_is() -> None:
    features = made_features()
    for key in (*KEYS, *NULLS):
        features[f"last{key}", 0] = np.ones((60, 8), dtype=np.float32)
    assert conditioning_warnings(run(features), NULLS) == ()
    features["media", 2][:, 1] = 4.0
    (warning,) = conditioning_warnings(run(features), NULLS)
    assert "constant columns in 1 of 39 feature matrices above the embedding (media layer 2: 1 of 8)" in warning


@pytest.mark.parametrize(
    ("value", "dtype", "warned"),
    [(6.2e4, "float16", True), (6.2e4, "bfloat16", False), (65504.0, "bfloat16", True), (7e4, "float32", False)],
)
def test_values_at_the_end_of_float16(value: float, dtype: str, warned: bool) -> None:
    features = made_features()
    features["media", 3][7, 0] = value
    found = conditioning_warnings(run(features), NULLS, dtype=dtype)
    assert [("end of float16" in sentence and "media layer 3" in sentence) for sentence in found] == [True] * warned


def test_no_clips_and_values_that_are_all_missing() -> None:
    empty = {place: values[:0] for place, values in made_features().items()}
    (warning,) = conditioning_warnings(run(empty), NULLS)
    assert warning == "m has no clip with features, so nothing about its instructions could be checked."
    broken = made_features()
    for layer in range(1, 4):
        for key in (*KEYS, *NULLS):
            broken[f"last{key}", layer] = np.full((60, 8), np.nan, dtype=np.float32)
    (warning,) = conditioning_warnings(run(broken), NULLS)
    assert "not finite in 18 of 52" in warning, "nothing is said of instructions that could not be compared"


def test_a_model_without_instructions_has_no_verdict() -> None:
    rng = np.random.default_rng(7)
    read: Callable[[Condition, int], np.ndarray] = lambda condition, layer: rng.normal(size=(10, 3))  # noqa: E731
    checks = check_conditioning("m", [Condition("stimulus")], 2, read)
    assert (len(checks.matrices), checks.pairs, judge(checks, {})) == (2, (), ())
    alone = check_conditioning("m", [Condition("last", "AR")], 2, read)
    assert judge(alone, {})[0].conditioned is None
    assert conditioning_warnings(alone, {}) == ()


@pytest.mark.parametrize(
    ("layers", "words"), [([4], "layer 4"), ([3, 1, 2], "layers 1-3"), ([1, 2, 5, 7, 8], "layers 1-2, 5 and 7-8")]
)
def test_layers_in_words(layers: list[int], words: str) -> None:
    assert layer_words(layers) == words
