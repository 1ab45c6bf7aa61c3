"""Real fMRI with a known answer: people who listened to a story (Brennan et al. 2016, CC BY 4.0).

Six regions a participant, TR 2 s; the first ten volumes of the scan were discarded, so the story starts 20 s
before the first stored volume. Skipped where the data are not there.
"""

import json
import re

import nibabel as nib
import numpy as np
import pytest

from bids_mllm.cli.run import main
from bids_mllm.io.results import find_results
from tests.conftest import SHARED

ALICE = SHARED / "data" / "alice"
REGIONS = ("LATL", "RATL", "LPTL", "LIPL", "LPreM", "LIFG")
SPACE = "MNI152NLin2009cAsym"
REPETITION_TIME = 2.0
DISCARDED_SECONDS = 20.0
SILENCES = ("sp", "sil", "")

pytestmark = pytest.mark.skipif(not ALICE.is_dir(), reason="the data of the story study are not here")


def words():
    """Onset and duration in seconds of every word."""
    text = (ALICE / "alice_chapter1.TextGrid").read_text(encoding="utf-8")
    found = re.findall(r'xmin = ([\d.]+)\s+xmax = ([\d.]+)\s+text = "([^"]*)"', text)
    return [(float(start), float(end) - float(start)) for start, end, word in found if word not in SILENCES]


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_data_set(folder, onset):
    """A BIDS data set with an fMRIPrep-shaped derivative of six voxels, and the feature table of the words."""
    bids, tables = folder / "bids", folder / "tables"
    derivative = bids / "derivatives" / "fmriprep"
    write_json(bids / "dataset_description.json", {"Name": "Alice", "BIDSVersion": "1.11.1"})
    description = {"Name": "fMRIPrep", "BIDSVersion": "1.11.1", "DatasetType": "derivative"}
    write_json(derivative / "dataset_description.json", description | {"GeneratedBy": [{"Name": "fMRIPrep"}]})
    row = f"{onset}\t743.634\talice_chapter1.wav\n"
    (bids / "task-alice_events.tsv").write_text(f"onset\tduration\tstim_file\n{row}", encoding="utf-8")
    for source in sorted((ALICE / "timecourses_6mm").glob("s*-timecourses.txt")):
        series = np.loadtxt(source, dtype=np.float32)
        stem = f"sub-{source.name[1:3]}_task-alice_space-{SPACE}_desc-preproc_bold"
        path = derivative / f"sub-{source.name[1:3]}" / "func" / f"{stem}.nii.gz"
        write_json(path.with_name(f"{stem}.json"), {"RepetitionTime": REPETITION_TIME})
        image = nib.Nifti1Image(series.T.reshape(6, 1, 1, -1), np.diag([6.0, 6.0, 6.0, 1.0]))
        image.header.set_zooms((6.0, 6.0, 6.0, REPETITION_TIME))
        image.to_filename(path)
    write_json(tables / "features.json", {"words": {"Aggregation": "sum"}, "speech": {"Aggregation": "sum"}})
    lines = [f"{start:.6f}\t{duration:.6f}\t1\t{duration:.6f}" for start, duration in words()]
    (tables / "alice_chapter1.tsv").write_text("\n".join(["onset\tduration\twords\tspeech", *lines]), encoding="utf-8")
    return bids, tables


def mean_r(folder, onset):
    """Mean over participants of the held-out r of each region, through the command line."""
    bids, tables = write_data_set(folder, onset)
    status = main(
        [
            str(bids), str(folder / "out"), "participant", "--feature-table", f"story={tables}", "--confounds", "none",
            "--delays", "1", "2", "3", "4", "--n-folds", "4", "--high-pass", "0.0056", "--nprocs", "1",
            "-w", str(folder / "work"),
        ]
    )  # fmt: skip
    assert status == 0
    results = find_results(folder / "out")
    assert len(results) == 8
    return np.mean([result.map("r", "best")[0].ravel() for result in results], axis=0)


@pytest.mark.slow
def test_word_rate_predicts_the_temporal_lobe(tmp_path):
    r = dict(zip(REGIONS, mean_r(tmp_path, -DISCARDED_SECONDS), strict=True))
    assert max(r, key=r.get) == "LPTL"
    assert 0.20 <= r["LPTL"] <= 0.35


@pytest.mark.slow
def test_forgotten_volumes_destroy_the_prediction(tmp_path):
    r = mean_r(tmp_path, 0.0)
    assert np.abs(r).max() < 0.06


def test_the_clock_of_the_story(tmp_path):
    """Volume k is paired with seconds 20 + 2 k to 22 + 2 k of the story: r hardly notices an error of one TR."""
    from bids_mllm.config import Settings
    from bids_mllm.workflows.plan import plan_study

    bids, tables = write_data_set(tmp_path, -DISCARDED_SECONDS)
    settings = Settings(
        bids_dir=bids, output_dir=tmp_path / "out", analysis_level="participant", models=(), confounds="none",
        feature_table={"story": tables}, work_dir=tmp_path / "work", delays=(1, 2, 3, 4), n_folds=4,
    )  # fmt: skip
    windows = plan_study(settings).designs[0].windows[0]
    rows = np.flatnonzero(windows.valid)
    assert rows[0] == 0
    assert rows[-1] == 360
    np.testing.assert_allclose(windows.start[rows], 20.0 + 2.0 * rows, atol=1e-9)
    np.testing.assert_allclose(windows.end[rows], 22.0 + 2.0 * rows, atol=1e-9)
    grid = windows.grids[0]
    np.testing.assert_allclose(grid.starts[windows.index[rows]], windows.start[rows], atol=1e-9)
