"""From settings to designs: which runs, stimuli, windows and splits the workflow will be made of."""

import fnmatch
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_mllm.align.showings import showings_from_rows
from bids_mllm.align.windows import align_run
from bids_mllm.config import Settings
from bids_mllm.discover.events import read_events
from bids_mllm.discover.layout import (
    check_raw_dataset,
    choose_participants,
    find_fmriprep,
    index_derivative,
    read_filters,
)
from bids_mllm.discover.runs import RunQuery, find_runs, usable_runs
from bids_mllm.discover.stimulus_map import mapped_showings, read_stimulus_map
from bids_mllm.exceptions import InputDataError, StimulusError, UsageError
from bids_mllm.features.controls import null_instructions
from bids_mllm.features.instructions import choose_instructions, load_instructions
from bids_mllm.features.registry import resolve_models
from bids_mllm.features.table import check_table
from bids_mllm.fit.folds import MIN_TRAINING_ROWS
from bids_mllm.interfaces.features import table_from_content
from bids_mllm.interfaces.rows import make_rows, usable_volumes
from bids_mllm.io.atlas import atlas_name, check_atlas
from bids_mllm.io.probes import ProbeCache
from bids_mllm.io.tables import read_feature_table
from bids_mllm.records import DroppedRun, Instruction, ModelSpec, ParticipantDesign, Run, Stimulus
from bids_mllm.workflows.statistics import ceiling_method, check_joint, cv_options, with_split_of_file

logger = logging.getLogger("bids_mllm")


@dataclass(frozen=True)
class StudyPlan:
    """Everything the workflow is built from.

    `stimuli` holds the media files that models read (none where only tables are asked for); `spans` the
    seconds of each stimulus that all models asked for can read; `instructions` those of each model that follows
    any, by its key, null instructions included.
    """

    settings: Settings
    fmriprep_dir: Path
    participants: tuple[str, ...]
    runs: tuple[Run, ...]
    designs: tuple[ParticipantDesign, ...]
    dropped: tuple[DroppedRun, ...]
    models: tuple[ModelSpec, ...]
    instructions: Mapping[str, tuple[Instruction, ...]]
    stimuli: Mapping[str, Stimulus]
    spans: Mapping[str, float]
    table_digests: Mapping[tuple[str, str], str]


def plan_study(settings: Settings, *, only_list: bool = False) -> StudyPlan:
    """Find, align and split everything that `settings` ask for.

    Parameters
    ----------
    settings
    only_list
        For the table of runs: runs without their files stay, and nothing is cached on disk.

    Raises
    ------
    UsageError, InputDataError
        With one sentence when something asked for is not there or does not fit together.
    """
    models = _models(settings)
    _check_atlases(settings.atlas)
    instructions = _instructions(settings, models)
    check_joint(settings, models, instructions)
    if not settings.skip_bids_validation:
        check_raw_dataset(settings.bids_dir)
    fmriprep_dir = find_fmriprep(settings.bids_dir, settings.derivatives)
    participants = choose_participants(fmriprep_dir, settings.participant_label)
    found = _find(settings, fmriprep_dir, participants, keep_index=not only_list)
    cache = ProbeCache(None if only_list else settings.work_dir / "stimuli.json")
    runs, stimuli, lost = _shown(settings, found, models, cache, tolerate_missing=only_list)
    usable, dropped = (runs, ()) if only_list else usable_runs(runs)
    _check_sound(models, stimuli)
    spans = _spans(settings, usable, models, stimuli)
    usable, tableless = _check_spans(usable, spans)
    usable, short = (usable, ()) if only_list else _check_overlap(settings, usable, spans)
    digests = {} if only_list else _check_tables(settings, usable, spans)
    dropped = (*lost, *dropped, *tableless, *short)
    if not usable:
        raise InputDataError(_nothing_left(dropped))
    designs = _designs(settings, usable, dropped, spans)
    if not only_list:
        designs = tuple(with_split_of_file(settings, design) for design in designs)
        for design in designs:
            make_rows(design, delays=settings.delays, cv=cv_options(settings, design.participant))
            ceiling_method(settings, designs, design)
    return StudyPlan(
        settings,
        fmriprep_dir,
        participants,
        runs,
        designs,
        dropped,
        models,
        instructions,
        stimuli,
        spans,
        digests,
    )


def _models(settings: Settings) -> tuple[ModelSpec, ...]:
    models = resolve_models(
        settings.models, revision=settings.model_revision, sloppy=settings.sloppy, family=settings.family
    )
    if not settings.trust_remote_code:
        return models
    return tuple(
        replace(model, parameters={**model.parameters, "trust_remote_code": True}) if model.instructed else model
        for model in models
    )


