"""One study in every space at once: the same series as volumes, surfaces, grayordinates and parcels."""

import fnmatch
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_mllm.io.grids import SurfaceGrid
from bids_mllm.io.maps import load_map, save_map
from bids_mllm.io.results import find_results

OPTIONS = (
    "--map-views", "none",
    "--sloppy", "--nprocs", "1", "--confounds", "motion", "--alphas", "1", "1e6", "4", "--test-task", "life*",
    "--block-length", "3", "--models", "melspectrogram", "--permutations", "199",
)  # fmt: skip
SPACES = ("MNI152NLin2009cAsym", "fsaverage5", "fsLR:den-91k", "MNI152NLin2009cAsym:seg-planted", "fsLR:seg-planted")
VERTICES = 10242
# Vertices and grayordinates that hold nothing in fMRIPrep's output: the medial wall, and beyond the slices.
EMPTY = 40


def run(*words):
    command = [sys.executable, "-m", "bids_mllm.cli.run", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def mask_of(study, participant):
    path = next((study / "derivatives/fmriprep").glob(f"sub-{participant}/ses-*/func/*desc-brain_mask.nii.gz"))
    return np.asarray(nib.load(path).dataobj) > 0


def write_surfaces(stem, series):
    half = series.shape[1] // 2
    for hemi, own in (("L", series[:, :half]), ("R", series[:, half:])):
        values = np.zeros((len(series), VERTICES), dtype=np.float32)
        values[:, EMPTY : EMPTY + own.shape[1]] = own
        arrays = [nib.gifti.GiftiDataArray(row, intent="NIFTI_INTENT_TIME_SERIES") for row in values]
        name = stem.name.replace("_space-", f"_hemi-{hemi}_space-")
        nib.gifti.GiftiImage(darrays=arrays).to_filename(stem.with_name(f"{name}_bold.func.gii"))


def brain_models(n_places):
    """Both cortices with a gap in their vertices, and a structure of voxels, n_places in all."""
    n_left, n_right = n_places // 3, n_places // 3
    left = nib.cifti2.BrainModelAxis.from_surface(np.arange(n_left) + 7, 32492, "CortexLeft")
    right = nib.cifti2.BrainModelAxis.from_surface(np.arange(n_right), 32492, "CortexRight")
    box = np.zeros((91, 109, 91), dtype=bool)
    box.reshape(-1)[400000 : 400000 + n_places - n_left - n_right] = True
    voxels = nib.cifti2.BrainModelAxis.from_mask(box, "ThalamusLeft", np.diag([2.0, 2, 2, 1]))
    return left + right + voxels


def write_cifti(path, series, axis, repetition_time):
    time = nib.cifti2.SeriesAxis(0, repetition_time, len(series))
    image = nib.Cifti2Image(series.astype(np.float32), header=(time, axis))
    image.update_headers()
    image.to_filename(path)


def parcels(n):
    """Parcels of a few vertices each, as a CIFTI file of parcels holds them."""
    names = [f"parcel{number}" for number in range(n)]
    vertices = [{"CIFTI_STRUCTURE_CORTEX_LEFT": np.array([number])} for number in range(n)]
    return nib.cifti2.ParcelsAxis(names, [np.empty((0, 3), int)] * n, vertices, nvertices={"CortexLeft": 32492})


def add_spaces(study):
    """Write the series of every run in all spaces, with places that hold nothing."""
    for path in sorted((study / "derivatives/fmriprep").rglob("*_desc-preproc_bold.nii.gz")):
        image = nib.load(path)
        mask = mask_of(study, path.name.split("_")[0].removeprefix("sub-"))
        series = np.asarray(image.dataobj, dtype=np.float32)[mask].T
        repetition_time = json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text())["RepetitionTime"]
        name = path.name.split("_space-")[0]
        write_surfaces(path.with_name(f"{name}_space-fsaverage5"), series)
        junk = np.zeros((len(series), EMPTY), dtype=np.float32)
        junk[:, 0], junk[3, 1] = 7.0, np.nan
        wide = np.hstack([junk, series])
        cifti = path.with_name(f"{name}_space-fsLR_den-91k_bold.dtseries.nii")
        write_cifti(cifti, wide, brain_models(wide.shape[1]), repetition_time)
        whole = nib.Nifti1Image(np.ones((91, 109, 91), np.uint8), np.diag([2.0, 2, 2, 1]))
        whole.to_filename(path.with_name(f"{name}_space-MNI152NLin6Asym_res-2_desc-brain_mask.nii.gz"))
        cifti.with_name(cifti.name.replace(".dtseries.nii", ".json")).write_text(
            json.dumps({"RepetitionTime": repetition_time})
        )
        words = ["\t".join(f"parcel{number}" for number in range(wide.shape[1]))]
        words += ["\t".join("n/a" if value != value else f"{value:.9g}" for value in row) for row in wide]
        table = path.with_name(f"{name}_space-MNI152NLin2009cAsym_seg-planted_timeseries.tsv")
        table.write_text("\n".join(words) + "\n")
        few = path.with_name(f"{name}_space-fsLR_seg-planted_timeseries.ptseries.nii")
        write_cifti(few, wide, parcels(wide.shape[1]), repetition_time)


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    """A copy of the study with all spaces, the output of both levels, and what the participant level said."""
    folder = tmp_path_factory.mktemp("spaces")
    own, out, work = Path(shutil.copytree(study, folder / "bids")), folder / "out", folder / "work"
    add_spaces(own)
    words = [own, out, "participant", *OPTIONS, "--space", *SPACES, "-w", work]
    result = run(*words)
    assert result.returncode == 0, result.stderr
    group = run(own, out, "group", "-w", work, "--nprocs", "1")
    assert group.returncode == 0, group.stderr
    return own, out, result


