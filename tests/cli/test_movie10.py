"""The table of runs of Movie10 as it lies on disk: every run with its stimulus, its volumes and its split."""

import json
import os
from collections import Counter
from pathlib import Path

import movie10_tree
import pytest
from movie10_tree import REFERENCE, RawRun, build, layout, listed

SIDES = {"bourne": "train", "wolf": "train", "life": "test", "figures": "unused"}


@pytest.fixture(scope="module")
def content() -> dict:
    return layout()


@pytest.fixture(scope="module")
def movie10(content, tmp_path_factory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("whole"), content)


@pytest.fixture
def table(call, tmp_path):
    """The rows of a dry run, and what it says beside."""

    def _table(tree: tuple[Path, Path], *options: object) -> tuple[list[dict[str, str]], str]:
        raw, prep = tree
        places = (raw, tmp_path / "out", "participant", "--derivatives", f"fmriprep={prep}")
        result = call(*places, "--dry-run", *options)
        assert result.status == 0, result.err
        head, *rows = [line.split("\t") for line in result.out.splitlines()]
        assert not (tmp_path / "out").exists()
        return [dict(zip(head, row, strict=True)) for row in rows], result.err

    return _table


def whole(content) -> list[RawRun]:
    return [run for run in listed(content) if not run.dup]


def film(task: str) -> str:
    return task.rstrip("0123456789")


def expected(content, *, volumes: bool = True) -> Counter:
    """What the list of the data set says of every run."""
    return Counter(
        (
            run.sub.removeprefix("sub-"),
            run.ses.removeprefix("ses-"),
            run.task,
            str(int(run.run)) if run.run else "n/a",
            f"{film(run.task)}/{run.task}.mkv",
            str(run.n_volumes) if volumes else "n/a",
        )
        for run in whole(content)
    )


def found(rows: list[dict[str, str]]) -> Counter:
    columns = ("participant", "session", "task", "run", "stim_file", "n_volumes")
    return Counter(tuple(row[column] for column in columns) for row in rows)


def check_counts(rows: list[dict[str, str]]) -> None:
    """The whole data set has six participants of 61 runs."""
    if REFERENCE.is_file():
        counts = Counter(row["participant"] for row in rows)
        assert counts == {f"0{number}": 61 for number in range(1, 7)}
        assert len(rows) == 366


def test_every_run_with_its_stimulus_and_volumes(table, content, movie10):
    if REFERENCE.is_file():
        assert sum(len(files) for _, _, files in os.walk(movie10[1])) == 12_096
    rows, said = table(movie10)
    check_counts(rows)
    assert found(rows) == expected(content)
    assert {row["space"] for row in rows} == {"MNI152NLin2009cAsym"}
    for row in rows:
        assert row["stim_onset"] == "0"
        assert Path(row["bold"]).is_relative_to(movie10[1])
        assert row["bold"].endswith(f"_task-{row['task']}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz") or (
            row["bold"].endswith(f"_run-{row['run']}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz")
        )
    check_aborted(said, content)
    for task in content["stimuli"]:
        assert f"datalad get {movie10[0]}/stimuli/{film(task)}/{task}.mkv" in said


def check_aborted(said: str, content: dict) -> None:
    aborted = [run for run in listed(content) if run.dup]
    told = [line for line in said.splitlines() if "was aborted" in line]
    assert len(told) == len(aborted) == (15 if REFERENCE.is_file() else len(aborted)) > 0
    for run in aborted:
        assert any(f"{run.stem}_bold{run.dup}.nii.gz" in line for line in told)


def test_the_split_of_the_study_on_grayordinates(table, content, movie10):
    rows, _ = table(movie10, "--preset", "oota2025", "--space", "fsLR:den-91k")
    check_counts(rows)
    assert found(rows) == expected(content)
    assert all(row["split"] == SIDES[film(row["task"])] for row in rows)
    assert {row["space"] for row in rows} == {"fsLR_den-91k"}
    assert all(row["bold"].endswith("_space-fsLR_den-91k_bold.dtseries.nii") for row in rows)


def test_several_spaces_at_once(table, content, movie10):
    rows, said = table(movie10, "--space", "fsLR", "MNI152NLin2009cAsym", "T1w")
    assert Counter(row["space"] for row in rows) == dict.fromkeys(
        ("fsLR_den-91k", "MNI152NLin2009cAsym", "T1w"), len(whole(content))
    )
    task = "+".join(sorted(SIDES))
    dense = "space-fsLR_den-91k_stat-mask_desc-encoding_statmap.dscalar.nii"
    for name in ("space-T1w_desc-encoding_mask.nii.gz", dense):
        assert f"sub-01/func/sub-01_task-{task}_{name}" in said.splitlines()


def test_links_are_listed_without_their_content(table, content, tmp_path):
    rows, _ = table(build(tmp_path, content, dangling=True))
    check_counts(rows)
    assert found(rows) == expected(content, volumes=False)
    assert {(row["n_windows"], row["bold"]) for row in rows} == {("n/a", "n/a")}


def test_links_alone_end_with_the_command_that_fetches_them(call, content, tmp_path):
    sub = next(iter(content["runs"]))
    raw, prep = build(tmp_path, content, participants=[sub], dangling=True)
    options = ("--models", "melspectrogram", "-w", tmp_path / "work")
    result = call(raw, tmp_path / "out", "participant", "--derivatives", f"fmriprep={prep}", *options)
    assert result.status == 70
    assert "datalad get" in result.err.splitlines()[-1]


def test_the_small_list_has_the_structure_of_the_whole(content):
    small = json.loads(movie10_tree.SMALL.read_text())
    runs = list(listed(small))
    assert {film(run.task) for run in runs} == set(SIDES)
    assert {run.run for run in runs} == {"", "01", "02"}
    assert any(run.dup for run in runs)
    assert small["physio_json_that_are_pickles"]
    assert set(small["stimuli"]) == {run.task for run in runs}
    assert set(runs) <= set(listed(content))
