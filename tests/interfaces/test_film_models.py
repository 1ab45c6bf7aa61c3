"""Several models on one film: what each needs of it, what is damaged or missing, what fits into memory."""

import json
import logging
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from film_jobs import contents, damage, extract, grid_of, remux, tasks_of
from safetensors.torch import load, save_file
from tqdm import tqdm

from bids_mllm.exceptions import BidsMllmError, CheckpointError, StimulusError, StoreError
from bids_mllm.features.extractor import Cost, Extractor, ReadOut
from bids_mllm.features.models.tiny import TINY_CHECKPOINTS
from bids_mllm.interfaces import extraction
from bids_mllm.interfaces.extraction import WEIGHTS_SHARE, Machine, ModelTask
from bids_mllm.interfaces.features import manifest, write_texts
from bids_mllm.io import store as store_module
from bids_mllm.io import streams
from bids_mllm.io.clips import probe_stimulus, read_clips
from bids_mllm.io.films import read_film
from bids_mllm.records import Clip, ClipJob, ClipMedia, Condition, MediaRequest, ModelSpec, WindowGrid
from bids_mllm.simulate import films
from bids_mllm.simulate.films import write_film

PER_CHUNK = 8
SECONDS = 36.0
N_WINDOWS = 24


@pytest.fixture(autouse=True, scope="module")
def _small_chunks() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "WINDOWS_PER_CHUNK", PER_CHUNK)
        yield


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    write_film(path, seconds=SECONDS, seed=1)
    return path


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny checkpoints: of pictures, of sound, and of both."""
    folder = tmp_path_factory.mktemp("checkpoints")
    families = {"eye": "qwen25vl", "ear": "qwen2audio", "omni": "qwen25omni"}
    return {key: f"{key}={TINY_CHECKPOINTS[family](folder / key)}" for key, family in families.items()}


@pytest.fixture(scope="module")
def whole(film: Path, requests: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelTask]:
    """All models on the undamaged film."""
    store = tmp_path_factory.mktemp("whole")
    tasks = tasks_of(film, list(requests.values()), store)
    extract(film, tasks, store)
    return {task.spec.key: task for task in tasks}


def values_of(task: ModelTask) -> dict[Condition, np.ndarray]:
    return {condition: entry.read() for condition, entry in task.grids[0][1].items()}


# Decoding


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each picture and each frame of sound has come out of a decoder."""
    stamps: Counter[tuple[str, int]] = Counter()
    decode = streams.decoded

    def counted(stream: Any, packet: Any) -> list[Any]:
        frames = decode(stream, packet)
        stamps.update((stream.type, frame.pts) for frame in frames)
        return frames

    monkeypatch.setattr(streams, "decoded", counted)
    return stamps


def without_start(stamps: Counter[tuple[str, int]]) -> set[int]:
    """How often frames were decoded that lie behind the first second, which is looked at to find the clock's zero."""
    return {n for (kind, stamp), n in stamps.items() if stamp > 1000}


def test_one_pass_serves_models_of_pictures_of_sound_and_of_both(
    film: Path,
    requests: dict[str, str],
    whole: dict[str, ModelTask],
    tmp_path: Path,
    decodings: Counter[tuple[str, int]],
) -> None:
    tasks = tasks_of(film, list(requests.values()), tmp_path)
    decodings.clear()
    extract(film, tasks, tmp_path)
    assert {kind for kind, _ in decodings} == {"video", "audio"}
    assert len([stamp for kind, stamp in decodings if kind == "video"]) >= (N_WINDOWS * 1.49 - 1) * films.FRAME_RATE
    assert without_start(decodings) == {1}
    for task in tasks:
        alone = tmp_path / task.spec.key
        [same] = tasks_of(film, [requests[task.spec.key]], alone)
        extract(film, [same], alone)
        for condition, values in values_of(same).items():
            np.testing.assert_array_equal(values_of(task)[condition], values)
            assert np.isfinite(values).all()


