"""What was shown in each run: from events, single frames or the stimulus map to playbacks."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bids_mllm.align.frame_clock import showings_from_frames
from bids_mllm.align.showings import showings_from_rows
from bids_mllm.config import Settings
from bids_mllm.discover.events import FrameRows, read_events, read_frames
from bids_mllm.discover.stimulus_map import MapRow, idle_rows, mapped_showings, read_stimulus_map
from bids_mllm.exceptions import InputDataError, StimulusError, UsageError
from bids_mllm.io.probes import ProbeCache
from bids_mllm.records import DroppedRun, Run, Showing, Stimulus

logger = logging.getLogger("bids_mllm")

#: Playbacks and the rule they were made by, from the seconds of each stimulus (None where unknown).
MakeShowings = Callable[[Mapping[str, float | None]], tuple[tuple[Showing, ...], str]]


@dataclass
class _Stimuli:
    """The stimuli that were looked at, and why some cannot be used."""

    settings: Settings
    cache: ProbeCache
    found: dict[str, Stimulus] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def look_at(self, stim_file: str) -> None:
        """Probe a stimulus unless that was done."""
        if stim_file in self.found or stim_file in self.faults:
            return
        try:
            self.found[stim_file] = self.cache.probe(stim_file, self.settings.stimuli_root)
        except StimulusError as error:
            self.faults[stim_file] = str(error)
            logger.warning("%s", error)

    def seconds(self, stim_file: str) -> float | None:
        """Seconds of the longer stream of a stimulus, None where nothing is known of it."""
        stimulus = self.found.get(stim_file)
        if stimulus is None:
            return None
        return max((d for d in (stimulus.video_duration, stimulus.audio_duration) if d is not None), default=None)


def read_map(settings: Settings, runs: Sequence[Run]) -> tuple[MapRow, ...]:
    """Read the stimulus map, if there is one, and see that its rows speak of `runs`, all those found.

    Raises
    ------
    UsageError
        When a row speaks of a run that is not there though all runs of the data set were looked for; where only some
        were asked for, it is a warning.
    """
    if settings.stimulus_map is None:
        return ()
    rows = read_stimulus_map(settings.stimulus_map)
    idle = idle_rows(rows, runs, settings.stimulus_map)
    asked = (
        settings.participant_label, settings.session_label, settings.task_id, settings.run_id,
        settings.bids_filter_file,
    )  # fmt: skip
    if idle and not any(asked):
        raise UsageError(idle[0])
    for sentence in idle:
        logger.warning("%s", sentence)
    return rows


def shown_runs(
    settings: Settings,
    runs: Sequence[Run],
    rows: Sequence[MapRow],
    cache: ProbeCache,
    *,
    with_media: bool,
    tolerate_missing: bool,
) -> tuple[tuple[Run, ...], dict[str, Stimulus], tuple[DroppedRun, ...]]:
    """Give each run its showings; runs whose stimulus cannot be used are set apart with the reason.

    Parameters
    ----------
    rows
        Of the stimulus map.
    with_media
        Whether any model reads the stimuli.
    tolerate_missing
        Keep the runs whose stimulus is not there.
    """
    stimuli = _Stimuli(settings, cache)
    kept, lost = [], []
    for run in runs:
        files, make = _source(run, [row for row in rows if row.fits(run)])
        if with_media:
            for stim_file in files:
                stimuli.look_at(stim_file)
        broken = [stimuli.faults[name] for name in files if name in stimuli.faults]
        if broken and not tolerate_missing:
            lost.append(DroppedRun(run.participant, run.label, broken[0], run.place))
            continue
        showings, rule = make({name: stimuli.seconds(name) for name in files})
        kept.append(replace(run, showings=showings, showings_rule=rule))
    return tuple(kept), stimuli.found, tuple(lost)


def _source(run: Run, mapped: Sequence[MapRow]) -> tuple[tuple[str, ...], MakeShowings]:
    """Files that a run showed, and how its playbacks are made: by the map, by single frames, or by rows of events."""
    names = tuple(dict.fromkeys(row.showing.stim_file for row in mapped))
    untimed = not any(row.timed for row in mapped)
    frames = read_frames(run.events) if run.events is not None and untimed else ()
    if frames:
        films = _named(frames, names, str(run.events))
        return tuple(films), lambda _: (_from_frames(films, str(run.events)), "frame clock")
    if mapped:
        return names, lambda _: (mapped_showings(mapped, run), "stimulus map")
    events = () if run.events is None else read_events(run.events)
    files = tuple(dict.fromkeys(row.stim_file for row in events))
    return files, lambda durations: showings_from_rows(events, durations, source=str(run.events))


def _named(frames: Sequence[FrameRows], names: Sequence[str], source: str) -> dict[str, FrameRows]:
    """Frames by their film, which the map names before the events do."""
    if len(frames) == len(names) == 1:
        return {names[0]: frames[0]}
    if names or not all(film.stim_file for film in frames):
        given = f"names {', '.join(names)}" if names else "does not name one"
        raise InputDataError(
            f"{source} says when each frame was shown, but the stimulus map {given} for it; give the run one row "
            "there with stim_file and n/a in run_onset, media_onset and duration, or add a column stim_file."
        )
    return {film.stim_file: film for film in frames}


def _from_frames(films: Mapping[str, FrameRows], source: str) -> tuple[Showing, ...]:
    showings = [s for name, frames in films.items() for s in showings_from_frames(frames, name, source=source)]
    return tuple(sorted(showings, key=lambda showing: showing.run_onset))
