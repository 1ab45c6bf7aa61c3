"""Motion energy against pymoten and a moving grating, mel spectrogram against tones."""

import json

import numpy as np
import pytest

from bids_mllm.exceptions import StimulusError, UsageError
from bids_mllm.features import melspectrogram, motionenergy
from bids_mllm.features.extractor import ReadOut
from bids_mllm.records import Clip, ClipMedia, Condition, ModelSpec

FPS, SIZE, WINDOW = 8, (36, 64), 1.5
SMALL = {
    "fps": FPS,
    "frame_size": list(SIZE),
    "temporal_frequencies": [0, 2],
    "spatial_frequencies": [0, 2, 4, 8],
    "spatial_directions": [0, 90, 180, 270],
}
READ_OUT = ReadOut(window=WINDOW, poolings=("stimulus",), instructions=())
STIMULUS = Condition("stimulus")


def motion_spec(**changes):
    return ModelSpec("motionenergy", "motionenergy", "video", parameters={**SMALL, **changes})


def mel_spec(**changes):
    return ModelSpec("melspectrogram", "melspectrogram", "audio", parameters=changes)


def clip_of_frames(frames):
    return ClipMedia(Clip("film.mkv", 0, 0.0, WINDOW), frames=frames)


def clip_of_sound(audio, rate=16000):
    return ClipMedia(Clip("sound.wav", 0, 0.0, WINDOW), audio=audio.astype(np.float32), sampling_rate=rate)


@pytest.fixture(scope="module")
def motion():
    plan = motionenergy.FAMILY.plan(motion_spec(), READ_OUT)
    return plan, motionenergy.FAMILY.load(motion_spec(), READ_OUT, "cpu")


def grating(n_frames, direction, *, spatial=4.0, temporal=2.0):
    """A sine grating that drifts towards `direction` (0 right, 90 up) as RGB frames."""
    height, width = SIZE
    x, y = np.meshgrid(np.linspace(0, width / height, width), np.linspace(0, 1, height))
    along = x * np.cos(np.deg2rad(direction)) - y * np.sin(np.deg2rad(direction))
    time = np.arange(n_frames)[:, None, None] / FPS
    wave = np.sin(2 * np.pi * (spatial * along - temporal * time))
    return np.repeat((127.5 + 120 * wave).astype(np.uint8)[..., None], 3, axis=3)


def test_plan_asks_for_the_window_and_one_filter_before_it(motion):
    plan, _ = motion
    width = int(FPS * 2 / 3)
    assert plan.request.lead == pytest.approx(width / FPS)
    assert plan.request.n_frames == round((WINDOW + plan.request.lead) * FPS)
    assert plan.request.frame_size == SIZE
    assert plan.conditions == (STIMULUS,)
    assert plan.n_layers == 1


def test_identity_is_json_and_changes_with_every_parameter():
    base = json.dumps(motionenergy.FAMILY.plan(motion_spec(), READ_OUT).identity, sort_keys=True)
    changes = {
        "fps": 10,
        "frame_size": [18, 32],
        "temporal_frequencies": [0, 1],
        "spatial_frequencies": [0, 2],
        "spatial_directions": [0, 180],
        "filter_temporal_width": 4,
    }
    for name, value in changes.items():
        plan = motionenergy.FAMILY.plan(motion_spec(**{name: value}), READ_OUT)
        assert json.dumps(plan.identity, sort_keys=True) != base, name


@pytest.mark.parametrize("direction", [0, 90, 180, 270])
def test_a_drifting_grating_excites_its_own_direction(motion, direction):
    from moten.pyramids import MotionEnergyPyramid

    plan, extractor = motion
    energy = extractor.extract([clip_of_frames(grating(plan.request.n_frames, direction))]).features[STIMULUS][0, 0]
    table = MotionEnergyPyramid(
        SIZE, FPS, [0, 2], [0, 2, 4, 8], [0, 90, 180, 270], filter_temporal_width=int(FPS * 2 / 3)
    ).parameters
    tuned = (table["spatial_freq"] == 4) & (table["temporal_freq"] == 2)
    own = energy[tuned & (table["direction"] == direction)]
    opposite = energy[tuned & (table["direction"] == (direction + 180) % 360)]
    assert np.all(own > opposite + 0.3)


