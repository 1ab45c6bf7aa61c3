"""A table of the user's that says what was shown, for data sets whose events do not."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_mllm.exceptions import UsageError
from bids_mllm.records import Run, Showing

COLUMNS = ("task", "session", "run", "stim_file", "run_onset", "media_onset", "duration")


@dataclass(frozen=True)
class MapRow:
    """One playback and the runs it applies to; None = any."""

    task: str | None
    session: str | None
    run: int | None
    showing: Showing

    def fits(self, run: Run) -> bool:
        """Whether this row speaks of `run`."""
        return (
            (self.task is None or self.task == run.task)
            and (self.session is None or self.session == run.session)
            and (self.run is None or self.run == run.run)
        )


def read_stimulus_map(path: Path) -> tuple[MapRow, ...]:
    """Read a stimulus map: TSV with the columns task, session, run, stim_file, run_onset, media_onset,
    duration; ``n/a`` in task, session or run means any, in duration to the end of the film.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t")
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise UsageError(
                    f"The stimulus map {path} has no column {', '.join(missing)}; expected the tab-separated "
                    f"columns {', '.join(COLUMNS)}."
                )
            return tuple(_row(path, number, row) for number, row in enumerate(reader, start=2))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"The stimulus map {path} cannot be read: {error}.") from error


def _row(path: Path, line: int, row: dict[str, str]) -> MapRow:
    def value(name: str) -> str | None:
        text = (row[name] or "").strip()
        return None if text in ("", "n/a") else text

    try:
        run = value("run")
        duration = value("duration")
        showing = Showing(
            stim_file=value("stim_file") or "",
            run_onset=_seconds(value("run_onset") or "0"),
            media_onset=_seconds(value("media_onset") or "0"),
            duration=None if duration is None else _seconds(duration),
        )
        parsed = MapRow(
            task=(value("task") or "").removeprefix("task-") or None,
            session=(value("session") or "").removeprefix("ses-") or None,
            run=int(run.removeprefix("run-")) if run else None,
            showing=showing,
        )
    except ValueError as error:
        raise UsageError(
            f"The stimulus map {path}, line {line}: {error}; run must be an integer, the times seconds."
        ) from None
    if not showing.stim_file:
        raise UsageError(f"The stimulus map {path}, line {line}: stim_file is empty; name the stimulus.")
    return parsed


def _seconds(text: str) -> float:
    seconds = float(text)
    if not math.isfinite(seconds):
        raise ValueError(f"{text!r} is no number of seconds")
    return seconds


def mapped_showings(rows: Sequence[MapRow], run: Run) -> tuple[Showing, ...]:
    """Return what the map says was shown in `run`, in order of onset."""
    return tuple(sorted((row.showing for row in rows if row.fits(run)), key=lambda s: s.run_onset))
