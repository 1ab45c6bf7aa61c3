"""A tiny checkpoint of the real Qwen2.5-VL architecture with random weights: for tests and the demo.

It is written as a checkpoint of the hub is, and read back by the same code.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)

from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models.frames import CLIP_MEAN, CLIP_STD
from bids_mllm.features.models.progress import no_progress_bars

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SYSTEM_PROMPT = "You are a helpful assistant."
# Four to eight tokens of 28 x 28 pixels in each temporal step of the grid.
SIZE = {"shortest_edge": 4 * 28 * 28, "longest_edge": 8 * 28 * 28}
# Gains over 1 / sqrt(inputs), found by measuring. Sharp attention lets each instruction read the video in
# its own way; blocks whose output grows with depth make layers differ; a direction shared by all embeddings
# and unequal rows of the head (as in trained models) keep the generated tokens from changing at random.
ATTENTION_GAIN = 2.0
VALUE_GAIN = 2.0
VISION_GAIN = 0.5
MERGER_GAIN = 2.0
DEPTH_GROWTH = 2.5
EMBEDDING_STD = 0.2
SHARED_EMBEDDING_STD = 0.25
BIAS_STD = 0.2
COMMON_TOKENS = 20.0
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _byte_alphabet() -> list[str]:
    """Return the 256 printable characters by which byte-level tokenizers write bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _words() -> list[str]:
    """Return the words of the template and of the built-in instructions, with their leading space."""
    texts = [SYSTEM_PROMPT, "system", "user", "assistant"]
    texts += [instruction.text for instruction in load_instructions()]
    words = (word.replace(" ", "Ġ") for text in texts for word in re.findall(r" ?[A-Za-z]+", text))
    return list(dict.fromkeys(words))


def tiny_tokenizer() -> Qwen2Tokenizer:
    """Return a byte-level BPE tokenizer in which the words of the built-in instructions are short.

    Each word's merges join it from left to right, so the vocabulary follows from the word list alone.
    """
    vocabulary = {character: i for i, character in enumerate(_byte_alphabet())}
    merges: list[tuple[str, str]] = []
    for word in _words():
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary and word[: end - 1] in vocabulary and word[end - 1] in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _config(tokenizer: Qwen2Tokenizer, hidden_size: int, n_layers: int) -> Qwen2_5_VLConfig:
    """Return the configuration: the hub's settings wherever they are not a size."""
    token = tokenizer.convert_tokens_to_ids
    n_heads = 4
    half = hidden_size // n_heads // 2
    text = Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads // 2,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1000000.0,
            "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
        },
        bos_token_id=token("<|endoftext|>"),
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
    )
    vision = Qwen2_5_VLVisionConfig(
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        out_hidden_size=hidden_size,
        fullatt_block_indexes=[1],
        tokens_per_second=2,
        window_size=56,
    )
    return Qwen2_5_VLConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
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
    if name == "lm_head.weight":
        return 1.0
    growth = 1.0
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        growth = DEPTH_GROWTH ** int(name.split(".layers.")[1].split(".")[0])
    if "q_proj" in name or "k_proj" in name:
        return ATTENTION_GAIN
    return growth * (VALUE_GAIN if "self_attn" in name else scale)


def _new_values(name: str, shape: torch.Size, scale: float, generator: torch.Generator) -> torch.Tensor:
    """Return the random values of one parameter."""
    values = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return torch.ones(shape) if "norm" in name or "ln_q" in name else BIAS_STD * values
    if "embed_tokens" in name:
        return EMBEDDING_STD * values + SHARED_EMBEDDING_STD * torch.randn(shape[1], generator=generator)
    values = values * (_gain(name, scale) / math.sqrt(math.prod(shape[1:])))
    if name == "lm_head.weight":
        rank = torch.randperm(shape[0], generator=generator)
        values = values * torch.exp(-rank / COMMON_TOKENS)[:, None]
    return values


def _random_model(config: Qwen2_5_VLConfig, seed: int, scale: float) -> Qwen2_5_VLForConditionalGeneration:
    """Return the model with weights that follow from the seed alone; the global generator is kept."""
    with torch.random.fork_rng(devices=[]):
        model = Qwen2_5_VLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(_new_values(name, parameter.shape, scale, generator))
    return model.eval()


def _processor_config() -> dict[str, Any]:
    """Return the content of processor_config.json, as transformers 5 nests it."""
    shared = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "merge_size": 2,
        "patch_size": 14,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": SIZE,
        "temporal_patch_size": 2,
    }
    return {
        "processor_class": "Qwen2_5_VLProcessor",
        "image_processor": {**shared, "image_processor_type": "Qwen2VLImageProcessor"},
        "video_processor": {
            **shared,
            "cap_pixels_per_frame": False,
            "do_sample_frames": False,
            "video_processor_type": "Qwen2VLVideoProcessor",
        },
    }


def save_tiny_qwen25vl(
    folder: Path, *, seed: int = 0, hidden_size: int = 48, n_layers: int = 4, scale: float = 2.0
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
        Width of the language model, a multiple of 8 and at least 24.
    n_layers
        Decoder layers; the features have one more, the embedding.
    scale
        Gain of the feed-forward weights: the larger, the less the features are a linear function of the
        video.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    model = _random_model(_config(tokenizer, hidden_size, n_layers), seed, scale)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config.eos_token_id = ends
    model.generation_config.pad_token_id = ends[1]
    with no_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = json.dumps(_processor_config(), indent=2, sort_keys=True) + "\n"
    (folder / "processor_config.json").write_text(text, "utf-8")
    return folder
