"""The pictures of a film in one pass: each decoded once, in order, with what is damaged named and left out.

A packet whose picture does not come, comes as a guess or raises an error is broken, and so is everything decoded
after it up to the next key frame. Pictures leave this module only once every picture decoded before them has
proven sound, because a picture may be shown before another one that it refers to.
"""

import os
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.exceptions import StimulusError
from bids_mllm.io import streams
from bids_mllm.io.damage import Broken, Damage, LostParts
from bids_mllm.io.streams import ChosenStreams, frame_time, open_media, packet_time, seek
from bids_mllm.records import Stimulus

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

# A time stamp this much later than the asked instant still counts as at that instant: Matroska rounds to ms.
FRAME_TOLERANCE = 5e-4
# A wanted instant this many seconds ahead is sought instead of decoding all that lies between.
SEEK_GAP = 20.0
# Decoders that pass over data that they cannot read without a word: there a missing picture is a broken one.
SILENT_DECODERS = ("hevc", "mpeg4")
# MPEG-4 packets of up to this many bytes stand for a picture that an earlier packet already held.
EMPTY_PICTURE_BYTES = 19
# With several pictures at work at once this decoder gives damaged ones away without a word.
ONE_AT_A_TIME = ("hevc",)
# No decoder reorders more pictures than this; time stamps that make it look so are wrong.
MAX_HELD = 32


@dataclass
class Shown:
    """What is on screen from `time` (seconds on the stimulus clock): a frame, or None where the file is damaged."""

    time: float
    frame: "VideoFrame | None"
    broken: Broken = "picture"
    pixels: dict[tuple[int, int] | None, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Mark:
    """One packet: its place in decoding order, its time, and the time stamp that its picture will carry."""

    index: int
    time: float
    key: bool
    stamp: int | None


class _SuspectError(Exception):
    """A decoder that runs several threads reported something, but not of which packet."""


class PicturePass:
    """Goes through the pictures of a film once, forwards; far ahead it seeks.

    Parameters
    ----------
    stimulus
        The film.
    chosen
        Its streams, with a video stream.
    lost
        The parts that the file lacks.
    """

    def __init__(self, stimulus: Stimulus, chosen: ChosenStreams, lost: LostParts) -> None:
        self._stimulus = stimulus
        self._chosen = chosen
        self._lost = lost
        self._reformatters: dict[tuple[int, int] | None, VideoReformatter] = {}
        self._events: Generator[Shown] | None = None
        self._current: Shown | None = None
        self._next: Shown | None = None
        self._may_seek = True

    def at(self, instant: float) -> Shown:
        """Return what is on screen at an instant (seconds), which must not lie before the one asked for last.

        The first picture also stands before it starts, the last one for ever.
        """
        deadline = instant + FRAME_TOLERANCE
        if self._events is None:
            self._open(instant)
        elif self._may_seek and self._next is not None and instant - self._next.time > SEEK_GAP:
            reached = self._next.time
            self._open(instant)
            # Key frames further apart than the gap: seeking would decode the same pictures again and again.
            self._may_seek = self._current is not None and self._current.time > reached
        while self._next is not None and self._next.time <= deadline:
            self._advance()
        if self._current is None:
            raise StimulusError(f"The stimulus {self._stimulus.stim_file} holds no pictures that can be decoded.")
        return self._current

    def damage(self, shown: Shown) -> Damage:
        """Describe the damage that stands in place of a picture at the instant asked for last."""
        end = np.inf if self._next is None else self._next.time
        return Damage(shown.time, float(end), shown.broken)

    def pixels(self, shown: Shown, frame_size: tuple[int, int] | None) -> NDArray[np.uint8]:
        """Pixels (height, width, 3) of a picture, turned as the file asks and scaled; made once for each size."""
        if frame_size not in shown.pixels:
            shown.pixels[frame_size] = self._convert(shown.frame, frame_size)
        return shown.pixels[frame_size]

    def close(self) -> None:
        """Close the file."""
        if self._events is not None:
            self._events.close()
        self._events = None

    def _open(self, needed: float) -> None:
        self.close()
        if self._chosen.video is None:
            return
        self._events = _from(self._stimulus, self._chosen.video, self._chosen.zero, needed, self._lost)
        self._next = next(self._events, None)
        self._advance()

    def _advance(self) -> None:
        self._current, self._next = self._next, None if self._events is None else next(self._events, None)

    def _convert(self, frame: Any, frame_size: tuple[int, int] | None) -> NDArray[np.uint8]:
        from av.video.reformatter import Interpolation, VideoReformatter

        turns = round(frame.rotation / 90) % 4
        width, height = frame.width, frame.height
        if frame_size is not None:
            height, width = frame_size if turns % 2 == 0 else frame_size[::-1]
        smaller = width * height < frame.width * frame.height
        if frame_size not in self._reformatters:
            self._reformatters[frame_size] = VideoReformatter()
        scaled = self._reformatters[frame_size].reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=Interpolation.AREA if smaller else Interpolation.BICUBIC,
        )
        return np.ascontiguousarray(np.rot90(scaled.to_ndarray().astype(np.uint8, copy=False), turns))


