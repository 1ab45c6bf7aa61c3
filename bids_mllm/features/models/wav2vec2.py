"""The wav2vec 2.0 family, and what HuBERT and WavLM share with it: convolutions over samples, then a transformer.

Clips of one length need no padding and no attention mask, so the variants with group norm (trained without a
mask) and with layer norm (trained with one) are treated alike. Every token holds sound of the clip. An adapter
behind the encoder, which some checkpoints have, is left out.
"""

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bids_mllm.features.models.audio_encoders import Load, Sound, audio_family, sound_layout, transformer_load
from bids_mllm.features.models.audio_inputs import read_extractor_settings, read_values
from bids_mllm.features.models.encoders import EncoderFamily, Found, Layout
from bids_mllm.records import BoolArray

if TYPE_CHECKING:
    from bids_mllm.features.models.encoders_extractor import Tower

EXTRACTOR = "Wav2Vec2FeatureExtractor"
CONFIG: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "conv_dim": (512,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}
SETTINGS: dict[str, Any] = {"sampling_rate": 16000}
# The vector for masked spans serves training alone; fine-tuned checkpoints often lack it.
ARGUMENTS = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}


def convolved_lengths(config: dict[str, Any], n_samples: int) -> list[int]:
    """Return the lengths behind each convolution: ``(n - kernel) // stride + 1``."""
    lengths = [n_samples]
    for kernel, stride in zip(config["conv_kernel"], config["conv_stride"], strict=True):
        lengths.append((lengths[-1] - kernel) // stride + 1)
    return lengths[1:]


def receptive_field(config: dict[str, Any]) -> int:
    """Samples that one token reads: the shortest sound that gives a token."""
    n_samples = 1
    for kernel, stride in zip(reversed(config["conv_kernel"]), reversed(config["conv_stride"]), strict=True):
        n_samples = (n_samples - 1) * stride + kernel
    return n_samples


def _groups(config: dict[str, Any], n_samples: int) -> tuple[BoolArray, ...]:
    """Return for each layer one group of all tokens."""
    n_tokens = convolved_lengths(config, n_samples)[-1]
    return (np.ones((1, n_tokens), dtype=bool),) * int(config["num_hidden_layers"] + 1)


def _load(config: dict[str, Any], dense: bool, n_samples: int) -> Load:
    """Work of convolutions, positions and transformer on a clip of some samples."""
    width, channels = config["hidden_size"], (1, *config["conv_dim"])
    lengths = convolved_lengths(config, n_samples)
    sizes = zip(config["conv_kernel"], channels[:-1], channels[1:], lengths, strict=True)
    convolutions = Load(
        2 * math.fsum(kernel * before * after * length for kernel, before, after, length in sizes),
        3 * max(length * size for length, size in zip(lengths, channels[1:], strict=True)),
    )
    n_tokens = lengths[-1]
    positions = width * width // config["num_conv_pos_embedding_groups"] * config["num_conv_pos_embeddings"]
    embedding = Load(2 * n_tokens * (positions + channels[-1] * width), 4 * n_tokens * width)
    blocks = transformer_load(
        n_layers=config["num_hidden_layers"],
        width=width,
        inner=config["intermediate_size"],
        n_tokens=n_tokens,
        n_heads=config["num_attention_heads"],
        dense=dense,
    )
    return convolutions + embedding + blocks


def speech_layout(found: Found, *, dense: bool = False) -> Layout:
    """Return what a model built like wav2vec 2.0 makes of a clip.

    Parameters
    ----------
    found
        The checkpoint.
    dense
        Whether the class holds the attention's weights in memory whole.
    """
    config = read_values(found.folder / "config.json", found.config, CONFIG)
    settings = read_values(found.folder, read_extractor_settings(found.folder, EXTRACTOR), SETTINGS)
    sound = Sound(
        sampling_rate=settings["sampling_rate"],
        shortest=receptive_field(config),
        longest=None,
        groups=partial(_groups, config),
        load=partial(_load, config, dense),
    )
    return sound_layout(found, sound, n_layers=config["num_hidden_layers"] + 1, width=config["hidden_size"])


def _final_norm(model: Any) -> Any:
    """Return the norm behind the last block of the pre-norm variant; the other ends each block with its own."""
    return model.encoder.layer_norm if model.config.do_stable_layer_norm else None


def speech_tower(found: Found, layout: Layout, model_class: Any, config_class: Any) -> "Tower":
    """Return the tower of a model built like wav2vec 2.0, with its classes of transformers."""
    from transformers import Wav2Vec2FeatureExtractor

    from bids_mllm.features.models.audio_tower import PartOfCheckpoint, load_feature_extractor, sound_batches
    from bids_mllm.features.models.encoders_extractor import Tower

    extractor = load_feature_extractor(Wav2Vec2FeatureExtractor, found.folder)
    return Tower(
        model_class=PartOfCheckpoint(model_class, ARGUMENTS),
        config_class=config_class,
        batch=sound_batches(extractor, layout.settings),
        layers=lambda model: model.encoder.layers,
        final_norm=_final_norm,
    )


def speech_family(name: Literal["wav2vec2", "hubert", "wavlm"], tower: Any) -> EncoderFamily:
    """Return the family of a model built like wav2vec 2.0.

    WavLM's class adds a gated bias to its attention and so has no fused implementation.
    """
    attention: Literal["sdpa", "eager"] = "eager" if name == "wavlm" else "sdpa"
    return EncoderFamily(name, (name,), partial(speech_layout, dense=name == "wavlm"), tower, attention=attention)


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the tower with the classes of wav2vec 2.0."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    return speech_tower(found, layout, Wav2Vec2Model, Wav2Vec2Config)


FAMILY = audio_family(speech_family("wav2vec2", _tower))
