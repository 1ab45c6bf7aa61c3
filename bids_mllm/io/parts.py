"""What was extracted of a chunk that is not complete yet, kept so that a killed job goes on where it stopped.

Parts belong to one chunk of all entries that one model fills together. Each is a safetensors file in
``STORE/.parts`` with some consecutive windows and is named by the first of them, so that what grows is the number of
files and each window is written once. They are removed when the chunk is written. A part that cannot be read is as
good as none.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bids_mllm.io.chunks import canonical_json
from bids_mllm.io.owners import write_error, write_whole

PARTS_FOLDER = ".parts"
_UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)


@dataclass(frozen=True)
class Part:
    """Consecutive windows of a chunk.

    Attributes
    ----------
    values
        For each entry an array (n_rows, n_layers, width); NaN in the rows of masked windows.
    texts
        For each entry whose model generates, by its position among the entries, the text of every window.
    masked
        Reason by window, for windows without features.
    first
        Row of the chunk at which they begin.
    """

    values: tuple[NDArray[np.float32], ...]
    texts: Mapping[int, Sequence[str]]
    masked: Mapping[int, str]
    first: int = 0


def part_path(store: Path, name: str, first: int = 0) -> Path:
    """Return the file of the part of a chunk that begins at a row; `name` is that of the claim on the chunk."""
    return store / PARTS_FOLDER / f"{name}.{first:05d}.safetensors"


def claim_of_part(path: Path) -> str:
    """Return the name of the claim on the chunk that a part belongs to."""
    return path.name.rsplit(".", 2)[0]


def save_part(path: Path, part: Part, entries: Sequence[str]) -> None:
    """Write a part: whole or not at all. `entries` are the digests of the entries, in the order of the values.

    Raises
    ------
    StoreError
        When the disk is full or the store cannot be written.
    """
    record = {
        "entries": list(entries),
        "texts": {str(number): list(texts) for number, texts in part.texts.items()},
        "masked": {str(window): reason for window, reason in part.masked.items()},
    }
    tensors = {f"{number:05d}": np.ascontiguousarray(values) for number, values in enumerate(part.values)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path.parent, error) from error
    write_whole(path, save(tensors, metadata={"record": canonical_json(record)}))


def saved_rows(store: Path, name: str, entries: Sequence[str]) -> int:
    """Return how many of a chunk's first windows parts of these entries hold; only headers are read."""
    n_rows = 0
    while (more := _count(part_path(store, name, n_rows), entries)) > 0:
        n_rows += more
    return n_rows


def load_parts(store: Path, name: str, entries: Sequence[str]) -> Iterator[Part]:
    """Yield the parts of a chunk of these entries from its first window on, as far as they can be used."""
    first = 0
    while (part := _load(part_path(store, name, first), entries, first)) is not None:
        yield part
        first += len(part.values[0])


def remove_parts(store: Path, name: str) -> None:
    """Remove the parts of a chunk, which are not needed any more."""
    for path in sorted((store / PARTS_FOLDER).glob(f"{name}.*.safetensors")):
        with contextlib.suppress(OSError):
            path.unlink()


def _record(file: Any, entries: Sequence[str]) -> dict[str, Any] | None:
    """Return what an open part says beside its values; None where it is of other entries."""
    record: dict[str, Any] = json.loads(file.metadata()["record"])
    return record if record["entries"] == list(entries) else None


def _count(path: Path, entries: Sequence[str]) -> int:
    if not path.is_file():
        return 0
    try:
        with safe_open(path, framework="numpy") as file:
            return 0 if _record(file, entries) is None else int(file.get_slice("00000").get_shape()[0])
    except _UNREADABLE:
        return 0


def _load(path: Path, entries: Sequence[str], first: int) -> Part | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            record = _record(file, entries)
            if record is None:
                return None
            values = tuple(file.get_tensor(f"{number:05d}") for number in range(len(entries)))
        texts = {int(number): tuple(said) for number, said in record["texts"].items()}
        masked = {int(window): reason for window, reason in record["masked"].items()}
    except _UNREADABLE:
        return None
    return Part(values, texts, masked, first) if len(values[0]) else None
