"""Runs of a miniature movie10: which are found, with which files and which clock."""

import pickle
import shutil
from dataclasses import replace

import pytest

from bids_mllm.discover.lost import usable_runs
from bids_mllm.exceptions import InputDataError, UsageError
from bids_mllm.records import Showing

from .tree import SPACE, TR, Study, dangle, write_bold, write_json, write_mask


@pytest.fixture
def movie10(study: Study) -> Study:
    """Two participants, films with and without a run entity, two viewings, aborted and annexed runs."""
    for task in ("bourne01", "life01"):
        study.events(f"task-{task}_events.tsv", f"{task[:-2]}/{task}.mkv")
        write_json(study.raw / f"task-{task}_bold.json", {"TaskName": task, "RepetitionTime": TR})
    for sub in ("01", "02"):
        for ses, task, run in (("001", "bourne01", None), ("002", "life01", "1"), ("003", "life01", "2")):
            study.add(sub, ses, task, run, n_volumes=4)
            padded = run and f"0{run}"
            write_bold(study.func(study.raw, sub, ses) / f"{study.stem(sub, ses, task, padded)}_bold.nii.gz", 4)
        (study.prep / f"sub-{sub}" / "ses-004" / "func").mkdir(parents=True)
        folder = study.func(study.prep, sub, "001")
        stem = study.stem(sub, "001", "bourne01")
        write_bold(folder / f"{stem}_{SPACE}_desc-preproc_bold__dup-01.nii.gz", 4)
        write_bold(folder / f"{stem}_space-T1w_desc-preproc_bold.nii.gz", 4)
        write_mask(folder / f"{stem}_space-T1w_desc-brain_mask.nii.gz")
        (folder / f"{stem}_space-fsLR_den-91k_bold.dtseries.nii").write_bytes(b"")
        for root in (study.raw, study.prep):
            physio = study.func(root, sub, "001") / f"{stem}_physio.json"
            physio.write_bytes(pickle.dumps({"a": 1}))
            physio.with_suffix(".tsv.gz").write_bytes(b"")
    return study


def test_every_run_is_found_in_order_with_its_files(movie10, find):
    runs = find(participants=("01",))
    assert [run.label for run in runs] == [
        "ses-001_task-bourne01",
        "ses-002_task-life01_run-1",
        "ses-003_task-life01_run-2",
    ]
    assert {run.participant for run in runs} == {"01"}
    for run in runs:
        assert run.bold.name.endswith(f"_{SPACE}_desc-preproc_bold.nii.gz")
        assert run.mask.name == run.bold.name.replace("desc-preproc_bold", "desc-brain_mask")
        assert run.confounds.name == run.bold.name.partition("_space")[0] + "_desc-confounds_timeseries.tsv"
        assert run.events == movie10.raw / f"task-{run.task}_events.tsv"
        assert (run.n_volumes, run.repetition_time, run.start_time) == (4, TR, 0.0)
        assert run.resolution is None


def test_all_participants_and_several_spaces(movie10, find):
    runs = find(spaces=("MNI152NLin2009cAsym", "T1w"))
    assert sorted((run.participant, run.space) for run in runs) == [
        (sub, space) for sub in ("01", "02") for space in ("MNI152NLin2009cAsym",) * 3 + ("T1w",)
    ]
    assert all(f"_space-{run.space}_" in run.mask.name for run in runs)


@pytest.mark.parametrize(
    ("query", "labels"),
    [
        ({"sessions": ("002",)}, ["ses-002_task-life01_run-1"]),
        ({"tasks": ("bourne01",)}, ["ses-001_task-bourne01"]),
        ({"runs": (2,)}, ["ses-003_task-life01_run-2"]),
        ({"filters": {"bold": {"run": None}}}, ["ses-001_task-bourne01"]),
        ({"filters": {"bold": {"run": "*"}}}, ["ses-002_task-life01_run-1", "ses-003_task-life01_run-2"]),
        ({"filters": {"bold": {"session": ["001", "003"], "task": "life01"}}}, ["ses-003_task-life01_run-2"]),
        ({"filters": {"bold": {"run": 1}}}, ["ses-002_task-life01_run-1"]),
        ({"filters": {"bold": {"run": "2"}}}, ["ses-003_task-life01_run-2"]),
    ],
)
def test_filters(movie10, find, query, labels):
    assert [run.label for run in find(participants=("02",), **query)] == labels


def test_a_filter_of_masks_and_confounds_does_not_touch_the_bold(movie10, find):
    filters = {"mask": {"session": "001"}, "confounds": {"session": "002"}}
    runs = find(participants=("01",), filters=filters)
    assert [run.mask is not None for run in runs] == [True, False, False]
    assert [run.confounds is not None for run in runs] == [False, True, False]


