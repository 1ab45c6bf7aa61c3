"""One film, several models, one store: what is decoded once, killed, shared, damaged, resumed or run out of memory."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_mllm.exceptions import BidsMllmError, CheckpointError, StoreError
from bids_mllm.features.extraction import BatchRunner
from bids_mllm.features.extractor import Extracted, ReadOut
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models.tiny import TINY_CHECKPOINTS
from bids_mllm.features.registry import load_family, resolve_models
from bids_mllm.interfaces import extraction, grid_work
from bids_mllm.interfaces.extraction import Machine, ModelTask, extract_film, make_task
from bids_mllm.interfaces.features import manifest, write_texts
from bids_mllm.io import store as store_module
from bids_mllm.io import streams
from bids_mllm.io.clips import probe_stimulus
from bids_mllm.io.files import read_tsv
from bids_mllm.io.parts import part_path
from bids_mllm.io.store import FeatureStore
from bids_mllm.records import Condition, Stimulus, WindowGrid
from bids_mllm.simulate.films import write_film

WINDOW = 1.49
SECONDS = 72.0
N_WINDOWS = 48
CHUNK = 8
GRID = WindowGrid(0.0, WINDOW, WINDOW, N_WINDOWS)
BATCH = 2
CPU = Machine("cpu")


@pytest.fixture(autouse=True, scope="module")
def _small_chunks():
    """Chunks of a few windows, so that a short film has many."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "WINDOWS_PER_CHUNK", CHUNK)
        yield


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("films") / "film.mkv"
    write_film(path, seconds=SECONDS, seed=3)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: TINY_CHECKPOINTS[family](folder / family) for family in ("qwen25vl", "qwen2audio", "internvl")}


def stimulus_of(path: Path) -> Stimulus:
    return probe_stimulus(path, "film.mkv")


def task_of(stimulus: Stimulus, store: FeatureStore, request: str, *, window: float = WINDOW) -> ModelTask:
    (spec,) = resolve_models([request], sloppy=True)
    spec = replace(spec, kind="instruction-tuned video") if spec.kind == "in-context" else spec
    instructions = load_instructions(media=spec.media)[:2] if spec.instructed else ()
    readout = ReadOut(window, ("generated", "last"), instructions, 3)
    family = load_family(spec.family)
    # Small batches, so that a chunk takes several.
    small = replace(family, plan=lambda *arguments: replace(family.plan(*arguments), batch_size=BATCH))
    return make_task(stimulus, spec, readout, small, [GRID], store)


def fill(film: Path, folder: Path, requests: Sequence[str], machine: Machine = CPU) -> list[ModelTask]:
    store, stimulus = FeatureStore(folder), stimulus_of(film)
    tasks = [task_of(stimulus, store, request) for request in requests]
    extract_film(stimulus, tasks, store, machine)
    return tasks


def files_of(folder: Path) -> dict[str, str]:
    """Every file of a store with its digest, but for the marks of when an entry was used."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "used"
    }


def report_batches(pipe: Connection) -> None:
    """Make every batch send (process, clips) before it is run."""
    run = BatchRunner.run

    def told(self: BatchRunner, clips: Sequence[object]) -> Extracted:
        pipe.send((os.getpid(), len(clips)))
        return run(self, clips)  # type: ignore[arg-type]

    BatchRunner.run = told  # type: ignore[method-assign]


def job(film: Path, folder: Path, requests: Sequence[str], pipe: Connection, pause: float = 0.0) -> None:
    """The body of a process that extracts; a pause after each chunk lets two of them share fairly."""
    grid_work.PART_SECONDS = 0.0
    report_batches(pipe)
    if pause:
        write = grid_work.GridWork._write

        def slow(self: grid_work.GridWork, chunk: object) -> None:
            write(self, chunk)  # type: ignore[arg-type]
            time.sleep(pause)

        grid_work.GridWork._write = slow  # type: ignore[method-assign]
    fill(film, folder, requests)


def start(*arguments: object) -> tuple[multiprocessing.Process, Connection]:
    """Start a job in a fork of this process, which has torch loaded already."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=job, args=(*arguments[:3], there, *arguments[3:]))
    process.start()
    there.close()
    return process, here


