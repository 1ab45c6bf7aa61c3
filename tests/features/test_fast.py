"""Fast features against media made by hand."""

from pathlib import Path

import numpy as np
import pytest

from bids_mllm.features.fast import BINS_A_CLIP, fast_features, fast_jobs
from bids_mllm.records import Clip, ClipMedia, Stimulus


def stimulus(video, audio):
    return Stimulus("a.mkv", Path("a.mkv"), "", video, audio)


def media(jobs, sound, pictures, *, broken=()):
    """Clips of 10 s as `read_film` gives them; `broken` are (name, clip) that cannot be read."""
    for number, (name, job) in enumerate(jobs.items()):
        for clip in job.clips:
            if (name, clip.index) in broken:
                yield number, ClipMedia(clip, fault="damaged")
            elif name == "sound":
                size = 80_000
                samples = np.zeros(size, dtype=np.float32)
                own = sound[clip.index * size :][:size]
                samples[: len(own)] = own
                yield number, ClipMedia(clip, audio=samples, sampling_rate=8000)
            else:
                at = np.minimum(clip.index * BINS_A_CLIP + np.arange(BINS_A_CLIP), len(pictures) - 1)
                yield number, ClipMedia(clip, frames=pictures[at], frame_times=at * 0.1)


def test_the_level_of_each_tenth_of_a_second():
    film = stimulus(None, 12.34)
    jobs = fast_jobs(film)
    assert list(jobs) == ["sound"]
    assert list(jobs["sound"].clips) == [Clip("a.mkv", 0, 0.0, 10.0), Clip("a.mkv", 1, 10.0, 20.0)]
    samples = np.full(98_720, 0.1, dtype=np.float32)
    samples[:800] = 0
    (feature,) = fast_features(film, media(jobs, samples, None))
    assert (feature.name, feature.origin, feature.step) == ("sound", 0.0, 0.1)
    np.testing.assert_allclose(feature.values, [-3.0, *[np.log10(0.101)] * 122], rtol=1e-6)


def test_a_cut_is_where_the_picture_changes():
    film = stimulus(11.0, None)
    pictures = np.zeros((110, 36, 64, 3), dtype=np.uint8)
    pictures[73:] = 99
    jobs = fast_jobs(film)
    (feature,) = fast_features(film, media(jobs, None, pictures))
    assert (feature.name, feature.step, len(feature.values)) == ("pictures", 0.1, 109)
    cut = int(np.argmax(feature.values))
    assert feature.origin + (cut + 0.5) * 0.1 == pytest.approx(7.3)
    np.testing.assert_allclose(np.delete(feature.values, cut), 0.0)
    assert feature.values[cut] == pytest.approx(2.0)


def test_a_damaged_stretch_is_not_known_and_clips_join():
    film = stimulus(40.0, 40.0)
    pictures = np.repeat(np.arange(400, dtype=np.uint8)[:, None, None, None] % 200, 3, axis=3) * np.ones(
        (1, 36, 64, 1), dtype=np.uint8
    )
    jobs = fast_jobs(film)
    assert list(jobs) == ["sound", "pictures"]
    sound, change = fast_features(film, media(jobs, np.ones(320_000), pictures, broken=[("pictures", 1), ("sound", 3)]))
    unknown = np.isnan(change.values)
    assert np.flatnonzero(unknown).tolist() == list(range(99, 200))
    assert change.values[98] == change.values[300] == pytest.approx(np.log10(2))
    assert np.flatnonzero(np.isnan(sound.values)).tolist() == list(range(300, 400))


def test_a_stimulus_without_either_has_none():
    assert fast_jobs(stimulus(0.05, None)) == {}
    assert fast_features(stimulus(0.05, None), iter(())) == ()
