"""The sound of a film in one pass: decoded once, mixed to one channel, resampled once for each wanted rate.

Samples are placed by their time stamps, so that gaps and times outside the sound are silence; several channels
are mixed to one without clipping. Packets that cannot be decoded leave silence and are named as damage.
"""

from collections import deque
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.io import streams
from bids_mllm.io.damage import Broken, Damage, LostParts
from bids_mllm.io.streams import ChosenStreams, frame_time, open_media, packet_time, seek
from bids_mllm.records import Stimulus

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer

# Decoded and thrown away before the first wanted sample, so that the decoder's memory is filled.
AUDIO_MARGIN = 1.0
# Smaller steps between time stamp and sample count are rounding, not gaps.
GAP_TOLERANCE = 2e-3
# Wanted samples this many seconds ahead are sought instead of decoding all that lies between.
SEEK_GAP = 20.0
# Decoders of lossy sound give other samples for this long after a packet that they missed.
SETTLE_TIME = 0.25
# These decoders have no memory; those of lossy sound have one, of which some draw noise from a generator that runs
# from the start of the film (AAC, AC-3) and others never quite forget (Opus).
LOSSLESS_DECODERS = ("flac", "alac", "pcm_")
FORGETFUL_DECODERS = (*LOSSLESS_DECODERS, "mp2", "mp3", "vorbis")
# Half the length of the resampler's filter, in samples of the slower rate, less what hardly counts.
FILTER_REACH = 12
# Read at a time, in seconds.
STRIDE = 0.25

Block = tuple[int, int, NDArray[np.float32]]


class SoundPass:
    """Goes through the sound of a film once, forwards.

    The samples do not depend on where reading starts: a start in the middle or far ahead is sought only where time
    stamps are exact and the decoder forgets what came before.

    Parameters
    ----------
    stimulus
        The film.
    chosen
        Its streams, with an audio stream.
    lost
        The parts that the file lacks.
    rates
        The sampling rates in Hz that will be asked for.
    """

    def __init__(self, stimulus: Stimulus, chosen: ChosenStreams, lost: LostParts, rates: Collection[int]) -> None:
        self._stimulus = stimulus
        self._chosen = chosen
        self._lost = lost
        self._rates = tuple(sorted(set(rates)))
        self._blocks: Generator[Block | Damage] | None = None
        self._resampled: dict[int, _Resampled] = {}
        self._damages: list[Damage] = []
        self._native = 0
        self._may_seek = True

    def read(self, rate: int, first: int, size: int) -> tuple[NDArray[np.float32], int]:
        """Samples from `first` on, on the stimulus clock at `rate`, and how many of them are final.

        Parameters
        ----------
        rate
            One of the rates of the pass, in Hz.
        first
            First wanted sample; no earlier one may be asked for after it.
        size
            Number of wanted samples.

        Returns
        -------
        tuple
            All samples are final after the end of the sound.
        """
        needed = first / rate
        if self._blocks is None:
            self._open(needed)
        elif self._far_ahead(self._resampled[rate], needed * rate - SEEK_GAP * rate):
            self._jump(rate, needed)
        resampled = self._resampled[rate]
        while not resampled.over and resampled.end < first + min(size, STRIDE * rate):
            self._step()
        for each in self._resampled.values():
            each.forget(needed)
        n_final = size if resampled.over else min(size, resampled.end - first)
        return resampled.piece(first, n_final), n_final

    def damage(self, rate: int, first: int, size: int) -> Damage | None:
        """Return the first damage that changes any of these samples; they must have been read."""
        slower = min(rate, self._native or rate)
        reach = 0.0 if rate == self._native else FILTER_REACH / slower
        begin, end = first / rate, (first + size) / rate
        hits = [d for d in self._damages if d.begin < end + reach and d.end + d.settle + reach > begin]
        return min(hits, key=lambda damage: damage.begin, default=None)

    def close(self) -> None:
        """Close the file."""
        if self._blocks is not None:
            self._blocks.close()
        self._blocks = None

    def _open(self, needed: float) -> None:
        self.close()
        self._blocks = _mono(self._stimulus, self._chosen, needed, self._lost)
        self._resampled = {rate: _Resampled(rate) for rate in self._rates}

    def _far_ahead(self, resampled: "_Resampled", limit: float) -> bool:
        return self._may_seek and not resampled.over and resampled.began and resampled.end < limit

    def _jump(self, rate: int, needed: float) -> None:
        reached = self._resampled[rate].end
        with closing(open_media(self._stimulus.path, self._stimulus.stim_file)) as container:
            self._may_seek = self._chosen.audio is not None and _may_start_anywhere(container, self._chosen.audio)
        if not self._may_seek:
            return
        self._open(needed)
        while not (self._resampled[rate].began or self._resampled[rate].over):
            self._step()
        # A file in which seeking leads back would be decoded again and again.
        self._may_seek = self._resampled[rate].start >= reached

    def _step(self) -> None:
        block = None if self._blocks is None else next(self._blocks, None)
        if isinstance(block, Damage):
            if block not in self._damages:
                self._damages.append(block)
            return
        for resampled in self._resampled.values():
            if block is None:
                resampled.finish()
            else:
                resampled.feed(*block)
        if block is not None:
            self._native = block[1]


