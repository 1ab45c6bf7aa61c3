"""The files of a feature entry: one a chunk of windows, in safetensors, one tensor a layer.

A chunk file of r windows holds for layer k the tensor ``layer_{k:03d}`` of shape (r, width), in float16 or,
where a value would overflow, in float32. Columns that float16 would spoil are in ``layer_{k:03d}_exact``
(r, n) float32 besides, and ``layer_{k:03d}_columns`` (n,) int32 says which these are. Under one key of the
header stands a record as canonical JSON: which windows have no features and why, the generated texts, and each
layer's dtype and SHA-256. All of it follows from the values, so equal values give equal bytes; one key alone,
since the library writes several in any order.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bids_mllm.exceptions import StoreError

RECORD_KEY = "bids_mllm"
#: A column is rounded to float16 only where the root mean square of the rounding error is at most this share of
#: the column's standard deviation over the windows of the chunk. Noise of 2 % lowers a correlation by the factor
#: 1 / sqrt(1 + 0.02^2), which is 0.9998. Columns with a large mean are those it protects: float16 steps are up to
#: 1/1024 of a value, so what varies by less than 1/70 of the mean would begin to drown. A column without variation
#: in the chunk passes only where float16 holds it exactly; else it would differ from its neighbours in chunks that
#: are kept in float32, and scaling would blow that step up to a feature.
ROUNDING_SHARE = 0.02


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, so that equal values give equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


class Damage(Exception):  # noqa: N818 - a finding about a file, which its reader turns into a StoreError
    """What is wrong with a file of the store, as a part of a sentence."""


@dataclass(frozen=True)
class ChunkAddress:
    """Where a chunk is and what it must hold.

    Attributes
    ----------
    path
        The file.
    chunk
        Number of the chunk within its entry.
    shape
        Windows of the chunk, layers, features of a layer.
    """

    path: Path
    chunk: int
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class ChunkRecord:
    """What the header of a chunk file says beside the tensors.

    Attributes
    ----------
    masked
        Reason by window, for the windows that have no features.
    texts
        Generated text of each window, None where nothing was generated.
    dtypes
        ``float16`` or ``float32`` of each layer.
    exact
        Number of columns of each layer that are kept in float32 besides.
    checksums
        SHA-256 of each layer's bytes.
    """

    masked: Mapping[int, str]
    texts: tuple[str, ...] | None
    dtypes: tuple[str, ...]
    exact: tuple[int, ...]
    checksums: tuple[str, ...]


def encode_chunk(
    address: ChunkAddress,
    values: NDArray[np.float32],
    *,
    masked: Mapping[int, str],
    texts: Sequence[str] | None,
) -> bytes:
    """Return the bytes of a chunk file; they depend on the arguments alone.

    Parameters
    ----------
    address
    values : (n_rows, n_layers, width) float32
    masked
        Reason by window.
    texts
        One text a row, or None.
    """
    tensors: dict[str, NDArray[Any]] = {}
    layers = []
    for layer in range(values.shape[1]):
        parts = _layer_parts(values[:, layer])
        layers.append(
            {
                "dtype": parts[0].dtype.name,
                "exact": len(parts[1]) if len(parts) > 1 else 0,
                "sha256": _checksum(parts),
            }
        )
        tensors |= dict(zip(_tensor_names(layer), parts, strict=False))
    content = {
        "entry": address.path.parent.name,
        "chunk": address.chunk,
        "layers": layers,
        "masked": {str(window): masked[window] for window in sorted(masked)},
        "texts": None if texts is None else list(texts),
    }
    record = {"content": content, "sha256": hashlib.sha256(canonical_json(content).encode()).hexdigest()}
    return bytes(save(tensors, metadata={RECORD_KEY: canonical_json(record)}))


def _tensor_names(layer: int) -> tuple[str, str, str]:
    name = f"layer_{layer:03d}"
    return name, f"{name}_columns", f"{name}_exact"


def _layer_parts(values: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
    """Return (values) in float32 or float16, or (values in float16, columns, exact values of these columns)."""
    # One NaN for all: their bits may differ between computations that agree in every number.
    values = np.ascontiguousarray(np.where(np.isnan(values), np.float32(np.nan), values))
    with np.errstate(over="ignore", under="ignore"):
        half = values.astype(np.float16)
    finite = np.isfinite(values)
    if not np.isfinite(half[finite]).all():
        return (values,)
    columns = _spoilt_columns(values, half, finite)
    if 2 * len(columns) >= values.shape[1] and len(columns):
        return (values,)  # as many bytes as with the columns besides
    return (half, columns, np.ascontiguousarray(values[:, columns])) if len(columns) else (half,)


def _spoilt_columns(
    values: NDArray[np.float32], half: NDArray[np.float16], finite: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Columns whose rounding error ``rms(half - x)`` exceeds ``ROUNDING_SHARE * std(x)``, over finite values."""
    count = np.maximum(finite.sum(axis=0), 1)
    exact = np.where(finite, values, 0.0).astype(np.float64)
    rounded = np.where(finite, half, 0.0).astype(np.float64)
    centred = np.where(finite, exact - exact.sum(axis=0) / count, 0.0)
    variance = (centred**2).sum(axis=0) / count
    error = ((rounded - exact) ** 2).sum(axis=0) / count
    return np.flatnonzero(error > ROUNDING_SHARE**2 * variance).astype(np.int32)