def _from(stimulus: Stimulus, index: int, zero: float, needed: float, lost: LostParts) -> Generator[Shown]:
    """Yield the pictures and the damage in order, the first at or before `needed` where there is one."""
    threads = min(4, len(os.sched_getaffinity(0)))
    last = -np.inf
    if threads > 1:
        try:
            for shown in _on_time(stimulus, index, zero, needed, lost, threads):
                yield shown
                last = shown.time
        except _SuspectError:
            # With one thread an error belongs to the packet that was given last, on every machine.
            needed = max(needed, last)
        else:
            return
    for shown in _on_time(stimulus, index, zero, needed, lost, 1):
        if shown.time > last:
            yield shown


def _on_time(
    stimulus: Stimulus, index: int, zero: float, needed: float, lost: LostParts, threads: int
) -> Iterator[Shown]:
    # Some indices are wrong by a few frames: a start that is too late is tried again from further back.
    for margin in (0.0, 10.0, np.inf):
        with closing(open_media(stimulus.path, stimulus.stim_file)) as container:
            sought = needed > margin and seek(container, index, needed - margin + zero)
            if margin < needed and not sought:
                continue
            on_time = not sought
            for shown in _Decoding(container, index, zero, lost, threads=threads, sought=sought).pictures():
                on_time = on_time or shown.time <= needed + FRAME_TOLERANCE
                if not on_time:
                    break
                yield shown
            if on_time:
                return


