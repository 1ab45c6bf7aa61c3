"""Settings: the round trip through TOML, types, and faults that are reported together."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from bids_mllm.config import (
    ONE_CALL,
    Settings,
    check_settings,
    parse_memory,
    read_settings_file,
    settings_to_toml,
)
from bids_mllm.exceptions import UsageError

OTHER = {
    "bids_dir": Path("/data/raw"),
    "output_dir": Path("/data/out"),
    "analysis_level": "group",
    "participant_label": ("01", "02"),
    "session_label": ("001",),
    "task_id": ("life01",),
    "run_id": (1, 2),
    "bids_filter_file": Path("/f.json"),
    "bids_database_dir": Path("/db"),
    "skip_bids_validation": True,
    "derivatives": {"fmriprep": Path("/prep")},
    "space": ("T1w", "fsLR:den-91k"),
    "stimuli_dir": Path("/stimuli"),
    "stimulus_map": Path("/map.tsv"),
    "window": 2.98,
    "window_position": "center",
    "models": ("tinymllm", "label=/models/x"),
    "model_revision": "abc",
    "family": "qwen25vl",
    "trust_remote_code": True,
    "instructions": ("AR", "NULL"),
    "instructions_file": Path("/i.toml"),
    "null_instructions": ("empty", "unrelated"),
    "demonstrations": Path("/d.toml"),
    "poolings": ("last", "instruction"),
    "max_new_tokens": 3,
    "layers": (0, 12),
    "feature_table": {"words": Path("/words")},
    "features_dir": Path("/store"),
    "confounds": "compcor",
    "high_pass": 0.01,
    "delays": (0, 3),
    "alphas": (0.5, 1e7, 6),
    "preset": "oota2025",
    "test_task": ("life*",),
    "train_task": ("wolf*",),
    "repeats": "average",
    "cv": "film",
    "cv_file": Path("/cv/sub-{participant}_split.json"),
    "n_folds": 3,
    "solver": "himalaya",
    "equal_rank": 40,
    "bands": ("tinymllm", "words"),
    "partition": ("tinymllm",),
    "noise_ceiling": "repeats",
    "n_permutations": 99,
    "permutation_method": "circular",
    "block_length": 7,
    "fdr": "by",
    "atlas": ("/a.nii.gz", "Glasser"),
    "atlas_dir": Path("/atlases"),
    "rois": Path("/rois.toml"),
    "work_dir": Path("/scratch"),
    "nprocs": 3,
    "omp_nthreads": 2,
    "mem_mb": 1234.5,
    "device": "cuda:1",
    "n_gpu_procs": 2,
    "use_plugin": Path("/plugin.yml"),
    "random_seed": 7,
    "map_views": ("slices", "flat"),
    "sloppy": True,
    "stop_on_first_crash": True,
    "clean_workdir": True,
    "resource_monitor": True,
    "md_only_boilerplate": True,
}
DEFAULT = Settings(Path("/raw"), Path("/out"), "participant")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def test_every_field_has_a_value_to_try():
    assert set(OTHER) | ONE_CALL == {field.name for field in fields(Settings)}
    assert all(OTHER[name] != getattr(DEFAULT, name) for name in OTHER)


@pytest.mark.parametrize("settings", [Settings(**OTHER), DEFAULT])
def test_settings_come_back_the_same_from_toml(tmp_path, settings):
    read = read_settings_file(write(tmp_path, settings_to_toml(settings)))
    assert Settings(**read) == settings
    for name, value in read.items():
        assert type(value) is type(getattr(settings, name)), name


def test_what_belongs_to_one_call_does_not_come_back(tmp_path):
    settings = replace(DEFAULT, reports_only=True, boilerplate_only=True, dry_run=True, verbose=2)
    assert Settings(**read_settings_file(write(tmp_path, settings_to_toml(settings)))) == DEFAULT
    assert read_settings_file(write(tmp_path, "dry_run = true\nverbose = 3\n")) == {}


def test_unknown_settings_are_listed_with_the_known(tmp_path):
    with pytest.raises(UsageError) as caught:
        read_settings_file(write(tmp_path, "delay = [1]\nwindows = 1\nwindow = 2.0\n"))
    assert "unknown settings delay, windows" in str(caught.value)
    assert "delays" in str(caught.value)


@pytest.mark.parametrize("text", ["delays = [1", "\x00"])
def test_a_file_that_is_no_toml(tmp_path, text):
    with pytest.raises(UsageError, match=r"settings.toml cannot be read"):
        read_settings_file(write(tmp_path, text))
    with pytest.raises(UsageError, match=r"none.toml cannot be read"):
        read_settings_file(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sloppy = 1", "sloppy holds 1, but must be true or false"),
        ("nprocs = 'four'", "nprocs holds 'four', but must be a whole number"),
        ("nprocs = 2.5", "nprocs holds 2.5"),
        ("n_folds = true", "n_folds holds True"),
        ("space = 'T1w'", "space is 'T1w', but must be a list"),
        ("task_id = [1]", "task_id holds 1, but must be a text"),
        ("delays = [1, '2']", "delays holds '2'"),
        ("alphas = [0.1, 10.0]", "must be a list of 3"),
        ("alphas = [0.1, 10.0, 2.5]", "alphas holds 2.5, but must be a whole number"),
        ("window = 'long'", "window holds 'long', but must be a number"),
        ("model_revision = 3", "model_revision holds 3, but must be a text"),
        ("stimuli_dir = 3", "stimuli_dir holds 3, but must be a path"),
        ("atlas = '/a.nii'", "atlas is '/a.nii', but must be a list"),
        ("derivatives = ['a']", "must be a table of NAME = PATH"),
        ("feature_table = {words = 3}", "feature_table holds 3, but must be a path"),
    ],
)
def test_values_of_the_wrong_type(tmp_path, text, words):
    with pytest.raises(UsageError) as caught:
        read_settings_file(write(tmp_path, text))
    assert words in str(caught.value)


def test_faults_of_type_are_reported_together(tmp_path):
    with pytest.raises(UsageError, match=r"nprocs holds 'a'.*sloppy holds 0"):
        read_settings_file(write(tmp_path, "nprocs = 'a'\nsloppy = 0\n"))


def test_whole_numbers_serve_as_seconds(tmp_path):
    assert read_settings_file(write(tmp_path, "window = 3\nhigh_pass = 0")) == {"window": 3, "high_pass": 0}


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("16G", 16384), ("16g", 16384), ("16GB", 16384), ("16GiB", 16384), ("500M", 500), ("500", 500),
        ("2T", 2 * 1024**2), ("2048K", 2), ("1.5G", 1536), (" 8 G ", 8192),
    ],
)  # fmt: skip
def test_memory(text, mib):
    assert parse_memory(text) == mib


@pytest.mark.parametrize("text", ["", "G", "x", "16X", "-1G", "0", "nan", "inf", "nanG", "1,5G"])
def test_memory_that_cannot_be_used(text):
    with pytest.raises(UsageError, match=r"--mem is"):
        parse_memory(text)


@pytest.fixture
def good(tmp_path):
    (tmp_path / "raw").mkdir()
    return Settings(tmp_path / "raw", tmp_path / "out", "participant", work_dir=tmp_path / "work")


def test_defaults_have_no_fault(good):
    check_settings(good)
    assert good.store_dir == good.output_dir / "sourcedata" / "features"
    assert good.stimuli_root == good.bids_dir / "stimuli"
    assert replace(good, features_dir=Path("/f"), stimuli_dir=Path("/s")).store_dir == Path("/f")
    assert replace(good, stimuli_dir=Path("/s")).stimuli_root == Path("/s")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window": 0.0}, "--window is 0.0"),
        ({"window": float("nan")}, "--window is nan"),
        ({"window": float("inf")}, "--window is inf"),
        ({"window_position": "middle"}, "--window-position is middle"),
        ({"delays": ()}, "--delays are ()"),
        ({"delays": (1, 1)}, "--delays are (1, 1)"),
        ({"delays": (-1, 2)}, "--delays are (-1, 2)"),
        ({"high_pass": -0.1}, "--high-pass is -0.1"),
        ({"high_pass": float("nan")}, "--high-pass is nan"),
        ({"alphas": (0.0, 1.0, 5)}, "--alphas are"),
        ({"alphas": (2.0, 1.0, 5)}, "--alphas are"),
        ({"alphas": (1.0, float("inf"), 5)}, "--alphas are"),
        ({"alphas": (1.0, 2.0, 1)}, "--alphas are"),
        ({"n_folds": 1}, "--n-folds is 1"),
        ({"repeats": "both"}, "--repeats is both, but must be of each, average"),
        ({"train_task": ("a*",)}, "--train-task says which of the other runs train, and so needs --test-task"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"map_views": ("front",)}, "--map-views is front, but must be of glass, slices, inflated, flat, none"),
        ({"map_views": ()}, "must be one view or more, or none alone"),
        ({"map_views": ("none", "flat")}, "--map-views are none, flat, but must be one view or more, or none alone"),
        ({"nprocs": 0}, "--nprocs is 0"),
        ({"omp_nthreads": 0}, "--omp-nthreads is 0"),
        ({"n_gpu_procs": 0}, "--n-gpu-procs is 0"),
        ({"mem_mb": 0.0}, "--mem is 0.0 MB"),
        ({"models": ()}, "--models and --feature-table are both empty"),
        ({"space": ()}, "--space must name"),
        ({"space": ("T1w", "fsLR:91k")}, "--space fsLR:91k has '91k' behind a colon"),
        ({"space": ("func",)}, "--space func is another grid in every run"),
        ({"layers": (-1,)}, "--layers are (-1,)"),
        ({"device": "gpu"}, "--device is 'gpu'"),
        ({"confounds": "all"}, "--confounds is all"),
        ({"poolings": ("media", "first", "best")}, "--poolings is first, best"),
        ({"analysis_level": "run"}, "The analysis level is run"),
        ({"stimulus_map": Path("/none.tsv")}, "--stimulus-map: there is no file /none.tsv"),
        ({"bids_filter_file": Path("/none.json")}, "--bids-filter-file: there is no file"),
        ({"instructions_file": Path("/none.toml")}, "--instructions-file: there is no file"),
        ({"use_plugin": Path("/none.yml")}, "--use-plugin: there is no file"),
        ({"atlas": ("/none.nii.gz",)}, "--atlas: there is no file /none.nii.gz"),
        ({"atlas_dir": Path("/none")}, "--atlas-dir: there is no folder /none"),
        ({"rois": Path("/none.toml")}, "--rois: there is no file /none.toml"),
        ({"stimuli_dir": Path("/none")}, "--stimuli-dir: there is no folder /none"),
        ({"feature_table": {"words": Path("/none")}}, "--feature-table words: there is no folder /none"),
        ({"feature_table": {"a-b": Path("/")}}, "names must be letters and digits"),
        ({"feature_table": {"é": Path("/")}}, "names must be letters and digits"),
        ({"feature_table": {"x": Path("/")}, "models": ("x=/m",)}, "differ from --models"),
        ({"bids_dir": Path("/none")}, "The BIDS folder /none does not exist"),
    ],
)
def test_faults(good, changes, words):
    with pytest.raises(UsageError) as caught:
        check_settings(replace(good, **changes))
    assert words in str(caught.value)
    assert str(caught.value).count(words) == 1


def test_all_faults_are_reported_together(good):
    with pytest.raises(UsageError) as caught:
        check_settings(replace(good, n_folds=1, device="x", output_dir=good.bids_dir, window=-1.0))
    assert all(w in str(caught.value) for w in ("--n-folds", "--device", "--window", "is the BIDS folder itself"))


def test_output_and_work_folders_keep_out_of_the_data_set_links_included(good, tmp_path):
    (tmp_path / "link").symlink_to(good.bids_dir)
    for folder in (good.bids_dir, tmp_path / "link"):
        with pytest.raises(UsageError, match=r"is the BIDS folder itself"):
            check_settings(replace(good, output_dir=folder))
        for work in (folder, folder / "work", folder / "derivatives" / "out" / "work"):
            with pytest.raises(UsageError, match=r"lies inside the BIDS folder"):
                check_settings(replace(good, work_dir=work))
    check_settings(replace(good, output_dir=good.bids_dir / "derivatives" / "bids-mllm"))
