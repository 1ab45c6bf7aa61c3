"""The LLaVA-NeXT-Video family: CLIP frames, pooled by two in each direction, before Vicuna."""

from collections.abc import Mapping
from typing import Any

from bids_mllm.features.models.architecture import Architecture
from bids_mllm.features.models.frame_inputs import patch_grid, prepare_videos, settle_frames
from bids_mllm.features.models.instructed import instructed_family


def count_tokens(config: Mapping[str, Any], height: int, width: int, n_frames: int) -> int:
    """Return the media tokens of a clip: a quarter of each frame's patches, the class token left out."""
    rows, columns = patch_grid(config, height, width)
    return n_frames * (rows * columns // 4)


ARCHITECTURE = Architecture(
    name="llavanextvideo",
    model_types=("llava_next_video",),
    model_class="LlavaNextVideoForConditionalGeneration",
    media_tokens=("video_token_id",),
    placeholders=("video",),
    parameters=("n_frames",),
    settle=settle_frames("LlavaNextVideoVideoProcessor", count_tokens),
    prepare=prepare_videos("<video>", count_tokens),
    towers=("model.vision_tower",),
)
FAMILY = instructed_family(ARCHITECTURE)
