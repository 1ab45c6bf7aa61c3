"""Fast features and checks of the clocks come back from their files as they were."""

import json

import numpy as np

from bids_mllm.io.clock import (
    load_clock,
    load_fast_features,
    read_clock_table,
    save_clock,
    save_fast_features,
    write_clock_table,
)
from bids_mllm.outcomes import ClockCheck
from bids_mllm.records import FastFeature

CHECK = ClockCheck(
    ("sound", "pictures"),
    np.array([-6.0, -5.75, -5.5]),
    np.array([[0.1, 0.2, 0.3], [0.0, -0.1, 0.05]]),
    np.array([5.25, np.nan]),
    np.array([8.5, np.nan]),
    {"Voxels": 12},
)


def test_features(tmp_path):
    features = (FastFeature("sound", 0.0, 0.1, np.array([1.0, np.nan])), FastFeature("pictures", 0.05, 0.1, np.ones(3)))
    save_fast_features(tmp_path / "a.npz", "films/a.mkv", features)
    stim_file, back = load_fast_features(tmp_path / "a.npz")
    assert stim_file == "films/a.mkv"
    for one, other in zip(features, back, strict=True):
        assert (one.name, one.origin, one.step) == (other.name, other.origin, other.step)
        np.testing.assert_array_equal(one.values, other.values)


def same(one, other):
    assert (one.features, one.facts) == (other.features, other.facts)
    for name in ("lags", "r", "peaks", "strengths"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name))


def test_a_check(tmp_path):
    save_clock(tmp_path / "clock.npz", CHECK)
    same(load_clock(tmp_path / "clock.npz"), CHECK)


def test_a_check_as_a_table_of_the_output(tmp_path):
    path = tmp_path / "sub-01_stat-clocklag_statmap.tsv"
    write_clock_table(path, CHECK, {"Sources": ["bids::a"]})
    same(read_clock_table(path), CHECK)
    content = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert content["Peaks"] == {"sound": 5.25, "pictures": None}
    assert content["ExpectedPeak"] == [3.0, 8.0]
    assert content["Sources"] == ["bids::a"]


def test_a_check_of_nothing(tmp_path):
    empty = ClockCheck((), CHECK.lags, np.zeros((0, 3)), np.zeros(0), np.zeros(0), {"Viewings": 0})
    path = tmp_path / "sub-01_stat-clocklag_statmap.tsv"
    write_clock_table(path, empty, {})
    same(read_clock_table(path), empty)
