"""Parts of pairs of instructions over participants, by hand."""

import numpy as np
import pytest
from scipy.stats import sem

from bids_mllm.group.partition import partition_means

NAN = np.nan


def row(participant, unique_a, unique_b, shared, *, pair=("gAR", "gVU"), roi="all", kind="all", measure="R2"):
    return {
        "participant": participant, "model": "m", "condition_a": pair[0], "condition_b": pair[1], "roi": roi,
        "kind": kind, "measure": measure, "unique_a": unique_a, "unique_b": unique_b, "shared": shared,
        "joint": unique_a + unique_b + shared, "n_voxels": 10,
    }  # fmt: skip


def test_parts_are_averaged_over_participants():
    rows = [row("01", 0.02, 0.01, 0.07), row("02", 0.04, -0.01, 0.09), row("03", NAN, 0.0, 0.1)]
    (mean,) = partition_means(rows)
    assert (mean["unique_a"], mean["unique_b"], mean["shared"], mean["joint"]) == pytest.approx((0.03, 0.0, 0.08, 0.11))
    assert mean["n_participants"] == 2
    assert mean["unique_a_sem"] == pytest.approx(sem([0.02, 0.04]))
    assert mean["joint_sem"] == pytest.approx(sem([0.10, 0.12]))
    assert (mean["unique_a_percent"], mean["shared_percent"]) == pytest.approx((100 * 3 / 11, 100 * 8 / 11))
    assert sum(mean[f"{part}_percent"] for part in ("unique_a", "unique_b", "shared")) == pytest.approx(100)


def test_sets_and_all_voxels_have_rows_and_areas_have_none():
    rows = [
        row("01", 0.1, 0.1, 0.1),
        row("01", 0.1, 0.1, 0.1, measure="normalized r"),
        row("01", 0.2, 0.1, 0.1, roi="visual", kind="set"),
        row("01", 0.2, 0.1, 0.1, roi="EVC", kind="group"),
        row("01", 0.2, 0.1, 0.1, roi="V1", kind="area"),
        row("01", 0.2, 0.1, 0.1, pair=("gAR", "gNU")),
    ]
    assert [(mean["roi"], mean["condition_b"], mean["measure"]) for mean in partition_means(rows)] == [
        ("all", "gVU", "R2"), ("all", "gVU", "normalized r"), ("visual", "gVU", "R2"), ("all", "gNU", "R2"),
    ]  # fmt: skip
    assert partition_means([]) == []


def test_a_pair_that_explains_nothing_has_no_percents():
    (mean,) = partition_means([row("01", 0.01, 0.01, -0.05)])
    assert np.isnan(mean["shared_percent"])
    assert np.isnan(mean["shared_sem"])
    (mean,) = partition_means([row("01", NAN, NAN, NAN)])
    assert (mean["n_participants"], np.isnan(mean["joint"])) == (0, True)
