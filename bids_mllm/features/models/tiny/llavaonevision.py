"""LLaVA-OneVision with random weights: SigLIP, a two-layer projector, Qwen2.

Of each frame of p x p patches the model keeps ceil(p / 2) squared tokens, and one token ends the video.
"""

from pathlib import Path
from typing import Any

from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, SiglipVisionConfig

from bids_mllm.features.models.tiny.files import pixel_settings, write_checkpoint
from bids_mllm.features.models.tiny.language import chatml_ends, qwen2_config
from bids_mllm.features.models.tiny.tokenizer import CHATML, tiny_tokenizer
from bids_mllm.features.models.tiny.weights import random_model

PATCH = 14
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
# All media come first whatever the order of the message, and the text starts on a line of its own.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}"
    "{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _processor_config(image_size: int) -> dict[str, Any]:
    """Return the content of processor_config.json, as transformers 5 nests it."""
    size = {"height": image_size, "width": image_size}
    pixels = pixel_settings(mean=SIGLIP_MEAN, std=SIGLIP_STD, size=size)
    return {
        "processor_class": "LlavaOnevisionProcessor",
        "image_token": "<image>",
        "video_token": "<video>",
        "num_image_tokens": (image_size // PATCH) ** 2,
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_select_strategy": "full",
        "image_processor": {
            **pixels,
            "do_pad": True,
            "image_grid_pinpoints": [[image_size, image_size]],
            "image_processor_type": "LlavaOnevisionImageProcessor",
        },
        "video_processor": {
            **pixels,
            "do_sample_frames": False,
            "video_processor_type": "LlavaOnevisionVideoProcessor",
        },
    }


def save_tiny_llavaonevision(
    folder: Path,
    *,
    seed: int = 0,
    hidden_size: int = 48,
    n_layers: int = 4,
    intermediate_size: int | None = None,
    n_heads: int = 4,
    image_size: int = 70,
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
        Width (a multiple of 2) and depth of the vision tower.
    """
    tokenizer = tiny_tokenizer((*CHATML, "<image>", "<video>"), CHAT_TEMPLATE)
    config = LlavaOnevisionConfig(
        text_config=qwen2_config(
            tokenizer,
            hidden_size=hidden_size,
            n_layers=n_layers,
            intermediate_size=intermediate_size,
            n_heads=n_heads,
        ),
        vision_config=SiglipVisionConfig(
            hidden_size=vision_size,
            intermediate_size=2 * vision_size,
            num_hidden_layers=vision_layers,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=PATCH,
            vision_use_head=False,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[image_size, image_size]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        dtype="float32",
    )
    model = random_model(LlavaOnevisionForConditionalGeneration, config, seed=seed)
    ends = chatml_ends(tokenizer)
    return write_checkpoint(folder, model, tokenizer, _processor_config(image_size), ends=ends, padding=ends[1])
