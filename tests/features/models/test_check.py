"""A checkpoint compared with its record: the real tiny checkpoints, whole and damaged in one way each."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bids_mllm.features.models.check import Finding, check_model
from bids_mllm.features.registry import resolve_models
from bids_mllm.records import ModelSpec


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture
def spec(copy: Path) -> ModelSpec:
    """A record of the tiny checkpoint, as complete as those of the registry."""
    (found,) = resolve_models([f"tiny={copy}"])
    return replace(found, layers=5, width=48)


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text("utf-8"))
    edit(values)
    path.write_text(json.dumps(values), "utf-8")


def verdicts(findings: tuple[Finding, ...]) -> set[tuple[str, str]]:
    return {(finding.topic, finding.verdict) for finding in findings if finding.verdict == "wrong"}


def text_of(findings: tuple[Finding, ...], topic: str) -> str:
    return "\n".join(f"{finding.verdict}: {finding.text}" for finding in findings if finding.topic == topic)


def test_a_checkpoint_that_fits_its_record(spec: ModelSpec) -> None:
    findings = check_model(spec)
    assert verdicts(findings) == set()
    n_numbers = sum(weight.numel() for weight in load_file(Path(spec.source) / "model.safetensors").values())
    assert f"ok: All files are whole: {n_numbers:,} numbers" in text_of(findings, "weights")
    assert "ok: The weights are stored in float32, as the record says." in text_of(findings, "weights")
    assert "ok: The configuration loads as Qwen2_5_VLConfig." in text_of(findings, "configuration")
    assert "ok: The checkpoint has 5 layers, as the record says." in text_of(findings, "configuration")
    assert "keeps all 13 instructions word for word, media-first" in text_of(findings, "instructions")


def test_the_real_processor_is_loaded_where_it_can_be(spec: ModelSpec, real_processor: Any) -> None:
    assert text_of(check_model(spec), "processor") == f"ok: The processor loads as {type(real_processor).__name__}."


def test_sizes_that_differ_from_the_record(spec: ModelSpec) -> None:
    findings = check_model(replace(spec, key="other", layers=29, width=3584))
    assert "wrong: The checkpoint has 5 layers, but the record of other says 29." in text_of(findings, "configuration")
    assert "48 features a layer, but the record of other says 3584" in text_of(findings, "configuration")


def test_sizes_that_the_record_does_not_say(spec: ModelSpec) -> None:
    findings = check_model(replace(spec, layers=None, width=None))
    assert verdicts(findings) == set()
    assert "note: The checkpoint has 5 layers; the record does not say." in text_of(findings, "configuration")


def test_a_checkpoint_of_another_family(spec: ModelSpec, copy: Path) -> None:
    findings = check_model(replace(spec, family="llavaonevision"))
    assert ("configuration", "wrong") in verdicts(findings)
    assert "has model_type 'qwen2_5_vl'" in text_of(findings, "configuration")


def test_a_folder_without_a_configuration(spec: ModelSpec, copy: Path) -> None:
    (copy / "config.json").unlink()
    (finding,) = check_model(spec)
    assert (finding.topic, finding.verdict) == ("files", "wrong")
    assert "has no config.json" in finding.text


def test_truncated_weights(spec: ModelSpec, copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    findings = check_model(spec)
    assert "wrong: The weights' file" in text_of(findings, "weights")
    assert "truncated or damaged" in text_of(findings, "weights")


def test_random_weights_are_not_looked_at(spec: ModelSpec, copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    findings = check_model(replace(spec, key="tiny+random", weights="random"))
    assert verdicts(findings) == set()
    assert "drawn at random" in text_of(findings, "weights")


@pytest.mark.parametrize(
    ("stored", "run", "expected"),
    [
        (torch.float16, "bfloat16", "note: The weights are stored in float16; the record runs them in bfloat16."),
        (torch.bfloat16, "bfloat16", "ok: The weights are stored in bfloat16, as the record says."),
        (torch.bfloat16, "float16", "wrong: The weights are stored in bfloat16, whose range float16 lacks"),
    ],
)
def test_the_dtype_of_the_weights(spec: ModelSpec, copy: Path, stored: torch.dtype, run: str, expected: str) -> None:
    weights = {name: weight.to(stored) for name, weight in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert expected in text_of(check_model(replace(spec, dtype=run)), "weights")


def test_memory_that_differs_from_the_record(spec: ModelSpec) -> None:
    assert "note: The record says 16.6 GB" in text_of(check_model(replace(spec, memory_gb=16.6)), "weights")
    assert "The record says" not in text_of(check_model(replace(spec, memory_gb=0.001)), "weights")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{{ part.text }}", ""),
        ("{{ part.text }}", "{{ part.text | lower }}"),
        ("{{ part.text }}", "{{ part.text[:20] }}"),
        ("{{ part.text }}", "{{ part.text | replace('?', '') }}"),
    ],
    ids=["dropped", "in lower case", "cut off", "without question marks"],
)
def test_a_template_that_does_not_keep_the_instruction(spec: ModelSpec, copy: Path, old: str, new: str) -> None:
    template = copy / "chat_template.jinja"
    text = template.read_text("utf-8")
    assert old in text
    template.write_text(text.replace(old, new), "utf-8")
    findings = check_model(spec)
    assert verdicts(findings) == {("instructions", "wrong")}
    assert "chat template does not keep the instruction" in text_of(findings, "instructions")


def test_a_template_without_the_media_token(spec: ModelSpec, copy: Path) -> None:
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text("utf-8").replace("<|video_pad|>", ""), "utf-8")
    findings = check_model(spec)
    assert verdicts(findings) == {("instructions", "wrong")}
    assert "media tokens" in text_of(findings, "instructions")


def test_a_template_that_turns_the_order_round(spec: ModelSpec) -> None:
    """The order asked for is the record's, and the real template follows the order of the message."""
    other = replace(spec, parameters={"order": "instruction-first"})
    assert "word for word, instruction-first" in text_of(check_model(other), "instructions")