def _instructions(settings: Settings, models: Sequence[ModelSpec]) -> dict[str, tuple[Instruction, ...]]:
    """Choose the instructions of each model that follows any, and add the null instructions asked for."""
    kinds = {model.media for model in models if model.instructed} or {"video"}
    lists = {media: load_instructions(settings.instructions_file, media=media) for media in sorted(kinds)}
    chosen = {}
    for media, own in lists.items():
        elsewhere = [one for other, found in lists.items() if other != media for one in found]
        real = choose_instructions(own, settings.instructions or None, elsewhere=elsewhere)
        chosen[media] = (*real, *null_instructions(real, settings.null_instructions, settings.random_seed))
    return {model.key: chosen[model.media] for model in models if model.instructed}


def _check_atlases(atlases: Sequence[Path]) -> None:
    """Refuse atlases that cannot be read or whose tables would be written under one name."""
    names: dict[str, Path] = {}
    for path in atlases:
        check_atlas(path)
        first = names.setdefault(atlas_name(path), path)
        if first != path:
            raise UsageError(
                f"--atlas {first} and {path} both carry the name {atlas_name(path)}; copy one under another name, such "
                "as with another atlas- entity."
            )


def _find(settings: Settings, fmriprep_dir: Path, participants: Sequence[str], *, keep_index: bool) -> tuple[Run, ...]:
    database = settings.bids_database_dir
    if database is not None and not keep_index and not database.is_dir():
        database = None  # a dry run reuses an index but makes none
    layout = index_derivative(fmriprep_dir, participants, database_dir=database)
    query = RunQuery(
        participants=tuple(participants),
        spaces=settings.space,
        sessions=settings.session_label,
        tasks=settings.task_id,
        runs=settings.run_id,
        filters=read_filters(settings.bids_filter_file),
    )
    return find_runs(layout, settings.bids_dir, fmriprep_dir, query)


def _shown(
    settings: Settings,
    runs: Sequence[Run],
    models: Sequence[ModelSpec],
    cache: ProbeCache,
    *,
    tolerate_missing: bool,
) -> tuple[tuple[Run, ...], dict[str, Stimulus], tuple[DroppedRun, ...]]:
    """Give each run its showings; runs whose stimulus cannot be used are set apart with the reason."""
    rows_of_map = read_stimulus_map(settings.stimulus_map) if settings.stimulus_map else ()
    for row in rows_of_map:
        if not any(row.fits(run) for run in runs):
            logger.warning("The stimulus map's row for %s fits none of the runs asked for.", row.showing.stim_file)
    stimuli: dict[str, Stimulus] = {}
    faults: dict[str, str] = {}
    kept, lost = [], []
    for run in runs:
        mapped = mapped_showings(rows_of_map, run)
        rows = () if mapped or run.events is None else read_events(run.events)
        files = dict.fromkeys([s.stim_file for s in mapped] or [row.stim_file for row in rows])
        if models:
            for stim_file in files:
                _probe(stim_file, settings, runs, cache, stimuli, faults)
        broken = [faults[name] for name in files if name in faults]
        if broken and not tolerate_missing:
            lost.append(DroppedRun(run.participant, run.label, broken[0]))
            continue
        if mapped:
            kept.append(replace(run, showings=mapped, showings_rule="stimulus map"))
        else:
            durations = {name: _longest(stimuli.get(name)) for name in files}
            showings, rule = showings_from_rows(rows, durations, source=str(run.events))
            kept.append(replace(run, showings=showings, showings_rule=rule))
    return tuple(kept), stimuli, tuple(lost)


def _probe(
    stim_file: str,
    settings: Settings,
    runs: Sequence[Run],
    cache: ProbeCache,
    stimuli: dict[str, Stimulus],
    faults: dict[str, str],
) -> None:
    if stim_file in stimuli or stim_file in faults:
        return
    try:
        stimuli[stim_file] = cache.probe(stim_file, settings.stimuli_root)
    except StimulusError as error:
        faults[stim_file] = str(error)
        logger.warning("%s", error)


def _longest(stimulus: Stimulus | None) -> float | None:
    if stimulus is None:
        return None
    return max((d for d in (stimulus.video_duration, stimulus.audio_duration) if d is not None), default=None)


def _check_sound(models: Sequence[ModelSpec], stimuli: Mapping[str, Stimulus]) -> None:
    for model in models:
        for stimulus in stimuli.values():
            if stimulus.duration(model.media) is not None:
                continue
            what, stream = ("sound", "audio") if stimulus.audio_duration is None else ("pictures", "video")
            raise StimulusError(
                f"{model.key} needs {what}, but {stimulus.path} has no {stream} stream; leave the model out "
                "or choose other runs with --task-id."
            )


