"""The Whisper family: the encoder alone, on its fixed window of 30 s, pooled over the clip's own frames.

The encoder always reads the whole window, of which a clip of 1.5 s is a twentieth. A token counts where the
spectrogram frame that it is centred on is centred on sound: ``ceil(ceil(n_samples / hop) / 2)`` tokens, as the
model's own length function has it.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_mllm.features.models.audio_encoders import (
    Load,
    Sound,
    audio_family,
    check_agreement,
    sound_layout,
    transformer_load,
)
from bids_mllm.features.models.audio_inputs import centred_frames, read_extractor_settings, read_values
from bids_mllm.features.models.encoders import EncoderFamily, Found, Layout
from bids_mllm.records import BoolArray

if TYPE_CHECKING:
    from bids_mllm.features.models.encoders_extractor import Tower

EXTRACTOR = "WhisperFeatureExtractor"
CONFIG: dict[str, Any] = {
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
}
SETTINGS: dict[str, Any] = {
    "sampling_rate": 16000,
    "feature_size": 80,
    "hop_length": 160,
    "chunk_length": 30,
    "n_fft": 400,
}
# Of the two convolutions in front, the second one with the stride.
KERNEL, STRIDE = 3, 2
PREFIXES = ("model.encoder.", "encoder.")


def _groups(config: dict[str, Any], hop_length: int, n_samples: int) -> tuple[BoolArray, ...]:
    """Return for each layer one group of the tokens that are centred on sound."""
    n_valid = -(-centred_frames(n_samples, hop_length) // STRIDE)
    mask: BoolArray = np.arange(config["max_source_positions"])[None, :] < n_valid
    return (mask,) * int(config["encoder_layers"] + 1)


def _load(config: dict[str, Any], n_samples: int) -> Load:
    """Work of the encoder; the same for every clip, since the window is fixed."""
    del n_samples
    width, n_tokens = config["d_model"], config["max_source_positions"]
    first, second = KERNEL * config["num_mel_bins"] * width, KERNEL * width * width
    front = Load(2 * n_tokens * (STRIDE * first + second), 2 * STRIDE * n_tokens * width)
    return front + transformer_load(
        n_layers=config["encoder_layers"],
        width=width,
        inner=config["encoder_ffn_dim"],
        n_tokens=n_tokens,
        n_heads=config["encoder_attention_heads"],
        dense=False,
    )


def _layout(found: Found) -> Layout:
    """Return the fixed window, and the encoder's layers."""
    config = read_values(found.folder / "config.json", found.config, CONFIG)
    settings = read_values(found.folder, read_extractor_settings(found.folder, EXTRACTOR), SETTINGS)
    longest = settings["chunk_length"] * settings["sampling_rate"]
    n_frames = STRIDE * config["max_source_positions"]
    check_agreement(found, "mel bands", config["num_mel_bins"], settings["feature_size"])
    check_agreement(found, "spectrogram frames", n_frames, longest // settings["hop_length"])
    sound = Sound(
        sampling_rate=settings["sampling_rate"],
        shortest=settings["n_fft"],
        longest=longest,
        groups=partial(_groups, config, settings["hop_length"]),
        load=partial(_load, config),
    )
    n_layers = config["encoder_layers"] + 1
    return sound_layout(found, sound, n_layers=n_layers, width=config["d_model"], weights=PREFIXES)


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the encoder; its weights lie behind a prefix in a checkpoint of the whole model."""
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from bids_mllm.features.models.audio_tower import PartOfCheckpoint, load_feature_extractor, sound_batches
    from bids_mllm.features.models.encoders_extractor import Tower

    extractor = load_feature_extractor(WhisperFeatureExtractor, found.folder)
    return Tower(
        model_class=PartOfCheckpoint(WhisperEncoder, {"key_mapping": {r"^(model\.)?encoder\.": ""}}),
        config_class=WhisperConfig,
        batch=sound_batches(extractor, layout.settings),
        layers=lambda model: model.layers,
        final_norm=lambda model: model.layer_norm,
    )


FAMILY = audio_family(EncoderFamily("whisper", ("whisper",), _layout, _tower))
