"""The instructions that a model follows: the built-in lists, a user's list, and a choice among them."""

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from bids_mllm.exceptions import UsageError
from bids_mllm.records import Instruction, Media
from bids_mllm.validation import check_in_allowed

FIELDS = ("key", "name", "text", "group")
GROUPS = ("perceptual", "language", "cognitive", "spatiotemporal", "social")
# A model of video and sound is asked the questions about the video, as in the study.
BUILT_IN: Mapping[str, str] = {
    "video": "instructions.toml",
    "audio": "instructions_audio.toml",
    "both": "instructions.toml",
}


def _read_text(path: Path | None, media: str) -> str:
    """Return the text of a user's file, or of the packaged one of a kind of media for None."""
    if path is None:
        return resources.files("bids_mllm").joinpath("data", BUILT_IN[media]).read_text("utf-8")
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The instructions file {path} cannot be read as UTF-8 text ({type(error).__name__}); "
            "give the path of a TOML file with one [[instruction]] table for each instruction."
        ) from error


def _instruction(entry: Any, place: str) -> Instruction:
    """Return the record of one table, checked; `place` names the table in an error."""
    if not isinstance(entry, Mapping):
        raise UsageError(f"{place} is not a table; write each instruction under [[instruction]].")
    for name in FIELDS:
        value = entry.get(name)
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{place} has no text in the field '{name}'; it needs {', '.join(FIELDS)}.")
    unknown = sorted(set(entry) - set(FIELDS))
    if unknown:
        raise UsageError(f"{place} has the unknown field '{unknown[0]}'; its fields are {', '.join(FIELDS)}.")
    key, group = entry["key"], entry["group"]
    if not (key.isascii() and key.isalnum()):
        raise UsageError(f"{place} has the key {key!r}, but a key holds letters and digits only.")
    if group not in GROUPS:
        raise UsageError(f"{place} has the group {group!r}; the groups are {', '.join(GROUPS)}.")
    return Instruction(key=key, name=entry["name"], text=entry["text"].strip(), group=group)


def _check_unique(instructions: Sequence[Instruction], origin: str) -> None:
    """Raise a UsageError where two instructions share a key (in any case) or a text."""
    seen: set[tuple[str, str]] = set()
    for instruction in instructions:
        for kind, value in (("key", instruction.key.lower()), ("text", instruction.text)):
            if (kind, value) in seen:
                raise UsageError(f"Two instructions of {origin} have the same {kind} ({value!r}); each needs its own.")
            seen.add((kind, value))


def load_instructions(path: Path | None = None, *, media: Media = "video") -> tuple[Instruction, ...]:
    """Return the instructions of a file, in its order.

    Parameters
    ----------
    path
        A TOML file with tables ``[[instruction]]`` that hold `key` (letters and digits), `name`, `text`
        and `group`; None for a built-in list of arXiv 2506.08277.
    media
        Which built-in list: the 13 video instructions for ``video`` and ``both``, the 5 audio instructions
        for ``audio``; of no effect with a file.

    Raises
    ------
    UsageError
        When the file cannot be read, is not TOML, lacks a field, or repeats a key or a text.
    """
    check_in_allowed(media, BUILT_IN, "media")
    origin = f"the built-in list for {media}" if path is None else str(path)
    try:
        table = tomllib.loads(_read_text(path, media))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The instructions file {origin} is not valid TOML: {error}.") from error
    entries = table.get("instruction")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"The instructions file {origin} holds no [[instruction]] table; add at least one.")
    instructions = tuple(
        _instruction(entry, f"Instruction {i} of {origin}") for i, entry in enumerate(entries, start=1)
    )
    _check_unique(instructions, origin)
    return instructions


def choose_instructions(
    instructions: Sequence[Instruction], keys: Sequence[str] | None, *, elsewhere: Sequence[Instruction] = ()
) -> tuple[Instruction, ...]:
    """Return the instructions with the given keys, in the order of `keys` and each once.

    Case does not matter in a key; None chooses all.

    Parameters
    ----------
    instructions
        The list to choose from.
    keys
        Keys of this list, or of the other one.
    elsewhere
        The lists for models of other media, whose keys may be asked for in the same call; they choose nothing
        here.

    Raises
    ------
    UsageError
        When a key is in no list, with the keys of all lists, or when every key belongs elsewhere.
    """
    if keys is None:
        return tuple(instructions)
    by_key = {instruction.key.lower(): instruction for instruction in instructions}
    known = dict.fromkeys(instruction.key for instruction in (*instructions, *elsewhere))
    other = {instruction.key.lower() for instruction in elsewhere}
    chosen: dict[str, Instruction] = {}
    for key in keys:
        found = by_key.get(key.lower())
        if found is not None:
            chosen[found.key] = found
        elif key.lower() not in other:
            raise UsageError(f"There is no instruction {key!r}; choose from {', '.join(known)}.")
    if keys and not chosen:
        choices = ", ".join(instruction.key for instruction in instructions)
        raise UsageError(
            f"The instructions {', '.join(keys)} are for models of other media; add at least one of {choices}."
        )
    return tuple(chosen.values())
