"""Extractions from one film, in this process or in jobs of their own, with a record of what each model was given."""

import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import av
import pytest
from tqdm import tqdm

from bids_mllm.features.extractor import Extracted, Extractor, Family, ReadOut
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.registry import load_family, resolve_models
from bids_mllm.interfaces import grid_work
from bids_mllm.interfaces.extraction import Machine, ModelTask, extract_film, make_task
from bids_mllm.io import store as store_module
from bids_mllm.io.clips import probe_stimulus
from bids_mllm.io.store import FeatureEntry, FeatureStore
from bids_mllm.records import ClipMedia, ModelSpec, WindowGrid

WINDOW = 1.49


def spec_of(request: str) -> ModelSpec:
    """The cheap form of a model: a key of the registry, or KEY=FOLDER."""
    [spec] = resolve_models([request], sloppy=True)
    return spec


def read_out(
    spec: ModelSpec, *, poolings: Sequence[Any] = ("generated", "last", "media"), n_instructions: int = 2
) -> ReadOut:
    instructions = load_instructions(media=spec.media)[:n_instructions] if spec.instructed else ()
    return ReadOut(WINDOW, tuple(poolings), instructions, max_new_tokens=2)


def grid_of(path: Path, *, step: float = WINDOW, length: float = WINDOW, origin: float = 0.0) -> WindowGrid:
    """All windows of a film."""
    seconds = probe_stimulus(path, path.name).duration("video") or 0.0
    return WindowGrid(origin, step, length, max(0, int((seconds - length - origin + 1e-6) // step) + 1))


class Recorded:
    """A loaded model that notes the windows that it was given, and may be slower than it is."""

    def __init__(self, extractor: Extractor, key: str, note: Callable[[dict[str, Any]], None], delay: float) -> None:
        self._extractor, self._key, self._note, self._delay = extractor, key, note, delay

    def extract(self, clips: Sequence[ClipMedia]) -> Extracted:
        begin = time.monotonic()
        extracted = self._extractor.extract(clips)
        time.sleep(self._delay * len(clips))
        windows = [media.clip.index for media in clips]
        self._note({"model": self._key, "windows": windows, "begin": begin, "end": time.monotonic()})
        return extracted

    def close(self) -> None:
        self._extractor.close()


def recorded(family: Family, note: Callable[[dict[str, Any]], None], delay: float = 0.0) -> Family:
    def load(spec: ModelSpec, readout: ReadOut, device: str) -> Extractor:
        return Recorded(family.load(spec, readout, device), spec.key, note, delay)

    return replace(family, load=load)


def tasks_of(
    film: Path,
    requests: Sequence[str],
    store: Path,
    note: Callable[[dict[str, Any]], None] = lambda _: None,
    *,
    delay: float = 0.0,
    batch_size: int = 4,
    grids: Sequence[WindowGrid] | None = None,
    **asked: Any,
) -> list[ModelTask]:
    """One task a model, all windows of the film, `batch_size` clips at once."""
    stimulus = probe_stimulus(film, film.name)
    tasks = []
    for request in requests:
        spec = spec_of(request)
        family = recorded(load_family(spec.family), note, delay)
        task = make_task(stimulus, spec, read_out(spec, **asked), family, grids or [grid_of(film)], FeatureStore(store))
        tasks.append(replace(task, plan=replace(task.plan, batch_size=batch_size)))
    return tasks


def extract(film: Path, tasks: Sequence[ModelTask], store: Path, machine: Machine | None = None) -> None:
    extract_film(probe_stimulus(film, film.name), tasks, FeatureStore(store), machine or Machine("cpu"))


@dataclass(frozen=True)
class Job:
    """What one process extracts, and where it is to be killed.

    `kill` is (where, n): when the function of that name is called for the n-th time.
    """

    film: Path
    requests: tuple[str, ...]
    store: Path
    log: Path
    per_chunk: int = 8
    part_seconds: float = 20.0
    delay: float = 0.0
    batch_size: int = 4
    kill: tuple[str, int] | None = None
    asked: dict[str, Any] = field(default_factory=dict)


#: Where a job may be killed: a function, and whether after it.
PLACES: dict[str, tuple[Any, str, bool]] = {
    "before a chunk is claimed": (grid_work.GridWork, "_has", False),
    "before a part is saved": (grid_work, "save_part", False),
    "after a part was saved": (grid_work, "save_part", True),
    "before an entry is written": (FeatureEntry, "write", False),
    "between two entries of a chunk": (FeatureEntry, "write", True),
    "before parts are removed": (grid_work, "remove_parts", False),
    "before a chunk is given free": (grid_work.GridWork, "_release", False),
}


def run_job(job: Job) -> None:
    """The work of one process."""
    logging.getLogger("bids_mllm").setLevel(logging.ERROR)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # the progress bar
    tqdm.set_lock(threading.RLock())  # one that is shared stays taken when the process that holds it is killed
    store_module.WINDOWS_PER_CHUNK = job.per_chunk
    grid_work.PART_SECONDS = job.part_seconds
    if job.kill is not None:
        _arm(*PLACES[job.kill[0]], job.kill[1])
    log = os.open(job.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(event: dict[str, Any]) -> None:
        os.write(log, (json.dumps({"pid": os.getpid(), **event}) + "\n").encode())

    tasks = tasks_of(job.film, job.requests, job.store, note, delay=job.delay, batch_size=job.batch_size, **job.asked)
    note({"begin": time.monotonic()})
    extract(job.film, tasks, job.store)
    note({"end": time.monotonic()})


def _arm(owner: Any, name: str, after: bool, nth: int) -> None:
    """Kill this process at the n-th call of a function."""
    function = getattr(owner, name)
    calls = 0

    def armed(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*arguments, **named) if after or calls < nth else None
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, armed)


def start(job: Job) -> ForkProcess:
    """Start a job in a fork of this process, which has loaded the libraries."""
    process = multiprocessing.get_context("fork").Process(target=run_job, args=(job,), daemon=True)
    process.start()
    return process


def finish(process: ForkProcess, seconds: float = 60.0) -> int | None:
    process.join(seconds)
    if process.is_alive():
        process.kill()
        pytest.fail("a job did not come to its end")
    return process.exitcode


def events(log: Path) -> list[dict[str, Any]]:
    """What the jobs noted; a killed one may have written half a line."""
    found = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def contents(store: Path) -> dict[str, str]:
    """Digest of every file of a store but the marks of use; other files than those of entries show as they are."""
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != store_module.USED_FILE
    }


def remux(source: Path, target: Path, *, kinds: Sequence[str] = ("video", "audio"), repeat: int = 1) -> Path:
    """Copy streams of a film, several times one after the other."""
    with av.open(str(source)) as film, av.open(str(target), mode="w") as copy:
        streams = {s.index: copy.add_stream_from_template(s) for s in film.streams if s.type in kinds}
        packets = [
            (p.stream_index, p.pts, p.dts, p.time_base, p.is_keyframe, bytes(p))
            for p in film.demux()
            if p.size and p.stream_index in streams
        ]
        seconds = float(film.duration or 0) / av.time_base
        for number in range(repeat):
            for index, pts, dts, base, key, content in packets:
                packet = av.Packet(content)
                shift = round(seconds * number / base)
                packet.pts, packet.dts = pts + shift, None if dts is None else dts + shift
                packet.time_base, packet.stream, packet.is_keyframe = base, streams[index], key
                copy.mux(packet)
    return target


def damage(film: Path, target: Path, kind: str, begin: float, end: float) -> tuple[Path, float, float]:
    """Blank the packets of a stream of a Matroska film that begin within some seconds.

    Returns the film and the seconds that cannot be trusted: up to the next key frame, or just those of the sound.
    """
    with av.open(str(film)) as container:
        stream = container.streams.get(**{kind: 0})[0]
        packets = [
            (p.pos + 4, p.size, float(p.pts * p.time_base), p.is_keyframe) for p in container.demux(stream) if p.size
        ]
    content = bytearray(film.read_bytes())
    broken = [packet for packet in packets if begin <= packet[2] < end]
    for place, size, _, _ in broken:
        content[place + 4 : place + size - 4] = bytes(size - 8)
    target.write_bytes(content)
    last = broken[-1][2]
    return target, broken[0][2], next(time for _, _, time, key in packets if key and time > last)
