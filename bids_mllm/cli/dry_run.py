"""The table of runs and the estimates that `--dry-run` prints."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bids_mllm.exceptions import CheckpointError, PackageError
from bids_mllm.features.extractor import ExtractionPlan
from bids_mllm.features.registry import load_family
from bids_mllm.fit.memory import DOUBLE, SQUARES
from bids_mllm.interfaces.derivatives import BANDS
from bids_mllm.io.derivatives import MapName
from bids_mllm.io.maps import files_of_map
from bids_mllm.records import Form, ParticipantDesign, Run, TRWindows
from bids_mllm.workflows.facts import output_task
from bids_mllm.workflows.plan import StudyPlan
from bids_mllm.workflows.readouts import read_out
from bids_mllm.workflows.sides import split_of

COLUMNS = (
    "participant", "session", "task", "run", "split", "space", "stim_file", "stim_onset", "n_volumes", "n_windows",
    "bold",
)  # fmt: skip
#: Floating-point operations a second that one processor core reaches in such work.
CORE_FLOPS = 3e10
#: And half of an H200's peak in products of bfloat16 matrices, 989 TFLOP/s.
GPU_FLOPS = 4.9e14


def run_table(plan: StudyPlan) -> str:
    """Return the table of runs as TSV; n/a where a file is absent."""
    lines = ["\t".join(COLUMNS)]
    for run, windows, side in _listed(plan):
        files = ",".join(dict.fromkeys(s.stim_file for s in run.showings)) or "n/a"
        onset = f"{run.showings[0].run_onset:g}" if run.showings else "n/a"
        cells = (
            run.participant,
            run.session or "n/a",
            run.task,
            "n/a" if run.run is None else str(run.run),
            side,
            run.place,
            files,
            onset,
            str(run.n_volumes) if run.bold else "n/a",
            str(int(windows.valid.sum())) if run.bold else "n/a",
            str(run.bold) if run.bold else "n/a",
        )
        lines.append("\t".join(cells))
    return "\n".join(lines)


def _listed(plan: StudyPlan) -> list[tuple[Run, TRWindows, str]]:
    """Every run with its windows and its side of the split: participants and places together, each in its order."""
    listed = [
        (run, windows, split_of(design, number))
        for design in plan.designs
        for number, (run, windows) in enumerate(zip(design.runs, design.windows, strict=True))
    ]
    listed += [(run, windows, "unused") for run, windows in plan.unused]
    groups = list(dict.fromkeys((run.participant, run.place) for run in plan.runs))
    found = {(run.participant, run.place, run.label): number for number, run in enumerate(plan.runs)}

    def order(row: tuple[Run, TRWindows, str]) -> tuple[int, int]:
        run = row[0]
        return groups.index((run.participant, run.place)), found[run.participant, run.place, run.label]

    return sorted(listed, key=order)


def estimates(plan: StudyPlan) -> str:
    """Return rough needs in words: work of every model and film, disk, memory and time of the fits, files to come."""
    settings = plan.settings
    clips = _clips_of(plan)
    n_clips = sum(clips.values())
    lines = [_counts(plan, n_clips)]
    n_spaces, n_bytes = 0, 0
    for model in plan.models:
        try:
            planned = load_family(model.family).plan(model, read_out(plan, model))
        except (CheckpointError, PackageError) as error:
            what = "its checkpoint" if isinstance(error, CheckpointError) else "it"
            lines.append(f"{model.key}: not in the estimates, since {what} is not usable yet. {error}")
            continue
        n_spaces += len(planned.conditions) * planned.n_layers
        n_bytes += clip_bytes(planned) * n_clips
        lines += model_lines(model.key, planned, clips)
    n_spaces += len(settings.feature_table)
    rows = max((_n_rows(design) for design in plan.designs), default=0)
    # A factor of every penalty, or an eigendecomposition, and the small systems of the splits.
    seconds = len(plan.designs) * n_spaces * (settings.alphas[2] + 10) * rows**3 / CORE_FLOPS
    kernels = DOUBLE * SQUARES * rows**2
    lines += [
        f"Feature store: about {n_bytes / 1e9:.2f} GB on disk.",
        f"Fits: {n_spaces} feature spaces a participant on {rows} rows, about {kernels / 1e9:.2f} GB for the kernels "
        f"and {seconds / 60:.0f} core minutes in all, without the products with the BOLD.",
        "Files to come, most of them with a JSON file of the same name:",
        *_names(plan),
    ]
    return "\n".join(lines)


def _counts(plan: StudyPlan, n_clips: int) -> str:
    """Return what there is in words; a run counts once in however many spaces it is."""
    counts = {
        "participant": len(plan.participants),
        "run": len({(design.participant, run.label) for design in plan.designs for run in design.runs}),
        "space": len({design.place for design in plan.designs}),
        "clip": n_clips,
    }
    participants, runs, spaces, clips = (f"{n} {word}{'' if n == 1 else 's'}" for word, n in counts.items())
    return f"{participants}, {runs} in {spaces}, {clips}."


def clip_bytes(planned: ExtractionPlan) -> int:
    """Bytes on disk of the features of one clip: two a value, as nearly all are stored."""
    return 2 * len(planned.conditions) * planned.n_layers * planned.width


def model_lines(key: str, planned: ExtractionPlan, clips: Mapping[str, int]) -> list[str]:
    """Return what one model needs: conditions and memory, then work, time and disk of every film.

    Parameters
    ----------
    key
        Of the model.
    planned
        What it will do.
    clips
        Number of clips by stimulus.
    """
    size = f"{len(planned.conditions)} conditions x {planned.n_layers} layers x {planned.width} features"
    cost = planned.cost
    if cost is None:
        lines = [f"{key}: {size}; without weights, on the CPU."]
    else:
        lines = [
            f"{key}: {size}; {cost.weight_bytes / 1e9:.2f} GB of weights and {cost.clip_bytes / 1e9:.3f} GB a clip of "
            f"a batch on the device, {cost.flops / 1e12:.3g} TFLOP a clip."
        ]
    for stim_file, n_clips in clips.items():
        disk = f"{clip_bytes(planned) * n_clips / 1e9:.3f} GB on disk"
        if cost is None:
            lines.append(f"  {stim_file}: {n_clips} clips, {disk}")
            continue
        work = cost.flops * n_clips
        lines.append(
            f"  {stim_file}: {n_clips} clips, {work / 1e12:.3g} TFLOP, about {_duration(work / GPU_FLOPS)} on a data "
            f"centre's GPU or {_duration(work / CORE_FLOPS)} on a processor core, {disk}"
        )
    return lines


def _duration(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _clips_of(plan: StudyPlan) -> dict[str, int]:
    """Number of clips by stimulus, over all grids of windows."""
    grids = {
        (stim_file, grid)
        for design in plan.designs
        for windows in design.windows
        for stim_file, grid in zip(windows.stim_files, windows.grids, strict=True)
    }
    counts: dict[str, int] = {}
    for stim_file, grid in sorted(grids, key=lambda found: found[0]):
        counts[stim_file] = counts.get(stim_file, 0) + grid.n_windows
    return counts


def _n_rows(design: ParticipantDesign) -> int:
    return int(np.sum([windows.valid.sum() for windows in design.windows]))


def _names(plan: StudyPlan) -> list[str]:
    """Return the names of the files to come, with * for the parts that vary."""
    names = ["dataset_description.json", "descriptions.tsv", "logs/CITATION.*"]
    for participant in dict.fromkeys(design.participant for design in plan.designs):
        names += [f"sub-{participant}*.html", f"sub-{participant}/figures/sub-{participant}_*"]
        for design in plan.designs:
            if design.participant == participant:
                names += _names_of(plan, design)
    return names


def _names_of(plan: StudyPlan, design: ParticipantDesign) -> list[str]:
    """Return the names of the maps and tables of one participant in one place."""
    settings, name, root = plan.settings, _map_name(design), Path()
    keys = [model.key for model in plan.models] + list(settings.feature_table)
    is_volume = design.runs[0].form == "volume"
    maps = [
        name.path(root, suffix="mask", desc="encoding") if is_volume else name.path(root, stat="mask", desc="encoding"),
        *(name.path(root, model=key, stat="*") for key in [*keys, *([BANDS] if settings.bands else [])]),
    ]
    tables = [name.path(root, suffix="split", extension=".json", desc="cv")]
    if any(stim_file in plan.stimuli for windows in design.windows for stim_file in windows.stim_files):
        tables.append(name.path(root, extension=".tsv", stat="clocklag"))
    if len(keys) > 1:
        tables.append(name.path(root, extension=".tsv", stat="modelcomparison"))
    tables += [name.path(root, extension=".tsv", model=key, stat="partition") for key in settings.partition]
    tables += [
        name.path(root, extension=".tsv", model=key, stat="*", atlas=files.name)
        for files in plan.atlases[design.participant, design.place]
        for key in keys
    ]
    names = [path.as_posix() for path in (*(file for path in maps for file in files_of_map(path)), *tables)]
    if settings.noise_ceiling != "none":
        certain = "" if settings.noise_ceiling != "auto" else ", if a held-out film was seen more than once"
        ceiling = files_of_map(name.path(root, stat="noiseceiling"))
        names += [f"{path.as_posix()}{certain}" for path in ceiling]
    return names


def _map_name(design: ParticipantDesign) -> MapName:
    run = design.runs[0]
    series = run.bold.name if run.bold else ""
    dense: dict[Form, str] = {"volume": ".nii.gz", "surface": ".func.gii", "grayordinates": ".dscalar.nii"}
    parcels = ".pscalar.nii" if series.endswith(".nii") else ".tsv"
    return MapName(
        design.participant, output_task(design), run.space, run.resolution, run.density, run.segmentation,
        dense.get(run.form, parcels),
    )  # fmt: skip
