"""Damaged, missing and foreign checkpoints: one sentence each, before any weight is loaded."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.models import checkpoint
from bids_mllm.features.models.qwen25vl import FAMILY
from bids_mllm.records import ModelSpec


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def test_truncated_weights(copy: Path, make_spec: Any, make_readout: Any) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or damaged"):
        FAMILY.plan(make_spec(copy), make_readout("last"))


def test_a_missing_shard(copy: Path, make_spec: Any, make_readout: Any) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks 1 weights' files .*model-2\.safetensors"):
        FAMILY.plan(make_spec(copy), make_readout("last"))


def test_a_missing_weight(copy: Path, make_spec: Any, make_readout: Any) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights \(first: lm_head\.weight\)"):
        FAMILY.load(make_spec(copy), make_readout("last"), "cpu")


def test_a_misshapen_weight(copy: Path, make_spec: Any, make_readout: Any) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros(3, 3)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        FAMILY.load(make_spec(copy), make_readout("last"), "cpu")


def test_another_architecture(copy: Path, make_spec: Any, make_readout: Any) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    with pytest.raises(CheckpointError, match=r"model_type 'llava', but .* needs 'qwen2_5_vl'"):
        FAMILY.plan(make_spec(copy), make_readout("last"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", r"has no weights as \*\.safetensors"),
        ("processor_config.json", "has none of processor_config.json"),
    ],
)
def test_a_missing_file(copy: Path, make_spec: Any, make_readout: Any, name: str, message: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        FAMILY.plan(make_spec(copy), make_readout("last"))


def test_pickled_weights_alone_are_refused(copy: Path, make_spec: Any, make_readout: Any) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights are never opened"):
        FAMILY.plan(make_spec(copy), make_readout("last"))


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_config_that_is_no_json_object(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.read_config(copy)


def test_a_config_without_sizes(copy: Path, make_spec: Any, make_readout: Any) -> None:
    (copy / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(CheckpointError, match="does not give num_hidden_layers"):
        FAMILY.plan(make_spec(copy), make_readout("last"))


def test_sizes_at_the_top_of_an_older_config(copy: Path, make_spec: Any, make_readout: Any) -> None:
    config = {"model_type": "qwen2_5_vl", "num_hidden_layers": 28, "hidden_size": 3584}
    (copy / "config.json").write_text(json.dumps(config))
    plan = FAMILY.plan(make_spec(copy), make_readout("last"))
    assert (plan.n_layers, plan.width) == (29, 3584)


def test_a_broken_tokenizer(copy: Path, make_spec: Any, make_readout: Any) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer"):
        FAMILY.load(make_spec(copy), make_readout("last"), "cpu")


def test_a_hub_id_that_is_not_cached(tmp_path: Path, make_readout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    spec = ModelSpec("q", "qwen25vl", "video", source="owner/name", revision="abc")
    with pytest.raises(CheckpointError, match=r"owner/name at revision abc .*--allow-download.*label=FOLDER"):
        FAMILY.plan(spec, make_readout("last"))


def test_a_cached_hub_id_is_found_without_network(
    tiny_folder: Path, tmp_path: Path, make_readout: Any, make_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache as the hub's client lays it out: snapshots are links to blobs named by their digest."""
    from huggingface_hub import constants

    commit = "0" * 40
    root = tmp_path / "models--owner--name"
    snapshot, blobs = root / "snapshots" / commit, root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    for path in tiny_folder.iterdir():
        data = path.read_bytes()
        blob = blobs / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / path.name).symlink_to(blob)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    spec = ModelSpec("q", "qwen25vl", "video", source="owner/name")
    plan = FAMILY.plan(spec, make_readout("last"))
    assert plan.identity == FAMILY.plan(make_spec(), make_readout("last")).identity


def test_the_digest_takes_a_blob_by_its_name(tmp_path: Path) -> None:
    """The digest in a blob's name stands for its bytes, so a large file is not read again."""
    data = b"weights"
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "model.safetensors").write_bytes(data)
    blob = tmp_path / hashlib.sha256(data).hexdigest()
    blob.write_bytes(b"other bytes, never read")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "model.safetensors").symlink_to(blob)
    assert checkpoint.files_digest(linked) == checkpoint.files_digest(plain)


def test_the_digest_sees_changed_bytes_and_ignores_other_files(copy: Path) -> None:
    before = checkpoint.files_digest(copy)
    (copy / "README.md").write_text("read me")
    assert checkpoint.files_digest(copy) == before
    tokenizer = copy / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert checkpoint.files_digest(copy) != before


@pytest.mark.parametrize("name", ["video_preprocessor_config.json", "preprocessor_config.json"])
def test_older_layouts_of_the_processor_settings(copy: Path, name: str) -> None:
    settings = json.loads((copy / "processor_config.json").read_text())["video_processor"]
    (copy / "processor_config.json").write_text('{"processor_class": "Qwen2_5_VLProcessor"}')
    (copy / name).write_text(json.dumps(settings))
    assert checkpoint.read_processor_config(copy) == settings


def test_the_chat_template_of_either_file(copy: Path) -> None:
    template = checkpoint.read_chat_template(copy)
    assert template is not None
    assert "<|video_pad|>" in template
    (copy / "chat_template.jinja").unlink()
    assert checkpoint.read_chat_template(copy) is None
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": "abc"}))
    assert checkpoint.read_chat_template(copy) == "abc"
