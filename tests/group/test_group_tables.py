"""Tests over participants and region summaries on hand-made rows."""

import numpy as np
import pytest

from bids_mllm.group.tables import coverage_warnings, group_tests, roi_summary

NAN = np.nan


def difference_row(participant, value, *, models=("a", "b"), roi="all", coverage=1.0):
    return {
        "participant": participant, "model_a": models[0], "model_b": models[1], "roi": roi, "mean_difference": value,
        "coverage": coverage,
    }  # fmt: skip


def test_pairs_are_tested_over_participants():
    values = [0.05, 0.02, 0.08, 0.01]
    rows = [difference_row(f"0{number}", value) for number, value in enumerate(values)]
    rows += [difference_row(f"0{number}", -value, roi="V1") for number, value in enumerate(values)]
    whole, v1 = group_tests(rows)
    assert (whole["model_a"], whole["model_b"], whole["roi"], whole["unit"]) == ("a", "b", "all", "participant")
    assert whole["mean_difference"] == pytest.approx(0.04)
    assert whole["n_participants"] == 4
    # All four agree: the two-sided p of 2 in 16 sign patterns, the least that four participants can give.
    assert whole["p_wilcoxon"] == pytest.approx(0.125)
    assert whole["p_sign_flip"] == pytest.approx(0.125)
    assert whole["smallest_p"] == pytest.approx(0.125)
    assert v1["mean_difference"] == pytest.approx(-0.04)
    assert v1["p_wilcoxon"] == pytest.approx(0.125)


def test_participants_without_a_value_do_not_count():
    rows = [difference_row("01", 0.1), difference_row("02", NAN), difference_row("03", 0.2)]
    (test,) = group_tests(rows)
    assert test["n_participants"] == 2
    assert test["mean_difference"] == pytest.approx(0.15)
    assert test["smallest_p"] == pytest.approx(0.5)


def test_pairs_and_regions_keep_their_order():
    rows = [difference_row("01", 0.1, models=pair, roi=roi) for pair in ("ab", "ac") for roi in ("all", "V1")]
    assert [(t["model_b"], t["roi"]) for t in group_tests(rows)] == [
        ("b", "all"),
        ("b", "V1"),
        ("c", "all"),
        ("c", "V1"),
    ]
    assert group_tests([]) == []


def roi_row(participant, r, *, roi="V1", r2=None, coverage=1.0):
    return {
        "participant": participant,
        "model": "m",
        "condition": "generatedAR",
        "pooling": "generated",
        "instruction": "AR",
        "layer": 3,
        "roi_index": 1,
        "roi": roi,
        "kind": "area",
        "n_voxels": 10,
        "coverage": coverage,
        "r": r,
        "r2": r2,
        "cv_r2": r / 2,
        "r_normalized": 2 * r,
        "alpha_edge_share": 0.0,
    }


def test_regions_are_averaged_over_participants():
    rows = [roi_row("01", 0.2), roi_row("01", 0.5, roi="A1"), roi_row("02", 0.4), roi_row("03", NAN)]
    v1, a1 = roi_summary(rows)
    assert (v1["roi"], v1["layer"], v1["instruction"], v1["n_participants"]) == ("V1", 3, "AR", 2)
    assert v1["r"] == pytest.approx(0.3)
    assert v1["r_sem"] == pytest.approx(0.1)
    assert v1["cv_r2"] == pytest.approx(0.15)
    assert v1["r_normalized"] == pytest.approx(0.6)
    assert np.isnan(v1["r2"])
    assert (a1["roi"], a1["n_participants"]) == ("A1", 1)
    assert np.isnan(a1["r_sem"])


def test_participants_whose_mask_misses_most_of_a_region_do_not_count():
    rows = [roi_row("01", 0.2), roi_row("02", 0.4, coverage=0.5), roi_row("03", 5.0, coverage=0.49)]
    (v1,) = roi_summary(rows)
    assert (v1["n_participants"], v1["lowest_coverage"]) == (2, 0.49)
    assert v1["r"] == pytest.approx(0.3)
    (test,) = group_tests([difference_row("01", 0.1), difference_row("02", 9.0, coverage=0.2)])
    assert (test["n_participants"], test["mean_difference"]) == (1, pytest.approx(0.1))


def test_a_region_that_nobody_covers_is_undefined():
    (v1,) = roi_summary([roi_row("01", 0.2, coverage=0.0)])
    assert v1["n_participants"] == 0
    assert np.isnan(v1["r"])


def test_labels_that_differ_between_distributions_part_no_region():
    left_first, right_first = roi_row("01", 0.2), roi_row("02", 0.4) | {"roi_index": 181}
    (v1,) = roi_summary([left_first, right_first])
    assert v1["n_participants"] == 2


def test_regions_that_are_left_out_are_named_with_the_participant_once():
    rows = [roi_row("01", 0.2), roi_row("02", 0.1, coverage=0.3), roi_row("02", 0.1, coverage=0.3)]
    rows.append(roi_row("02", 0.1, roi="A1", coverage="0.25"))
    assert coverage_warnings(rows) == [
        "sub-02 takes no part in the means of V1 (30%), A1 (25%), of which its mask holds less than 50%."
    ]
    assert coverage_warnings(rows[:1]) == []
    many = [roi_row("01", 0.1, roi=f"R{number}", coverage=0.1) for number in range(12)]
    assert "R9 (10%) and 2 more regions" in coverage_warnings(many)[0]
