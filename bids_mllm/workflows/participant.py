"""The participant graph: features per stimulus and model, then brain, fits and maps per participant and space."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nipype.interfaces.utility import Merge
from nipype.pipeline.engine import Node, Workflow

from bids_mllm import __version__
from bids_mllm.align.windows import grid_for_duration
from bids_mllm.exceptions import InputDataError
from bids_mllm.features.controls import null_kind
from bids_mllm.interfaces.bands import FitJointly
from bids_mllm.interfaces.bold import PrepareBold
from bids_mllm.interfaces.ceiling import EstimateCeiling
from bids_mllm.interfaces.conditioning import must_check_again
from bids_mllm.interfaces.derivatives import WriteMaps
from bids_mllm.interfaces.encoding import FitScores
from bids_mllm.interfaces.features import ExtractFeatures, ReadFeatureTable, lacking_sentence
from bids_mllm.io.design import design_to_text
from bids_mllm.io.files import read_json, still_written, write_text_if_changed
from bids_mllm.io.store import FeatureEntry
from bids_mllm.records import ModelSpec, ParticipantDesign, Run, WindowGrid
from bids_mllm.workflows.checks import check_node
from bids_mllm.workflows.clock import connect_clock, fast_feature_nodes
from bids_mllm.workflows.facts import map_facts
from bids_mllm.workflows.plan import StudyPlan
from bids_mllm.workflows.readouts import read_out
from bids_mllm.workflows.statistics import ceiling_method, cv_options, joint_bands


def init_participant_wf(plan: StudyPlan, *, device: str) -> Workflow:
    """Build the graph of the participant level, or the part of it that ``--stages`` asks for.

    Parameters
    ----------
    plan
    device
        cpu, cuda or cuda:N, where features are extracted and fits run.

    Raises
    ------
    InputDataError
        When only fits are asked for and the store lacks features; one sentence for all of them.
    """
    workflow = Workflow(name="bids_mllm_participant", base_dir=str(plan.settings.graph_dir))
    features = _feature_nodes(plan, device)
    for node in (node for nodes in features.values() for node in nodes):
        workflow.add_nodes([node])
        node.overwrite = _must_extract_again(workflow, node) or None
    if "features" not in plan.settings.stages:
        _check_there(plan, [node for nodes in features.values() for node in nodes])
    _connect_checks(workflow, plan, [node for nodes in features.values() for node in nodes])
    if "fit" not in plan.settings.stages:
        return workflow
    for design in plan.designs:
        write_text_if_changed(_design_file(plan, design), design_to_text(design))
    fast = fast_feature_nodes(plan)
    bolds = {(design.participant, design.place): _bold_node(plan, design) for design in plan.designs}
    for design in plan.designs:
        bold = bolds[design.participant, design.place]
        maps = _connect_participant(workflow, plan, design, features, bold, device)
        _connect_ceiling(workflow, plan, design, bolds, maps, device)
        connect_clock(workflow, design, fast, bold, maps)
    return workflow


def _connect_checks(workflow: Workflow, plan: StudyPlan, sources: Sequence[Node]) -> None:
    """Check the features of every model when those of all stimuli are there, where that has not been done."""
    if not plan.models:
        return
    merge = Node(Merge(len(sources)), name="manifests", run_without_submitting=True)
    for position, node in enumerate(sources, start=1):
        workflow.connect(node, "manifests", merge, f"in{position}")
    for model in plan.models:
        checks = check_node(plan, model)
        folder = _node_dir(workflow, checks)
        checks.overwrite = must_check_again(folder, plan.settings.output_dir, model.key) or None
        workflow.connect(merge, "out", checks, "manifests")


def _check_there(plan: StudyPlan, nodes: Sequence[Node]) -> None:
    """Fail before anything runs where the store lacks features that are not to be extracted."""
    lacks: dict[tuple[str, str], tuple[int, int]] = {}
    for node in nodes:
        if isinstance(node.interface, ExtractFeatures):
            lacks |= node.interface.lacking()
    if lacks:
        raise InputDataError(lacking_sentence(lacks, plan.settings.store_dir))


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
        only_find="features" not in settings.stages,
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
    bold: Node,
    device: str,
) -> Node:
    """Connect features and BOLD to the fits and these to the maps; return the node of the maps."""
    settings = plan.settings
    label, design_file = _label(design), _design_file(plan, design)
    used = sorted({stim_file for windows in design.windows for stim_file in windows.stim_files})
    sources = [node for stim_file in used for node in features[stim_file]]
    merge = Node(Merge(len(sources)), name=f"manifests_{label}", run_without_submitting=True)
    fit, maps = _fit_node(plan, design, label, design_file, device), _maps_node(plan, design, label, design_file)
    maps.overwrite = _must_write_again(workflow, maps) or None
    for position, node in enumerate(sources, start=1):
        workflow.connect(node, "manifests", merge, f"in{position}")
    workflow.connect(merge, "out", fit, "manifests")
    workflow.connect(bold, "info", fit, "bold")
    workflow.connect(bold, "info", maps, "bold")
    workflow.connect(fit, "scores", maps, "scores")
    if settings.bands or settings.partition:
        joint = _joint_node(plan, design, label, design_file, device)
        workflow.connect(merge, "out", joint, "manifests")
        workflow.connect(bold, "info", joint, "bold")
        workflow.connect(fit, "scores", joint, "scores")
        workflow.connect(joint, "joint", maps, "joint")
    return maps


def _connect_ceiling(
    workflow: Workflow,
    plan: StudyPlan,
    design: ParticipantDesign,
    bolds: Mapping[tuple[str, str], Node],
    maps: Node,
    device: str,
) -> None:
    """Estimate a noise ceiling where one is asked for and there is one; the participant's own data come first."""
    method = ceiling_method(plan.settings, plan.designs, design)
    if method is None:
        return
    device = "cpu" if method == "repeats" else device  # correlations of viewings, no fits
    others = [one for one in plan.designs if one.place == design.place and one is not design]
    viewers = [design, *(others if method != "repeats" else [])]
    label = _label(design)
    options = [_fit_options(plan, one) for one in viewers]
    node = Node(
        EstimateCeiling(
            designs=[str(_design_file(plan, one)) for one in viewers],
            cvs=json.dumps(options, sort_keys=True),
            method=method,
            device=device,
            memory_bytes=_fit_bytes(plan),
            max_block_bytes=_block_bytes(plan),
            use_gpu=device.startswith("cuda"),
            app_version=__version__,
        ),
        name=f"ceiling_{label}",
        n_procs=1 if device.startswith("cuda") else plan.settings.omp_nthreads,
        mem_gb=_fit_bytes(plan) / 2**30,
    )
    merge = Node(Merge(len(viewers)), name=f"bolds_{label}", run_without_submitting=True)
    for position, one in enumerate(viewers, start=1):
        workflow.connect(bolds[one.participant, one.place], "info", merge, f"in{position}")
    workflow.connect(merge, "out", node, "bolds")
    workflow.connect(node, "ceiling", maps, "ceiling")


