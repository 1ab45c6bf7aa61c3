"""Video-LLaVA with random weights: a CLIP-shaped tower for videos and one for images, Llama.

It takes 8 frames, and of each frame of p x p patches keeps p x p + 1 tokens, the class token with them.
"""

from pathlib import Path
from typing import Any

from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

from bids_mllm.features.models.frames import CLIP_MEAN, CLIP_STD
from bids_mllm.features.models.tiny.files import pixel_settings, write_checkpoint
from bids_mllm.features.models.tiny.language import llama_config
from bids_mllm.features.models.tiny.tokenizer import tiny_llama_tokenizer
from bids_mllm.features.models.tiny.vicuna import CHAT_TEMPLATE, PATCH, clip_vision_config
from bids_mllm.features.models.tiny.weights import random_model

N_FRAMES = 8


def _processor_config(image_size: int) -> dict[str, Any]:
    """Return the content of processor_config.json, as transformers 5 nests it."""
    pixels = pixel_settings(mean=CLIP_MEAN, std=CLIP_STD, size={"shortest_edge": image_size}, crop=image_size)
    return {
        "processor_class": "VideoLlavaProcessor",
        "image_token": "<image>",
        "video_token": "<video>",
        "num_additional_image_tokens": 1,
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "image_processor": {**pixels, "image_processor_type": "VideoLlavaImageProcessor"},
        "video_processor": {
            **pixels,
            "do_sample_frames": False,
            "video_processor_type": "VideoLlavaVideoProcessor",
        },
    }


def save_tiny_videollava(
    folder: Path,
    *,
    seed: int = 0,
    hidden_size: int = 48,
    n_layers: int = 4,
    intermediate_size: int | None = None,
    n_heads: int = 4,
    image_size: int = 42,
    vision_size: int = 32,
    vision_layers: int = 2,
) -> Path:
    """Write a tiny random checkpoint and return its folder.

    Parameters
    ----------
    folder
        Made where it does not exist.
    seed
        Of all weights.
    hidden_size, n_layers, intermediate_size, n_heads
        Sizes of the language model; its heads are of an even width.
    image_size
        Edge of a frame in pixels; patches have 14.
    vision_size, vision_layers
        Width (a multiple of 2) and depth (2 or more) of each vision tower, whose last layer but one is read.
    """
    tokenizer = tiny_llama_tokenizer(("<image>", "<video>", "<pad>"), CHAT_TEMPLATE)
    n_patches = (image_size // PATCH) ** 2
    config = VideoLlavaConfig(
        text_config=llama_config(
            tokenizer,
            hidden_size=hidden_size,
            n_layers=n_layers,
            intermediate_size=intermediate_size,
            n_heads=n_heads,
        ),
        vision_config=clip_vision_config(image_size=image_size, vision_size=vision_size, vision_layers=vision_layers),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_seq_length=n_patches,
        video_seq_length=N_FRAMES * (n_patches + 1),
        dtype="float32",
    )
    model = random_model(VideoLlavaForConditionalGeneration, config, seed=seed)
    processor = _processor_config(image_size)
    ends = (tokenizer.eos_token_id,)
    return write_checkpoint(folder, model, tokenizer, processor, ends=ends, padding=tokenizer.pad_token_id)
