"""One pass over a film for several models: what is decoded, what is shared, what damage costs, what memory it takes."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from operator import attrgetter
from pathlib import Path

import av
import numpy as np
import pytest
from test_clips import RATE, frame_numbers, tone, write_film

from bids_mllm.exceptions import StimulusError
from bids_mllm.io import pictures, streams
from bids_mllm.io.clips import probe_stimulus, read_clips
from bids_mllm.io.films import read_film
from bids_mllm.io.read_ahead import read_ahead
from bids_mllm.records import Clip, ClipJob, ClipMedia, MediaRequest

VIDEO = MediaRequest("video", n_frames=8)
SMALL = MediaRequest("video", n_frames=5, frame_size=(24, 32))
AUDIO = MediaRequest("audio", sampling_rate=8000)
BOTH = MediaRequest("both", n_frames=4, frame_size=(24, 32), sampling_rate=16000, lead=0.5)


def make_film(path: Path, seconds: float, *, video: str = "libx264", audio: str | None = "flac", gop: int = 12) -> Path:
    """A moving pattern at 10 Hz, so that a wrong picture shows, and noise over a tone."""
    rng = np.random.default_rng(1)
    pattern = np.kron(rng.integers(0, 255, (6, 40, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
    packets = []
    with av.open(str(path), mode="w") as container:
        picture = container.add_stream(video, rate=RATE)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        picture.codec_context.gop_size = gop
        sounding = container.add_stream(audio, rate=16000) if audio else None
        for index in range(round(seconds * RATE)):
            pixels = np.ascontiguousarray(np.roll(pattern, 2 * index, axis=1)[:, :64])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            packets += picture.encode(frame)
        packets += picture.encode(None)
        if sounding is not None:
            sounding.codec_context.layout = "mono"
            sound = tone(seconds, 16000, 440.0) + rng.normal(0, 0.02, round(seconds * 16000))
            for first in range(0, sound.size, 1600):
                samples = sound[None, first : first + 1600].astype(np.float32)
                frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 16000, first, Fraction(1, 16000)
                packets += sounding.encode(frame)
            packets += sounding.encode(None)
        for packet in sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)):
            container.mux(packet)
    return path


def windows(path: Path, seconds: float, *, step: float = 1.49, length: float = 4.0, first: float = 0.0) -> list[Clip]:
    starts = np.arange(first, seconds - length + 1e-9, step)
    return [Clip(path.name, k, float(start), float(start + length)) for k, start in enumerate(starts)]


def read(path: Path, *jobs: tuple[Sequence[Clip], MediaRequest]) -> list[list[ClipMedia]]:
    media: list[list[ClipMedia]] = [[] for _ in jobs]
    stimulus = probe_stimulus(path, path.name)
    for number, each in read_film(stimulus, [ClipJob(iter(clips), request) for clips, request in jobs]):
        media[number].append(each)
    return media


def assert_same(one: ClipMedia, other: ClipMedia) -> None:
    assert one.clip == other.clip
    assert one.fault == other.fault
    np.testing.assert_array_equal(one.frames, other.frames)
    np.testing.assert_array_equal(one.frame_times, other.frame_times)
    np.testing.assert_array_equal(one.audio, other.audio)


@pytest.fixture
def decoded_stamps(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each picture has come out of a decoder, by its time stamp."""
    stamps: Counter[int] = Counter()
    decode = streams.decoded

    def counted(stream: object, packet: object) -> list[object]:
        frames = decode(stream, packet)
        stamps.update(frame.pts for frame in frames if isinstance(frame, av.VideoFrame))
        return frames

    monkeypatch.setattr(streams, "decoded", counted)
    return stamps


@pytest.fixture(scope="module")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_film(tmp_path_factory.mktemp("long") / "long.mkv", 90.0)


