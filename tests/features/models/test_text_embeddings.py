"""Embeddings of texts read from files against those of the loaded model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models.text_embeddings import text_embeddings
from bids_mllm.records import ModelSpec

TEXTS = [instruction.text for instruction in load_instructions()[:4]]


def spec_of(folder: Path | str, **changes: Any) -> ModelSpec:
    return ModelSpec("tiny", "qwen25vl", "video", source=str(folder), kind="instruction-tuned video", **changes)


def expected_of(folder: Path, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Mean input embedding of each text, by the real model and its tokenizer."""
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    embed = model.get_input_embeddings()
    with torch.no_grad():
        rows = [embed(torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])) for text in TEXTS]
    return np.array([row.float().numpy().mean(axis=0) for row in rows])


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def embedding_name(folder: Path) -> str:
    (name,) = (name for name in weights_of(folder) if name.endswith("embed_tokens.weight"))
    return name


def test_the_rows_are_those_of_the_loaded_model(tiny_folder: Path) -> None:
    found = text_embeddings(spec_of(tiny_folder), TEXTS)
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected_of(tiny_folder), rtol=1e-6, atol=1e-7)
    assert len(np.unique(found.round(5), axis=0)) == len(TEXTS)


def test_bfloat16_in_shards_with_an_index(tiny_folder: Path, copied: Path) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    (copied / "model.safetensors").unlink()
    model.save_pretrained(copied, max_shard_size="60KB")
    assert len(list(copied.glob("model-*.safetensors"))) > 3
    found = text_embeddings(spec_of(copied, dtype="bfloat16"), TEXTS)
    assert found is not None
    np.testing.assert_allclose(found, expected_of(copied, torch.bfloat16), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "language_model.model.embed_tokens.weight", "thinker.model.embed_tokens.weight"],
)
def test_the_names_that_checkpoints_of_the_hub_use(copied: Path, name: str) -> None:
    """Beside the matrix of the text may stand those of other parts, such as what speaks."""
    expected = text_embeddings(spec_of(copied), TEXTS)
    weights = weights_of(copied)
    matrix = weights.pop(embedding_name(copied))
    other = {"talker.model.embed_tokens.weight": torch.zeros_like(matrix)}
    save_file({name: matrix, **other, **weights}, copied / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_array_equal(text_embeddings(spec_of(copied), TEXTS), expected)


def test_a_tied_matrix_that_is_stored_as_the_head(copied: Path) -> None:
    expected = text_embeddings(spec_of(copied), TEXTS)
    weights = weights_of(copied)
    matrix = weights.pop(embedding_name(copied))
    save_file({**weights, "lm_head.weight": matrix}, copied / "model.safetensors", metadata={"format": "pt"})
    assert text_embeddings(spec_of(copied), TEXTS) is None
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (copied / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(text_embeddings(spec_of(copied), TEXTS), expected)


def test_nothing_is_said_where_two_matrices_may_be_meant(copied: Path) -> None:
    weights = weights_of(copied)
    weights["model.decoder.embed_tokens.weight"] = torch.zeros(4, 4)
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert text_embeddings(spec_of(copied), TEXTS) is None


def test_models_without_weights_of_their_own_have_none(tiny_folder: Path) -> None:
    assert text_embeddings(spec_of(tiny_folder, weights="random"), TEXTS) is None
    assert text_embeddings(spec_of(""), TEXTS) is None


def test_an_empty_text_has_no_embedding(tiny_folder: Path) -> None:
    found = text_embeddings(spec_of(tiny_folder), ["", TEXTS[0]])
    assert found is not None
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()
    nothing = text_embeddings(spec_of(tiny_folder), [""])
    assert nothing is not None
    assert nothing.shape == (1, 48)


def test_only_the_rows_that_are_needed_are_read(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bids_mllm.features.models.text_embeddings as module

    real, asked = module._read_rows, []

    def watched(path: Path, name: str, tokens: list[int]) -> Any:
        asked.extend(tokens)
        return real(path, name, tokens)

    monkeypatch.setattr(module, "_read_rows", watched)
    text_embeddings(spec_of(tiny_folder), TEXTS[:1])
    assert len(asked) == len(set(asked)) <= len(TEXTS[0])


def test_files_that_do_not_fit_together(copied: Path) -> None:
    weights = weights_of(copied)
    name = embedding_name(copied)
    weights[name] = weights[name][:20].clone()
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has the token \d+, but .* has 20 rows"):
        text_embeddings(spec_of(copied), TEXTS)
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        text_embeddings(spec_of(copied), TEXTS)