def test_a_model_of_both_is_given_pictures_and_sound(whole: dict[str, ModelTask], film: Path) -> None:
    task = whole["omni"]
    assert task.plan.request.media == "both"
    [clip] = [media for media in clips_of(film, task, 10) if media.clip.index == 10]
    assert clip.frames is not None
    assert clip.audio is not None
    loaded = task.family.load(task.spec, task.readout, "cpu")
    alone = loaded.extract([clip]).features
    for condition, values in values_of(task).items():
        np.testing.assert_allclose(values[10], alone[condition][0], rtol=2e-3, atol=1e-3)
    deaf = loaded.extract([replace(clip, audio=np.zeros_like(clip.audio))]).features
    assert not np.allclose(deaf[Condition("media")], alone[Condition("media")])


def clips_of(film: Path, task: ModelTask, upto: int) -> list[ClipMedia]:
    grid = task.grids[0][0]
    clips = [Clip(film.name, k, grid.starts[k], grid.ends[k]) for k in range(upto + 1)]
    return list(read_clips(probe_stimulus(film, film.name), clips, task.plan.request))


# Damage


@pytest.mark.parametrize(("kind", "hit"), [("video", {"eye", "omni"}), ("audio", {"ear", "omni"})])
def test_damage_masks_the_windows_that_need_it_and_changes_no_other(
    film: Path,
    requests: dict[str, str],
    whole: dict[str, ModelTask],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    hit: set[str],
) -> None:
    broken, begin, end = damage(film, tmp_path / film.name, kind, 15.6, 15.7)
    stimulus = probe_stimulus(broken, film.name)
    given: list[dict[str, Any]] = []
    tasks = tasks_of(broken, list(requests.values()), tmp_path / "store", given.append)
    with caplog.at_level(logging.WARNING, logger="bids_mllm"):
        extract(broken, tasks, tmp_path / "store")
    for task in tasks:
        key, rows = task.spec.key, manifest(stimulus, task)["entries"]
        masked = {int(window): reason for window, reason in rows[0]["masked"].items()}
        assert all(row["masked"] == rows[0]["masked"] for row in rows)
        assert (len(masked) > 0) == (key in hit)
        starts = task.grids[0][0].starts
        # Around the damage: up to the next key frame for pictures, and what the decoder needs to settle for sound.
        assert all(begin - 1.49 <= starts[window] <= end + 0.5 for window in masked)
        assert {int(np.floor(15.65 / 1.49))} & set(masked) or key not in hit
        assert all(reason.startswith(f"The stimulus {film.name} is damaged from 15.") for reason in masked.values())
        kept = [window for window in range(N_WINDOWS) if window not in masked]
        for condition, values in values_of(task).items():
            assert np.isnan(values[sorted(masked)]).all()
            np.testing.assert_array_equal(values[kept], values_of(whole[key])[condition][kept])
        for row in rows:
            if row["pooling"] == "generated":
                condition = Condition("generated", row["instruction"])
                said = task.grids[0][1][condition].texts()
                before = whole[key].grids[0][1][condition].texts()
                assert said == tuple("" if window in masked else text for window, text in enumerate(before))
        # Where a clip stands in its batch, and how many there are, changes last bits: a masked one is stood in for.
        batches = [event["windows"] for event in given if event["model"] == key]
        expected = [list(range(first, first + 4)) for first in range(0, N_WINDOWS, 4)]
        assert len(batches) == len([batch for batch in expected if set(batch) - set(masked)])
        for batch in batches:
            [own] = [windows for windows in expected if set(windows) & set(batch)]
            assert len(batch) == 4
            assert [w for w, place in zip(batch, own, strict=True) if place not in masked] == [
                place for place in own if place not in masked
            ]
        for window, reason in masked.items():
            assert f"Window {window} of {film.name} is left out: {reason}" in caplog.messages


def test_wherever_pictures_are_damaged_what_is_not_masked_is_what_it_was(film: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)

    def look(path: Path) -> list[ClipMedia]:
        """Every picture."""
        request = MediaRequest("video", n_frames=1)
        clips = [Clip("film.mkv", k, k / 12, k / 12 + 0.08) for k in range(int(SECONDS * 12) - 2)]
        return [media for _, media in read_film(probe_stimulus(path, "film.mkv"), [ClipJob(clips, request)])]

    whole = look(film)
    n_masked = 0
    for begin in rng.uniform(0.5, SECONDS - 5.0, 8):
        broken, first, _ = damage(film, tmp_path / "film.mkv", "video", begin, begin + rng.uniform(0.1, 1.0))
        for one, other in zip(look(broken), whole, strict=True):
            n_masked += one.fault is not None
            if one.fault is None:
                np.testing.assert_array_equal(one.frames, other.frames)
            else:
                assert one.clip.end > first
    assert 8 < n_masked < 8 * 12 * 4


