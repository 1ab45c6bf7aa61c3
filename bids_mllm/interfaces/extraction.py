"""Fill the feature store: one pass over a film serves all its windows and all models that fit into memory.

Several jobs may fill one store. They divide the chunks of windows between them by claims, each of which a job takes
just before its decoder reaches the chunk; at the end a job waits for chunks that others still work on.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from tqdm import tqdm

from bids_mllm.exceptions import BidsMllmError
from bids_mllm.features.extraction import BatchRunner, choose_batch_size
from bids_mllm.features.extractor import ExtractionPlan, Extractor, Family, ReadOut
from bids_mllm.interfaces.grid_work import GridWork, missing_chunks, remove_leftovers
from bids_mllm.io.claims import Claims
from bids_mllm.io.clips import decoder_identity
from bids_mllm.io.films import read_film
from bids_mllm.io.owners import remove_orphans
from bids_mllm.io.parts import PARTS_FOLDER
from bids_mllm.io.read_ahead import read_ahead
from bids_mllm.io.store import FeatureEntry, FeatureStore, entry_description
from bids_mllm.records import ClipJob, ClipMedia, Condition, ModelSpec, Stimulus, WindowGrid

#: Decoded media that wait for the models.
READ_AHEAD_BYTES = 128 * 2**20
#: Seconds between two looks at chunks that other jobs work on.
POLL_SECONDS = 0.2
#: Share of a device's free memory that the weights of models which run together may take.
WEIGHTS_SHARE = 0.6


@dataclass(frozen=True)
class ModelTask:
    """One model and the windows of one stimulus that it is asked for."""

    spec: ModelSpec
    readout: ReadOut
    family: Family
    plan: ExtractionPlan
    grids: tuple[tuple[WindowGrid, Mapping[Condition, FeatureEntry]], ...]

    @property
    def entries(self) -> list[FeatureEntry]:
        """All entries that the model fills."""
        return [entry for _, entries in self.grids for entry in entries.values()]

    @property
    def complete(self) -> bool:
        """Whether the store has every chunk."""
        return not any(entry.missing_chunks() for entry in self.entries)


@dataclass(frozen=True)
class Machine:
    """Where models run: the device, and functions that tell its free memory and give cached memory back."""

    device: str
    free_bytes: Callable[[], float] | None = None


def make_task(
    stimulus: Stimulus,
    spec: ModelSpec,
    readout: ReadOut,
    family: Family,
    grids: Sequence[WindowGrid],
    store: FeatureStore,
) -> ModelTask:
    """Plan one model's part and make its entries in the store; no weight is loaded."""
    plan = family.plan(spec, readout)
    texts = {instruction.key: instruction.text for instruction in readout.instructions}
    media = {"sha256": stimulus.sha256, "kind": spec.media, "decoder": decoder_identity()}
    found = []
    for grid in grids:
        entries = {
            condition: store.entry(
                entry_description(
                    media=media,
                    grid=grid,
                    identity=plan.identity,
                    condition=condition,
                    instruction_text=texts.get(condition.instruction or ""),
                ),
                n_windows=grid.n_windows,
                n_layers=plan.n_layers,
                width=plan.width,
            )
            for condition in plan.conditions
        }
        found.append((grid, entries))
    return ModelTask(spec, readout, family, plan, tuple(found))


def extract_film(stimulus: Stimulus, tasks: Sequence[ModelTask], store: FeatureStore, machine: Machine) -> None:
    """Fill what the store lacks of one stimulus for all models.

    Models run together as far as their weights fit into the device's memory; each such group is one pass over
    the film. A model that fails does not keep the others from being finished.

    Raises
    ------
    BidsMllmError
        What the first model that failed raised, when all others are done.
    """
    failures: list[BidsMllmError] = []
    _tidy(tasks, store)
    waiting = [task for task in tasks if not task.complete]
    if not waiting:
        return
    with Claims(store.folder) as claims:
        while waiting:
            group = _fitting(waiting, machine)
            waiting = waiting[len(group) :]
            failures += _run_group(stimulus, group, store, claims, machine)
    if failures:
        raise failures[0]


