"""Films and sounds: what a media file holds, and the frames or samples of windows of it.

Of several streams of a kind the one that FFmpeg ranks best is taken: first those that the file marks as
default and that are not made for the visually or hearing impaired, then by the number of packets seen and
the bit rate. Cover pictures do not count as video. The stimulus clock is zero at the first picture or sample
of the chosen streams, whichever is earlier; other streams (subtitles, further languages) have no say.
"""

import hashlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.exceptions import StimulusError
from bids_mllm.io.streams import (
    ChosenStreams,
    check_complete,
    check_present,
    choose_streams,
    decoded,
    frame_time,
    open_media,
    seek,
    stream_ends,
)
from bids_mllm.records import Clip, ClipMedia, MediaRequest, Stimulus

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.video.frame import VideoFrame

# Raise when a frame or a sample is chosen, scaled or mixed in another way than before: stored features then differ.
DECODING_RULES = "1"
# A time stamp this much later than the asked instant still counts as at that instant: Matroska rounds to ms.
FRAME_TOLERANCE = 5e-4
# Decoded and thrown away before the first wanted sample, so that the decoder's memory is filled.
AUDIO_MARGIN = 1.0
# Smaller steps between time stamp and sample count are rounding, not gaps.
GAP_TOLERANCE = 2e-3


def decoder_identity() -> dict[str, str]:
    """Return what changes decoded frames and samples besides the file: PyAV's version and this module's rules."""
    return {"av": version("av"), "rules": DECODING_RULES}


def probe_stimulus(path: Path, stim_file: str) -> Stimulus:
    """Describe a media file without decoding more than its first frames.

    The durations end with the last packet of the chosen video and audio stream, read from the packets'
    time stamps, because a container also counts subtitles and other streams.

    Parameters
    ----------
    path
        The file.
    stim_file
        Its name in the data set.

    Returns
    -------
    Stimulus
        With durations in seconds on the stimulus clock.

    Raises
    ------
    StimulusError
        The file is missing, is not a media file, holds neither video nor sound, or was cut short.
    """
    check_present(path, stim_file)
    chosen = choose_streams(path, stim_file)
    with closing(open_media(path, stim_file)) as container:
        ends = stream_ends(container, chosen, stim_file)
        check_complete(container, ends, stim_file)
        rate = None if chosen.video is None else container.streams[chosen.video].average_rate
    return Stimulus(
        stim_file=stim_file,
        path=path,
        sha256=_sha256(path),
        video_duration=None if chosen.video is None else ends[chosen.video] - chosen.zero,
        audio_duration=None if chosen.audio is None else ends[chosen.audio] - chosen.zero,
        width=chosen.width,
        height=chosen.height,
        frame_rate=float(rate or 0.0),
    )


def read_clips(stimulus: Stimulus, clips: Sequence[Clip], request: MediaRequest) -> Iterator[ClipMedia]:
    """Decode windows of one film or sound in one pass.

    The file is decoded once, from just before the first window to the end of the last, and only what a
    later window needs is kept. A frame is the one on screen at the asked instant by its time stamp (the
    first frame before the film, the last one after it). Samples are placed by their time stamps, so that
    gaps and times outside the sound are silence; several channels are mixed to one without clipping.

    Parameters
    ----------
    stimulus
        The file, as `probe_stimulus` described it.
    clips
        Windows in order of their start; they may overlap.
    request
        Frames or samples, how many and how large.

    Yields
    ------
    ClipMedia
        One for each clip, in the same order: frames (n_frames, height, width, 3) uint8 with the time stamps
        of these frames (n_frames,) in seconds on the stimulus clock; or samples
        (round((end - start + lead) * sampling_rate),) float32 in [-1, 1].

    Raises
    ------
    StimulusError
        The file is missing, has no stream of the asked kind, or is damaged at some time that is needed.
    """
    _check_clips(stimulus, clips, request)
    if not clips:
        return iter(())
    check_present(stimulus.path, stimulus.stim_file)
    chosen = choose_streams(stimulus.path, stimulus.stim_file)
    if (chosen.video if request.media == "video" else chosen.audio) is None:
        raise StimulusError(
            f"{stimulus.stim_file} has no {request.media} stream, but the model needs {request.media}; "
            "use a model of another kind or give a file that has one."
        )
    if request.media == "video":
        return _video_clips(stimulus, chosen, clips, request)
    return _audio_clips(stimulus, chosen, clips, request)


