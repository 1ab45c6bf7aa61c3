"""Films made from random numbers: moving gratings in scenes of a few seconds, with unrelated sound."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bids_mllm.records import FloatArray

HEIGHT, WIDTH = 64, 96
FRAME_RATE = 12
SAMPLING_RATE = 16000
SCENE_SECONDS = (2.0, 5.0)
SOUND_SECONDS = (0.4, 2.5)
PATCHES = (2, 6)


def write_film(path: Path, *, seconds: float, seed: int) -> None:
    """Write a Matroska film with sound; pictures and sound come from independent random numbers.

    Parameters
    ----------
    path
        File to write; its folder exists.
    seconds
        Length, rounded to whole frames.
    seed
        The same seed gives the same pictures and samples.
    """
    import av

    n_frames = round(seconds * FRAME_RATE)
    picture_seed, sound_seed = np.random.SeedSequence(seed).spawn(2)
    sound = random_sound(n_frames / FRAME_RATE, np.random.default_rng(sound_seed))
    with av.open(str(path), mode="w", format="matroska", options={"fflags": "bitexact"}) as container:
        # FFmpeg's own MPEG-4 encoder is in every build and, unlike x264, gives the same bytes each time.
        video = container.add_stream("mpeg4", rate=FRAME_RATE)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.thread_count = 1
        video.bit_rate = 250_000
        audio = container.add_stream("aac", rate=SAMPLING_RATE)
        audio.codec_context.layout = "mono"
        audio.bit_rate = 64_000
        sent = 0
        frames = random_frames(n_frames, np.random.default_rng(picture_seed))
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
            container.mux(video.encode(frame))
            upto = round((index + 1) / FRAME_RATE * SAMPLING_RATE)
            piece = av.AudioFrame.from_ndarray(sound[None, sent:upto], format="fltp", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = SAMPLING_RATE, sent, Fraction(1, SAMPLING_RATE)
            container.mux(audio.encode(piece))
            sent = upto
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def random_frames(n_frames: int, rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    """Yield RGB pictures (HEIGHT, WIDTH, 3): scenes of drifting gratings on a tinted ground."""
    made = 0
    while made < n_frames:
        length = min(n_frames - made, round(rng.uniform(*SCENE_SECONDS) * FRAME_RATE))
        yield from _scene(length, rng)
        made += length


def _scene(n_frames: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One scene (n_frames, HEIGHT, WIDTH, 3) of a few patches that wander, swell and fade."""
    ground = rng.uniform(40, 215, size=3)
    picture = np.broadcast_to(ground, (n_frames, HEIGHT, WIDTH, 3)).astype(np.float32)
    for _ in range(rng.integers(*PATCHES)):
        colour = rng.uniform(-1, 1, size=3)
        colour *= rng.uniform(40, 110) / np.abs(colour).max()
        picture = picture + _patch(n_frames, rng)[..., None] * colour.astype(np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _patch(n_frames: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A drifting grating under a Gaussian window, (n_frames, HEIGHT, WIDTH) in [-1, 1]."""
    rows = np.arange(HEIGHT, dtype=np.float32)[None, :, None]
    columns = np.arange(WIDTH, dtype=np.float32)[None, None, :]
    seconds = (np.arange(n_frames, dtype=np.float32) / FRAME_RATE)[:, None, None]
    direction = rng.uniform(0, 2 * np.pi)
    wave = 2 * np.pi * rng.uniform(1, 10) / WIDTH
    speed = 2 * np.pi * rng.uniform(0, 4)
    across, down = np.float32(np.cos(direction) * wave), np.float32(np.sin(direction) * wave)
    start = np.float32(rng.uniform(0, 2 * np.pi))
    grating = np.cos(across * columns + down * rows - np.float32(speed) * seconds + start)
    row = np.float32(rng.uniform(0, HEIGHT)) + np.float32(rng.normal(0, 6)) * seconds
    column = np.float32(rng.uniform(0, WIDTH)) + np.float32(rng.normal(0, 9)) * seconds
    width = np.float32(rng.uniform(6, 30))
    window = np.exp(-((rows - row) ** 2) / (2 * width**2)) * np.exp(-((columns - column) ** 2) / (2 * width**2))
    strength = np.abs(_slow_noise(n_frames, FRAME_RATE, rng)).astype(np.float32)[:, None, None]
    patch: NDArray[np.float32] = grating * (window * np.minimum(strength, 1.5))
    return patch


def _slow_noise(n_samples: int, rate: float, rng: np.random.Generator, *, step: float = 1.2) -> FloatArray:
    """Gaussian values drawn every `step` seconds and joined by straight lines, (n_samples,)."""
    n_knots = int(np.ceil(n_samples / rate / step)) + 2
    return np.interp(np.arange(n_samples) / rate, np.arange(n_knots) * step, rng.standard_normal(n_knots))


def random_sound(seconds: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Mono samples in [-1, 1]: chords, noise bursts and pauses of random length and loudness."""
    n_samples = round(seconds * SAMPLING_RATE)
    sound = (rng.standard_normal(n_samples) * 0.002).astype(np.float32)
    start = 0
    while start < n_samples:
        length = min(n_samples - start, round(rng.uniform(*SOUND_SECONDS) * SAMPLING_RATE))
        sound[start : start + length] += _event(length, rng)
        start += length
    return np.clip(sound, -1, 1)


def _event(n_samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A chord, a band of noise or silence with a soft start and end, (n_samples,)."""
    times = np.arange(n_samples) / SAMPLING_RATE
    kind = rng.choice(["chord", "noise", "pause"], p=[0.5, 0.35, 0.15])
    loudness = 10 ** rng.uniform(-2, -0.5)
    if kind == "pause":
        return np.zeros(n_samples, dtype=np.float32)
    if kind == "chord":
        pitches = np.exp(rng.uniform(np.log(80), np.log(6000), size=rng.integers(1, 4)))
        wave = np.mean([np.sin(2 * np.pi * pitch * times) for pitch in pitches], axis=0)
    else:
        spectrum = np.fft.rfft(rng.standard_normal(n_samples))
        frequencies = np.fft.rfftfreq(n_samples, 1 / SAMPLING_RATE)
        centre = np.exp(rng.uniform(np.log(150), np.log(5000)))
        spectrum[(frequencies < centre / 1.6) | (frequencies > centre * 1.6)] = 0
        wave = np.fft.irfft(spectrum, n_samples)
        wave = wave / max(float(np.abs(wave).max()), 1e-9)
    ramp = np.minimum(1, np.minimum(times, times[::-1]) / 0.02)
    sounding: NDArray[np.float32] = (loudness * wave * ramp).astype(np.float32)
    return sounding
