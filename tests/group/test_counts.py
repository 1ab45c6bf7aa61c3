"""Counts of preferred conditions and layers, against numpy and by hand."""

import numpy as np

from bids_mllm.group.counts import choice_counts, choice_rows


def test_only_predicted_voxels_with_a_choice_count():
    best = np.array([0, 1, 1, 2, np.nan, -1, 2, 2])
    r = np.array([0.1, 0.2, 0.3, -0.1, 0.5, 0.5, np.nan, 0.0])
    np.testing.assert_array_equal(choice_counts(best, r, 4), [1, 2, 0, 0])


def test_counts_are_numpys_where_all_is_predicted():
    best = np.random.default_rng(0).integers(0, 13, 500).astype(np.int16)
    values, expected = np.unique(best, return_counts=True)
    np.testing.assert_array_equal(choice_counts(best, np.ones(500), 13)[values], expected)


def test_rows_have_counts_and_shares_of_every_value():
    choices = {"condition": (np.array([0, 0, 1]), ["gAR", "gVU", "gNU"]), "layer": (np.array([1, 1, 1]), [4, 8])}
    rows = choice_rows({"roi": "V1"}, choices, np.array([0.1, 0.2, 0.3]))
    assert [(row["roi"], row["choice"], row["value"], row["count"], row["share"]) for row in rows] == [
        ("V1", "condition", "gAR", 2, 2 / 3),
        ("V1", "condition", "gVU", 1, 1 / 3),
        ("V1", "condition", "gNU", 0, 0.0),
        ("V1", "layer", 4, 0, 0.0),
        ("V1", "layer", 8, 3, 1.0),
    ]
    assert {row["n_voxels"] for row in rows} == {3}