def drained(pipe: Connection) -> list[tuple[int, int]]:
    """All that was sent until the sender ended."""
    found = []
    try:
        while True:
            found.append(pipe.recv())
    except EOFError:
        return found


@pytest.fixture(scope="module")
def undisturbed(film, checkpoints, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed") / "store"
    process, pipe = start(film, folder, [f"tiny={checkpoints['qwen25vl']}"])
    batches = drained(pipe)
    process.join()
    assert process.exitcode == 0
    assert sum(n for _, n in batches) == N_WINDOWS
    return files_of(folder)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_ten_times_it_ends_with_the_same_bytes(film, checkpoints, undisturbed, tmp_path):
    chance, folder = random.Random(11), tmp_path / "store"
    n_run = 0
    for _ in range(10):
        process, pipe = start(film, folder, [f"tiny={checkpoints['qwen25vl']}"])
        for _ in range(chance.randint(1, 3)):
            n_run += pipe.recv()[1]
        time.sleep(chance.uniform(0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        n_run += sum(n for _, n in drained(pipe))
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process, pipe = start(film, folder, [f"tiny={checkpoints['qwen25vl']}"])
    n_run += sum(n for _, n in drained(pipe))
    process.join()
    assert process.exitcode == 0
    assert files_of(folder) == undisturbed
    # What a killed job had finished was kept to the batch: at most the batch at work is run again.
    assert N_WINDOWS <= n_run <= N_WINDOWS + 10 * BATCH


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_jobs_divide_the_windows(film, checkpoints, undisturbed, tmp_path):
    folder = tmp_path / "store"
    jobs = [start(film, folder, [f"tiny={checkpoints['qwen25vl']}"], 0.3) for _ in range(2)]
    shares = Counter()
    for process, pipe in jobs:
        for pid, n in drained(pipe):
            shares[pid] += n
        process.join()
        assert process.exitcode == 0
    assert files_of(folder) == undisturbed
    assert len(shares) == 2
    assert sum(shares.values()) == N_WINDOWS
    assert min(shares.values()) >= CHUNK


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_a_killed_job_had_claimed_is_taken_over_at_once(film, checkpoints, undisturbed, tmp_path):
    folder = tmp_path / "store"
    first, pipe = start(film, folder, [f"tiny={checkpoints['qwen25vl']}"])
    pipe.recv()
    os.kill(first.pid, signal.SIGSTOP)
    second, other = start(film, folder, [f"tiny={checkpoints['qwen25vl']}"])
    other.recv()
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    drained(other)
    second.join(timeout=60)
    assert second.exitcode == 0
    assert files_of(folder) == undisturbed


def test_three_models_share_one_pass(film, checkpoints, tmp_path, monkeypatch):
    stamps: Counter[tuple[int, int]] = Counter()
    decode = streams.decoded

    def counted(stream, packet):
        frames = decode(stream, packet)
        stamps.update((stream.index, frame.pts) for frame in frames)
        return frames

    monkeypatch.setattr(streams, "decoded", counted)
    requests = ["motionenergy", "melspectrogram", *(f"{name}x={path}" for name, path in checkpoints.items())]
    store, stimulus = FeatureStore(tmp_path / "together"), stimulus_of(film)
    tasks = [task_of(stimulus, store, request) for request in requests]
    stamps.clear()
    extract_film(stimulus, tasks, store, CPU)
    # The first pictures and sounds are looked at once more, to find where the clock begins.
    again = [stamp for stamp, n in stamps.items() if n > 1]
    assert max(stamps.values()) <= 2
    assert len(again) <= 4
    assert len({stamp for index, stamp in stamps if index == 0}) >= N_WINDOWS * WINDOW * 12 - 12
    for request, task in zip(requests, tasks, strict=True):
        (alone,) = fill(film, tmp_path / "alone", [request])
        for entry, other in zip(task.entries, alone.entries, strict=True):
            np.testing.assert_array_equal(entry.read(), other.read())


def test_models_that_do_not_fit_together_take_turns(film, checkpoints, tmp_path, monkeypatch):
    loaded: list[list[str]] = []
    run_group = extraction._run_group

    def noted(stimulus, tasks, *arguments):
        loaded.append([task.spec.key for task in tasks])
        return run_group(stimulus, tasks, *arguments)

    monkeypatch.setattr(extraction, "_run_group", noted)
    requests = [f"a={checkpoints['qwen25vl']}", f"b={checkpoints['internvl']}", "melspectrogram"]
    weights = task_of(stimulus_of(film), FeatureStore(tmp_path / "s"), requests[0]).plan.cost.weight_bytes
    fill(film, tmp_path / "s", requests, Machine("cpu", lambda: 1.5 * weights / extraction.WEIGHTS_SHARE))
    assert loaded == [["a"], ["b", "melspectrogram"]]


def test_a_model_that_fails_does_not_keep_the_others(film, checkpoints, tmp_path):
    import shutil

    broken = Path(shutil.copytree(checkpoints["internvl"], tmp_path / "broken"))
    store, stimulus = FeatureStore(tmp_path / "store"), stimulus_of(film)
    tasks = [task_of(stimulus, store, f"b={broken}"), task_of(stimulus, store, f"a={checkpoints['qwen25vl']}")]
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        extract_film(stimulus, tasks, store, CPU)
    assert tasks[1].complete
    assert not tasks[0].complete


def spoil(extractor, when):
    """Let an extractor give a value that is not finite for one window."""
    extract = extractor.extract

    def spoilt(clips):
        given = extract(clips)
        for row, clip in enumerate(clips):
            if clip.clip.index == when:
                next(iter(given.features.values()))[row, 0, 0] = np.inf
        return given

    extractor.extract = spoilt
    return extractor


def test_features_that_are_not_finite_stop_their_model_alone(film, checkpoints, tmp_path):
    store, stimulus = FeatureStore(tmp_path / "store"), stimulus_of(film)
    requests = (f"a={checkpoints['qwen25vl']}", f"b={checkpoints['internvl']}")
    first, second = (task_of(stimulus, store, request) for request in requests)
    load = first.family.load
    bad = replace(first, family=replace(first.family, load=lambda *given: spoil(load(*given), 20)))
    with pytest.raises(BidsMllmError, match="a gave a non-finite generatedAR feature in layer 0"):
        extract_film(stimulus, [bad, second], store, CPU)
    assert second.complete
    assert all(len(entry.missing_chunks()) == N_WINDOWS // CHUNK - 2 for entry in first.entries)


def test_damage_masks_the_windows_that_it_reaches(film, checkpoints, tmp_path, caplog):
    damaged = tmp_path / "damaged.mkv"
    content = bytearray(film.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 12_000] = bytes(12_000)
    damaged.write_bytes(content)
    request = f"tiny={checkpoints['qwen25vl']}"
    (whole,) = fill(film, tmp_path / "whole", [request])
    with caplog.at_level("WARNING", logger="bids_mllm"):
        (task,) = fill(damaged, tmp_path / "store", [request])
    rows = manifest(stimulus_of(damaged), task)["entries"]
    masked = {int(window): reason for window, reason in rows[0]["masked"].items()}
    assert all(row["masked"] == rows[0]["masked"] for row in rows)
    assert 0 < len(masked) < 15
    assert all("film.mkv is damaged from" in reason for reason in masked.values())
    kept = [window for window in range(N_WINDOWS) if window not in masked]
    for entry, other in zip(task.entries, whole.entries, strict=True):
        values, expected = entry.read(), other.read()
        assert np.isnan(values[sorted(masked)]).all()
        # Batches are made of other windows where some are masked, which changes last bits.
        np.testing.assert_allclose(values[kept], expected[kept], rtol=2e-3, atol=1e-4)
    texts = task.grids[0][1][Condition("generated", "AR")].texts()
    assert [window for window, text in enumerate(texts) if not text] == sorted(masked)
    paths = write_texts(tmp_path / "texts", stimulus_of(damaged), task)
    table = read_tsv(paths[0])
    assert [float(row["start"]) for row in table] == pytest.approx(GRID.starts, abs=1e-4)
    assert [n for n, row in enumerate(table) if row["text"] == "n/a"] == sorted(masked)


class Refusing:
    """An extractor in which more than one clip at a time runs out of memory from some window on."""

    def __init__(self, extractor, window):
        self.extractor, self.window = extractor, window
        self.sizes = []

    def extract(self, clips):
        self.sizes.append(len(clips))
        if len(clips) > 1 and clips[0].clip.index >= self.window:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.extractor.extract(clips)

    def close(self):
        self.extractor.close()


def test_a_batch_that_runs_out_of_memory_is_halved_and_the_rest_goes_on(film, checkpoints, tmp_path):
    store, stimulus = FeatureStore(tmp_path / "store"), stimulus_of(film)
    task = task_of(stimulus, store, f"tiny={checkpoints['qwen25vl']}")
    made = []

    def load(*given):
        made.append(Refusing(task.family.load(*given), 20))
        return made[0]

    extract_film(stimulus, [replace(task, family=replace(task.family, load=load))], store, CPU)
    assert task.complete
    assert made[0].sizes.count(2) == 11
    assert made[0].sizes.count(1) == N_WINDOWS - 20
    (whole,) = fill(film, tmp_path / "whole", [f"tiny={checkpoints['qwen25vl']}"])
    for entry, other in zip(task.entries, whole.entries, strict=True):
        np.testing.assert_allclose(entry.read(), other.read(), rtol=2e-3, atol=1e-4)


def test_a_complete_store_is_used_without_writing_and_without_weights(film, checkpoints, tmp_path):
    request = f"tiny={checkpoints['qwen25vl']}"
    fill(film, tmp_path / "store", [request])
    before = files_of(tmp_path / "store")
    store, stimulus = FeatureStore(tmp_path / "store"), stimulus_of(film)
    task = task_of(stimulus, store, request)

    def load(*given):
        raise AssertionError("the model was loaded")

    extract_film(stimulus, [replace(task, family=replace(task.family, load=load))], store, CPU)
    assert files_of(tmp_path / "store") == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a small disk")
def test_a_full_disk_is_one_sentence_and_keeps_what_was_finished(film, checkpoints, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", disk], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(StoreError, match="is full"):
            fill(film, disk / "store", [f"tiny={checkpoints['qwen25vl']}"])
        finished = {p: d for p, d in files_of(disk / "store").items() if p.endswith(".safetensors")}
        assert finished
        assert not [path for path in finished if ".tmp" in path]
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        (task,) = fill(film, disk / "store", [f"tiny={checkpoints['qwen25vl']}"])
        assert task.complete
        after = files_of(disk / "store")
        assert {path: after[path] for path in finished} == finished
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def test_a_part_left_by_a_kill_behind_its_chunk_is_removed(film, tmp_path):
    (task,) = fill(film, tmp_path / "store", ["melspectrogram"])
    entries = task.grids[0][1]
    parts = tmp_path / "store" / ".parts"
    parts.mkdir(exist_ok=True)
    part_path(tmp_path / "store", grid_work.chunk_name(entries, 1)).write_bytes(b"old")
    fill(film, tmp_path / "store", ["melspectrogram"])
    assert list(parts.iterdir()) == []


def test_a_film_shorter_than_one_window_gives_empty_entries(tmp_path):
    path = tmp_path / "short.mkv"
    write_film(path, seconds=1.0, seed=1)
    store, stimulus = FeatureStore(tmp_path / "store"), stimulus_of(path)
    task = task_of(stimulus, store, "melspectrogram")
    empty = make_task(stimulus, task.spec, task.readout, task.family, [replace(GRID, n_windows=0)], store)
    extract_film(stimulus, [empty], store, CPU)
    assert json.loads(json.dumps(manifest(stimulus, empty)))["entries"][0]["n_windows"] == 0
    assert empty.entries[0].read(0).shape == (0, empty.plan.width)
