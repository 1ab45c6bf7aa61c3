"""Opening a media file: its streams, the zero of its clock, its packets' ends and its decoded frames."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.exceptions import StimulusError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame

# A file whose streams end this much before the end that its header promises was cut short.
MISSING_TOLERANCE = 1.0
# So much of a file's end is read where only its length is wanted.
TAIL_SECONDS = 10.0
# Reading is tried so often behind an unreadable place before the rest of a file is given up.
READ_ATTEMPTS = 16


@dataclass(frozen=True)
class ChosenStreams:
    """The streams of a file that are read.

    `video` and `audio` are indices in the file (None = no such stream), `zero` the file's time in seconds at
    which the stimulus clock starts, `width` and `height` the size in pixels as displayed.
    """

    video: int | None
    audio: int | None
    zero: float
    width: int = 0
    height: int = 0


def check_present(path: Path, stim_file: str) -> None:
    """Raise a StimulusError that says how to fetch the file when its content is not here."""
    fetch = f"fetch it, for example with `datalad get {path}`, or name another folder with --stimuli-dir"
    if not path.is_file():
        state = "is a link to content that is not here" if path.is_symlink() else "does not exist"
        raise StimulusError(f"The stimulus {stim_file} ({path}) {state}; {fetch}.")
    with path.open("rb") as file:
        if file.read(64).startswith(b"/annex/objects/"):
            raise StimulusError(f"The stimulus {stim_file} ({path}) is a git-annex pointer without content; {fetch}.")


def open_media(path: Path, stim_file: str) -> "InputContainer":
    """Open a media file for reading; the caller closes it."""
    import av

    try:
        container: InputContainer = av.open(str(path), mode="r", metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise StimulusError(
            f"The stimulus {stim_file} ({path}) cannot be opened as a film or sound "
            f"({_reason(error)}); check that the file is complete and a media file."
        ) from error
    return container


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def choose_streams(path: Path, stim_file: str) -> ChosenStreams:
    """Find the streams to read and the file's time of their first picture or sample."""
    import av
    from av.video.frame import VideoFrame

    with closing(open_media(path, stim_file)) as container:
        video, audio = _best_streams(container)
        wanted = sorted({stream for stream in (video, audio) if stream is not None})
        firsts: dict[int, VideoFrame | AudioFrame] = {}
        try:
            for packet in packets(container, wanted):
                # Once a stream has begun, whatever is broken in it has no say in where its clock starts.
                if packet.stream_index not in firsts:
                    for frame in decoded(packet.stream, packet):
                        firsts.setdefault(packet.stream_index, frame)
                if len(firsts) == len(wanted):
                    break
        except (av.error.FFmpegError, OSError) as error:
            raise StimulusError(
                f"The stimulus {stim_file} cannot be decoded at its start ({_reason(error)}); "
                "check that the file is complete and fetch it again."
            ) from error
    if not firsts:
        raise StimulusError(f"The stimulus {stim_file} ({path}) holds neither pictures nor sound that can be decoded.")
    zero = min(frame_time(frame) for frame in firsts.values())
    width, height = 0, 0
    picture = firsts.get(-1 if video is None else video)
    if isinstance(picture, VideoFrame):
        turned = picture.rotation % 180 != 0
        width, height = (picture.height, picture.width) if turned else (picture.width, picture.height)
    return ChosenStreams(video if video in firsts else None, audio if audio in firsts else None, zero, width, height)


def _best_streams(container: "InputContainer") -> tuple[int | None, int | None]:
    from av.stream import Disposition

    video = container.streams.best("video")
    if video is not None and video.disposition & Disposition.attached_pic:
        moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        video = moving[0] if moving else None
    audio = container.streams.best("audio")
    return (None if video is None else video.index), (None if audio is None else audio.index)


def frame_time(frame: "VideoFrame | AudioFrame") -> float:
    """Seconds in the file at which a frame starts."""
    stamp = frame.pts if frame.pts is not None else frame.dts
    return float((stamp or 0) * (frame.time_base or 0))


def packet_time(packet: "Packet[Any]") -> float | None:
    """Seconds in the file at which the content of a packet starts; None where it has no time stamp."""
    stamp = packet.pts if packet.pts is not None else packet.dts
    return None if stamp is None else float(stamp * packet.time_base)


