"""What the sidecars and the methods text say about how results were made."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from bids_mllm import __version__
from bids_mllm.config import Settings
from bids_mllm.discover.layout import generated_by
from bids_mllm.discover.names import read_json
from bids_mllm.interfaces.rows import SEGMENT_OVERLAP, film_of
from bids_mllm.io.derivatives import film_label, outputs
from bids_mllm.records import Instruction, ParticipantDesign, Run
from bids_mllm.workflows.plan import StudyPlan
from bids_mllm.workflows.sides import split_of

LIBRARIES = (
    "av", "himalaya", "librosa", "nibabel", "nilearn", "nipype", "numpy", "pybids", "pymoten", "safetensors",
    "torch", "transformers",
)  # fmt: skip
SCALING = (
    "Features and BOLD are z-scored within each run, or within each part of it that an outer fold holds out, on the "
    "training and the held-out side alike; confounds and drifts are removed from the whole run before any cut."
)
REPEATS = {
    "each": "every held-out viewing of a stimulus is scored by itself",
    "average": "held-out viewings of one stimulus are averaged at common moments of its clock before they are scored, "
    "BOLD and predictions alike; the fit sees single viewings",
}
ALPHA_CHOICE = "one alpha a voxel, by mean R2 over inner splits of the training rows, made by the rule of outer ones"
SOLVERS = {
    "exact": "exact ridge of this app: block identities on the Gram matrix, or columns where these are few; float32 "
    "for products with the BOLD, float64 for ill-conditioned systems",
    "himalaya": "himalaya KernelRidgeCV, linear kernel, float64",
}


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that results depend on."""
    return {name: metadata.version(name) for name in LIBRARIES}


def output_task(design: ParticipantDesign) -> str:
    """Label of the films that are held out."""
    if design.test_runs is None:
        return film_label([run.task for run in design.runs])
    return film_label([design.runs[number].task for number in design.test_runs])


def map_facts(plan: StudyPlan, design: ParticipantDesign) -> dict[str, Any]:
    """Return what every sidecar of one participant in one space says, as JSON values.

    Keys: task (for the names), models (facts of each model), sidecar (facts of all).
    """
    models = {model.key: model_facts(plan, model.key) for model in plan.models}
    models |= {
        name: {"Key": name, "Family": "table", "Kind": "feature table", "Source": folder.name}
        for name, folder in plan.settings.feature_table.items()
    }
    return {
        "task": output_task(design),
        "models": models,
        "sidecar": _sidecar(plan, design),
    }


def model_facts(plan: StudyPlan, key: str) -> dict[str, Any]:
    """Return what a sidecar says about one model."""
    model = next(model for model in plan.models if model.key == key)
    facts: dict[str, Any] = {
        "Key": model.key,
        "Source": model.source if not Path(model.source).is_absolute() else Path(model.source).name,
        "Revision": model.revision,
        "Family": model.family,
        "Kind": model.kind,
        "Media": model.media,
        "Licence": model.licence,
        "DType": model.dtype,
        "Weights": model.weights,
        "Parameters": {k: v for k, v in model.parameters.items() if k != "trust_remote_code"},
    }
    if model.instructed:
        facts["Instructions"] = {i.key: i.text for i in plan.instructions[key]}
        facts["Poolings"] = list(plan.settings.poolings)
        facts["MaxNewTokens"] = plan.settings.max_new_tokens
    return facts


def _sidecar(plan: StudyPlan, design: ParticipantDesign) -> dict[str, Any]:
    settings = plan.settings
    sides = [(run.label, split_of(design, number)) for number, run in enumerate(design.runs)]
    low, high, number = settings.alphas
    return {
        "Sources": sources(plan, design.runs),
        "CrossValidation": cv_words(design, settings),
        "Repeats": REPEATS[settings.repeats],
        "Preset": settings.preset or None,
        "TrainRuns": [label for label, side in sides if side in ("train", "cv")],
        "TestRuns": [label for label, side in sides if side in ("test", "cv")],
        "DroppedRuns": [asdict(drop) for drop in design.dropped],
        "RepetitionTime": sorted({run.repetition_time for run in design.runs}),
        "StartTime": sorted({run.start_time for run in design.runs}),
        "WindowLength": sorted({grid.length for w in design.windows for grid in w.grids}),
        "WindowPosition": settings.window_position,
        "Alignment": [dict(windows.report) for windows in design.windows],
        "DelaysTR": list(settings.delays),
        "Confounds": _confound_words(design, settings),
        "HighPassHz": settings.high_pass,
        "Scaling": SCALING,
        "Alphas": {"Lowest": low, "Highest": high, "Number": number, "Spacing": "logarithmic"},
        "AlphaChoice": ALPHA_CHOICE,
        "Solver": SOLVERS[settings.solver],
        "EqualRank": settings.equal_rank,
        "FalseDiscoveryRate": {"bh": "Benjamini-Hochberg", "by": "Benjamini-Yekutieli"}[settings.fdr],
        "RandomSeed": settings.random_seed,
        "Sloppy": settings.sloppy,
        "AppVersion": __version__,
        "Libraries": library_versions(),
    }


