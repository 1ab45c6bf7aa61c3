"""Fill the feature store: one pass over a film serves all its windows and all models that fit into memory.

Several jobs may fill one store. They divide the chunks of windows between them; at the end a job waits for the chunk
that each of the others still works on.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from bids_mllm.exceptions import BidsMllmError, StimulusError
from bids_mllm.features.extraction import BatchRunner, choose_batch_size
from bids_mllm.features.extractor import ExtractionPlan, Extractor, Family, ReadOut
from bids_mllm.interfaces.device import forget_locals, on_device
from bids_mllm.interfaces.grid_work import GridWork, missing_windows, remove_leftovers
from bids_mllm.io.claims import Claims
from bids_mllm.io.clips import decoder_identity
from bids_mllm.io.films import read_film
from bids_mllm.io.owners import remove_orphans
from bids_mllm.io.parts import PARTS_FOLDER
from bids_mllm.io.read_ahead import read_ahead
from bids_mllm.io.store import FeatureEntry, FeatureStore, entry_description
from bids_mllm.records import ClipJob, ClipMedia, Condition, ModelSpec, Stimulus, WindowGrid

logger = logging.getLogger("bids_mllm")

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
    """Plan one model's part and find or make its entries in the store; no weight is loaded."""
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
    StoreError
        At once, when the store cannot be written.
    """
    _tidy(tasks, store)
    failures: list[BidsMllmError] = [error for task in tasks for error in _lacking_media(stimulus, task)]
    waiting = [task for task in tasks if not task.complete and not _lacking_media(stimulus, task)]
    if waiting:
        with Claims(store.folder) as claims:
            while waiting:
                with on_device(machine.device):
                    group = _fitting(waiting, machine)
                    later, failed = _run_group(stimulus, group, store, claims, machine)
                    for error in failed:
                        forget_locals(error)
                rest = waiting[len(group) :]
                failures += failed
                # Another job may have finished some meanwhile.
                waiting = [task for task in (*later, *rest) if not task.complete]
        _tidy(tasks, store)
    for error in failures[1:]:
        logger.error("%s", error)
    if failures:
        raise failures[0]


def _lacking_media(stimulus: Stimulus, task: ModelTask) -> list[StimulusError]:
    """Say where the stimulus has not the streams that the model reads."""
    media = task.plan.request.media
    if task.complete or stimulus.duration(media) is not None:
        return []
    what = {"video": "pictures", "audio": "sound", "both": "pictures and sound"}[media]
    return [
        StimulusError(
            f"The model {task.spec.key} needs {what}, which {stimulus.stim_file} does not have; leave the model out or "
            "give a file that has them."
        )
    ]


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
) -> tuple[list[ModelTask], list[BidsMllmError]]:
    """Load the models of a group and run them over the film until no chunk is missing.

    Returns
    -------
    list of ModelTask
        Those whose weights did not fit beside those of the others, to be run later.
    list of BidsMllmError
        Why models failed.
    """
    loaded: list[tuple[ModelTask, Extractor]] = []
    try:
        later, failures = _load(tasks, machine, loaded)
        if not loaded:
            return later, failures
        label = " ".join(task.spec.key for task, _ in loaded)
        n_missing = sum(missing_windows(entries) for task, _ in loaded for _, entries in task.grids)
        with tqdm(total=n_missing, desc=f"{label} {stimulus.stim_file}", unit="clip", mininterval=2) as bar:
            works = [
                (task, GridWork(stimulus, grid, entries, runner, store, claims, bar))
                for task, extractor in loaded
                for runner in [_runner(stimulus, task, extractor, machine)]
                for grid, entries in task.grids
            ]
            _fill(stimulus, works, bar)
        failures += [work.failure for _, work in works if work.failure is not None]
    finally:
        for _, extractor in loaded:
            extractor.close()
    return later, failures


def _load(
    tasks: Sequence[ModelTask], machine: Machine, loaded: list[tuple[ModelTask, Extractor]]
) -> tuple[list[ModelTask], list[BidsMllmError]]:
    """Add the models that can be loaded to `loaded`; return those to try without these, and why others cannot be."""
    failures: list[BidsMllmError] = []
    for number, task in enumerate(tasks):
        try:
            loaded.append((task, task.family.load(task.spec, task.readout, machine.device)))
        except BidsMllmError as error:
            failures.append(error)
        except (MemoryError, RuntimeError) as error:
            if not _ran_out_of_memory(error):
                raise
            if loaded:
                return list(tasks[number:]), failures
            failures.append(
                BidsMllmError(
                    f"The weights of {task.spec.key} do not fit into the memory of {machine.device}; use a device with "
                    "more memory, or a dtype of two bytes."
                )
            )
    return [], failures


def _ran_out_of_memory(error: Exception) -> bool:
    from bids_mllm.features.models.memory import is_out_of_memory

    return is_out_of_memory(error)


def _runner(stimulus: Stimulus, task: ModelTask, extractor: Extractor, machine: Machine) -> BatchRunner:
    free = None if machine.free_bytes is None else machine.free_bytes()
    size = choose_batch_size(task.plan, free_bytes=free, media_bytes=_media_bytes(stimulus, task.plan))
    return BatchRunner(extractor, task.plan, model=task.spec.key, batch_size=size)


def _media_bytes(stimulus: Stimulus, plan: ExtractionPlan) -> int:
    """Decoded media of one clip."""
    request = plan.request
    height, width = request.frame_size or (stimulus.height, stimulus.width)
    return 3 * height * width * request.n_frames


def _fill(stimulus: Stimulus, works: Sequence[tuple[ModelTask, GridWork]], bar: "tqdm[Any]") -> None:
    """Pass over the film until all works are done; chunks that others work on are waited for."""
    while unfinished := [(task, work) for task, work in works if not work.done]:
        # What other jobs have done counts no more.
        bar.total = bar.n + sum(work.n_missing for _, work in unfinished)
        ready = [pair for pair in unfinished if pair[1].prepare()]
        ready = ready or [pair for pair in unfinished if pair[1].prepare(steal=True)]
        if ready:
            _pass_over(stimulus, ready)
        else:
            time.sleep(POLL_SECONDS)
    bar.total = bar.n


def _pass_over(stimulus: Stimulus, works: Sequence[tuple[ModelTask, GridWork]]) -> None:
    """Decode the film once and give every work its clips, while a thread reads ahead."""
    jobs = [ClipJob(work.clips(), task.plan.request) for task, work in works]
    film = _noted(read_film(stimulus, jobs), [work for _, work in works])
    with closing(read_ahead(film, max_bytes=READ_AHEAD_BYTES, size_of=_size)) as stream:
        try:
            for number, media in stream:
                works[number][1].take(media)
        finally:
            # Before the stream is closed: its thread may wait for a work to go on.
            for _, work in works:
                work.stop()


def _noted(film: Iterator[tuple[int, ClipMedia]], works: Sequence[GridWork]) -> Iterator[tuple[int, ClipMedia]]:
    """Tell each work of its clips as they come out of the decoder."""
    for number, media in film:
        works[number].decoded(media)
        yield number, media


def _size(item: tuple[int, ClipMedia]) -> int:
    media = item[1]
    return sum(0 if values is None else values.nbytes for values in (media.frames, media.audio))
