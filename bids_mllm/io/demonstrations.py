"""Demonstrations for models that learn in context: a user's file of clips, instructions and answers."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_mllm.exceptions import UsageError
from bids_mllm.io.clips import probe_stimulus
from bids_mllm.records import Clip, Stimulus

TEXTS = ("file", "instruction", "answer")
SECONDS = ("start", "end")
#: Streams of one file end within a packet of each other (seconds).
END_TOLERANCE = 0.1


@dataclass(frozen=True)
class DemonstrationRow:
    """One demonstration: the film, the clip of it, what is asked and what is to be answered."""

    stimulus: Stimulus
    clip: Clip
    instruction: str
    answer: str


def read_demonstrations(path: Path) -> tuple[DemonstrationRow, ...]:
    """Return the demonstrations of a file, in its order.

    Parameters
    ----------
    path
        A TOML file with tables ``[[demonstration]]`` that hold `file` (relative to this file), `start` and
        `end` (seconds on the film's clock), `instruction` and `answer`.

    Raises
    ------
    UsageError
        When the file cannot be read, a table lacks a value, or a clip ends after its film.
    StimulusError
        When a film is missing or damaged.
    """
    try:
        entries = tomllib.loads(path.read_text("utf-8")).get("demonstration")
    except (OSError, ValueError) as error:
        raise UsageError(f"The demonstrations file {path} cannot be read as TOML ({error}).") from error
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"The demonstrations file {path} holds no [[demonstration]] table; add at least one.")
    return tuple(_row(entry, path, number) for number, entry in enumerate(entries, start=1))


def _row(entry: Any, path: Path, number: int) -> DemonstrationRow:
    place = f"Demonstration {number} of {path}"
    if not isinstance(entry, Mapping) or set(entry) != {*TEXTS, *SECONDS}:
        raise UsageError(f"{place} must have the fields {', '.join((*TEXTS, *SECONDS))} and no others.")
    for name in TEXTS:
        if not isinstance(entry[name], str) or not entry[name].strip():
            raise UsageError(f"{place} has no text in the field {name!r}.")
    start, end = entry["start"], entry["end"]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (start, end))
    if not numbers or not 0 <= start < end:
        raise UsageError(f"{place} has start {start!r} and end {end!r}, but 0 <= start < end in seconds is needed.")
    stimulus = probe_stimulus(path.parent / entry["file"], entry["file"])
    ends = [seconds for seconds in (stimulus.video_duration, stimulus.audio_duration) if seconds is not None]
    if end > max(ends) + END_TOLERANCE:
        raise UsageError(
            f"{place} ends at {end:g} s, but {entry['file']} lasts {max(ends):.2f} s; give an earlier end."
        )
    return DemonstrationRow(
        stimulus, Clip(entry["file"], 0, float(start), float(end)), entry["instruction"], entry["answer"]
    )
