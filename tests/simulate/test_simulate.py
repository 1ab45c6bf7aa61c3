"""The simulated data set: names, determinism, and that the planted answers are true."""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from bids_mllm.cli.simulate import main
from bids_mllm.exceptions import StimulusError, UsageError
from bids_mllm.io.clips import probe_stimulus
from bids_mllm.records import Stimulus
from bids_mllm.simulate.dataset import simulate_dataset
from bids_mllm.simulate.design import make_viewings
from bids_mllm.simulate.drivers import extract_driver, make_drivers
from bids_mllm.simulate.films import write_film
from bids_mllm.simulate.noise import ar_noise, correlate_columns
from bids_mllm.simulate.planting import leading_components, plant_signals, respond

RUNS = {"bourne": 2, "life": 1}
TR = 1.49
SEED = 3
SPACE = "space-MNI152NLin2009cAsym"
REAL_FILMS = Path(__file__).parents[3] / "shared" / "data" / "videos"
VALIDATOR = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or shutil.which(
    "bids-validator-deno"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sim") / "dataset"
    return simulate_dataset(out, participants=2, seed=SEED, run_seconds=60.0, runs=RUNS)


@pytest.fixture(scope="module")
def truth(dataset: Path) -> dict:
    return json.loads((dataset / "sourcedata" / "truth" / "truth.json").read_text())


@pytest.fixture(scope="module")
def voxels(dataset: Path) -> pd.DataFrame:
    return pd.read_csv(
        dataset / "sourcedata" / "truth" / "sub-01_voxels.tsv",
        sep="\t",
        keep_default_na=False,
        na_values="n/a",
    )


def bold_files(dataset: Path, participant: str) -> list[Path]:
    return sorted(dataset.glob(f"derivatives/fmriprep/sub-{participant}/ses-*/func/*desc-preproc_bold.nii.gz"))


def series(path: Path) -> np.ndarray:
    """Voxels of the mask in C order, (n_volumes, n_voxels)."""
    mask = np.asarray(nibabel.load(str(path).replace("desc-preproc_bold", "desc-brain_mask")).dataobj) > 0
    return np.asarray(nibabel.load(path).dataobj)[mask].T.astype(float)


def without_nuisance(values: np.ndarray, path: Path) -> np.ndarray:
    """What drift and motion, as nilearn reads the run's confounds, leave of values (n_volumes, ...)."""
    from nilearn.interfaces.fmriprep import load_confounds

    table, _ = load_confounds(str(path), strategy=("motion",), motion="basic")
    n = len(values)
    slow = np.cos(np.pi * (np.arange(n)[:, None] + 0.5) / n * np.arange(3))
    design = np.column_stack([slow, table.to_numpy()])
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def stimuli_of(dataset: Path) -> dict[str, Stimulus]:
    found = {}
    for events in sorted(dataset.glob("task-*_events.tsv")):
        [stim_file] = pd.read_csv(events, sep="\t")["stim_file"]
        found[stim_file] = probe_stimulus(dataset / "stimuli" / stim_file, stim_file)
    return found


@pytest.fixture(scope="module")
def components(dataset: Path) -> dict[str, dict[str, np.ndarray]]:
    """For each driver the components of each stimulus, extracted anew from the finished data set."""
    stimuli = stimuli_of(dataset)
    found = {}
    for driver in make_drivers(dataset / "models" / "qwen25vltiny", tuple(stimuli.values()), TR):
        features = extract_driver(driver, tuple(stimuli.values()), lambda: None)
        found[driver.name] = leading_components(
            {name: values[driver.condition][:, driver.layer] for name, values in features.items()}
        )
    return found


def stim_file_of(path: Path) -> str:
    task = path.name.split("task-")[1].split("_")[0]
    return f"{task[:-2]}/{task}.mkv"


def test_raw_names(dataset: Path) -> None:
    names = {path.relative_to(dataset).as_posix() for path in dataset.iterdir()}
    for task in ("bourne01", "bourne02", "life01"):
        assert {f"task-{task}_events.tsv", f"task-{task}_bold.json"} <= names
        assert json.loads((dataset / f"task-{task}_bold.json").read_text())["RepetitionTime"] == TR
    events = pd.read_csv(dataset / "task-bourne01_events.tsv", sep="\t")
    assert list(events.columns) == ["onset", "duration", "stim_file"]
    assert len(events) == 1
    assert events["stim_file"][0] == "bourne/bourne01.mkv"
    assert not list(dataset.glob("sub-*/**/*_events.tsv"))
    raw = sorted(path.name for path in dataset.glob("sub-01/ses-*/func/*_bold.nii.gz"))
    assert [name.split("_task-")[1] for name in raw if "run" in name] == [
        "life01_run-01_bold.nii.gz",
        "life01_run-02_bold.nii.gz",
    ]
    assert len({name.split("_")[1] for name in raw if "run" in name}) == 2
    assert len(raw) == 4


def test_derivative_names_and_counts(dataset: Path) -> None:
    description = json.loads((dataset / "derivatives/fmriprep/dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "fMRIPrep"
    counts = set()
    for participant in ("01", "02"):
        for path in bold_files(dataset, participant):
            name = path.name.replace("_run-", "_run-0").replace(f"_{SPACE}_desc-preproc", "")
            raw = nibabel.load(dataset / path.relative_to(dataset / "derivatives/fmriprep").parent / name)
            image = nibabel.load(path)
            assert image.shape[3] == raw.shape[3]
            assert image.header.get_zooms()[3] == pytest.approx(TR)
            sidecar = json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text())
            assert sidecar["RepetitionTime"] == TR
            assert sidecar["SliceTimingCorrected"] is False
            assert "StartTime" not in sidecar
            confounds = pd.read_csv(
                str(path).replace(f"{SPACE}_desc-preproc_bold.nii.gz", "desc-confounds_timeseries.tsv"),
                sep="\t",
            )
            assert len(confounds) == image.shape[3]
            assert np.isnan(confounds["trans_x_derivative1"][0])
            assert not confounds.iloc[1:].isna().any().any()
            seconds = pd.read_csv(dataset / f"task-{path.name.split('task-')[1].split('_')[0]}_events.tsv", sep="\t")
            counts.add(image.shape[3] - round(seconds["duration"][0] / TR))
    assert len(counts) > 1
    assert max(abs(count) for count in counts) <= 5
    assert sorted(p.name for p in bold_files(dataset, "01") if "_run-1_" in p.name or "_run-2_" in p.name) == [
        p.name for p in bold_files(dataset, "01") if "life01" in p.name
    ]


def test_the_brain_lies_where_mni_space_has_it(dataset: Path, voxels: pd.DataFrame) -> None:
    image = nibabel.load(bold_files(dataset, "01")[0])
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(
        voxels[["x", "y", "z"]],
        nibabel.affines.apply_affine(image.affine, voxels[["i", "j", "k"]]),
        atol=1e-5,
    )
    assert 800 <= len(voxels) <= 1500
    by_driver = voxels.groupby("driver")[["x", "y", "z"]].mean()
    assert by_driver.loc["motionenergy", "y"] < -70
    assert by_driver.loc["model", "x"] < -30
    sides = voxels[voxels["driver"] == "melspectrogram"]["x"]
    assert (sides < 0).sum() > 1.2 * (sides > 0).sum() > 0


def test_atlas(dataset: Path, voxels: pd.DataFrame) -> None:
    folder = dataset / "sourcedata" / "truth"
    labels = np.asarray(nibabel.load(folder / "atlas-planted_dseg.nii.gz").dataobj)
    table = pd.read_csv(folder / "atlas-planted_dseg.tsv", sep="\t")
    assert list(table.columns) == ["index", "name"]
    assert set(np.unique(labels)) == {0, *table["index"]}
    at_voxels = labels[voxels["i"], voxels["j"], voxels["k"]]
    names = {0: "none", **dict(zip(table["index"], table["name"], strict=True))}
    assert [names[label] for label in at_voxels] == list(voxels["region"])


def test_confounds_serve_every_strategy_of_nilearn(dataset: Path) -> None:
    from nilearn.interfaces.fmriprep import load_confounds

    path = bold_files(dataset, "01")[0]
    table, _ = load_confounds(
        str(path),
        strategy=("motion", "wm_csf", "global_signal", "high_pass", "compcor"),
        motion="full",
        compcor="anat_combined",
        n_compcor=5,
    )
    assert len(table) == len(series(path))
    assert table.shape[1] >= 24 + 2 + 1 + 1 + 5
    assert np.isfinite(table.to_numpy()).all()


def test_images_hold_response_and_noise_of_the_stated_size(
    dataset: Path, voxels: pd.DataFrame, components: dict[str, dict[str, np.ndarray]]
) -> None:
    """Images without nuisance correlate with the response as closely as the SNR says; nothing is fitted.

    With a share s of the response's variance left and a share m of the noise's, r is
    ``sqrt(s / (s + m / snr^2))``; m comes from fresh noise with the voxel's own coefficient.
    """
    stimuli = {Path(name).stem: stimulus for name, stimulus in stimuli_of(dataset).items()}
    viewings = make_viewings(stimuli, ("life01",), repetition_time=TR, seed=SEED, participant=0)
    shown = [(viewing.stim_file, viewing.n_volumes) for viewing in viewings]
    signals = plant_signals(components, voxels["driver"].to_numpy(str), shown, seed=SEED, participant=0)
    rng = np.random.default_rng(99)
    clean, measured, noise = [], [], []
    for viewing, signal in zip(viewings, signals, strict=True):
        [path] = [p for p in bold_files(dataset, "01") if viewing.name("01", padded=False) in p.name]
        clean.append(without_nuisance(signal, path))
        measured.append(without_nuisance(series(path), path))
        noise.append(without_nuisance(ar_noise(len(signal), voxels["ar1"].to_numpy(), rng), path))
    left = np.concatenate(clean).var(axis=0)
    noise_left = np.concatenate(noise).var(axis=0)
    r = correlate_columns(np.concatenate(clean), np.concatenate(measured))
    for driver in components:
        mine = (voxels["driver"] == driver).to_numpy()
        expected = np.sqrt(left[mine] / (left[mine] + noise_left[mine] / voxels["snr"].to_numpy()[mine] ** 2))
        assert abs((r[mine] - expected).mean()) < 0.04
        assert np.corrcoef(r[mine], expected)[0, 1] > 0.8


def test_each_driver_predicts_its_own_voxels_in_held_out_runs(
    dataset: Path, voxels: pd.DataFrame, components: dict[str, dict[str, np.ndarray]]
) -> None:
    """Weights fitted on two short runs lose some of the ceiling, and predict no voxel of nothing."""
    paths = bold_files(dataset, "01")
    test = [path for path in paths if "life01" in path.name]
    train = [path for path in paths if path not in test]
    data = {path: without_nuisance(series(path), path) for path in paths}
    for driver, planted in components.items():
        response = {
            path: without_nuisance(respond(planted[stim_file_of(path)], len(data[path])), path) for path in paths
        }
        weights, *_ = np.linalg.lstsq(
            np.concatenate([response[path] for path in train]),
            np.concatenate([data[path] for path in train]),
            rcond=None,
        )
        predicted = np.concatenate([response[path] @ weights for path in test])
        r = pd.Series(correlate_columns(predicted, np.concatenate([data[path] for path in test])))
        means = r.groupby(voxels["driver"]).mean()
        ceiling = voxels.loc[voxels["driver"] == driver, "ceiling"].mean()
        assert 0.6 * ceiling < means[driver] < 1.15 * ceiling
        assert means.idxmax() == driver
        assert abs(means["none"]) < 0.06


def test_ceilings_cover_the_stated_range(voxels: pd.DataFrame, truth: dict) -> None:
    driven = voxels[voxels["driver"] != "none"]
    assert set(voxels["driver"]) == {"motionenergy", "melspectrogram", "model", "none"}
    assert voxels.loc[voxels["driver"] == "none", "ceiling"].isna().all()
    low, high = truth["ceiling_range"]
    asked = driven["snr"] / np.sqrt(1 + driven["snr"] ** 2)
    assert low - 1e-6 <= asked.min()
    assert asked.max() <= high + 1e-6
    assert np.abs(driven["ceiling"] - asked).mean() < 0.12


def test_truth_says_what_was_planted(truth: dict) -> None:
    model = truth["drivers"]["model"]
    assert (model["model"], model["condition"], model["layer"]) == ("qwen25vltiny", "generatedAR", 3)
    assert 0 < model["cka_with_other_conditions"]["generatedESA"] < 0.999
    assert truth["drivers"]["melspectrogram"]["parameters"]["n_mels"] == 32
    assert sum(truth["response_weights"]) == pytest.approx(1.0)
    assert truth["delays"][int(np.argmax(truth["response_weights"]))] == 4
    assert truth["test_tasks"] == ["life01"]


def test_films_have_pictures_and_unrelated_sound(dataset: Path, components: dict[str, dict[str, np.ndarray]]) -> None:
    for stimulus in stimuli_of(dataset).values():
        assert stimulus.video_duration is not None
        assert stimulus.audio_duration is not None
        assert 59 < stimulus.video_duration < 67
        assert stimulus.audio_duration == pytest.approx(stimulus.video_duration, abs=0.2)
    pictures, sounds = (np.concatenate(list(components[d].values())) for d in ("motionenergy", "melspectrogram"))
    crossed = np.corrcoef(pictures.T, sounds.T)[: pictures.shape[1], pictures.shape[1] :]
    assert np.abs(crossed).mean() < 0.25


@pytest.mark.skipif(VALIDATOR is None, reason="the BIDS validator is not installed")
@pytest.mark.parametrize("folder", [".", "derivatives/fmriprep"])
def test_the_validator_finds_no_error(dataset: Path, folder: str) -> None:
    assert VALIDATOR is not None
    done = subprocess.run([VALIDATOR, str(dataset / folder), "--json"], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def digests(root: Path) -> dict[str, str]:
    kept = [
        p for p in sorted(root.rglob("*")) if p.name.endswith((".nii.gz", ".tsv", ".json")) and "models" not in p.parts
    ]
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(
            gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes()
        ).hexdigest()
        for p in kept
    }


def test_the_seed_decides(tmp_path: Path) -> None:
    folders = [
        simulate_dataset(tmp_path / name, participants=1, seed=seed, run_seconds=16.0, runs={"wolf": 1})
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    ]
    first, second, third = (digests(folder) for folder in folders)
    assert first == second
    moved = [name for name in first if name.endswith("preproc_bold.nii.gz")]
    assert moved
    assert all(first[name] != third.get(name) for name in moved)


@pytest.fixture(scope="module")
def own_films(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("films")
    write_film(folder / "My film-1.mkv", seconds=8.0, seed=1)
    write_film(folder / "My_film 1.MKV", seconds=10.0, seed=2)
    (folder / "notes.txt").write_text("no film")
    return folder


def test_own_films(own_films: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path / "out"), "--films", str(own_films), "--participants", "1"]) == 0
    out = tmp_path / "out"
    assert {p.name for p in out.glob("task-*_events.tsv")} == {
        "task-Myfilm1_events.tsv",
        "task-Myfilm12_events.tsv",
    }
    truth = json.loads((out / "sourcedata/truth/truth.json").read_text())
    assert truth["repetition_time"] == 0.4
    assert set(truth["drivers"]) == {"motionenergy", "melspectrogram", "model"}
    assert {len(series(path)) for path in bold_files(out, "01")} <= set(range(19, 29))
    assert sorted(p.name for p in (out / "stimuli").iterdir()) == ["My film-1.mkv", "My_film 1.MKV"]


def test_short_and_missing_films_are_refused(tmp_path: Path) -> None:
    films = tmp_path / "films"
    with pytest.raises(UsageError, match="not a folder"):
        simulate_dataset(tmp_path / "out", films=films)
    films.mkdir()
    with pytest.raises(UsageError, match="holds no media file"):
        simulate_dataset(tmp_path / "out", films=films)
    write_film(films / "short.mkv", seconds=0.5, seed=0)
    with pytest.raises(StimulusError, match=r"short\.mkv lasts 0\.5. s"):
        simulate_dataset(tmp_path / "out", films=films)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["films"]


def test_a_full_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    assert main([str(tmp_path)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert (tmp_path / "kept.txt").read_text() == "mine"
    assert main([str(tmp_path / "new"), "--participants", "0"]) == 2


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom bids_mllm.cli.simulate import build_parser\nbuild_parser().format_help()\n"
        "heavy = {'numpy', 'av', 'torch', 'nibabel', 'nilearn', 'pandas'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
