"""The settings of a study by name: what they are, what overrides them, and what is recorded."""

import tomllib
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path

import pytest

from bids_mllm.cli.parser import parse_settings
from bids_mllm.cli.presets import preset_names, preset_text, read_preset
from bids_mllm.config import Settings, read_settings_file, settings_to_toml
from bids_mllm.exceptions import UsageError
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.registry import load_registry, resolve_models


@pytest.fixture
def there(tmp_path, monkeypatch):
    (tmp_path / "raw").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(*words: str) -> Settings:
    return parse_settings(["raw", "out", "participant", *words])


def test_the_study_of_2025_is_what_its_paper_states(there):
    settings = parse("--preset", "oota2025")
    assert settings.preset == "oota2025"
    assert (settings.train_task, settings.test_task, settings.repeats) == (("bourne*", "wolf*"), ("life*",), "average")
    assert settings.delays == (1, 2, 3, 4, 5)
    assert settings.alphas[:2] == (0.1, 1000.0)
    assert settings.poolings == ("generated",)
    assert settings.max_new_tokens == 100
    assert settings.window is None
    assert settings.space == ("fsLR:den-91k",)
    assert settings.noise_ceiling == "participants-exponential"
    assert (settings.n_permutations, settings.permutation_method, settings.block_length) == (5000, "block", 10)
    assert settings.fdr == "bh"
    assert settings.atlas == ("Glasser",)


def test_its_models_are_in_the_registry_and_its_kinds_are_all_there(there):
    models = resolve_models(parse("--preset", "oota2025").models)
    sources = {model.source for model in models}
    # The table of the paper; TVLT cannot be had.
    assert sources >= {
        "Salesforce/instructblip-vicuna-7b", "LanguageBind/Video-LLaVA-7B-hf", "llava-hf/LLaVA-NeXT-Video-7B-hf",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf", "Qwen/Qwen2.5-VL-7B-Instruct", "OpenGVLab/VideoChat-R1_7B",
        "Qwen/Qwen2-Audio-7B-Instruct", "moonshotai/Kimi-Audio-7B-Instruct",
    }  # fmt: skip
    kinds = {model.kind for model in models}
    assert kinds == {
        "instruction-tuned video", "instruction-tuned audio", "multimodal", "unimodal video", "unimodal audio",
    }  # fmt: skip
    assert all(model.key in load_registry() for model in models)


def test_its_instructions_are_the_built_in_lists(there):
    assert parse("--preset", "oota2025").instructions == ()
    assert [i.key for i in load_instructions()] == [
        "AR", "VU", "VQ", "VC", "OSR", "CR", "SU", "TO", "VR", "NU", "ESA", "GA", "LE",
    ]  # fmt: skip
    assert len(load_instructions(media="audio")) == 5


def test_what_is_said_later_overrides_the_preset(there):
    (there / "s.toml").write_text("delays = [4]\nfdr = 'by'\npreset = 'former'\n")
    settings = parse("--config-file", "s.toml", "--preset", "oota2025", "--fdr", "bh", "--space", "T1w")
    assert settings.delays == (4,)
    assert settings.fdr == "bh"
    assert settings.space == ("T1w",)
    assert settings.repeats == "average"
    assert settings.preset == "oota2025"


def test_a_copy_that_was_changed_is_read_from_its_file(there):
    text = preset_text("oota2025").replace("delays = [1, 2, 3, 4, 5]", "delays = [2, 3]")
    (there / "mine.toml").write_text(text)
    settings = parse("--preset", "mine.toml")
    assert (settings.delays, settings.repeats, settings.preset) == ((2, 3), "average", "mine.toml")
    assert replace(settings, delays=(1, 2, 3, 4, 5), preset="oota2025") == parse("--preset", "oota2025")


def test_a_run_records_the_values_and_repeats_itself_from_them(there):
    settings = parse("--preset", "oota2025", "--delays", "3")
    (there / "run.toml").write_text(settings_to_toml(settings))
    assert read_settings_file(there / "run.toml")["preset"] == "oota2025"
    assert parse("--config-file", "run.toml") == settings


@pytest.mark.parametrize("text", ["oota2024", "oota"])
def test_an_unknown_name_lists_the_names(there, text):
    with pytest.raises(UsageError, match=rf"--preset is '{text}'.*choose from oota2025"):
        parse("--preset", text)