def _checksum(parts: Sequence[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class ChunkReader:
    """An open chunk file; a layer is read without touching the bytes of the others."""

    def __init__(self, address: ChunkAddress, file: Any) -> None:
        self.address = address
        self.record = _parse_record(address, (file.metadata() or {}).get(RECORD_KEY))
        self._file = file

    def layer(self, layer: int) -> NDArray[np.float32]:
        """Return one layer, shape (n_rows, width), after checking it against its checksum.

        Raises
        ------
        Damage
            When shape, dtype or checksum are not those of the record.
        """
        n_parts = 3 if self.record.exact[layer] else 1
        parts = [self._file.get_tensor(name) for name in _tensor_names(layer)[:n_parts]]
        n_rows, _, width = self.address.shape
        if parts[0].shape != (n_rows, width) or parts[0].dtype.name != self.record.dtypes[layer]:
            raise Damage(f"layer {layer} has not the shape or the dtype of its record")
        if _checksum(parts) != self.record.checksums[layer]:
            raise Damage(f"layer {layer} does not match its checksum")
        values: NDArray[np.float32] = parts[0].astype(np.float32)
        if n_parts > 1:
            values[:, parts[1]] = parts[2]
        return values


def _parse_record(address: ChunkAddress, text: str | None) -> ChunkRecord:
    if text is None:
        raise Damage("its header has no record")
    stored = json.loads(text)
    content = stored["content"]
    if hashlib.sha256(canonical_json(content).encode()).hexdigest() != stored["sha256"]:
        raise Damage("its record does not match its checksum")
    if (content["entry"], content["chunk"]) != (address.path.parent.name, address.chunk):
        raise Damage("it belongs to another entry or chunk")
    n_rows, n_layers, _ = address.shape
    texts = content["texts"]
    if len(content["layers"]) != n_layers or (texts is not None and len(texts) != n_rows):
        raise Damage("its record is of another shape")
    return ChunkRecord(
        masked={int(window): reason for window, reason in content["masked"].items()},
        texts=None if texts is None else tuple(texts),
        dtypes=tuple(layer["dtype"] for layer in content["layers"]),
        exact=tuple(layer["exact"] for layer in content["layers"]),
        checksums=tuple(layer["sha256"] for layer in content["layers"]),
    )


@contextmanager
def open_chunk(address: ChunkAddress) -> Iterator[ChunkReader]:
    """Open a chunk file for reading.

    Raises
    ------
    StoreError
        When it is missing, may not be read, or is damaged; also for what the reader finds later.
    """
    try:
        with damage_of_library(), safe_open(address.path, framework="numpy") as file:
            yield ChunkReader(address, file)
    except Damage as damage:
        raise damaged_file(address.path, str(damage)) from damage
    except OSError as error:
        raise StoreError(
            f"{address.path} cannot be read ({error.strerror or error}); check its permissions, or run the "
            "participant level again to make it."
        ) from error


@contextmanager
def damage_of_library() -> Iterator[None]:
    """Turn what a file that is no safetensors file of ours makes the libraries raise into Damage."""
    try:
        yield
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Damage(f"it is not as it was written: {str(error).splitlines()[0] if str(error) else error!r}") from error


def find_damage(address: ChunkAddress) -> str | None:
    """Read a whole chunk file; return what is wrong with it, None where nothing is.

    Raises
    ------
    StoreError
        When it may not be read.
    """
    try:
        with open_chunk(address) as reader:
            for layer in range(address.shape[1]):
                reader.layer(layer)
    except StoreError as error:
        if isinstance(error.__cause__, Damage):
            return str(error.__cause__)
        raise
    return None


def damaged_file(path: Path, reason: str) -> StoreError:
    """Return the one sentence for a damaged file ``STORE/xx/ENTRY/name`` of the store."""
    store = path.parent.parent.parent
    return StoreError(
        f"{path} is damaged ({reason}); remove it with `bids-mllm-features verify {store} --remove` and run the "
        "participant level again, which makes it anew."
    )
