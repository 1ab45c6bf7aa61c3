"""The Qwen2.5-VL family (also VideoChat-R1): video and instruction in, hidden states of the language model out.

Frames become patches of 14 x 14 pixels and two frames; four patches make a token. The rotary position of a token
has an axis of time in seconds, for which the model must be told how far its frames are apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bids_mllm.features.models import checkpoint
from bids_mllm.features.models.architecture import Architecture, MediaBatch, MediaSettings, Setup, through_core
from bids_mllm.features.models.frame_inputs import frames_of
from bids_mllm.features.models.frames import FrameSettings, count_frames, settings_from_config
from bids_mllm.features.models.instructed import instructed_family
from bids_mllm.records import ClipMedia, MediaRequest, ModelSpec

VIDEO_PAD = "<|video_pad|>"
VIDEO_TOKEN_TYPE = 2


def settle_frames(spec: ModelSpec, processor: Mapping[str, Any], window: float) -> tuple[FrameSettings, int, int]:
    """Return how frames are cut, how many a window of `window` seconds has, and about how many tokens they take."""
    parameters = spec.parameters
    frames = settings_from_config(
        processor, min_pixels=parameters.get("min_pixels"), max_pixels=parameters.get("max_pixels")
    )
    n_frames = count_frames(
        window,
        max_fps=float(parameters.get("max_fps", 4.0)),
        max_frames=int(parameters.get("max_frames", 16)),
        multiple=frames.temporal_patch_size,
    )
    token_pixels = (frames.patch_size * frames.merge_size) ** 2
    return frames, n_frames, n_frames // frames.temporal_patch_size * (frames.max_pixels // token_pixels)


def frame_identity(frames: FrameSettings, n_frames: int) -> dict[str, Any]:
    """Return the settings of frames as JSON-ready values."""
    return {**asdict(frames), "mean": list(frames.mean), "std": list(frames.std), "n_frames": n_frames}


def settle(spec: ModelSpec, folder: Path, config: Mapping[str, Any], window: float) -> MediaSettings:
    """Settle frames and sizes for a window in seconds."""
    frames, n_frames, n_tokens = settle_frames(spec, checkpoint.read_processor_config(folder), window)
    return MediaSettings(
        request=MediaRequest(media="video", n_frames=n_frames),
        identity=frame_identity(frames, n_frames),
        n_tokens=n_tokens,
        values=frames,
    )


def video_tensors(clips: Sequence[ClipMedia], frames: FrameSettings, n_frames: int) -> tuple[Any, Any]:
    """Return the patches of all clips and the grid of each, (n_clips, 3)."""
    import torch

    from bids_mllm.features.models.preprocess import preprocess_frames

    prepared = [preprocess_frames(frames_of(clip, n_frames), frames) for clip in clips]
    return torch.cat([patches for patches, _ in prepared]), torch.tensor([grid for _, grid in prepared])


def prepare(clips: Sequence[ClipMedia], setup: Setup) -> MediaBatch:
    """Cut the frames of clips of one size into patches."""
    import torch

    frames, n_frames = setup.media.values, setup.media.request.n_frames
    patches, grid = video_tensors(clips, frames, n_frames)
    n_tokens = int(grid[0].prod()) // frames.merge_size**2
    seconds = frames.temporal_patch_size / (n_frames / setup.window)
    return MediaBatch(
        tensors={
            "pixel_values_videos": patches,
            "video_grid_thw": grid,
            "second_per_grid_ts": torch.full((len(clips),), seconds),
        },
        expand=lambda rendered: rendered.replace(VIDEO_PAD, VIDEO_PAD * n_tokens),
        n_tokens=n_tokens,
        shape=n_tokens,
    )


def token_types(ids: Any, model: Any) -> Mapping[str, Any]:
    """Say which tokens are video, without which the positions would count them as text."""
    return {"mm_token_type_ids": (ids == model.config.video_token_id).int() * VIDEO_TOKEN_TYPE}


ARCHITECTURE = Architecture(
    name="qwen25vl",
    model_types=("qwen2_5_vl",),
    model_class="Qwen2_5_VLForConditionalGeneration",
    media_tokens=("video_token_id",),
    placeholders=("video",),
    parameters=("max_fps", "max_frames", "min_pixels", "max_pixels"),
    settle=settle,
    prepare=prepare,
    towers=("model.visual",),
    forward=through_core(arguments=token_types),
)
FAMILY = instructed_family(ARCHITECTURE)
