"""The participant graph: features per stimulus and model, then brain, fits and maps per participant and space."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nipype.interfaces.utility import Merge
from nipype.pipeline.engine import Node, Workflow

from bids_mllm import __version__
from bids_mllm.align.windows import grid_for_duration
from bids_mllm.interfaces.bold import PrepareBold
from bids_mllm.interfaces.derivatives import WriteMaps
from bids_mllm.interfaces.encoding import FitScores
from bids_mllm.interfaces.features import ExtractFeatures, ReadFeatureTable
from bids_mllm.io.atlas import atlas_digest
from bids_mllm.io.design import design_to_text
from bids_mllm.io.files import read_json, still_written, write_text_if_changed
from bids_mllm.io.store import FeatureEntry
from bids_mllm.records import ModelSpec, ParticipantDesign, WindowGrid
from bids_mllm.workflows.checks import check_node
from bids_mllm.workflows.facts import map_facts
from bids_mllm.workflows.plan import StudyPlan
from bids_mllm.workflows.readouts import read_out


def init_participant_wf(plan: StudyPlan, *, device: str) -> Workflow:
    """Build the graph of the participant level.

    Parameters
    ----------
    plan
    device
        cpu, cuda or cuda:N, where features are extracted and fits run.
    """
    workflow = Workflow(name="bids_mllm_participant", base_dir=str(plan.settings.work_dir))
    features = _feature_nodes(plan, device)
    for node in (node for nodes in features.values() for node in nodes):
        workflow.add_nodes([node])
        node.overwrite = _must_extract_again(workflow, node) or None
    _connect_checks(workflow, plan, [node for nodes in features.values() for node in nodes])
    for design in plan.designs:
        _connect_participant(workflow, plan, design, features, device)
    return workflow


def _connect_checks(workflow: Workflow, plan: StudyPlan, sources: Sequence[Node]) -> None:
    """Check the features of every model when those of all stimuli are there."""
    if not plan.models:
        return
    merge = Node(Merge(len(sources)), name="manifests", run_without_submitting=True)
    for position, node in enumerate(sources, start=1):
        workflow.connect(node, "manifests", merge, f"in{position}")
    for model in plan.models:
        checks = check_node(plan, model)
        checks.overwrite = _must_write_again(workflow, checks) or None
        workflow.connect(merge, "out", checks, "manifests")


def _feature_nodes(plan: StudyPlan, device: str) -> dict[str, list[Node]]:
    """Nodes by stimulus: one a device and window length for all models there, one a feature table and length.

    The models of one node read the film together. Those without weights run on the CPU beside the device.
    """
    settings = plan.settings
    nodes: dict[str, list[Node]] = defaultdict(list)
    for number, ((stim_file, _), grids) in enumerate(sorted(_grids(plan).items())):
        for place in dict.fromkeys(_device_of(model, device) for model in plan.models):
            models = [model for model in plan.models if _device_of(model, device) == place]
            nodes[stim_file].append(_extract_node(plan, models, stim_file, grids, number, place))
        for name, folder in settings.feature_table.items():
            interface = ReadFeatureTable(
                name=name,
                folder=str(folder),
                stim_file=stim_file,
                sha256=plan.table_digests[name, stim_file],
                span=plan.spans[stim_file],
                grids=_grids_json(grids),
                features_dir=str(settings.store_dir),
                app_version=__version__,
            )
            nodes[stim_file].append(Node(interface, name=f"table_{name}_{number:04d}", mem_gb=0.5))
    return nodes


def _device_of(model: ModelSpec, device: str) -> str:
    """Where a model runs: one without weights on the CPU."""
    return device if model.source else "cpu"


def _grids(plan: StudyPlan) -> dict[tuple[str, float], list[WindowGrid]]:
    """Distinct grids over all participants and runs, by stimulus and window length."""
    grids: dict[tuple[str, float], list[WindowGrid]] = defaultdict(list)
    for design in plan.designs:
        for windows in design.windows:
            for stim_file, grid in zip(windows.stim_files, windows.grids, strict=True):
                if grid not in grids[stim_file, grid.length]:
                    grids[stim_file, grid.length].append(grid)
    return {key: sorted(found, key=lambda g: (g.step, g.origin)) for key, found in grids.items()}


def _grids_json(grids: Sequence[WindowGrid]) -> str:
    return json.dumps([asdict(grid) for grid in grids])


def _extract_node(
    plan: StudyPlan,
    models: Sequence[ModelSpec],
    stim_file: str,
    grids: Sequence[WindowGrid],
    number: int,
    device: str,
) -> Node:
    settings = plan.settings
    on_gpu = device.startswith("cuda")
    demonstrations = settings.demonstrations
    interface = ExtractFeatures(
        stimulus=json.dumps(asdict(plan.stimuli[stim_file]) | {"path": str(plan.stimuli[stim_file].path)}),
        models=json.dumps([_model_inputs(plan, model, stim_file, grids) for model in models], sort_keys=True),
        checkpoints=[_checkpoint_signature(model) for model in models],
        demonstrations="" if demonstrations is None else str(demonstrations),
        features_dir=str(settings.store_dir),
        texts_dir=str(settings.output_dir / "sourcedata" / "texts"),
        device=device,
        use_gpu=on_gpu,
        memory_bytes=settings.mem_mb * 2**20 / settings.nprocs,
        app_version=__version__,
    )
    n_procs = 1 if on_gpu else settings.omp_nthreads
    return Node(interface, name=f"features_{'gpu' if on_gpu else 'cpu'}_{number:04d}", n_procs=n_procs, mem_gb=2.0)


def _model_inputs(plan: StudyPlan, model: ModelSpec, stim_file: str, grids: Sequence[WindowGrid]) -> dict[str, Any]:
    """Return what the extraction of one model from one stimulus depends on, as JSON values."""
    seconds = _seconds(plan.stimuli[stim_file].duration(model.media))
    spec = asdict(model)
    spec["parameters"] = dict(model.parameters)
    return {
        "spec": spec,
        "readout": asdict(read_out(plan, model, grids[0].length)),
        "grids": [asdict(grid_for_duration(grid, seconds)) for grid in grids],
    }


def _seconds(duration: float | None) -> float:
    if duration is None:
        raise ValueError("a stimulus without the stream that its model needs reached the workflow")
    return duration


def _checkpoint_signature(model: ModelSpec) -> str:
    """Names, sizes and times of a local checkpoint's files, so that a changed one is extracted again."""
    folder = Path(model.source)
    if not model.source or not folder.is_dir():
        return f"{model.source}@{model.revision}"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return json.dumps([[str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in files])


def _connect_participant(
    workflow: Workflow,
    plan: StudyPlan,
    design: ParticipantDesign,
    features: dict[str, list[Node]],
    device: str,
) -> None:
    settings = plan.settings
    label = f"sub_{design.participant}_space_{design.space}".replace("+", "plus")
    design_file = settings.work_dir / "designs" / f"{label}.json"
    write_text_if_changed(design_file, design_to_text(design))
    runs_file = settings.work_dir / "designs" / f"{label}_runs.json"
    write_text_if_changed(runs_file, design_to_text(_brain_only(design)))
    used = sorted({stim_file for windows in design.windows for stim_file in windows.stim_files})
    sources = [node for stim_file in used for node in features[stim_file]]
    merge = Node(Merge(len(sources)), name=f"manifests_{label}", run_without_submitting=True)
    bold, fit, maps = _participant_nodes(plan, design, label, design_file, runs_file, device)
    maps.overwrite = _must_write_again(workflow, maps) or None
    for position, node in enumerate(sources, start=1):
        workflow.connect(node, "manifests", merge, f"in{position}")
    workflow.connect(merge, "out", fit, "manifests")
    workflow.connect(bold, "info", fit, "bold")
    workflow.connect(bold, "info", maps, "bold")
    workflow.connect(fit, "scores", maps, "scores")


def _participant_nodes(
    plan: StudyPlan, design: ParticipantDesign, label: str, design_file: Path, runs_file: Path, device: str
) -> tuple[Node, Node, Node]:
    """Return the nodes that clean the BOLD, fit and score, and write the maps."""
    settings = plan.settings
    bold = Node(
        PrepareBold(
            design=str(runs_file),
            signatures=_file_signatures(design),
            confounds=settings.confounds,
            high_pass=settings.high_pass,
            app_version=__version__,
        ),
        name=f"bold_{label}",
        mem_gb=_bold_gb(design),
    )
    fit = Node(
        FitScores(
            design=str(design_file),
            models=[*(model.key for model in plan.models), *settings.feature_table],
            options=json.dumps(_fit_options(plan), sort_keys=True),
            device=device,
            max_block_bytes=int(settings.mem_mb * 2**20 / settings.nprocs / 4),
            use_gpu=device.startswith("cuda"),
            cache_dir=str(settings.work_dir / "fits"),
            app_version=__version__,
        ),
        name=f"fit_{label}",
        n_procs=1 if device.startswith("cuda") else settings.omp_nthreads,
        mem_gb=_bold_gb(design),
    )
    maps = Node(
        WriteMaps(
            design=str(design_file),
            facts=json.dumps(map_facts(plan, design), sort_keys=True),
            atlases=[str(path) for path in settings.atlas],
            atlas_digests=[atlas_digest(path) for path in settings.atlas],
            output_dir=str(settings.output_dir),
            app_version=__version__,
        ),
        name=f"maps_{label}",
        mem_gb=2.0,
    )
    return bold, fit, maps


def _node_dir(workflow: Workflow, node: Node) -> Path:
    folder: Path = Path(workflow.base_dir) / workflow.name / node.name
    return folder


def _must_write_again(workflow: Workflow, node: Node) -> bool:
    """Whether outputs that the node wrote before are gone or were changed since, which nipype does not look at."""
    return not still_written(_node_dir(workflow, node) / "written.json")


def _must_extract_again(workflow: Workflow, node: Node) -> bool:
    """Whether the store lacks a chunk of what the node put there before, or a table of texts is gone."""
    for path in _node_dir(workflow, node).glob("*.json"):
        content = read_json(path)
        rows = content.get("entries", []) if isinstance(content, dict) else []
        entries = (FeatureEntry(Path(r["path"]), r["n_windows"], r["n_layers"], r["width"]) for r in rows)
        texts = content.get("texts", []) if isinstance(content, dict) else []
        if any(entry.missing_chunks() for entry in entries) or not all(Path(text).is_file() for text in texts):
            return True
    return False


def _brain_only(design: ParticipantDesign) -> ParticipantDesign:
    """Return the design without what was shown, on which the cleaning of the BOLD does not depend."""
    runs = tuple(replace(run, showings=(), showings_rule="", events=None) for run in design.runs)
    return replace(design, runs=runs, windows=(), dropped=(), test_runs=None)


def _fit_options(plan: StudyPlan) -> dict[str, Any]:
    settings = plan.settings
    return {
        "delays": list(settings.delays),
        "alphas": list(settings.alphas),
        "n_folds": settings.n_folds,
        "high_pass": settings.high_pass,
        "layers": list(settings.layers) or None,
    }


def _file_signatures(design: ParticipantDesign) -> str:
    signatures = []
    for run in design.runs:
        for path in (run.bold, run.mask, run.confounds):
            if path is not None:
                status = path.stat()
                signatures.append([str(path), status.st_size, status.st_mtime_ns])
    return json.dumps(signatures)


def _bold_gb(design: ParticipantDesign) -> float:
    """Rough memory of a participant's series in GiB: three copies of compressed size times five."""
    size = sum(run.bold.stat().st_size for run in design.runs if run.bold is not None)
    return max(0.5, 3 * 5 * size / 1024**3)