def _confound_words(design: ParticipantDesign, settings: Settings) -> str:
    """Name the strategy, or the derivative that removed confounds before, where no more are."""
    removed = dict.fromkeys(run.derivative for run in design.runs if run.denoised)
    if not removed:
        return settings.confounds
    return f"removed in {', '.join(removed)}"


def cv_words(design: ParticipantDesign, settings: Settings) -> str:
    """Say in words how rows were held out, and where viewings are averaged, that they are."""
    averaged = f"; {REPEATS['average']}" if settings.repeats == "average" else ""
    return f"{_held_out_words(design, settings)}{averaged}"


def _held_out_words(design: ParticipantDesign, settings: Settings) -> str:
    purged = "max(delay, window) TRs purged on both sides"
    if settings.cv_file is not None:
        return f"the split of the file {settings.cv_file.name}"
    if design.test_runs is not None:
        tasks = ", ".join(dict.fromkeys(design.runs[number].task for number in design.test_runs))
        return f"fixed test runs (tasks {tasks}); the other runs train{_neighbours(design)}"
    groups = {frozenset(windows.stim_files) for windows in design.windows}
    if len(groups) < 2:
        return f"{settings.n_folds} contiguous parts of the only stimulus, {purged}"
    if settings.cv == "film" and len({film_of(name)[0] for files in groups for name in files}) > 1:
        return f"each film held out in turn with all its segments and viewings{_neighbours(design)}"
    if settings.cv == "kfold":
        return f"{settings.n_folds} sets of runs held out in turn, runs of one stimulus together{_neighbours(design)}"
    return f"each stimulus file held out in turn, all its viewings together{_neighbours(design)}"


def _neighbours(design: ParticipantDesign) -> str:
    """Say that segments which adjoin a held-out one are cut, where films come in numbered segments."""
    films = [film_of(name) for windows in design.windows for name in set(windows.stim_files)]
    numbered = {film for film in films if film[1] is not None}
    if len({name for name, _ in numbered}) == len(numbered):
        return ""
    return (
        f"; where neighbouring segments of a film are on both sides, max(delay, window) TRs and {SEGMENT_OVERLAP:g} s "
        "of the training segment next to the held-out one are left out"
    )


def sources(plan: StudyPlan, runs: Sequence[Run]) -> list[str]:
    """Return the BIDS URIs of the files that a participant's results rest on."""
    uris = []
    for run in runs:
        for path in (run.bold, run.bold_right, run.mask, run.confounds):
            if path is not None:
                uris.append(_derivative_uri(plan, run, path))
        if run.events is not None:
            uris.append(_uri("raw", plan.settings.bids_dir, run.events))
        uris += [f"bids:raw:stimuli/{showing.stim_file}" for showing in run.showings]
    return list(dict.fromkeys(uris))


def _derivative_uri(plan: StudyPlan, run: Run, path: Path) -> str:
    """Return the URI of a file in the run's derivative, or in the main one, where confounds may lie."""
    names = (run.derivative, *plan.derivatives)
    name = next(name for name in names if path.is_relative_to(plan.derivatives[name]))
    return _uri(name, plan.derivatives[name], path)


def _uri(name: str, root: Path, path: Path) -> str:
    return f"bids:{name}:{path.relative_to(root).as_posix()}"


def dataset_facts(plan: StudyPlan) -> dict[str, Any]:
    """Return the arguments of `write_dataset_files`."""
    settings = plan.settings
    described = dict(outputs()["descriptions"])
    for instructions in plan.instructions.values():
        described |= condition_descriptions(settings.poolings, instructions)
    roots = plan.derivatives
    return {
        "version": __version__,
        "links": {"raw": _link(settings.output_dir, settings.bids_dir)}
        | {name: _link(settings.output_dir, root) for name, root in roots.items()},
        "sources": [
            {"URL": "bids:raw:"},
            *({"URL": f"bids:{name}:"} | _version_of(generated_by(root)) for name, root in roots.items()),
        ],
        "licence": read_json(settings.bids_dir / "dataset_description.json").get("License"),
        "descriptions": described,
        "container": container_facts(),
    }


def container_facts() -> dict[str, str] | None:
    """Return kind and tag of the container that this process runs in, as its image tells; None outside of one.

    An image that was made for Docker says so also where Apptainer runs it; Apptainer tells itself.
    """
    kind, tag = os.environ.get("BIDS_MLLM_CONTAINER"), os.environ.get("BIDS_MLLM_IMAGE")
    if not kind or not tag:
        return None
    by_apptainer = any(name in os.environ for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"))
    return {"Type": "apptainer" if by_apptainer else kind, "Tag": tag}


def _link(output_dir: Path, target: Path) -> str:
    return Path(os.path.relpath(target, output_dir)).as_posix()


def _version_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    versions = [str(entry["Version"]) for entry in entries if "Version" in entry]
    return {"Version": versions[0]} if versions else {}


def condition_descriptions(poolings: Sequence[str], instructions: Sequence[Instruction]) -> dict[str, str]:
    """Describe every desc- label of conditions with an instruction."""
    words = {
        "generated": "Mean over the generated tokens",
        "last": "Last token of the prompt",
        "instruction": "Mean over the tokens of the instruction",
    }
    return {
        f"{pooling}{instruction.key}": f"{words[pooling]}, instruction: {instruction.text}"
        for pooling in poolings
        if pooling in words
        for instruction in instructions
    }
