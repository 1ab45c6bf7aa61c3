"""Runs end to end in which named tasks train and the viewings of the held-out film are averaged."""

import json
import sys
from subprocess import run

import nibabel as nib
import numpy as np
import pytest

from bids_mllm.io.results import find_results

OPTIONS = (
    "--map-views", "none",
    "--sloppy", "--nprocs", "1", "--confounds", "motion", "--alphas", "1", "1e6", "4", "--block-length", "3",
    "--models", "melspectrogram", "--participant-label", "01", "--test-task", "life*", "--train-task", "bourne*",
    "--noise-ceiling", "repeats", "--permutations", "99",
)  # fmt: skip


@pytest.fixture(scope="module")
def outputs(study, tmp_path_factory):
    """Output folders by what is scored; single viewings need no word."""
    folder = tmp_path_factory.mktemp("repeats")
    for name, words in (("each", ()), ("average", ("--repeats", "average"))):
        command = [sys.executable, "-m", "bids_mllm.cli.run", study, folder / name, "participant", *OPTIONS, *words]
        done = run([*map(str, command), "-w", str(folder / "work")], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "sub-01 ses-001_task-wolf01 is left out: neither --train-task nor --test-task names its task" in (
            done.stderr
        )
    return folder


def result_of(outputs, name):
    (result,) = find_results(outputs / name, ["01"])
    return result


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("each", ["ses-001_task-life01_run-1", "ses-002_task-life01_run-2"]),
        ("average", ["task-life01 (mean of 2 viewings)"]),
    ],
)
def test_sidecars_say_what_trained_and_what_was_scored(outputs, name, runs):
    sidecar = result_of(outputs, name).sidecar()
    assert sidecar["TrainRuns"] == ["ses-001_task-bourne01", "ses-001_task-bourne02"]
    assert sidecar["TestRuns"] == ["ses-001_task-life01_run-1", "ses-002_task-life01_run-2"]
    assert [drop["label"] for drop in sidecar["DroppedRuns"]] == ["ses-001_task-wolf01"]
    assert ("averaged" in sidecar["Repeats"]) == (name == "average")
    assert sidecar["Preset"] is None
    (by_run,) = (outputs / name).rglob("*stat-rbyrun_desc-best_statmap.json")
    assert json.loads(by_run.read_text("utf-8"))["Runs"] == runs


def values_of(outputs, name, pattern):
    (path,) = (outputs / name).rglob(pattern)
    return np.squeeze(np.asarray(nib.load(path).dataobj))


def test_maps_are_of_the_mean_and_the_fit_is_the_same(outputs):
    for stat in ("alpha", "cvr2"):
        pattern = f"*stat-{stat}_desc-stimulus_statmap.nii.gz"
        np.testing.assert_array_equal(values_of(outputs, "each", pattern), values_of(outputs, "average", pattern))
    r = {name: values_of(outputs, name, "*stat-r_desc-best_statmap.nii.gz") for name in ("each", "average")}
    assert not np.array_equal(r["each"], r["average"], equal_nan=True)
    # One film is held out, so that its r is that of the only run.
    by_run = values_of(outputs, "average", "*stat-rbyrun_desc-best_statmap.nii.gz")
    np.testing.assert_allclose(by_run, r["average"], atol=1e-5)


def test_the_split_is_the_same_and_no_viewing_trains(outputs):
    splits = [
        json.loads(next((outputs / name).rglob("*_split.json")).read_text("utf-8"))["Folds"]
        for name in ("each", "average")
    ]
    assert splits[0] == splits[1]
    (fold,) = splits[1]
    assert set(fold["Test"]) == {"ses-001_task-life01_run-1", "ses-002_task-life01_run-2"}
    assert set(fold["Train"]) == {"ses-001_task-bourne01", "ses-001_task-bourne02"}


def test_the_ceiling_is_of_what_is_scored(outputs):
    ceilings = {}
    for name, words in (("each", "single viewings"), ("average", "the mean of 2 viewings")):
        (path,) = (outputs / name).rglob("*stat-noiseceiling_statmap.json")
        assert json.loads(path.read_text("utf-8"))["NoiseCeiling"]["Of"] == f"correlation with {words}"
        ceilings[name] = values_of(outputs, name, "*stat-noiseceiling_statmap.nii.gz")
    rho = ceilings["each"].astype(float) ** 2
    np.testing.assert_allclose(ceilings["average"], np.sqrt(2 * rho / (1 + rho)), atol=1e-5)


def test_page_and_methods_say_it(outputs):
    words = "averaged at common moments of its clock before they are scored"
    for name, said in (("each", False), ("average", True)):
        page = " ".join((outputs / name / "sub-01.html").read_text("utf-8").split())
        methods = " ".join((outputs / name / "logs" / "CITATION.md").read_text("utf-8").split())
        assert (words in page) == said
        assert (words in methods) == said
        assert ("mean of the viewings by the formula of Spearman and Brown" in methods) == said
        assert "neither --train-task nor --test-task names its task" in page