def results_by_place(out, participant="01"):
    return {result.name.place: result for result in find_results(out, [participant])}


PLACES = {
    "fsaverage5": lambda values: values[np.isfinite(values)],
    "fsLR_den-91k": lambda values: values[EMPTY:],
    "MNI152NLin2009cAsym_seg-planted": lambda values: values[EMPTY:],
    "fsLR_seg-planted": lambda values: values[EMPTY:],
}


@pytest.mark.parametrize("stat", ["r", "cvr2", "rconcat", "p"])
@pytest.mark.parametrize("place", list(PLACES))
def test_the_same_series_have_the_same_scores_in_every_space(finished, place, stat):
    study, out, _ = finished
    found = results_by_place(out)
    assert set(found) == {"MNI152NLin2009cAsym", *PLACES}
    volume, _ = found["MNI152NLin2009cAsym"].map(stat, "best")
    expected = volume[mask_of(study, "01").ravel()]
    values, _ = found[place].map(stat, "best")
    np.testing.assert_allclose(PLACES[place](values), expected, atol=1e-4)
    assert np.isfinite(expected).sum() > 500


def test_empty_places_are_nan_and_outside_the_mask_that_is_written(finished):
    _, out, _ = finished
    found = results_by_place(out)
    for place in ("fsLR_den-91k", "MNI152NLin2009cAsym_seg-planted", "fsLR_seg-planted"):
        assert np.isnan(found[place].map("r", "best")[0][:EMPTY]).all()
    surface, grid = found["fsaverage5"].map("r", "best")
    assert (grid.n_left, grid.n_right) == (VERTICES, VERTICES)
    assert np.isnan(surface[:EMPTY]).all()
    assert np.isnan(surface[VERTICES : VERTICES + EMPTY]).all()
    func = out / "sub-01/func"
    left = (
        nib.load(func / "sub-01_task-life_hemi-L_space-fsaverage5_stat-mask_desc-encoding_statmap.func.gii")
        .darrays[0]
        .data
    )
    np.testing.assert_array_equal(left > 0, np.isfinite(surface[:VERTICES]))
    cifti = nib.load(func / "sub-01_task-life_space-fsLR_den-91k_stat-mask_desc-encoding_statmap.dscalar.nii")
    assert np.asarray(cifti.dataobj)[0, :EMPTY].sum() == 0


def test_the_mask_names_the_brain_masks_that_were_applied(finished):
    func = finished[1] / "sub-01/func"
    named = {
        "space-MNI152NLin2009cAsym_desc-encoding_mask": "space-MNI152NLin2009cAsym_desc-brain_mask",
        "space-fsLR_den-91k_stat-mask_desc-encoding_statmap": "space-MNI152NLin6Asym_res-2_desc-brain_mask",
        "space-fsaverage5_stat-mask_desc-encoding_statmap": None,
    }
    for place, expected in named.items():
        sidecar = json.loads((func / f"sub-01_task-life_{place}.json").read_text())
        assert sidecar["BrainMask"] == expected, place


def test_grayordinates_keep_their_brain_models(finished):
    study, out, _ = finished
    path = next((study / "derivatives/fmriprep").rglob("*.dtseries.nii"))
    axis = nib.load(path).header.get_axis(1)
    name = "sub-01_task-life_space-fsLR_den-91k_model-melspectrogram_stat-r_desc-best_statmap.dscalar.nii"
    image = nib.load(out / "sub-01/func" / name)
    assert image.header.get_axis(1) == axis
    assert image.nifti_header.get_intent()[0] == "ConnDenseScalar"


def test_features_are_extracted_once_for_all_spaces(finished):
    _, out, _ = finished
    entries = [json.loads(path.read_text()) for path in (out / "sourcedata/features").rglob("entry.json")]
    assert len(entries) == 4  # films, in the one phase that all runs have
    assert len({entry["description"]["media"]["sha256"] for entry in entries}) == 4


