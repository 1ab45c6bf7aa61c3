"""From rows of events to playbacks of stimuli."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from bids_mllm.exceptions import InputDataError
from bids_mllm.records import Showing

#: Share of the media's duration by which a span may differ and still be called a match.
MATCH_TOLERANCE = 0.05


class Row(Protocol):
    """One row of an events file; seconds."""

    @property
    def stim_file(self) -> str:
        """Stimulus that the row names."""
        ...

    @property
    def onset(self) -> float:
        """Start on the run's clock."""
        ...

    @property
    def duration(self) -> float | None:
        """Length, None where it is not given."""
        ...

    @property
    def media_onset(self) -> float | None:
        """Start on the stimulus clock, None without such a column."""
        ...


def showings_from_rows(
    rows: Sequence[Row], media_durations: Mapping[str, float | None], *, source: str
) -> tuple[tuple[Showing, ...], str]:
    """Turn the rows of one run into playbacks, and name the rule.

    Parameters
    ----------
    rows
        In order of onset.
    media_durations
        Seconds of each stimulus, None where unknown.
    source
        File that the rows came from, for messages.

    Notes
    -----
    A file named in one row plays once. Named in several rows, in this order: an explicit column says
    where in the media each row starts; or the media is as long as the span of the rows, and they mark
    parts of one continuous playback; or each row is as long as the media, and it was shown again. Where the
    last row does not say how long it lasts, the rows mark parts of one playback when all of them start and end
    before the media would.

    Raises
    ------
    InputDataError
        When several rows name one file and neither reading fits; names both.
    """
    showings: list[Showing] = []
    rules: set[str] = set()
    for stim_file in dict.fromkeys(row.stim_file for row in rows):
        own = [row for row in rows if row.stim_file == stim_file]
        made, rule = _showings_of_one(own, media_durations.get(stim_file), source)
        showings += made
        rules.add(rule)
    ordered = tuple(sorted(showings, key=lambda s: s.run_onset))
    return ordered, " and ".join(sorted(rules))


def _showings_of_one(rows: Sequence[Row], media_duration: float | None, source: str) -> tuple[list[Showing], str]:
    if all(row.media_onset is not None for row in rows):
        return [Showing(r.stim_file, r.onset, r.media_onset or 0.0, r.duration) for r in rows], "explicit column"
    if len(rows) == 1:
        return [Showing(rows[0].stim_file, rows[0].onset, 0.0, rows[0].duration)], "one row"
    last = rows[-1]
    span = _span(rows)
    if _match(span, media_duration):
        return [Showing(last.stim_file, rows[0].onset, 0.0, span)], "one continuous playback"
    if last.duration is None and _fits_before_the_end(rows, media_duration):
        return [Showing(last.stim_file, rows[0].onset, 0.0, None)], "one continuous playback"
    if all(_match(row.duration, media_duration) for row in rows):
        return [Showing(r.stim_file, r.onset, 0.0, r.duration) for r in rows], "separate showings"
    whole = "for an unknown time" if span is None else f"{span:.2f} s"
    shown = "unknown" if media_duration is None else f"{media_duration:.2f} s"
    durations = ", ".join("n/a" if r.duration is None else f"{r.duration:g}" for r in rows)
    raise InputDataError(
        f"{source} names {last.stim_file} in {len(rows)} rows: as one continuous playback it would last "
        f"{whole}, as separate showings {durations} s, but the media lasts {shown}; add a column "
        "stim_onset or say which with --stimulus-map."
    )


def _span(rows: Sequence[Row]) -> float | None:
    """Seconds from the first onset to the last end; None where the last row does not say when it ends."""
    if rows[-1].duration is None:
        return None
    return max(row.onset + row.duration for row in rows if row.duration is not None) - rows[0].onset


def _fits_before_the_end(rows: Sequence[Row], media_duration: float | None) -> bool:
    """Whether every row starts within the media as it plays from the first, and no row is a showing of its own."""
    if media_duration is None or any(_match(row.duration, media_duration) for row in rows):
        return False
    ends = [row.onset + (row.duration or 0.0) for row in rows]
    return max(ends) - rows[0].onset < media_duration


def _match(seconds: float | None, media_duration: float | None) -> bool:
    if seconds is None or media_duration is None:
        return False
    # Less than the media itself, so that two showings of a sound of a second are no continuous playback.
    least = min(1.0, 0.25 * media_duration)
    return abs(seconds - media_duration) <= max(least, MATCH_TOLERANCE * media_duration)