def test_a_file_that_is_not_there_or_holds_what_is_no_setting(there):
    with pytest.raises(UsageError, match=r"none.toml cannot be read"):
        parse("--preset", "none.toml")
    (there / "own.toml").write_text("delay = [1]\n")
    with pytest.raises(UsageError, match="unknown settings delay"):
        parse("--preset", "own.toml")


def test_a_preset_is_printed_to_be_copied(call):
    result = call("--print-preset", "oota2025")
    assert (result.status, result.err) == (0, "")
    packaged = resources.files("bids_mllm").joinpath("data", "presets", "oota2025.toml").read_text("utf-8")
    assert result.out == packaged
    assert "# K: " in result.out
    wrong = call("--print-preset", "other")
    assert wrong.status == 2
    assert "There is no preset 'other'; choose from oota2025." in wrong.err


def test_the_presets_are_in_the_help(call):
    assert f"settings of a study ({', '.join(preset_names())})" in " ".join(call("--help").out.split())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_holds_settings_that_name_no_folder_of_anybody(name):
    values = tomllib.loads(preset_text(name))
    assert set(values) <= {field.name for field in fields(Settings)}
    assert not {"bids_dir", "output_dir", "analysis_level", "preset", "participant_label"} & set(values)
    assert not any(isinstance(value, Path) for value in read_preset(name).values())


def test_it_has_no_effect_at_the_group_level(call, study, tmp_path):
    result = call(study, tmp_path / "out", "group", "--preset", "oota2025")
    assert result.status == 2
    assert "--preset has no effect at the group level" in result.err


def rows_of(result):
    head, *rows = (line.split("\t") for line in result.out.splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_a_dry_run_with_a_preset_needs_no_checkpoint(call, study, tmp_path):
    result = call(
        study, tmp_path / "out", "participant", "--preset", "oota2025", "--dry-run",
        "--space", "MNI152NLin2009cAsym",
    )  # fmt: skip
    assert result.status == 0, result.err
    sides = {row["task"]: row["split"] for row in rows_of(result)}
    assert {side for task, side in sides.items() if task.startswith(("bourne", "wolf"))} == {"train"}
    assert {side for task, side in sides.items() if task.startswith("life")} == {"test"}
    assert "No tables of Glasser are written for MNI152NLin2009cAsym" in result.err
    for key in ("qwen25vl7b", "kimiaudio7b", "ast"):
        assert f"{key}: not in the estimates" in result.err
    assert not (tmp_path / "out").exists()


def test_runs_of_no_pattern_are_listed_as_unused_with_what_they_show(call, study, tmp_path):
    words = ("--dry-run", "--models", "melspectrogram", "--sloppy", "--test-task", "life*")
    whole = call(study, tmp_path / "out", "participant", *words)
    result = call(study, tmp_path / "out", "participant", *words, "--train-task", "task-bourne*")
    assert result.status == 0, result.err
    expected = [row | {"split": "unused"} if row["task"].startswith("wolf") else row for row in rows_of(whole)]
    assert rows_of(result) == expected
    unused = [row for row in expected if row["split"] == "unused"]
    assert len(unused) == 2
    assert all(row["stim_file"] != "n/a" and int(row["n_windows"]) > 0 for row in unused)
    # Films that nobody is trained or tested on are not in the estimates.
    assert unused[0]["stim_file"] + ":" in whole.err
    assert unused[0]["stim_file"] + ":" not in result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train-task", "bourne*", "figures*"], "--train-task figures* matches no run; the tasks there are bourne01"),
        (["--train-task", "bourne*", "life01"], "--train-task and --test-task both name life01"),
    ],
)
def test_patterns_that_cannot_be_used(call, study, tmp_path, words, message):
    result = call(study, tmp_path / "out", "participant", "--test-task", "life*", *words, "--dry-run")
    assert result.status == 2
    assert message in result.err


def test_train_task_alone_is_refused(call, study, tmp_path):
    result = call(study, tmp_path / "out", "participant", "--train-task", "bourne*", "--dry-run")
    assert result.status == 2
    assert "--train-task says which of the other runs train, and so needs --test-task; give both." in result.err
