"""One model on the windows of one grid: chunks are shared with other jobs, filled and written one after the other.

Two threads take part. The decoder's draws clips and reserves the next chunk for that, so that jobs decode different
ones; the caller's runs the model, and claims a chunk when it begins with it. Between the two there is no more than
one chunk that is decoded and waits, so that what a job keeps from others is the chunk it works on: a reserved one
may be taken by a job that has nothing else to do.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bids_mllm.exceptions import BidsMllmError, StimulusError, StoreError
from bids_mllm.features.extraction import BatchRunner
from bids_mllm.features.extractor import Extracted
from bids_mllm.io.claims import Claims
from bids_mllm.io.parts import Part, load_parts, part_path, remove_parts, save_part, saved_rows
from bids_mllm.io.store import FeatureEntry, FeatureStore
from bids_mllm.records import Clip, ClipMedia, Condition, Stimulus, WindowGrid

logger = logging.getLogger("bids_mllm")

#: Seconds of work after which what is new of an unfinished chunk is saved.
PART_SECONDS = 20.0
#: Behind the name of a chunk: the reservation by a job that decodes it.
RESERVED = "-next"


@dataclass
class _Chunk:
    """A chunk that this job means to fill.

    Attributes
    ----------
    number, first, n_rows
        Its number in the entry, its first window and how many it has.
    name
        Of the claim on it and of its parts.
    holds
        Claims of this job on it: the reservation, the claim proper, or both.
    n_saved
        Windows that parts hold.
    begun
        Whether it is claimed and the arrays below are there.
    lost
        Whether another job has it.
    n_decoded
        Windows that are in parts or have come out of the decoder.
    n_seen, n_counted
        Windows that are known or pending, and those that the progress bar has counted.
    values, texts, masked
        What is known of its first windows.
    pending
        Clips, masked ones too, that wait for their batch to be full.
    saved_at
        Time at which a part was last saved, or its work began.
    """

    number: int
    first: int
    n_rows: int
    name: str
    holds: set[str]
    n_saved: int
    begun: bool = False
    lost: bool = False
    n_decoded: int = 0
    n_seen: int = 0
    n_counted: int = 0
    values: list[NDArray[np.float32]] = field(default_factory=list)
    texts: dict[int, list[str]] = field(default_factory=dict)
    masked: dict[int, str] = field(default_factory=dict)
    pending: list[ClipMedia] = field(default_factory=list)
    saved_at: float = 0.0

    @property
    def waits(self) -> bool:
        """Whether it is decoded and is not written yet, so that no further one should be decoded."""
        return self.n_decoded >= self.n_rows and not self.lost


def missing_chunks(entries: Mapping[Condition, FeatureEntry]) -> list[int]:
    """Return the chunks that any of the entries of a grid lacks."""
    return sorted({chunk for entry in entries.values() for chunk in entry.missing_chunks()})


def missing_windows(entries: Mapping[Condition, FeatureEntry]) -> int:
    """Return how many windows the chunks have that any of the entries of a grid lacks."""
    rows = [next(iter(entries.values())).rows(number) for number in missing_chunks(entries)]
    return sum(each.stop - each.start for each in rows)


def chunk_name(entries: Mapping[Condition, FeatureEntry], number: int) -> str:
    """Return the name of a chunk of a grid's entries in claims and parts."""
    return f"{next(iter(entries.values())).path.name[:40]}-{number:05d}"


def remove_leftovers(store: FeatureStore, entries: Mapping[Condition, FeatureEntry]) -> None:
    """Remove parts of chunks that are complete: their job was killed just after it had written them."""
    missing = missing_chunks(entries)
    for number in range(next(iter(entries.values())).n_chunks):
        if number not in missing:
            remove_parts(store.folder, chunk_name(entries, number))


