"""Tables of the pages, made from the records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bids_mllm.records import DroppedRun, FloatArray, Fold, Instruction, ModelSpec, Pooling, Run, TRWindows
from bids_mllm.report.content import Cell, Facts, Heading, Table


@dataclass(frozen=True)
class ModelCard:
    """What a page says of one model.

    `spec` as in the registry; `n_layers` with the embedding, `width` in features, `n_frames` a window
    (0 = not a frame model); `poolings`, `instructions` and the number of demonstrations as they were run.
    """

    spec: ModelSpec
    n_layers: int
    width: int
    n_frames: int = 0
    poolings: tuple[Pooling, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    extra: Mapping[str, Cell] = field(default_factory=dict)
    n_demonstrations: int = 0


def runs_table(runs: Sequence[Run]) -> Table:
    """Return the runs that were used, one row each."""
    rows = tuple(
        (
            run.label, run.place, run.n_volumes, f"{run.repetition_time:g}", f"{run.start_time:g}",
            ", ".join(dict.fromkeys(s.stim_file for s in run.showings)) or None,
        )
        for run in runs
    )  # fmt: skip
    columns = ("Run", "Space", "Volumes", "TR (s)", "First volume at (s)", "Stimulus")
    return Table("Runs used.", columns, rows)


def dropped_table(dropped: Sequence[DroppedRun]) -> Table:
    """Return the runs that take no part, with their reasons."""
    rows = tuple((f"sub-{run.participant} {run.label}", run.reason) for run in dropped)
    return Table("Runs that take no part.", ("Run", "Reason"), rows)


#: Columns of the table that are left out where no run has them.
ALIGNMENT_EXTRA = {
    "run_without_film_seconds": "BOLD without stimulus (s)",
    "film_without_run_seconds": "Stimulus without BOLD (s)",
    "frame_clock_drift_seconds": "Drift of the frame clock (s)",
    "frame_clock_residual_seconds": "Residual of the frame clock (s)",
}


def alignment_table(runs: Sequence[Run], windows: Sequence[TRWindows]) -> Table:
    """Return how each run was aligned with its stimuli: rule, rows masked, durations."""
    columns = (
        "Run", "Rule", "TRs masked before", "TRs masked between", "TRs masked after", "TRs used", "BOLD (s)",
        "Stimulus (s)", "Unexplained (s)",
    )  # fmt: skip
    extra = {name: title for name, title in ALIGNMENT_EXTRA.items() if any(_stated(w, name) for w in windows)}
    rows = tuple(
        _alignment_row(run, w) + tuple(_stated(w, name) for name in extra) for run, w in zip(runs, windows, strict=True)
    )
    return Table("Alignment of the volumes with the stimuli.", (*columns, *extra.values()), rows)


def _stated(windows: TRWindows, name: str) -> str | None:
    seconds = windows.report.get(name)
    return None if seconds is None else f"{float(seconds):.3f}"


def _alignment_row(run: Run, windows: TRWindows) -> tuple[Cell, ...]:
    used = np.flatnonzero(windows.valid)
    n_volumes = len(windows.valid)
    before = int(used[0]) if used.size else n_volumes
    after = n_volumes - 1 - int(used[-1]) if used.size else 0
    media = [float(stimulus["media_duration"]) for stimulus in windows.report.get("stimuli", ())]
    unexplained = windows.report.get("unexplained_seconds")
    return (
        run.label,
        run.showings_rule or str(windows.report.get("rule", "")) or None,
        before,
        n_volumes - before - after - int(used.size),
        after,
        int(used.size),
        f"{run.n_volumes * run.repetition_time:.2f}",
        " + ".join(f"{seconds:.2f}" for seconds in media) or None,
        None if unexplained is None else f"{float(unexplained):.2f}",
    )


def model_blocks(card: ModelCard) -> tuple[Heading | Facts | Table, ...]:
    """Return the heading, the facts and the instructions of one model."""
    spec = card.spec
    facts: dict[str, Cell] = {
        "Source": spec.source or "computed from the stimulus, without weights",
        "Revision": spec.revision,
        "Family": spec.family,
        "Kind": spec.kind,
        "Media": spec.media,
        "Frames a window": card.n_frames or None,
        "Weights": "drawn at random" if spec.weights == "random" else None,
        "Demonstrations": card.n_demonstrations or None,
        "Number format": spec.dtype,
        "Licence": spec.licence or None,
        "Layers x width": f"{card.n_layers} x {card.width}",
        "Read-outs": ", ".join(card.poolings) or None,
    }
    facts |= {f"Parameter {name}": str(value) for name, value in spec.parameters.items()}
    facts |= card.extra
    shown = {name: value for name, value in facts.items() if value is not None}
    if not card.instructions:
        return (Heading(spec.key), Facts(shown))
    rows = tuple((i.key, i.name, i.group, i.text) for i in card.instructions)
    columns = ("Key", "Name", "Group", "Instruction")
    return (Heading(spec.key), Facts(shown), Table(f"Instructions given to {spec.key}.", columns, rows))


def cv_table(folds: Sequence[Fold]) -> Table:
    """Return the rows that each outer fold trains and tests on, and its number of inner folds."""
    rows = tuple((fold.name, len(fold.train), len(fold.test), len(fold.inner)) for fold in folds)
    columns = ("Held out", "Training rows", "Test rows", "Inner folds")
    return Table("Outer folds of the cross-validation.", columns, rows)


def roi_table(
    rois: Sequence[str],
    models: Sequence[str],
    mean_r: FloatArray,
    *,
    n_voxels: Sequence[int] | None = None,
    units: str = "voxels",
    caption: str = "Mean r of each ROI.",
) -> Table:
    """Return the mean score of each ROI and model.

    Parameters
    ----------
    rois, models
        Names of the columns and the rows of `mean_r`.
    mean_r : (n_models, n_rois) float
    n_voxels
        Scored voxels of each ROI.
    units
        What these are called.
    """
    columns = ("ROI", *((units.capitalize(),) if n_voxels is not None else ()), *models)
    rows: list[tuple[Cell, ...]] = []
    for i, roi in enumerate(rois):
        counts: tuple[Cell, ...] = (int(n_voxels[i]),) if n_voxels is not None else ()
        scores: tuple[Cell, ...] = tuple(float(value) for value in np.asarray(mean_r)[:, i])
        rows.append((roi, *counts, *scores))
    return Table(caption, columns, tuple(rows))


def comparison_table(
    participants: Sequence[str],
    models: Sequence[str],
    mean_r: FloatArray,
    *,
    caption: str = "Mean r of each model in each participant.",
) -> Table:
    """Return model against model for every participant.

    Parameters
    ----------
    participants, models
        Names of the rows and the columns of `mean_r`.
    mean_r : (n_participants, n_models) float
        Mean over the voxels that all models scored.
    """
    rows: list[tuple[Cell, ...]] = []
    for label, values in zip(participants, np.asarray(mean_r), strict=True):
        scores: tuple[Cell, ...] = tuple(float(value) for value in values)
        rows.append((f"sub-{label}", *scores))
    return Table(caption, ("Participant", *models), tuple(rows))
