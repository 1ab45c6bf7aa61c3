"""The group graph: maps per model, tables per space."""

import json
from collections import defaultdict
from collections.abc import Sequence

from nipype.pipeline.engine import Node, Workflow

from bids_mllm import __version__
from bids_mllm.config import Settings
from bids_mllm.exceptions import InputDataError, UsageError
from bids_mllm.interfaces.group import SummariseModel, SummariseTables
from bids_mllm.io.results import ModelResult, find_results


def group_results(settings: Settings) -> tuple[ModelResult, ...]:
    """Return what the participant level left in the output folder.

    Raises
    ------
    InputDataError
        When there is nothing.
    UsageError
        When a participant asked for has no results.
    """
    found = find_results(settings.output_dir, settings.participant_label)
    present = {result.name.participant for result in found}
    missing = [label for label in settings.participant_label if label not in present]
    if missing:
        raise UsageError(
            f"{settings.output_dir} has no results of {', '.join(missing)}; run the participant level for them first."
        )
    if not found:
        raise InputDataError(
            f"{settings.output_dir} has no results of the participant level; run it first with the same output folder."
        )
    return found


def init_group_wf(settings: Settings, results: Sequence[ModelResult]) -> Workflow:
    """Build the graph of the group level from the results of the participant level."""
    workflow = Workflow(name="bids_mllm_group", base_dir=str(settings.work_dir))
    grouped: dict[tuple[str, str, str], list[ModelResult]] = defaultdict(list)
    for result in results:
        grouped[result.name.task, result.name.space, result.name.resolution or ""].append(result)
    for (task, space, resolution), own in grouped.items():
        label = f"task_{task}_space_{space}_{resolution}".replace("+", "plus").rstrip("_")
        common = {
            "output_dir": str(settings.output_dir),
            "participants": sorted({str(result.name.participant) for result in own}),
            "task": task,
            "space": space,
            "resolution": resolution,
            "app_version": __version__,
        }
        for model in dict.fromkeys(result.model for result in own):
            of_model = [result for result in own if result.model == model]
            interface = SummariseModel(model=model, signatures=_signatures(of_model), **common)
            workflow.add_nodes([Node(interface, name=f"maps_{label}_{model}")])
        tables = SummariseTables(signatures=_signatures(own), **common)
        workflow.add_nodes([Node(tables, name=f"tables_{label}")])
    return workflow


def _signatures(results: Sequence[ModelResult]) -> str:
    """Sizes and times of every map and table of these results."""
    signatures = []
    for result in results:
        folder = result.path("r", "best").parent
        for path in sorted(folder.glob(f"*_model-{result.model}_*")):
            status = path.stat()
            signatures.append([path.name, status.st_size, status.st_mtime_ns])
    return json.dumps(signatures)
