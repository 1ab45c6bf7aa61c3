"""A run that one space lacks takes no part there only."""

import json

import pytest
from movie10_tree import SMALL, build

from bids_mllm.cli.parser import parse_settings
from bids_mllm.records import Run, Showing
from bids_mllm.workflows.plan import _check_overlap, _check_spans, plan_study


@pytest.fixture
def settings(tmp_path):
    """Settings for two spaces, one of which lacks a run."""
    raw, prep = build(tmp_path, json.loads(SMALL.read_text()), participants=["sub-01"])
    for path in prep.glob("sub-01/*/func/*task-bourne01_space-T1w_*"):
        path.unlink()
    words = (raw, tmp_path / "out", "participant", "--derivatives", f"fmriprep={prep}", "-w", tmp_path / "work",
             "--space", "MNI152NLin2009cAsym", "T1w", "--models", "melspectrogram")  # fmt: skip
    return parse_settings([str(word) for word in words])


def test_only_the_design_of_that_space_lists_it(settings):
    listed = {}
    for design in plan_study(settings, only_list=True).designs:
        assert {drop.place for drop in design.dropped} <= {None, design.place}
        listed[design.place] = [drop.label for drop in design.dropped if "bourne01" in drop.label]
        assert any("bourne01" in run.label for run in design.runs) == (design.place == "MNI152NLin2009cAsym")
    assert listed == {"MNI152NLin2009cAsym": [], "T1w": ["ses-001_task-bourne01"]}


def test_runs_that_are_too_short_or_without_times_name_their_space(settings):
    run = Run("01", None, "a", None, "T1w", None, None, None, 1.49, 0.0, 3, showings=(Showing("a.mkv", 0.0),))
    for kept, dropped in (_check_spans([run], {"a.mkv": 0.0}), _check_overlap(settings, [run], {"a.mkv": 5.0})):
        assert kept == ()
        assert [drop.place for drop in dropped] == ["T1w"]
