"""Volumes taken before the magnetisation was steady, and series that lack volumes of their run."""

import pytest

from bids_mllm.exceptions import InputDataError

from .forms import add_store, add_table
from .tree import SPACE, TR, dangle, write_json

CONFOUNDS = "sub-01_task-a_desc-confounds_timeseries.tsv"
STEADY = "non_steady_state_outlier00\tcsf\n1\t5\n0\t6\n0\t6\n0\t6\n0\t6\n"
PARCELS = "MNI152NLin2009cAsym:seg-4S456Parcels"
TABLE = "task-a_space-MNI152NLin2009cAsym_seg-4S456Parcels_stat-mean"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("trans_x\n0.1\n0.2\n0.3\n", 0),
        ("trans_x\tnon_steady_state_outlier00\n0.1\t1.0\n0.2\t0.0\n0.2\t0.0\n", 1),
        (
            "non_steady_state_outlier00\tcsf\tnon_steady_state_outlier01\n1\tn/a\t0\n0\t5\t1\n0\t6\t0\n0\t6\t0\n\n",
            2,
        ),
    ],
)
def test_flagged_volumes_are_counted(study, find, rows, expected):
    bold = study.add("01", None, "a", n_volumes=len(rows.split()) // len(rows.split("\n")[0].split("\t")) - 1)
    bold.with_name(CONFOUNDS).write_text(rows)
    assert find()[0].non_steady_state == expected


def test_no_confounds(study, find):
    path = study.add("01", None, "a").with_name(CONFOUNDS)
    dangle(path)
    assert find()[0].non_steady_state == 0
    path.unlink()
    assert find()[0].non_steady_state == 0


@pytest.fixture
def xcp(study, tmp_path):
    """A derivative without confounds of a run of 5 volumes, the first of which was not steady."""
    study.add("01", None, "a", sidecar={"RepetitionTime": TR}).with_name(CONFOUNDS).write_text(STEADY)
    root = tmp_path / "xcp"
    content = {"Name": "x", "BIDSVersion": "1.8.0", "GeneratedBy": [{"Name": "xcp_d"}]}
    write_json(root / "dataset_description.json", content)
    return root


def test_a_whole_series_without_confounds_is_flagged_as_its_run(find, xcp):
    add_table(xcp, TABLE, "ab", 5)
    (run,) = find(spaces=(PARCELS,), others={"xcp": xcp})
    assert (run.denoised, run.n_volumes, run.non_steady_state) == (True, 5, 1)
    # A table of its own says nothing of the first volumes.
    (xcp / "sub-01" / "func" / CONFOUNDS).write_text("fd\n" + "0\n" * 5)
    (run,) = find(spaces=(PARCELS,), others={"xcp": xcp})
    assert (run.confounds.parents[2], run.non_steady_state) == (xcp, 1)


@pytest.mark.parametrize("own", [None, 4, 5])
def test_a_series_without_some_volumes_of_its_run_is_refused(study, find, xcp, own):
    path = add_table(xcp, TABLE, "ab", 4)
    if own is not None:
        path.with_name(CONFOUNDS).write_text("fd\n" + "0\n" * own)
    with pytest.raises(InputDataError) as caught:
        find(spaces=(PARCELS,), others={"xcp": xcp})
    for words in (f"{path} has 4 volumes", str(study.prep), "have 5 rows", "all volumes of its run", "interpolated"):
        assert words in str(caught.value)


def test_a_key_without_some_volumes_of_its_run_is_named(study, find, tmp_path):
    study.add("01", "001", "a", sidecar={"RepetitionTime": TR})
    path = add_store(tmp_path / "fmri", {"ses-001_task-a": (4, 3)})
    with pytest.raises(InputDataError, match=rf"{path}, ses-001_task-a, has 4 volumes .* have 5 rows"):
        find(spaces=("MNI152NLin2009cAsym:atlas-Schaefer18",), others={"fmri": tmp_path / "fmri"})


def test_a_preprocessed_series_without_some_volumes_is_refused_too(study, find):
    study.add("01", None, "a").with_name(CONFOUNDS).write_text("csf\n1\n")
    with pytest.raises(InputDataError, match=rf"task-a_{SPACE}.* has 5 volumes .* have 1 rows"):
        find()


def test_a_series_that_is_not_here_is_not_compared(study, find):
    dangle(study.add("01", None, "a", sidecar={"RepetitionTime": TR}))
    assert find()[0].bold is None
