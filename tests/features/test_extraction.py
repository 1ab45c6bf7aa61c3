"""Batches of a real tiny model: smaller where memory runs out, in order, and every feature finite."""

import gc
import math
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from bids_mllm.exceptions import BidsMllmError, StimulusError
from bids_mllm.features.extraction import (
    BATCH_MEDIA_BYTES,
    SHARE_OF_FREE,
    BatchRunner,
    choose_batch_size,
    extract_clips,
    join_extracted,
)
from bids_mllm.features.extractor import Cost, Extracted, ExtractionPlan, Extractor, ReadOut
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models.memory import free_bytes, is_out_of_memory
from bids_mllm.features.models.qwen25vl import FAMILY
from bids_mllm.features.models.tiny import save_tiny_qwen25vl
from bids_mllm.records import Clip, ClipMedia, Condition, MediaRequest, ModelSpec

READOUT = ReadOut(1.49, ("last", "generated", "media"), load_instructions()[:2], max_new_tokens=2)
CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)


class Refusing:
    """A loaded model that runs out of memory with more than so many clips."""

    def __init__(self, extractor: Extractor, most: int, error: Callable[[], BaseException]) -> None:
        self._extractor, self._most, self._error = extractor, most, error
        self.asked: list[int] = []

    def extract(self, clips: Sequence[ClipMedia]) -> Extracted:
        self.asked.append(len(clips))
        if len(clips) > self._most:
            raise self._error()
        return self._extractor.extract(clips)

    def close(self) -> None:
        self._extractor.close()


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = save_tiny_qwen25vl(tmp_path_factory.mktemp("checkpoint") / "tiny")
    return ModelSpec("tiny", "qwen25vl", "video", str(folder), kind="instruction-tuned video")


@pytest.fixture(scope="module")
def plan(spec: ModelSpec) -> ExtractionPlan:
    return FAMILY.plan(spec, READOUT)


@pytest.fixture(scope="module")
def extractor(spec: ModelSpec) -> Extractor:
    return FAMILY.load(spec, READOUT, "cpu")


@pytest.fixture(scope="module")
def clips() -> list[ClipMedia]:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, size=(11, 4, 56, 56, 3)).astype(np.uint8)
    return [ClipMedia(Clip("film.mp4", i, 1.49 * i, 1.49 * (i + 1)), frames=frames[i]) for i in range(len(frames))]


@pytest.fixture(scope="module")
def expected(extractor: Extractor, clips: list[ClipMedia]) -> list[Extracted]:
    """What the model gives for each clip alone."""
    return [extractor.extract([clip]) for clip in clips]


def assert_expected(found: Extracted, expected: Sequence[Extracted]) -> None:
    assert list(found.features) == list(expected[0].features)
    for condition, values in found.features.items():
        alone = np.concatenate([one.features[condition] for one in expected])
        np.testing.assert_allclose(values, alone, rtol=0, atol=1e-5 * np.abs(alone).max())
    assert found.texts == {
        condition: tuple(one.texts[condition][0] for one in expected) for condition in expected[0].texts
    }


ERRORS = {
    "device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore lines."),
    "python": MemoryError,
    "cpu": lambda: RuntimeError(CPU_MESSAGE),
}
EACH_ERROR = pytest.mark.parametrize("error", ERRORS)


@pytest.mark.parametrize(
    ("batch_size", "most", "asked", "error"),
    [
        (8, 8, [8, 3], "device"),
        (8, 2, [8, 4, 2, 2, 2, 2, 2, 1], "device"),
        (8, 3, [8, 4, 2, 2, 2, 2, 2, 1], "python"),
        (16, 4, [11, 5, 2, 2, 2, 2, 2, 1], "cpu"),
        (4, 1, [4, 2, *[1] * 11], "device"),
    ],
)
def test_where_memory_runs_out_batches_are_halved_and_nothing_is_lost(
    batch_size: int,
    most: int,
    asked: list[int],
    error: str,
    extractor: Extractor,
    plan: ExtractionPlan,
    clips: list[ClipMedia],
    expected: list[Extracted],
) -> None:
    refusing = Refusing(extractor, most, ERRORS[error])
    runner = BatchRunner(refusing, plan, model="tiny", batch_size=batch_size)
    assert_expected(runner.run(clips), expected)
    assert refusing.asked == asked


