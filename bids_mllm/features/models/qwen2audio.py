"""The Qwen2-Audio family: sound and instruction in, hidden states of the language model out.

The encoder reads windows of 30 s, filled up with silence; only tokens that hold sound reach the language model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from bids_mllm.features.models.architecture import Architecture, MediaBatch, MediaSettings, Setup
from bids_mllm.features.models.instructed import instructed_family
from bids_mllm.features.models.sound_inputs import load_sound_extractor, read_sound_settings, sound_inputs
from bids_mllm.records import ClipMedia, MediaRequest, ModelSpec

AUDIO = "<|AUDIO|>"

#: Made once for a checkpoint; it holds filter banks only.
sound_extractor = lru_cache(maxsize=4)(load_sound_extractor)


def settle(spec: ModelSpec, folder: Path, config: Mapping[str, Any], window: float) -> MediaSettings:
    """Settle the sampling rate and the number of tokens for a window in seconds."""
    sound = read_sound_settings(folder)
    return MediaSettings(
        request=MediaRequest(media="audio", sampling_rate=sound.sampling_rate),
        identity=asdict(sound),
        n_tokens=sound.n_tokens(round(window * sound.sampling_rate)),
        values=sound,
    )


def prepare(clips: Sequence[ClipMedia], setup: Setup) -> MediaBatch:
    """Return the spectrograms of clips of one length."""
    made = sound_inputs(sound_extractor(setup.folder), clips, setup.media.values, whole_window=True)
    return MediaBatch(
        tensors={"input_features": made.input_features, "feature_attention_mask": made.feature_attention_mask},
        expand=lambda rendered: rendered.replace(AUDIO, AUDIO * made.n_tokens),
        n_tokens=made.n_tokens,
        shape=made.n_tokens,
    )


ARCHITECTURE = Architecture(
    name="qwen2audio",
    model_types=("qwen2_audio",),
    model_class="Qwen2AudioForConditionalGeneration",
    media_tokens=("audio_token_id",),
    placeholders=("audio",),
    parameters=(),
    settle=settle,
    prepare=prepare,
    towers=("model.audio_tower",),
)
FAMILY = instructed_family(ARCHITECTURE)
