"""Random weights by which features depend on the media, on the instruction and on the layer."""

import math
import re
from collections.abc import Callable
from typing import Any

import torch

# Gains over 1 / sqrt(inputs), found by measuring. Sharp attention lets each instruction read the media in
# its own way; blocks whose output grows with depth make layers differ; a direction shared by all embeddings
# and unequal rows of the head (as in trained models) keep the generated tokens from changing at random.
ATTENTION_GAIN = 2.0
VALUE_GAIN = 2.0
FEED_FORWARD_GAIN = 2.0
PROJECTOR_GAIN = 2.0
DEPTH_GROWTH = 2.5
# Beyond this depth blocks grow no further, so that half precision does not overflow.
GROWING_LAYERS = 4
EMBEDDING_STD = 0.2
SHARED_EMBEDDING_STD = 0.25
BIAS_STD = 0.2
COMMON_TOKENS = 20.0
NORM = re.compile(r"norm|\bln_|lambda_", re.IGNORECASE)
POSITIONS = re.compile(r"position|class_embedding|cls_token|query_tokens|image_newline|qformer\.embeddings")
TEXT_LAYER = re.compile(r"(?:language_model|model)\.layers\.(\d+)\.")
OTHER_TOWERS = re.compile(r"vision|visual|audio|image_tower|video_tower|qformer|projector|projection")
PROJECTORS = re.compile(r"projector|language_projection|merger\.mlp\.2|audio_tower\.proj\.")


def text_gain(name: str, feed_forward: float = FEED_FORWARD_GAIN) -> float:
    """Return the gain of one matrix of the language model's layers; 1 for its head."""
    layer = TEXT_LAYER.search(name)
    if layer is None:
        return 1.0
    growth = 1.0
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        growth = DEPTH_GROWTH ** min(int(layer[1]), GROWING_LAYERS)
    if "q_proj" in name or "k_proj" in name:
        return ATTENTION_GAIN
    return growth * (VALUE_GAIN if "self_attn" in name else feed_forward)


def gain(name: str) -> float:
    """Return the gain of the weights of one parameter over ``1 / sqrt(inputs)``."""
    if PROJECTORS.search(name):
        return PROJECTOR_GAIN
    return 1.0 if OTHER_TOWERS.search(name) else text_gain(name)


def _new_values(
    name: str, shape: torch.Size, gain_of: Callable[[str], float], generator: torch.Generator
) -> torch.Tensor:
    """Return the random values of one parameter."""
    values = torch.randn(shape, generator=generator)
    if POSITIONS.search(name) and not NORM.search(name):
        return EMBEDDING_STD * values
    if len(shape) == 1:
        is_scale = NORM.search(name) and not name.endswith("bias")
        return torch.ones(shape) if is_scale else BIAS_STD * values
    if "embed_tokens" in name:
        return EMBEDDING_STD * values + SHARED_EMBEDDING_STD * torch.randn(shape[1], generator=generator)
    values = values * (gain_of(name) / math.sqrt(math.prod(shape[1:])))
    if name.endswith("lm_head.weight"):
        rank = torch.randperm(shape[0], generator=generator)
        values = values * torch.exp(-rank / COMMON_TOKENS)[:, None]
    return values


def random_model(model_class: Any, config: Any, *, seed: int, gain_of: Callable[[str], float] = gain) -> Any:
    """Return a model in eval mode with weights that follow from the seed alone; the global generator is kept.

    Parameters
    ----------
    model_class
        A class of transformers that takes a configuration.
    config
        Its configuration.
    seed
        Of all weights, drawn in the order of their names.
    gain_of
        Gives the gain of a parameter's matrix by its name.
    """
    with torch.random.fork_rng(devices=[]):
        model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(_new_values(name, parameter.shape, gain_of, generator))
    return model.eval()
