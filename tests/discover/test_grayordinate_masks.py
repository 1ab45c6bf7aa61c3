"""Runs of grayordinates find the brain mask of their voxels, which lie in a space of volumes."""

from dataclasses import replace

from bids_mllm.discover.lost import usable_runs
from bids_mllm.records import Showing

from .forms import add_dense
from .tree import dangle, write_mask


def mask_path(study, task, kind):
    name = f"sub-01_task-{task}_space-MNI152NLin6Asym{kind}_desc-brain_mask.nii.gz"
    return study.func(study.prep, "01", None) / name


def test_the_mask_is_that_of_the_same_run_in_the_space_of_the_voxels(study, find):
    """At 2 mm before other resolutions; its shape is not that of the series."""
    for task in "abc":
        add_dense(study, task)
    study.add("01", None, "a")
    expected = {"a": None}
    for task, kinds in {"b": ("", "_res-1"), "c": ("_res-1", "_res-02")}.items():
        written = [write_mask(mask_path(study, task, kind), (9, 9, 9)) for kind in kinds]
        expected[task] = written[1]
    assert {run.task: run.mask for run in find(spaces=("fsLR",))} == expected


def test_a_mask_that_was_not_fetched_drops_the_run_as_it_does_for_volumes(study, find):
    add_dense(study, "a")
    dangle(mask_path(study, "a", ""))
    (run,) = find(spaces=("fsLR",))
    usable, (dropped,) = usable_runs([replace(run, showings=(Showing("film.mkv", 0.0),))])
    assert usable == ()
    assert "its mask file is a link to content that was not fetched" in dropped.reason
