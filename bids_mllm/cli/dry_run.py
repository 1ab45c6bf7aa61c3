"""The table of runs and the estimates that `--dry-run` prints."""

from collections.abc import Sequence

import numpy as np

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.registry import load_family
from bids_mllm.records import ParticipantDesign
from bids_mllm.workflows.facts import output_task
from bids_mllm.workflows.plan import StudyPlan, split_of
from bids_mllm.workflows.readouts import read_out

COLUMNS = (
    "participant", "session", "task", "run", "split", "space", "stim_file", "stim_onset", "n_volumes", "n_windows",
    "bold",
)  # fmt: skip
#: Floating-point operations a second that one processor core reaches in such work.
CORE_FLOPS = 3e10


def run_table(plan: StudyPlan) -> str:
    """Return the table of runs as TSV; n/a where a file is absent."""
    lines = ["\t".join(COLUMNS)]
    for design in plan.designs:
        for number, run in enumerate(design.runs):
            windows = design.windows[number]
            files = ",".join(dict.fromkeys(s.stim_file for s in run.showings)) or "n/a"
            onset = f"{run.showings[0].run_onset:g}" if run.showings else "n/a"
            cells = (
                run.participant,
                run.session or "n/a",
                run.task,
                "n/a" if run.run is None else str(run.run),
                split_of(design, number),
                run.space,
                files,
                onset,
                str(run.n_volumes) if run.bold else "n/a",
                str(int(windows.valid.sum())) if run.bold else "n/a",
                str(run.bold) if run.bold else "n/a",
            )
            lines.append("\t".join(cells))
    return "\n".join(lines)


def estimates(plan: StudyPlan) -> str:
    """Return rough needs in words: clips, feature disk, memory and time of the fits, names of files to come."""
    settings = plan.settings
    n_clips = _n_clips(plan)
    lines = [f"{len(plan.participants)} participants, {sum(len(d.runs) for d in plan.designs)} runs, {n_clips} clips."]
    n_spaces, n_bytes = 0, 0
    for model in plan.models:
        try:
            planned = load_family(model.family).plan(model, read_out(plan, model))
        except CheckpointError as error:
            lines.append(f"{model.key}: not in the estimates, since its checkpoint is not usable yet. {error}")
            continue
        n_conditions, n_layers, width = len(planned.conditions), planned.n_layers, planned.width
        n_spaces += n_conditions * n_layers
        n_bytes += 4 * n_clips * n_conditions * n_layers * width
        lines.append(f"{model.key}: {n_conditions} conditions x {n_layers} layers x {width} features.")
    n_spaces += len(settings.feature_table)
    rows = max((_n_rows(design) for design in plan.designs), default=0)
    seconds = len(plan.designs) * n_spaces * len(settings.delays) * rows**3 * 20 / CORE_FLOPS
    lines += [
        f"Feature store: about {n_bytes / 1e9:.2f} GB on disk.",
        f"Fits: {n_spaces} feature spaces a participant on {rows} rows, about {3 * 8 * rows**2 / 1e9:.2f} GB for the "
        f"kernels and {seconds / 60:.0f} core minutes in all, voxels not counted.",
        "Files to come:",
        *_names(plan),
    ]
    return "\n".join(lines)


def _n_clips(plan: StudyPlan) -> int:
    grids = {
        (stim_file, grid)
        for design in plan.designs
        for windows in design.windows
        for stim_file, grid in zip(windows.stim_files, windows.grids, strict=True)
    }
    return sum(grid.n_windows for _, grid in grids)


def _n_rows(design: ParticipantDesign) -> int:
    return int(np.sum([windows.valid.sum() for windows in design.windows]))


def _names(plan: StudyPlan) -> Sequence[str]:
    keys = [model.key for model in plan.models] + list(plan.settings.feature_table)
    names = ["dataset_description.json", "logs/CITATION.md"]
    for design in plan.designs:
        folder = f"sub-{design.participant}/func/sub-{design.participant}_task-{output_task(design)}"
        names += [
            f"sub-{design.participant}.html",
            f"{folder}_space-{design.space}_desc-encoding_mask.nii.gz",
        ]
        names += [f"{folder}_space-{design.space}_model-{key}_stat-*_statmap.nii.gz" for key in keys]
    return names
