"""The command line: every option in both spellings, and what it becomes in Settings."""

import argparse
import os
import subprocess
import sys
import sysconfig
import time
from dataclasses import fields
from pathlib import Path

import pytest

from bids_mllm.cli.parser import build_parser, parse_settings
from bids_mllm.config import Settings
from bids_mllm.exceptions import UsageError

SCRIPT = Path(sysconfig.get_path("scripts")) / "bids-mllm"
HEAVY = (
    "torch",
    "nipype",
    "bids",
    "nibabel",
    "nilearn",
    "himalaya",
    "transformers",
    "safetensors",
    "pandas",
    "scipy",
    "av",
)


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with everything that options may point to."""
    monkeypatch.chdir(tmp_path)
    for folder in ("raw", "stimuli", "words", "prep"):
        (tmp_path / folder).mkdir()
    for file in ("filter.json", "map.tsv", "own.toml", "d.toml", "plugin.yml", "a.nii.gz", "b.nii.gz"):
        (tmp_path / file).write_text("")
    return tmp_path


def parse(*words: str) -> Settings:
    return parse_settings(["raw", "out", "participant", *words])


def options() -> list[argparse.Action]:
    return [action for action in build_parser()._actions if action.option_strings]


#: One use of every option: the words after it, the setting, and its value; {} is the current folder.
USES: dict[str, tuple[list[str], str, object]] = {
    "--participant-label": (["sub-01", "02"], "participant_label", ("01", "02")),
    "--session-label": (["ses-001", "002"], "session_label", ("001", "002")),
    "--session-id": (["ses-001"], "session_label", ("001",)),
    "-t": (["task-a"], "task_id", ("a",)),
    "--task-id": (["task-life01", "wolf01"], "task_id", ("life01", "wolf01")),
    "--run-id": (["run-01", "2", "003"], "run_id", (1, 2, 3)),
    "--bids-filter-file": (["filter.json"], "bids_filter_file", "{}/filter.json"),
    "--bids-database-dir": (["db"], "bids_database_dir", "{}/db"),
    "-d": (["fmriprep=prep"], "derivatives", {"fmriprep": "{}/prep"}),
    "--derivatives": (
        ["fmriprep=prep", "words"],
        "derivatives",
        {"fmriprep": "{}/prep", "words": "{}/words"},
    ),
    "--space": (["T1w", "MNI"], "space", ("T1w", "MNI")),
    "--skip-bids-validation": ([], "skip_bids_validation", True),
    "--stimuli-dir": (["stimuli"], "stimuli_dir", "{}/stimuli"),
    "--stimulus-map": (["map.tsv"], "stimulus_map", "{}/map.tsv"),
    "--window": (["2.5"], "window", 2.5),
    "--window-position": (["center"], "window_position", "center"),
    "--models": (["tinymllm", "x=/m"], "models", ("tinymllm", "x=/m")),
    "--model-revision": (["abc"], "model_revision", "abc"),
    "--family": (["qwen25vl"], "family", "qwen25vl"),
    "--trust-remote-code": ([], "trust_remote_code", True),
    "--allow-download": ([], "allow_download", True),
    "--instructions": (["AR", "VQ"], "instructions", ("AR", "VQ")),
    "--instructions-file": (["own.toml"], "instructions_file", "{}/own.toml"),
    "--null-instructions": (["empty", "scrambled"], "null_instructions", ("empty", "scrambled")),
    "--demonstrations": (["d.toml"], "demonstrations", "{}/d.toml"),
    "--poolings": (["last", "media"], "poolings", ("last", "media")),
    "--max-new-tokens": (["3"], "max_new_tokens", 3),
    "--layers": (["0", "12"], "layers", (0, 12)),
    "--feature-table": (["words=words"], "feature_table", {"words": "{}/words"}),
    "--features-dir": (["store"], "features_dir", "{}/store"),
    "--confounds": (["motion"], "confounds", "motion"),
    "--high-pass": (["0"], "high_pass", 0.0),
    "--delays": (["2", "3"], "delays", (2, 3)),
    "--alphas": (["1", "1e5", "6"], "alphas", (1.0, 1e5, 6)),
    "--test-task": (["life*"], "test_task", ("life*",)),
    "--train-task": (["bourne*", "wolf*", "--test-task", "life*"], "train_task", ("bourne*", "wolf*")),
    "--repeats": (["average"], "repeats", "average"),
    "--preset": (["oota2025"], "preset", "oota2025"),
    "--cv": (["film"], "cv", "film"),
    "--cv-file": (["sub-{participant}_split.json"], "cv_file", "{}/sub-{{participant}}_split.json"),
    "--n-folds": (["4"], "n_folds", 4),
    "--solver": (["himalaya"], "solver", "himalaya"),
    "--equal-rank": (["50"], "equal_rank", 50),
    "--bands": (["motionenergy", "melspectrogram"], "bands", ("motionenergy", "melspectrogram")),
    "--partition": (["motionenergy"], "partition", ("motionenergy",)),
    "--noise-ceiling": (["repeats"], "noise_ceiling", "repeats"),
    "--permutations": (["99"], "n_permutations", 99),
    "--permutation-method": (["circular"], "permutation_method", "circular"),
    "--block-length": (["7"], "block_length", 7),
    "--fdr": (["by"], "fdr", "by"),
    "--atlas": (["Glasser", "Schaefer400"], "atlas", ("Glasser", "Schaefer400")),
    "--atlas-dir": (["words"], "atlas_dir", "{}/words"),
    "--rois": (["own.toml"], "rois", "{}/own.toml"),
    "-w": (["w"], "work_dir", "{}/w"),
    "--work-dir": (["../w"], "work_dir", "{}/../w"),
    "--nprocs": (["3"], "nprocs", 3),
    "--nthreads": (["3"], "nprocs", 3),
    "--n-cpus": (["3"], "nprocs", 3),
    "--omp-nthreads": (["2"], "omp_nthreads", 2),
    "--mem": (["2G"], "mem_mb", 2048.0),
    "--device": (["cuda:1"], "device", "cuda:1"),
    "--n-gpu-procs": (["2"], "n_gpu_procs", 2),
    "--use-plugin": (["plugin.yml"], "use_plugin", "{}/plugin.yml"),
    "--nipype-plugin-file": (["plugin.yml"], "use_plugin", "{}/plugin.yml"),
    "--random-seed": (["5"], "random_seed", 5),
    "--stop-on-first-crash": ([], "stop_on_first_crash", True),
    "--clean-workdir": ([], "clean_workdir", True),
    "--resource-monitor": ([], "resource_monitor", True),
    "--map-views": (["flat", "glass"], "map_views", ("flat", "glass")),
    "--sloppy": ([], "sloppy", True),
    "--dry-run": ([], "dry_run", True),
    "--stages": (["fit"], "stages", ("fit",)),
    "--reports-only": ([], "reports_only", True),
    "--boilerplate-only": ([], "boilerplate_only", True),
    "--md-only-boilerplate": ([], "md_only_boilerplate", True),
    "-v": ([], "verbose", 1),
    "--verbose": ([], "verbose", 1),
}
WITHOUT_SETTING = {"-h", "--help", "--version", "--notrack", "--config-file", "--print-preset"}


def expected(value: object, folder: Path) -> object:
    if isinstance(value, str):
        return Path(os.path.normpath(value.format(folder))) if "{}" in value else value
    if isinstance(value, dict):
        return {key: expected(item, folder) for key, item in value.items()}
    return tuple(expected(item, folder) for item in value) if isinstance(value, tuple) else value


def spelled_with_hyphens(action: argparse.Action) -> list[str]:
    return [name for name in action.option_strings if "_" not in name]


def test_every_option_is_tried_and_ends_in_settings():
    names = {name for action in options() for name in spelled_with_hyphens(action)}
    assert names == set(USES) | WITHOUT_SETTING
    settings = {field.name for field in fields(Settings)}
    assert {setting for _, setting, _ in USES.values()} <= settings
    assert settings - {setting for _, setting, _ in USES.values()} == {
        "bids_dir",
        "output_dir",
        "analysis_level",
    }


@pytest.mark.parametrize("option", USES)
def test_every_option_in_both_spellings(there, option):
    words, setting, value = USES[option]
    both = {option, "--" + option[2:].replace("-", "_")} if option.startswith("--") else {option}
    for spelling in both:
        found = getattr(parse(spelling, *words), setting)
        assert found == expected(value, there)
        assert getattr(parse(), setting) != found


def test_every_long_option_has_its_other_spelling():
    for action in options():
        names = set(action.option_strings)
        if not names & {"--help", "--version"}:
            assert names == {s for n in names for s in (n, n[:2] + n[2:].replace("-", "_"))}


def test_defaults_are_those_of_settings(there):
    settings = parse()
    given = {"bids_dir", "output_dir", "analysis_level", "work_dir", "nprocs", "omp_nthreads", "mem_mb"}
    plain = Settings(there / "raw", there / "out", "participant")
    for field in fields(Settings):
        if field.name not in given:
            assert getattr(settings, field.name) == getattr(plain, field.name), field.name
    assert (settings.bids_dir, settings.output_dir) == (there / "raw", there / "out")
    assert settings.work_dir == there / "work"
    assert settings.nprocs >= 1
    assert settings.mem_mb > 0


def test_files_of_atlases_are_told_from_names_and_made_absolute(there):
    assert parse("--atlas", "a.nii.gz", "Glasser").atlas == (str(there / "a.nii.gz"), "Glasser")


def test_tables_alone_need_no_models(there):
    assert parse("--feature-table", "words=words").models == ()
    assert parse("--feature-table", "words=words", "--models", "tinymllm").models == ("tinymllm",)


def test_verbosity_counts_and_notrack_does_nothing(there):
    assert parse("-vv", "-v").verbose == 3
    assert parse("--notrack") == parse()


def test_home_is_expanded_and_links_are_kept(there, monkeypatch):
    monkeypatch.setenv("HOME", str(there))
    (there / "linked").symlink_to(there / "stimuli")
    assert parse("--stimuli-dir", "~/linked").stimuli_dir == there / "linked"


def test_the_command_line_overrides_the_settings_file(there):
    (there / "s.toml").write_text(
        'analysis_level = "group"\nbids_dir = "/elsewhere"\nn_folds = 3\ndelays = [4]\n'
        'models = ["tinymllm"]\n'
        "mem_mb = 100.0\nnprocs = 2\ndry_run = true\nsloppy = true\n"
    )
    settings = parse("--config-file", "s.toml", "--delays", "1", "2", "--mem", "1G")
    assert (settings.analysis_level, settings.bids_dir) == ("participant", there / "raw")
    assert (settings.delays, settings.mem_mb) == ((1, 2), 1024.0)
    assert (settings.n_folds, settings.models, settings.nprocs, settings.sloppy) == (
        3,
        ("tinymllm",),
        2,
        True,
    )
    assert settings.dry_run is False


def test_a_settings_file_that_is_not_there(there):
    with pytest.raises(UsageError, match=r"none.toml cannot be read"):
        parse("--config-file", "none.toml")


def test_values_of_a_settings_file_are_checked_like_those_of_the_command_line(there):
    (there / "s.toml").write_text('window_position = "middle"\nconfounds = "all"\n')
    with pytest.raises(UsageError, match=r"--window-position is middle.*--confounds is all"):
        parse("--config-file", "s.toml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run-id", "one"], "--run-id is 'one'"),
        (["--run-id", "²"], "--run-id is '²'"),
        (["-d", "a=prep", "a=words"], "--derivatives names a twice"),
        (["-d", "prep", "prep=words"], "--derivatives names prep twice"),
        (["--feature-table", "words"], "--feature-table is 'words', but must be NAME=DIR"),
        (["--feature-table", "a=words", "a=prep"], "--feature-table names a twice"),
        (["--mem", "lots"], "--mem is 'lots'"),
        (["--device", "gpu"], "--device is 'gpu'"),
        (["--device", "cuda:x"], "--device is 'cuda:x'"),
        (["--alphas", "1", "10", "2.5"], "NUMBER must be a whole number"),
        (["--alphas", "1", "10", "nan"], "NUMBER must be a whole number"),
        (["--n-folds", "1", "--nprocs", "0"], "--n-folds is 1, but must be 2 or more. --nprocs is 0"),
    ],
)
def test_values_that_cannot_be_used(there, words, message):
    with pytest.raises(UsageError) as caught:
        parse(*words)
    assert message in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--unknown"],
        ["--particip", "01"],
        ["--window", "long"],
        ["--confounds", "all"],
        ["--alphas", "1"],
        ["extra"],
    ],
)
def test_what_argparse_rejects_exits_with_status_2(there, capsys, words):
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    assert "usage: bids-mllm" in capsys.readouterr().err


def test_the_level_is_one_of_two(there, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_settings(["raw", "out", "session"])
    assert caught.value.code == 2
    assert "session" in capsys.readouterr().err
    assert parse_settings(["raw", "out", "group"]).analysis_level == "group"


def test_every_option_has_a_help_text():
    assert [action.dest for action in options() if not action.help] == []


def run_script(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(SCRIPT), *words], capture_output=True, text=True, check=False, timeout=60)


def test_help_takes_less_than_a_second():
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = run_script("--help")
        seconds.append(time.perf_counter() - began)
        assert done.returncode == 0
    assert "--stimulus-map" in done.stdout
    assert "Exit status" in done.stdout
    assert min(seconds) < 1.0


def test_version_and_unknown_options_of_the_script():
    from bids_mllm import __version__

    assert run_script("--version").stdout == f"bids-mllm {__version__}\n"
    done = run_script("raw", "out", "participant", "--nonsense")
    assert done.returncode == 2
    assert "--nonsense" in done.stderr
    assert run_script().returncode == 2


def test_importing_the_command_line_loads_nothing_heavy():
    code = (
        "import sys, bids_mllm, bids_mllm.cli.run, bids_mllm.cli.parser as p; p.build_parser().format_help();"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
