"""Comparisons and region summaries on hand-made rows."""

import numpy as np
import pytest

from bids_mllm.group.tables import compare_models, roi_summary

NAN = np.nan


def test_pairs_are_compared_over_the_voxels_both_have():
    best_r = {
        "a": np.array([[0.5, 0.2, NAN, 0.1], [NAN, NAN, NAN, NAN]]),
        "b": np.array([[0.1, 0.3, 0.9, 0.1], [0.1, 0.1, 0.1, 0.1]]),
    }
    first, second = compare_models(best_r, participants=("01", "02"))
    assert (first["participant"], first["model_a"], first["model_b"]) == ("01", "a", "b")
    assert first["mean_difference"] == pytest.approx(0.1)
    assert first["share_a_higher"] == pytest.approx(1 / 3)
    assert first["n_voxels"] == 3
    assert second["n_voxels"] == 0
    assert np.isnan(second["mean_difference"])
    assert np.isnan(second["share_a_higher"])


def test_every_pair_and_participant_has_a_row():
    best_r = {name: np.zeros((2, 3)) for name in "abc"}
    rows = compare_models(best_r, participants=("01", "02"))
    assert [(row["model_a"], row["model_b"]) for row in rows[::2]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert len(rows) == 6


def test_labels_and_rows_must_agree():
    with pytest.raises(ValueError, match="a has 2 participants, but 1"):
        compare_models({"a": np.zeros((2, 3))}, participants=("01",))


def roi_row(participant, r, *, roi="V1", r2=None):
    return {
        "participant": participant,
        "model": "m",
        "condition": "generatedAR",
        "pooling": "generated",
        "instruction": "AR",
        "layer": 3,
        "roi_index": 1,
        "roi": roi,
        "n_voxels": 10,
        "coverage": 1.0,
        "r": r,
        "r2": r2,
        "cv_r2": r / 2,
        "alpha_edge_share": 0.0,
    }


def test_regions_are_averaged_over_participants():
    rows = [roi_row("01", 0.2), roi_row("01", 0.5, roi="A1"), roi_row("02", 0.4), roi_row("03", NAN)]
    v1, a1 = roi_summary(rows)
    assert (v1["roi"], v1["layer"], v1["instruction"], v1["n_participants"]) == ("V1", 3, "AR", 2)
    assert v1["r"] == pytest.approx(0.3)
    assert v1["r_sem"] == pytest.approx(0.1)
    assert v1["cv_r2"] == pytest.approx(0.15)
    assert np.isnan(v1["r2"])
    assert (a1["roi"], a1["n_participants"]) == ("A1", 1)
    assert np.isnan(a1["r_sem"])
