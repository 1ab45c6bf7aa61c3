"""The AST family: patches of a log mel spectrogram on a grid of frequency x time, on a fixed window of 10.24 s.

A patch counts where every spectrogram frame that it covers is a frame of the clip, at all frequencies; the two
class tokens do not count. So a clip of 1.5 s is 14 columns of the 101 of the window.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_mllm.features.models.audio_encoders import (
    Load,
    Sound,
    audio_family,
    check_agreement,
    installed_version,
    sound_layout,
    transformer_load,
)
from bids_mllm.features.models.audio_inputs import read_extractor_settings, read_values
from bids_mllm.features.models.encoders import EncoderFamily, Found, Layout
from bids_mllm.records import BoolArray

if TYPE_CHECKING:
    from bids_mllm.features.models.encoders_extractor import Tower

MODEL_TYPE = "audio-spectrogram-transformer"
EXTRACTOR = "ASTFeatureExtractor"
CONFIG: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "patch_size": 16,
    "frequency_stride": 10,
    "time_stride": 10,
    "max_length": 1024,
    "num_mel_bins": 128,
}
SETTINGS: dict[str, Any] = {"sampling_rate": 16000, "max_length": 1024, "num_mel_bins": 128}
# Samples of a frame and between frames in the feature extractor's filter bank; frames lie wholly inside the sound.
FRAME_LENGTH, HOP_LENGTH = 400, 160
CLASS_TOKENS = 2


def _grid(config: dict[str, Any]) -> tuple[int, int]:
    """Return patches along frequency and along time."""
    patch = config["patch_size"]
    return (
        (config["num_mel_bins"] - patch) // config["frequency_stride"] + 1,
        (config["max_length"] - patch) // config["time_stride"] + 1,
    )


def _groups(config: dict[str, Any], n_samples: int) -> tuple[BoolArray, ...]:
    """Return for each layer one group of the patches that lie wholly inside the clip."""
    n_frames = (n_samples - FRAME_LENGTH) // HOP_LENGTH + 1
    n_frequencies, n_times = _grid(config)
    inside = np.arange(n_times) * config["time_stride"] + config["patch_size"] <= n_frames
    # The grid is unrolled frequency by frequency.
    mask = np.concatenate([np.zeros(CLASS_TOKENS, dtype=bool), np.tile(inside, n_frequencies)])
    return (mask[None, :],) * int(config["num_hidden_layers"] + 1)


def _load(config: dict[str, Any], n_samples: int) -> Load:
    """Work of the model; the same for every clip, since the window is fixed."""
    del n_samples
    n_frequencies, n_times = _grid(config)
    n_patches, width = n_frequencies * n_times, config["hidden_size"]
    front = Load(2 * n_patches * config["patch_size"] ** 2 * width, 3 * n_patches * width)
    return front + transformer_load(
        n_layers=config["num_hidden_layers"],
        width=width,
        inner=config["intermediate_size"],
        n_tokens=n_patches + CLASS_TOKENS,
        n_heads=config["num_attention_heads"],
        dense=False,
    )


def _layout(found: Found) -> Layout:
    """Return the fixed window, and the model's layers."""
    config = read_values(found.folder / "config.json", found.config, CONFIG)
    settings = read_values(found.folder, read_extractor_settings(found.folder, EXTRACTOR), SETTINGS)
    check_agreement(found, "spectrogram frames", config["max_length"], settings["max_length"])
    check_agreement(found, "mel bands", config["num_mel_bins"], settings["num_mel_bins"])
    sound = Sound(
        sampling_rate=settings["sampling_rate"],
        shortest=FRAME_LENGTH + HOP_LENGTH * (config["patch_size"] - 1),
        longest=FRAME_LENGTH + HOP_LENGTH * config["max_length"] - 1,
        groups=partial(_groups, config),
        load=partial(_load, config),
    )
    # The feature extractor computes its filter bank with torchaudio where that is installed, else with numpy.
    identity = {"torchaudio": installed_version("torchaudio")}
    n_layers = config["num_hidden_layers"] + 1
    return sound_layout(found, sound, n_layers=n_layers, width=config["hidden_size"], identity=identity)


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the model without its classifier."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    from bids_mllm.features.models.audio_tower import load_feature_extractor, sound_batches
    from bids_mllm.features.models.encoders_extractor import Tower

    extractor = load_feature_extractor(ASTFeatureExtractor, found.folder)
    return Tower(
        model_class=ASTModel,
        config_class=ASTConfig,
        batch=sound_batches(extractor, layout.settings),
        layers=lambda model: model.layers,
        final_norm=lambda model: model.layernorm,
    )


FAMILY = audio_family(EncoderFamily("audiospectrogram", (MODEL_TYPE,), _layout, _tower))
