"""What was extracted of a chunk that is not complete yet, kept so that a killed job goes on where it stopped.

A part belongs to one chunk of all entries that one model fills together; it is one safetensors file in
``STORE/.parts``, replaced as the chunk grows and removed when the chunk is written. A part that cannot be read is
as good as none.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bids_mllm.io.chunks import canonical_json
from bids_mllm.io.owners import write_whole

PARTS_FOLDER = ".parts"


@dataclass(frozen=True)
class Part:
    """The first windows of a chunk.

    Attributes
    ----------
    values
        For each entry an array (n_done, n_layers, width); NaN in the rows of masked windows.
    texts
        For each entry whose model generates, the text of every window.
    masked
        Reason by window, for windows without features.
    """

    values: tuple[NDArray[np.float32], ...]
    texts: Mapping[int, Sequence[str]]
    masked: Mapping[int, str]


def part_path(store: Path, name: str) -> Path:
    """Return the file of the part of a chunk, which is named as the claim on it."""
    return store / PARTS_FOLDER / f"{name}.safetensors"


def save_part(path: Path, part: Part, entries: Sequence[str]) -> None:
    """Write a part: whole or not at all. `entries` are the digests of the entries, in the order of the values."""
    record = {
        "entries": list(entries),
        "texts": {str(number): list(texts) for number, texts in part.texts.items()},
        "masked": {str(window): reason for window, reason in part.masked.items()},
    }
    tensors = {f"{number:05d}": np.ascontiguousarray(values) for number, values in enumerate(part.values)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(tensors, metadata={"record": canonical_json(record)}))


def load_part(path: Path, entries: Sequence[str]) -> Part | None:
    """Return the part of a chunk of these entries; None where there is none that can be used."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            record = json.loads(file.metadata()["record"])
            values = tuple(file.get_tensor(f"{number:05d}") for number in range(len(entries)))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
    if record.get("entries") != list(entries):
        return None
    texts = {int(number): tuple(said) for number, said in record["texts"].items()}
    return Part(values, texts, {int(window): reason for window, reason in record["masked"].items()})


def remove_part(path: Path) -> None:
    """Remove a part that is not needed any more."""
    with contextlib.suppress(OSError):
        path.unlink()
