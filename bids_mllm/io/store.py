"""Feature store on disk: one Zarr v3 array an entry, named by the digest of all that changes a number.

An entry holds one model x condition of one stimulus on one grid of windows: shape (n_windows, n_layers,
width), one shard a chunk of windows so that an interrupted extraction resumes where it stopped, and inside
a shard one chunk a layer so that a layer is read without the others.
"""

import errno
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.exceptions import StoreError
from bids_mllm.records import Condition, WindowGrid

FORMAT = 1
WINDOWS_PER_CHUNK = 64
#: Zarr leaves out chunks that hold nothing but this, and a chunk left out counts as not yet written, so it is
#: a value that no feature takes (NaN is one: a table may have rows without a value).
UNWRITTEN = float(np.finfo(np.float32).min)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, so that equal values give equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


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
    """One array of the store."""

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

    def _shard(self, chunk: int) -> Path:
        return self.path / "c" / str(chunk) / "0" / "0"

    def missing_chunks(self) -> tuple[int, ...]:
        """Chunks that have not been written yet."""
        return tuple(chunk for chunk in range(self.n_chunks) if not self._shard(chunk).is_file())

    def write(self, chunk: int, values: NDArray[np.float32]) -> None:
        """Write the windows of one chunk, shape (n_rows, n_layers, width): whole or not at all."""
        import zarr

        rows = self.rows(chunk)
        expected = (rows.stop - rows.start, self.n_layers, self.width)
        if values.shape != expected:
            raise StoreError(f"Chunk {chunk} of {self.path} has the shape {values.shape}; expected {expected}.")
        try:
            zarr.open_array(self.path, mode="r+", zarr_format=3)[rows] = values
        except OSError as error:
            raise _write_error(self.path, error) from error

    def read(self, layer: int | None = None) -> NDArray[np.float32]:
        """Read one layer, shape (n_windows, width), or all, shape (n_windows, n_layers, width)."""
        import zarr

        missing = self.missing_chunks()
        if missing:
            raise StoreError(
                f"The feature entry {self.path} lacks {len(missing)} of {self.n_chunks} chunks; run the "
                "participant level again to finish its extraction."
            )
        try:
            array = zarr.open_array(self.path, mode="r", zarr_format=3)
            selected = array[:] if layer is None else array[:, layer]
        except (OSError, ValueError, RuntimeError) as error:
            raise StoreError(
                f"The feature entry {self.path} is damaged ({error}); remove it and run the participant level again."
            ) from error
        return np.asarray(selected, dtype=np.float32)


class FeatureStore:
    """A folder of entries, shared by all participants and safe to write from several processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entry(self, description: Mapping[str, Any], *, n_windows: int, n_layers: int, width: int) -> FeatureEntry:
        """Return the entry of this description, made empty when it is new."""
        digest = hashlib.sha256(canonical_json(description).encode()).hexdigest()
        path = self.folder / digest[:2] / f"{digest}.zarr"
        if not (path / "zarr.json").is_file():
            self._create(path, description, (n_windows, n_layers, width))
        return FeatureEntry(path, n_windows, n_layers, width)

    def _create(self, path: Path, description: Mapping[str, Any], shape: tuple[int, int, int]) -> None:
        import zarr

        n_windows, n_layers, width = shape
        rows = min(WINDOWS_PER_CHUNK, max(n_windows, 1))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as scratch:
                made = Path(scratch) / path.name
                zarr.create_array(
                    made,
                    shape=shape,
                    shards=(rows, n_layers, width),
                    chunks=(rows, 1, width),
                    dtype="float32",
                    fill_value=UNWRITTEN,
                    attributes={"description": json.loads(canonical_json(description))},
                    config={"write_empty_chunks": True},
                    zarr_format=3,
                )
                _move_into_place(made, path)
        except OSError as error:
            raise _write_error(path, error) from error


def _move_into_place(made: Path, path: Path) -> None:
    """Rename; another process that made the same entry first wins, since both are equal."""
    try:
        made.rename(path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not (path / "zarr.json").is_file():
            raise


def _write_error(path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"The disk that holds {path} is full; free space there or choose another --features-dir, and run "
            "again: what was finished is kept."
        )
    return StoreError(f"The feature entry {path} cannot be written ({error}); check its permissions.")