def test_the_output_of_every_space_is_valid_bids(finished):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    found = subprocess.run([validator, finished[1], "--format", "json"], capture_output=True, text=True)
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_pybids_finds_each_map_by_its_entities(finished):
    from bids import BIDSLayout

    from bids_mllm.io.derivatives import pybids_config

    layout = BIDSLayout(finished[1], validate=False, config=["bids", "derivatives", str(pybids_config())])
    wanted = {"subject": "01", "model": "melspectrogram", "stat": "r", "desc": "best", "suffix": "statmap"}
    for more in (
        {"space": "MNI152NLin2009cAsym", "extension": ".nii.gz"},
        {"space": "fsaverage5", "hemi": "L", "extension": ".func.gii"},
        {"space": "fsaverage5", "hemi": "R", "extension": ".func.gii"},
        {"space": "fsLR", "den": "91k", "extension": ".dscalar.nii"},
        {"space": "MNI152NLin2009cAsym", "segmentation": "planted", "extension": ".tsv"},
        {"space": "fsLR", "segmentation": "planted", "extension": ".pscalar.nii"},
    ):
        assert len(layout.get(**wanted, **more)) == 1, more


def test_a_dry_run_names_just_the_files_that_are_written(finished, tmp_path):
    own, out, _ = finished
    listed = run(own, tmp_path, "participant", *OPTIONS, "--space", *SPACES, "-w", tmp_path / "work", "--dry-run")
    assert listed.returncode == 0, listed.stderr
    lines = listed.stderr.splitlines()
    assert "2 participants, 10 runs in 5 spaces, " in listed.stderr
    (head,) = (number for number, line in enumerate(lines) if line.startswith("Files to come"))
    patterns = [line.split(",")[0] for line in lines[head + 1 :]]
    written = [path.relative_to(out).as_posix() for path in sorted(out.rglob("sub-*")) if path.is_file()]
    written = [name for name in written if not name.endswith(".json") or name.endswith("_split.json")]
    for pattern in patterns:
        assert list(out.glob(pattern)), pattern
    for name in written:
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns), name


@pytest.mark.parametrize("page", ["sub-01.html", "sub-01_space-fsLR_den-91k.html", "group.html"])
def test_there_is_a_page_of_every_space(finished, page):
    assert (finished[1] / page).stat().st_size > 50_000


def renamed(text, old, new):
    assert old in text
    return text.replace(old, new)


def test_participants_on_different_grids_are_refused_by_file(finished, tmp_path):
    study, out, _ = finished
    own = Path(shutil.copytree(out, tmp_path / "out"))
    results = [results_by_place(own, label)["MNI152NLin2009cAsym"].path("r", "best") for label in ("01", "02")]
    image = nib.load(results[1])
    nib.Nifti1Image(np.asarray(image.dataobj), image.affine + np.eye(4)).to_filename(results[1])
    group = run(study, own, "group", "-w", tmp_path / "work", "--nprocs", "1", "--map-views", "none")
    assert group.returncode == 70
    assert all(str(path) in group.stderr for path in results)
    assert "one resolution or density for all participants" in group.stderr
    assert "Traceback" not in group.stderr


def test_native_spaces_have_tables_of_the_group_but_no_maps(finished, tmp_path):
    """What was fsaverage5 passes for fsnative, with a vertex less in one participant."""
    study, out, _ = finished
    own = tmp_path / "out"
    for path in out.glob("sub-*/func/*_space-fsaverage5_*"):
        target = own / path.parent.relative_to(out) / renamed(path.name, "space-fsaverage5", "space-fsnative")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for path in (own / "sub-02/func").glob("*_hemi-L_*.func.gii"):
        values, grid = load_map(path)
        save_map(path, np.delete(values, 0, axis=-1), SurfaceGrid(grid.n_left - 1, grid.n_right))
    group = run(study, own, "group", "-w", tmp_path / "work", "--nprocs", "1", "--map-views", "none")
    assert group.returncode == 0, group.stderr
    assert not list((own / "group").rglob("*.func.gii"))
    page = (own / "group.html").read_text(encoding="utf-8")
    assert "In fsnative places of participants do not correspond" in page


def test_participants_of_other_densities_are_named_on_the_page_and_in_the_log(finished, tmp_path):
    study, out, _ = finished
    own = tmp_path / "out"
    for path in out.glob("sub-*/func/*_space-fsLR_den-91k_*"):
        name = path.name.replace("den-91k", "den-170k") if path.name.startswith("sub-02") else path.name
        target = own / path.parent.relative_to(out) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    group = run(study, own, "group", "-w", tmp_path / "work", "--nprocs", "1", "--map-views", "none")
    assert group.returncode == 0, group.stderr
    sets = "fsLR_den-91k: 01; fsLR_den-170k: 02"
    assert sets in (own / "group.html").read_text(encoding="utf-8")
    assert sets in " ".join(group.stderr.split())
    assert "resolutions or densities" not in (out / "group.html").read_text(encoding="utf-8")


def test_a_run_on_another_grid_is_one_sentence(finished, tmp_path):
    study = Path(shutil.copytree(finished[0], tmp_path / "bids"))
    path = sorted((study / "derivatives/fmriprep/sub-01").rglob("*_seg-planted_timeseries.tsv"))[0]
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line.rpartition("\t")[0] for line in lines) + "\n")
    result = run(
        study, tmp_path / "out", "participant", *OPTIONS, "--space", "MNI152NLin2009cAsym:seg-planted",
        "--participant-label", "01", "-w", tmp_path / "work",
    )  # fmt: skip
    assert result.returncode == 70
    assert path.name in result.stderr
    assert "Traceback" not in result.stderr
