"""LLaVA-NeXT-Video with random weights: CLIP, 2 x 2 average pooling of patches, Llama.

Of each frame of p x p patches the model keeps a quarter of the tokens.
"""

from pathlib import Path
from typing import Any

from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

from bids_mllm.features.models.frames import CLIP_MEAN, CLIP_STD
from bids_mllm.features.models.tiny.files import pixel_settings, write_checkpoint
from bids_mllm.features.models.tiny.language import llama_config
from bids_mllm.features.models.tiny.tokenizer import tiny_llama_tokenizer
from bids_mllm.features.models.tiny.vicuna import CHAT_TEMPLATE, PATCH, clip_vision_config
from bids_mllm.features.models.tiny.weights import random_model


def _processor_config(image_size: int) -> dict[str, Any]:
    """Return the content of processor_config.json, as transformers 5 nests it."""
    pixels = pixel_settings(mean=CLIP_MEAN, std=CLIP_STD, size={"shortest_edge": image_size}, crop=image_size)
    return {
        "processor_class": "LlavaNextVideoProcessor",
        "image_token": "<image>",
        "video_token": "<video>",
        "num_additional_image_tokens": 1,
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "image_processor": {
            **pixels,
            "do_pad": True,
            "image_grid_pinpoints": [[image_size, 2 * image_size], [2 * image_size, image_size]],
            "image_processor_type": "LlavaNextImageProcessor",
        },
        "video_processor": {
            **pixels,
            "do_sample_frames": False,
            "video_processor_type": "LlavaNextVideoVideoProcessor",
        },
    }


def save_tiny_llavanextvideo(
    folder: Path,
    *,
    seed: int = 0,
    hidden_size: int = 48,
    n_layers: int = 4,
    intermediate_size: int | None = None,
    n_heads: int = 4,
    image_size: int = 56,
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
        Edge of a frame in pixels, an even number of patches of 14.
    vision_size, vision_layers
        Width (a multiple of 2) and depth (2 or more) of the vision tower, whose last layer but one is read.
    """
    tokenizer = tiny_llama_tokenizer(("<video>", "<image>", "<pad>"), CHAT_TEMPLATE)
    config = LlavaNextVideoConfig(
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
        image_grid_pinpoints=[[image_size, 2 * image_size], [2 * image_size, image_size]],
        image_seq_length=(image_size // PATCH) ** 2,
        video_seq_length=(image_size // PATCH) ** 2 // 4,
        dtype="float32",
    )
    model = random_model(LlavaNextVideoForConditionalGeneration, config, seed=seed)
    processor = _processor_config(image_size)
    ends = (tokenizer.eos_token_id,)
    return write_checkpoint(folder, model, tokenizer, processor, ends=ends, padding=tokenizer.pad_token_id)
