"""What is asked of each model."""

from bids_mllm.features.extractor import ReadOut
from bids_mllm.records import ModelSpec
from bids_mllm.workflows.plan import StudyPlan


def read_out(plan: StudyPlan, spec: ModelSpec, window: float | None = None) -> ReadOut:
    """Return the read-out of one model; `window` is that of the first run when None."""
    settings = plan.settings
    return ReadOut(
        window=plan.designs[0].windows[0].grids[0].length if window is None else window,
        poolings=settings.poolings,
        instructions=plan.instructions if spec.instructed else (),
        max_new_tokens=settings.max_new_tokens,
        seed=settings.random_seed,
    )
