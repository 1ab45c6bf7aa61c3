"""Region means on hand-made maps, NaNs included."""

import numpy as np
import pytest

from bids_mllm.outcomes import ModelScores
from bids_mllm.records import Atlas, Condition
from bids_mllm.score.roi import roi_table

CONDITIONS = (Condition("generated", "AR"), Condition("stimulus"))
ATLAS = Atlas(
    name="toy",
    n_voxels=6,
    members=(np.array([3, 4, 5]), np.array([0, 1]), np.array([], dtype=int), np.array([1, 3, 4])),
    names=("seven", "one", "absent", "both"),
    kinds=("area", "area", "area", "group"),
    indices=(7, 1, 9, None),
    total_voxels=(6, 2, 4, 4),
)


@pytest.fixture
def scores():
    r = np.arange(24, dtype=np.float32).reshape(2, 2, 6)
    r[..., 5] = np.nan
    edge = np.zeros((2, 2, 6), dtype=bool)
    edge[0, 1, 3] = edge[0, 1, 5] = True
    best = np.array([0, 0, 0, 1, 0, -1], dtype=np.int16)
    return ModelScores(
        model="m",
        conditions=CONDITIONS,
        layers=(0, 12),
        r=r,
        r_concatenated=r,
        r2=r / 100,
        cv_r2=r / 10,
        alpha=np.ones_like(r),
        alpha_edge=edge,
        best_r=np.array([1, 3, 9, 2, 4, np.nan]),
        best_r2=np.array([2, 4, 9, 6, 8, np.nan]),
        best_condition=best,
        best_layer=np.array([1, 1, 0, 0, 1, -1], dtype=np.int16),
        condition_best_r=np.array([[5, 7, 0, 1, 3, np.nan], [6, 8, 0, 2, 4, np.nan]]),
        condition_best_layer=np.array([[0, 1, 0, 1, 1, -1], [0, 0, 0, 0, 0, -1]], dtype=np.int16),
        fold_cv_r2=np.zeros((1, 2, 2)),
        fold_names=("f",),
    )


def row_of(rows, roi, condition, layer):
    (row,) = [row for row in rows if (row["roi"], row["condition"], row["layer"]) == (roi, condition, layer)]
    return row


def test_there_is_a_row_for_every_space_choice_and_region(scores):
    rows = roi_table(scores, ATLAS)
    assert len(rows) == 4 * (2 * 2 + 2 + 1)
    assert {row["layer"] for row in rows} == {0, 12, "best"}


def test_a_space_is_averaged_over_the_finite_voxels_of_a_region(scores):
    row = row_of(roi_table(scores, ATLAS), "seven", "generatedAR", 12)
    assert row["model"] == "m"
    assert (row["pooling"], row["instruction"], row["roi_index"]) == ("generated", "AR", 7)
    assert row["n_voxels"] == 2
    assert row["coverage"] == pytest.approx(3 / 6)
    assert row["r"] == pytest.approx((9 + 10) / 2)
    assert row["r2"] == pytest.approx(0.095)
    assert row["cv_r2"] == pytest.approx(0.95)
    assert row["alpha_edge_share"] == pytest.approx(1 / 2)
    assert row_of(roi_table(scores, ATLAS), "one", "stimulus", 0)["r"] == pytest.approx(12.5)


def test_a_group_takes_voxels_of_two_areas_and_has_no_label(scores):
    row = row_of(roi_table(scores, ATLAS), "both", "generatedAR", 12)
    assert (row["kind"], row["roi_index"], row["n_voxels"]) == ("group", None, 3)
    assert row["r"] == pytest.approx((7 + 9 + 10) / 3)
    assert row["coverage"] == pytest.approx(3 / 4)
    assert row_of(roi_table(scores, ATLAS), "seven", "generatedAR", 12)["kind"] == "area"


def test_a_region_outside_the_mask_is_nan_with_no_coverage(scores):
    row = row_of(roi_table(scores, ATLAS), "absent", "stimulus", 0)
    assert (row["n_voxels"], row["coverage"]) == (0, 0.0)
    assert all(np.isnan(row[name]) for name in ("r", "r2", "cv_r2", "alpha_edge_share"))


def test_the_best_layer_of_a_condition(scores):
    row = row_of(roi_table(scores, ATLAS), "seven", "generatedAR", "best")
    assert row["r"] == pytest.approx(2)
    assert np.isnan(row["r2"])
    assert row["cv_r2"] == pytest.approx((0.9 + 1.0) / 2)
    assert row["alpha_edge_share"] == pytest.approx(1 / 2)


def test_the_best_space_of_a_model(scores):
    row = row_of(roi_table(scores, ATLAS), "seven", "best", "best")
    assert (row["pooling"], row["instruction"]) == ("best", None)
    assert (row["r"], row["r2"]) == (pytest.approx(3), pytest.approx(7))
    assert row["cv_r2"] == pytest.approx((1.5 + 1.0) / 2)
    assert row["alpha_edge_share"] == 0
    assert row_of(roi_table(scores, ATLAS), "one", "best", "best")["cv_r2"] == pytest.approx((0.6 + 0.7) / 2)


def test_maps_and_atlas_must_have_the_same_voxels(scores):
    short = Atlas("toy", 2, (np.array([0]), np.array([1])), ("one", "seven"), ("area", "area"), (1, 7), (2, 2))
    with pytest.raises(ValueError, match="6 samples and the atlas has 2"):
        roi_table(scores, short)
