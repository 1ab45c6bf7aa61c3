"""Sound for models that follow instructions: spectrograms as their real processors make them, and token counts.

Qwen2-Audio and Qwen2.5-Omni share Whisper's feature extractor and put, for each placeholder of sound in a prompt,
as many tokens as the encoder gives: the spectrogram's frames with sound, halved by a convolution and again by
a mean over pairs. Importing this module loads neither torch nor transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_mllm.features.models.audio_inputs import (
    centred_frames,
    checked_sound,
    read_extractor_settings,
    read_values,
)
from bids_mllm.records import ClipMedia

if TYPE_CHECKING:
    import torch

EXTRACTOR = "WhisperFeatureExtractor"
DEFAULTS: dict[str, Any] = {"sampling_rate": 16000, "hop_length": 160, "chunk_length": 30, "n_fft": 400}
# Spectrogram frames that give the first token: a convolution with stride 2, then a mean over pairs.
FRAMES_OF_FIRST_TOKEN = 3


def count_audio_tokens(n_frames: int) -> int:
    """Number of tokens for `n_frames` spectrogram frames with sound: ``((n - 1) // 2 + 1 - 2) // 2 + 1``."""
    return ((n_frames - 1) // 2 + 1 - 2) // 2 + 1


@dataclass(frozen=True)
class SoundSettings:
    """How a checkpoint's feature extractor takes sound.

    Attributes
    ----------
    sampling_rate
        Hz.
    hop_length, n_fft
        Samples between frames of the spectrogram, and in a frame.
    window
        Samples that every sound is padded to, and the most that it may have.
    """

    sampling_rate: int
    hop_length: int
    n_fft: int
    window: int

    @property
    def shortest(self) -> int:
        """Samples that give one token."""
        return (FRAMES_OF_FIRST_TOKEN - 1) * self.hop_length + 1

    def n_frames(self, n_samples: int) -> int:
        """Number of spectrogram frames of a sound, without those of the padding."""
        return centred_frames(n_samples, self.hop_length)

    def n_tokens(self, n_samples: int) -> int:
        """Number of tokens that stand for a sound in a prompt."""
        return count_audio_tokens(self.n_frames(n_samples))


@dataclass(frozen=True)
class SoundInputs:
    """Sounds of one length as a model takes them.

    Attributes
    ----------
    input_features : (n_clips, n_bands, n_frames) float32 tensor
    feature_attention_mask : (n_clips, n_frames) int32 tensor
        1 for frames with sound.
    n_tokens
        Tokens that stand for each sound in a prompt.
    """

    input_features: "torch.Tensor"
    feature_attention_mask: "torch.Tensor"
    n_tokens: int


def read_sound_settings(folder: Path) -> SoundSettings:
    """Return the settings of a checkpoint's feature extractor, or raise a CheckpointError when there are none."""
    values = read_values(folder, read_extractor_settings(folder, EXTRACTOR), DEFAULTS)
    return SoundSettings(
        sampling_rate=values["sampling_rate"],
        hop_length=values["hop_length"],
        n_fft=values["n_fft"],
        window=values["chunk_length"] * values["sampling_rate"],
    )


def load_sound_extractor(folder: Path) -> Any:
    """Return a checkpoint's feature extractor, or raise a CheckpointError."""
    from transformers import WhisperFeatureExtractor

    from bids_mllm.features.models.audio_tower import load_feature_extractor

    return load_feature_extractor(WhisperFeatureExtractor, folder)


def sound_inputs(
    extractor: Any, clips: Sequence[ClipMedia], settings: SoundSettings, *, whole_window: bool
) -> SoundInputs:
    """Return the spectrograms of clips of one length, bit for bit as the real processor makes them.

    Parameters
    ----------
    extractor
        Of :func:`load_sound_extractor`.
    clips
        Clips with mono sound of one length.
    settings
        Of :func:`read_sound_settings`.
    whole_window
        Whether frames of the padding are given too. Qwen2-Audio's encoder reads the whole window; Qwen2.5-Omni's
        drops the padding before it reads, so it need not be made: its window of 300 s takes 200 times as long
        to prepare as a clip of 1.5 s.

    Raises
    ------
    StimulusError
        When a clip has no sound that the model can take.
    ValueError
        When the clips differ in length.
    """
    import torch

    sounds = [
        checked_sound(clip, sampling_rate=settings.sampling_rate, shortest=settings.shortest, longest=settings.window)
        for clip in clips
    ]
    n_samples = len(sounds[0])
    if any(len(sound) != n_samples for sound in sounds):
        raise ValueError(f"Sounds of one length are needed, but these have {sorted({len(s) for s in sounds})} samples.")
    # One frame of silence behind the sound is all that the last frame with sound can reach.
    length = settings.window if whole_window else min(n_samples + settings.n_fft, settings.window)
    made = [
        extractor(
            sound,
            sampling_rate=settings.sampling_rate,
            padding="max_length",
            max_length=length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        for sound in sounds
    ]
    n_frames = None if whole_window else settings.n_frames(n_samples)
    return SoundInputs(
        input_features=torch.cat([one["input_features"][..., :n_frames] for one in made]),
        feature_attention_mask=torch.cat([one["attention_mask"][:, :n_frames] for one in made]),
        n_tokens=settings.n_tokens(n_samples),
    )
