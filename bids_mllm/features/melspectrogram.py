"""Mel spectrogram of a sound: the log power in each band, averaged over a window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.exceptions import StimulusError, UsageError
from bids_mllm.features.extractor import Extracted, ExtractionPlan, Extractor, Family, ReadOut
from bids_mllm.records import ClipMedia, Condition, FloatArray, MediaRequest, ModelSpec

CONDITION = Condition("stimulus")
# Power below this is set to it before the logarithm, so that silence is a finite constant.
POWER_FLOOR = 1e-10
BATCH_SIZE = 64
DEFAULTS: Mapping[str, Any] = {
    "sampling_rate": 16000,
    "n_mels": 64,
    "n_fft": 512,
    "hop_length": 160,
    "fmin": 0.0,
    "fmax": None,
}


def mel_parameters(spec: ModelSpec) -> dict[str, Any]:
    """Return the parameters of `spec` completed with the defaults and checked."""
    unknown = sorted(set(spec.parameters) - set(DEFAULTS))
    if unknown:
        raise UsageError(
            f"Model {spec.key} has the unknown parameter {unknown[0]!r}; the mel spectrogram takes "
            f"{', '.join(sorted(DEFAULTS))}."
        )
    values = {**DEFAULTS, **spec.parameters}
    for name in ("sampling_rate", "n_mels", "n_fft", "hop_length"):
        values[name] = int(values[name])
    nyquist = values["sampling_rate"] / 2
    values["fmin"] = float(values["fmin"])
    values["fmax"] = nyquist if values["fmax"] is None else float(values["fmax"])
    if not 0 <= values["fmin"] < values["fmax"] <= nyquist:
        raise UsageError(
            f"Model {spec.key} asks for bands from {values['fmin']:g} to {values['fmax']:g} Hz, but they "
            f"must rise and lie between 0 and {nyquist:g} Hz, half of the sampling rate."
        )
    return values


def log_mel(audio: NDArray[np.float32], values: Mapping[str, Any]) -> FloatArray:
    """Mean over frames of ``log10(max(power, 1e-10))`` in each mel band.

    Frames lie wholly inside the samples (no padding at either end), so that no sound from outside the
    window enters.

    Parameters
    ----------
    audio : (n_samples,) float
        Samples at ``values["sampling_rate"]`` Hz, at least ``values["n_fft"]`` of them.
    values
        The parameters of :func:`mel_parameters`.

    Returns
    -------
    levels : (n_mels,) float
    """
    from librosa.feature import melspectrogram

    power = melspectrogram(
        y=audio,
        sr=values["sampling_rate"],
        n_fft=values["n_fft"],
        hop_length=values["hop_length"],
        n_mels=values["n_mels"],
        fmin=values["fmin"],
        fmax=values["fmax"],
        center=False,
        power=2.0,
    )
    levels: FloatArray = np.log10(np.maximum(power, POWER_FLOOR)).mean(axis=1)
    return levels


@dataclass(frozen=True)
class MelExtractor:
    """The parameters of the mel filter bank."""

    values: Mapping[str, Any]

    def extract(self, clips: Sequence[ClipMedia]) -> Extracted:
        """Return the band levels of each clip, an array (n_clips, 1, n_mels)."""
        levels = np.stack([log_mel(self._audio(media), self.values) for media in clips])
        return Extracted({CONDITION: levels[:, None, :].astype(np.float32)})

    def close(self) -> None:
        """Nothing is held outside Python's memory."""

    def _audio(self, media: ClipMedia) -> NDArray[np.float32]:
        name = f"Window {media.clip.index} of {media.clip.stim_file}"
        if media.audio is None or len(media.audio) < self.values["n_fft"]:
            n_samples = 0 if media.audio is None else len(media.audio)
            raise StimulusError(
                f"{name} came with {n_samples} audio samples, but the mel spectrogram needs at least "
                f"{self.values['n_fft']}; check that the sound lasts for the whole window."
            )
        if media.sampling_rate != self.values["sampling_rate"]:
            raise StimulusError(
                f"{name} came at {media.sampling_rate} Hz, but the mel spectrogram was set to "
                f"{self.values['sampling_rate']} Hz; resample the sound when it is read."
            )
        return media.audio


def plan_mel(spec: ModelSpec, read_out: ReadOut) -> ExtractionPlan:
    """Return what the extraction needs: the samples of the window alone."""
    values = mel_parameters(spec)
    n_samples = int(read_out.window * values["sampling_rate"])
    if n_samples < values["n_fft"]:
        raise UsageError(
            f"A window of {read_out.window:g} s holds {n_samples} samples at {values['sampling_rate']} Hz, "
            f"but model {spec.key} needs n_fft = {values['n_fft']}; lengthen the window or lower n_fft."
        )
    identity = {
        "family": FAMILY.name,
        "parameters": values,
        "power_floor": POWER_FLOOR,
        "versions": {name: version(name) for name in ("librosa", "numpy")},
    }
    request = MediaRequest("audio", sampling_rate=values["sampling_rate"])
    return ExtractionPlan(identity, request, (CONDITION,), 1, values["n_mels"], BATCH_SIZE)


def load_mel(spec: ModelSpec, read_out: ReadOut, device: str) -> Extractor:
    """Return the extractor; it computes on the CPU whatever `device` is."""
    del device, read_out
    return MelExtractor(mel_parameters(spec))


FAMILY = Family("melspectrogram", plan_mel, load_mel)