def test_every_picture_is_decoded_once_and_scaled_once_for_each_size(
    tmp_path: Path, decoded_stamps: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_film(tmp_path / "film.mkv", 20.0)
    converted: Counter[tuple[int, object]] = Counter()
    convert = pictures.PicturePass._convert

    def counted(self: pictures.PicturePass, frame: av.VideoFrame, size: tuple[int, int] | None) -> np.ndarray:
        converted[frame.pts, size] += 1
        return convert(self, frame, size)

    monkeypatch.setattr(pictures.PicturePass, "_convert", counted)
    clips = windows(path, 20.0)
    stimulus = probe_stimulus(path, path.name)
    media = read_film(stimulus, [ClipJob(iter(clips), request) for request in (VIDEO, SMALL, BOTH)])
    decoded_stamps.clear()  # the first pictures have been looked at to find the start of the clock
    n_media = sum(1 for _ in media)
    assert n_media == 3 * len(clips)
    last = clips[-1].start + 7.5 / 8 * 4.0
    assert len(decoded_stamps) >= last * RATE
    assert set(decoded_stamps.values()) == {1}
    assert {size for _, size in converted} == {None, (24, 32)}
    assert set(converted.values()) == {1}


def test_models_get_what_they_would_get_alone(long_film: Path) -> None:
    jobs = [
        (windows(long_film, 20.0), VIDEO),
        (windows(long_film, 25.0, step=3.0, length=2.0, first=7.0), SMALL),
        (windows(long_film, 15.0), AUDIO),
        (windows(long_film, 18.0, step=0.7), BOTH),
    ]
    together = read(long_film, *jobs)
    for job, media in zip(jobs, together, strict=True):
        [alone] = read(long_film, job)
        assert [each.clip for each in media] == list(job[0])
        for one, other in zip(media, alone, strict=True):
            assert_same(one, other)


def test_both_gives_the_pictures_and_the_sound_of_the_same_seconds(long_film: Path) -> None:
    clips = windows(long_film, 20.0)
    video = MediaRequest("video", n_frames=4, frame_size=(24, 32), lead=0.5)
    audio = MediaRequest("audio", sampling_rate=16000, lead=0.5)
    both, frames, sound = read(long_film, (clips, BOTH), (clips, video), (clips, audio))
    for one, picture, heard in zip(both, frames, sound, strict=True):
        np.testing.assert_array_equal(one.frames, picture.frames)
        np.testing.assert_array_equal(one.frame_times, picture.frame_times)
        np.testing.assert_array_equal(one.audio, heard.audio)
        assert one.sampling_rate == 16000
        assert one.audio is not None
        assert one.audio.size == 72000


@pytest.mark.parametrize("request_", [VIDEO, AUDIO, BOTH], ids=lambda r: r.media)
def test_clips_are_drawn_one_ahead_as_decoding_reaches_them(long_film: Path, request_: MediaRequest) -> None:
    drawn: list[int] = []

    def draw() -> Iterator[Clip]:
        # The second half lies behind the film's end, where the last picture stands for ever.
        for clip in windows(long_film, 180.0, step=10.0, length=2.0):
            drawn.append(clip.index)
            yield clip

    stimulus = probe_stimulus(long_film, long_film.name)
    media = read_film(stimulus, [ClipJob(draw(), request_)])
    assert drawn == []
    for number, (_, each) in enumerate(media):
        assert each.clip.index == number
        assert len(drawn) <= number + 2


def test_a_model_that_is_far_ahead_does_not_draw_for_the_others(long_film: Path) -> None:
    drawn: list[int] = []

    def draw(number: int, clips: Sequence[Clip]) -> Iterator[Clip]:
        for clip in clips:
            drawn.append(number)
            yield clip

    early, late = windows(long_film, 30.0), windows(long_film, 80.0, first=60.0)
    stimulus = probe_stimulus(long_film, long_film.name)
    jobs = [ClipJob(draw(0, early), VIDEO), ClipJob(draw(1, late), AUDIO)]
    order = []
    for number, _ in read_film(stimulus, jobs):
        order.append(number)
        if number == 0:
            assert drawn.count(1) == 1
    assert order == [0] * len(early) + [1] * len(late)


def test_what_nobody_wants_is_sought_past(long_film: Path, decoded_stamps: Counter[int]) -> None:
    clips = [Clip(long_film.name, k, start, start + 2.0) for k, start in enumerate((1.0, 2.0, 50.3, 80.0))]
    for request in (VIDEO, AUDIO, BOTH):
        decoded_stamps.clear()
        [sparse] = read(long_film, (clips, request))
        assert sum(decoded_stamps.values()) < 150
        [dense] = read(
            long_film, (sorted([*clips, *windows(long_film, 90.0, step=9.0)], key=attrgetter("start")), request)
        )
        for one in sparse:
            [other] = [each for each in dense if each.clip == one.clip]
            np.testing.assert_array_equal(one.frames, other.frames)
            np.testing.assert_array_equal(one.audio, other.audio)


def test_exact_sound_is_sought_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_film(tmp_path / "film.mp4", 90.0)
    clips = [Clip(path.name, k, start, start + 2.0) for k, start in enumerate((1.0, 50.3, 80.0))]
    [whole] = read(path, (sorted([*clips, *windows(path, 90.0, step=9.0)], key=attrgetter("start")), AUDIO))
    n_samples = 0
    decode = streams.decoded

    def counted(stream: object, packet: object) -> list[object]:
        nonlocal n_samples
        frames = decode(stream, packet)
        n_samples += sum(frame.samples for frame in frames if isinstance(frame, av.AudioFrame))
        return frames

    monkeypatch.setattr(streams, "decoded", counted)
    [sparse] = read(path, (clips, AUDIO))
    assert n_samples < 20 * 16000
    for one in sparse:
        [other] = [each for each in whole if each.clip == one.clip]
        np.testing.assert_array_equal(one.audio, other.audio)


def test_seeking_stops_where_it_only_leads_back(tmp_path: Path, decoded_stamps: Counter[int]) -> None:
    path = make_film(tmp_path / "one_key_frame.mkv", 150.0, audio=None, gop=100_000)
    clips = [Clip(path.name, k, float(start), start + 1.0) for k, start in enumerate(range(0, 150, 25))]
    [media] = read(path, (clips, VIDEO))
    assert len(media) == 6
    # One seek finds out that it leads back to the start; from there on there is only one pass.
    assert len(decoded_stamps) > 1250
    assert sum(decoded_stamps.values()) < 1.1 * len(decoded_stamps)


@pytest.mark.parametrize("request_", [VIDEO, AUDIO, BOTH], ids=lambda r: r.media)
def test_a_film_shorter_than_one_window(tmp_path: Path, request_: MediaRequest) -> None:
    path = write_film(
        tmp_path / "short.mkv", times=np.arange(10) / RATE, audio="flac", sound=tone(1.0, 16000, 440.0)[None]
    )
    [[media]] = read(path, ([Clip("short.mkv", 0, 0.0, 4.0)], request_))
    assert media.fault is None
    if request_ is VIDEO:
        # Instants 0.25, 0.75, 1.25 ...: the last of ten pictures stands.
        assert frame_numbers(media) == [2, 7, 9, 9, 9, 9, 9, 9]
    if request_ is AUDIO:
        assert media.audio is not None
        assert media.audio.size == 32000
        assert np.abs(media.audio[:7900]).max() > 0.3
        assert np.abs(media.audio[8100:]).max() < 1e-3


def test_a_silent_film_cannot_be_heard_and_seen(tmp_path: Path) -> None:
    path = write_film(tmp_path / "mute.mkv", audio=None)
    stimulus = probe_stimulus(path, path.name)
    clips = [Clip(path.name, 0, 0.0, 1.0)]
    with pytest.raises(StimulusError, match=r"mute\.mkv has no audio stream, but the model needs video and audio"):
        read_film(stimulus, [ClipJob(clips, VIDEO), ClipJob(clips, BOTH)])


def test_no_models_see_nothing(long_film: Path) -> None:
    assert list(read_film(probe_stimulus(long_film, long_film.name), [])) == []


def test_leaving_early_closes_the_file(long_film: Path) -> None:
    def opened() -> int:
        return sum(file.exists() and file.resolve() == long_film.resolve() for file in Path("/proc/self/fd").iterdir())

    media = read_film(probe_stimulus(long_film, long_film.name), [ClipJob(windows(long_film, 90.0), BOTH)])
    next(media)
    assert opened() == 2
    media.close()
    assert opened() == 0


# Damage

Blocks = list[tuple[int, int, float, bool]]


def blocks(path: Path, kind: str) -> Blocks:
    """(place in the file, size, time, is key frame) of the packets of a stream in the order of decoding."""
    with av.open(str(path)) as container:
        stream = container.streams.get(**{kind: 0})[0]
        found = [p for p in container.demux(stream) if p.size]
        header = 4 if path.suffix == ".mkv" else 0
        return [(p.pos + header, p.size, float(p.pts * p.time_base), p.is_keyframe) for p in found]


def blank(path: Path, places: Blocks) -> Path:
    content = bytearray(path.read_bytes())
    for place, size, _, _ in places:
        content[place + 4 : place + size - 4] = bytes(size - 8)
    other = path.with_name("damaged_" + path.name)
    other.write_bytes(content)
    return other


def instants(clip: Clip, request: MediaRequest) -> np.ndarray:
    begin = clip.start - request.lead
    return begin + (np.arange(request.n_frames) + 0.5) * (clip.end - begin) / request.n_frames


def compare(path: Path, damaged: Path, request: MediaRequest, *, length: float = 1.0) -> tuple[list[Clip], set[str]]:
    """Clips with a fault, and the sentences; all others must be those of the undamaged film."""
    clips = windows(path, 12.0, step=0.25, length=length)
    theirs = [Clip(damaged.name, clip.index, clip.start, clip.end) for clip in clips]
    [whole], [partly] = read(path, (clips, request)), read(damaged, (theirs, request))
    assert [media.clip for media in partly] == theirs
    for one, other in zip(whole, partly, strict=True):
        if other.fault is None:
            np.testing.assert_array_equal(one.frames, other.frames)
            np.testing.assert_array_equal(one.audio, other.audio)
        else:
            assert other.frames is other.audio is other.frame_times is None
    # The same clips have the same fault in whichever order and on however many cores they are read.
    for first in (0, 13, 26, 39):
        [part] = read(damaged, (theirs[first : first + 3], request))
        assert [media.fault for media in part] == [media.fault for media in partly[first : first + 3]]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        [alone] = read(damaged, (theirs, request))
    finally:
        os.sched_setaffinity(0, cores)
    for one, other in zip(partly, alone, strict=True):
        assert_same(one, other)
    return [media.clip for media in partly if media.fault], {media.fault for media in partly if media.fault}


@pytest.mark.parametrize(
    ("name", "codec"),
    [("film.mkv", "libx264"), ("film.mp4", "libx264"), ("film.mkv", "mpeg4"), ("film.mkv", "libvpx-vp9")],
)
@pytest.mark.parametrize("which", ["key", "middle"])
def test_broken_pictures_cost_the_clips_that_need_them(tmp_path: Path, name: str, codec: str, which: str) -> None:
    path = make_film(tmp_path / name, 12.0, video=codec)
    packets = blocks(path, "video")
    keys = [k for k, packet in enumerate(packets) if packet[3]]
    broken = keys[3] if which == "key" else (keys[3] + keys[4]) // 2
    damaged = blank(path, packets[broken : broken + 1])
    faulty, sentences = compare(path, damaged, VIDEO)
    # What is decoded from there on to the next key frame cannot be trusted.
    begin = min(time for _, _, time, _ in packets[broken : keys[4]])
    end = packets[keys[4]][2]
    hit = [
        c
        for c in windows(path, 12.0, step=0.25, length=1.0)
        if np.any((instants(c, VIDEO) >= begin) & (instants(c, VIDEO) < end))
    ]
    assert [clip.start for clip in faulty] == [clip.start for clip in hit]
    assert sentences == {
        f"The stimulus {damaged.name} is damaged from {begin:.2f} to {end:.2f} s: the picture there cannot be decoded; "
        "check that the file is complete and fetch it again."
    }


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_broken_sound_costs_the_clips_that_need_it(tmp_path: Path, suffix: str) -> None:
    path = make_film(tmp_path / f"film.{suffix}", 12.0)
    packets = blocks(path, "audio")
    k = next(k for k, packet in enumerate(packets) if packet[2] > 6.0)
    damaged = blank(path, packets[k : k + 2])
    begin, end = packets[k][2], packets[k + 2][2]
    for request in (AUDIO, MediaRequest("audio", sampling_rate=16000)):
        faulty, sentences = compare(path, damaged, request)
        hit = [c for c in windows(path, 12.0, step=0.25, length=1.0) if c.start < end and c.end > begin]
        assert [clip.start for clip in faulty] == [clip.start for clip in hit]
        assert len(sentences) == 1
        assert f"is damaged from {begin:.2f} to {end:.2f} s: the sound there" in sentences.pop()
    pictures_only, _ = compare(path, damaged, VIDEO)
    assert pictures_only == []


def test_lossy_sound_has_to_settle(tmp_path: Path) -> None:
    path = make_film(tmp_path / "film.mp4", 12.0, audio="libmp3lame")
    packets = blocks(path, "audio")
    k = next(k for k, packet in enumerate(packets) if packet[2] > 6.0)
    place, size, _, _ = packets[k]
    content = bytearray(path.read_bytes())
    content[place : place + size] = b"\xff" * size
    damaged = path.with_name("damaged.mp4")
    damaged.write_bytes(content)
    clips = [Clip(damaged.name, n, start, start + 1.0) for n, start in enumerate((4.0, packets[k + 2][2], 7.0))]
    [before, behind, after] = read(damaged, (clips, AUDIO))[0]
    assert before.fault is None
    assert behind.fault is not None
    assert after.fault is None


def test_flipped_bits_in_lossless_sound_are_found_by_their_checksum(tmp_path: Path) -> None:
    path = make_film(tmp_path / "film.mkv", 12.0)
    place, size, start, _ = blocks(path, "audio")[20]
    content = bytearray(path.read_bytes())
    content[place + size // 2] ^= 0x10
    damaged = path.with_name("flipped.mkv")
    damaged.write_bytes(content)
    faulty, _ = compare(path, damaged, AUDIO)
    assert faulty
    assert all(clip.start < start + 0.4 and clip.end > start for clip in faulty)


def test_sound_that_changes_its_format(tmp_path: Path) -> None:
    parts = []
    for rate in (16000, 24000):
        part = tmp_path / f"{rate}.aac"
        write_film(part, video=None, sound=tone(4.0, rate, 440.0)[None], sound_rate=rate)
        parts.append(part.read_bytes())
    path = tmp_path / "change.aac"
    path.write_bytes(b"".join(parts))
    clips = [Clip(path.name, k, start, start + 1.0) for k, start in enumerate((1.0, 4.5))]
    [[before, behind]] = read(path, (clips, AUDIO))
    assert before.fault is None
    assert behind.fault is not None
    assert "change.aac changes the format of its sound from 4." in behind.fault
    assert "convert the file" in behind.fault


def test_broken_to_the_end(tmp_path: Path) -> None:
    path = make_film(tmp_path / "film.mkv", 12.0)
    packets = blocks(path, "video")
    last_key = max(k for k, packet in enumerate(packets) if packet[3])
    damaged = blank(path, packets[last_key:])
    faulty, sentences = compare(path, damaged, VIDEO)
    assert {clip.start for clip in faulty} == {10.0, 10.25, 10.5, 10.75, 11.0}
    [sentence] = sentences
    assert "is damaged from 10.80 s to its end: the picture there cannot be decoded" in sentence
    [[behind]] = read(damaged, ([Clip(damaged.name, 0, 20.0, 21.0)], VIDEO))
    assert behind.fault == sentence


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_a_lost_part_costs_the_clips_that_fall_into_it(tmp_path: Path, codec: str) -> None:
    path = make_film(tmp_path / "film.mkv", 12.0, video=codec, gop=20)
    places = sorted(block for kind in ("video", "audio") for block in blocks(path, kind))
    first = next(place for place, _, start, _ in places if start >= 4.5)
    last = next(place for place, _, start, _ in places if start >= 7.5)
    content = path.read_bytes()
    damaged = path.with_name("hole.mkv")
    damaged.write_bytes(content[: first - 12] + bytes(last - first) + content[last - 12 :])
    assert probe_stimulus(damaged, damaged.name).video_duration == pytest.approx(12.0, abs=0.05)
    found = set()
    for request in (VIDEO, AUDIO, BOTH):
        faulty, sentences = compare(path, damaged, request)
        found |= sentences
        begins = np.array([clip.start - request.lead for clip in faulty])
        assert {5.0, 5.5, 6.0, 6.5, 7.0} <= {clip.start for clip in faulty}
        # A packet of sound lasts 0.288 s; the key frame behind the hole comes at 8 s.
        assert np.all(begins > 4.5 - 1.0 - 0.288 - request.lead)
        assert np.all(begins < 8.0)
    assert any("a part of the file is lost there" in sentence for sentence in found)
    with pytest.raises(StimulusError, match=r"hole\.mkv is damaged from 4\.\d\d to [78]\.\d\d s"):
        list(read_clips(probe_stimulus(damaged, damaged.name), [Clip(damaged.name, 0, 4.0, 8.0)], VIDEO))


def test_a_model_that_sees_and_hears_needs_both(tmp_path: Path) -> None:
    path = make_film(tmp_path / "film.mkv", 12.0)
    seen, heard = blocks(path, "video"), blocks(path, "audio")
    picture = [packet for packet in seen if 2.5 < packet[2] < 2.8][:1]
    sound = [packet for packet in heard if packet[2] > 8.0][:1]
    damaged = blank(path, [*picture, *sound])
    faulty, sentences = compare(path, damaged, BOTH, length=1.5)
    assert len(sentences) == 2
    assert {"picture" in sentence for sentence in sentences} == {True, False}
    assert any(clip.start < 3.0 for clip in faulty)
    assert any(clip.start > 6.0 for clip in faulty)


def test_a_pause_of_both_streams_is_no_damage_while_one_goes_on(tmp_path: Path) -> None:
    # The picture stands still for two seconds, then the sound rests for two.
    times = [*np.arange(15) / RATE, *(4.0 + np.arange(25) / RATE)]
    beep = tone(4 * 4608 / 16000, 16000, 1000.0)[None]
    path = write_film(
        tmp_path / "rest.mkv", times=times, audio="flac", sound=beep, sound_starts=(0.0, 1.2, 2.4, 3.6, 6.5)
    )
    clips = [Clip(path.name, k, 0.5 * k, 0.5 * k + 1.0) for k in range(13)]
    for media in read(path, (clips, VIDEO), (clips, AUDIO), (clips, BOTH)):
        assert [each.fault for each in media] == [None] * 13


# Memory


def test_memory_does_not_grow_with_the_film(tmp_path: Path) -> None:
    minute = make_film(tmp_path / "1.mkv", 60.0, video="mpeg4")
    ten = tmp_path / "10.mkv"
    with av.open(str(minute)) as source, av.open(str(ten), mode="w") as target:
        copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        packets = [
            (p.stream_index, p.pts, p.dts, p.time_base, p.is_keyframe, bytes(p)) for p in source.demux() if p.size
        ]
        for repeat in range(10):
            for index, pts, dts, base, key, content in packets:
                packet = av.Packet(content)
                shift = round(60 * repeat / base)
                packet.pts, packet.dts = pts + shift, None if dts is None else dts + shift
                packet.time_base, packet.stream, packet.is_keyframe = base, copies[index], key
                target.mux(packet)
    code = (
        "import sys; from pathlib import Path; from bids_mllm.io.clips import probe_stimulus; "
        "from bids_mllm.io.films import read_film; from bids_mllm.records import *; path = Path(sys.argv[1]); "
        "stimulus = probe_stimulus(path, path.name); n = int((stimulus.video_duration - 4) / 1.49); "
        "clips = [Clip(path.name, k, k * 1.49, k * 1.49 + 4) for k in range(n)]; "
        "request = MediaRequest('both', n_frames=8, frame_size=(180, 320), sampling_rate=16000); "
        "media = [each.fault for _, each in read_film(stimulus, [ClipJob(iter(clips), request)])]; "
        "assert len(media) == n and not any(media), media; "
        # The kernel's figure for this program alone; getrusage also counts the one that started it.
        "print(n, Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    peaks = []
    for path, n_clips in ((minute, 37), (ten, 400)):
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        n, peak = done.stdout.split()
        assert int(n) == n_clips
        peaks.append(int(peak))
    assert abs(peaks[1] - peaks[0]) < 0.1 * peaks[0]


# Reading ahead


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 5.0
    while not true() and time.monotonic() < end:
        time.sleep(0.002)
    assert true()


def test_reading_ahead_keeps_the_order_and_leaves_no_thread() -> None:
    assert list(read_ahead(iter(range(200)), max_bytes=10, size_of=lambda _: 3)) == list(range(200))
    assert list(read_ahead(iter(()), max_bytes=10, size_of=lambda _: 3)) == []
    assert threads() == []


def test_reading_ahead_stays_within_its_bytes() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for k in range(50):
            made.append(k)
            yield k

    ahead = read_ahead(items(), max_bytes=10, size_of=lambda _: 3)
    assert made == []
    assert threads() == []
    assert next(ahead) == 0
    # Three wait with nine bytes, one more is at hand.
    until(lambda: len(made) == 5)
    time.sleep(0.05)
    assert len(made) == 5
    assert list(ahead) == list(range(1, 50))


def test_an_item_larger_than_all_room_passes_alone() -> None:
    assert list(read_ahead(iter([5, 50, 5, 50]), max_bytes=10, size_of=int)) == [5, 50, 5, 50]
    with pytest.raises(ValueError, match="at least 1 byte, not 0"):
        read_ahead(iter([1]), max_bytes=0, size_of=int)


def test_an_error_comes_where_its_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise StimulusError("broken")

    ahead = read_ahead(items(), max_bytes=10, size_of=lambda _: 1)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(StimulusError, match="broken"):
        next(ahead)
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(iter([1]), max_bytes=10, size_of=lambda _: 1 // 0))
    assert threads() == []


@pytest.mark.parametrize("how", ["close", "fail", "drop"])
def test_a_caller_that_stops_early_leaves_no_thread(how: str) -> None:
    closed = threading.Event()
    drawn_by: list[str] = []

    def items() -> Iterator[int]:
        try:
            k = 0
            while True:
                drawn_by.append(threading.current_thread().name)
                yield (k := k + 1)
        finally:
            drawn_by.append(threading.current_thread().name)
            closed.set()

    ahead = read_ahead(items(), max_bytes=4, size_of=lambda _: 1)
    assert next(ahead) == 1
    assert len(threads()) == 1
    begin = time.monotonic()
    if how == "close":
        ahead.close()
    elif how == "drop":
        del ahead
    else:

        def caller() -> None:
            for _ in ahead:
                raise RuntimeError("the model failed")

        with pytest.raises(RuntimeError, match="the model failed"):
            caller()
        ahead.close()
    assert time.monotonic() - begin < 1.0
    assert threads() == []
    assert closed.is_set()
    assert set(drawn_by) == {"read-ahead"}


def test_a_film_is_read_ahead(long_film: Path) -> None:
    clips = windows(long_film, 30.0)
    stimulus = probe_stimulus(long_film, long_film.name)
    [direct] = read(long_film, (clips, BOTH))
    ahead = read_ahead(
        read_film(stimulus, [ClipJob(iter(clips), BOTH)]), max_bytes=200_000, size_of=lambda m: m[1].frames.nbytes
    )
    for one, (_, other) in zip(direct, ahead, strict=True):
        assert_same(one, other)
    assert threads() == []