def test_nothing_matches_says_what_was_asked_and_what_there_is(movie10, find):
    with pytest.raises(UsageError) as caught:
        find(participants=("01",), tasks=("rest",), spaces=("fsnative",))
    text = str(caught.value)
    for word in ("fsnative", "task rest", "MNI152NLin2009cAsym", "T1w", "bourne01, life01", "001, 002, 003"):
        assert word in text


def test_nothing_matches_where_names_have_no_session_task_or_space(study, find):
    write_mask(study.prep / "sub-01" / "func" / "sub-01_mask.nii.gz")
    with pytest.raises(UsageError, match=r"No preprocessed BOLD"):
        find(participants=("01",))


def test_a_dangling_bold_is_listed_and_dropped_with_the_way_to_fetch_it(movie10, find):
    dangle(
        movie10.func(movie10.prep, "01", "002") / f"sub-01_ses-002_task-life01_run-1_{SPACE}_desc-preproc_bold.nii.gz"
    )
    runs = [replace(run, showings=(Showing("a.mkv", 0.0),)) for run in find(participants=("01",))]
    assert [run.bold is None for run in runs] == [False, True, False]
    assert (runs[1].n_volumes, runs[1].repetition_time) == (0, TR)
    usable, dropped = usable_runs(runs)
    assert len(usable) == 2
    assert [(drop.participant, drop.label) for drop in dropped] == [("01", "ses-002_task-life01_run-1")]
    assert "datalad get" in dropped[0].reason


def test_a_dangling_mask_drops_the_run_instead_of_taking_every_voxel(movie10, find):
    name = f"sub-01_ses-002_task-life01_run-1_{SPACE}_desc-brain_mask.nii.gz"
    dangle(movie10.func(movie10.prep, "01", "002") / name)
    runs = [replace(run, showings=(Showing("a.mkv", 0.0),)) for run in find(participants=("01",))]
    usable, dropped = usable_runs(runs)
    assert len(usable) == 2
    assert name in dropped[0].reason
    assert "datalad get" in dropped[0].reason


def test_runs_without_showings_are_dropped_with_the_reason(movie10, find):
    runs = find(participants=("01",), tasks=("bourne01",))
    assert "no events file" in usable_runs(runs)[1][0].reason
    ruled = [replace(runs[0], showings_rule="nothing shown")]
    assert usable_runs(ruled)[1][0].reason == "nothing shown"


def test_a_run_without_mask_or_confounds_is_found(study, find):
    bold = study.add("01", None, "a")
    for path in bold.parent.iterdir():
        if path != bold:
            path.unlink()
    (run,) = find()
    assert (run.mask, run.confounds, run.session, run.run) == (None, None, None, None)
    assert run.repetition_time == TR


def test_older_confounds_are_found(study, find):
    bold = study.add("01", None, "a")
    old = bold.parent / "sub-01_task-a_desc-confounds_regressors.tsv"
    shutil.move(bold.parent / "sub-01_task-a_desc-confounds_timeseries.tsv", old)
    assert find()[0].confounds == old


def test_acquisitions_keep_their_own_files(study, find):
    for acq in ("fast", "slow"):
        study.add("01", None, f"a_acq-{acq}")
        study.events(f"task-a_acq-{acq}_events.tsv", f"{acq}.mkv")
    for run in find():
        acq = "fast" if "acq-fast" in run.bold.name else "slow"
        assert all(f"acq-{acq}" in path.name for path in (run.mask, run.confounds, run.events))


def test_resolutions_find_their_own_mask(study, find):
    for res, shape in (("1", (4, 4, 4)), ("2", (2, 2, 2))):
        bold = study.add("01", None, "a", space=f"{SPACE}_res-{res}", shape=shape)
        write_mask(bold.with_name(bold.name.replace("desc-preproc_bold", "desc-brain_mask")), shape)
    runs = find()
    assert sorted((run.resolution, f"res-{run.resolution}" in run.mask.name) for run in runs) == [
        ("1", True),
        ("2", True),
    ]
    assert [run.resolution for run in find(filters={"bold": {"res": "2"}})] == ["2"]


def test_other_descriptions_are_not_taken(study, find):
    bold = study.add("01", None, "a")
    write_bold(bold.with_name(bold.name.replace("desc-preproc", "desc-smoothAROMAnonaggr")), 5)
    write_bold(bold.with_name(bold.name.replace("_task-a", "_task-b").replace("_desc-preproc", "")), 5)
    assert [run.task for run in find()] == ["a", "b"]


# Clocks


