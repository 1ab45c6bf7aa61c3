"""The sound of a clip and the settings by which it becomes a model's inputs: read and checked.

Importing this module loads neither torch nor transformers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.exceptions import CheckpointError, StimulusError
from bids_mllm.features.models.encoders import read_media_config
from bids_mllm.records import ClipMedia


def read_extractor_settings(folder: Path, expected: str) -> dict[str, Any]:
    """Return the settings of a checkpoint's feature extractor.

    Parameters
    ----------
    folder
        The checkpoint.
    expected
        Class that the settings are for, such as ``WhisperFeatureExtractor``.

    Raises
    ------
    CheckpointError
        When there are none, or they are another class's.
    """
    settings = read_media_config(folder, "feature_extractor")
    found = settings.get("feature_extractor_type", expected)
    if found != expected:
        raise CheckpointError(
            f"The feature extractor of {folder} is {found}, but this family of models needs {expected}; check the "
            "label and the folder."
        )
    return settings


def read_values(path: Path, found: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a family needs: from a JSON object where it has them, else the defaults.

    Parameters
    ----------
    path
        The file, for the message.
    found
        The object that the file holds.
    defaults
        Names with the values that the class of transformers takes by itself; a tuple stands for a list.

    Raises
    ------
    CheckpointError
        When a value is not of the kind of its default.
    """
    values: dict[str, Any] = {}
    for name, default in defaults.items():
        value = found.get(name, default)
        if isinstance(default, tuple) and isinstance(value, list | tuple):
            value = tuple(value)
        if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, type(default)):
            raise CheckpointError(
                f"{path} has {name} = {value!r}, but a value like {default!r} was expected; copy the checkpoint again."
            )
        values[name] = value
    return values


def checked_sound(
    media: ClipMedia, *, sampling_rate: int, shortest: int, longest: int | None = None
) -> NDArray[np.float32]:
    """Return the samples of a clip, or say why the model cannot take them.

    Parameters
    ----------
    media
        A clip with mono sound.
    sampling_rate
        Hz that the model was trained at.
    shortest, longest
        Samples that the model takes at the least and at the most; None where there is no most.

    Raises
    ------
    StimulusError
        When there is no sound, its rate is another, it is too short or too long, or it is not finite.
    """
    name = f"Clip {media.clip.index} of {media.clip.stim_file}"
    sound = media.audio
    if sound is None:
        raise StimulusError(f"{name} has no sound, which the model reads; check that the file has an audio stream.")
    if media.sampling_rate != sampling_rate:
        raise StimulusError(
            f"{name} came at {media.sampling_rate} Hz, but the model reads {sampling_rate} Hz; resample the sound "
            "when it is read."
        )
    if len(sound) < shortest:
        raise StimulusError(
            f"{name} has {len(sound)} samples of sound, but the model needs at least {shortest} "
            f"({shortest / sampling_rate:.3g} s); lengthen the window."
        )
    if longest is not None and len(sound) > longest:
        raise StimulusError(
            f"{name} has {len(sound)} samples of sound, but the model takes at most {longest} "
            f"({longest / sampling_rate:.4g} s); shorten the window."
        )
    if not np.isfinite(sound).all():
        raise StimulusError(f"{name} has samples that are not finite numbers; decode the file again.")
    return sound


def centred_frames(n_samples: int, hop_length: int) -> int:
    """Number of spectrogram frames whose centre ``i * hop_length`` lies on one of the first `n_samples` samples."""
    return -(-n_samples // hop_length)
