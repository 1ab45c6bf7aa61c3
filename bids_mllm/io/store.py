"""Feature store on disk: one folder an entry, named by the digest of all that changes a number.

An entry holds one model x condition of one stimulus on one grid of windows: n_windows x n_layers x width. Its
folder ``STORE/ab/abcd...`` has a description, ``entry.json``, and one file a chunk of windows (`bids_mllm.io.chunks`),
each written whole or not at all, so that an interrupted extraction resumes where it stopped and several processes
may fill one store. Every file is a function of what it holds: whoever wrote a store, in whatever order, its bytes are
the same.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.exceptions import StoreError
from bids_mllm.io.chunks import ChunkAddress, canonical_json, encode_chunk, open_chunk
from bids_mllm.io.owners import remove_orphans, write_error, write_whole
from bids_mllm.records import Condition, WindowGrid

__all__ = ["FORMAT", "WINDOWS_PER_CHUNK", "FeatureEntry", "FeatureStore", "canonical_json", "entry_description"]

FORMAT = 2
WINDOWS_PER_CHUNK = 64
DESCRIPTION_FILE = "entry.json"
#: An empty file whose time says when the entry was last asked for, to the day.
USED_FILE = "used"
DAY = 86400.0


def entry_description(
    *,
    media: Mapping[str, Any],
    grid: WindowGrid,
    identity: Mapping[str, Any],
    condition: Condition,
    instruction_text: str | None,
) -> dict[str, Any]:
    """Everything that changes a number of one entry, and nothing else, as JSON-ready values.

    `identity` may hold ``by_pooling``: {pooling: settings}; only the part of this condition's pooling
    counts. The key of an instruction is a name and does not count; its text does.
    """
    common = {key: value for key, value in identity.items() if key != "by_pooling"}
    return {
        "format": FORMAT,
        "media": dict(media),
        "grid": [grid.origin, grid.step, grid.length, grid.n_windows],
        "model": common,
        "pooling": condition.pooling,
        "pooling_settings": identity.get("by_pooling", {}).get(condition.pooling, {}),
        "instruction": instruction_text,
    }


@dataclass(frozen=True)
class FeatureEntry:
    """One entry of the store: n_windows x n_layers x width features in the folder `path`."""

    path: Path
    n_windows: int
    n_layers: int
    width: int

    @property
    def n_chunks(self) -> int:
        """Number of chunks of windows."""
        return -(-self.n_windows // WINDOWS_PER_CHUNK)

    def rows(self, chunk: int) -> slice:
        """Windows of one chunk."""
        return slice(chunk * WINDOWS_PER_CHUNK, min((chunk + 1) * WINDOWS_PER_CHUNK, self.n_windows))

    def address(self, chunk: int) -> ChunkAddress:
        """File of one chunk, and the shape it must have."""
        rows = self.rows(chunk)
        shape = (rows.stop - rows.start, self.n_layers, self.width)
        return ChunkAddress(self.path / f"chunk-{chunk:05d}.safetensors", chunk, shape)

    def missing_chunks(self) -> tuple[int, ...]:
        """Chunks that have not been written yet."""
        try:
            names = {item.name for item in os.scandir(self.path)}
        except FileNotFoundError:
            names = set()
        except OSError as error:
            raise _read_error(self.path, error) from error
        return tuple(chunk for chunk in range(self.n_chunks) if self.address(chunk).path.name not in names)

    def write(
        self,
        chunk: int,
        values: NDArray[np.float32],
        *,
        masked: Mapping[int, str] | None = None,
        texts: Sequence[str] | None = None,
    ) -> None:
        """Write the windows of one chunk: whole or not at all.

        Parameters
        ----------
        chunk
        values : (n_rows, n_layers, width) float32
            NaN in the rows of masked windows.
        masked
            Reason by window (its number within the entry) for windows that have no features.
        texts
            What the model generated for each row, where it did.

        Raises
        ------
        StoreError
            When the shapes do not fit, the disk is full or the store cannot be written; no file is left then.
        """
        address, rows, masked = self.address(chunk), self.rows(chunk), masked or {}
        values = np.asarray(values, dtype=np.float32)
        if values.shape != address.shape:
            raise StoreError(f"{address.path} is given the shape {values.shape}; expected {address.shape}.")
        for window in masked:
            inside = rows.start <= window < rows.stop
            if not inside or not np.isnan(values[window - rows.start]).all():
                raise StoreError(
                    f"{address.path} is given window {window} as masked; expected one of {rows.start} to "
                    f"{rows.stop - 1} with NaN in all its features."
                )
        if texts is not None and len(texts) != address.shape[0]:
            raise StoreError(f"{address.path} is given {len(texts)} texts; expected one a window, {address.shape[0]}.")
        write_whole(address.path, encode_chunk(address, values, masked=masked, texts=texts))

    def read(self, layer: int | None = None) -> NDArray[np.float32]:
        """Read one layer, shape (n_windows, width), or all, shape (n_windows, n_layers, width).

        Masked windows are NaN. What is read is checked against its checksums; other layers are not touched.

        Raises
        ------
        StoreError
            When a chunk is missing or damaged, or there is no such layer.
        """
        if layer is not None and not 0 <= layer < self.n_layers:
            raise StoreError(f"{self.path} has the layers 0 to {self.n_layers - 1}; layer {layer} was asked for.")
        self._check_complete()
        self.mark_used()
        layers = range(self.n_layers) if layer is None else (layer,)
        values = np.empty((self.n_windows, len(layers), self.width), dtype=np.float32)
        for chunk in range(self.n_chunks):
            with open_chunk(self.address(chunk)) as reader:
                for column, number in enumerate(layers):
                    values[self.rows(chunk), column] = reader.layer(number)
        return values if layer is None else values[:, 0]

    def masked(self) -> dict[int, str]:
        """Reason by window, for the windows that have no features."""
        self._check_complete()
        found: dict[int, str] = {}
        for chunk in range(self.n_chunks):
            with open_chunk(self.address(chunk)) as reader:
                found |= reader.record.masked
        return dict(sorted(found.items()))

    def texts(self) -> tuple[str, ...] | None:
        """Generated text of every window; None where the condition generates none, or there are no windows."""
        self._check_complete()
        found: list[str] = []
        for chunk in range(self.n_chunks):
            with open_chunk(self.address(chunk)) as reader:
                if reader.record.texts is None:
                    return None
                found += reader.record.texts
        return tuple(found) if self.n_chunks else None

    def mark_used(self) -> None:
        """Set the time of the entry's last use, at most once a day and where the store can be written."""
        marker = self.path / USED_FILE
        with contextlib.suppress(OSError):
            try:
                recent = time.time() - marker.stat().st_mtime < DAY
            except FileNotFoundError:
                recent = False
            if not recent:
                marker.touch()

    def _check_complete(self) -> None:
        missing = self.missing_chunks()
        if missing:
            raise StoreError(
                f"The feature entry {self.path} lacks {len(missing)} of {self.n_chunks} chunks; run the "
                "participant level again to finish its extraction."
            )


