"""The InternVL family: every frame an image with a name of its own, before Qwen2 or Qwen3.

It serves as a baseline that learns in context: demonstrations stand before each clip.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bids_mllm.features.models.architecture import Architecture, MediaBatch, Setup
from bids_mllm.features.models.frame_inputs import patch_grid, pixel_values, settle_frames
from bids_mllm.features.models.instructed import instructed_family
from bids_mllm.records import ClipMedia

VIDEO, BEGIN, CONTEXT, END = "<video>", "<img>", "<IMG_CONTEXT>", "</img>"


def count_tokens(config: Mapping[str, Any], height: int, width: int, n_frames: int) -> int:
    """Return the media tokens of a clip: of each frame its patches, merged by the downsampling ratio."""
    patch = config["vision_config"]["patch_size"]
    side = patch if isinstance(patch, int) else patch[0]
    rows, columns = patch_grid({"vision_config": {"patch_size": side}}, height, width)
    ratio = float(config.get("downsample_ratio", 0.5))
    return n_frames * int(rows * ratio) * int(columns * ratio)


def prepare(clips: Sequence[ClipMedia], setup: Setup) -> MediaBatch:
    """Return the pixel values of all frames, (n_clips * n_videos * n_frames, 3, height, width)."""
    n_frames = setup.media.request.n_frames
    videos = [video for clip in clips for video in setup.with_demonstrations(clip)]
    values = pixel_values(videos, setup.media.values, n_frames)
    n_tokens = count_tokens(setup.config, values.shape[-2], values.shape[-1], n_frames)
    frame = BEGIN + CONTEXT * (n_tokens // n_frames) + END
    video = "\n".join(f"Frame{number}: {frame}" for number in range(1, n_frames + 1))
    return MediaBatch(
        tensors={"pixel_values": values.flatten(0, 1)},
        expand=lambda rendered: rendered.replace(VIDEO, video),
        n_tokens=n_tokens,
        shape=n_tokens,
    )


ARCHITECTURE = Architecture(
    name="internvl",
    model_types=("internvl",),
    model_class="InternVLForConditionalGeneration",
    media_tokens=("image_token_id",),
    placeholders=("video",),
    parameters=("n_frames",),
    settle=settle_frames("InternVLVideoProcessor", count_tokens),
    prepare=prepare,
    towers=("model.vision_tower",),
    demonstrations=True,
)
FAMILY = instructed_family(ARCHITECTURE)
