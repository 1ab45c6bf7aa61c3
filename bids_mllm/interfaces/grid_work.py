"""One model on the windows of one grid: chunks are claimed, filled and written one after the other."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bids_mllm.exceptions import BidsMllmError, StimulusError, StoreError
from bids_mllm.features.extraction import BatchRunner
from bids_mllm.features.extractor import Extracted
from bids_mllm.io.claims import Claims
from bids_mllm.io.parts import Part, load_part, part_path, remove_part, save_part
from bids_mllm.io.store import WINDOWS_PER_CHUNK, FeatureEntry, FeatureStore
from bids_mllm.records import Clip, ClipMedia, Condition, Stimulus, WindowGrid

logger = logging.getLogger("bids_mllm")

#: Seconds of work after which an unfinished chunk is saved.
PART_SECONDS = 20.0


@dataclass
class _Chunk:
    """A chunk that is being filled.

    Attributes
    ----------
    number, first, n_rows
        Its number in the entry, its first window and how many it has.
    name
        Of the claim on it and of its part.
    values, texts, masked
        What is known of its first windows.
    pending
        Clips that wait for their batch to be full.
    n_seen
        Windows that were decoded.
    n_counted
        Windows that the progress bar has counted.
    saved
        Time at which its part was last saved, or its work began.
    """

    number: int
    first: int
    n_rows: int
    name: str
    values: list[NDArray[np.float32]] = field(default_factory=list)
    texts: dict[int, list[str]] = field(default_factory=dict)
    masked: dict[int, str] = field(default_factory=dict)
    pending: list[ClipMedia] = field(default_factory=list)
    n_seen: int = 0
    n_counted: int = 0
    saved: float = field(default_factory=time.monotonic)


def missing_chunks(entries: Mapping[Condition, FeatureEntry]) -> list[int]:
    """Return the chunks that any of the entries of a grid lacks."""
    return sorted({chunk for entry in entries.values() for chunk in entry.missing_chunks()})


def chunk_name(entries: Mapping[Condition, FeatureEntry], number: int) -> str:
    """Return the name of a chunk of a grid's entries in claims and parts."""
    return f"{next(iter(entries.values())).path.name[:40]}-{number:05d}"


def remove_leftovers(store: FeatureStore, entries: Mapping[Condition, FeatureEntry]) -> None:
    """Remove parts of chunks that are complete: their job was killed just after it had written them."""
    missing = missing_chunks(entries)
    for number in range(next(iter(entries.values())).n_chunks):
        if number not in missing:
            remove_part(part_path(store.folder, chunk_name(entries, number)))