def test_a_media_token_that_the_tokenizer_lacks(spec: ModelSpec, copy: Path) -> None:
    change(copy / "config.json", lambda config: config.update(video_token_id=10**6))
    findings = check_model(spec)
    assert verdicts(findings) == {("instructions", "wrong")}
    assert "1000000 as video_token_id, which is no token" in text_of(findings, "instructions")


def test_a_broken_tokenizer(spec: ModelSpec, copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    assert verdicts(check_model(spec)) == {("instructions", "wrong")}


def test_a_configuration_that_contradicts_itself(spec: ModelSpec, copy: Path) -> None:
    change(copy / "config.json", lambda config: config["text_config"].update(num_hidden_layers="five"))
    findings = check_model(spec)
    assert ("configuration", "wrong") in verdicts(findings)
    assert "cannot be loaded by transformers" in text_of(findings, "configuration")


@pytest.mark.parametrize(
    "family",
    ["llavaonevision", "llavanextvideo", "videollava", "internvl", "instructblipvideo", "qwen2audio", "qwen25omni"],
)
def test_the_other_families_checkpoints(family: str, tmp_path: Path) -> None:
    from bids_mllm.features.models.tiny import TINY_CHECKPOINTS

    folder = TINY_CHECKPOINTS[family](tmp_path / family)
    (spec,) = resolve_models([f"tiny={folder}"])
    findings = check_model(spec)
    assert verdicts(findings) == set()
    if family == "instructblipvideo":
        assert "note: The family instructblipvideo makes its prompts itself" in text_of(findings, "instructions")
    else:
        n_instructions = 5 if spec.media == "audio" else 13
        assert f"keeps all {n_instructions} instructions" in text_of(findings, "instructions")


def test_a_model_that_learns_in_context_is_checked_without_demonstrations(tmp_path: Path) -> None:
    from bids_mllm.features.models.tiny import TINY_CHECKPOINTS

    folder = TINY_CHECKPOINTS["internvl"](tmp_path / "internvl")
    (spec,) = resolve_models([f"internvl38bicl={folder}"])
    assert spec.kind == "in-context"
    assert "keeps all 13 instructions" in text_of(check_model(spec), "instructions")


# The classes of transformers whose own defaults are the sizes of these checkpoints, and the processors of sound.
DEFAULTS = {
    "ast": ("ASTConfig", "ASTFeatureExtractor"),
    "wav2vec2base": ("Wav2Vec2Config", "Wav2Vec2FeatureExtractor"),
    "hubertbase": ("HubertConfig", "Wav2Vec2FeatureExtractor"),
    "wavlmbaseplus": ("WavLMConfig", "Wav2Vec2FeatureExtractor"),
    "claphtsat": ("ClapConfig", "ClapFeatureExtractor"),
    "vivitbase": ("VivitConfig", None),
    "timesformerbase": ("TimesformerConfig", None),
    "vjepa2large": ("VJEPA2Config", None),
    "vitbase": ("ViTConfig", None),
    "xclipbase": ("XCLIPConfig", None),
}


# The extractor of AST warns of its own standard settings.
@pytest.mark.filterwarnings("ignore:At least one mel filter:UserWarning")
@pytest.mark.parametrize("key", DEFAULTS)
def test_sizes_of_records_are_those_of_the_real_classes(key: str, tmp_path: Path) -> None:
    import transformers

    config, extractor = DEFAULTS[key]
    getattr(transformers, config)().save_pretrained(tmp_path)
    if extractor is None:
        (tmp_path / "preprocessor_config.json").write_text("{}")
    else:
        getattr(transformers, extractor)().save_pretrained(tmp_path)
    (spec,) = resolve_models([f"{key}+random={tmp_path}"])
    sizes = [finding.verdict for finding in check_model(spec) if "as the record says" in finding.text]
    assert sizes == ["ok", "ok"]
