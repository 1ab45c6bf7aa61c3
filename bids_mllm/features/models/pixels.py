"""Frames to pixel values in torch alone, with the bits of the reference processors.

The references are the video and image processors of transformers that stand on torchvision, which has no
build for every machine; `settings_from_file` of `pixel_settings` says which are covered.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from bids_mllm.exceptions import StimulusError
from bids_mllm.features.models.pixel_settings import PixelSettings, resized_size


def _resize(images: torch.Tensor, settings: PixelSettings) -> torch.Tensor:
    """Return uint8 images (n, 3, height, width) in the size of the settings; one of that size is left as it is."""
    size = resized_size(images.shape[-2], images.shape[-1], settings)
    if size == tuple(images.shape[-2:]):
        return images
    return torch.nn.functional.interpolate(
        images, size=list(size), mode=settings.resample, align_corners=False, antialias=True
    )


def _crop(images: torch.Tensor, crop: tuple[int, int]) -> torch.Tensor:
    """Return the middle of images (n, 3, height, width), filled up with black where they are smaller."""
    margins = []
    for wanted, found in ((crop[1], images.shape[-1]), (crop[0], images.shape[-2])):
        missing = max(wanted - found, 0)
        margins += [missing // 2, (missing + 1) // 2]
    if any(margins):
        images = torch.nn.functional.pad(images, margins)
    top, left = (images.shape[-2] - crop[0]) // 2, (images.shape[-1] - crop[1]) // 2
    return images[..., top : top + crop[0], left : left + crop[1]]


def _rescale_and_normalise(images: torch.Tensor, settings: PixelSettings) -> torch.Tensor:
    """Return float32 images; without an offset, rescaling is fused into mean and deviation as in the reference."""
    values = images.to(torch.float32)
    factor = settings.rescale_factor
    fused = factor is not None and not settings.offset and settings.mean is not None
    if factor is not None and not fused:
        values = values * factor
        if settings.offset:
            values = values - 1
    if settings.mean is None or settings.std is None:
        return values
    scale = 1.0 / factor if fused and factor is not None else 1.0
    mean, std = torch.tensor(settings.mean) * scale, torch.tensor(settings.std) * scale
    return values.sub(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


def prepare_frames(frames: NDArray[np.uint8], settings: PixelSettings) -> torch.Tensor:
    """Return the pixel values of frames.

    Parameters
    ----------
    frames : (n_frames, height, width, 3) uint8 array
        RGB.
    settings
        From `settings_from_file`.

    Returns
    -------
    (n_frames, 3, new_height, new_width) float32 tensor on the CPU

    Raises
    ------
    StimulusError
        When the frames have another shape or type, or a side without pixels.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape or frames.dtype != np.uint8:
        raise StimulusError(
            f"The frames have shape {frames.shape} and type {frames.dtype}; (n_frames, height, width, 3) of uint8 "
            "is needed."
        )
    # The resize stays on the CPU in uint8: on an accelerator it would round otherwise.
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).contiguous()
    images = _resize(images, settings)
    if settings.crop is not None:
        images = _crop(images, settings.crop)
    return _rescale_and_normalise(images, settings).contiguous()