def test_a_smaller_batch_stays_small(extractor: Extractor, plan: ExtractionPlan, clips: list[ClipMedia]) -> None:
    refusing = Refusing(extractor, 2, MemoryError)
    runner = BatchRunner(refusing, plan, model="tiny", batch_size=4)
    runner.run(clips[:4])
    runner.run(clips[4:8])
    assert refusing.asked == [4, 2, 2, 2, 2]
    assert runner.batch_size == 2


@EACH_ERROR
def test_one_clip_that_does_not_fit_ends_with_one_sentence(
    error: str, extractor: Extractor, plan: ExtractionPlan, clips: list[ClipMedia]
) -> None:
    refusing = Refusing(extractor, 0, ERRORS[error])
    runner = BatchRunner(refusing, plan, model="tiny", batch_size=4)
    with pytest.raises(
        BidsMllmError, match=r"tiny runs out of memory with one clip .*; ask for fewer frames"
    ) as caught:
        runner.run(clips)
    assert refusing.asked == [4, 2, 1]
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_error_that_is_not_about_memory_is_not_tried_again(
    extractor: Extractor, plan: ExtractionPlan, clips: list[ClipMedia]
) -> None:
    refusing = Refusing(extractor, 1, lambda: RuntimeError("expected scalar type Half but found Float"))
    with pytest.raises(RuntimeError, match="expected scalar type"):
        BatchRunner(refusing, plan, model="tiny", batch_size=4).run(clips)
    assert refusing.asked == [4]
    with pytest.raises(StimulusError, match="has none of the 4 frames"):
        BatchRunner(extractor, plan, model="tiny", batch_size=4).run([replace(clips[0], frames=None)])


def test_what_a_failed_batch_held_is_free_before_the_next(
    extractor: Extractor, plan: ExtractionPlan, clips: list[ClipMedia]
) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    class Holding(Refusing):
        def extract(self, clips: Sequence[ClipMedia]) -> Extracted:
            assert all(reference() is None for reference in held)
            large = torch.zeros(1000)
            held.append(weakref.ref(large))
            return super().extract(clips)

    BatchRunner(Holding(extractor, 1, MemoryError), plan, model="tiny", batch_size=4).run(clips[:4])
    gc.collect()
    assert len(held) == 6