def test_repetition_time_only_in_the_sidecar_of_another_space(study, find):
    bold = study.add("01", "001", "a", repetition_time=0.0)
    write_json(bold.parent / "sub-01_ses-001_task-b_space-fsLR_den-91k_bold.json", {"RepetitionTime": 3.0})
    write_json(bold.parent / "sub-01_ses-001_task-a_space-fsLR_den-91k_bold.json", {"RepetitionTime": 1.49})
    assert find()[0].repetition_time == 1.49


def test_repetition_time_only_in_the_raw_root(study, find):
    study.add("01", "001", "a", "1", repetition_time=0.0)
    write_json(study.raw / "task-a_bold.json", {"RepetitionTime": 1.49, "StartTime": 9.0})
    (run,) = find()
    assert (run.repetition_time, run.start_time) == (1.49, 0.0)


def test_repetition_time_nowhere(study, find):
    bold = study.add("01", "001", "a", repetition_time=0.0)
    with pytest.raises(InputDataError) as caught:
        find()
    assert str(bold) in str(caught.value)
    assert "RepetitionTime" in str(caught.value)


def test_the_header_alone_gives_the_repetition_time_in_full(study, find):
    study.add("01", None, "a", repetition_time=1.49)
    assert find()[0].repetition_time == 1.49


@pytest.mark.parametrize(("value", "unit"), [(1490.0, "msec"), (1.49e6, "usec"), (1.49, "unknown")])
def test_units_of_the_header(study, find, value, unit):
    study.add("01", None, "a", repetition_time=value, unit=unit, sidecar={"RepetitionTime": 1.49})
    assert find()[0].repetition_time == 1.49
    study.add("01", None, "b", repetition_time=value, unit=unit)
    assert find(tasks=("b",))[0].repetition_time == 1.49


def test_header_and_sidecar_that_disagree_name_both(study, find):
    bold = study.add("01", None, "a", repetition_time=2.0, sidecar={"RepetitionTime": 1.49})
    with pytest.raises(InputDataError) as caught:
        find()
    assert all(word in str(caught.value) for word in (str(bold), "1.49 s", "2 s"))


@pytest.mark.parametrize(
    ("sidecar", "start"),
    [
        ({}, 0.0),
        ({"SliceTimingCorrected": False}, 0.0),
        ({"SliceTimingCorrected": True}, TR / 2),
        ({"SliceTimingCorrected": True, "StartTime": 0.1175}, 0.1175),
        ({"SliceTimingCorrected": True, "StartTime": 0}, 0.0),
        ({"StartTime": 0.7}, 0.7),
        ({"DelayTime": 0.12}, 0.0),
        ({"SliceTimingCorrected": True, "StartTime": None}, TR / 2),
    ],
)
def test_start_time(study, find, sidecar, start):
    study.add("01", None, "a", sidecar=sidecar | {"RepetitionTime": TR})
    assert find()[0].start_time == start


@pytest.mark.parametrize(
    "sidecar", [{"RepetitionTime": "1.49 s"}, {"RepetitionTime": 0}, {"RepetitionTime": TR, "StartTime": "x"}]
)
def test_times_that_are_no_numbers_are_one_sentence(study, find, sidecar):
    study.add("01", None, "a", sidecar=sidecar)
    with pytest.raises(InputDataError, match=r"must be a number of seconds"):
        find()


def test_the_sidecar_of_the_space_comes_before_the_raw_one(study, find):
    study.add("01", None, "a", repetition_time=0.0, sidecar={"RepetitionTime": 1.5})
    write_json(study.raw / "task-a_bold.json", {"RepetitionTime": 2.0})
    assert find()[0].repetition_time == 1.5


# Images that do not fit


def test_a_mask_of_another_shape(study, find):
    bold = study.add("01", None, "a")
    mask = write_mask(bold.with_name(bold.name.replace("desc-preproc_bold", "desc-brain_mask")), (9, 4, 2))
    with pytest.raises(InputDataError) as caught:
        find()
    assert all(word in str(caught.value) for word in (str(mask), "(9, 4, 2)", "(3, 4, 2)"))


@pytest.mark.parametrize("suffix", ["desc-preproc_bold", "desc-brain_mask"])
@pytest.mark.parametrize("content", [b"", b"no image", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03broken"])
def test_a_damaged_image_is_one_sentence(study, find, suffix, content):
    bold = study.add("01", None, "a")
    path = bold.with_name(bold.name.replace("desc-preproc_bold", suffix))
    path.write_bytes(content)
    with pytest.raises(InputDataError, match=r"cannot be read"):
        find()


def test_a_bold_of_three_dimensions(study, find):
    write_mask(study.add("01", None, "a"))
    with pytest.raises(InputDataError, match=r"\(3, 4, 2\); expected a 4-D"):
        find()
