"""What the nodes of the participant graph depend on and reserve."""

import os
from dataclasses import replace

import pytest

from bids_mllm.records import ParticipantDesign, Run
from bids_mllm.workflows.participant import _bold_gb, _file_signatures

GIB = 1024**3


@pytest.fixture
def run(tmp_path):
    """A run of both hemispheres, with files of a size on paper."""
    paths = [tmp_path / f"sub-01_task-a_hemi-{side}_space-fsaverage6_bold.func.gii" for side in "LR"]
    for path in paths:
        sized(path, GIB // 10)
    return Run(
        "01", None, "a", 1, "fsaverage6", paths[0], None, None, 1.49, 0.0, 400, form="surface", bold_right=paths[1]
    )


def sized(path, size):
    path.touch()
    os.truncate(path, size)


def design(*runs):
    return ParticipantDesign("01", runs[0].space, runs, (), (), None)


@pytest.mark.parametrize("side", ["bold", "bold_right"])
def test_a_change_of_either_hemisphere_is_noticed(run, side):
    before = _file_signatures(design(run))
    os.utime(getattr(run, side), (1, 1))
    assert _file_signatures(design(run)) != before


def test_memory_to_clean_runs_is_that_of_the_largest_with_both_hemispheres(run):
    assert _bold_gb(design(run, replace(run, run=2))) == pytest.approx(3 * 5 * 0.2, rel=0.01)


def test_series_within_one_file_share_its_size_and_are_not_compressed(run, tmp_path):
    path = tmp_path / "sub-01_bold.h5"
    sized(path, GIB)
    runs = [replace(run, run=n, form="parcels", bold=path, bold_right=None, dataset=str(n)) for n in range(4)]
    assert _bold_gb(design(*runs)) == pytest.approx(3 / 4)
