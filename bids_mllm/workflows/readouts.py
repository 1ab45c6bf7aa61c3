"""What is asked of each model."""

from bids_mllm.features.extractor import Demonstration, ReadOut
from bids_mllm.io.demonstrations import read_demonstrations
from bids_mllm.records import ModelSpec
from bids_mllm.workflows.plan import StudyPlan


def read_out(plan: StudyPlan, spec: ModelSpec, window: float | None = None) -> ReadOut:
    """Return the read-out of one model; `window` is that of the first run when None."""
    settings = plan.settings
    return ReadOut(
        window=_window(plan) if window is None else window,
        poolings=settings.poolings,
        instructions=plan.instructions.get(spec.key, ()),
        max_new_tokens=settings.max_new_tokens,
        seed=settings.random_seed,
        demonstrations=_demonstrations(plan, spec),
    )


def _window(plan: StudyPlan) -> float:
    """Seconds of a window of the first run, whether it shows anything or not."""
    return plan.settings.window or plan.designs[0].runs[0].repetition_time


def _demonstrations(plan: StudyPlan, spec: ModelSpec) -> tuple[Demonstration, ...]:
    """Return the demonstrations of a model that learns in context, not decoded yet."""
    path = plan.settings.demonstrations
    if path is None or not spec.kind.startswith("in-context"):
        return ()
    rows = read_demonstrations(path)
    return tuple(Demonstration(row.clip, row.stimulus.sha256, row.instruction, row.answer) for row in rows)
