"""Upkeep of a feature store: what is in it, what is damaged, and what nobody needs any more."""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from bids_mllm.exceptions import StoreError
from bids_mllm.io.chunks import Damage, damage_of_library, find_damage, open_chunk
from bids_mllm.io.claims import CLAIMS_FOLDER, Claim, ClaimsFolder
from bids_mllm.io.owners import orphans, write_error
from bids_mllm.io.parts import PARTS_FOLDER, claim_of_part
from bids_mllm.io.store import (
    DAY,
    DESCRIPTION_FILE,
    FORMAT,
    USED_FILE,
    WINDOWS_PER_CHUNK,
    FeatureEntry,
    entry_digest,
)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHORT = 12


class OtherFormat(Damage):
    """An entry that another version of the store made."""


@dataclass(frozen=True)
class EntrySummary:
    """One entry of a store in figures.

    Attributes
    ----------
    digest
        Name of the entry.
    model
        Family of the model, with the start of its checkpoint's digest and ``+random`` where that applies.
    media
        Start of the stimulus's SHA-256.
    pooling, instruction
        How the features were read out; '' without an instruction.
    n_windows, n_layers, width
    n_done, n_chunks
        Chunks that are there and in all.
    n_masked
        Windows without features.
    n_float32
        Layers that are in float32 in at least one chunk.
    n_bytes
        Size on disk.
    """

    digest: str
    model: str
    media: str
    pooling: str
    instruction: str
    n_windows: int
    n_layers: int
    width: int
    n_done: int
    n_chunks: int
    n_masked: int
    n_float32: int
    n_bytes: int


@dataclass(frozen=True)
class Finding:
    """A file or folder of a store, its size in bytes, and what is the matter with it."""

    path: Path
    n_bytes: int
    reason: str


def entry_folders(store: Path) -> list[Path]:
    """Return the folders of the entries of a store, with and without a description.

    Raises
    ------
    StoreError
        When the store is no folder or cannot be read.
    """
    return [path for path in _children(store) if _DIGEST.fullmatch(path.name) and path.is_dir()]


def _children(store: Path) -> list[Path]:
    """Everything in the folders ``STORE/ab`` whose name begins with their own two characters."""
    if not store.is_dir():
        raise StoreError(f"{store} is no folder; give the folder of a feature store.")
    try:
        parents = [path for path in sorted(store.iterdir()) if re.fullmatch(r"[0-9a-f]{2}", path.name)]
        return [child for parent in parents if parent.is_dir() for child in sorted(parent.iterdir())]
    except OSError as error:
        raise StoreError(f"{store} cannot be read ({error.strerror}); check its permissions.") from error