def test_extract_clips_takes_media_as_they_are_needed(
    extractor: Extractor, plan: ExtractionPlan, clips: list[ClipMedia], expected: list[Extracted]
) -> None:
    drawn: list[int] = []
    refusing = Refusing(extractor, 4, MemoryError)

    def media() -> Iterator[ClipMedia]:
        for clip in clips:
            drawn.append(len(refusing.asked))
            yield clip

    found = extract_clips(refusing, replace(plan, batch_size=4), media(), model="tiny")
    assert drawn == [0] * 4 + [1] * 4 + [2] * 3
    assert refusing.asked == [4, 4, 3]
    for condition, values in found.items():
        alone = np.concatenate([one.features[condition] for one in expected])
        np.testing.assert_allclose(values, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_damaged_media_never_reach_the_model(
    extractor: Extractor, plan: ExtractionPlan, clips: list[ClipMedia]
) -> None:
    refusing = Refusing(extractor, 4, MemoryError)
    damaged = replace(clips[1], frames=None, fault="film.mp4 is damaged at 1.5 s.")
    with pytest.raises(StimulusError, match=r"film\.mp4 is damaged at 1\.5 s"):
        extract_clips(refusing, plan, [clips[0], damaged], model="tiny")
    assert refusing.asked == []


@pytest.mark.parametrize(("layer", "name"), [(2, "layers.1.mlp.down_proj.weight"), (4, "model.norm.weight")])
def test_a_feature_that_is_not_finite_is_named(
    layer: int, name: str, spec: ModelSpec, plan: ExtractionPlan, clips: list[ClipMedia], tmp_path: Path
) -> None:
    folder = shutil.copytree(spec.source, tmp_path / "overflowing")
    tensors = load((folder / "model.safetensors").read_bytes())
    (key,) = [found for found in tensors if found.endswith(name)]
    tensors[key] = torch.full_like(tensors[key], math.inf)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = FAMILY.load(replace(spec, source=str(folder)), replace(READOUT, poolings=("last",)), "cpu")
    runner = BatchRunner(loaded, replace(plan, conditions=plan.conditions[:2]), model="tiny", batch_size=4)
    message = rf"tiny gave a non-finite lastAR feature in layer {layer} for film\.mp4 at 4\.47 s; run it with dtype"
    with pytest.raises(BidsMllmError, match=message):
        runner.run(clips[3:5])


def test_batches_are_joined_in_order(expected: list[Extracted]) -> None:
    joined = join_extracted(expected[:3])
    assert_expected(joined, expected[:3])
    assert joined.features[Condition("media")].shape == (3, 5, 48)
    again = join_extracted([join_extracted(expected[:2]), expected[2]])
    for condition, values in joined.features.items():
        np.testing.assert_array_equal(values, again.features[condition])


def batch_plan(batch_size: int, clip_bytes: int | None) -> ExtractionPlan:
    cost = None if clip_bytes is None else Cost(flops=1.0, weight_bytes=1, clip_bytes=clip_bytes)
    return ExtractionPlan({}, MediaRequest("video"), (), 1, 1, batch_size=batch_size, cost=cost)


@pytest.mark.parametrize(
    ("batch_size", "clip_bytes", "free", "media_bytes", "expected"),
    [
        # The plan's own bound, rounded down to a power of two.
        (8, 1, 1e12, 1, 8),
        (7, 1, 1e12, 1, 4),
        (1, 1, 1e12, 1, 1),
        (32, None, None, 1, 32),
        (32, 10**12, None, 1, 32),
        (32, None, 10.0, 1, 32),
        # 70 % of the free memory by what a clip takes: 7, 8 and less than one.
        (32, 100, 1000.0, 1, 4),
        (32, 100, 1143.0, 1, 8),
        (32, 100, 50.0, 1, 1),
        (32, 100, 0.0, 1, 1),
        (32, 0, 1e9, 1, 32),
        # Decoded media of a batch within their own bound.
        (32, 1, 1e12, 256 * 2**20 // 5, 4),
        (32, 1, 1e12, 256 * 2**20, 1),
        (32, 1, 1e12, 512 * 2**20, 1),
        (32, 1, 1e12, 0, 32),
        # The smallest of the three counts.
        (16, 100, 1000.0, 128 * 2**20, 2),
    ],
)
def test_the_size_of_a_batch(
    batch_size: int, clip_bytes: int | None, free: float | None, media_bytes: int, expected: int
) -> None:
    assert SHARE_OF_FREE == 0.7
    assert BATCH_MEDIA_BYTES == 256 * 2**20
    found = choose_batch_size(batch_plan(batch_size, clip_bytes), free_bytes=free, media_bytes=media_bytes)
    assert found == expected


def test_a_little_less_memory_gives_the_same_batch() -> None:
    sizes = {
        choose_batch_size(batch_plan(32, 100), free_bytes=free, media_bytes=1) for free in (1143.0, 1500.0, 2285.0)
    }
    assert sizes == {8}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError(CPU_MESSAGE), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError("not enough memory"), False),
    ],
)
def test_which_errors_say_that_memory_ran_out(error: Any, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_the_cpu_itself_says_so() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_free_memory_is_bounded_by_a_limit() -> None:
    assert free_bytes("cpu") > 0
    assert free_bytes("cpu", limit=1.0) == 0.0
    assert free_bytes("cpu", limit=1e18) <= free_bytes("cpu") * 1.5
