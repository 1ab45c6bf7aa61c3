"""InstructBLIPVideo with random weights: a ViT, a Q-Former that reads the instruction too, Llama.

It takes 4 frames and keeps the Q-Former's query tokens of each. There is no chat template: the language model
is given the query tokens, ``<s>`` and the plain instruction.
"""

from pathlib import Path
from typing import Any

from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipVideoConfig,
    InstructBlipVideoForConditionalGeneration,
    LlamaTokenizer,
)

from bids_mllm.features.models.frames import CLIP_MEAN, CLIP_STD
from bids_mllm.features.models.tiny.files import pixel_settings, split_processor_files, write_checkpoint
from bids_mllm.features.models.tiny.language import llama_config
from bids_mllm.features.models.tiny.tokenizer import tiny_bert_tokenizer, tiny_llama_tokenizer
from bids_mllm.features.models.tiny.weights import random_model

PATCH = 14


def _processor_config(image_size: int, n_query_tokens: int, *, as_image: bool) -> dict[str, Any]:
    """Return the content of processor_config.json, as transformers 5 nests it."""
    size = {"height": image_size, "width": image_size}
    pixels = pixel_settings(mean=CLIP_MEAN, std=CLIP_STD, size=size)
    if as_image:
        return {
            "processor_class": "InstructBlipProcessor",
            "num_query_tokens": n_query_tokens,
            "image_processor": {**pixels, "image_processor_type": "BlipImageProcessor"},
        }
    return {
        "processor_class": "InstructBlipVideoProcessor",
        "num_query_tokens": n_query_tokens,
        "video_processor": {
            **pixels,
            "do_sample_frames": False,
            "video_processor_type": "InstructBlipVideoVideoProcessor",
        },
    }


def _sizes(width: int, depth: int) -> dict[str, int]:
    """Return the sizes of a tower as transformers names them."""
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": 2,
    }


def _model(tokenizer: LlamaTokenizer, parts: dict[str, Any], *, seed: int, as_image: bool) -> Any:
    """Return the model of the class for videos, or of the one for images that trained checkpoints name."""
    if as_image:
        token = tokenizer.convert_tokens_to_ids("<image>")
        config = InstructBlipConfig(**parts, image_token_index=token, dtype="float32")
        return random_model(InstructBlipForConditionalGeneration, config, seed=seed)
    token = tokenizer.convert_tokens_to_ids("<video>")
    config = InstructBlipVideoConfig(**parts, video_token_index=token, dtype="float32")
    return random_model(InstructBlipVideoForConditionalGeneration, config, seed=seed)


def save_tiny_instructblipvideo(
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
    n_query_tokens: int = 8,
    qformer_size: int | None = None,
    qformer_layers: int | None = None,
    as_image: bool = False,
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
    n_query_tokens
        Tokens of one frame.
    qformer_size, qformer_layers
        Width (a multiple of 2) and depth (2 or more) of the Q-Former; None for those of the vision tower.
    as_image
        Written as Salesforce/instructblip-vicuna-7b is: of the class for images, with a tokenizer and
        embeddings that know ``<image>`` but not ``<video>``, and with the processor's settings split.
    """
    tokenizer = tiny_llama_tokenizer(("<pad>", "<image>" if as_image else "<video>"), None)
    qformer_tokenizer = tiny_bert_tokenizer()
    text = llama_config(
        tokenizer, hidden_size=hidden_size, n_layers=n_layers, intermediate_size=intermediate_size, n_heads=n_heads
    )
    qformer = _sizes(qformer_size or vision_size, qformer_layers or vision_layers)
    towers = {
        "vision_config": {**_sizes(vision_size, vision_layers), "image_size": image_size, "patch_size": PATCH},
        "qformer_config": {**qformer, "vocab_size": len(qformer_tokenizer), "encoder_hidden_size": vision_size},
    }
    parts = {**towers, "text_config": text.to_dict(), "num_query_tokens": n_query_tokens}
    model = _model(tokenizer, parts, seed=seed, as_image=as_image)
    processor = _processor_config(image_size, n_query_tokens, as_image=as_image)
    ends = (tokenizer.eos_token_id,)
    write_checkpoint(folder, model, tokenizer, processor, ends=ends, padding=tokenizer.pad_token_id)
    qformer_tokenizer.save_pretrained(folder / "qformer_tokenizer")
    return split_processor_files(folder) if as_image else folder
