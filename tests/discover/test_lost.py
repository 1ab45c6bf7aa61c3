"""Runs of the raw data set that take no part are told with the reason."""

from pathlib import Path

import pytest

from bids_mllm.discover.layout import choose_participants, index_derivative
from bids_mllm.discover.lost import raw_faults, usable_runs
from bids_mllm.discover.runs import find_runs
from bids_mllm.discover.series import RunQuery
from bids_mllm.discover.spaces import parse_space

from .forms import add_store
from .tree import SPACE, Study, dangle, write_json


@pytest.fixture
def told(study):
    """Find runs, and return the label and reason of those left out of the raw data set."""

    def _told(*spaces: str, others: dict[str, Path] | None = None, **query):
        roots = {"fmriprep": study.prep, **(others or {})}
        participants = choose_participants(list(roots.values()), ())
        derivatives = [index_derivative(name, root, participants) for name, root in roots.items()]
        wanted = RunQuery(participants, tuple(map(parse_space, spaces or ("MNI152NLin2009cAsym",))), **query)
        runs = find_runs(derivatives, study.raw, wanted)
        return [
            (drop.participant, drop.label, drop.reason, drop.place)
            for drop in raw_faults(derivatives, study.raw, wanted, runs)
        ]

    return _told


def add_raw(study: Study, sub: str, ses: str | None, task: str, run: str | None = None, dup: str = "") -> None:
    folder = study.func(study.raw, sub, ses)
    dangle(folder / f"{study.stem(sub, ses, task, run)}_bold{dup}.nii.gz")
    write_json(folder / f"{study.stem(sub, ses, task, run)}_bold{dup}.json", {})


def test_aborted_runs_are_told(study, told):
    study.add("01", "001", "a", "1")
    add_raw(study, "01", "001", "a", "01")
    add_raw(study, "01", "001", "a", "01", dup="__dup-01")
    add_raw(study, "01", "002", "b", dup="__dup-02")
    assert [(sub, label) for sub, label, *_ in told()] == [
        ("01", "ses-001_task-a_run-1__dup-01"),
        ("01", "ses-002_task-b__dup-02"),
    ]
    assert all("aborted" in reason and "__dup" in reason for *_, reason, place in told() if place is None)
    assert [label for _, label, *_ in told(tasks=("a",))] == ["ses-001_task-a_run-1__dup-01"]


def test_runs_that_were_not_preprocessed_are_told_once(study, told):
    study.add("01", None, "a", "1")
    add_raw(study, "01", None, "a", "01")
    for echo in ("1", "2"):
        add_raw(study, "01", None, f"b_echo-{echo}")
    [(sub, label, reason, place)] = told()
    assert (sub, label, place) == ("01", "task-b", None)
    assert "not preprocessed" in reason


def test_runs_without_the_space_asked_for_are_told(study, told):
    for task in ("a", "b"):
        study.add("01", None, task)
        add_raw(study, "01", None, task)
    study.add("01", None, "a", space="space-T1w")
    [(_, label, reason, place)] = told("T1w")
    assert (label, place) == ("task-b", "T1w")
    assert "not preprocessed in T1w" in reason


def test_runs_that_lack_one_of_several_spaces_are_told_once_for_each(study, told):
    for task in ("a", "b", "c"):
        study.add("01", None, task)
        study.add("01", None, task, space=f"{SPACE}_res-2")
    study.add("01", None, "a", space="space-T1w")
    study.add("01", None, "d", space="space-T1w")
    for task in ("b", "e"):
        add_raw(study, "01", None, task)
    left = told("MNI152NLin2009cAsym", "T1w")
    assert sorted((label, place) for _, label, _, place in left if place) == [
        ("task-b", "T1w"),
        ("task-c", "T1w"),
        ("task-d", "MNI152NLin2009cAsym"),
        ("task-d", "MNI152NLin2009cAsym_res-2"),
    ]
    assert [label for _, label, _, place in left if place is None] == ["task-e"]
    [reason] = [reason for _, label, reason, _ in left if label == "task-c"]
    assert reason.startswith("it was not preprocessed in T1w (it is there in MNI152NLin2009cAsym")


def test_a_participant_without_a_space_that_another_has(study, told):
    for sub in ("01", "02"):
        study.add(sub, None, "a")
    study.add("01", None, "a", space="space-T1w_res-2")
    assert [(sub, label, place) for sub, label, _, place in told("MNI152NLin2009cAsym", "T1w:res-2")] == [
        ("02", "task-a", "T1w_res-2")
    ]


def test_a_store_that_is_not_here_lacks_no_run(study, told, tmp_path):
    study.add("01", None, "a", sidecar={"RepetitionTime": 1.49})
    write_json(study.raw / "bold.json", {"RepetitionTime": 1.49})
    dangle(add_store(tmp_path / "fmri", {"ses-001_task-a_run-1": (5, 3)}))
    others = {"algonauts": tmp_path / "fmri"}
    assert told("MNI152NLin2009cAsym", "MNI152NLin2009cAsym:atlas-Schaefer18", others=others) == []


def test_a_run_that_is_not_here_is_dropped_in_its_own_space(study, find):
    study.add("01", None, "a")
    dangle(study.add("01", None, "a", space="space-T1w", sidecar={"RepetitionTime": 1.49}))
    left = usable_runs(find(spaces=("MNI152NLin2009cAsym", "T1w")))[1]
    assert [(drop.place, "not fetched" in drop.reason) for drop in left] == [
        ("MNI152NLin2009cAsym", False),
        ("T1w", True),
    ]


def test_only_what_was_asked_for_is_told(study, told):
    study.add("01", "001", "a", "1")
    for task, run in (("a", "02"), ("b", "01")):
        add_raw(study, "01", "001", task, run)
    assert [label for _, label, *_ in told(tasks=("a",))] == ["ses-001_task-a_run-2"]
    assert [label for _, label, *_ in told(runs=(1,))] == ["ses-001_task-b_run-1"]
    assert told(sessions=("001",), runs=(1,), tasks=("a",)) == []
    assert told(filters={"bold": {"run": 1}}) == []


def test_keys_of_a_store_count_as_runs(study, told, tmp_path):
    write_json(study.raw / "bold.json", {"RepetitionTime": 1.0})
    add_store(tmp_path / "fmri", {"ses-001_task-a_run-1": (5, 3)})
    add_raw(study, "01", "001", "a", "01")
    add_raw(study, "01", "001", "b", "01")
    left = told("MNI152NLin2009cAsym:atlas-Schaefer18", others={"algonauts": tmp_path / "fmri"})
    assert [label for _, label, *_ in left] == ["ses-001_task-b_run-1"]


def test_participants_without_raw_data_are_no_fault(study, told):
    study.add("01", None, "a", space=SPACE)
    assert told() == []
