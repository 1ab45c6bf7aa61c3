"""Events files: which one applies to a run, and its rows."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from bids_mllm.discover.names import BidsName, FolderIndex, normalise_entities
from bids_mllm.exceptions import InputDataError

#: Columns that say where in the stimulus a row starts, in order of preference.
MEDIA_ONSET_COLUMNS = ("stim_onset", "media_onset")


@dataclass(frozen=True)
class EventRow:
    """One row of an events file that names a stimulus; seconds on the run's clock."""

    stim_file: str
    onset: float
    duration: float | None
    media_onset: float | None = None


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


def read_events(path: Path) -> tuple[EventRow, ...]:
    """Read the rows that name a stimulus file, in order of onset; rows with ``n/a`` are passed over.

    Raises
    ------
    InputDataError
        When the file cannot be read, lacks a column, or holds a time that is not a number; names the line.
    """
    try:
        return _read_rows(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputDataError(
            f"The events file {path} cannot be read ({error}); run datalad get on it if it is a link, or correct it."
        ) from error


def _read_rows(path: Path) -> tuple[EventRow, ...]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t")
        columns = reader.fieldnames or []
        missing = [name for name in ("onset", "duration", "stim_file") if name not in columns]
        if missing:
            raise InputDataError(
                f"{path} has no column {', '.join(missing)}; an events file needs onset, duration and "
                "stim_file, or say what was shown with --stimulus-map."
            )
        media_column = next((name for name in MEDIA_ONSET_COLUMNS if name in columns), None)
        rows = [
            EventRow(
                stim_file=row["stim_file"].strip(),
                onset=_seconds(path, number, "onset", row["onset"]),
                duration=_seconds_or_none(path, number, "duration", row["duration"]),
                media_onset=_seconds_or_none(path, number, media_column, row[media_column]) if media_column else None,
            )
            for number, row in enumerate(reader, start=2)
            if row["stim_file"] and row["stim_file"].strip() not in ("", "n/a")
        ]
    return tuple(sorted(rows, key=lambda row: row.onset))


def _seconds(path: Path, line: int, column: str, text: str | None) -> float:
    try:
        seconds = float(text or "")
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InputDataError(
            f"{path}, line {line}: {column} is {text!r}, but must be a number of seconds with a point "
            "(such as 12.5); correct the file."
        )
    return seconds


def _seconds_or_none(path: Path, line: int, column: str, text: str | None) -> float | None:
    return None if text is None or text.strip() in ("", "n/a") else _seconds(path, line, column, text)
