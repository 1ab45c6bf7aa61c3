"""The LLaVA-OneVision family: SigLIP frames, pooled by two in each direction, before Qwen2.

One token ends the video. The checkpoint's template puts the video first whatever the order of a message.
"""

import math
from collections.abc import Mapping
from typing import Any

from bids_mllm.features.models.architecture import Architecture
from bids_mllm.features.models.frame_inputs import patch_grid, prepare_videos, settle_frames
from bids_mllm.features.models.instructed import instructed_family


def count_tokens(config: Mapping[str, Any], height: int, width: int, n_frames: int) -> int:
    """Return the media tokens of a clip: a quarter of each frame's patches, rounded up by side, and one at the end."""
    rows, columns = patch_grid(config, height, width)
    return n_frames * math.ceil(rows / 2) * math.ceil(columns / 2) + 1


ARCHITECTURE = Architecture(
    name="llavaonevision",
    model_types=("llava_onevision",),
    model_class="LlavaOnevisionForConditionalGeneration",
    media_tokens=("video_token_id",),
    placeholders=("video",),
    parameters=("n_frames",),
    settle=settle_frames("LlavaOnevisionVideoProcessor", count_tokens),
    prepare=prepare_videos("<video>", count_tokens),
    towers=("model.vision_tower",),
)
FAMILY = instructed_family(ARCHITECTURE)
