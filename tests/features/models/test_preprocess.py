"""Frames to patches, against the real processor and against cases worked out by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bids_mllm.exceptions import CheckpointError, StimulusError, UsageError
from bids_mllm.features.models.frames import (
    CLIP_MEAN,
    CLIP_STD,
    FrameSettings,
    count_frames,
    pixel_bounds,
    settings_from_config,
)
from bids_mllm.features.models.preprocess import preprocess_frames, smart_resize

SIZES = [(56, 56), (72, 128), (101, 67), (240, 427), (84, 112), (30, 200)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_frames", [4, 5])
@pytest.mark.parametrize("bounds", [(3136, 6272), (12544, 100352)])
def test_patches_equal_the_real_processor_bit_by_bit(
    real_processor: Any, size: tuple[int, int], n_frames: int, bounds: tuple[int, int]
) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (n_frames, *size, 3), dtype=np.uint8)
    patches, grid = preprocess_frames(frames, FrameSettings(*bounds))
    real = real_processor.video_processor(
        [frames],
        size={"shortest_edge": bounds[0], "longest_edge": bounds[1]},
        return_tensors="pt",
    )
    assert grid == tuple(real["video_grid_thw"][0].tolist())
    assert torch.equal(patches, real["pixel_values_videos"])


def test_patches_of_a_frame_worked_out_by_hand() -> None:
    """Two frames of 56 x 56 without resizing: each patch is a square of the normalised frame."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)
    patches, grid = preprocess_frames(frames, FrameSettings(3136, 6272))
    assert grid == (1, 4, 4)
    normal = (frames / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    # Order of patches: the 2 x 2 patches of the first token, then the token to its right, ...
    corners = [(0, 0), (0, 14), (14, 0), (14, 14), (0, 28)]
    for row, (top, left) in enumerate(corners):
        square = normal[:, top : top + 14, left : left + 14]
        np.testing.assert_allclose(patches[row].numpy().reshape(3, 2, 14, 14), square.transpose(3, 0, 1, 2), atol=1e-6)


def test_odd_frames_are_filled_by_the_last(make_clips: Callable[..., Any]) -> None:
    frames = make_clips(1, n_frames=3)[0].frames
    filled = np.concatenate([frames, frames[-1:]])
    settings = FrameSettings(3136, 6272)
    assert torch.equal(preprocess_frames(frames, settings)[0], preprocess_frames(filled, settings)[0])


@pytest.mark.parametrize("size", [*SIZES, (720, 1280), (20, 20), (2000, 30)])
def test_resized_frames_respect_every_bound(size: tuple[int, int]) -> None:
    settings = FrameSettings(12544, 100352)
    height, width = smart_resize(*size, settings)
    assert height % 28 == 0
    assert width % 28 == 0
    assert 12544 <= height * width <= 100352


def test_a_too_elongated_frame_is_refused() -> None:
    with pytest.raises(StimulusError, match="aspect ratio"):
        smart_resize(10, 2001, FrameSettings(3136, 6272))


@pytest.mark.parametrize(
    ("window", "expected"),
    [(1.49, 4), (2.0, 8), (0.5, 2), (0.1, 2), (1.0, 4), (3.99, 14), (4.0, 16), (30.0, 16)],
)
def test_count_frames_at_four_a_second(window: float, expected: int) -> None:
    assert count_frames(window, max_fps=4.0, max_frames=16, multiple=2) == expected


def test_count_frames_keeps_below_an_odd_bound() -> None:
    assert count_frames(10.0, max_fps=4.0, max_frames=7, multiple=2) == 6


def test_the_hub_bound_of_a_frame_is_cut_and_smaller_ones_are_kept() -> None:
    assert pixel_bounds({"min_pixels": 3136, "max_pixels": 12845056}) == (3136, 100352)
    assert pixel_bounds({"size": {"shortest_edge": 3136, "longest_edge": 6272}}) == (3136, 6272)


def test_bounds_of_the_record_win() -> None:
    settings = settings_from_config({"min_pixels": 3136}, min_pixels=6272, max_pixels=12544)
    assert (settings.min_pixels, settings.max_pixels) == (6272, 12544)
    with pytest.raises(UsageError, match="min_pixels is 20000"):
        settings_from_config({}, min_pixels=20000, max_pixels=12544)


@pytest.mark.parametrize("config", [{"do_resize": False}, {"do_normalize": False}, {"resample": 2}])
def test_steps_that_are_not_supported_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="processor file sets"):
        settings_from_config(config)