def _label(design: ParticipantDesign) -> str:
    return f"sub_{design.participant}_space_{design.place}".replace("+", "plus").replace("-", "")


def _design_file(plan: StudyPlan, design: ParticipantDesign) -> Path:
    return plan.settings.graph_dir / "designs" / f"{_label(design)}.json"


def _block_bytes(plan: StudyPlan) -> int:
    return int(plan.settings.mem_mb * 2**20 / plan.settings.nprocs / 4)


def _bold_node(plan: StudyPlan, design: ParticipantDesign) -> Node:
    """Return the node that cleans the BOLD, which depends on nothing that was shown."""
    runs_file = plan.settings.graph_dir / "designs" / f"{_label(design)}_runs.json"
    write_text_if_changed(runs_file, design_to_text(_brain_only(design)))
    interface = PrepareBold(
        design=str(runs_file),
        signatures=_file_signatures(design),
        confounds=plan.settings.confounds,
        high_pass=plan.settings.high_pass,
        app_version=__version__,
    )
    return Node(interface, name=f"bold_{_label(design)}", mem_gb=_bold_gb(design))


def _fit_node(plan: StudyPlan, design: ParticipantDesign, label: str, design_file: Path, device: str) -> Node:
    """Return the node that fits and scores all models."""
    settings = plan.settings
    return Node(
        FitScores(
            design=str(design_file),
            models=[*(model.key for model in plan.models), *settings.feature_table],
            options=json.dumps(_fit_options(plan, design), sort_keys=True),
            device=device,
            memory_bytes=_fit_bytes(plan),
            max_block_bytes=_block_bytes(plan),
            use_gpu=device.startswith("cuda"),
            cache_dir=str(settings.graph_dir / "fits"),
            app_version=__version__,
        ),
        name=f"fit_{label}",
        n_procs=1 if device.startswith("cuda") else settings.omp_nthreads,
        mem_gb=_fit_bytes(plan) / 2**30,
    )


