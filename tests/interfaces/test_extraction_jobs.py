"""Jobs that share a store: what each does, how long it waits, and what is left of one that was killed anywhere."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import film_jobs
import numpy as np
import pytest
import torch
from film_jobs import PLACES, Job, contents, damage, events, extract, finish, start, tasks_of

from bids_mllm.exceptions import BidsMllmError, StoreError
from bids_mllm.features.models.tiny import TINY_CHECKPOINTS
from bids_mllm.interfaces import grid_work
from bids_mllm.io import store as store_module
from bids_mllm.io.store import FeatureEntry
from bids_mllm.simulate.films import write_film

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
PER_CHUNK, BATCH = 8, 4
#: Seconds that a job may be late: it looks at the others five times a second, and two cores are shared by many.
SLACK = 2.0


@pytest.fixture(autouse=True, scope="module")
def _small_chunks() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "WINDOWS_PER_CHUNK", PER_CHUNK)
        yield


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 windows, five chunks."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    write_film(path, seconds=60.0, seed=1)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"tiny={TINY_CHECKPOINTS['qwen25vl'](tmp_path_factory.mktemp('checkpoint') / 'tiny')}"


@pytest.fixture(scope="module")
def broken(film: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chunks, with pictures in the first and the second that cannot be decoded."""
    folder = tmp_path_factory.mktemp("broken")
    short = folder / "short.mkv"
    write_film(short, seconds=36.0, seed=2)
    once, _, _ = damage(short, folder / "once.mkv", "video", 4.5, 4.6)
    twice, _, _ = damage(once, folder / "film.mkv", "video", 20.0, 20.1)
    return twice


