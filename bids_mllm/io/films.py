"""One film for all who want to see it: every picture and every sample decoded once, shared by all clips.

Each job is a model with its clips. What is wanted next by any of them, a picture or a stretch of sound, is served in
order of time, so that the two streams of a file run side by side and only the clips that are open take memory.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from bids_mllm.exceptions import StimulusError
from bids_mllm.io.damage import Damage, LostParts
from bids_mllm.io.pictures import PicturePass
from bids_mllm.io.sounds import SoundPass
from bids_mllm.io.streams import ChosenStreams, check_present, choose_streams
from bids_mllm.records import Clip, ClipJob, ClipMedia, MediaRequest, Stimulus


def read_film(stimulus: Stimulus, jobs: Sequence[ClipJob]) -> Iterator[tuple[int, ClipMedia]]:
    """Decode the windows of one film or sound for several models in one pass.

    The picture and the sound stream are each decoded once, from just before the first window to the end of the last,
    for all jobs together. A picture is scaled once for each size that is asked for and shared by all clips that show
    it. Where nothing is wanted for some time, the next window is sought instead. Memory holds what the open windows
    need, whatever the length of the film.

    A frame is the one on screen at the asked instant by its time stamp (the first frame before the film, the last one
    after it). Samples are placed by their time stamps, so that gaps and times outside the sound are silence; several
    channels are mixed to one without clipping.

    Parameters
    ----------
    stimulus
        The file, as `probe_stimulus` described it.
    jobs
        For each model its clips in order of their start, and what it wants of them. Clips may overlap and lie far
        apart. They are drawn in the thread that draws from this iterator, one ahead for each job and only as decoding
        reaches them.

    Yields
    ------
    tuple of int and ClipMedia
        The position of a job in `jobs`, and the next of its clips in its own order: frames (n_frames, height, width,
        3) uint8 with the time stamps of these frames (n_frames,) in seconds on the stimulus clock; samples
        (round((end - start + lead) * sampling_rate),) float32 in [-1, 1]; or both, of the same seconds. Of a clip that
        needs a damaged stretch of the file there is only the `fault`: undecodable or lost packets, and what is
        decoded after them up to the next key frame. Data that were changed without a trace cannot be told.

    Raises
    ------
    StimulusError
        The file is missing or has no stream of a kind that is asked for.
    ValueError
        A request asks for no frames or samples, or a clip is of another stimulus or comes before the one before it.
    """
    for job in jobs:
        _check_request(job.request)
    if not jobs:
        return iter(())
    check_present(stimulus.path, stimulus.stim_file)
    chosen = choose_streams(stimulus.path, stimulus.stim_file)
    for job in jobs:
        _check_streams(stimulus.stim_file, chosen, job.request)
    return _read(stimulus, chosen, jobs)


def _check_request(request: MediaRequest) -> None:
    wanted = {"video": [request.n_frames], "audio": [request.sampling_rate]}
    if min(wanted.get(request.media, [request.n_frames, request.sampling_rate])) < 1:
        raise ValueError(f"A request for {request.media} needs n_frames or sampling_rate of at least 1.")


def _check_streams(stim_file: str, chosen: ChosenStreams, request: MediaRequest) -> None:
    for kind, index in (("video", chosen.video), ("audio", chosen.audio)):
        if request.media in (kind, "both") and index is None:
            needs = "video and audio" if request.media == "both" else kind
            raise StimulusError(
                f"{stim_file} has no {kind} stream, but the model needs {needs}; "
                "use a model of another kind or give a file that has one."
            )


def _read(stimulus: Stimulus, chosen: ChosenStreams, jobs: Sequence[ClipJob]) -> Iterator[tuple[int, ClipMedia]]:
    lost = LostParts(stimulus, chosen)
    pictures = PicturePass(stimulus, chosen, lost)
    sounds = SoundPass(
        stimulus, chosen, lost, {job.request.sampling_rate for job in jobs if job.request.media != "video"}
    )
    queues = [_Queue(job, stimulus.stim_file) for job in jobs]
    try:
        while True:
            for number, queue in enumerate(queues):
                for window in queue.complete():
                    yield number, window.media(stimulus.stim_file)
            opening = min((q for q in queues if q.peeked()), key=attrgetter("begin"), default=None)
            windows = [window for queue in queues for window in queue.open if not window.done]
            serving = min(windows, key=attrgetter("needed"), default=None)
            if opening is not None and (serving is None or opening.begin <= serving.needed):
                opening.draw()
            elif serving is not None:
                serving.serve(pictures, sounds)
            else:
                return
    finally:
        pictures.close()
        sounds.close()


class _Queue:
    """The clips of one job: those that are open, and the next one."""

    def __init__(self, job: ClipJob, stim_file: str) -> None:
        self.open: deque[_Window] = deque()
        self._request = job.request
        self._stim_file = stim_file
        self._clips = iter(job.clips)
        self._next: Clip | None = None
        self._last = -np.inf
        self._over = False

    def peeked(self) -> bool:
        """Draw the next clip unless it is here already; False when there is none."""
        if self._next is None and not self._over:
            self._next = next(self._clips, None)
            self._over = self._next is None
            if self._next is not None:
                self._check(self._next)
        return self._next is not None

    @property
    def begin(self) -> float:
        """Seconds at which the next clip begins, with its lead."""
        return np.inf if self._next is None else self._next.start - self._request.lead

    def draw(self) -> None:
        """Open the next clip."""
        if self._next is not None:
            self.open.append(_Window(self._next, self._request))
        self._next = None

    def complete(self) -> "Iterator[_Window]":
        """Take out the clips that are complete, in order."""
        while self.open and self.open[0].done:
            yield self.open.popleft()

    def _check(self, clip: Clip) -> None:
        if clip.stim_file != self._stim_file:
            raise ValueError(f"Every clip must be of {self._stim_file}, but some name another stimulus.")
        if clip.start < self._last:
            raise ValueError(f"The clips of {self._stim_file} must be in order of their start.")
        self._last = clip.start


class _Window:
    """One open clip: what it has and what it still needs."""

    def __init__(self, clip: Clip, request: MediaRequest) -> None:
        self._clip = clip
        self._request = request
        begin = clip.start - request.lead
        n_frames = 0 if request.media == "audio" else request.n_frames
        parts = (np.arange(n_frames) + 0.5) / max(1, n_frames)
        self._instants = (begin + (clip.end - begin) * parts).tolist()
        self._shown: list[tuple[float, NDArray[np.uint8]]] = []
        rate = 0 if request.media == "video" else request.sampling_rate
        self._first = round(begin * rate)
        self._size = round((clip.end - clip.start + request.lead) * rate)
        self._audio: NDArray[np.float32] = np.zeros(self._size, dtype=np.float32)
        self._filled = 0
        self._damage: dict[str, Damage] = {}

    @property
    def done(self) -> bool:
        """Whether the clip has all it needs, or will not get it."""
        return self._next_instant() == self._next_sound() == np.inf

    @property
    def needed(self) -> float:
        """Seconds on the stimulus clock of what the clip needs next."""
        return min(self._next_instant(), self._next_sound())

    def serve(self, pictures: PicturePass, sounds: SoundPass) -> None:
        """Take what the clip needs next from the film."""
        instant = self._next_instant()
        if instant > self._next_sound():
            self._listen(sounds)
            return
        shown = pictures.at(instant)
        if shown.frame is None:
            self._damage["picture"] = pictures.damage(shown)
            self._shown.clear()
        else:
            self._shown.append((shown.time, pictures.pixels(shown, self._request.frame_size)))

    def media(self, stim_file: str) -> ClipMedia:
        """What the model is given."""
        damage = self._damage.get("picture", self._damage.get("sound"))
        if damage is not None:
            return ClipMedia(self._clip, fault=damage.sentence(stim_file))
        frames = times = audio = None
        if self._instants:
            stamps, pictures = zip(*self._shown, strict=True)
            frames, times = np.stack(pictures), np.array(stamps)
        if self._request.media != "video":
            audio = self._audio
        rate = 0 if audio is None else self._request.sampling_rate
        return ClipMedia(self._clip, frames=frames, frame_times=times, audio=audio, sampling_rate=rate)

    def _next_instant(self) -> float:
        if "picture" in self._damage or len(self._shown) == len(self._instants):
            return np.inf
        return float(self._instants[len(self._shown)])

    def _next_sound(self) -> float:
        if self._damage or self._filled == self._size:
            return np.inf
        return (self._first + self._filled) / self._request.sampling_rate

    def _listen(self, sounds: SoundPass) -> None:
        rate, start = self._request.sampling_rate, self._first + self._filled
        samples, n_final = sounds.read(rate, start, self._size - self._filled)
        self._audio[self._filled : self._filled + n_final] = samples
        self._filled += n_final
        if self._filled == self._size and (damage := sounds.damage(rate, self._first, self._size)) is not None:
            self._damage["sound"] = damage
