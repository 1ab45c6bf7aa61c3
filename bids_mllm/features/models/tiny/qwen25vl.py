"""Qwen2.5-VL with random weights: Qwen2VLVideoProcessor, a windowed vision tower, Qwen2 with M-RoPE."""

from functools import partial
from pathlib import Path
from typing import Any

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)

from bids_mllm.features.models.tiny.files import qwen_vision_settings, write_checkpoint
from bids_mllm.features.models.tiny.language import chatml_ends, multimodal_rope, qwen2_sizes
from bids_mllm.features.models.tiny.tokenizer import tiny_tokenizer
from bids_mllm.features.models.tiny.weights import random_model, text_gain

VISION_GAIN = 0.5
MERGER_GAIN = 2.0


def _config(tokenizer: Qwen2Tokenizer, text: dict[str, Any], vision: dict[str, Any]) -> Qwen2_5_VLConfig:
    """Return the configuration: the hub's settings wherever they are not a size."""
    token = tokenizer.convert_tokens_to_ids
    vision_config = Qwen2_5_VLVisionConfig(
        **vision,
        out_hidden_size=text["hidden_size"],
        tokens_per_second=2,
        window_size=56,
    )
    return Qwen2_5_VLConfig(
        text_config=Qwen2_5_VLTextConfig(**text).to_dict(),
        vision_config=vision_config.to_dict(),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        dtype="float32",
    )


def _gain(name: str, scale: float) -> float:
    """Return the gain of the weights of one parameter over ``1 / sqrt(inputs)``."""
    if name.startswith("model.visual"):
        return VISION_GAIN * (MERGER_GAIN if "merger.mlp.2" in name else 1.0)
    return text_gain(name, scale)


def save_tiny_qwen25vl(
    folder: Path,
    *,
    seed: int = 0,
    hidden_size: int = 48,
    n_layers: int = 4,
    scale: float = 2.0,
    intermediate_size: int | None = None,
    n_heads: int = 4,
    vision_size: int = 32,
    vision_layers: int = 2,
    frame_tokens: tuple[int, int] = (4, 8),
) -> Path:
    """Write a tiny random checkpoint (about 1 MB) and return its folder.

    The features depend on the video, on the instruction beyond a constant, and on the layer; the same
    seed gives the same numbers.

    Parameters
    ----------
    folder
        Made where it does not exist.
    seed
        Of all weights.
    hidden_size
        Width of the language model, a multiple of ``2 * n_heads`` and at least ``6 * n_heads``.
    n_layers
        Decoder layers; the features have one more, the embedding.
    scale
        Gain of the feed-forward weights: the larger, the less the features are a linear function of the
        video.
    intermediate_size
        Width of the feed-forward layers; None for twice the hidden size.
    n_heads
        Attention heads, two of them to each head of keys and values.
    vision_size, vision_layers
        Width and depth of the vision tower; its last layer attends to the whole frame.
    frame_tokens
        The fewest and the most tokens of one temporal step (two frames).
    """
    tokenizer = tiny_tokenizer()
    text = qwen2_sizes(
        tokenizer, hidden_size=hidden_size, n_layers=n_layers, intermediate_size=intermediate_size, n_heads=n_heads
    )
    text |= {"max_position_embeddings": 2048, "rope_parameters": multimodal_rope(hidden_size // n_heads)}
    vision = {
        "depth": vision_layers,
        "hidden_size": vision_size,
        "intermediate_size": 2 * vision_size,
        "num_heads": 2,
        "fullatt_block_indexes": [vision_layers - 1],
    }
    config = _config(tokenizer, text, vision)
    model = random_model(Qwen2_5_VLForConditionalGeneration, config, seed=seed, gain_of=partial(_gain, scale=scale))
    processor = {"processor_class": "Qwen2_5_VLProcessor", **qwen_vision_settings(frame_tokens)}
    ends = chatml_ends(tokenizer)
    return write_checkpoint(folder, model, tokenizer, processor, ends=ends, padding=ends[1])
