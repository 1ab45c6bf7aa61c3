"""A table of the user's that says what was shown, for data sets whose events do not."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_mllm.exceptions import UsageError
from bids_mllm.records import Run, Showing

TIMES = ("run_onset", "media_onset", "duration")
COLUMNS = ("task", "session", "run", "stim_file", *TIMES)
#: Runs that a message lists at most.
LISTED = 20


@dataclass(frozen=True)
class MapRow:
    """One playback and the runs it applies to; None = any.

    `timed` tells whether the row gives any time; one that gives none also names the film of a run whose events have
    a row for each frame. `line` is that of the file.
    """

    participant: str | None
    task: str | None
    session: str | None
    run: int | None
    showing: Showing
    timed: bool
    line: int

    def fits(self, run: Run) -> bool:
        """Whether this row speaks of `run`."""
        return (
            (self.participant is None or self.participant == run.participant)
            and (self.task is None or self.task == run.task)
            and (self.session is None or self.session == run.session)
            and (self.run is None or self.run == run.run)
        )

    @property
    def words(self) -> str:
        """What the row says of its runs, e.g. ``task movie, run 2``."""
        entities = {"participant": self.participant, "session": self.session, "task": self.task, "run": self.run}
        return ", ".join(f"{name} {value}" for name, value in entities.items() if value is not None) or "any run"


def read_stimulus_map(path: Path) -> tuple[MapRow, ...]:
    """Read a stimulus map: TSV with the columns task, session, run, stim_file, run_onset, media_onset,
    duration, and participant where it is needed; ``n/a`` in task, session, run or participant means any, in a time
    the start of the run or of the film, in duration to the end of the film.
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


def _row(path: Path, line: int, row: dict[str, str | None]) -> MapRow:
    def value(name: str) -> str | None:
        text = (row.get(name) or "").strip()
        return None if text in ("", "n/a") else text

    def label(name: str, prefix: str) -> str | None:
        return (value(name) or "").removeprefix(prefix) or None

    try:
        run = value("run")
        duration = value("duration")
        parsed = MapRow(
            participant=label("participant", "sub-"),
            task=label("task", "task-"),
            session=label("session", "ses-"),
            run=int(run.removeprefix("run-")) if run else None,
            showing=Showing(
                stim_file=value("stim_file") or "",
                run_onset=_seconds(value("run_onset") or "0"),
                media_onset=_seconds(value("media_onset") or "0"),
                duration=None if duration is None else _seconds(duration),
            ),
            timed=any(value(name) is not None for name in TIMES),
            line=line,
        )
    except ValueError as error:
        raise UsageError(
            f"The stimulus map {path}, line {line}: {error}; run must be an integer, the times seconds with a point."
        ) from None
    if not parsed.showing.stim_file:
        raise UsageError(f"The stimulus map {path}, line {line}: stim_file is empty; name the stimulus.")
    seconds = parsed.showing.duration
    if seconds is not None and seconds < 0:
        raise UsageError(
            f"The stimulus map {path}, line {line}: duration is {seconds:g}, but must not be negative; write n/a to "
            "play to the end of the film."
        )
    return parsed


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"{text!r} is no number of seconds")
    return seconds


def mapped_showings(rows: Sequence[MapRow], run: Run) -> tuple[Showing, ...]:
    """Return what the map says was shown in `run`, in order of onset."""
    return tuple(sorted((row.showing for row in rows if row.fits(run)), key=lambda s: s.run_onset))


def idle_rows(rows: Sequence[MapRow], runs: Sequence[Run], path: Path) -> tuple[str, ...]:
    """Return one sentence for each row that speaks of none of `runs`."""
    there = list(dict.fromkeys(f"sub-{run.participant}_{run.label}" for run in runs))
    more = f" and {len(there) - LISTED} more" if len(there) > LISTED else ""
    return tuple(
        f"The stimulus map {path}, line {row.line}: {row.words} ({row.showing.stim_file}) is none of the runs, which "
        f"are {', '.join(there[:LISTED])}{more}; correct the line."
        for row in rows
        if not any(row.fits(run) for run in runs)
    )
