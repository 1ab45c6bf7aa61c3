"""Nodes that check the clocks of runs against those of their stimuli, and the check that is found on disk."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from nipype.interfaces.utility import Merge
from nipype.pipeline.engine import Node, Workflow

from bids_mllm import __version__
from bids_mllm.interfaces.clock import CheckClock, ReadFastFeatures
from bids_mllm.io.clock import read_clock_table
from bids_mllm.io.derivatives import MapName
from bids_mllm.outcomes import ClockCheck
from bids_mllm.records import ParticipantDesign
from bids_mllm.workflows.facts import output_task
from bids_mllm.workflows.plan import StudyPlan


def fast_feature_nodes(plan: StudyPlan) -> dict[str, Node]:
    """Return one node for each media file that is shown; none where only tables are asked for."""
    shown = {stim_file for design in plan.designs for windows in design.windows for stim_file in windows.stim_files}
    nodes = {}
    for number, stim_file in enumerate(sorted(shown & set(plan.stimuli))):
        stimulus = plan.stimuli[stim_file]
        interface = ReadFastFeatures(
            stimulus=json.dumps(asdict(stimulus) | {"path": str(stimulus.path)}), app_version=__version__
        )
        nodes[stim_file] = Node(interface, name=f"fast_{number:04d}", mem_gb=0.5)
    return nodes


def connect_clock(
    workflow: Workflow, design: ParticipantDesign, fast: Mapping[str, Node], bold: Node, maps: Node
) -> None:
    """Check the clocks of one participant where media files were shown, and hand the check to the maps.

    Parameters
    ----------
    workflow
    design
    fast
        Nodes of `fast_feature_nodes`.
    bold, maps
        Nodes that clean the BOLD and write the outputs of this participant and place.
    """
    used = sorted({stim_file for windows in design.windows for stim_file in windows.stim_files} & set(fast))
    if not used:
        return
    label = maps.name.removeprefix("maps_")
    merge = Node(Merge(len(used)), name=f"fast_{label}", run_without_submitting=True)
    for position, stim_file in enumerate(used, start=1):
        workflow.connect(fast[stim_file], "features", merge, f"in{position}")
    check = Node(CheckClock(design=maps.inputs.design, app_version=__version__), name=f"clock_{label}", mem_gb=1.0)
    workflow.connect(merge, "out", check, "features")
    workflow.connect(bold, "info", check, "bold")
    workflow.connect(check, "clock", maps, "clock")


def found_clock(output_dir: Path, design: ParticipantDesign) -> ClockCheck | None:
    """Read the check of a participant in one place from the output; None where there is none."""
    run = design.runs[0]
    name = MapName(design.participant, output_task(design), run.space, run.resolution, run.density, run.segmentation)
    path = name.path(output_dir, stat="clocklag", extension=".tsv")
    return read_clock_table(path) if path.is_file() else None
