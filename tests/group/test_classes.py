"""Classes of models against each other, against scipy and cases by hand."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import ttest_1samp, wilcoxon

from bids_mllm.features.registry import load_registry
from bids_mllm.group.classes import (
    CLASSES,
    class_pairs,
    compare_classes,
    compare_classes_by_run,
    mean_interval,
    model_class,
    percent_difference,
)
from bids_mllm.interfaces.group_tables import run_interval

NAN = np.nan
KINDS = {"a1": "instruction-tuned", "a2": "instruction-tuned", "b": "unimodal", "c": "low-level"}


def rows_of(scores, *, roi="all", kind="all", coverage=1.0):
    return [
        {"participant": f"{who:02d}", "model": model, "roi": roi, "kind": kind, "coverage": coverage, "r": r}
        for model, own in scores.items()
        for who, r in enumerate(own)
    ]


def no_interval(values, weights):
    return NAN, NAN


@pytest.mark.parametrize(
    ("kind", "weights", "expected"),
    [
        ("instruction-tuned video", "pretrained", "instruction-tuned"),
        ("in-context", "pretrained", "in-context"),
        ("multimodal", "pretrained", "multimodal"),
        ("unimodal audio", "pretrained", "unimodal"),
        ("low-level", "pretrained", "low-level"),
        ("instruction-tuned omni", "random", "random weights"),
        ("feature table", None, "feature table"),
        ("multimodalish", "pretrained", "multimodalish"),
    ],
)
def test_the_class_of_a_model(kind, weights, expected):
    assert model_class({"Kind": kind} | ({"Weights": weights} if weights else {})) == expected


def test_every_model_of_the_registry_has_a_class():
    found = {model_class({"Kind": spec.kind, "Weights": spec.weights}) for spec in load_registry().values()}
    assert found <= set(CLASSES)
    assert {"instruction-tuned", "in-context", "multimodal", "unimodal", "low-level"} <= found


def test_pairs_are_in_the_order_of_the_classes():
    assert class_pairs({"x": "low-level", "y": "own", "z": "in-context"}) == [
        ("in-context", "low-level"), ("in-context", "own"), ("low-level", "own"),
    ]  # fmt: skip


def test_the_interval_is_scipys():
    values = np.array([0.1, 0.3, NAN, 0.25, 0.05])
    interval = ttest_1samp(values[np.isfinite(values)], 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((0.175, interval.low, interval.high))
    np.testing.assert_equal(mean_interval(np.array([0.5])), (0.5, NAN, NAN))
    np.testing.assert_equal(mean_interval(np.array([NAN])), (NAN, NAN, NAN))


def test_percents_need_a_base_above_zero():
    found = percent_difference(np.array([0.3, 0.1, 0.2, 0.1]), np.array([0.2, 0.2, 0.0, -0.1]))
    np.testing.assert_allclose(found, [50, -50, NAN, NAN])


def test_classes_are_compared_over_participants():
    scores = {
        "a1": [0.30, 0.20, 0.26, 0.31],
        "a2": [0.20, 0.24, 0.30, 0.25],
        "b": [0.20, 0.21, 0.20, -0.1],
        "c": [0.1, 0.1, 0.1, 0.1],
    }
    rows = compare_classes(rows_of(scores), KINDS)
    assert [(row["class_a"], row["class_b"]) for row in rows] == class_pairs(KINDS)
    first = rows[0]
    a = np.mean([scores["a1"], scores["a2"]], axis=0)
    b = np.array(scores["b"])
    assert (first["models_a"], first["models_b"]) == ("a1, a2", "b")
    assert (first["mean_a"], first["mean_b"]) == pytest.approx((a.mean(), b.mean()))
    interval = ttest_1samp(a - b, 0).confidence_interval(0.95)
    assert (first["mean_difference"], first["low"], first["high"]) == pytest.approx(
        ((a - b).mean(), interval.low, interval.high)
    )
    percent = 100 * (a - b)[:3] / b[:3]
    interval = ttest_1samp(percent, 0).confidence_interval(0.95)
    assert (first["percent_difference"], first["n_percent"]) == pytest.approx((percent.mean(), 3))
    assert (first["percent_low"], first["percent_high"]) == pytest.approx((interval.low, interval.high))
    assert first["p_wilcoxon"] == pytest.approx(wilcoxon(a - b).pvalue)
    # All four agree: 2 of 16 patterns of signs, the least that four participants can give.
    assert first["p_sign_flip"] == first["smallest_p"] == 0.125
    assert (first["unit"], first["participant"], first["n_participants"]) == ("participant", None, 4)


def test_only_participants_with_both_classes_and_enough_of_the_region_count():
    rows = rows_of({"a1": [0.3, 0.5, NAN], "b": [0.2, NAN, 0.1]}) + rows_of({"a2": [0.5]}, coverage=0.49)
    (one,) = compare_classes(rows, {key: KINDS[key] for key in ("a1", "a2", "b")})
    assert (one["n_participants"], one["mean_a"], one["mean_b"]) == pytest.approx((1, 0.3, 0.2))
    assert np.isnan(one["low"])
    assert one["smallest_p"] == 1.0
    assert compare_classes(rows_of({"a1": [0.3], "b": [NAN]}), {"a1": "multimodal", "b": "unimodal"}) == []


def test_regions_stand_in_their_order():
    rows = rows_of({"a1": [0.3], "b": [0.1]}) + rows_of({"a1": [0.3], "b": [0.1]}, roi="EVC", kind="group")
    found = compare_classes(rows, {"a1": "multimodal", "b": "unimodal"})
    assert [(row["roi"], row["kind"]) for row in found] == [("all", "all"), ("EVC", "group")]


def test_noise_differs_no_more_often_than_by_chance():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        scores = dict(zip(("a1", "a2", "b"), rng.normal(size=(3, 6)), strict=True))
        (row,) = compare_classes(rows_of(scores), {key: KINDS[key] for key in scores})
        found.append(row["p_sign_flip"] <= 0.05)
    assert np.mean(found) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_runs_are_the_unit_within_a_participant():
    runs = [f"run-{number}" for number in range(5)]
    values = {
        "a1": [0.3, 0.2, 0.4, 0.3, 0.2],
        "a2": [0.1, 0.2, 0.2, 0.3, 0.2],
        "b": [0.1, 0.15, 0.1, 0.2, 0.1],
    }
    by_run = {model: dict(zip(runs, own, strict=True)) for model, own in values.items()}
    seen = []

    def interval(values, weights):
        seen.append((values, weights))
        return float(values.min()), float(values.max())

    (row,) = compare_classes_by_run("01", by_run, KINDS, interval)
    difference = np.mean([values["a1"], values["a2"]], axis=0) - values["b"]
    np.testing.assert_allclose(seen[0], (difference, np.ones(5)))
    np.testing.assert_allclose(seen[1], (100 * difference / values["b"], values["b"]))
    assert row["mean_difference"] == pytest.approx(difference.mean())
    assert (row["low"], row["high"]) == pytest.approx((difference.min(), difference.max()))
    assert row["percent_difference"] == pytest.approx(100 * difference.mean() / np.mean(values["b"]))
    assert (row["p_sign_flip"], row["smallest_p"], row["n_runs"]) == pytest.approx((2 / 32, 2 / 32, 5))
    assert (row["unit"], row["participant"], row["roi"]) == ("run", "01", "all")
    assert row["models_a"] == "a1, a2"


def test_the_percent_of_runs_has_the_interval_of_its_ratio_of_means():
    values = {"a1": [0.31, 0.20, 0.42, 0.27], "b": [0.21, 0.11, 0.33, 0.24]}
    by_run = {model: dict(zip("wxyz", own, strict=True)) for model, own in values.items()}
    a, b = (np.array(own) for own in values.values())
    # All draws of four runs with replacement, each as likely as the others.
    drawn = np.array(list(product(range(4), repeat=4)))
    ratios = 100 * (a[drawn].sum(axis=1) - b[drawn].sum(axis=1)) / b[drawn].sum(axis=1)
    expected = np.percentile(ratios, [2.5, 97.5])
    (row,) = compare_classes_by_run("01", by_run, KINDS, run_interval)
    assert (row["percent_low"], row["percent_high"]) == pytest.approx(expected, abs=1.0)
    assert row["percent_low"] < row["percent_difference"] < row["percent_high"]


@pytest.mark.parametrize("least", [0.0, -0.01])
def test_a_percent_of_nothing_in_one_run_has_no_interval(least):
    by_run = {"a1": {"x": 0.2, "y": 0.3}, "b": {"x": 0.2, "y": least}}
    (row,) = compare_classes_by_run("01", by_run, KINDS, run_interval)
    assert np.isnan([row["percent_low"], row["percent_high"]]).all()
    assert np.isfinite([row["low"], row["high"], row["percent_difference"]]).all()


def test_runs_that_a_model_lacks_do_not_count():
    by_run = {"a1": {"x": 0.2, "y": 0.3, "z": 0.4}, "b": {"z": 0.1, "y": NAN, "x": 0.1}}
    (row,) = compare_classes_by_run("01", by_run, KINDS, no_interval)
    assert (row["n_runs"], row["mean_a"]) == pytest.approx((2, 0.3))
    assert compare_classes_by_run("01", {"a1": {"x": 0.2}, "b": {"y": 0.1}}, KINDS, no_interval) == []
