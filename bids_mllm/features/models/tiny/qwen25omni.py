"""The thinker of Qwen2.5-Omni with random weights: a vision tower, an audio tower, Qwen2 with M-RoPE.

Tokens of a video: the grid of t x h x w patches divided by 4. Tokens of m frames of audio of 10 ms:
(((m - 1) // 2 + 1) - 2) // 2 + 1.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2Tokenizer,
)

from bids_mllm.features.models.tiny.files import (
    qwen_vision_settings,
    split_processor_files,
    whisper_settings,
    write_checkpoint,
    write_json,
)
from bids_mllm.features.models.tiny.language import chatml_ends, multimodal_rope, qwen2_sizes
from bids_mllm.features.models.tiny.tokenizer import CHATML, SYSTEM_PROMPT, tiny_tokenizer
from bids_mllm.features.models.tiny.weights import random_model

NAMED_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
CHAT_TEMPLATE = (
    "{% set audio_count = namespace(value=0) %}"
    "{% set image_count = namespace(value=0) %}"
    "{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif content['type'] == 'audio' or 'audio' in content or 'audio_url' in content %}"
    "{% set audio_count.value = audio_count.value + 1 %}"
    "{% if add_audio_id %}Audio {{ audio_count.value }}: {% endif %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _towers(width: int, n_layers: int, hidden_size: int, seconds: int) -> dict[str, dict[str, Any]]:
    """Return the sizes of the vision and of the audio tower, equally wide and deep."""
    return {
        "vision_config": {
            "depth": n_layers,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_heads": 2,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": [n_layers - 1],
            "window_size": 56,
        },
        "audio_config": {
            "d_model": width,
            "encoder_layers": n_layers,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 2 * width,
            "max_source_positions": 50 * seconds,
            "output_dim": hidden_size,
        },
    }


def _config(tokenizer: Qwen2Tokenizer, text: dict[str, Any], towers: dict[str, Any]) -> Qwen2_5OmniThinkerConfig:
    """Return the configuration: the hub's settings wherever they are not a size."""
    token = tokenizer.convert_tokens_to_ids
    return Qwen2_5OmniThinkerConfig(
        text_config={**text, "tie_word_embeddings": False},
        **towers,
        audio_token_index=token("<|AUDIO|>"),
        image_token_index=token("<|IMAGE|>"),
        video_token_index=token("<|VIDEO|>"),
        audio_start_token_id=token("<|audio_bos|>"),
        audio_end_token_id=token("<|audio_eos|>"),
        vision_start_token_id=token("<|vision_bos|>"),
        vision_end_token_id=token("<|vision_eos|>"),
        user_token_id=token("user"),
        dtype="float32",
    )


def _as_whole(folder: Path) -> Path:
    """Rewrite a thinker's files as those of the whole model: settings nested, weights beside a talker's."""
    path = folder / "config.json"
    others = {f"{part}_config": {"model_type": f"qwen2_5_omni_{part}"} for part in ("talker", "token2wav")}
    whole = {
        "architectures": ["Qwen2_5OmniModel"],
        "enable_audio_output": True,
        "model_type": "qwen2_5_omni",
        "thinker_config": json.loads(path.read_text("utf-8")),
    }
    write_json(path, whole | others)
    weights = folder / "model.safetensors"
    tensors = {f"thinker.{name}": values for name, values in load_file(weights).items()}
    tensors["talker.thinker_to_talker_proj.bias"] = torch.zeros(8)
    save_file(tensors, weights, metadata={"format": "pt"})
    return split_processor_files(folder)


def save_tiny_qwen25omni(
    folder: Path,
    *,
    seed: int = 0,
    hidden_size: int = 48,
    n_layers: int = 4,
    intermediate_size: int | None = None,
    n_heads: int = 4,
    tower_size: int = 32,
    tower_layers: int = 2,
    frame_tokens: tuple[int, int] = (4, 8),
    seconds: int = 30,
    as_whole: bool = False,
) -> Path:
    """Write a tiny random checkpoint and return its folder.

    Parameters
    ----------
    folder
        Made where it does not exist.
    seed
        Of all weights.
    hidden_size, n_layers, intermediate_size, n_heads
        Sizes of the language model; the hidden size is a multiple of ``2 * n_heads`` and at least
        ``6 * n_heads``.
    tower_size, tower_layers
        Width (a multiple of 4) and depth of the vision and of the audio tower.
    frame_tokens
        The fewest and the most tokens of one temporal step (two frames).
    seconds
        Of the window to which audio is padded before the valid part is cut out; 300 in the trained model.
    as_whole
        Written as Qwen/Qwen2.5-Omni-7B is: config.json is the whole model's with the thinker's inside, and
        the weights' names start with ``thinker.``, with some of another part beside them, and the processor's
        settings are split.
    """
    tokenizer = tiny_tokenizer((*CHATML, *NAMED_TOKENS.values()), CHAT_TEMPLATE, NAMED_TOKENS)
    text = qwen2_sizes(
        tokenizer, hidden_size=hidden_size, n_layers=n_layers, intermediate_size=intermediate_size, n_heads=n_heads
    )
    text["rope_parameters"] = multimodal_rope(hidden_size // n_heads)
    towers = _towers(tower_size, tower_layers, hidden_size, seconds)
    config = _config(tokenizer, text, towers)
    model = random_model(Qwen2_5OmniThinkerForConditionalGeneration, config, seed=seed)
    ends = chatml_ends(tokenizer)
    processor = {
        "processor_class": "Qwen2_5OmniProcessor",
        **qwen_vision_settings(frame_tokens),
        "feature_extractor": whisper_settings(seconds),
    }
    write_checkpoint(folder, model, tokenizer, processor, ends=ends, padding=ends[1])
    return _as_whole(folder) if as_whole else folder
