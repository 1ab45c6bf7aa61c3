"""InternVL with random weights: InternViT, pixel shuffle, Qwen2.

Each frame of p x p patches gives (p / 2) squared tokens between ``<img>`` and ``</img>``, and the frames of a
video stand on lines of their own: ``Frame1: <img>...</img>``.
"""

from pathlib import Path
from typing import Any

from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig

from bids_mllm.features.models.tiny.files import pixel_settings, write_checkpoint
from bids_mllm.features.models.tiny.language import chatml_ends, qwen2_config
from bids_mllm.features.models.tiny.tokenizer import CHATML, tiny_tokenizer
from bids_mllm.features.models.tiny.weights import random_model

PATCH = 14
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMED_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _processor_config(image_size: int) -> dict[str, Any]:
    """Return the content of processor_config.json, as transformers 5 nests it."""
    size = {"height": image_size, "width": image_size}
    pixels = pixel_settings(mean=IMAGENET_MEAN, std=IMAGENET_STD, size=size)
    return {
        "processor_class": "InternVLProcessor",
        "image_seq_length": (image_size // PATCH) ** 2 // 4,
        "image_processor": {
            **pixels,
            "crop_to_patches": False,
            "image_processor_type": "GotOcr2ImageProcessor",
            "max_patches": 12,
            "min_patches": 1,
        },
        "video_processor": {
            **pixels,
            "do_sample_frames": False,
            "initial_shift": True,
            "video_processor_type": "InternVLVideoProcessor",
        },
    }


def save_tiny_internvl(
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
        Width (a multiple of 2) and depth of the vision tower.
    """
    tokenizer = tiny_tokenizer((*CHATML, *NAMED_TOKENS.values()), CHAT_TEMPLATE, NAMED_TOKENS)
    config = InternVLConfig(
        text_config=qwen2_config(
            tokenizer,
            hidden_size=hidden_size,
            n_layers=n_layers,
            intermediate_size=intermediate_size,
            n_heads=n_heads,
        ),
        vision_config=InternVLVisionConfig(
            hidden_size=vision_size,
            intermediate_size=2 * vision_size,
            num_hidden_layers=vision_layers,
            num_attention_heads=2,
            attention_bias=True,
            image_size=[image_size, image_size],
            patch_size=[PATCH, PATCH],
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=(image_size // PATCH) ** 2 // 4,
        tie_word_embeddings=False,
        dtype="float32",
    )
    model = random_model(InternVLForConditionalGeneration, config, seed=seed)
    ends = chatml_ends(tokenizer)
    return write_checkpoint(folder, model, tokenizer, _processor_config(image_size), ends=ends, padding=ends[1])
