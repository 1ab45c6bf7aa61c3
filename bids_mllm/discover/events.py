"""Events files: which one applies to a run, and its rows."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_mllm.discover.names import BidsName, FolderIndex, normalise_entities
from bids_mllm.exceptions import InputDataError
from bids_mllm.records import FloatArray

#: Columns that say where in the stimulus a row starts, in order of preference.
MEDIA_ONSET_COLUMNS = ("media_onset", "stim_file_onset", "movie_onset", "video_onset", "audio_onset")
#: Columns that do so too, but that some write for the time on the run's clock.
DOUBTFUL_ONSET_COLUMNS = ("stim_onset", "stimulus_onset")
#: Columns of a file with one row for each frame of a film.
FRAME_COLUMNS = ("onset", "frameidx", "videotime")
MISSING = ("", "n/a")


@dataclass(frozen=True)
class EventRow:
    """One row of an events file that names a stimulus; seconds on the run's clock."""

    stim_file: str
    onset: float
    duration: float | None
    media_onset: float | None = None


@dataclass(frozen=True)
class FrameRows:
    """The rows of one film in an events file with one row for each frame, in order of onset.

    Attributes
    ----------
    stim_file
        The film, '' where the file does not name it.
    onset : (n_frames,) float
        Seconds on the run's clock at which a frame came on.
    frame_index, video_time : (n_frames,) float
        Number of the frame and its time in the film, in whatever unit the file has.
    """

    stim_file: str
    onset: FloatArray
    frame_index: FloatArray
    video_time: FloatArray


def find_events(bids_dir: Path, bold: BidsName, folders: FolderIndex) -> Path | None:
    """Return the events file of a run by the inheritance principle, root-level files included.

    `bold` may lie in a derivative: its entities without space, res, den, desc, echo and part say where
    in the raw data set to look. The deepest file wins, within a folder the one with most entities.
    """
    entities = normalise_entities(bold.entities)
    folder = bids_dir / f"sub-{entities['sub']}"
    if "ses" in entities:
        folder /= f"ses-{entities['ses']}"
    found = folders.inherited(bids_dir, folder / "func", entities, suffix="events", extension=".tsv")
    return found[-1].path if found else None


#: Number of the line in the file, and the cells by column.
Line = tuple[int, Mapping[str, str | None]]


def read_events(path: Path) -> tuple[EventRow, ...]:
    """Read the rows that name a stimulus file, in order of onset.

    Rows without a stimulus or an onset (``n/a``) are passed over, and so is a row that repeats another.

    Raises
    ------
    InputDataError
        When the file cannot be read, lacks a column, or holds a time that is not a number or a negative duration; names
        the line.
    """
    columns, rows = _read_lines(path)
    missing = [name for name in ("onset", "duration", "stim_file") if name not in columns]
    if missing:
        raise InputDataError(
            f"{path} has no column {', '.join(missing)}; an events file needs onset, duration and "
            "stim_file, or say what was shown with --stimulus-map."
        )
    return _stimulus_rows(path, columns, rows)


def read_frames(path: Path) -> tuple[FrameRows, ...]:
    """Read the frames of each film from a file with one row a frame, known by its columns frameidx and videotime.

    Other events files give none. Rows without a time on either clock, or without a film where a column stim_file
    names films, are passed over.

    Raises
    ------
    InputDataError
        When the file cannot be read or holds a time that is not a number; names the line.
    """
    columns, rows = _read_lines(path)
    return _frame_rows(path, columns, rows) if all(name in columns for name in FRAME_COLUMNS) else ()


def _read_lines(path: Path) -> tuple[Sequence[str], list[Line]]:
    """Names of the columns and the lines of a table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t")
            columns = reader.fieldnames or []
            return columns, list(enumerate(reader, start=2))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputDataError(
            f"The events file {path} cannot be read ({error}); run datalad get on it if it is a link, or correct it."
        ) from error


def _stimulus_rows(path: Path, columns: Sequence[str], rows: Sequence[Line]) -> tuple[EventRow, ...]:
    column = next((name for name in (*MEDIA_ONSET_COLUMNS, *DOUBTFUL_ONSET_COLUMNS) if name in columns), None)
    found = [
        EventRow(
            stim_file=_text(row, "stim_file"),
            onset=_seconds(path, number, "onset", row["onset"]),
            duration=_duration(path, number, row["duration"]),
            media_onset=_seconds_or_none(path, number, column, row[column]) if column else None,
        )
        for number, row in rows
        if _text(row, "stim_file") not in MISSING and _text(row, "onset") != "n/a"
    ]
    ordered = tuple(sorted(dict.fromkeys(found), key=lambda row: row.onset))
    repeats = all(row.media_onset is not None and abs(row.media_onset - row.onset) < 1e-3 for row in ordered)
    if column in DOUBTFUL_ONSET_COLUMNS and repeats and any(row.onset for row in ordered):
        raise InputDataError(
            f"The column {column} of {path} repeats the column onset, so it does not tell where in the stimulus a "
            "row starts; remove it, or name it media_onset if it does."
        )
    return ordered


def _frame_rows(path: Path, columns: Sequence[str], rows: Sequence[Line]) -> tuple[FrameRows, ...]:
    films: dict[str, set[tuple[float, float, float]]] = {}
    for number, row in rows:
        film = _text(row, "stim_file") if "stim_file" in columns else ""
        unnamed = "stim_file" in columns and film in MISSING
        if unnamed or any(_text(row, name) == "n/a" for name in FRAME_COLUMNS):
            continue
        onset, index, time = (_seconds(path, number, name, row[name]) for name in FRAME_COLUMNS)
        films.setdefault(film, set()).add((onset, index, time))
    tables = {film: np.array(sorted(cells)) for film, cells in films.items()}
    return tuple(FrameRows(film, table[:, 0], table[:, 1], table[:, 2]) for film, table in tables.items())


def _text(row: Mapping[str, str | None], column: str) -> str:
    return (row[column] or "").strip()


def _seconds(path: Path, line: int, column: str, text: str | None) -> float:
    try:
        seconds = float(text or "")
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        pointed = (text or "").strip().replace(",", ".")
        example = pointed if pointed.replace(".", "", 1).lstrip("+-").isdecimal() else "12.5"
        raise InputDataError(
            f"{path}, line {line}: {column} is {text!r}, but must be a number of seconds with a point "
            f"(such as {example}); correct the file."
        )
    return seconds


def _duration(path: Path, line: int, text: str | None) -> float | None:
    seconds = _seconds_or_none(path, line, "duration", text)
    if seconds is not None and seconds < 0:
        raise InputDataError(
            f"{path}, line {line}: duration is {seconds:g}, but must not be negative; write n/a where it is not known."
        )
    return seconds


def _seconds_or_none(path: Path, line: int, column: str, text: str | None) -> float | None:
    return None if text is None or text.strip() in MISSING else _seconds(path, line, column, text)
