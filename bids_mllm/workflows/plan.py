"""From settings to designs: which runs, stimuli, windows and splits the workflow will be made of."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bids_mllm.align.windows import align_run
from bids_mllm.config import Settings
from bids_mllm.discover.layout import (
    check_raw_dataset,
    choose_participants,
    find_derivatives,
    index_derivative,
    read_filters,
)
from bids_mllm.discover.lost import raw_faults, usable_runs
from bids_mllm.discover.runs import find_runs
from bids_mllm.discover.series import RunQuery
from bids_mllm.discover.spaces import parse_space
from bids_mllm.exceptions import InputDataError, StimulusError
from bids_mllm.features.controls import null_instructions
from bids_mllm.features.instructions import choose_instructions, load_instructions
from bids_mllm.features.registry import resolve_models
from bids_mllm.features.table import check_table
from bids_mllm.fit.folds import MIN_TRAINING_ROWS
from bids_mllm.interfaces.features import table_from_content
from bids_mllm.interfaces.rows import make_rows, usable_volumes
from bids_mllm.io.atlas import AtlasFiles
from bids_mllm.io.atlas_find import atlas_items
from bids_mllm.io.probes import ProbeCache
from bids_mllm.io.tables import read_feature_table
from bids_mllm.records import DroppedRun, Instruction, ModelSpec, ParticipantDesign, Run, Stimulus, TRWindows
from bids_mllm.workflows.atlases import plan_atlases
from bids_mllm.workflows.shown import read_map, shown_runs
from bids_mllm.workflows.sides import held_out_runs, unused_tasks, without_tasks
from bids_mllm.workflows.statistics import ceiling_method, check_joint, cv_options, with_split_of_file

logger = logging.getLogger("bids_mllm")


@dataclass(frozen=True)
class StudyPlan:
    """Everything the workflow is built from.

    `stimuli` holds the media files that models read (none where only tables are asked for); `spans` the
    seconds of each stimulus that all models asked for can read; `instructions` those of each model that follows
    any, by its key, null instructions included. `unused` are, for the table of runs, those that ``--train-task`` and
    ``--test-task`` leave out. `derivatives` are the roots by name of all derivatives searched, that of `fmriprep_dir`
    first. `atlases` are those of every participant and place.
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
    unused: tuple[tuple[Run, TRWindows], ...] = ()
    derivatives: Mapping[str, Path] = field(default_factory=dict)
    atlases: Mapping[tuple[str, str], tuple[AtlasFiles, ...]] = field(default_factory=dict)


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
    atlas_items(settings.atlas)
    instructions = _instructions(settings, models)
    check_joint(settings, models, instructions)
    if not settings.skip_bids_validation:
        check_raw_dataset(settings.bids_dir)
    derivatives = find_derivatives(settings.bids_dir, settings.derivatives)
    participants = choose_participants(list(derivatives.values()), settings.participant_label)
    found, never = _find(settings, derivatives, participants, keep_index=not only_list)
    mapped = read_map(settings, found)
    unused = unused_tasks(settings, found)
    left_out: tuple[DroppedRun, ...] = ()
    if not only_list:
        found, left_out = without_tasks(found, unused)
    cache = ProbeCache(settings.work_dir / "stimuli.json", quick=only_list)
    runs, stimuli, lost = shown_runs(
        settings, found, mapped, cache, with_media=bool(models), tolerate_missing=only_list
    )
    usable, dropped = (runs, ()) if only_list else usable_runs(runs, use_confounds=settings.confounds != "none")
    _check_sound(models, stimuli)
    spans = _spans(settings, usable, models, stimuli)
    usable, tableless = _check_spans(usable, spans)
    usable, short = (usable, ()) if only_list else _check_overlap(settings, usable, spans)
    digests = {} if only_list else _check_tables(settings, usable, spans)
    dropped = (*left_out, *lost, *dropped, *tableless, *short, *never)
    listed = tuple((run, _aligned(settings, run, spans)) for run in usable if run.task in unused)
    usable = tuple(run for run in usable if run.task not in unused)
    if not usable:
        raise InputDataError(_nothing_left(dropped))
    designs = _designs(settings, usable, dropped, spans)
    if not only_list:
        designs = tuple(with_split_of_file(settings, design) for design in designs)
        for design in designs:
            make_rows(design, delays=settings.delays, cv=cv_options(settings, design.participant))
            ceiling_method(settings, designs, design)
    atlases = plan_atlases(settings, designs, only_find=only_list)
    return StudyPlan(
        settings,
        next(iter(derivatives.values())),
        participants,
        runs,
        designs,
        dropped,
        models,
        instructions,
        stimuli,
        spans,
        digests,
        listed,
        derivatives,
        atlases,
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


def _find(
    settings: Settings, roots: Mapping[str, Path], participants: Sequence[str], *, keep_index: bool
) -> tuple[tuple[Run, ...], tuple[DroppedRun, ...]]:
    """Find the runs asked for, and those of the raw data set that were and are not there."""
    database = settings.bids_database_dir
    if database is not None and not keep_index and not database.is_dir():
        database = None  # a dry run reuses an index but makes none
    derivatives = [index_derivative(name, root, participants, database_dir=database) for name, root in roots.items()]
    query = RunQuery(
        participants=tuple(participants),
        spaces=tuple(map(parse_space, settings.space)),
        sessions=settings.session_label,
        tasks=settings.task_id,
        runs=settings.run_id,
        filters=read_filters(settings.bids_filter_file),
    )
    runs = find_runs(derivatives, settings.bids_dir, query)
    return runs, raw_faults(derivatives, settings.bids_dir, query, runs)


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
                shown = 0.0 if showing.duration is None else showing.media_onset + showing.duration * showing.rate
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
            dropped.append(DroppedRun(run.participant, run.label, reason, run.place))
        else:
            kept.append(run)
    return tuple(kept), tuple(dropped)


def _check_overlap(
    settings: Settings, runs: Sequence[Run], spans: Mapping[str, float]
) -> tuple[tuple[Run, ...], tuple[DroppedRun, ...]]:
    """Set apart runs in which too few volumes have a complete window and complete delays."""
    kept, dropped = [], []
    for run in runs:
        windows = _aligned(settings, run, spans)
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
            dropped.append(DroppedRun(run.participant, run.label, reason, run.place))
        else:
            kept.append(run)
    return tuple(kept), tuple(dropped)


def _aligned(settings: Settings, run: Run, spans: Mapping[str, float]) -> TRWindows:
    return align_run(run, spans, window=settings.window, position=settings.window_position)


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
    for (participant, place), own in grouped.items():
        windows = tuple(_aligned(settings, run, spans) for run in own)
        lost = tuple(drop for drop in dropped if drop.participant == participant and drop.place in (None, place))
        designs.append(
            ParticipantDesign(
                participant=participant,
                space=own[0].space,
                runs=tuple(own),
                windows=windows,
                dropped=lost,
                test_runs=held_out_runs(settings.test_task, own, participant),
            )
        )
    return tuple(designs)
