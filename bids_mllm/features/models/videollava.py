"""The Video-LLaVA family: eight CLIP frames with all their tokens before Vicuna."""

from collections.abc import Mapping
from typing import Any

from bids_mllm.features.models.architecture import Architecture
from bids_mllm.features.models.frame_inputs import patch_grid, prepare_videos, settle_frames
from bids_mllm.features.models.instructed import instructed_family

N_FRAMES = 8


def count_tokens(config: Mapping[str, Any], height: int, width: int, n_frames: int) -> int:
    """Return the media tokens of a clip: each frame's patches and its class token."""
    rows, columns = patch_grid(config, height, width)
    return n_frames * (rows * columns + 1)


ARCHITECTURE = Architecture(
    name="videollava",
    model_types=("video_llava",),
    model_class="VideoLlavaForConditionalGeneration",
    media_tokens=("video_token_id",),
    placeholders=("video",),
    parameters=("n_frames",),
    settle=settle_frames("VideoLlavaVideoProcessor", count_tokens, fixed=N_FRAMES),
    prepare=prepare_videos("<video>", count_tokens),
    towers=("model.video_tower",),
)
FAMILY = instructed_family(ARCHITECTURE)
