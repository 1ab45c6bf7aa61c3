"""The group graph: maps per model, tables per space."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Node, Workflow

from bids_mllm import __version__
from bids_mllm.config import Settings
from bids_mllm.exceptions import BidsMllmError, InputDataError, UsageError
from bids_mllm.interfaces.check_record import check_path
from bids_mllm.interfaces.group import SummariseCeiling, SummariseModel, SummariseTables
from bids_mllm.interfaces.group_features import TEXTS_ENDING, TEXTS_FOLDER
from bids_mllm.io.derivatives import MapName
from bids_mllm.io.files import still_written
from bids_mllm.io.results import ModelResult, check_readable, find_results, stack_maps
from bids_mllm.records import NATIVE_SPACES


def group_results(settings: Settings) -> tuple[ModelResult, ...]:
    """Return what the participant level left in the output folder.

    Raises
    ------
    InputDataError
        When there is nothing.
    UsageError
        When none of the participants asked for has results.
    """
    found = find_results(settings.output_dir, settings.participant_label)
    if settings.participant_label and not found:
        raise UsageError(
            f"{settings.output_dir} has no results of {', '.join(settings.participant_label)}; run the participant "
            "level for them first."
        )
    if not found:
        raise InputDataError(
            f"{settings.output_dir} has no results of the participant level; run it first with the same output folder."
        )
    return found


def missing_participants(settings: Settings) -> list[str]:
    """Warn of participants asked for, else of those with a folder in the BIDS data set, that have no results at all.

    A data set that cannot be read says nothing of them.
    """
    try:
        folders = [path.name for path in settings.bids_dir.iterdir() if path.is_dir()]
    except OSError:
        folders = []
    of_data_set = sorted(name.removeprefix("sub-") for name in folders if name.startswith("sub-"))
    wanted = dict.fromkeys(settings.participant_label or of_data_set)
    present = {result.name.participant for result in find_results(settings.output_dir)}
    missing = [f"sub-{label}" for label in wanted if label not in present]
    if not missing:
        return []
    return [
        f"The group is without {', '.join(missing)}: the output folder has no results of the participant level of "
        "them; run it for them, and the group level again."
    ]


def usable_results(results: Sequence[ModelResult]) -> tuple[tuple[ModelResult, ...], tuple[str, ...]]:
    """Leave out the participants of whom some output cannot be read.

    Returns
    -------
    usable
        The results of the others.
    left_out
        One sentence for each participant left out, with the first file that cannot be read.

    Raises
    ------
    InputDataError
        When nobody is left.
    """
    faults: dict[str | None, str] = {}
    for result in results:
        participant = result.name.participant
        if participant in faults:
            continue
        try:
            check_readable(result)
        except BidsMllmError as error:
            faults[participant] = f"sub-{participant} is left out of the group: {error}"
    usable = tuple(result for result in results if result.name.participant not in faults)
    if not usable:
        raise InputDataError(f"No participant's results can be read. {' '.join(faults.values())}")
    return usable, tuple(faults.values())


#: What must be equal for scores of participants to be averaged; what may differ is warned about in the report.
COMPARABLE = (
    "Conditions", "Layers", "WindowLength", "WindowPosition", "DelaysTR", "Confounds", "HighPassHz", "Alphas", "Sloppy",
    "Model", "Repeats",
)  # fmt: skip


def check_comparable(results: Sequence[ModelResult]) -> None:
    """Raise an InputDataError when participants of one model and space were fitted with other options.

    The sentence names two participants, the option and both values.
    """
    first: dict[tuple[str, ...], ModelResult] = {}
    for result in results:
        key = (result.name.task, result.name.place, result.model)
        reference = first.setdefault(key, result)
        mine, other = result.sidecar(), reference.sidecar()
        for name in COMPARABLE:
            if mine.get(name) != other.get(name):
                raise InputDataError(
                    f"{result.model} of sub-{result.name.participant} was made with {name} {mine.get(name)}, that of "
                    f"sub-{reference.name.participant} with {other.get(name)}; run the participant level of both with "
                    "the same options, or choose participants with --participant-label."
                )


def check_grids(results: Sequence[ModelResult]) -> None:
    """Raise an InputDataError when participants of one template space have different grids; names two files."""
    first: dict[tuple[str, str], ModelResult] = {}
    for result in results:
        reference = first.setdefault((result.name.task, result.name.place), result)
        if result.name.space not in NATIVE_SPACES and result.name.participant != reference.name.participant:
            stack_maps([reference, result], "r", "best")


def differing_places(results: Sequence[ModelResult]) -> list[str]:
    """Warn of spaces in which participants have other resolutions or densities, so that they are groups apart."""
    found: dict[tuple[str, str, str | None], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for result in results:
        name = result.name
        found[name.task, name.space, name.segmentation][name.place].add(str(name.participant))
    warnings = []
    for (task, space, _), places in found.items():
        if len(set(map(frozenset, places.values()))) > 1:
            sets = "; ".join(f"{place}: {', '.join(sorted(labels))}" for place, labels in places.items())
            warnings.append(
                f"Participants have other resolutions or densities of {space} (films {task}), so each has group maps "
                f"and tables of its own, of those participants alone ({sets}); choose one of them for all with --space "
                "at the participant level."
            )
    return warnings


def init_group_wf(settings: Settings, results: Sequence[ModelResult]) -> Workflow:
    """Build the graph of the group level from the results of the participant level.

    In native spaces there are tables, but no maps.
    """
    workflow = Workflow(name="bids_mllm_group", base_dir=str(settings.graph_dir))
    grouped: dict[MapName, list[ModelResult]] = defaultdict(list)
    for result in results:
        grouped[result.name.of_group()].append(result)
    for name, own in grouped.items():
        label = f"task_{name.task}_space_{name.place}".replace("+", "plus").replace("-", "")
        common = {
            "output_dir": str(settings.output_dir),
            "participants": sorted({str(result.name.participant) for result in own}),
            "name": json.dumps(asdict(name)),
            "app_version": __version__,
        }
        models = [] if name.space in NATIVE_SPACES else list(dict.fromkeys(result.model for result in own))
        for model in models:
            of_model = [result for result in own if result.model == model]
            interface = SummariseModel(model=model, signatures=_signatures(of_model), **common)
            _add(workflow, Node(interface, name=f"maps_{label}_{model}"))
        if name.space not in NATIVE_SPACES:
            _add(workflow, Node(SummariseCeiling(signatures=_signatures(own), **common), name=f"ceiling_{label}"))
        tables = SummariseTables(signatures=_signatures(own) + _feature_signatures(own), **common)
        _add(workflow, Node(tables, name=f"tables_{label}"))
    return workflow


def _add(workflow: Workflow, node: Node) -> None:
    """Add a node; it runs again when its outputs are gone or were changed, which nipype does not look at."""
    workflow.add_nodes([node])
    record = Path(workflow.base_dir) / workflow.name / node.name / "written.json"
    node.overwrite = None if still_written(record) else True


def _signatures(results: Sequence[ModelResult]) -> str:
    """Sizes and times of every map and table of these results."""
    signatures: list[list[Any]] = []
    for result in results:
        folder = result.path("r", "best").parent
        patterns = (
            f"*_model-{result.model}_*",
            f"*_stat-rdifference_desc-vs{result.model}_*",  # of a pair whose other model comes first
            "*_stat-modelcomparison_*",
            "*_stat-noiseceiling_*",
        )
        signatures += _stamps(path for pattern in patterns for path in folder.glob(pattern))
    return json.dumps(signatures)


def _feature_signatures(results: Sequence[ModelResult]) -> str:
    """Sizes and times of the checks of features and of the generated texts that tables are made of."""
    files: list[Path] = []
    for model in dict.fromkeys(result.model for result in results):
        output_dir = results[0].output_dir
        files += check_path(output_dir, model, "conditioning", "").parent.glob(f"model-{model}_*")
        files += (output_dir / TEXTS_FOLDER / f"model-{model}").glob(f"*{TEXTS_ENDING}")
    return json.dumps(_stamps(files))


def _stamps(paths: Iterable[Path]) -> list[list[Any]]:
    """Return name, size and time of files."""
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(set(paths))]