def test_a_film_that_is_all_damage_is_all_masked(film: Path, requests: dict[str, str], tmp_path: Path) -> None:
    broken, _, _ = damage(film, tmp_path / film.name, "video", 3.0, 24.0)
    seen: list[int] = []
    [task] = tasks_of(broken, [requests["eye"]], tmp_path / "store", lambda event: seen.extend(event["windows"]))
    extract(broken, [task], tmp_path / "store")
    masked = task.entries[0].masked()
    # A whole batch, and a whole chunk, without one window that can be read.
    assert set(range(8, 16)) <= set(masked)
    assert set(range(24)) - set(masked) <= set(seen)
    assert task.grids[0][1][Condition("generated", "AR")].texts()[8:16] == ("",) * 8


# Sound that is not there


def test_a_film_without_sound_fails_the_models_that_listen_alone(
    film: Path, requests: dict[str, str], tmp_path: Path
) -> None:
    mute = remux(film, tmp_path / film.name, kinds=("video",))
    tasks = tasks_of(mute, [requests["ear"], requests["omni"], requests["eye"]], tmp_path / "store")
    message = r"^The model ear needs sound, which film\.mkv does not have; leave the model out or give a file that has"
    with pytest.raises(StimulusError, match=message) as caught:
        extract(mute, tasks, tmp_path / "store")
    assert str(caught.value).count(". ") == 0
    assert [task.complete for task in tasks] == [False, False, True]
    with pytest.raises(StimulusError, match=r"^The model omni needs pictures and sound, which"):
        extract(mute, tasks[1:2], tmp_path / "store")