def _spans(
    settings: Settings, runs: Sequence[Run], models: Sequence[ModelSpec], stimuli: Mapping[str, Stimulus]
) -> dict[str, float]:
    """Seconds of each stimulus that every model can read; from events and tables where no media is read."""
    spans: dict[str, float] = {}
    for run in runs:
        for showing in run.showings:
            stimulus = stimuli.get(showing.stim_file)
            if stimulus is not None:
                durations = [stimulus.duration(model.media) for model in models]
                spans[showing.stim_file] = min(d for d in durations if d is not None)
            else:
                ends = spans.get(showing.stim_file, 0.0)
                shown = 0.0 if showing.duration is None else showing.media_onset + showing.duration
                spans[showing.stim_file] = max(ends, shown)
    for name, seconds in spans.items():
        if seconds == 0.0 and settings.feature_table:
            folder = next(iter(settings.feature_table.values()))
            table = table_from_content(read_feature_table(folder, name), name)
            spans[name] = float((table.onset + table.duration).max())
    return spans


def _check_spans(runs: Sequence[Run], spans: Mapping[str, float]) -> tuple[tuple[Run, ...], tuple[DroppedRun, ...]]:
    """Set apart runs of which nothing is known about how long their stimulus lasts."""
    kept, dropped = [], []
    for run in runs:
        unknown = [s.stim_file for s in run.showings if spans[s.stim_file] <= 0]
        if unknown:
            reason = f"neither the events nor a file say how long {unknown[0]} lasts; give the duration in the events"
            dropped.append(DroppedRun(run.participant, run.label, reason))
        else:
            kept.append(run)
    return tuple(kept), tuple(dropped)


def _check_overlap(
    settings: Settings, runs: Sequence[Run], spans: Mapping[str, float]
) -> tuple[tuple[Run, ...], tuple[DroppedRun, ...]]:
    """Set apart runs in which too few volumes have a complete window and complete delays."""
    kept, dropped = [], []
    for run in runs:
        windows = align_run(run, spans, window=settings.window, position=settings.window_position)
        n_usable = 0
        if run.n_volumes > max(settings.delays):
            n_usable = int(usable_volumes(run, windows, settings.delays).sum())
        n_drifts = int(2 * run.n_volumes * run.repetition_time * settings.high_pass) + 1
        needed = max(MIN_TRAINING_ROWS, n_drifts + 2)
        if n_usable < needed:
            reason = (
                f"only {n_usable} of {run.n_volumes} volumes have a complete window and complete delays, and at least "
                f"{needed} are needed; check when its stimulus starts and how long it lasts"
            )
            dropped.append(DroppedRun(run.participant, run.label, reason))
        else:
            kept.append(run)
    return tuple(kept), tuple(dropped)


def _check_tables(settings: Settings, runs: Sequence[Run], spans: Mapping[str, float]) -> dict[tuple[str, str], str]:
    """Check every feature table before anything runs; return its digest by (table, stimulus)."""
    digests = {}
    windows = [run.repetition_time if settings.window is None else settings.window for run in runs]
    for name, folder in settings.feature_table.items():
        for stim_file in sorted({showing.stim_file for run in runs for showing in run.showings}):
            content = read_feature_table(folder, stim_file)
            check_table(table_from_content(content, stim_file), spans[stim_file], window=max(windows))
            digests[name, stim_file] = content["sha256"]
    return digests


def _nothing_left(dropped: Sequence[DroppedRun]) -> str:
    reasons = dict.fromkeys(drop.reason for drop in dropped)
    counted = "; ".join(list(reasons)[:5])
    more = f"; and {len(reasons) - 5} more reasons" if len(reasons) > 5 else ""
    return f"None of {len(dropped)} runs can be used: {counted}{more}."


def _designs(
    settings: Settings, runs: Sequence[Run], dropped: Sequence[DroppedRun], spans: Mapping[str, float]
) -> tuple[ParticipantDesign, ...]:
    grouped: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        grouped[run.participant, run.place].append(run)
    designs = []
    for (participant, _), own in grouped.items():
        windows = tuple(align_run(run, spans, window=settings.window, position=settings.window_position) for run in own)
        designs.append(
            ParticipantDesign(
                participant=participant,
                space=own[0].space,
                runs=tuple(own),
                windows=windows,
                dropped=tuple(drop for drop in dropped if drop.participant == participant),
                test_runs=held_out_runs(settings.test_task, own, participant),
            )
        )
    return tuple(designs)


def held_out_runs(patterns: Sequence[str], runs: Sequence[Run], participant: str) -> tuple[int, ...] | None:
    """Return the indices of the runs whose task matches a pattern; None without patterns."""
    if not patterns:
        return None
    chosen = tuple(
        number
        for number, run in enumerate(runs)
        if any(fnmatch.fnmatchcase(run.task, pattern.removeprefix("task-")) for pattern in patterns)
    )
    if not chosen:
        tasks = ", ".join(sorted({run.task for run in runs}))
        raise UsageError(
            f"--test-task {' '.join(patterns)} matches no run of sub-{participant}; its tasks are {tasks}."
        )
    return chosen


def split_of(design: ParticipantDesign, number: int) -> str:
    """Return the side of the split that a run is on: train, test, or cv where runs take turns."""
    if design.test_runs is None:
        return "cv"
    return "test" if number in design.test_runs else "train"