def packets(container: "InputContainer", indices: list[int]) -> "Iterator[Packet[Any]]":
    """Yield the packets of some streams from where the container stands, each stream's last one empty.

    Reading goes on behind a place that cannot be read; FFmpeg's error is raised where it does not get any further.
    """
    import av

    failures = 0
    while True:
        try:
            for packet in container.demux([container.streams[index] for index in indices]):
                failures = 0
                yield packet
        except av.error.FFmpegError:
            failures += 1
            if failures > READ_ATTEMPTS:
                raise
        else:
            return


def decoded(stream: Any, packet: "Packet[Any] | None") -> list[Any]:
    """Frames that come out of a stream's decoder for one packet; None or an empty packet brings out the last ones.

    Every frame of the app passes here. Data that cannot be decoded raises FFmpeg's error.
    """
    frames = stream.codec_context.decode(packet)
    for frame in frames:
        if not frame.time_base:
            frame.time_base = stream.time_base
    return list(frames)


def packet_stamps(container: "InputContainer", chosen: ChosenStreams, stim_file: str) -> dict[int, NDArray[np.int64]]:
    """Start and duration of every packet of the chosen streams in the stream's own units, each (n_packets, 2),
    in order of start.
    """
    import av

    indices = [index for index in (chosen.video, chosen.audio) if index is not None]
    stamps: dict[int, list[tuple[int, int]]] = {index: [] for index in indices}
    try:
        for packet in packets(container, indices):
            if packet.pts is not None and packet.size and not packet.is_discard:
                stamps[packet.stream_index].append((packet.pts, packet.duration or 0))
    except (av.error.FFmpegError, OSError) as error:
        raise StimulusError(
            f"The stimulus {stim_file} cannot be read to its end ({_reason(error)}); fetch it again."
        ) from error
    return {index: np.array(sorted(found), dtype=np.int64).reshape(-1, 2) for index, found in stamps.items()}


def stream_ends(
    container: "InputContainer", chosen: ChosenStreams, stim_file: str, *, quick: bool = False
) -> dict[int, float]:
    """Seconds in the file at which each chosen stream ends, from the time stamps of its packets.

    With `quick` only the packets of the last seconds are read, where the file can be wound on and all streams have some
    there.
    """
    stamps: dict[int, NDArray[np.int64]] = {}
    if quick and _wound_on(container, chosen):
        stamps = packet_stamps(container, chosen, stim_file)
        quick = all(found.size for found in stamps.values())
        if not quick:
            container.seek(0)
    if not (quick and stamps):
        stamps = packet_stamps(container, chosen, stim_file)
    return {index: _last_end(found, container.streams[index].time_base) for index, found in stamps.items()}


def _wound_on(container: "InputContainer", chosen: ChosenStreams) -> bool:
    """Move to the last seconds of a file, where its header says how long it is."""
    index = chosen.video if chosen.video is not None else chosen.audio
    if index is None or container.duration is None:
        return False
    end = (container.duration + max(container.start_time or 0, 0)) / 1e6
    return seek(container, index, max(end - TAIL_SECONDS, 0.0))


def _last_end(stamps: NDArray[np.int64], time_base: Fraction | None) -> float:
    """End of the last packet; where it has no duration, the usual step between packets stands in."""
    starts, durations = stamps.T
    if starts.size == 0:
        return 0.0
    step = float(np.mean(np.diff(starts))) if starts.size > 1 else 0.0
    ends = starts + np.where(durations > 0, durations, step)
    return float(ends.max()) * float(time_base or 0)


def check_complete(container: "InputContainer", ends: dict[int, float], stim_file: str) -> None:
    """Compare what was found with what the header promises, where it speaks of these streams alone.

    Formats differ in whether the promised length counts from the first time stamp or from zero; the smaller
    reading is taken.
    """
    promised = [
        float(s.duration * (s.time_base or 0))
        for s in (container.streams[index] for index in ends)
        if s.duration is not None
    ]
    alone = len(container.streams) == len(ends)
    if not promised and alone and container.duration is not None:
        promised = [container.duration / 1e6]
    found = max(ends.values())
    if promised and found < max(promised) - MISSING_TOLERANCE:
        raise StimulusError(
            f"The stimulus {stim_file} ends at {found:.2f} s but its header promises {max(promised):.2f} s; "
            "the file was cut short: fetch it again."
        )


def seek(container: "InputContainer", index: int, seconds: float) -> bool:
    """Move to the key frame before a time in the file; False where the format cannot."""
    import av

    stream = container.streams[index]
    try:
        container.seek(int(seconds / float(stream.time_base or 1)), stream=stream, backward=True)
    except av.error.FFmpegError:
        return False
    return True
