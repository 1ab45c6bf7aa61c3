"""What families share that take a fixed number of frames of a fixed size: settings, pixel values, token counts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_mllm.exceptions import CheckpointError, StimulusError, UsageError
from bids_mllm.features.models import checkpoint
from bids_mllm.features.models.architecture import MediaBatch, MediaSettings, Setup
from bids_mllm.features.models.pixel_settings import PixelSettings, prepared_size, settings_from_file
from bids_mllm.records import ClipMedia, MediaRequest, ModelSpec

#: ``count(config, height, width, n_frames)``: media tokens of a clip of prepared frames.
CountTokens = Callable[[Mapping[str, Any], int, int, int], int]
DEFAULT_FRAMES = 8


def frames_of(clip: ClipMedia, n_frames: int) -> Any:
    """Return the frames of a clip, (n_frames, height, width, 3) uint8, checked."""
    if clip.frames is None or len(clip.frames) != n_frames:
        found = "none" if clip.frames is None else str(len(clip.frames))
        raise StimulusError(
            f"Clip {clip.clip.index} of {clip.clip.stim_file} has {found} of the {n_frames} frames that the model "
            "reads; check that the file has a video stream."
        )
    return clip.frames


def chosen_frames(spec: ModelSpec, *, fixed: int | None = None) -> int:
    """Return how many frames of a window a record asks for, or the one number that a model takes."""
    n_frames = spec.parameters.get("n_frames", fixed or DEFAULT_FRAMES)
    if isinstance(n_frames, bool) or not isinstance(n_frames, int) or n_frames < 1:
        raise UsageError(f"The model {spec.key} has n_frames {n_frames!r}, but must have a whole number from 1 up.")
    if fixed is not None and n_frames != fixed:
        raise UsageError(
            f"The model {spec.key} has n_frames {n_frames}, but its family takes exactly {fixed}; leave n_frames out."
        )
    return n_frames


def settle_frames(processor: str, count: CountTokens, *, fixed: int | None = None) -> Callable[..., MediaSettings]:
    """Return the `settle` of a family whose frames `processor` prepares and whose tokens `count` counts."""

    def settle(spec: ModelSpec, folder: Path, config: Mapping[str, Any], window: float) -> MediaSettings:
        pixels = settings_from_file(checkpoint.read_processor_config(folder), processor)
        n_frames = chosen_frames(spec, fixed=fixed)
        height, width = prepared_size(1, 1, pixels)
        _check_tower(folder, config, height, width)
        return MediaSettings(
            request=MediaRequest(media="video", n_frames=n_frames),
            identity={"n_frames": n_frames, **pixels.as_json()},
            n_tokens=count(config, height, width, n_frames),
            values=pixels,
        )

    return settle


def _check_tower(folder: Path, config: Mapping[str, Any], height: int, width: int) -> None:
    """Raise a CheckpointError where frames leave the processor in another size than the vision tower takes."""
    size = config["vision_config"].get("image_size")
    expected = tuple(size) if isinstance(size, list) else (size, size)
    if size is not None and (height, width) != expected:
        raise CheckpointError(
            f"{folder}: the processor makes frames of {height} x {width} pixels, but the vision tower of config.json "
            f"takes {expected[0]} x {expected[1]}; copy the checkpoint again."
        )


def pixel_values(clips: Sequence[ClipMedia], pixels: PixelSettings, n_frames: int) -> Any:
    """Return a float32 tensor (n_clips, n_frames, 3, height, width)."""
    import torch

    from bids_mllm.features.models.pixels import prepare_frames

    return torch.stack([prepare_frames(frames_of(clip, n_frames), pixels) for clip in clips])


def prepare_videos(placeholder: str, count: CountTokens) -> Callable[[Sequence[ClipMedia], Setup], MediaBatch]:
    """Return the `prepare` of a family in whose prompts `placeholder` is repeated for every media token."""

    def prepare(clips: Sequence[ClipMedia], setup: Setup) -> MediaBatch:
        values = pixel_values(clips, setup.media.values, setup.media.request.n_frames)
        n_tokens = count(setup.config, values.shape[-2], values.shape[-1], values.shape[1])
        return MediaBatch(
            tensors={"pixel_values_videos": values},
            expand=lambda rendered: rendered.replace(placeholder, placeholder * n_tokens),
            n_tokens=n_tokens,
            shape=n_tokens,
        )

    return prepare


def patch_grid(config: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of the patches of a frame."""
    patch = int(config["vision_config"]["patch_size"])
    return height // patch, width // patch
