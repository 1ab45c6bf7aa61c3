"""Damaged, missing and foreign checkpoints: one sentence each, before any weight is loaded."""

import hashlib
import json
import shutil
import socket
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, LlavaNextVideoConfig, Qwen2_5_VLForConditionalGeneration

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


def test_weights_that_may_not_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy / "model.safetensors"
    real = Path.open

    def forbidden(self: Path, *given: Any, **more: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *given, **more)

    monkeypatch.setattr(Path, "open", forbidden)  # root may read everything
    with pytest.raises(CheckpointError, match=r"model\.safetensors may not be read by you; change its permissions"):
        checkpoint.read_header(path)


def test_others_may_read_the_weights_of_a_simulated_model(tiny_folder: Path) -> None:
    modes = {path.name: path.stat().st_mode for path in tiny_folder.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_a_missing_shard(copy: Path, make_spec: Any, make_readout: Any) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks 1 weights' files .*model-2\.safetensors"):
        FAMILY.plan(make_spec(copy), make_readout("last"))


@pytest.fixture
def sharded(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint in shards, written by transformers."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "sharded"))
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def test_shards_are_whole_and_counted(sharded: Path, tiny_folder: Path) -> None:
    checkpoint.check_weights(sharded)
    assert checkpoint.count_parameters(sharded) == checkpoint.count_parameters(tiny_folder)


def test_a_shard_without_the_weights_that_the_index_says(sharded: Path) -> None:
    index = json.loads((sharded / checkpoint.INDEX).read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]
    shutil.copy(sharded / first, sharded / second)
    with pytest.raises(CheckpointError, match=rf"{second} lacks \d+ weights that the index"):
        checkpoint.check_weights(sharded)


@pytest.mark.parametrize("index", [{"weight_map": {}}, {}, {"weight_map": {"a": "../model.safetensors"}}])
def test_an_index_that_cannot_be_used(copy: Path, index: dict[str, Any]) -> None:
    (copy / checkpoint.INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"names no weights|lacks 1 weights' files"):
        checkpoint.check_weights(copy)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:4],
        lambda data: data[:-1],
        lambda data: data + b"0",
        lambda data: (2**62).to_bytes(8, "little") + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
    ],
    ids=["empty", "no length", "one byte short", "one byte long", "endless header", "no object"],
)
def test_a_header_that_does_not_fit_its_file(copy: Path, damage: Any) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    for read in (checkpoint.check_weights, checkpoint.count_parameters):
        with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or damaged"):
            read(copy)


def test_numbers_and_bytes_of_the_weights(tmp_path: Path) -> None:
    """By hand: 6 + 4 floating-point numbers of 2 or 4 bytes, and 5 whole numbers that stay at 8."""
    weights = {"a.x": torch.zeros(2, 3), "b.x": torch.zeros(4, dtype=torch.bfloat16), "a.n": torch.zeros(5).long()}
    save_file(weights, tmp_path / "model.safetensors")
    assert checkpoint.count_parameters(tmp_path) == 15
    assert checkpoint.count_parameters(tmp_path, ("a.",)) == 11
    assert checkpoint.weight_bytes(tmp_path, "bfloat16") == 10 * 2 + 5 * 8
    assert checkpoint.weight_bytes(tmp_path, "float32") == 10 * 4 + 5 * 8
    assert checkpoint.weight_bytes(tmp_path, "float16", ("b.", "c.")) == 8
    assert checkpoint.stored_dtypes(tmp_path) == {"F32": 6, "BF16": 4, "I64": 5}


def test_numbers_of_a_real_model(tiny_folder: Path) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_folder, dtype=torch.float32)
    assert checkpoint.count_parameters(tiny_folder) == sum(p.numel() for p in model.parameters())


def test_a_folder_without_weights_has_none(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert checkpoint.count_parameters(copy) == 0
    assert checkpoint.read_config(copy, need_weights=False)["model_type"] == "qwen2_5_vl"


def test_the_defaults_of_sections_are_those_of_transformers() -> None:
    packaged = resources.files("bids_mllm").joinpath("data", "config_defaults.json")
    for model_type, values in json.loads(packaged.read_text("utf-8")).items():
        real = json.loads(json.dumps(CONFIG_MAPPING[model_type]().to_dict()))
        assert {name: real[name] for name in values} == values


@pytest.mark.parametrize(("outer", "section"), checkpoint.SECTION_TYPES)
def test_the_types_of_sections_are_those_of_transformers(outer: str, section: str) -> None:
    config = getattr(CONFIG_MAPPING[outer](), section)
    assert checkpoint.SECTION_TYPES[outer, section] == config.model_type


def test_sizes_that_a_section_leaves_out(copy: Path) -> None:
    """The hub's LLaVA-like checkpoints name the decoder and leave its sizes to its class."""
    config = {
        "model_type": "llava_next_video",
        "text_config": {"model_type": "llama", "vocab_size": 32064},
        "vision_config": {"hidden_size": 1536},
    }
    (copy / "config.json").write_text(json.dumps(config))
    real = LlavaNextVideoConfig.from_pretrained(copy)
    found = checkpoint.read_config(copy)
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        assert found["text_config"][name] == getattr(real.text_config, name)
    for name in ("hidden_size", "patch_size", "image_size"):
        assert found["vision_config"][name] == getattr(real.vision_config, name)
    assert "hidden_size" not in found


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
    command = r"`bids-mllm-models prefetch owner/name --revision abc --to DIR`"
    with pytest.raises(CheckpointError, match=rf"owner/name at revision abc is not in .*{command}.*LABEL=FOLDER"):
        FAMILY.plan(spec, make_readout("last"))
    with pytest.raises(CheckpointError, match=r"`bids-mllm-models prefetch owner/name --to DIR`"):
        checkpoint.find_folder("owner/name", revision=None)


def test_looking_for_a_hub_id_never_uses_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def connect(*arguments: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(CheckpointError, match="not in the local cache"):
        checkpoint.find_folder("owner/name", revision=None)


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


def test_the_digest_sees_the_tokenizer_of_a_q_former(copy: Path) -> None:
    before = checkpoint.files_digest(copy)
    (copy / "qformer_tokenizer").mkdir()
    (copy / "qformer_tokenizer" / "tokenizer.json").write_text("{}")
    assert checkpoint.files_digest(copy) != before


def test_the_digest_without_weights(copy: Path) -> None:
    """Random weights depend on the configuration and the tokenizer, not on the weights that lie there."""
    before = checkpoint.files_digest(copy, weights=False)
    (copy / "model.safetensors").unlink()
    (copy / checkpoint.INDEX).write_text("{}")
    assert checkpoint.files_digest(copy, weights=False) == before
    (copy / "config.json").write_text("{}")
    assert checkpoint.files_digest(copy, weights=False) != before


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