class _Resampled:
    """The mono sound at one rate: the pieces that may still be wanted."""

    def __init__(self, rate: int) -> None:
        from av.audio.resampler import AudioResampler

        self._rate = rate
        self._resampler: Any = AudioResampler(format="fltp", layout="mono", rate=rate)
        self._pieces: deque[tuple[int, NDArray[np.float32]]] = deque()
        self._position: int | None = None
        self.start = 0
        self.over = False

    @property
    def began(self) -> bool:
        """Whether there are samples."""
        return self._position is not None

    @property
    def end(self) -> int:
        """Index of the sample after the last one that is there; far in the past before the first."""
        return -(2**62) if self._position is None else self._position

    def feed(self, start: int, native: int, samples: NDArray[np.float32]) -> None:
        """Take samples at the native rate, the first of them `start`."""
        if self._position is None:
            # Starting on a common multiple of both rates makes the result independent of the start.
            step = int(Fraction(native, self._rate).numerator)
            samples = np.concatenate([np.zeros(start % step, np.float32), samples])
            self._position = self.start = (start - start % step) * self._rate // native
        self._take(_mono_frame(samples, native))

    def finish(self) -> None:
        """Take the end of the sound."""
        if self._position is not None:
            self._take(None)
        self.over = True

    def forget(self, before: float) -> None:
        """Drop what ends before a time in seconds."""
        while self._pieces and self._pieces[0][0] + self._pieces[0][1].size < before * self._rate - 1:
            self._pieces.popleft()

    def piece(self, first: int, size: int) -> NDArray[np.float32]:
        """Samples (size,) from `first` on; silence where there is no sound."""
        audio = np.zeros(max(0, size), dtype=np.float32)
        for start, samples in self._pieces:
            begin, end = max(start, first), min(start + samples.size, first + size)
            if begin < end:
                audio[begin - first : end - first] = samples[begin - start : end - start]
        return np.clip(audio, -1.0, 1.0, out=audio)

    def _take(self, frame: "AudioFrame | None") -> None:
        for samples in _resample(self._resampler, frame):
            self._pieces.append((self.end, samples))
            self._position = self.end + samples.size


def _resample(resampler: Any, frame: "AudioFrame | None") -> Iterator[NDArray[np.float32]]:
    for piece in resampler.resample(frame):
        if piece is not None and piece.samples:
            yield piece.to_ndarray()[0]


def _format_of(frame: "AudioFrame") -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _mono_frame(samples: NDArray[np.float32], rate: int) -> "AudioFrame":
    from av.audio.frame import AudioFrame

    frame = AudioFrame.from_ndarray(samples[None, :].astype(np.float32), format="fltp", layout="mono")
    frame.sample_rate = rate
    return frame