def _joint_node(plan: StudyPlan, design: ParticipantDesign, label: str, design_file: Path, device: str) -> Node:
    """Return the node that fits bands of models and pairs of instructions."""
    settings = plan.settings
    real = {
        model: [one.key for one in plan.instructions.get(model, ()) if null_kind(one) is None]
        for model in settings.partition
    }
    return Node(
        FitJointly(
            design=str(design_file),
            options=json.dumps(_fit_options(plan, design), sort_keys=True),
            bands=json.dumps(joint_bands(settings, plan.instructions)),
            partition=json.dumps(real),
            device=device,
            memory_bytes=_fit_bytes(plan),
            max_block_bytes=_block_bytes(plan),
            use_gpu=device.startswith("cuda"),
            app_version=__version__,
        ),
        name=f"joint_{label}",
        n_procs=1 if device.startswith("cuda") else settings.omp_nthreads,
        mem_gb=_fit_bytes(plan) / 2**30,
    )


def _maps_node(plan: StudyPlan, design: ParticipantDesign, label: str, design_file: Path) -> Node:
    """Return the node that writes maps and tables."""
    settings = plan.settings
    return Node(
        WriteMaps(
            design=str(design_file),
            facts=json.dumps(map_facts(plan, design), sort_keys=True),
            atlases=[files.to_json() for files in plan.atlases[design.participant, design.place]],
            fdr=settings.fdr,
            n_permutations=settings.n_permutations,
            seed=settings.random_seed,
            output_dir=str(settings.output_dir),
            app_version=__version__,
        ),
        name=f"maps_{label}",
        mem_gb=2.0,
    )


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


def _fit_options(plan: StudyPlan, design: ParticipantDesign) -> dict[str, Any]:
    """Return the FitOptions of a participant as JSON values."""
    settings = plan.settings
    return {
        "delays": list(settings.delays),
        "alphas": list(settings.alphas),
        "high_pass": settings.high_pass,
        "layers": list(settings.layers) or None,
        "cv": asdict(cv_options(settings, design.participant)),
        "solver": settings.solver,
        "equal_rank": settings.equal_rank,
        "inference": {
            "n_permutations": settings.n_permutations,
            "method": settings.permutation_method,
            "block_length": settings.block_length,
            "seed": settings.random_seed,
        },
    }


def _file_signatures(design: ParticipantDesign) -> str:
    signatures = []
    for run in design.runs:
        for path in (run.bold, run.bold_right, run.mask, run.confounds):
            if path is not None:
                status = path.stat()
                signatures.append([str(path), status.st_size, status.st_mtime_ns])
    return json.dumps(signatures)


def _bold_gb(design: ParticipantDesign) -> float:
    """Rough memory in GiB of cleaning a participant's runs one by one: three copies of the largest."""
    return max(0.5, 3 * max(_series_bytes(run, design) for run in design.runs) / 1024**3)


def _series_bytes(run: Run, design: ParticipantDesign) -> float:
    """Bytes of one run in memory, by the sizes of its files; compressed ones hold about five times as much."""
    sharing = 1 if run.dataset is None else sum(other.bold == run.bold for other in design.runs)
    paths = [path for path in (run.bold, run.bold_right) if path is not None]
    return sum((5 if path.suffix in (".gz", ".gii") else 1) * path.stat().st_size for path in paths) / sharing


def _fit_bytes(plan: StudyPlan) -> int:
    """Memory of one node that fits: of those that may run at once each has its share."""
    at_once = min(plan.settings.nprocs, len(plan.designs))
    return int(plan.settings.mem_mb * 2**20 / at_once)
