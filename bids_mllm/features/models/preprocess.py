"""Frames to patches for Qwen2-VL towers, in torch alone, with the numbers of the reference processor.

The reference is `Qwen2VLVideoProcessor` of transformers; it needs torchvision, which has no build for
every machine.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from bids_mllm.exceptions import StimulusError
from bids_mllm.features.models.frames import FrameSettings

MAX_ASPECT_RATIO = 200


def smart_resize(height: int, width: int, settings: FrameSettings) -> tuple[int, int]:
    """Return the (height, width) in pixels to which a frame is resized.

    Both are multiples of ``patch_size * merge_size``, their product lies within the pixel bounds, and
    the aspect ratio is kept as far as these two allow.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise StimulusError(
            f"Frames of {height} x {width} pixels are too elongated; the model takes an aspect ratio of at "
            f"most {MAX_ASPECT_RATIO}."
        )
    factor = settings.patch_size * settings.merge_size
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > settings.max_pixels:
        shrink = math.sqrt(height * width / settings.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < settings.min_pixels:
        stretch = math.sqrt(settings.min_pixels / (height * width))
        new_height = math.ceil(height * stretch / factor) * factor
        new_width = math.ceil(width * stretch / factor) * factor
    return new_height, new_width


def _normalise(frames: torch.Tensor, settings: FrameSettings) -> torch.Tensor:
    """Return float32 frames; rescaling is fused into mean and deviation, as in the reference."""
    mean = torch.tensor(settings.mean) * (1.0 / settings.rescale_factor)
    std = torch.tensor(settings.std) * (1.0 / settings.rescale_factor)
    return frames.to(torch.float32).sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


def _patchify(frames: torch.Tensor, settings: FrameSettings) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Cut frames (n_frames, 3, height, width) into patches, the patches of one token side by side."""
    missing = -len(frames) % settings.temporal_patch_size
    if missing:
        frames = torch.cat((frames, frames[-1:].expand(missing, -1, -1, -1)))
    n_frames, n_channels, height, width = frames.shape
    patch, merge, temporal = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    grid = (n_frames // temporal, height // patch, width // patch)
    blocks = frames.reshape(
        grid[0], temporal, n_channels, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch
    )
    # To (time, token row, token column, patch row, patch column | channel, frame, pixel row, pixel column).
    patches = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return patches.reshape(math.prod(grid), n_channels * temporal * patch * patch), grid


def preprocess_frames(frames: NDArray[np.uint8], settings: FrameSettings) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Return the patches of one clip and its grid.

    Parameters
    ----------
    frames : (n_frames, height, width, 3) uint8 array
        An odd number of frames is filled up by repeating the last one.
    settings
        Sizes and statistics.

    Returns
    -------
    patches : (time * rows * columns, 3 * temporal_patch_size * patch_size ** 2) float32 tensor
    grid : (time, rows, columns)
        In patches; a token covers ``merge_size ** 2`` of them.
    """
    # The resize stays on the CPU in uint8: on an accelerator it would round otherwise.
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).contiguous()
    size = smart_resize(images.shape[-2], images.shape[-1], settings)
    if size != tuple(images.shape[-2:]):
        images = torch.nn.functional.interpolate(
            images, size=list(size), mode="bicubic", align_corners=False, antialias=True
        )
    return _patchify(_normalise(images, settings), settings)