class _Mixer:
    """Mixes frames to one channel and places them by their time stamps.

    `broken` says what has been lost since the last frame, if anything; `expected` is the sample that comes next.
    """

    def __init__(self, start: float, frame: "AudioFrame", settle: float) -> None:
        from av.audio.resampler import AudioResampler

        self._format = _format_of(frame)
        self.native = frame.sample_rate
        self.expected = round(start * self.native)
        self.broken: Broken | None = None
        self._settle = settle
        self._tolerance = self.native * max(GAP_TOLERANCE, 2.5 * float(frame.time_base or 0))
        # With maxval 1 the mix is an average that cannot clip; the default sums the channels.
        self._mixer: Any = AudioResampler("fltp", "mono", self.native, options={"rematrix_maxval": "1.0"})

    def place(self, start: float, frame: "AudioFrame") -> Iterator[Block | Damage]:
        """Yield the frame's samples, behind the damage and the silence before them."""
        if _format_of(frame) != self._format:
            self.broken = self.broken or "format"
            return
        samples = np.concatenate([np.zeros(0, np.float32), *_resample(self._mixer, frame)])
        shift = round(start * self.native) - self.expected
        tolerance = self._tolerance
        if self.broken is not None:
            # Time stamps may be rounded, and what follows must come where it would have come: whole frames were lost.
            whole = max(0, round(shift / max(1, samples.size))) * samples.size
            shift, tolerance = (whole, 0.0) if abs(shift - whole) <= tolerance else (shift, tolerance)
            yield self.damage((self.expected + max(shift, 0)) / self.native)
        if shift > tolerance:
            for begin in range(0, shift, self.native):
                yield self.expected + begin, self.native, np.zeros(min(self.native, shift - begin), np.float32)
            self.expected += shift
        elif shift < -tolerance:
            samples = samples[-shift:]
        if samples.size:
            yield self.expected, self.native, samples
            self.expected += samples.size

    def damage(self, end: float) -> Damage:
        """Close the damage that lasts from the expected sample until `end` seconds."""
        broken, self.broken = self.broken or "sound", None
        return Damage(self.expected / self.native, end, broken, self._settle)


def _mono(stimulus: Stimulus, chosen: ChosenStreams, needed: float, lost: LostParts) -> Generator[Block | Damage]:
    """Yield (sample index on the stimulus clock, native rate, mono samples) without gaps or overlaps; each damage
    comes before the silence that stands for it.
    """
    if chosen.audio is None:
        return
    mixer: _Mixer | None = None
    opening = np.inf
    for start, frame, settle in _frames(stimulus, chosen.audio, chosen.zero, needed):
        if frame is None and mixer is None:
            opening = min(opening, start)
        elif frame is None and mixer is not None:
            mixer.broken = mixer.broken or "sound"
        elif frame is not None:
            if mixer is None:
                mixer = _Mixer(start, frame, settle)
                if np.isfinite(opening):
                    yield Damage(opening, start, "sound", settle)
            elif mixer.broken is None and lost.within(chosen.audio, mixer.expected / mixer.native, start):
                mixer.broken = "lost"
            yield from mixer.place(start, frame)
    if mixer is not None and mixer.broken is not None:
        yield mixer.damage(np.inf)


def _frames(
    stimulus: Stimulus, index: int, zero: float, needed: float
) -> Iterator[tuple[float, "AudioFrame | None", float]]:
    """Yield (time on the stimulus clock, frame or None where it is broken, seconds until the decoder has settled)
    from at least `AUDIO_MARGIN` before `needed`.
    """
    # Where a seek ends too late or in a damaged place, what came before must be known: it is tried from further back.
    for margin in (AUDIO_MARGIN, 10.0 + AUDIO_MARGIN, np.inf):
        with closing(open_media(stimulus.path, stimulus.stim_file)) as container:
            wanted = needed > margin and _may_start_anywhere(container, index)
            sought = wanted and seek(container, index, needed - margin + zero)
            if wanted and not sought:
                continue
            on_time = not sought
            for start, frame, settle in _decoded(container, index, zero):
                on_time = on_time or (frame is not None and start <= needed)
                if not on_time:
                    break
                yield start, frame, settle
            if on_time:
                return


def _may_start_anywhere(container: "InputContainer", index: int) -> bool:
    """Whether time stamps are as fine as samples, so that they say where a seek landed, and the decoder forgets."""
    stream: Any = container.streams[index]
    exact = float(stream.time_base or 1) * (stream.codec_context.sample_rate or 0) <= 1.0 + 1e-9
    return exact and stream.codec_context.name.startswith(FORGETFUL_DECODERS)


def _decoded(
    container: "InputContainer", index: int, zero: float
) -> Iterator[tuple[float, "AudioFrame | None", float]]:
    import av

    context: Any = container.streams[index].codec_context
    context.thread_count = 1
    if context.name == "flac":
        context.options = {"err_detect": "crccheck+explode"}
    settle = 0.0 if context.name.startswith(LOSSLESS_DECODERS) else SETTLE_TIME
    time = 0.0
    source = streams.packets(container, [index])
    while True:
        try:
            packet = next(source, None)
        except av.error.FFmpegError:
            yield time, None, settle
            return
        if packet is None:
            return
        stamp = packet_time(packet) if packet.size else None
        time = time if stamp is None else stamp - zero
        try:
            frames = streams.decoded(container.streams[index], packet)
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            yield time, None, settle
            continue
        for frame in frames:
            broken = frame.is_corrupt or packet.is_corrupt
            yield frame_time(frame) - zero, None if broken else frame, settle