def read_entry(folder: Path) -> tuple[FeatureEntry, dict[str, Any]]:
    """Return an entry and its description.

    Raises
    ------
    Damage
        When its description is missing or not the one that the folder is named by; OtherFormat when it is of another
        format.
    """
    try:
        text = (folder / DESCRIPTION_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise Damage(f"it cannot be read: {error.strerror}") from error
    with damage_of_library():
        content = json.loads(text)
        description = dict(content["description"])
        shape = [int(content[name]) for name in ("n_windows", "n_layers", "width")]
        made_by = (content["format"], content["windows_per_chunk"])
    if made_by != (FORMAT, WINDOWS_PER_CHUNK):
        raise OtherFormat(f"it is of format {made_by[0]}; this version reads {FORMAT}")
    if entry_digest(description) != folder.name:
        raise Damage("its description is not the one that the folder is named by")
    return FeatureEntry(folder, shape[0], shape[1], shape[2]), description


def summarise(folder: Path) -> EntrySummary:
    """Return one entry in figures, from its description and the headers of its files.

    Raises
    ------
    Damage
        When its description cannot be used.
    StoreError
        When the header of a chunk is damaged.
    """
    entry, description = read_entry(folder)
    missing = set(entry.missing_chunks())
    n_masked, float32 = 0, set()
    for chunk in range(entry.n_chunks):
        if chunk not in missing:
            with open_chunk(entry.address(chunk)) as reader:
                n_masked += len(reader.record.masked)
                float32 |= {layer for layer, dtype in enumerate(reader.record.dtypes) if dtype == "float32"}
    return EntrySummary(
        digest=folder.name,
        model=_model_words(description.get("model", {})),
        media=str(description.get("media", {}).get("sha256", ""))[:_SHORT],
        pooling=str(description.get("pooling", "")),
        instruction=str(description.get("instruction") or ""),
        n_windows=entry.n_windows,
        n_layers=entry.n_layers,
        width=entry.width,
        n_done=entry.n_chunks - len(missing),
        n_chunks=entry.n_chunks,
        n_masked=n_masked,
        n_float32=len(float32),
        n_bytes=size_of(folder),
    )


def _model_words(model: dict[str, Any]) -> str:
    checkpoint = model.get("checkpoint", "")
    words = f"{model.get('family', '')} {checkpoint[:_SHORT] if isinstance(checkpoint, str) else ''}".strip()
    return f"{words}+random" if model.get("weights") == "random" else words


def find_damaged_files(store: Path) -> Iterator[Finding]:
    """Read every file of a store; give those that are damaged.

    Raises
    ------
    StoreError
        When the store or one of its files may not be read.
    """
    for folder in entry_folders(store):
        file = folder / DESCRIPTION_FILE
        try:
            entry, _ = read_entry(folder)
        except Damage as damage:
            if file.exists() and not isinstance(damage, OtherFormat):
                yield Finding(file, size_of(file), str(damage))
            continue
        missing = set(entry.missing_chunks())
        expected = [entry.address(chunk) for chunk in range(entry.n_chunks) if chunk not in missing]
        for address in expected:
            reason = find_damage(address)
            if reason is not None:
                yield Finding(address.path, size_of(address.path), reason)
        for path in sorted(set(folder.glob("chunk-*.safetensors")) - {address.path for address in expected}):
            yield Finding(path, size_of(path), "the entry has no such chunk")


def find_garbage(store: Path, *, keep_days: float | None = None, incomplete: bool = False) -> Iterator[Finding]:
    """Give what may be removed from a store; nothing that a living job has claimed.

    Parameters
    ----------
    store
    keep_days
        Entries that were not used for as many days count as garbage.
    incomplete
        Entries that lack a chunk count as garbage.
    """
    children = _children(store)
    claims = ClaimsFolder(store)
    try:
        for path in (claims.file(name) for name in claims.dead()):
            yield Finding(path, size_of(path), "claim of a job that ended")
        for folder in (claims.path, store / PARTS_FOLDER):
            yield from _orphans(folder)
        for child in children:
            if re.fullmatch(r"[0-9a-f]{64}\.zarr", child.name):
                yield Finding(child, size_of(child), "an entry of format 1, which this version does not read")
            elif _DIGEST.fullmatch(child.name) and child.is_dir():
                reason = _why_garbage(child, keep_days, incomplete)
                # The claims are read for each entry anew, just before it may go: jobs come and end meanwhile.
                if reason is not None and not _is_claimed(child.name, claims.live()):
                    yield Finding(child, size_of(child), reason)
                else:
                    yield from _orphans(child)
        for path in sorted((store / PARTS_FOLDER).glob("*.safetensors")):
            reason = _why_old_part(path, keep_days, incomplete)
            if reason is not None and claims.state(claims.file(claim_of_part(path)))[0] != "live":
                yield Finding(path, size_of(path), reason)
    except OSError as error:
        raise write_error(claims.path, error) from error
    finally:
        claims.close()


def _orphans(folder: Path) -> Iterator[Finding]:
    for path in orphans(folder):
        yield Finding(path, size_of(path), "left by a process that died")


def _is_claimed(digest: str, live: Sequence[Claim | None]) -> bool:
    """Whether a living claim is on this entry; one that does not say on which counts for all."""
    for claim in live:
        named = "" if claim is None else claim.name[:64]
        told = claim is not None and (claim.covers or _DIGEST.fullmatch(named))
        if not told or claim is None or digest in claim.covers or named == digest:
            return True
    return False


def _why_garbage(folder: Path, keep_days: float | None, incomplete: bool) -> str | None:
    """Return why an entry that nobody has claimed may go, None where it must stay."""
    if not (folder / DESCRIPTION_FILE).exists():
        return "an entry without a description" if _days_unused(folder) > 1 else None
    try:
        entry, _ = read_entry(folder)
    except Damage:
        return None  # for `verify` to tell, and for a newer version to read
    unused = _days_unused(folder)
    if keep_days is not None and unused > keep_days:
        return f"not used for {int(unused)} days"
    n_missing = len(entry.missing_chunks()) if incomplete else 0
    return f"incomplete: {n_missing} of {entry.n_chunks} chunks are missing" if n_missing else None


def _why_old_part(path: Path, keep_days: float | None, incomplete: bool) -> str | None:
    """Return why a part of a chunk that nobody has claimed may go, None where a job may go on with it."""
    try:
        with damage_of_library(), safe_open(path, framework="numpy") as file:
            digests = [str(digest) for digest in json.loads(file.metadata()["record"])["entries"]]
            chunk = int(claim_of_part(path).rpartition("-")[2])
    except Damage:
        return "a part of a chunk that cannot be read"
    except FileNotFoundError:
        return None  # the chunk was finished meanwhile
    if not any(_lacks(path.parent.parent / digest[:2] / digest, chunk) for digest in digests):
        return "a part of a chunk that is complete or whose entries are gone"
    unused = (time.time() - path.stat().st_mtime) / DAY
    if keep_days is not None and unused > keep_days:
        return f"a part of a chunk, not written to for {int(unused)} days"
    return "a part of an incomplete chunk" if incomplete else None


def _lacks(folder: Path, chunk: int) -> bool:
    """Whether an entry is there and lacks a chunk."""
    try:
        entry, _ = read_entry(folder)
    except Damage:
        return folder.is_dir()
    return chunk in entry.missing_chunks()


def _days_unused(folder: Path) -> float:
    """Days since the entry was made, written or asked for, whichever is latest."""
    times = []
    for path in (folder, folder / USED_FILE):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return (time.time() - max(times, default=time.time())) / DAY


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 for what is not there."""
    if not path.is_dir():
        try:
            return path.lstat().st_size
        except OSError:
            return 0
    return sum(size_of(Path(root) / name) for root, _, names in os.walk(path) for name in names)


def remove(path: Path) -> None:
    """Remove a file or a folder of a store; a claim only while it is dead.

    Raises
    ------
    StoreError
        When that is not allowed.
    """
    try:
        if path.parent.name == CLAIMS_FOLDER and path.suffix == ".json":
            claims = ClaimsFolder(path.parent.parent)
            claims.remove_dead(path.stem)
            claims.close()
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return  # another process was faster
    except OSError as error:
        raise write_error(path, error) from error
