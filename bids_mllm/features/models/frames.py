"""How the frames of a clip are chosen, sized and cut: plain settings, without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bids_mllm.exceptions import CheckpointError, UsageError

# The reference processor's own defaults (OpenAI CLIP statistics), used where a checkpoint's file is silent.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3
MIN_PIXELS = 16 * 28 * 28
MAX_PIXELS = 128 * 28 * 28


@dataclass(frozen=True)
class FrameSettings:
    """How frames become patches.

    `min_pixels` and `max_pixels` bound the pixels of one resized frame; `patch_size` and `merge_size`
    are the side of a patch in pixels and of a token in patches; `temporal_patch_size` is the number of
    frames that share a token.
    """

    min_pixels: int
    max_pixels: int
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    rescale_factor: float = 1 / 255
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


def pixel_bounds(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the bounds in pixels of one frame that a checkpoint's processor file gives.

    The hub's upper bound suits single images and makes thousands of tokens of a film, so it is cut to
    `MAX_PIXELS`.
    """
    size = config.get("size") or {}
    low = config.get("min_pixels") or size.get("shortest_edge") or MIN_PIXELS
    high = config.get("max_pixels") or size.get("longest_edge") or MAX_PIXELS
    high = min(int(high), MAX_PIXELS)
    return min(int(low), high), high


def settings_from_config(
    config: Mapping[str, Any], *, min_pixels: int | None = None, max_pixels: int | None = None
) -> FrameSettings:
    """Return the settings that a checkpoint's video processor file gives.

    `min_pixels` and `max_pixels` take the place of the file's own bounds of a frame.

    Raises
    ------
    CheckpointError
        When the file asks for a step that this family does not do.
    UsageError
        When the bounds exclude each other.
    """
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise CheckpointError(
                f"The checkpoint's processor file sets {step} to false, which this family does not support."
            )
    if config.get("resample", BICUBIC) != BICUBIC:
        raise CheckpointError(
            f"The checkpoint's processor file sets resample to {config['resample']}; only {BICUBIC} "
            "(bicubic) is supported."
        )
    low, high = pixel_bounds(config)
    high = high if max_pixels is None else max_pixels
    low = min(low, high) if min_pixels is None else min_pixels
    if not 0 < low <= high:
        raise UsageError(f"min_pixels is {low} and max_pixels is {high}, but 0 < min_pixels <= max_pixels is needed.")
    return FrameSettings(
        min_pixels=low,
        max_pixels=high,
        patch_size=int(config.get("patch_size", 14)),
        merge_size=int(config.get("merge_size", 2)),
        temporal_patch_size=int(config.get("temporal_patch_size", 2)),
        rescale_factor=float(config.get("rescale_factor", 1 / 255)),
        mean=tuple(config.get("image_mean") or CLIP_MEAN),
        std=tuple(config.get("image_std") or CLIP_STD),
    )


def count_frames(window: float, *, max_fps: float, max_frames: int, multiple: int) -> int:
    """Return how many frames of a window of `window` seconds a model reads.

    The largest multiple of `multiple` (the frames that share a token) that is at most ``window * max_fps``
    and at most `max_frames`, and never fewer than `multiple`.
    """
    # The tolerance keeps 2.0 s at 4 frames a second at 8 frames whatever the last bit of the product.
    by_rate = math.floor(window * max_fps / multiple + 1e-9)
    return multiple * max(1, min(by_rate, max_frames // multiple))
