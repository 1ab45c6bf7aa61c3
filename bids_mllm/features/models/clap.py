"""The CLAP family: the audio tower, a Swin transformer on a mel spectrogram that is folded into a square.

The spectrogram of a fixed window of 10 s is stretched in time, cut into `ratio` strips, and the strips are
stacked along frequency. Each stage halves the rows and columns of the last and doubles the channels. Layers are
the patch embedding and every block; the last is what the final norm gives.

To give all layers one width, a layer of stage s is averaged over time alone within ``2 ** (last - s)`` bands of
frequency, and its bands are put in a row: what the stages still have as rows of frequency is what later stages
have as channels, so bands x channels is the width of the last stage at every stage, and nothing is filled up
with constants.

The feature extractor fills the window with repeats of a short clip where its settings say so (`repeatpad`,
`repeat`), as in training; the repeats are sound of the clip and count. A cell counts where every spectrogram
frame that enters it is centred on sound.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.models.audio_encoders import Load, Sound, audio_family, check_agreement, sound_layout
from bids_mllm.features.models.audio_inputs import centred_frames, read_extractor_settings, read_values
from bids_mllm.features.models.encoders import EncoderFamily, Found, Layout
from bids_mllm.records import BoolArray

if TYPE_CHECKING:
    from bids_mllm.features.models.encoders_extractor import Tower

EXTRACTOR = "ClapFeatureExtractor"
CONFIG: dict[str, Any] = {
    "patch_embeds_hidden_size": 96,
    "depths": (2, 2, 6, 2),
    "num_attention_heads": (4, 8, 16, 32),
    "window_size": 8,
    "num_mel_bins": 64,
    "spec_size": 256,
    "mlp_ratio": 4.0,
}
SETTINGS: dict[str, Any] = {
    "sampling_rate": 48000,
    "feature_size": 64,
    "hop_length": 480,
    "max_length_s": 10,
    "fft_window_size": 1024,
    "padding": "repeatpad",
}
# The model_type of the tower saved alone, and the beginnings of its weights' names in either checkpoint.
TOWER = "clap_audio_model"
PREFIXES = ("audio_model.", "audio_encoder.")
PADDINGS = ("repeatpad", "repeat", "pad")


def _config(found: Found) -> dict[str, Any]:
    """Return the sizes of the audio tower, with ``patch`` and ``stride`` along both axes."""
    path = found.folder / "config.json"
    tower = found.config if found.config["model_type"] == TOWER else found.config.get("audio_config") or {}
    config = read_values(path, tower, CONFIG)
    for name, key in (("patch", "patch_size"), ("stride", "patch_stride")):
        value = tower.get(key, 4)
        sizes = tuple(value) if isinstance(value, list | tuple) else (value, value)
        if len(sizes) != 2 or sizes[0] != sizes[1] or not isinstance(sizes[0], int):
            raise CheckpointError(f"{path} has {key} = {value!r}, but square patches are expected; check the model.")
        config[name] = sizes[0]
    config["ratio"] = config["spec_size"] // config["num_mel_bins"]
    rows = config["num_mel_bins"] // config["stride"]
    if rows % 2 ** (len(config["depths"]) - 1):
        raise CheckpointError(
            f"{path} gives {rows} rows of frequency, which {len(config['depths'])} stages cannot halve; check the "
            "model."
        )
    return config


def _settings(found: Found) -> dict[str, Any]:
    """Return the settings of the spectrogram, with the ``window`` in samples."""
    settings = read_values(found.folder, read_extractor_settings(found.folder, EXTRACTOR), SETTINGS)
    if settings["padding"] not in PADDINGS:
        raise CheckpointError(
            f"The feature extractor of {found.folder} has padding {settings['padding']!r}; expected one of "
            f"{', '.join(PADDINGS)}."
        )
    settings["window"] = settings["max_length_s"] * settings["sampling_rate"]
    return settings


def _n_frames(settings: dict[str, Any]) -> int:
    """Return the spectrogram frames of the window; the first and the last are centred on its ends."""
    n_frames: int = settings["window"] // settings["hop_length"] + 1
    return n_frames


def _last_frames(config: dict[str, Any], settings: dict[str, Any]) -> NDArray[np.int_]:
    """Return the last spectrogram frame that enters each cell of the first stage, shape (ratio, n_columns)."""
    n_frames = _n_frames(settings)
    n_positions = config["spec_size"] * config["ratio"]
    if n_frames < n_positions:
        # Bicubic interpolation between corners reads the frames from one before to two behind a position.
        positions = np.arange(n_positions) * (n_frames - 1) // (n_positions - 1) + 2
    else:
        positions = np.arange(n_positions)
    strips = np.minimum(positions, n_frames - 1).reshape(config["ratio"], -1)
    padding = (config["patch"] - config["stride"]) // 2
    ends = np.arange(config["spec_size"] // config["stride"]) * config["stride"] + config["patch"] - padding
    last: NDArray[np.int_] = strips[:, np.minimum(ends, strips.shape[1]) - 1]
    return last


def _stage_frames(config: dict[str, Any], settings: dict[str, Any], stage: int) -> NDArray[np.int_]:
    """Return the last spectrogram frame that enters each cell of a stage, shape (ratio, n_columns)."""
    frames = _last_frames(config, settings)
    last: NDArray[np.int_] = frames.reshape(len(frames), -1, 2**stage).max(axis=-1)
    return last


def _frames_of_sound(settings: dict[str, Any], n_samples: int) -> int:
    """Return the first spectrogram frames that hold sound of a clip or of its repeats."""
    window, padding = settings["window"], settings["padding"]
    filled = {"repeat": window, "repeatpad": window // n_samples * n_samples, "pad": n_samples}[padding]
    # Beyond the end of a full window the feature extractor mirrors the sound.
    return _n_frames(settings) if filled == window else centred_frames(filled, settings["hop_length"])


def _stage_groups(config: dict[str, Any], settings: dict[str, Any], stage: int, n_frames: int) -> BoolArray:
    """Return the bands of a stage as masks (n_bands, n_tokens) over cells that hold sound."""
    inside = _stage_frames(config, settings, stage) < n_frames
    n_rows = config["num_mel_bins"] // config["stride"] // 2**stage
    n_bands = 2 ** (len(config["depths"]) - 1 - stage)
    band = np.arange(n_rows) * n_bands // n_rows
    # Tokens run over strips, then rows of frequency, then columns of time.
    masks: BoolArray = (band == np.arange(n_bands)[:, None])[:, None, :, None] & inside[None, :, None, :]
    return masks.reshape(n_bands, -1)


def _groups(config: dict[str, Any], settings: dict[str, Any], n_samples: int) -> tuple[BoolArray, ...]:
    """Return for each layer the bands of its stage."""
    n_frames = _frames_of_sound(settings, n_samples)
    stages = [_stage_groups(config, settings, stage, n_frames) for stage in range(len(config["depths"]))]
    blocks = [masks for masks, depth in zip(stages, config["depths"], strict=True) for _ in range(depth)]
    return (stages[0], *blocks)


def _load(config: dict[str, Any], n_samples: int) -> Load:
    """Work of the tower; the same for every clip, since the window is fixed."""
    del n_samples
    channels, side = config["patch_embeds_hidden_size"], config["spec_size"] // config["stride"]
    total = Load(2 * side**2 * config["patch"] ** 2 * channels, 3 * side**2 * channels)
    for stage, (depth, heads) in enumerate(zip(config["depths"], config["num_attention_heads"], strict=True)):
        n_tokens, in_window = side**2, min(config["window_size"], side) ** 2
        inner = round(config["mlp_ratio"] * channels)
        matrices = 4 * channels**2 + 2 * channels * inner
        total += Load(
            depth * n_tokens * (2 * matrices + 4 * in_window * channels),
            n_tokens * (6 * channels + 2 * inner + 3 * heads * in_window),
        )
        if stage < len(config["depths"]) - 1:
            total += Load(2 * n_tokens // 4 * 8 * channels**2, 3 * n_tokens * channels)
            channels, side = 2 * channels, side // 2
    return total


def _layout(found: Found) -> Layout:
    """Return the fixed window, and the tower's layers at one width."""
    config, settings = _config(found), _settings(found)
    check_agreement(found, "mel bands", config["num_mel_bins"], settings["feature_size"])
    last = len(config["depths"]) - 1
    shortest = settings["fft_window_size"]
    if settings["padding"] == "pad":
        first_cell = int(_stage_frames(config, settings, last).min())
        shortest = max(shortest, first_cell * settings["hop_length"] + 1)
    sound = Sound(
        sampling_rate=settings["sampling_rate"],
        shortest=shortest,
        longest=settings["window"],
        groups=partial(_groups, config, settings),
        load=partial(_load, config),
    )
    n_layers, width = sum(config["depths"]) + 1, config["patch_embeds_hidden_size"] * 2**last
    return sound_layout(found, sound, n_layers=n_layers, width=width, weights=PREFIXES)


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the audio tower; its weights lie behind a prefix in a checkpoint of the whole model."""
    from transformers import ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor

    from bids_mllm.features.models.audio_tower import PartOfCheckpoint, load_feature_extractor, sound_batches
    from bids_mllm.features.models.encoders_extractor import Tower

    extractor = load_feature_extractor(ClapFeatureExtractor, found.folder)
    return Tower(
        model_class=PartOfCheckpoint(ClapAudioModel, {"key_mapping": {r"^audio_model\.": ""}}),
        config_class=ClapAudioConfig,
        batch=sound_batches(extractor, layout.settings),
        layers=lambda model: [block for stage in model.audio_encoder.layers for block in stage.blocks],
        final_norm=lambda model: model.audio_encoder.norm,
    )


FAMILY = audio_family(EncoderFamily("clap", ("clap", TOWER), _layout, _tower, attention="eager"))