def test_the_responses_are_those_of_pymoten_on_the_film_run_backwards(motion):
    from moten.pyramids import MotionEnergyPyramid

    plan, extractor = motion
    frames = np.random.default_rng(0).integers(0, 256, (plan.request.n_frames, *SIZE, 3), dtype=np.uint8)
    energy = extractor.extract([clip_of_frames(frames)]).features[STIMULUS][0, 0]
    pyramid = MotionEnergyPyramid(SIZE, FPS, [0, 2], [0, 2, 4, 8], [0, 90, 180, 270])
    # pymoten convolves, so it meets its filters in the order of time on the film run backwards.
    backwards = motionenergy.luminance(frames)[::-1]
    responses = pyramid.project_stimulus(backwards, dtype="float64")[::-1]
    width = int(FPS * 2 / 3)
    last = np.arange(len(frames)) + width - int(np.ceil(width / 2))
    inside = (last >= width) & (last < len(frames))
    assert plan.width == pyramid.nfilters
    np.testing.assert_allclose(energy, responses[inside].mean(axis=0), rtol=1e-3, atol=1e-3)


def test_luminance_is_zero_for_black_and_a_hundred_for_white():
    frames = np.zeros((2, 3, 4, 3), dtype=np.uint8)
    frames[1] = 255
    lightness = motionenergy.luminance(frames)
    np.testing.assert_allclose(lightness[0], 0, atol=1e-6)
    np.testing.assert_allclose(lightness[1], 100, atol=1e-3)


def test_every_requested_frame_matters_but_the_first(motion):
    """The frames after a window are not requested, and the earliest one supports no response inside."""
    plan, extractor = motion
    frames = np.random.default_rng(1).integers(0, 256, (plan.request.n_frames, *SIZE, 3), dtype=np.uint8)
    energy = extractor.extract([clip_of_frames(frames)]).features[STIMULUS]
    for index in range(len(frames)):
        changed = frames.copy()
        changed[index] = 255 - changed[index]
        same = np.array_equal(extractor.extract([clip_of_frames(changed)]).features[STIMULUS], energy)
        assert same == (index == 0)


def test_a_later_film_does_not_change_an_earlier_window(motion):
    plan, extractor = motion
    rng = np.random.default_rng(2)
    film = rng.integers(0, 256, (60, *SIZE, 3), dtype=np.uint8)
    end = 30
    other = film.copy()
    other[end:] = rng.integers(0, 256, other[end:].shape, dtype=np.uint8)
    cut = slice(end - plan.request.n_frames, end)
    first, second = (extractor.extract([clip_of_frames(one[cut])]).features[STIMULUS] for one in (film, other))
    np.testing.assert_array_equal(first, second)


def test_clips_of_a_batch_do_not_mix(motion):
    plan, extractor = motion
    rng = np.random.default_rng(3)
    films = rng.integers(0, 256, (3, plan.request.n_frames, *SIZE, 3), dtype=np.uint8)
    together = extractor.extract([clip_of_frames(film) for film in films]).features[STIMULUS]
    assert together.shape == (3, 1, plan.width)
    alone = np.concatenate([extractor.extract([clip_of_frames(film)]).features[STIMULUS] for film in films])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_black_frames_give_finite_energy(motion):
    plan, extractor = motion
    black = np.zeros((plan.request.n_frames, *SIZE, 3), dtype=np.uint8)
    assert np.isfinite(extractor.extract([clip_of_frames(black)]).features[STIMULUS]).all()


def test_wrong_frames_are_refused(motion):
    _, extractor = motion
    with pytest.raises(StimulusError, match=r"film\.mkv"):
        extractor.extract([clip_of_frames(np.zeros((3, *SIZE, 3), dtype=np.uint8))])
    with pytest.raises(StimulusError, match="no frames"):
        extractor.extract([clip_of_frames(None)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"speed": 3}, "unknown parameter 'speed'"),
        ({"fps": 7.5}, "whole number"),
        ({"temporal_frequencies": [0, 5]}, "at most 4 Hz"),
    ],
)
def test_motion_parameters_are_checked(changes, words):
    with pytest.raises(UsageError, match=words):
        motionenergy.FAMILY.plan(motion_spec(**changes), READ_OUT)