class GridWork:
    """The windows of one grid for one model: claims chunks, collects clips, writes what is complete.

    Parameters
    ----------
    stimulus, grid
        The film and its windows.
    entries
        Of the store, one a condition.
    runner
        The loaded model.
    store, claims
        Where chunks are claimed and parts of them kept.
    bar
        Progress in clips.
    """

    def __init__(
        self,
        stimulus: Stimulus,
        grid: WindowGrid,
        entries: Mapping[Condition, FeatureEntry],
        runner: BatchRunner,
        store: FeatureStore,
        claims: Claims,
        bar: "tqdm[Any]",
    ) -> None:
        self.failure: BidsMllmError | None = None
        self.progressed = False
        self._stimulus = stimulus
        self._grid = grid
        self._entries = entries
        self._digests = [entry.path.name for entry in entries.values()]
        some = next(iter(entries.values()))
        self._shape = (some.n_layers, some.width)
        self._runner = runner
        self._store = store
        self._claims = claims
        self._bar = bar
        self._chunks: dict[int, _Chunk] = {}

    @property
    def done(self) -> bool:
        """Whether nothing is left to do, or the model failed."""
        return self.failure is not None or not self._missing()

    def _missing(self) -> list[int]:
        return missing_chunks(self._entries)

    def clips(self) -> Iterator[Clip]:
        """Claim one missing chunk after the other and give its clips."""
        self.progressed = False
        starts, ends = self._grid.starts, self._grid.ends
        for number in self._missing():
            if self.failure is not None:
                return
            chunk = self._claim(number)
            if chunk is None:
                continue
            self.progressed = True
            for row in range(chunk.first + chunk.n_seen, chunk.first + chunk.n_rows):
                yield Clip(self._stimulus.stim_file, row, float(starts[row]), float(ends[row]))

    def _claim(self, number: int) -> _Chunk | None:
        """Claim a chunk and return what is known of it; None where another job has it or has finished it."""
        name = chunk_name(self._entries, number)
        if not self._claims.take(name, covers=self._digests):
            return None
        if number not in self._missing():
            self._claims.release(name)
            return None
        rows = next(iter(self._entries.values())).rows(number)
        chunk = _Chunk(number, rows.start, rows.stop - rows.start, name)
        part = load_part(part_path(self._store.folder, name), self._digests)
        if part is not None and len(part.values[0]) < chunk.n_rows:
            self._resume(chunk, part)
        self._chunks[number] = chunk
        return chunk

    def _resume(self, chunk: _Chunk, part: Part) -> None:
        """Take over what an earlier job saved of a chunk."""
        self._begin(chunk)
        chunk.n_seen = len(part.values[0])
        for values, done in zip(chunk.values, part.values, strict=True):
            values[: chunk.n_seen] = done
        chunk.texts = {number: list(texts) for number, texts in part.texts.items()}
        chunk.masked = dict(part.masked)
        self._count(chunk)

    def _begin(self, chunk: _Chunk) -> None:
        """Make room for the features of a chunk, which is not needed while it only waits for the decoder."""
        if not chunk.values:
            shape = (chunk.n_rows, *self._shape)
            chunk.values = [np.full(shape, np.nan, dtype=np.float32) for _ in self._entries]

    def take(self, media: ClipMedia) -> None:
        """Take the next clip; run a batch when it is full, and write the chunk when it is complete."""
        if self.failure is not None:
            return
        chunk = self._chunks[media.clip.index // WINDOWS_PER_CHUNK]
        self._begin(chunk)
        chunk.n_seen += 1
        if media.fault is None:
            chunk.pending.append(media)
        else:
            logger.warning("Window %d of %s is left out: %s", media.clip.index, self._stimulus.stim_file, media.fault)
            chunk.masked[media.clip.index] = media.fault
        try:
            if len(chunk.pending) >= self._runner.batch_size or chunk.n_seen == chunk.n_rows:
                self._run(chunk)
            if chunk.n_seen == chunk.n_rows:
                self._write(chunk)
        except StoreError:
            raise
        except BidsMllmError as error:
            self._give_up(error)

    def _run(self, chunk: _Chunk) -> None:
        """Run the clips that wait, and keep what they gave."""
        if chunk.pending:
            self._keep(chunk, self._runner.run(chunk.pending), [media.clip.index for media in chunk.pending])
            chunk.pending = []
        self._count(chunk)
        if chunk.n_seen < chunk.n_rows and time.monotonic() - chunk.saved > PART_SECONDS:
            self._save(chunk)

    def _count(self, chunk: _Chunk) -> None:
        self._bar.update(chunk.n_seen - chunk.n_counted)
        chunk.n_counted = chunk.n_seen

    def _keep(self, chunk: _Chunk, extracted: Extracted, windows: Sequence[int]) -> None:
        rows = np.array(windows) - chunk.first
        for number, condition in enumerate(self._entries):
            chunk.values[number][rows] = extracted.features[condition]
            if condition in extracted.texts:
                said = chunk.texts.setdefault(number, [])
                said += [""] * (chunk.n_seen - len(said))
                for row, text in zip(rows, extracted.texts[condition], strict=True):
                    said[row] = text

    def _save(self, chunk: _Chunk) -> None:
        part = Part(tuple(values[: chunk.n_seen] for values in chunk.values), chunk.texts, chunk.masked)
        save_part(part_path(self._store.folder, chunk.name), part, self._digests)
        chunk.saved = time.monotonic()

    def _write(self, chunk: _Chunk) -> None:
        """Write a complete chunk to every entry that lacks it, and give it free."""
        for number, (condition, entry) in enumerate(self._entries.items()):
            if chunk.number in entry.missing_chunks():
                texts = None
                if condition.pooling == "generated":
                    said = chunk.texts.get(number, [])
                    texts = [*said, *[""] * (chunk.n_rows - len(said))]
                entry.write(chunk.number, chunk.values[number], masked=chunk.masked, texts=texts)
        remove_part(part_path(self._store.folder, chunk.name))
        self._claims.release(chunk.name)
        del self._chunks[chunk.number]

    def _give_up(self, error: BidsMllmError) -> None:
        """Remember why the model failed and give its chunks free for others."""
        if isinstance(error, StimulusError):
            error = StimulusError(f"{self._runner.model}: {error}")
        self.failure = error
        # The decoder's thread may claim a chunk meanwhile; that claim ends with the job's others.
        for chunk in list(self._chunks.values()):
            self._claims.release(chunk.name)
        self._chunks.clear()