@pytest.fixture(scope="module")
def undisturbed(broken: Path, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    extract(broken, tasks_of(broken, (tiny, "melspectrogram"), store), store)
    found = contents(store)
    # Three chunks and a description of two answers, two last states, the mean of the video, and the spectrogram.
    assert len(found) == 6 * 4
    return found


def given(log: Path) -> dict[str, Counter[int]]:
    """How often each model was given each window."""
    counts: dict[str, Counter[int]] = {}
    for event in events(log):
        if "model" in event:
            counts.setdefault(event["model"], Counter()).update(event["windows"])
    return counts


def wait_until(true, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


# Killed


@pytest.mark.parametrize("nth", [2, 5])
@pytest.mark.parametrize("place", PLACES)
def test_a_job_killed_anywhere_is_gone_on_with_to_the_batch(
    broken: Path, tiny: str, undisturbed: dict[str, str], tmp_path: Path, place: str, nth: int
) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    job = Job(broken, (tiny, "melspectrogram"), store, log, PER_CHUNK, part_seconds=0.0, kill=(place, nth))
    process = start(job)
    assert finish(process) == -signal.SIGKILL
    assert finish(start(replace(job, kill=None))) == 0
    assert contents(store) == undisturbed
    again = {model: sum(counts.values()) - len(counts) for model, counts in given(log).items()}
    # What is lost is the batch at work and, where it was the chunk's last, what is written with it. Of the models
    # only one is at work, but the damaged windows of the other's batch are never given, so that no one is behind.
    assert sum(again.values()) <= 2 * BATCH
    assert set(again) == {"tiny", "melspectrogram"}


def test_ten_random_kills_in_the_work_of_two_models(
    broken: Path, tiny: str, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    job = Job(broken, (tiny, "melspectrogram"), store, log, PER_CHUNK, part_seconds=0.0, delay=0.04)
    rng = np.random.default_rng(7)
    n_parts = 0
    for number in range(10):
        begun = len(events(log))
        process = start(job)
        # While it loads the model or decodes, or from its first batch on.
        wait_until(lambda n=begun + 1 + number % 2: len(events(log)) >= n)
        time.sleep(rng.uniform(0.0, 0.2))
        process.kill()
        assert finish(process) == -signal.SIGKILL
        n_parts += any((store / ".parts").glob("*.safetensors"))
    assert n_parts > 0
    assert finish(start(job)) == 0
    assert contents(store) == undisturbed
    again = {model: sum(counts.values()) - len(counts) for model, counts in given(log).items()}
    assert max(again.values()) <= 10 * BATCH


# Several jobs


def waited(log: Path) -> dict[int, float]:
    """Seconds between the last batch of each job and its end."""
    last, ends = {}, {}
    for event in events(log):
        if "model" in event:
            last[event["pid"]] = event["end"]
        elif "end" in event:
            ends[event["pid"]] = event["end"]
    return {pid: ends[pid] - last.get(pid, ends[pid]) for pid in ends}


def chunk_seconds(log: Path) -> float:
    """Longest time that a job took for a chunk of all models, from its first to its last batch."""
    spans: dict[tuple[int, int], list[float]] = {}
    for event in events(log):
        if "model" in event:
            spans.setdefault((event["pid"], event["windows"][0] // PER_CHUNK), []).extend(
                [event["begin"], event["end"]]
            )
    return max(max(times) - min(times) for times in spans.values())


def test_two_jobs_divide_the_chunks_and_wait_for_no_more_than_one(film: Path, tiny: str, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    extract(film, tasks_of(film, (tiny, "melspectrogram"), alone), alone)
    store, log = tmp_path / "store", tmp_path / "log"
    job = Job(film, (tiny, "melspectrogram"), store, log, PER_CHUNK, delay=0.02)
    jobs = [start(job), start(job)]
    assert [finish(process) for process in jobs] == [0, 0]
    assert contents(store) == contents(alone)
    assert given(log) == {model: dict.fromkeys(range(40), 1) for model in ("tiny", "melspectrogram")}
    shares = Counter(event["pid"] for event in events(log) if "model" in event)
    assert sorted(shares) == sorted(process.pid for process in jobs)
    assert min(shares.values()) >= 2 * PER_CHUNK // BATCH
    assert max(waited(log).values()) <= chunk_seconds(log) + SLACK


def test_a_fast_job_takes_what_a_slow_one_has_only_reserved(film: Path, tiny: str, tmp_path: Path) -> None:
    store, slow_log, log = tmp_path / "store", tmp_path / "slow", tmp_path / "log"
    slow = start(Job(film, (tiny,), store, slow_log, PER_CHUNK, delay=0.6))
    reserved = store / ".claims"
    # The slow one works on the first chunk and has decoded the second.
    wait_until(lambda: any(reserved.glob("*-00000.json")) and any(reserved.glob("[!.]*-00001-next.json")))
    assert finish(start(Job(film, (tiny,), store, log, PER_CHUNK))) == 0
    assert finish(slow) == 0
    assert given(slow_log)["tiny"] == dict.fromkeys(range(8), 1)
    assert given(log)["tiny"] == dict.fromkeys(range(8, 40), 1)
    assert max(waited(log).values()) <= 8 * 0.6 + SLACK
    assert list(reserved.iterdir()) == []


def test_no_job_keeps_more_than_the_chunk_it_works_on_and_the_next(film: Path, tiny: str, tmp_path: Path) -> None:
    held: list[set[str]] = []

    def look(_: object) -> None:
        held.append({path.stem.partition("-")[2] for path in (tmp_path / ".claims").glob("[!.]*.json")})

    extract(film, tasks_of(film, (tiny,), tmp_path, look, delay=0.02), tmp_path)
    assert len(held) == 10
    for number, claims in enumerate(held):
        chunk = number // 2
        assert claims <= {f"{chunk:05d}", f"{chunk:05d}-next", f"{chunk + 1:05d}-next"}
        assert f"{chunk:05d}" in claims


def test_a_chunk_of_a_killed_job_is_taken_over_at_once(film: Path, tiny: str, tmp_path: Path) -> None:
    store, slow_log, log = tmp_path / "store", tmp_path / "slow", tmp_path / "log"
    slow = start(Job(film, (tiny,), store, slow_log, PER_CHUNK, part_seconds=0.0, delay=0.7))
    wait_until(lambda: any((store / ".parts").glob("*")))
    fast = start(Job(film, (tiny,), store, log, PER_CHUNK))
    wait_until(lambda: len(given(log).get("tiny", ())) == 32)
    killed = time.monotonic()
    slow.kill()
    assert finish(slow) == -signal.SIGKILL
    assert finish(fast) == 0
    assert time.monotonic() - killed < 2 * SLACK
    assert given(log)["tiny"] == dict.fromkeys(range(4, 40), 1)
    assert list((store / ".claims").iterdir()) == []


def test_a_stopped_job_that_comes_back_changes_nothing(film: Path, tiny: str, tmp_path: Path) -> None:
    """Its chunks are not free while it lives, and what it had decoded may be done when it goes on."""
    store, log, other = tmp_path / "store", tmp_path / "log", tmp_path / "other"
    alone = tmp_path / "alone"
    extract(film, tasks_of(film, (tiny,), alone), alone)
    sleeper = start(Job(film, (tiny,), store, log, PER_CHUNK, delay=0.02))
    wait_until(lambda: any((store / ".claims").glob("[!.]*-00001-next.json")))
    os.kill(sleeper.pid, signal.SIGSTOP)
    fast = start(Job(film, (tiny,), store, other, PER_CHUNK))
    wait_until(lambda: len(given(other).get("tiny", ())) >= 24)
    os.kill(sleeper.pid, signal.SIGCONT)
    assert [finish(sleeper), finish(fast)] == [0, 0]
    assert contents(store) == contents(alone)
    assert sum((given(log)["tiny"] + given(other)["tiny"]).values()) == 40


def test_one_model_under_two_labels_is_extracted_once(film: Path, tiny: str, tmp_path: Path) -> None:
    seen: list[int] = []
    tasks = tasks_of(
        film, (tiny, tiny.replace("tiny=", "same=")), tmp_path, lambda event: seen.extend(event["windows"])
    )
    assert tasks[0].entries == tasks[1].entries
    extract(film, tasks, tmp_path)
    assert sorted(seen) == list(range(40))


# The two threads of a job


def reading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("nth", [1, 4])
def test_a_store_that_fails_ends_both_threads_and_gives_all_free(
    film: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    calls = 0
    write = FeatureEntry.write

    def failing(self: FeatureEntry, *arguments: object, **named: object) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            time.sleep(0.2)  # meanwhile the decoder has nothing left to do but to wait for the model
            raise StoreError("The disk is full.")
        write(self, *arguments, **named)

    monkeypatch.setattr(FeatureEntry, "write", failing)
    with pytest.raises(StoreError, match=r"^The disk is full\.$"):
        extract(film, tasks_of(film, (tiny, "melspectrogram"), tmp_path), tmp_path)
    assert reading() == []
    assert list((tmp_path / ".claims").iterdir()) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("window", [0, 17, 39])
def test_a_model_that_fails_gives_its_chunks_free_and_is_decoded_for_no_more(
    film: Path, tiny: str, tmp_path: Path, window: int
) -> None:
    seen: list[int] = []

    def failing(event: dict[str, object]) -> None:
        if event["model"] == "tiny":
            seen.extend(event["windows"])
            if window in event["windows"]:
                raise BidsMllmError("The model failed.")

    tasks = tasks_of(film, (tiny, "melspectrogram"), tmp_path, failing)
    with pytest.raises(BidsMllmError, match=r"^The model failed\.$"):
        extract(film, tasks, tmp_path)
    assert seen == list(range((window // BATCH + 1) * BATCH))
    assert tasks[1].complete
    assert all(entry.missing_chunks() == tuple(range(window // 8, 5)) for entry in tasks[0].entries)
    assert reading() == []
    assert list((tmp_path / ".claims").iterdir()) == []
    # Where it failed before, it goes on when it is asked again.
    seen.clear()
    extract(film, tasks_of(film, (tiny,), tmp_path, lambda event: seen.extend(event["windows"])), tmp_path)
    assert seen == list(range(window // 8 * 8, 40))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("length", [1.49, 40.0])
def test_chunks_of_one_window_and_windows_longer_than_a_chunk(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: float
) -> None:
    """The decoder must go on to chunks while windows of the one before are still open."""
    grid = film_jobs.grid_of(film, length=length, step=3.0)
    stored = []
    for per_chunk in (1, 64):
        monkeypatch.setattr(store_module, "WINDOWS_PER_CHUNK", per_chunk)
        store = tmp_path / str(per_chunk)
        tasks = tasks_of(film, ("melspectrogram",), store, batch_size=1, grids=[grid])
        extract(film, tasks, store)
        stored.append(tasks[0].entries[0].read())
    # What is rounded to float16 depends on the chunk.
    np.testing.assert_allclose(stored[0], stored[1], rtol=1e-3)


def test_parts_are_saved_as_time_goes_by(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = grid_work.save_part

    def noted(path: Path, part: grid_work.Part, entries: list[str]) -> None:
        saved.append(len(part.values[0]))
        save(path, part, entries)

    monkeypatch.setattr(grid_work, "save_part", noted)
    monkeypatch.setattr(grid_work, "PART_SECONDS", 0.12)
    tasks = tasks_of(film, ("melspectrogram",), tmp_path, delay=0.05, batch_size=1)
    extract(film, tasks, tmp_path)
    # Three windows take longer; each is written once, and the last of a chunk only with the chunk.
    assert saved
    assert set(saved) <= {1, 2, 3}
    assert sum(saved) <= 40 - 5
    assert not any((tmp_path / ".parts").iterdir())
