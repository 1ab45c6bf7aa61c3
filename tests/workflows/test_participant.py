"""The participant and group levels end to end on the small simulated study."""

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.stats import false_discovery_control

from bids_mllm.io.derivatives import MapName
from bids_mllm.io.files import read_tsv
from bids_mllm.io.results import find_results

OPTIONS = (
    "--map-views", "slices",
    "--sloppy", "--nprocs", "1", "--confounds", "motion", "--alphas", "1", "1e6", "4", "--test-task", "life*",
    "--instructions", "AR", "ESA", "--poolings", "generated", "media", "--max-new-tokens", "2", "--block-length", "3",
)  # fmt: skip


def arguments(study, out, work, *more):
    model = f"qwen25vltiny={study / 'models/qwen25vltiny'}"
    atlas = study / "sourcedata/truth/atlas-planted_dseg.nii.gz"
    return (
        study, out, "participant", *OPTIONS, "--models", "motionenergy", "melspectrogram", model,
        "--atlas", atlas, "-w", work, *more,
    )  # fmt: skip


def run(*words, cwd=None):
    command = [sys.executable, "-m", "bids_mllm.cli.run", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    """Output and work folder after participant and group."""
    folder = tmp_path_factory.mktemp("finished")
    out, work = folder / "out", folder / "work"
    for words in (arguments(study, out, work), (study, out, "group", "-w", work, "--nprocs", "1")):
        result = run(*words)
        assert result.returncode == 0, result.stderr
    return out, work


def results_of(work):
    """Result files of the nodes with their times."""
    return {path.parent.name: path.stat().st_mtime_ns for path in work.rglob("result_*.pklz")}


def views_in(folder):
    return {view for path in folder.glob("*_map*.json") for view in json.loads(path.read_text())["Options"]["Views"]}


def test_brain_maps_have_the_views_of_their_call(finished):
    out, _ = finished
    assert views_in(out / "sub-01/figures") == {"slices"}
    assert views_in(out / "group/figures") == {"glass", "slices", "inflated", "flat"}


def test_names_of_the_outputs(finished):
    out, _ = finished
    func = out / "sub-01/func"
    stem = "sub-01_task-life_space-MNI152NLin2009cAsym"
    for name in (
        "desc-encoding_mask.nii.gz",
        "model-qwen25vltiny_stat-r_desc-best_statmap.nii.gz",
        "model-qwen25vltiny_stat-bestlayer_statmap.nii.gz",
        "model-qwen25vltiny_stat-bestcondition_statmap.nii.gz",
        "model-qwen25vltiny_stat-r_desc-generatedESA_statmap.nii.gz",
        "model-qwen25vltiny_stat-cvr2_desc-media_statmap.json",
        "stat-clocklag_statmap.tsv",
        "stat-clocklag_statmap.json",
        "model-motionenergy_stat-alpha_desc-stimulus_statmap.nii.gz",
    ):
        assert (func / f"{stem}_{name}").is_file(), name
    for name in (
        "sub-01.html",
        "sub-02.html",
        "group.html",
        ".bidsignore",
        "descriptions.tsv",
        "logs/CITATION.tex",
    ):
        assert (out / name).is_file(), name
    assert (
        func / "sub-01_task-life_space-MNI152NLin2009cAsym_atlas-planted_model-motionenergy_stat-scores_statmap.tsv"
    ).is_file()


def test_output_is_valid_bids(finished):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    found = subprocess.run([validator, finished[0], "--format", "json"], capture_output=True, text=True)
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_pybids_finds_each_map_by_its_entities(finished):
    from bids import BIDSLayout
    from bids.layout import add_config_paths

    from bids_mllm.io.derivatives import pybids_config

    add_config_paths(bidsmllm=str(pybids_config()))
    layout = BIDSLayout(finished[0], validate=False, config=["bids", "derivatives", "bidsmllm"])
    found = layout.get(
        subject="01", model="qwen25vltiny", stat="r", desc="best", extension=".nii.gz", return_type="filename"
    )
    assert len(found) == 1
    assert found[0].endswith("model-qwen25vltiny_stat-r_desc-best_statmap.nii.gz")


def test_sidecar_holds_what_is_needed_to_redo_the_fit(finished):
    result = next(r for r in find_results(finished[0], ["01"]) if r.model == "qwen25vltiny")
    sidecar = result.sidecar()
    assert sidecar["DelaysTR"] == [1, 2, 3, 4, 5]
    assert sidecar["Alphas"] == {"Lowest": 1.0, "Highest": 1e6, "Number": 4, "Spacing": "logarithmic"}
    assert sidecar["TestRuns"] == ["ses-001_task-life01_run-1", "ses-002_task-life01_run-2"]
    assert len(sidecar["TrainRuns"]) == 3
    assert sidecar["Conditions"] == ["generatedAR", "generatedESA", "media"]
    assert sidecar["Layers"] == [0, 1, 2, 3, 4]
    assert sidecar["Model"]["Instructions"]["AR"] == "What are the main events captured in the video?"
    assert len(sidecar["ConfoundRegressors"]) == 24
    assert sidecar["Libraries"]["himalaya"]
    assert {run["rule"] for run in sidecar["Alignment"]} == {"one row"}
    assert sorted(run["run"] for run in sidecar["Alignment"]) == sorted(sidecar["TrainRuns"] + sidecar["TestRuns"])
    assert all(run["unexplained_seconds"] < 1 for run in sidecar["Alignment"])
    name = "sub-01/ses-001/func/sub-01_ses-001_task-wolf01_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    assert f"bids:fmriprep:{name}" in sidecar["Sources"]
    assert "bids:raw:task-wolf01_events.tsv" in sidecar["Sources"]


def test_layer_maps_and_index_maps_agree_with_the_chosen_maps(finished):
    result = next(r for r in find_results(finished[0], ["01"]) if r.model == "qwen25vltiny")
    best, _ = result.map("r", "best")
    conditions = result.sidecar()["Conditions"]
    layers, _ = result.map("bestlayer", None)
    numbers, _ = result.map("bestcondition", None)
    cv = np.stack([result.map("cvr2", condition)[0] for condition in conditions])
    scores = np.stack([result.map("r", condition)[0] for condition in conditions])
    inside = np.flatnonzero(np.isfinite(best))
    assert len(inside) > 500
    for place in inside[::50]:
        condition, layer = np.unravel_index(np.nanargmax(cv[..., place]), cv.shape[:2])
        assert (numbers[place], layers[place]) == (condition, layer)
        np.testing.assert_allclose(best[place], scores[condition, layer, place], atol=1e-6)


def test_roi_table_is_the_mean_of_the_map(finished, study):
    out, _ = finished
    rows = read_tsv(next((out / "sub-02/func").glob("*model-melspectrogram_stat-scores_statmap.tsv")))
    labels = np.asarray(nib.load(study / "sourcedata/truth/atlas-planted_dseg.nii.gz").dataobj).ravel()
    result = next(r for r in find_results(out, ["02"]) if r.model == "melspectrogram")
    best, _ = result.map("r", "best")
    for row in (r for r in rows if r["condition"] == "best"):
        inside = labels == int(row["roi_index"]) if row["kind"] == "area" else np.isfinite(best)
        expected = np.nanmean(best[inside])
        assert float(row["r"]) == pytest.approx(expected, abs=1e-4)


def test_group_map_is_the_mean_and_the_table_holds_everyone(finished):
    out, _ = finished
    single = [
        next(r for r in find_results(out, [p]) if r.model == "motionenergy").map("r", "best")[0] for p in ("01", "02")
    ]
    path = next((out / "group/func").glob("*model-motionenergy_stat-r_desc-best_statmap.nii.gz"))
    mean = np.asarray(nib.load(path).dataobj).ravel()
    both = np.isfinite(single[0]) & np.isfinite(single[1])
    np.testing.assert_allclose(mean[both], (single[0][both] + single[1][both]) / 2, atol=1e-6)
    rows = read_tsv(next((out / "group/func").glob("*atlas-planted_stat-scores_statmap.tsv")))
    assert {row["participant"] for row in rows} == {"01", "02"}
    assert {row["model"] for row in rows} == {"motionenergy", "melspectrogram", "qwen25vltiny"}
    assert {row["layer"] for row in rows if row["model"] == "qwen25vltiny"} == {
        "0",
        "1",
        "2",
        "3",
        "4",
        "best",
    }
    pairs = read_tsv(next((out / "group/func").glob("*stat-modelcomparison_statmap.tsv")))
    assert len([row for row in pairs if row["roi"] == "all"]) == 2 * 3
    assert {row["roi"] for row in pairs} > {"all", "L_Occipital"}


def test_group_tables_say_what_the_maps_hold(finished):
    out, _ = finished
    name = MapName(None, "life", "MNI152NLin2009cAsym")

    def table(stat, atlas=None):
        return read_tsv(name.path(out, extension=".tsv", stat=stat, atlas=atlas))

    r = {(one.name.participant, one.model): one.map("r", "best")[0] for one in find_results(out)}
    low_level = [[r[who, model] for model in ("motionenergy", "melspectrogram")] for who in ("01", "02")]
    difference = [np.nanmean(r[who, "qwen25vltiny"]) - np.mean([np.nanmean(one) for one in own])
                  for who, own in zip(("01", "02"), low_level, strict=True)]  # fmt: skip
    classes = table("classcomparison")
    (whole,) = [row for row in classes if (row["roi"], row["unit"]) == ("all", "participant")]
    assert (whole["class_a"], whole["class_b"], whole["smallest_p"]) == ("instruction-tuned", "low-level", "0.5")
    assert float(whole["mean_difference"]) == pytest.approx(np.mean(difference), abs=1e-5)
    assert {row["participant"] for row in classes if row["unit"] == "run"} == {"01", "02"}
    (result,) = [one for one in find_results(out, ["02"]) if one.model == "qwen25vltiny"]
    predicted = r["02", "qwen25vltiny"] > 0
    counts = [
        int(row["count"]) for row in table("choicecounts", "planted")
        if (row["participant"], row["model"], row["roi"], row["choice"]) == ("02", "qwen25vltiny", "all", "layer")
    ]  # fmt: skip
    chosen = result.map("bestlayer", None)[0][predicted]
    np.testing.assert_array_equal(counts, [np.count_nonzero(chosen == layer) for layer in range(5)])
    scores = [row for row in table("scores", "planted") if row["condition"] == row["layer"] == "best"]
    assert all(float(row["p"]) <= float(row["q"]) for row in scores)
    p = result.map("p", "best")[0]
    (whole,) = [row for row in scores if (row["participant"], row["model"], row["roi"]) == ("02", result.model, "all")]
    assert float(whole["p"]) == pytest.approx(false_discovery_control(p[np.isfinite(p)]).min(), rel=1e-5)
    assert {row["instruction"] for row in table("textsamples")} == {"AR", "ESA"}
    # Two instructions have one pair, by which nothing can be coupled.
    assert not list((out / "group/func").glob("*stat-coupling*"))


class Resources(HTMLParser):
    """Addresses of everything that a page loads."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        loaded = tag in ("img", "iframe", "link", "source") or (tag == "script" and "src" in values)
        if loaded:
            self.found += [values.get("src") or values.get("href") or ""]


@pytest.mark.parametrize("name", ["sub-01.html", "group.html"])
def test_pages_need_no_network(finished, name):
    page = (finished[0] / name).read_text(encoding="utf-8")
    parser = Resources()
    parser.feed(page)
    assert len(parser.found) > 5
    assert all(address.startswith("data:") for address in parser.found)
    assert "No step failed." in page


def test_rerun_recomputes_nothing(finished, study):
    out, work = finished
    before = results_of(work)
    maps = {path: path.stat().st_mtime_ns for path in out.rglob("*_statmap.nii.gz")}
    result = run(*arguments(study, out, work))
    assert result.returncode == 0, result.stderr
    assert results_of(work) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*_statmap.nii.gz")} == maps


def test_changed_option_recomputes_only_what_depends_on_it(finished, study, tmp_path):
    out, work = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in finished)
    first = run(*arguments(study, out, work, "--participant-label", "01"))
    assert first.returncode == 0, first.stderr
    before = results_of(work)
    result = run(*arguments(study, out, work, "--participant-label", "01", "--delays", "1", "2", "3"))
    assert result.returncode == 0, result.stderr
    changed = {name for name, time in results_of(work).items() if before.get(name) != time}
    assert {name.split("_")[0] for name in changed} == {"fit", "ceiling", "maps"}
    before = results_of(work)
    result = run(*arguments(study, out, work, "--participant-label", "01", "--high-pass", "0.01"))
    assert result.returncode == 0, result.stderr
    changed = {name for name, time in results_of(work).items() if before.get(name) != time}
    assert {name.split("_")[0] for name in changed} == {"bold", "bolds", "fit", "ceiling", "clock", "maps"}
    before = results_of(work)
    result = run(*arguments(study, out, work, "--participant-label", "01", "--high-pass", "0.01", "--window", "2.98"))
    assert result.returncode == 0, result.stderr
    changed = {name for name, time in results_of(work).items() if before.get(name) != time}
    assert {name.split("_")[0] for name in changed} == {
        "features", "manifests", "checks", "fit", "ceiling", "clock", "maps",
    }  # fmt: skip


def test_a_model_more_keeps_the_fits_of_the_others(finished, study, tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    words = [study, out, "participant", *OPTIONS, "--participant-label", "01", "-w", work]
    words += ["--features-dir", tmp_path / "features", "--models", "melspectrogram", "motionenergy"]
    assert run(*words).returncode == 0
    fits = {path: path.stat().st_mtime_ns for path in (work / "sub-01/fits").iterdir()}
    assert len(fits) == 2 * 2  # scores and inference of each
    model = f"qwen25vltiny={study / 'models/qwen25vltiny'}"
    assert run(*words, model).returncode == 0
    after = {path: path.stat().st_mtime_ns for path in (work / "sub-01/fits").iterdir()}
    assert len(after) == 2 * 3
    assert fits.items() <= after.items()


def test_dry_run_prints_a_table_and_writes_nothing(study, tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    result = run(*arguments(study, out, work, "--dry-run", "--bids-database-dir", tmp_path / "index"))
    assert result.returncode == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    head = [
        "participant", "session", "task", "run", "split", "space", "stim_file", "stim_onset", "n_volumes",
        "n_windows", "bold",
    ]  # fmt: skip
    assert lines[0] == head
    rows = [dict(zip(head, line, strict=True)) for line in lines[1:]]
    assert len(rows) == 10
    assert {row["split"] for row in rows if row["task"] == "life01"} == {"test"}
    assert {row["split"] for row in rows if row["task"] != "life01"} == {"train"}
    assert all(0 < int(row["n_windows"]) <= int(row["n_volumes"]) for row in rows)
    assert "Feature store: about" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_reports_only_and_boilerplate_only(finished, study, tmp_path):
    out, work = finished
    page = out / "sub-01.html"
    written = page.read_text(encoding="utf-8")
    page.unlink()
    nodes = results_of(work)
    result = run(*arguments(study, out, work, "--reports-only"))
    assert result.returncode == 0, result.stderr
    assert page.stat().st_size == pytest.approx(len(written.encode()), rel=0.01)
    assert results_of(work) == nodes
    other = tmp_path / "text"
    result = run(*arguments(study, other, tmp_path / "work", "--boilerplate-only", "--md-only-boilerplate"))
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (other / "logs").glob("CITATION*")} == {"CITATION.md", "CITATION.bib"}
    assert not list(other.glob("sub-*"))


@pytest.fixture(scope="module")
def kept(study, tmp_path_factory):
    """A finished call with one cheap model for both participants: its folder, a copy of that, and its words."""
    folder = tmp_path_factory.mktemp("small") / "place"
    folder.mkdir()
    atlas = folder / "atlas-own_dseg.nii.gz"
    truth = study / "sourcedata/truth"
    shutil.copyfile(truth / "atlas-planted_dseg.nii.gz", atlas)
    shutil.copyfile(truth / "atlas-planted_dseg.tsv", folder / "atlas-own_dseg.tsv")
    words = [study, folder / "out", "participant", *OPTIONS, "-w", folder / "work", "--models", "melspectrogram"]
    words += ["--atlas", atlas]
    result = run(*words)
    assert result.returncode == 0, result.stderr
    return folder, Path(shutil.copytree(folder, folder.with_name("copy"), symlinks=True)), words


@pytest.fixture
def small(kept):
    """The finished call in its place as it ended, times of files included, and its words."""
    folder, copy, words = kept
    shutil.rmtree(folder)
    shutil.copytree(copy, folder, symlinks=True)
    return folder / "out", folder / "work", words


def test_outputs_that_are_gone_or_changed_are_written_again(small, study):
    out, work, words = small
    best = next((out / "sub-01/func").glob("*stat-r_desc-best_statmap.nii.gz"))
    other = next((out / "sub-02/func").glob("*stat-alpha_desc-stimulus_statmap.nii.gz"))
    expected = np.asarray(nib.load(best).dataobj), np.asarray(nib.load(other).dataobj)
    best.unlink()
    other.write_bytes(b"damaged")
    fits = results_of(work)["fit_sub_01_space_MNI152NLin2009cAsym"]
    assert run(*words).returncode == 0
    np.testing.assert_array_equal(np.asarray(nib.load(best).dataobj), expected[0])
    np.testing.assert_array_equal(np.asarray(nib.load(other).dataobj), expected[1])
    assert results_of(work)["fit_sub_01_space_MNI152NLin2009cAsym"] == fits
    group = (study, out, "group", "-w", work, "--nprocs", "1", "--map-views", "none")
    assert run(*group).returncode == 0
    shutil.rmtree(out / "group")
    assert run(*group).returncode == 0
    assert len(list((out / "group/func").glob("*_statmap.nii.gz"))) > 5


def test_a_removed_store_entry_is_extracted_again(small):
    out, _work, words = small
    entry = next((out / "sourcedata/features").glob("*/*/entry.json")).parent
    shutil.rmtree(entry)
    result = run(*words, "--alphas", "1", "1e5", "3")
    assert result.returncode == 0, result.stderr
    assert entry.is_dir()


def test_a_changed_atlas_table_changes_the_roi_table(small):
    out, _work, words = small
    table = out.parent / "atlas-own_dseg.tsv"
    table.write_text(table.read_text().replace("L_Occipital", "Renamed"))
    assert run(*words).returncode == 0
    rows = read_tsv(next((out / "sub-01/func").glob("*atlas-own*_statmap.tsv")))
    assert "Renamed" in {row["roi"] for row in rows}


def test_group_refuses_participants_fitted_differently(small, study):
    out, work, words = small
    changed = [*words, "--participant-label", "02", "--delays", "1", "2"]
    assert run(*changed).returncode == 0
    result = run(study, out, "group", "-w", work, "--nprocs", "1", "--map-views", "none")
    assert result.returncode == 70
    assert "DelaysTR [1, 2]" in result.stderr
    assert "sub-01 with [1, 2, 3, 4, 5]" in result.stderr


def test_group_with_one_participant_held_out_on_other_films(small, study):
    out, work, words = small
    shutil.rmtree(out / "sub-02")
    without = [word for word in words if word not in ("--test-task", "life*")]
    assert run(*without, "--participant-label", "02", "--task-id", "bourne01", "life01").returncode == 0
    result = run(study, out, "group", "-w", work, "--nprocs", "1", "--map-views", "slices")
    assert result.returncode == 0, result.stderr
    page = (out / "group.html").read_text(encoding="utf-8")
    assert "Participants were not held out on the same films" in page
    assert "melspectrogram (films bourne+life, space MNI152NLin2009cAsym)" in page


def test_resource_monitor_plugin_file_and_clean_workdir(study, tmp_path):
    out, work, plugin = tmp_path / "out", tmp_path / "work", tmp_path / "plugin.yml"
    plugin.write_text("plugin: MultiProc\nplugin_args: {n_procs: 2}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = run(
        study, out, "participant", *OPTIONS, "-w", work, "--models", "motionenergy", "--participant-label", "01",
        "--resource-monitor", "--use-plugin", plugin, "--clean-workdir", cwd=elsewhere,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert list(elsewhere.iterdir()) == []
    assert not work.exists()
    record = json.loads(next((out / "logs").glob("*/resource_monitor.json")).read_text(encoding="utf-8"))
    assert any("fit_sub_01" in name for name in record["name"])
    assert max(record["rss_GiB"]) > 0


def test_what_an_earlier_call_wrote_and_this_one_does_not_is_gone(small):
    out, _, words = small
    func = out / "sub-01/func"
    asked = ["--noise-ceiling", "repeats", "--equal-rank", "2"]
    assert run(*words, "--participant-label", "01", *asked).returncode == 0
    before = {path.name for path in func.iterdir()}
    assert any("stat-noiseceiling" in name for name in before)
    assert any("stat-requalrank" in name for name in before)
    assert run(*words, "--participant-label", "01", "--noise-ceiling", "none").returncode == 0
    gone = before - {path.name for path in func.iterdir()}
    assert {name.partition("_stat-")[2].partition("_")[0] for name in gone} == {
        "noiseceiling", "rnormalized", "requalrank",
    }  # fmt: skip


def values_of(path):
    return nib.load(path).get_fdata()


def test_joint_fits_equal_rank_and_a_split_from_a_file(finished, study, tmp_path):
    """What is asked for in addition comes in addition; the split that was written gives the same fits again."""
    former, _ = finished
    stem = "sub-01/func/sub-01_task-life_space-MNI152NLin2009cAsym"
    split = tmp_path / "sub-{participant}_split.json"
    for label in ("01", "02"):
        own = former / f"sub-{label}/func/sub-{label}_task-life_space-MNI152NLin2009cAsym_desc-cv_split.json"
        shutil.copyfile(own, tmp_path / f"sub-{label}_split.json")
    words = [
        word for word in arguments(study, tmp_path / "out", tmp_path / "work") if word not in ("--test-task", "life*")
    ]
    result = run(
        *words, "--participant-label", "01", "--cv-file", split, "--bands", "motionenergy", "melspectrogram",
        "qwen25vltiny:perceptual",
        "--partition", "qwen25vltiny", "--equal-rank", "2", "--permutations", "99", "--layers", "0", "3",
        "--features-dir", former / "sourcedata/features",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (name,) = (tmp_path / "out/sub-01/func").glob("*_model-motionenergy_stat-r_desc-stimulus_statmap.nii.gz")
    again = name.name.partition("_model-")[0]
    func = tmp_path / "out/sub-01/func"
    np.testing.assert_allclose(
        values_of(name), values_of(former / f"{stem}_model-motionenergy_stat-r_desc-stimulus_statmap.nii.gz"), atol=1e-6
    )
    joint = values_of(func / f"{again}_model-bands_stat-r2_desc-joint_statmap.nii.gz")
    parts = [
        values_of(func / f"{again}_model-bands_stat-r2product_desc-{band}_statmap.nii.gz")
        for band in ("motionenergy", "melspectrogram", "qwen25vltinyperceptual")
    ]
    np.testing.assert_allclose(sum(parts), joint, atol=1e-4)
    pair = "generatedAR", "generatedESA"
    sidecar = json.loads(
        (func / f"{again}_model-qwen25vltiny_stat-r2shared_desc-pairs_statmap.json").read_text("utf-8")
    )
    assert sidecar["Pairs"] == [list(pair)]
    names = ("joint", "shared", "first", "second")
    r2 = {n: values_of(func / f"{again}_model-qwen25vltiny_stat-r2{n}_desc-pairs_statmap.nii.gz") for n in names}
    np.testing.assert_allclose(r2["first"] + r2["second"] + r2["shared"], r2["joint"], atol=1e-5)
    ranked = values_of(func / f"{again}_model-motionenergy_stat-requalrank_desc-best_statmap.nii.gz")
    assert np.isfinite(ranked).sum() == np.isfinite(joint).sum()
    assert json.loads(name.with_name(name.name.replace(".nii.gz", ".json")).read_text("utf-8"))["EqualRank"] == 2
    page = (tmp_path / "out/logs/CITATION.md").read_text(encoding="utf-8")
    assert "also fitted jointly by banded ridge" in page
    assert "The split of the file" in page


def test_statistics_of_the_outputs_hang_together(finished):
    out, _ = finished
    func, stem = out / "sub-01/func", "sub-01_task-life_space-MNI152NLin2009cAsym"
    stats = {
        stat: values_of(func / f"{stem}_model-motionenergy_stat-{stat}_desc-best_statmap.nii.gz")
        for stat in ("p", "pfwe", "q", "rconcat", "r", "rnormalized")
    }
    tested = np.isfinite(stats["p"])
    assert tested.sum() > 100
    assert np.all(stats["pfwe"][tested] >= stats["p"][tested])
    assert np.all(stats["q"][tested] >= stats["p"][tested] - 1e-6)
    ceiling = values_of(func / f"{stem}_stat-noiseceiling_statmap.nii.gz")
    held = np.isfinite(stats["rnormalized"])
    np.testing.assert_array_equal(held, np.isfinite(ceiling) & (ceiling >= 0.05) & np.isfinite(stats["r"]))
    np.testing.assert_allclose(stats["rnormalized"][held], stats["r"][held] / ceiling[held], rtol=1e-5)
    sidecar = json.loads((func / f"{stem}_model-motionenergy_stat-q_desc-best_statmap.json").read_text("utf-8"))
    assert sidecar["NoiseCeiling"]["Method"].startswith("repeats")
    assert sidecar["Comparisons"]["Tests"] == 3 * tested.sum()
    rows = read_tsv(out / "group/func/task-life_space-MNI152NLin2009cAsym_stat-grouptest_statmap.tsv")
    assert {row["smallest_p"] for row in rows} == {"0.5"}
    prevalence = values_of(
        out
        / "group/func/task-life_space-MNI152NLin2009cAsym_model-motionenergy_stat-prevalence_desc-best_statmap.nii.gz"
    )
    assert np.nanmin(prevalence) >= 0
    assert np.nanmax(prevalence) <= 1