def _check_clips(stimulus: Stimulus, clips: Sequence[Clip], request: MediaRequest) -> None:
    if any(clip.stim_file != stimulus.stim_file for clip in clips):
        raise ValueError(f"Every clip must be of {stimulus.stim_file}, but some name another stimulus.")
    if any(late.start < early.start for early, late in pairwise(clips)):
        raise ValueError(f"The clips of {stimulus.stim_file} must be in order of their start.")
    wanted = request.n_frames if request.media == "video" else request.sampling_rate
    if wanted < 1:
        raise ValueError(f"A request for {request.media} needs n_frames or sampling_rate of at least 1.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _frames_from(stimulus: Stimulus, index: int, zero: float, needed: float) -> Iterator[tuple[float, Any]]:
    """Yield (time on the stimulus clock, frame), the first at or before `needed` where there is one."""
    # Some indices are wrong by a few frames: a start that is too late is tried again from further back.
    for margin in (0.0, 10.0, np.inf):
        with closing(open_media(stimulus.path, stimulus.stim_file)) as container:
            sought = needed > margin and seek(container, index, needed - margin + zero)
            if margin < needed and not sought:
                continue
            on_time = not sought
            for _, frame in decoded(container, [index], stimulus.stim_file, zero=zero):
                time = frame_time(frame) - zero
                on_time = on_time or time <= needed + FRAME_TOLERANCE
                if not on_time:
                    break
                # Pictures before the first wanted one may lack what they refer to, after a seek.
                if frame.is_corrupt and time >= needed:
                    raise StimulusError(
                        f"The stimulus {stimulus.stim_file} is damaged at {time:.2f} s: the picture there can only be "
                        "guessed; check that the file is complete and fetch it again."
                    )
                yield time, frame
            if on_time:
                return


def _video_clips(
    stimulus: Stimulus, chosen: ChosenStreams, clips: Sequence[Clip], request: MediaRequest
) -> Iterator[ClipMedia]:
    n_frames = request.n_frames
    parts = (np.arange(n_frames) + 0.5) / n_frames
    begins = np.array([clip.start - request.lead for clip in clips])
    spans = np.array([clip.end for clip in clips]) - begins
    instants = (begins[:, None] + spans[:, None] * parts).ravel()
    order = np.argsort(instants, kind="stable")
    deadlines = instants[order] + FRAME_TOLERANCE
    shown: dict[int, list[tuple[float, NDArray[np.uint8]]]] = {k: [] for k in range(len(clips))}
    done, out = 0, 0
    for time, until, frame in _screen_times(stimulus, chosen, float(instants[order[0]])):
        upto = int(np.searchsorted(deadlines, until, side="left"))
        if upto > done:
            picture = _picture(frame, request.frame_size)
            for position in order[done:upto]:
                shown[int(position) // n_frames].append((time, picture))
            done = upto
        while out < len(clips) and len(shown[out]) == n_frames:
            times, pictures = zip(*shown.pop(out), strict=True)
            yield ClipMedia(clips[out], frames=np.stack(pictures), frame_times=np.array(times))
            out += 1
        if out == len(clips):
            return


def _screen_times(stimulus: Stimulus, chosen: ChosenStreams, needed: float) -> Iterator[tuple[float, float, Any]]:
    """Yield (time, time of the next frame, frame); the last frame stays for ever."""
    if chosen.video is None:
        return
    held: tuple[float, Any] | None = None
    for time, frame in _frames_from(stimulus, chosen.video, chosen.zero, needed):
        if held is not None:
            yield held[0], time, held[1]
        held = (time, frame)
    if held is not None:
        yield held[0], np.inf, held[1]


def _picture(frame: "VideoFrame", frame_size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) as displayed: turned as the file asks, scaled to (height, width)."""
    from av.video.reformatter import Interpolation

    turns = round(frame.rotation / 90) % 4
    width, height = frame.width, frame.height
    if frame_size is not None:
        height, width = frame_size if turns % 2 == 0 else frame_size[::-1]
    smaller = width * height < frame.width * frame.height
    scaled = frame.reformat(
        width=width,
        height=height,
        format="rgb24",
        interpolation=Interpolation.AREA if smaller else Interpolation.BICUBIC,
    )
    return np.ascontiguousarray(np.rot90(scaled.to_ndarray().astype(np.uint8, copy=False), turns))


def _audio_clips(
    stimulus: Stimulus, chosen: ChosenStreams, clips: Sequence[Clip], request: MediaRequest
) -> Iterator[ClipMedia]:
    rate = request.sampling_rate
    firsts = [round((clip.start - request.lead) * rate) for clip in clips]
    sizes = [round((clip.end - clip.start + request.lead) * rate) for clip in clips]
    chunks: deque[tuple[int, NDArray[np.float32]]] = deque()
    out = 0
    with closing(_resampled(stimulus, chosen, rate, firsts[0] / rate)) as stream:
        for start, samples in stream:
            chunks.append((start, samples))
            while out < len(clips) and start + samples.size >= firsts[out] + sizes[out]:
                yield _sound(clips[out], chunks, firsts[out], sizes[out], rate)
                out += 1
            if out == len(clips):
                return
            while chunks and chunks[0][0] + chunks[0][1].size <= firsts[out]:
                chunks.popleft()
    for k in range(out, len(clips)):
        yield _sound(clips[k], chunks, firsts[k], sizes[k], rate)


def _sound(clip: Clip, chunks: deque[tuple[int, NDArray[np.float32]]], first: int, size: int, rate: int) -> ClipMedia:
    audio = np.zeros(size, dtype=np.float32)
    for start, samples in chunks:
        begin, end = max(start, first), min(start + samples.size, first + size)
        if begin < end:
            audio[begin - first : end - first] = samples[begin - start : end - start]
    return ClipMedia(clip, audio=np.clip(audio, -1.0, 1.0), sampling_rate=rate)


def _resampled(
    stimulus: Stimulus, chosen: ChosenStreams, rate: int, needed: float
) -> Generator[tuple[int, NDArray[np.float32]], None, None]:
    """Yield (index of the first sample on the stimulus clock, mono samples at `rate`)."""
    from av.audio.resampler import AudioResampler

    resampler = AudioResampler(format="fltp", layout="mono", rate=rate)
    position: int | None = None
    for start, native, samples in _mono(stimulus, chosen, needed):
        if position is None:
            # Starting on a common multiple of both rates makes the result independent of the start.
            step = int(Fraction(native, rate).numerator)
            samples = np.concatenate([np.zeros(start % step, np.float32), samples])
            position = (start - start % step) * rate // native
        for piece in _resample(resampler, _mono_frame(samples, native)):
            yield position, piece
            position += piece.size
    if position is not None:
        for piece in _resample(resampler, None):
            yield position, piece
            position += piece.size


def _resample(resampler: Any, frame: "AudioFrame | None") -> Iterator[NDArray[np.float32]]:
    for piece in resampler.resample(frame):
        if piece is not None and piece.samples:
            yield piece.to_ndarray()[0]


def _mono_frame(samples: NDArray[np.float32], rate: int) -> "AudioFrame":
    from av.audio.frame import AudioFrame

    frame = AudioFrame.from_ndarray(samples[None, :].astype(np.float32), format="fltp", layout="mono")
    frame.sample_rate = rate
    return frame


def _mono(stimulus: Stimulus, chosen: ChosenStreams, needed: float) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Yield (sample index on the stimulus clock, native rate, mono samples) without gaps or overlaps."""
    from av.audio.resampler import AudioResampler

    mixer: AudioResampler | None = None
    native, expected, tolerance = 0, 0, 0.0
    for start, frame in _sound_frames(stimulus, chosen, needed):
        if mixer is None:
            native, expected = frame.sample_rate, round(start * frame.sample_rate)
            # With maxval 1 the mix is an average that cannot clip; the default sums the channels.
            mixer = AudioResampler("fltp", "mono", native, options={"rematrix_maxval": "1.0"})
            tolerance = native * max(GAP_TOLERANCE, 2.5 * float(frame.time_base))
        try:
            samples = np.concatenate([np.zeros(0, np.float32), *_resample(mixer, frame)])
        except ValueError as error:
            raise StimulusError(
                f"The sound of {stimulus.stim_file} changes its format at {start:.2f} s; convert the file "
                "so that it keeps one."
            ) from error
        shift = round(start * native) - expected
        if shift > tolerance:
            for begin in range(0, shift, native):
                yield expected + begin, native, np.zeros(min(native, shift - begin), np.float32)
            expected += shift
        elif shift < -tolerance:
            samples = samples[-shift:]
        if samples.size:
            yield expected, native, samples
            expected += samples.size


def _sound_frames(stimulus: Stimulus, chosen: ChosenStreams, needed: float) -> Iterator[tuple[float, Any]]:
    """Yield (time on the stimulus clock, frame) from at least `AUDIO_MARGIN` before `needed`."""
    if chosen.audio is None:
        return
    with closing(open_media(stimulus.path, stimulus.stim_file)) as container:
        stream = container.streams[chosen.audio]
        # Time stamps coarser than a sample do not say where a seek landed: such sound is read from the start.
        exact = float(stream.time_base or 1) * (getattr(stream, "sample_rate", 0) or 0) <= 1.0 + 1e-9
        target = needed - AUDIO_MARGIN
        if exact and target > 0 and not seek(container, chosen.audio, target + chosen.zero):
            container.close()
            container = open_media(stimulus.path, stimulus.stim_file)
        for _, frame in decoded(container, [chosen.audio], stimulus.stim_file, zero=chosen.zero):
            yield frame_time(frame) - chosen.zero, frame