def _tidy(tasks: Sequence[ModelTask], store: FeatureStore) -> None:
    """Remove what killed jobs left behind of the parts of these tasks."""
    if (store.folder / PARTS_FOLDER).is_dir():
        remove_orphans(store.folder / PARTS_FOLDER)
        for task in tasks:
            for _, entries in task.grids:
                remove_leftovers(store, entries)


def _fitting(tasks: Sequence[ModelTask], machine: Machine) -> list[ModelTask]:
    """Return the first tasks whose weights fit into the free memory together, at least one."""
    room = float("inf") if machine.free_bytes is None else WEIGHTS_SHARE * machine.free_bytes()
    chosen: list[ModelTask] = []
    for task in tasks:
        room -= 0 if task.plan.cost is None else task.plan.cost.weight_bytes
        if chosen and room < 0:
            break
        chosen.append(task)
    return chosen


def _run_group(
    stimulus: Stimulus, tasks: Sequence[ModelTask], store: FeatureStore, claims: Claims, machine: Machine
) -> list[BidsMllmError]:
    """Load the models of a group and run them over the film until no chunk is missing; return the failures."""
    failures: list[BidsMllmError] = []
    loaded: list[tuple[ModelTask, Extractor]] = []
    try:
        for task in tasks:
            try:
                loaded.append((task, task.family.load(task.spec, task.readout, machine.device)))
            except BidsMllmError as error:
                failures.append(error)
        n_missing = sum(_n_missing(entries) for task, _ in loaded for _, entries in task.grids)
        label = " ".join(task.spec.key for task, _ in loaded)
        with tqdm(total=n_missing, desc=f"{label} {stimulus.stim_file}", unit="clip", mininterval=2) as bar:
            works = [
                (task, GridWork(stimulus, grid, entries, runner, store, claims, bar))
                for task, extractor in loaded
                for runner in [_runner(stimulus, task, extractor, machine)]
                for grid, entries in task.grids
            ]
            _fill(stimulus, works)
        failures += [work.failure for _, work in works if work.failure is not None]
    finally:
        for _, extractor in loaded:
            extractor.close()
    return failures


def _runner(stimulus: Stimulus, task: ModelTask, extractor: Extractor, machine: Machine) -> BatchRunner:
    free = None if machine.free_bytes is None else machine.free_bytes()
    size = choose_batch_size(task.plan, free_bytes=free, media_bytes=_media_bytes(stimulus, task.plan))
    return BatchRunner(extractor, task.plan, model=task.spec.key, batch_size=size)


def _media_bytes(stimulus: Stimulus, plan: ExtractionPlan) -> int:
    """Decoded media of one clip."""
    request = plan.request
    height, width = request.frame_size or (stimulus.height, stimulus.width)
    return 3 * height * width * request.n_frames


def _n_missing(entries: Mapping[Condition, FeatureEntry]) -> int:
    """Windows of the chunks that any entry lacks."""
    some = next(iter(entries.values()))
    return sum(some.rows(chunk).stop - some.rows(chunk).start for chunk in missing_chunks(entries))


def _fill(stimulus: Stimulus, works: Sequence[tuple[ModelTask, GridWork]]) -> None:
    """Pass over the film until all works are done; chunks that others work on are waited for."""
    while unfinished := [(task, work) for task, work in works if not work.done]:
        jobs = [ClipJob(work.clips(), task.plan.request) for task, work in unfinished]
        with closing(read_ahead(read_film(stimulus, jobs), max_bytes=READ_AHEAD_BYTES, size_of=_size)) as stream:
            for number, media in stream:
                unfinished[number][1].take(media)
        if not any(work.progressed for _, work in unfinished):
            time.sleep(POLL_SECONDS)


def _size(item: tuple[int, ClipMedia]) -> int:
    media = item[1]
    return sum(0 if values is None else values.nbytes for values in (media.frames, media.audio))