class FeatureStore:
    """A folder of entries, shared by all participants and safe to write from several processes.

    Parameters
    ----------
    folder
    only_find
        Write nothing, so that a store which cannot be written serves too: an entry that is new lacks all its chunks.
    """

    def __init__(self, folder: Path, *, only_find: bool = False) -> None:
        self.folder = folder
        self._only_find = only_find

    def entry(self, description: Mapping[str, Any], *, n_windows: int, n_layers: int, width: int) -> FeatureEntry:
        """Return the entry of this description, made empty when it is new and the store may be written.

        What a process that died left half-written there is removed then.

        Raises
        ------
        StoreError
            When the store cannot be written, or holds the entry with another shape.
        """
        digest = entry_digest(description)
        entry = FeatureEntry(self.folder / digest[:2] / digest, n_windows, n_layers, width)
        record = _record(entry, description)
        file = entry.path / DESCRIPTION_FILE
        try:
            found = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            found = b""
        except OSError as error:
            raise _read_error(file, error) from error
        if found != record:
            _check_same_shape(entry, found)
        if not self._only_find:
            _make(entry, None if found == record else record)
        return entry


def _make(entry: FeatureEntry, record: bytes | None) -> None:
    """Make the folder of an entry and write its record where one is given; remove what is half-written there."""
    if record is not None:
        try:
            entry.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(entry.path, error) from error
        write_whole(entry.path / DESCRIPTION_FILE, record)
    remove_orphans(entry.path)
    entry.mark_used()


def entry_digest(description: Mapping[str, Any]) -> str:
    """Return the name of the entry of a description: the SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical_json(description).encode()).hexdigest()


def _record(entry: FeatureEntry, description: Mapping[str, Any]) -> bytes:
    content = {
        "format": FORMAT,
        "description": dict(description),
        "n_windows": entry.n_windows,
        "n_layers": entry.n_layers,
        "width": entry.width,
        "windows_per_chunk": WINDOWS_PER_CHUNK,
    }
    return (canonical_json(content) + "\n").encode()


def _check_same_shape(entry: FeatureEntry, found: bytes) -> None:
    """Raise where a description that can be read is of another shape; one that cannot be read is written anew."""
    try:
        content = json.loads(found)
        shape = (content["n_windows"], content["n_layers"], content["width"])
    except (ValueError, KeyError, TypeError):
        return
    expected = (entry.n_windows, entry.n_layers, entry.width)
    if shape != expected:
        raise StoreError(
            f"The feature entry {entry.path} has (windows, layers, features) {shape}, but the model gives "
            f"{expected}; check the layers and the width of its record, or remove that folder and run again."
        )


def _read_error(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path} cannot be read ({error.strerror or error}); check the permissions of the feature store or choose "
        "another --features-dir."
    )
