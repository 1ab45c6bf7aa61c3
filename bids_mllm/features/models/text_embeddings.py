"""Texts as a model's own input embeddings, read from its files without loading the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.models import checkpoint
from bids_mllm.features.models.loading import load_tokenizer
from bids_mllm.records import ModelSpec

EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
# Parts of a checkpoint that have embeddings of tokens which are not those of the text.
OTHER_PARTS = ("talker.", "token2wav.", "visual.", "vision", "audio", "whisper")


def text_embeddings(spec: ModelSpec, texts: Sequence[str]) -> NDArray[np.float32] | None:
    """Return for each text the mean input embedding of its tokens.

    Only the rows of the embedding matrix that the texts need are read, from the safetensors files.

    Parameters
    ----------
    spec
        The model; its `source` is a folder or a hub id that is in the cache.
    texts
        Tokenised as they are, without special tokens.

    Returns
    -------
    (n_texts, width) float32 or None
        A row of NaN for a text without tokens. None for a model without weights of its own (low-level, random
        or a feature table) and for a checkpoint in which no matrix is certain to be that of its text.

    Raises
    ------
    CheckpointError
        When files are missing or damaged, or the tokenizer has more tokens than the matrix has rows.
    """
    if not spec.source or spec.weights == "random":
        return None
    folder = checkpoint.find_folder(spec.source, revision=spec.revision)
    config = checkpoint.read_config(folder)
    checkpoint.check_weights(folder)
    found = find_embedding(folder, config)
    if found is None:
        return None
    tokenizer = load_tokenizer(folder)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for text in texts]
    rows, width = _read_rows(*found, sorted({token for own in ids for token in own}))
    means = [np.mean([rows[token] for token in own], axis=0) if own else np.full(width, np.nan) for own in ids]
    return np.array(means, dtype=np.float32)


def find_embedding(folder: Path, config: Mapping[str, Any]) -> tuple[Path, str] | None:
    """Return the file and the name of the matrix of a checkpoint's input embeddings of text.

    Its name ends with ``embed_tokens.weight``; where a checkpoint has none and its config ties the output
    matrix to it, ``lm_head.weight`` holds the same numbers. None where there is no or no single candidate.
    """
    places = {name: path for path in checkpoint.weight_files(folder) for name in checkpoint.read_header(path)}
    names = _candidates(places, EMBEDDING)
    if not names and _tied(config):
        names = _candidates(places, HEAD)
    return (places[names[0]], names[0]) if len(names) == 1 else None


def _candidates(names: Mapping[str, Path], ending: str) -> list[str]:
    return [
        name
        for name in names
        if (name == ending or name.endswith(f".{ending}")) and not any(part in name for part in OTHER_PARTS)
    ]


def _tied(config: Mapping[str, Any]) -> bool:
    """Whether input and output embeddings are one matrix, as the config or that of its text part says."""
    text = config.get("text_config") or {}
    return bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))


def _read_rows(path: Path, name: str, tokens: Sequence[int]) -> tuple[dict[int, NDArray[np.float32]], int]:
    """Return the row (width,) of each token, and the width."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        matrix = tensors.get_slice(name)
        n_rows, width = matrix.get_shape()
        if tokens and tokens[-1] >= n_rows:
            raise CheckpointError(
                f"The tokenizer beside {path} has the token {tokens[-1]}, but {name} has {n_rows} rows; copy the "
                "checkpoint again."
            )
        # Rows by themselves: bfloat16 has no numpy type, so torch turns each into single precision.
        rows = {token: matrix[token : token + 1].float().numpy()[0] for token in tokens}
    return rows, int(width)
