"""Films and sounds: what a media file holds, and the frames or samples of windows of it.

Of several streams of a kind the one that FFmpeg ranks best is taken: first those that the file marks as
default and that are not made for the visually or hearing impaired, then by the number of packets seen and
the bit rate. Cover pictures do not count as video. The stimulus clock is zero at the first picture or sample
of the chosen streams, whichever is earlier; other streams (subtitles, further languages) have no say.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from bids_mllm.exceptions import StimulusError
from bids_mllm.io.films import read_film
from bids_mllm.io.streams import check_complete, check_present, choose_streams, open_media, stream_ends
from bids_mllm.records import Clip, ClipJob, ClipMedia, MediaRequest, Stimulus

# Raise when a frame or a sample is chosen, scaled or mixed in another way than before: stored features then differ.
DECODING_RULES = "1"


def decoder_identity() -> dict[str, str]:
    """Return what changes decoded frames and samples besides the file: PyAV's version and this module's rules."""
    return {"av": version("av"), "rules": DECODING_RULES}


def probe_stimulus(path: Path, stim_file: str, *, quick: bool = False) -> Stimulus:
    """Describe a media file without decoding more than its first frames.

    The durations end with the last packet of the chosen video and audio stream, read from the packets'
    time stamps, because a container also counts subtitles and other streams. Damage inside the file is left to
    `read_film`, which names the clips that it hits.

    Parameters
    ----------
    path
        The file.
    stim_file
        Its name in the data set.
    quick
        Read no more of it than its length needs, and leave its hash empty.

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
        ends = stream_ends(container, chosen, stim_file, quick=quick)
        check_complete(container, ends, stim_file)
        rate = None if chosen.video is None else container.streams[chosen.video].average_rate
    return Stimulus(
        stim_file=stim_file,
        path=path,
        sha256="" if quick else _sha256(path),
        video_duration=None if chosen.video is None else ends[chosen.video] - chosen.zero,
        audio_duration=None if chosen.audio is None else ends[chosen.audio] - chosen.zero,
        width=chosen.width,
        height=chosen.height,
        frame_rate=float(rate or 0.0),
    )


def read_clips(stimulus: Stimulus, clips: Sequence[Clip], request: MediaRequest) -> Iterator[ClipMedia]:
    """Decode windows of one film or sound in one pass, for one model that takes no damaged film.

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
        One for each clip, in the same order, as `read_film` describes it.

    Raises
    ------
    StimulusError
        The file is missing, has no stream of the asked kind, or is damaged at some time that is needed.
    """
    if any(clip.stim_file != stimulus.stim_file for clip in clips):
        raise ValueError(f"Every clip must be of {stimulus.stim_file}, but some name another stimulus.")
    if any(late.start < early.start for early, late in pairwise(clips)):
        raise ValueError(f"The clips of {stimulus.stim_file} must be in order of their start.")
    return _undamaged(read_film(stimulus, [ClipJob(clips, request)])) if clips else iter(())


def _undamaged(media: Iterator[tuple[int, ClipMedia]]) -> Iterator[ClipMedia]:
    for _, each in media:
        if each.fault is not None:
            raise StimulusError(each.fault)
        yield each


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