class _Decoding:
    """One decoder from where its container stands to the end."""

    def __init__(
        self, container: "InputContainer", index: int, zero: float, lost: LostParts, *, threads: int, sought: bool
    ) -> None:
        self._stream: Any = container.streams[index]
        self._zero = zero
        self._lost = lost
        self._context: Any = self._stream.codec_context
        one_picture = self._context.name in ONE_AT_A_TIME
        self._context.thread_type = "SLICE" if one_picture else "AUTO"
        self._context.thread_count = threads
        # Alone, an error belongs to the packet that was given last. In company a picture may leave before another
        # thread finds it damaged: there the decoder has to stop at the first fault, and one thread looks closer.
        self._alone = threads == 1 or one_picture
        if not self._alone:
            self._context.options = {"err_detect": "explode"}
        self._silent = self._context.name in SILENT_DECODERS
        self._source = streams.packets(container, [index])
        self._unreadable = False
        self._n_read = 0
        self._latest: float | None = None
        # Packets given to the decoder again after damage, and those that may have to be.
        self._again: deque[tuple[_Mark, Packet[Any]]] = deque()
        self._recent: deque[tuple[_Mark, Packet[Any]]] = deque()
        self._pending: dict[int, _Mark] = {}
        self._held: list[tuple[_Mark, Shown]] = []
        # Pictures shown before this time may lack what they refer to; None = not known yet.
        self._clean_from: float | None = None if sought else -np.inf

    def pictures(self) -> Iterator[Shown]:
        """Yield pictures and damage in order of time."""
        while (entry := self._read()) is not None:
            mark, packet = entry
            part = self._gap(mark)
            if part is not None and self._clean_from is not None:
                yield from self._set_aside(mark, "lost", begin=part[0], entry=entry)
                continue
            broken = self._decode(mark, packet)
            if broken is not None:
                yield from self._set_aside(broken)
                continue
            yield from self._released()
        yield from self._finish()

    def _read(self) -> "tuple[_Mark, Packet[Any]] | None":
        """Next packet with content; None at the end."""
        import av

        if self._again:
            return self._again.popleft()
        try:
            packet = next((p for p in self._source if p.size), None)
        except av.error.FFmpegError:
            packet = None
            self._unreadable = True
        if packet is None:
            return None
        time = packet_time(packet)
        latest = 0.0 if self._latest is None else self._latest
        stamp = packet.dts if packet.pts is None else packet.pts
        mark = _Mark(self._n_read, latest if time is None else time - self._zero, packet.is_keyframe, stamp)
        self._n_read += 1
        return mark, packet

    def _gap(self, mark: _Mark) -> tuple[float, float] | None:
        """Return the lost part of the file that ends with this packet, if there is one."""
        latest, self._latest = self._latest, max(mark.time, mark.time if self._latest is None else self._latest)
        return None if latest is None else self._lost.within(self._stream.index, latest, mark.time)

    def _decode(self, mark: _Mark, packet: "Packet[Any]") -> _Mark | None:
        """Give one packet to the decoder; returns the first broken one that shows."""
        import av

        if self._clean_from is None and mark.key:
            self._clean_from = mark.time
        if not packet.is_discard:
            self._pending[mark.index] = mark
        self._recent.append((mark, packet))
        try:
            frames = streams.decoded(self._stream, packet)
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            self._pending.pop(mark.index, None)
            if not self._alone:
                raise _SuspectError from error
            return None if self._leads(mark) else mark
        broken = [mark] if packet.is_corrupt and not self._leads(mark) else []
        broken += [found for frame in frames if (found := self._came(frame)) is not None]
        if broken and not self._alone:
            raise _SuspectError
        return min(broken, key=lambda found: found.index) if broken else None

    def _leads(self, mark: _Mark) -> bool:
        """Whether a picture is shown before the key frame that decoding reached, or there was none yet after a seek."""
        return self._clean_from is None or mark.time < self._clean_from

    def _came(self, frame: "VideoFrame") -> _Mark | None:
        """Take a picture from the decoder; returns the packet of it or of a missing one that is broken."""
        time = frame_time(frame) - self._zero
        mark = self._mark_of(frame, time)
        # Pictures come in order of time: one that was to be decoded and shown earlier will not come any more.
        passed = [m for m in self._pending.values() if m.index < mark.index and m.time <= time]
        for missing in passed:
            del self._pending[missing.index]
        missed = [m for m in passed if not self._leads(m) and (not self._alone or self._lacks(m))]
        if not self._leads(mark):
            if frame.is_corrupt:
                missed.append(mark)
            else:
                self._held.append((mark, Shown(time, frame)))
        return min(missed, key=lambda m: m.index) if missed else None

    def _mark_of(self, frame: "VideoFrame", time: float) -> _Mark:
        stamp = frame.dts if frame.pts is None else frame.pts
        waiting = list(self._pending.values())
        # Without time stamps of their own pictures come in the order of their packets.
        unknown = waiting[0] if waiting else _Mark(self._n_read - 1, time, key=False, stamp=stamp)
        mark = next((mark for mark in waiting if mark.stamp == stamp), unknown)
        self._pending.pop(mark.index, None)
        return mark

    def _lacks(self, mark: _Mark) -> bool:
        """Whether no picture from a packet means that it is broken; some packets hold none."""
        sizes = [packet.size for other, packet in self._recent if other is mark]
        return self._silent and not (self._context.name == "mpeg4" and max(sizes, default=0) <= EMPTY_PICTURE_BYTES)

    def _released(self) -> Iterator[Shown]:
        """Yield the pictures that wait for no picture decoded before them."""
        first = min(self._pending, default=self._n_read)
        while self._held and (self._held[0][0].index < first or len(self._held) > MAX_HELD):
            mark, shown = self._held.pop(0)
            if mark.key:
                # What should have come before this key frame comes too late to be shown.
                self._clean_from = mark.time
            yield shown
        oldest = min([first, *(mark.index for mark, _ in self._held)])
        while self._recent and self._recent[0][0].index < oldest:
            self._recent.popleft()

    def _drain(self) -> _Mark | None:
        """Bring out the pictures that the decoder still has; returns the first broken packet that shows."""
        import av

        broken = []
        for _ in range(1 + len(self._pending)):
            try:
                frames = streams.decoded(self._stream, None)
            except av.error.FFmpegError:
                continue
            broken += [found for frame in frames if (found := self._came(frame)) is not None]
            if not frames:
                break
        return min(broken, key=lambda mark: mark.index) if broken else None

    def _set_aside(
        self,
        broken: _Mark,
        what: Broken = "picture",
        *,
        begin: float = np.inf,
        entry: "tuple[_Mark, Packet[Any]] | None" = None,
    ) -> Iterator[Shown]:
        """Yield the good pictures before a broken packet, then the damage; decoding goes on at a key frame."""
        if not self._alone:
            raise _SuspectError
        earlier = self._drain()
        # What has not come by now will not come: packets before the broken one may have gone without a word.
        silent = [mark for mark in self._pending.values() if not self._leads(mark) and self._lacks(mark)]
        found = [mark for mark in (earlier, *silent) if mark is not None and mark.index < broken.index]
        broken = min(found, key=lambda mark: mark.index, default=broken)
        self._context.flush_buffers()
        good = [shown for mark, shown in self._held if mark.index < broken.index]
        # A picture shown before the key frame that it follows: that key frame does not need it.
        keys = [m.index for m, _ in self._recent if m.key and m.index < broken.index and m.time > broken.time]
        behind = [other for other in self._recent if other[0].index >= max(keys, default=broken.index + 1)]
        if entry is None:
            begin = broken.time
        resumed = max(keys, default=-1)
        begin = min([begin, *(m.time for m, _ in behind if resumed >= 0 and m.index > broken.index)])
        self._again.extendleft(reversed([*behind, *([entry] if entry else [])]))
        self._pending.clear()
        self._held.clear()
        self._recent.clear()
        self._clean_from = np.inf
        while (following := self._read()) is not None:
            mark, packet = following
            if mark.key and not packet.is_corrupt:
                self._again.appendleft(following)
                self._clean_from = mark.time
                self._latest = mark.time
                break
            begin = min(begin, mark.time)
        yield from (shown for shown in good if shown.time < begin)
        yield Shown(begin, None, what)

    def _finish(self) -> Iterator[Shown]:
        broken = self._drain()
        missing = [mark for mark in self._pending.values() if not self._leads(mark)]
        if not self._alone and (broken is not None or missing):
            raise _SuspectError
        lacking = [mark for mark in missing if self._lacks(mark)] + ([] if broken is None else [broken])
        if lacking:
            yield from self._set_aside(min(lacking, key=lambda mark: mark.index))
        self._pending.clear()
        yield from self._released()
        if self._unreadable:
            yield Shown(self._latest or 0.0, None, "lost")