class GridWork:
    """The windows of one grid for one model: takes chunks, collects clips, writes what is complete.

    `prepare`, then `clips` and `decoded` in the decoder's thread and `take` in the caller's, then `stop`; and anew
    until it is `done`.

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
        self._stimulus = stimulus
        self._grid = grid
        self._entries = entries
        self._digests = [entry.path.name for entry in entries.values()]
        self._some = next(iter(entries.values()))
        self._runner = runner
        self._store = store
        self._claims = claims
        self._bar = bar
        self._changed = threading.Condition()
        self._chunks: dict[int, _Chunk] = {}
        self._stopped = False
        self._stealing = False

    @property
    def done(self) -> bool:
        """Whether nothing is left to do, or the model failed."""
        return self.failure is not None or not self._missing()

    @property
    def n_missing(self) -> int:
        """Windows of the chunks that are missing."""
        return missing_windows(self._entries)

    def _missing(self) -> list[int]:
        return missing_chunks(self._entries)

    def prepare(self, *, steal: bool = False) -> bool:
        """Take a first chunk for the next pass over the film; return False where other jobs have all of them.

        Parameters
        ----------
        steal
            Take one that another job has reserved and has not begun with, and claim it at once.
        """
        self._stopped, self._stealing = False, steal
        return any(self._draw(number) for number in self._missing())

    def clips(self) -> Iterator[Clip]:
        """Give the clips of one chunk after the other; the next is reserved when one less waits for the model."""
        after = -1
        while True:
            with self._changed:
                chunk = next((found for number, found in sorted(self._chunks.items()) if number > after), None)
            if chunk is None:
                return
            after = chunk.number
            yield from self._clips_of(chunk)
            if self._stealing or not self._may_go_on():
                return
            next((number for number in self._missing() if number > after and self._draw(number)), None)

    def _clips_of(self, chunk: _Chunk) -> Iterator[Clip]:
        starts, ends = self._grid.starts, self._grid.ends
        for row in range(chunk.first + chunk.n_saved, chunk.first + chunk.n_rows):
            if chunk.lost or self._over:
                return
            yield Clip(self._stimulus.stim_file, row, float(starts[row]), float(ends[row]))

    def _may_go_on(self) -> bool:
        """Wait until no decoded chunk waits for the model; return False where the pass has ended meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or not any(chunk.waits for chunk in self._chunks.values()))
            return not self._over

    @property
    def _over(self) -> bool:
        return self._stopped or self.failure is not None

    def _draw(self, number: int) -> bool:
        """Reserve a chunk, or claim it to steal it; return False where another job has it or has finished it."""
        name = chunk_name(self._entries, number)
        if not self._stealing and self._claims.is_taken(name):
            return False
        taken = name if self._stealing else name + RESERVED
        if not self._claims.take(taken, covers=self._digests):
            return False
        rows = self._some.rows(number)
        n_rows = rows.stop - rows.start
        n_saved = saved_rows(self._store.folder, name, self._digests)
        chunk = _Chunk(number, rows.start, n_rows, name, {taken}, n_saved if n_saved < n_rows else 0)
        chunk.n_decoded = chunk.n_saved
        wanted = number in self._missing()
        with self._changed:
            if self._over or not wanted:
                self._release(chunk)
                return False
            self._chunks[number] = chunk
        return True

    def decoded(self, media: ClipMedia) -> None:
        """Count a clip that has come out of the decoder and is about to be handed over."""
        with self._changed:
            chunk = self._chunk_of(media)
            if chunk is not None:
                chunk.n_decoded += 1

    def _chunk_of(self, media: ClipMedia) -> _Chunk | None:
        return self._chunks.get(media.clip.index // self._some.rows(0).stop)

    def take(self, media: ClipMedia) -> None:
        """Take the next clip; run a batch when it is full, and write the chunk when it is complete.

        Raises
        ------
        StoreError
            When the store cannot be written. Any other failure of the model is kept in `failure`.
        """
        chunk = self._chunk_of(media)
        if chunk is None or self.failure is not None or not self._has(chunk):
            return
        chunk.n_seen += 1
        chunk.pending.append(media)
        if media.fault is not None:
            logger.warning("Window %d of %s is left out: %s", media.clip.index, self._stimulus.stim_file, media.fault)
            chunk.masked[media.clip.index] = media.fault
        try:
            if len(chunk.pending) >= self._runner.batch_size or chunk.n_seen == chunk.n_rows:
                self._run(chunk)
        except StoreError:
            raise
        except BidsMllmError as error:
            self._give_up(error)

    def stop(self) -> None:
        """End the pass: what is reserved or claimed and not written is given free."""
        with self._changed:
            self._stopped = True
            self._drop_all()

    def _has(self, chunk: _Chunk) -> bool:
        """Begin with a chunk unless that was done before; return False where it is lost to another job."""
        if chunk.begun or chunk.lost:
            return chunk.begun
        if chunk.name in chunk.holds or self._claims.take(chunk.name, covers=self._digests):
            chunk.holds.add(chunk.name)
            if chunk.number in self._missing() and self._resume(chunk):
                chunk.begun, chunk.saved_at = True, time.monotonic()
                return True
        with self._changed:
            chunk.lost = True
            self._release(chunk)
            self._changed.notify_all()
        return False

    def _resume(self, chunk: _Chunk) -> bool:
        """Make room for the features of a chunk and take over what an earlier job saved; False where it is gone."""
        shape = (chunk.n_rows, self._some.n_layers, self._some.width)
        chunk.values = [np.full(shape, np.nan, dtype=np.float32) for _ in self._entries]
        for part in load_parts(self._store.folder, chunk.name, self._digests):
            if chunk.n_seen == chunk.n_saved:
                break
            rows = slice(part.first, part.first + len(part.values[0]))
            for values, done in zip(chunk.values, part.values, strict=True):
                values[rows] = done
            for number, said in part.texts.items():
                chunk.texts.setdefault(number, [""] * chunk.n_rows)[rows] = said
            chunk.masked |= part.masked
            chunk.n_seen = rows.stop
        return chunk.n_seen == chunk.n_saved

    def _run(self, chunk: _Chunk) -> None:
        """Run the clips that wait, keep what they gave, and write the chunk or a part of it."""
        whole = [media for media in chunk.pending if media.fault is None]
        if whole:
            # In the place of a masked window runs another one, for nothing: where a clip stands in its batch, and how
            # many there are, changes last bits, and damage must not change the features of other windows.
            batch = [media if media.fault is None else whole[0] for media in chunk.pending]
            self._keep(chunk, self._runner.run(batch))
        chunk.pending = []
        self._bar.update(chunk.n_seen - chunk.n_counted)
        chunk.n_counted = chunk.n_seen
        if chunk.n_seen == chunk.n_rows:
            self._write(chunk)
        elif time.monotonic() - chunk.saved_at > PART_SECONDS:
            self._save(chunk)

    def _keep(self, chunk: _Chunk, extracted: Extracted) -> None:
        """Keep what the model gave for the clips that wait and are not masked."""
        kept = [k for k, media in enumerate(chunk.pending) if media.fault is None]
        rows = [chunk.pending[k].clip.index - chunk.first for k in kept]
        for number, condition in enumerate(self._entries):
            chunk.values[number][rows] = extracted.features[condition][kept]
            if condition in extracted.texts:
                said = chunk.texts.setdefault(number, [""] * chunk.n_rows)
                for row, k in zip(rows, kept, strict=True):
                    said[row] = extracted.texts[condition][k]

    def _save(self, chunk: _Chunk) -> None:
        """Save what is new since the last part."""
        new = slice(chunk.n_saved, chunk.n_seen)
        part = Part(
            tuple(values[new] for values in chunk.values),
            {number: said[new] for number, said in chunk.texts.items()},
            {window: why for window, why in chunk.masked.items() if window >= chunk.first + chunk.n_saved},
            chunk.n_saved,
        )
        save_part(part_path(self._store.folder, chunk.name, chunk.n_saved), part, self._digests)
        chunk.n_saved, chunk.saved_at = chunk.n_seen, time.monotonic()

    def _write(self, chunk: _Chunk) -> None:
        """Write a complete chunk to every entry that lacks it, and give it free."""
        for number, (condition, entry) in enumerate(self._entries.items()):
            if chunk.number in entry.missing_chunks():
                texts = chunk.texts.get(number, [""] * chunk.n_rows) if condition.pooling == "generated" else None
                entry.write(chunk.number, chunk.values[number], masked=chunk.masked, texts=texts)
        remove_parts(self._store.folder, chunk.name)
        with self._changed:
            del self._chunks[chunk.number]
            self._release(chunk)
            self._changed.notify_all()

    def _release(self, chunk: _Chunk) -> None:
        for name in chunk.holds:
            self._claims.release(name)
        chunk.holds.clear()

    def _drop_all(self) -> None:
        for chunk in self._chunks.values():
            self._release(chunk)
        self._chunks.clear()
        self._changed.notify_all()

    def _give_up(self, error: BidsMllmError) -> None:
        """Remember why the model failed and give its chunks free for others."""
        if isinstance(error, StimulusError):
            error = StimulusError(f"{self._runner.model}: {error}")
        with self._changed:
            self.failure = error
            self._drop_all()