def test_a_window_shorter_than_a_frame_is_refused():
    with pytest.raises(UsageError, match="holds no frame"):
        motionenergy.FAMILY.plan(motion_spec(), ReadOut(0.05, ("stimulus",), ()))


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 4000.0])
def test_a_tone_peaks_in_the_band_that_holds_it(frequency):
    from librosa import mel_frequencies

    extractor = melspectrogram.FAMILY.load(mel_spec(n_mels=32), READ_OUT, "cpu")
    time = np.arange(int(WINDOW * 16000)) / 16000
    levels = extractor.extract([clip_of_sound(np.sin(2 * np.pi * frequency * time))]).features[STIMULUS]
    edges = mel_frequencies(34, fmin=0, fmax=8000)
    peak = int(levels[0, 0].argmax())
    assert levels.shape == (1, 1, 32)
    assert edges[peak] < frequency < edges[peak + 2]


def test_silence_is_the_floor():
    extractor = melspectrogram.FAMILY.load(mel_spec(), READ_OUT, "cpu")
    levels = extractor.extract([clip_of_sound(np.zeros(24000))]).features[STIMULUS]
    np.testing.assert_allclose(levels, -10.0, rtol=1e-6)


def test_ten_times_the_amplitude_is_two_decades():
    extractor = melspectrogram.FAMILY.load(mel_spec(), READ_OUT, "cpu")
    noise = np.random.default_rng(0).normal(size=24000) * 0.01
    quiet, loud = extractor.extract([clip_of_sound(noise), clip_of_sound(noise * 10)]).features[STIMULUS]
    np.testing.assert_allclose(loud - quiet, 2.0, atol=1e-3)


def test_mel_frames_lie_wholly_inside_the_window():
    """1 + (24000 - 512) // 160 = 147 frames end at sample 146 * 160 + 512; what follows is part of none."""
    extractor = melspectrogram.FAMILY.load(mel_spec(), READ_OUT, "cpu")
    noise = np.random.default_rng(1).normal(size=24000) * 0.01
    last = 146 * 160 + 512
    after, before = noise.copy(), noise.copy()
    after[last:] = 0.5
    before[last - 20 :] = 0.5
    first, second, third = extractor.extract([clip_of_sound(one) for one in (noise, after, before)]).features[STIMULUS]
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)


def test_mel_plan_takes_the_window_alone_and_its_identity_holds_the_parameters():
    plan = melspectrogram.FAMILY.plan(mel_spec(), READ_OUT)
    assert plan.request.lead == 0
    assert plan.request.sampling_rate == 16000
    assert (plan.n_layers, plan.width, plan.conditions) == (1, 64, (STIMULUS,))
    base = json.dumps(plan.identity, sort_keys=True)
    changes = {"sampling_rate": 8000, "n_mels": 20, "n_fft": 400, "hop_length": 80, "fmin": 50, "fmax": 3000}
    for name, value in changes.items():
        changed = melspectrogram.FAMILY.plan(mel_spec(**{name: value}), READ_OUT)
        assert json.dumps(changed.identity, sort_keys=True) != base, name


def test_mel_settings_and_sounds_are_checked():
    with pytest.raises(UsageError, match="unknown parameter"):
        melspectrogram.FAMILY.plan(mel_spec(bands=3), READ_OUT)
    with pytest.raises(UsageError, match="half of the sampling rate"):
        melspectrogram.FAMILY.plan(mel_spec(fmax=9000), READ_OUT)
    with pytest.raises(UsageError, match="lengthen the window"):
        melspectrogram.FAMILY.plan(mel_spec(), ReadOut(0.01, ("stimulus",), ()))
    extractor = melspectrogram.FAMILY.load(mel_spec(), READ_OUT, "cpu")
    with pytest.raises(StimulusError, match="100 audio samples"):
        extractor.extract([clip_of_sound(np.zeros(100))])
    with pytest.raises(StimulusError, match="8000 Hz"):
        extractor.extract([clip_of_sound(np.zeros(24000), rate=8000)])
