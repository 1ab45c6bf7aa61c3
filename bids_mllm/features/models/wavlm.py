"""The WavLM family: built like wav2vec 2.0, with gated relative positions in its attention."""

from typing import TYPE_CHECKING

from bids_mllm.features.models.audio_encoders import audio_family
from bids_mllm.features.models.encoders import Found, Layout
from bids_mllm.features.models.wav2vec2 import speech_family, speech_tower

if TYPE_CHECKING:
    from bids_mllm.features.models.encoders_extractor import Tower


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the tower with the classes of WavLM."""
    from transformers import WavLMConfig, WavLMModel

    return speech_tower(found, layout, WavLMModel, WavLMConfig)


FAMILY = audio_family(speech_family("wavlm", _tower))
