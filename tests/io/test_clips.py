"""Reading films and sounds: films whose frames carry their number as a grey level, tones of known pitch."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from bids_mllm.exceptions import StimulusError
from bids_mllm.io.clips import probe_stimulus, read_clips
from bids_mllm.io.films import read_film
from bids_mllm.records import Clip, ClipJob, ClipMedia, MediaRequest

REAL_FILMS = Path(__file__).parents[3] / "shared" / "data" / "videos"
RATE = 10
N_FRAMES = 40
STEP = 5
needs_real_films = pytest.mark.skipif(not REAL_FILMS.is_dir(), reason="the real films are not here")


def grey(index: int) -> int:
    return 30 + STEP * index


def frame_numbers(media: ClipMedia) -> list[int]:
    assert media.frames is not None
    return [round((level - 30) / STEP) for level in media.frames.mean(axis=(1, 2, 3))]


def tone(seconds: float, rate: int, pitch: float) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def pitch_of(audio: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    return float(np.fft.rfftfreq(len(audio), 1 / rate)[spectrum.argmax()])


def write_film(
    path: Path,
    *,
    video: str | None = "libx264",
    audio: str | None = "aac",
    times: Sequence[float] | None = None,
    sound: np.ndarray | None = None,
    sound_rate: int = 16000,
    layout: str = "mono",
    sound_starts: Sequence[float] = (0.0,),
) -> Path:
    """Write frames at `times` (ms precision) and, from each of `sound_starts`, one copy of `sound`."""
    times = np.arange(N_FRAMES) / RATE if times is None else times
    sound = tone(N_FRAMES / RATE, sound_rate, 440.0)[None] if sound is None else sound
    with av.open(str(path), mode="w") as container:
        picture = container.add_stream(video, rate=RATE) if video else None
        sounding = container.add_stream(audio, rate=sound_rate) if audio else None
        packets = []
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
            picture.codec_context.time_base = Fraction(1, 1000)
            picture.codec_context.gop_size = 12
            for index, time in enumerate(times):
                pixels = np.full((48, 64, 3), grey(index), dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
                packets += picture.encode(frame)
            packets += picture.encode(None)
        if sounding is not None:
            sounding.codec_context.layout = layout
            for start in sound_starts:
                for first in range(0, sound.shape[1], 960):
                    samples = np.ascontiguousarray(sound[:, first : first + 960])
                    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
                    frame.sample_rate, frame.time_base = sound_rate, Fraction(1, sound_rate)
                    frame.pts = round(start * sound_rate) + first
                    packets += sounding.encode(frame)
            packets += sounding.encode(None)
        for packet in sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)):
            container.mux(packet)
    return path


def read(path: Path, windows: Sequence[tuple[float, float]], request: MediaRequest) -> list[ClipMedia]:
    stimulus = probe_stimulus(path, path.name)
    clips = [Clip(path.name, k, start, end) for k, (start, end) in enumerate(windows)]
    return [media for _, media in read_film(stimulus, [ClipJob(clips, request)])]


FORMATS = [
    ("a.mp4", "libx264", "aac"),
    ("a.mkv", "libx264", "libmp3lame"),
    ("a.webm", "libvpx-vp9", "libopus"),
]


@pytest.fixture(scope="module", params=FORMATS, ids=lambda p: p[0])
def film(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, video, audio = request.param
    if not {video, audio} <= av.codecs_available:
        pytest.skip(f"this build of FFmpeg lacks {video} or {audio}")
    return write_film(tmp_path_factory.mktemp("film") / name, video=video, audio=audio)


def test_probe_gives_the_streams_durations(film: Path) -> None:
    stimulus = probe_stimulus(film, "films/" + film.name)
    assert stimulus.stim_file == "films/" + film.name
    assert stimulus.video_duration == pytest.approx(4.0, abs=0.02)
    assert stimulus.audio_duration == pytest.approx(4.0, abs=0.15)
    assert (stimulus.width, stimulus.height) == (64, 48)
    assert stimulus.frame_rate == pytest.approx(RATE, rel=0.05)
    assert len(stimulus.sha256) == 64


def test_frames_are_those_on_screen_at_the_centres_of_equal_parts(film: Path) -> None:
    [media] = read(film, [(1.0, 2.0)], MediaRequest("video", n_frames=5))
    # Instants 1.1, 1.3, 1.5, 1.7, 1.9: a frame that starts at the instant is already on screen.
    assert frame_numbers(media) == [11, 13, 15, 17, 19]
    np.testing.assert_allclose(media.frame_times, [1.1, 1.3, 1.5, 1.7, 1.9], atol=2e-3)


def test_lead_and_overlapping_windows(film: Path) -> None:
    first, second = read(film, [(1.0, 2.0), (1.5, 2.5)], MediaRequest("video", n_frames=3, lead=0.5))
    # Spans [0.5, 2.0) and [1.0, 2.5): instants 0.75, 1.25, 1.75 and 1.25, 1.75, 2.25.
    assert frame_numbers(first) == [7, 12, 17]
    assert frame_numbers(second) == [12, 17, 22]


def test_the_first_and_the_last_frame_stand_outside_the_film(film: Path) -> None:
    before, after = read(film, [(-1.0, 0.0), (4.5, 5.0)], MediaRequest("video", n_frames=2))
    assert frame_numbers(before) == [0, 0]
    assert frame_numbers(after) == [N_FRAMES - 1] * 2


def test_a_window_does_not_depend_on_the_others(film: Path) -> None:
    windows = [(k * 0.3, k * 0.3 + 0.6) for k in range(11)]
    for request in (MediaRequest("video", n_frames=2), MediaRequest("audio", sampling_rate=11025)):
        together = read(film, windows, request)
        [alone] = read(film, windows[8:9], request)
        if request.media == "video":
            np.testing.assert_array_equal(together[8].frames, alone.frames)
        else:
            np.testing.assert_allclose(together[8].audio, alone.audio, atol=2e-3)
        again = read(film, windows, request)
        for one, other in zip(together, again, strict=True):
            np.testing.assert_array_equal(one.frames, other.frames)
            np.testing.assert_array_equal(one.audio, other.audio)


def test_sound_has_the_right_pitch_size_and_number_of_samples(film: Path) -> None:
    media = read(film, [(0.5, 1.99), (1.0, 3.0)], MediaRequest("audio", sampling_rate=8000, lead=0.25))
    assert [m.audio.size for m in media if m.audio is not None] == [13920, 18000]
    for each in media:
        assert each.audio is not None
        assert each.audio.dtype == np.float32
        assert each.sampling_rate == 8000
        assert pitch_of(each.audio, 8000) == pytest.approx(440, abs=1)
        assert np.abs(each.audio).max() == pytest.approx(0.4, abs=0.05)


def test_frames_are_scaled_to_height_and_width(film: Path) -> None:
    [small] = read(film, [(1.0, 2.0)], MediaRequest("video", n_frames=2, frame_size=(12, 20)))
    [large] = read(film, [(1.0, 2.0)], MediaRequest("video", n_frames=2, frame_size=(96, 80)))
    assert small.frames is not None
    assert small.frames.shape == (2, 12, 20, 3)
    assert large.frames is not None
    assert large.frames.shape == (2, 96, 80, 3)
    assert frame_numbers(small) == frame_numbers(large) == [12, 17]


def test_variable_frame_rate_follows_the_time_stamps(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 1.0, 1.05, 3.0]
    path = write_film(tmp_path / "v.mkv", times=times, audio=None)
    [media] = read(path, [(0.0, 3.0)], MediaRequest("video", n_frames=6))
    # Instants 0.25, 0.75, 1.25, 1.75, 2.25, 2.75.
    assert frame_numbers(media) == [2, 2, 4, 4, 4, 4]
    np.testing.assert_allclose(media.frame_times, [0.2, 0.2, 1.05, 1.05, 1.05, 1.05], atol=2e-3)


def test_the_clock_starts_with_the_earlier_stream(tmp_path: Path) -> None:
    times = 5.5 + np.arange(N_FRAMES) / RATE
    path = write_film(tmp_path / "late.mkv", times=times, audio="flac", sound_starts=(5.0,))
    stimulus = probe_stimulus(path, "late.mkv")
    assert stimulus.audio_duration == pytest.approx(4.0, abs=0.01)
    assert stimulus.video_duration == pytest.approx(4.5, abs=0.01)
    [frames] = read(path, [(1.0, 2.0)], MediaRequest("video", n_frames=2))
    assert frame_numbers(frames) == [7, 12]
    [sound] = read(path, [(-0.5, 0.5)], MediaRequest("audio", sampling_rate=16000))
    assert sound.audio is not None
    expected = np.concatenate([np.zeros(8000), tone(0.5, 16000, 440.0)])
    np.testing.assert_allclose(sound.audio, expected, atol=1e-3)


def test_a_gap_in_the_sound_is_silence(tmp_path: Path) -> None:
    # Four whole FLAC frames, so that the encoder does not join the two beeps.
    beep = tone(4 * 4608 / 16000, 16000, 1000.0)[None]
    path = write_film(tmp_path / "gap.mkv", audio="flac", sound=beep, sound_starts=(0.0, 2.5))
    [media] = read(path, [(0.0, 4.0)], MediaRequest("audio", sampling_rate=16000))
    expected = np.zeros(64000)
    expected[:18432] = expected[40000:58432] = beep[0]
    assert media.audio is not None
    np.testing.assert_allclose(media.audio, expected, atol=1e-3)


def test_a_click_is_where_its_time_stamp_says(tmp_path: Path) -> None:
    sound = np.zeros((1, 4 * 44100), dtype=np.float32)
    sound[0, 3 * 44100] = 0.9
    path = write_film(tmp_path / "click.mkv", audio="flac", sound=sound, sound_rate=44100)
    [media] = read(path, [(2.5, 3.5)], MediaRequest("audio", sampling_rate=16000))
    assert media.audio is not None
    assert int(np.abs(media.audio).argmax()) == 8000


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_surround_sound_becomes_one_channel(tmp_path: Path, suffix: str) -> None:
    centre = np.zeros((6, 4 * 48000), dtype=np.float32)
    centre[2] = tone(4.0, 48000, 700.0)
    path = write_film(tmp_path / f"s.{suffix}", sound=centre, sound_rate=48000, layout="5.1")
    [media] = read(path, [(1.0, 3.0)], MediaRequest("audio", sampling_rate=16000))
    assert media.audio is not None
    assert media.audio.shape == (32000,)
    assert pitch_of(media.audio, 16000) == pytest.approx(700, abs=1)


def test_loud_channels_do_not_clip(tmp_path: Path) -> None:
    loud = np.tile(2.4 * tone(4.0, 48000, 500.0), (2, 1))
    path = write_film(tmp_path / "loud.mkv", audio="flac", sound=loud, sound_rate=48000, layout="stereo")
    [media] = read(path, [(1.0, 2.0)], MediaRequest("audio", sampling_rate=48000))
    np.testing.assert_allclose(media.audio, loud[0, 48000:96000], atol=1e-3)


def test_a_sound_file_has_no_video(tmp_path: Path) -> None:
    path = write_film(tmp_path / "only.mp4", video=None)
    stimulus = probe_stimulus(path, "only.mp4")
    assert stimulus.video_duration is None
    assert stimulus.audio_duration == pytest.approx(4.0, abs=0.1)
    with pytest.raises(StimulusError, match=r"only\.mp4 has no video stream"):
        read(path, [(0.0, 1.0)], MediaRequest("video", n_frames=2))


def test_a_silent_film_is_refused_for_sound(tmp_path: Path) -> None:
    path = write_film(tmp_path / "mute.mp4", audio=None)
    assert probe_stimulus(path, "mute.mp4").audio_duration is None
    with pytest.raises(StimulusError, match=r"mute\.mp4 has no audio stream, but the model needs audio"):
        read(path, [(0.0, 1.0)], MediaRequest("audio", sampling_rate=16000))


def test_rotation_is_honoured(tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        pixels = np.zeros((48, 64, 3), dtype=np.uint8)
        pixels[:, :16] = 255
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    content = bytearray(path.read_bytes())
    one = 0x00010000
    identity = np.array([one, 0, 0, 0, one, 0, 0, 0, 0x40000000], dtype=">i4").tobytes()
    clockwise = np.array([0, one, 0, -one, 0, 0, 48 * one, 0, 0x40000000], dtype=">i4").tobytes()
    place = content.index(identity, content.index(b"tkhd"))
    content[place : place + 36] = clockwise
    path.write_bytes(content)
    stimulus = probe_stimulus(path, "turned.mp4")
    assert (stimulus.width, stimulus.height) == (48, 64)
    [media] = read(path, [(0.0, 1.0)], MediaRequest("video", n_frames=1))
    assert media.frames is not None
    assert media.frames.shape == (1, 64, 48, 3)
    # Turned clockwise, the bright left edge is on top.
    assert media.frames[0, :12].mean() > 230
    assert media.frames[0, 24:].mean() < 25
    [small] = read(path, [(0.0, 1.0)], MediaRequest("video", n_frames=1, frame_size=(32, 24)))
    assert small.frames is not None
    assert small.frames.shape == (1, 32, 24, 3)
    assert small.frames[0, :6].mean() > 230


def test_missing_files_name_the_way_to_fetch_them(tmp_path: Path) -> None:
    link = tmp_path / "film.mkv"
    link.symlink_to(tmp_path / "annex" / "nowhere")
    pointer = tmp_path / "pointer.mkv"
    pointer.write_text("/annex/objects/MD5E-s404--0.mkv\n")
    for path in (link, pointer, tmp_path / "absent.mkv"):
        with pytest.raises(StimulusError, match=rf"{path.name}.*datalad get"):
            probe_stimulus(path, path.name)


@pytest.mark.parametrize("content", [b"", b"no film\n" * 200])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.mp4"
    path.write_bytes(content)
    with pytest.raises(StimulusError, match=r"text\.mp4"):
        probe_stimulus(path, "text.mp4")


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_a_truncated_film_is_refused(tmp_path: Path, name: str) -> None:
    path = write_film(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StimulusError, match=r"cut\.(mp4|mkv)"):
        probe_stimulus(path, name)


def test_broken_data_name_the_film_and_the_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = rng.normal(0, 0.1, (1, 64000)).astype(np.float32)
    path = write_film(tmp_path / "broken.mkv", audio="flac", sound=sound)
    stimulus = probe_stimulus(path, "broken.mkv")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [p.pos for p in container.demux(audio=0) if p.pos and p.pts and p.pts > 1500]
    for place in places:
        content[place + 8 : place + 40] = bytes(32)
    path.write_bytes(content)
    clips = [Clip("broken.mkv", 0, 0.0, 3.5)]
    with pytest.raises(StimulusError, match=r"broken\.mkv is damaged from 1\.5\d s to its end: the sound"):
        list(read_clips(stimulus, clips, MediaRequest("audio", sampling_rate=16000)))


def test_clips_must_be_in_order_and_of_the_stimulus(film: Path) -> None:
    request = MediaRequest("video", n_frames=1)
    with pytest.raises(ValueError, match="in order of their start"):
        read(film, [(1.0, 2.0), (0.0, 1.0)], request)
    stimulus = probe_stimulus(film, film.name)
    with pytest.raises(ValueError, match="another stimulus"):
        read_clips(stimulus, [Clip("other.mkv", 0, 0.0, 1.0)], request)
    with pytest.raises(ValueError, match="in order of their start"):
        read_clips(stimulus, [Clip(film.name, k, float(-k), 1.0) for k in range(2)], request)
    with pytest.raises(ValueError, match="another stimulus"):
        list(read_film(stimulus, [ClipJob([Clip("other.mkv", 0, 0.0, 1.0)], request)]))
    assert list(read_clips(stimulus, [], request)) == []


def test_clips_of_one_model_are_those_of_the_film(film: Path) -> None:
    stimulus = probe_stimulus(film, film.name)
    clips = [Clip(film.name, k, 0.5 * k, 0.5 * k + 1.0) for k in range(6)]
    request = MediaRequest("video", n_frames=3)
    alone = list(read_clips(stimulus, clips, request))
    assert [media.clip for media in alone] == clips
    for media, (job, other) in zip(alone, read_film(stimulus, [ClipJob(clips, request)]), strict=True):
        assert job == 0
        np.testing.assert_array_equal(media.frames, other.frames)


@pytest.mark.parametrize("request_", [MediaRequest("video"), MediaRequest("audio"), MediaRequest("both", n_frames=2)])
def test_a_request_for_nothing_is_refused(film: Path, request_: MediaRequest) -> None:
    with pytest.raises(ValueError, match="needs n_frames or sampling_rate of at least 1"):
        read(film, [(0.0, 1.0)], request_)


@needs_real_films
@pytest.mark.parametrize(
    ("name", "video", "audio", "size"),
    [
        ("jwst_narrated_13s.mp4", 13.013, 13.056, (480, 270)),
        ("big_buck_bunny_30s.webm", 30.0, 30.019, (1280, 720)),
        ("big_buck_bunny_5s_surround.mp4", 5.28, 5.312, (1280, 720)),
    ],
)
def test_real_films(name: str, video: float, audio: float, size: tuple[int, int]) -> None:
    stimulus = probe_stimulus(REAL_FILMS / name, name)
    assert stimulus.video_duration == pytest.approx(video, abs=0.005)
    assert stimulus.audio_duration == pytest.approx(audio, abs=0.005)
    assert (stimulus.width, stimulus.height) == size
    windows = [(k * 1.49, (k + 1) * 1.49) for k in range(int(video / 1.49))]
    sounds = read(REAL_FILMS / name, windows, MediaRequest("audio", sampling_rate=16000))
    assert len(sounds) == len(windows)
    assert all(m.audio is not None and m.audio.size == 23840 and np.abs(m.audio).max() > 1e-3 for m in sounds)
    pictures = read(REAL_FILMS / name, windows, MediaRequest("video", n_frames=4, frame_size=(54, 96)))
    times = np.concatenate([m.frame_times for m in pictures if m.frame_times is not None])
    instants = (np.arange(times.size) + 0.5) * 1.49 / 4
    assert np.all(times <= instants + 6e-4)
    assert np.all(times > instants - 1 / stimulus.frame_rate - 1e-3)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampled_sound_is_that_of_soxr(tmp_path: Path, rate: int) -> None:
    """A rising tone below both rates' limits, against the library that librosa resamples with."""
    import soxr
    from scipy.io import wavfile

    seconds = np.arange(rate * 6) / rate
    top = min(6500.0, 0.4 * rate)
    sound = (0.4 * np.sin(2 * np.pi * (50 * seconds + (top - 50) / 12 * seconds**2))).astype(np.float32)
    path = tmp_path / "tone.wav"
    wavfile.write(path, rate, sound)
    [media] = read(path, [(1.0, 5.0)], MediaRequest("audio", sampling_rate=16000))
    expected = soxr.resample(sound, rate, 16000, quality="VHQ")[16000:80000]
    assert np.linalg.norm(media.audio - expected) < 1e-4 * np.linalg.norm(expected)