def test_silence_gives_features_that_are_finite_and_all_alike(
    requests: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(films, "random_sound", lambda seconds, _: np.zeros(round(seconds * 16000), dtype=np.float32))
    silent = tmp_path / "silent.mkv"
    write_film(silent, seconds=12.0, seed=1)
    tasks = tasks_of(silent, [requests["ear"], "melspectrogram", requests["omni"]], tmp_path / "store")
    extract(silent, tasks, tmp_path / "store")
    for task in tasks:
        for values in values_of(task).values():
            assert np.isfinite(values).all()
            if task.plan.request.media == "audio":
                np.testing.assert_allclose(values, np.broadcast_to(values[:1], values.shape), rtol=1e-3, atol=1e-4)


def test_a_film_shorter_than_one_window_has_entries_without_windows(requests: dict[str, str], tmp_path: Path) -> None:
    short = tmp_path / "short.mkv"
    write_film(short, seconds=1.0, seed=1)
    assert grid_of(short).n_windows == 0
    tasks = tasks_of(short, list(requests.values()), tmp_path / "store", fail)
    extract(short, tasks, tmp_path / "store")
    stimulus = probe_stimulus(short, short.name)
    for task in tasks:
        assert task.complete
        rows = json.loads(json.dumps(manifest(stimulus, task)))["entries"]
        assert {(row["n_windows"], str(row["masked"])) for row in rows} == {(0, "{}")}
        assert all(entry.read(0).shape == (0, task.plan.width) for entry in task.entries)
        assert write_texts(tmp_path / "texts", stimulus, task) == []


def fail(_: object) -> None:
    raise AssertionError("the model was run")


# Checkpoints that are not as they should be


def test_models_that_cannot_be_loaded_or_overflow_do_not_keep_the_others(
    film: Path, requests: dict[str, str], whole: dict[str, ModelTask], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut, hot = (Path(shutil.copytree(requests["eye"].partition("=")[2], tmp_path / name)) for name in ("cut", "hot"))
    weights = hot / "model.safetensors"
    tensors = load(weights.read_bytes())
    [norm] = [name for name in tensors if name.endswith("model.norm.weight")]
    tensors[norm] = torch.full_like(tensors[norm], torch.inf)
    save_file(tensors, weights, metadata={"format": "pt"})
    tasks = tasks_of(film, [f"hot={hot}", f"cut={cut}", requests["ear"]], tmp_path / "store")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    # What cannot be loaded fails before what overflows; the sentence of the other is kept too.
    with pytest.raises(CheckpointError, match=r"cut/model\.safetensors is truncated or damaged") as caught:
        extract(film, tasks, tmp_path / "store")
    assert str(caught.value).count("\n") == 0
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert re.match(r"hot gave a non-finite generatedAR feature in layer 4 for film\.mkv at 0\.00 s; run it with", said)
    assert [task.complete for task in tasks] == [False, False, True]
    assert list((tmp_path / "store" / ".claims").iterdir()) == []
    for condition, values in values_of(tasks[2]).items():
        np.testing.assert_array_equal(values, values_of(whole["ear"])[condition])


# Memory


class Loading:
    """Families that note what is loaded and closed, and may find too little memory."""

    def __init__(self, refuse: Callable[[str, list[str]], bool] = lambda key, there: False) -> None:
        self.log: list[str] = []
        self._there: list[str] = []
        self._refuse = refuse

    def around(self, task: ModelTask, weight_bytes: int) -> ModelTask:
        cost = Cost(flops=1.0, weight_bytes=weight_bytes, clip_bytes=1)
        family = replace(task.family, load=lambda *given: self._load(task, *given))
        return replace(task, family=family, plan=replace(task.plan, cost=cost))

    def _load(self, task: ModelTask, spec: ModelSpec, readout: ReadOut, device: str) -> Extractor:
        if self._refuse(spec.key, self._there):
            self.log.append(f"no room for {spec.key}")
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14 GiB.")
        extractor = task.family.load(spec, readout, device)
        self.log.append(f"load {spec.key}")
        self._there.append(spec.key)
        close = extractor.close

        def closed() -> None:
            close()
            self.log.append(f"close {spec.key}")
            self._there.remove(spec.key)

        extractor.close = closed  # type: ignore[method-assign]
        return extractor


def test_models_run_together_as_far_as_their_weights_fit(
    film: Path,
    requests: dict[str, str],
    whole: dict[str, ModelTask],
    tmp_path: Path,
    decodings: Counter[tuple[str, int]],
) -> None:
    loading = Loading()
    tasks = tasks_of(film, list(requests.values()), tmp_path)
    tasks = [loading.around(task, size) for task, size in zip(tasks, (40, 60, 30), strict=True)]
    decodings.clear()
    extract(film, tasks, tmp_path, Machine("cpu", lambda: 100 / WEIGHTS_SHARE))
    assert loading.log == ["load eye", "load ear", "close eye", "close ear", "load omni", "close omni"]
    # Pictures for eye and for omni, sound for ear and for omni: two passes.
    assert without_start(decodings) == {2}
    assert contents(tmp_path) == contents(whole["eye"].entries[0].path.parents[1])


def test_a_model_larger_than_all_memory_is_tried_alone(film: Path, requests: dict[str, str], tmp_path: Path) -> None:
    loading = Loading()
    tasks = tasks_of(film, [requests["eye"], requests["ear"]], tmp_path)
    extract(film, [loading.around(task, 10**12) for task in tasks], tmp_path, Machine("cpu", lambda: 100.0))
    assert loading.log == ["load eye", "close eye", "load ear", "close ear"]


def test_weights_that_do_not_fit_beside_others_wait_for_their_turn(
    film: Path, requests: dict[str, str], tmp_path: Path
) -> None:
    loading = Loading(lambda key, there: key == "ear" and bool(there))
    tasks = tasks_of(film, list(requests.values()), tmp_path)
    extract(film, [loading.around(task, 1) for task in tasks], tmp_path, Machine("cpu", lambda: 100.0))
    assert all(task.complete for task in tasks)
    assert loading.log == [
        "load eye", "no room for ear", "close eye", "load ear", "load omni", "close ear", "close omni",
    ]  # fmt: skip


def test_weights_that_do_not_fit_at_all_are_one_sentence(film: Path, requests: dict[str, str], tmp_path: Path) -> None:
    loading = Loading(lambda key, _: key == "eye")
    tasks = [loading.around(task, 1) for task in tasks_of(film, [requests["eye"], requests["ear"]], tmp_path)]
    with pytest.raises(BidsMllmError, match=r"^The weights of eye do not fit into the memory of cpu; use a device"):
        extract(film, tasks, tmp_path)
    assert [task.complete for task in tasks] == [False, True]


def test_an_error_that_is_not_about_memory_is_not_hidden(film: Path, requests: dict[str, str], tmp_path: Path) -> None:
    [task] = tasks_of(film, [requests["eye"]], tmp_path)

    def load(*_: object) -> Extractor:
        raise RuntimeError("a mistake of the program")

    with pytest.raises(RuntimeError, match="a mistake of the program"):
        extract(film, [replace(task, family=replace(task.family, load=load))], tmp_path)
    assert list((tmp_path / ".claims").iterdir()) == []


def test_running_out_of_memory_in_the_middle_halves_the_batch(
    film: Path, requests: dict[str, str], whole: dict[str, ModelTask], tmp_path: Path
) -> None:
    given: list[list[int]] = []

    def note(event: dict[str, Any]) -> None:
        given.append(event["windows"])
        if len(event["windows"]) > 2 and event["windows"][0] >= 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    tasks = tasks_of(film, [requests["eye"], requests["ear"]], tmp_path, note)
    extract(film, tasks[:1], tmp_path)
    assert [len(windows) for windows in given] == [4, 4, 4, *[2] * 8]
    assert [window for windows in given if len(windows) == 2 or windows[0] < 8 for window in windows] == list(range(24))
    for condition, values in values_of(tasks[0]).items():
        np.testing.assert_allclose(values, values_of(whole["eye"])[condition], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("clip_bytes", "sizes"), [(1, [8, 8, 8]), (100, [4] * 6), (350, [2] * 12), (10**6, [1] * 24)])
def test_batches_are_of_the_size_that_memory_allows(
    film: Path, requests: dict[str, str], tmp_path: Path, clip_bytes: int, sizes: list[int]
) -> None:
    given: list[int] = []
    [task] = tasks_of(film, [requests["eye"]], tmp_path, lambda e: given.append(len(e["windows"])), batch_size=32)
    task = replace(task, plan=replace(task.plan, cost=Cost(1.0, 1, clip_bytes)))
    extract(film, [task], tmp_path, Machine("cpu", lambda: 1000.0))
    assert given == sizes


def test_memory_does_not_grow_with_the_film(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From half a minute to six: nothing is kept of what was written, and little is read ahead of a slow model."""
    monkeypatch.setattr(store_module, "WINDOWS_PER_CHUNK", 16)
    peaks = []
    for repeat in (1, 10):
        long = remux(film, tmp_path / f"{repeat}.mkv", repeat=repeat)
        command = [*PEAK, str(long), str(tmp_path / f"store{repeat}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
        n_windows, peak = map(int, done.stdout.split())
        assert n_windows == int((SECONDS * repeat - 1.49) / 1.49) + 1
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 12_000


PEAK = (
    sys.executable, "-W", "ignore", "-c",
    "import sys; from pathlib import Path; import film_jobs as j; from bids_mllm.io import store; "
    "store.WINDOWS_PER_CHUNK = 16; film, folder = map(Path, sys.argv[1:]); "
    "[task] = j.tasks_of(film, ['melspectrogram'], folder, delay=0.005); j.extract(film, [task], folder); "
    "print(task.entries[0].n_windows, Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])",
)  # fmt: skip


# What is seen of it


def test_the_bar_counts_the_windows_that_are_to_be_done(
    film: Path, requests: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []

    class Seen(tqdm):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.totals = [self.total]
            bars.append(self)

        def update(self, n: float | None = 1) -> bool | None:
            self.totals.append(self.total)
            return super().update(n)

    monkeypatch.setattr(extraction, "tqdm", Seen)
    tasks = tasks_of(film, [requests["eye"], requests["ear"]], tmp_path)
    extract(film, tasks, tmp_path)
    assert [(bar.n, bar.total, set(bar.totals)) for bar in bars] == [(48, 48, {48})]
    assert bars[0].desc.strip(": ") == "eye ear film.mkv"
    assert bars[0].unit == "clip"
    # A chunk of the one and two of the other are wanted again; a model that is complete is not named.
    bars.clear()
    tasks[0].entries[0].address(1).path.unlink()
    extract(film, tasks_of(film, [requests["eye"], requests["ear"]], tmp_path), tmp_path)
    assert [(bar.n, bar.total, bar.desc.strip(": ")) for bar in bars] == [(8, 8, "eye film.mkv")]
    bars.clear()
    extract(film, tasks, tmp_path)
    assert bars == []


# Stores


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_complete_store_serves_where_it_cannot_be_written(film: Path, requests: dict[str, str], disk: Path) -> None:
    [task] = tasks_of(film, [requests["eye"]], disk)
    extract(film, [task], disk)
    before = {path: path.stat().st_mtime_ns for path in disk.rglob("*")}
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    [again] = tasks_of(film, [requests["eye"]], disk)
    unloaded = replace(again.family, load=fail)
    extract(film, [replace(again, family=unloaded)], disk)
    rows = manifest(probe_stimulus(film, film.name), again)["entries"]
    assert len(rows) == 5
    assert again.entries[0].read(1).shape == (N_WINDOWS, again.plan.width)
    assert {path: path.stat().st_mtime_ns for path in disk.rglob("*")} == before


def test_an_incomplete_store_that_cannot_be_written_is_one_sentence(
    film: Path, requests: dict[str, str], disk: Path
) -> None:
    [task] = tasks_of(film, [requests["eye"]], disk)
    extract(film, [task], disk)
    task.entries[0].address(2).path.unlink()
    shutil.rmtree(disk / ".claims")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StoreError, match=r"is on a read-only file system; choose another --features-dir") as caught:
        extract(film, tasks_of(film, [requests["eye"]], disk, fail), disk)
    assert "\n" not in str(caught.value)


def test_a_full_store_is_one_sentence_and_goes_on_from_its_parts(
    film: Path, requests: dict[str, str], disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bids_mllm.interfaces.grid_work.PART_SECONDS", 0.0)
    seen: list[int] = []
    tasks = tasks_of(film, [requests["eye"]], disk, lambda event: seen.extend(event["windows"]))
    (disk / "ballast").write_bytes(bytes(1024 * 1024 - 120 * 1024))
    with pytest.raises(StoreError, match=r"^The disk that holds .* is full \(.*: what was finished is kept\.$"):
        extract(film, tasks, disk)
    assert 0 < len(seen) < N_WINDOWS
    (disk / "ballast").unlink()
    extract(film, tasks, disk)
    assert tasks[0].complete
    assert len(seen) <= N_WINDOWS + 8
    assert not [path for path in contents(disk) if path.startswith((".parts", ".claims"))]


def test_windows_of_several_grids_are_one_pass(
    film: Path,
    requests: dict[str, str],
    whole: dict[str, ModelTask],
    tmp_path: Path,
    decodings: Counter[tuple[str, int]],
) -> None:
    grids = [grid_of(film), WindowGrid(0.7, 1.49, 1.49, 10)]
    [task] = tasks_of(film, [requests["eye"]], tmp_path, grids=grids)
    decodings.clear()
    extract(film, [task], tmp_path)
    assert without_start(decodings) == {1}
    for condition, entry in task.grids[0][1].items():
        np.testing.assert_array_equal(entry.read(), values_of(whole["eye"])[condition])
    assert {entry.read().shape[0] for entry in task.grids[1][1].values()} == {10}
    stimulus = probe_stimulus(film, film.name)
    assert len(manifest(stimulus, task)["entries"]) == 2 * 5
    [path, _] = write_texts(tmp_path / "texts", stimulus, task)
    assert len(path.read_text().splitlines()) == 1 + 24 + 10


def test_a_store_is_told_of_what_it_serves(film: Path, tmp_path: Path) -> None:
    """Another film, another grid or another decoder is another entry; the path of the film is not."""
    [task] = tasks_of(film, ["melspectrogram"], tmp_path)
    moved = Path(shutil.copy(film, tmp_path / "elsewhere.mkv"))
    [same] = tasks_of(moved, ["melspectrogram"], tmp_path)
    assert same.entries == task.entries
    other = tmp_path / "other.mkv"
    write_film(other, seconds=SECONDS, seed=2)
    [different] = tasks_of(other, ["melspectrogram"], tmp_path)
    assert different.entries != task.entries
