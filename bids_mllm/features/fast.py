"""Two fast features of a stimulus, by which its clock can be told in BOLD: the level of its sound, the change of its
pictures.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bids_mllm.records import Clip, ClipJob, ClipMedia, FastFeature, FloatArray, MediaRequest, Stimulus

SOUND, PICTURES = "sound", "pictures"
BIN = 0.1
BINS_A_CLIP = 100
SAMPLING_RATE = 8000
FRAME_SIZE = (36, 64)
# Added before the logarithm: a level of -60 dB, and a change of one grey level.
QUIET, STILL = 1e-3, 1.0


def fast_jobs(stimulus: Stimulus) -> dict[str, ClipJob]:
    """Return what is to be read for each fast feature that the stimulus can have, by the feature's name."""
    jobs = {}
    if _n_bins(stimulus.audio_duration):
        request = MediaRequest("audio", sampling_rate=SAMPLING_RATE)
        jobs[SOUND] = ClipJob(_clips(stimulus.stim_file, stimulus.audio_duration), request)
    if _n_bins(stimulus.video_duration):
        request = MediaRequest("video", n_frames=BINS_A_CLIP, frame_size=FRAME_SIZE)
        jobs[PICTURES] = ClipJob(_clips(stimulus.stim_file, stimulus.video_duration), request)
    return jobs


def _n_bins(duration: float | None) -> int:
    """Whole bins of a stream."""
    return int((duration or 0.0) / BIN + 1e-6)


def _clips(stim_file: str, duration: float | None) -> list[Clip]:
    """Stretches of equal length that cover a stream; the last one may reach beyond it."""
    length = BIN * BINS_A_CLIP
    n_clips = -(-_n_bins(duration) // BINS_A_CLIP)
    return [Clip(stim_file, k, k * length, (k + 1) * length) for k in range(n_clips)]


def fast_features(stimulus: Stimulus, media: Iterable[tuple[int, ClipMedia]]) -> tuple[FastFeature, ...]:
    """Reduce the media of a stimulus to its fast features, in bins of 0.1 s.

    ``sound`` is log10 of the root mean square of the samples of each bin, ``pictures`` log10 of the mean absolute
    difference in grey levels between the picture in the middle of a bin and that in the middle of the next.

    Parameters
    ----------
    stimulus
    media
        What `read_film` gives for the jobs of `fast_jobs`, in their order.

    Returns
    -------
    tuple of FastFeature
        NaN where the file is damaged.
    """
    names = list(fast_jobs(stimulus))
    values: dict[str, list[FloatArray]] = {name: [] for name in names}
    last: NDArray[np.uint8] | None = None
    for number, clip in media:
        if names[number] == SOUND:
            values[SOUND].append(_levels(clip))
        else:
            values[PICTURES].append(_changes(last, clip))
            last = None if clip.frames is None else clip.frames[-1]
    return tuple(_feature(name, stimulus, np.concatenate(values[name])) for name in names)


def _feature(name: str, stimulus: Stimulus, values: FloatArray) -> FastFeature:
    if name == SOUND:
        return FastFeature(SOUND, 0.0, BIN, values[: _n_bins(stimulus.audio_duration)])
    # The first picture has none before it: a change lies between the middles of two bins.
    return FastFeature(PICTURES, BIN / 2, BIN, values[1 : _n_bins(stimulus.video_duration)])


def _levels(clip: ClipMedia) -> FloatArray:
    if clip.audio is None:
        return np.full(BINS_A_CLIP, np.nan)
    samples = clip.audio.astype(np.float64).reshape(BINS_A_CLIP, -1)
    levels: FloatArray = np.log10(np.sqrt((samples**2).mean(axis=1)) + QUIET)
    return levels


def _changes(last: NDArray[np.uint8] | None, clip: ClipMedia) -> FloatArray:
    """Change from the picture before to each picture, (n_bins,); NaN where there is none before."""
    if clip.frames is None:
        return np.full(BINS_A_CLIP, np.nan)
    frames = clip.frames if last is None else np.concatenate([last[None], clip.frames])
    grey = frames.astype(np.float32).mean(axis=-1)
    changes = np.log10(np.abs(np.diff(grey, axis=0)).mean(axis=(1, 2)) + STILL)
    return np.concatenate([[np.nan], changes]) if last is None else changes
