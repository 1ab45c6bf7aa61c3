"""Which runs train, which are tested and which take no part, by their tasks."""

import fnmatch
from collections.abc import Sequence

from bids_mllm.config import Settings
from bids_mllm.exceptions import UsageError
from bids_mllm.records import DroppedRun, ParticipantDesign, Run


def unused_tasks(settings: Settings, runs: Sequence[Run]) -> frozenset[str]:
    """Return the tasks that ``--train-task`` and ``--test-task`` leave out; none without ``--train-task``.

    Raises
    ------
    UsageError
        When a pattern to train on matches no task, or a task is to train and to be tested.
    """
    if not settings.train_task:
        return frozenset()
    tasks = sorted({run.task for run in runs})
    for pattern in settings.train_task:
        if not any(_fits(task, (pattern,)) for task in tasks):
            raise UsageError(f"--train-task {pattern} matches no run; the tasks there are {', '.join(tasks)}.")
    both = [task for task in tasks if _fits(task, settings.train_task) and _fits(task, settings.test_task)]
    if both:
        raise UsageError(
            f"--train-task and --test-task both name {', '.join(both)}, but a task either trains or is tested; narrow "
            "one of them."
        )
    return frozenset(task for task in tasks if not _fits(task, (*settings.train_task, *settings.test_task)))


def without_tasks(runs: Sequence[Run], unused: frozenset[str]) -> tuple[tuple[Run, ...], tuple[DroppedRun, ...]]:
    """Set apart the runs of unused tasks."""
    reason = "neither --train-task nor --test-task names its task"
    dropped = tuple(DroppedRun(run.participant, run.label, reason) for run in runs if run.task in unused)
    # A run is found once in every space.
    return tuple(run for run in runs if run.task not in unused), tuple(dict.fromkeys(dropped))


def held_out_runs(patterns: Sequence[str], runs: Sequence[Run], participant: str) -> tuple[int, ...] | None:
    """Return the indices of the runs whose task matches a pattern; None without patterns."""
    if not patterns:
        return None
    chosen = tuple(number for number, run in enumerate(runs) if _fits(run.task, patterns))
    if not chosen:
        tasks = ", ".join(sorted({run.task for run in runs}))
        raise UsageError(
            f"--test-task {' '.join(patterns)} matches no run of sub-{participant}; its tasks are {tasks}."
        )
    return chosen


def _fits(task: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(task, pattern.removeprefix("task-")) for pattern in patterns)


def split_of(design: ParticipantDesign, number: int) -> str:
    """Return the side of the split that a run is on: train, test, or cv where runs take turns."""
    if design.test_runs is None:
        return "cv"
    return "test" if number in design.test_runs else "train"
