"""What the pages show of the checks on features and of the texts that models generated."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nipype.pipeline.engine import Node

from bids_mllm import __version__
from bids_mllm.interfaces.conditioning import CheckConditioning, read_checks
from bids_mllm.interfaces.group_features import TEXTS_ENDING, TEXTS_FOLDER
from bids_mllm.io.files import read_tsv
from bids_mllm.records import ModelSpec
from bids_mllm.report.conditioning import ModelChecks, conditioning_blocks, text_samples
from bids_mllm.report.content import Block, Table
from bids_mllm.workflows.plan import StudyPlan


def check_node(plan: StudyPlan, model: ModelSpec) -> Node:
    """Return the node that checks the features of one model over all stimuli."""
    spec = asdict(model) | {"parameters": dict(model.parameters)}
    instructions = [asdict(instruction) for instruction in plan.instructions.get(model.key, ())]
    interface = CheckConditioning(
        model=json.dumps(spec, sort_keys=True),
        instructions=json.dumps(instructions),
        output_dir=str(plan.settings.output_dir),
        random_seed=plan.settings.random_seed,
        app_version=__version__,
    )
    name = f"checks_{model.key.replace('+', 'plus')}"
    return Node(interface, name=name, n_procs=plan.settings.omp_nthreads, mem_gb=2.0)


def found_checks(output_dir: Path, models: Sequence[str]) -> tuple[ModelChecks, ...]:
    """Return the checks of those models that have any."""
    found = (read_checks(output_dir, model) for model in models)
    return tuple(checks for checks in found if checks is not None)


def check_blocks(output_dir: Path, checks: Sequence[ModelChecks]) -> tuple[Block, ...]:
    """Return what a page shows of the checks and of the generated texts."""
    blocks: list[Block] = []
    for own in checks:
        blocks += conditioning_blocks(own)
        sample = sample_of_texts(output_dir, own.model)
        if sample is not None:
            blocks.append(sample)
    return tuple(blocks)


def sample_of_texts(output_dir: Path, model: str) -> Table | None:
    """Return texts that a model generated for a few clips of its first film, None where there are none."""
    paths = sorted((output_dir / TEXTS_FOLDER / f"model-{model}").glob(f"*{TEXTS_ENDING}"))
    if not paths:
        return None
    film = _film(paths[0])
    rows = []
    for path in paths:
        if _film(path) == film:
            instruction = path.name.removesuffix(TEXTS_ENDING).rpartition("_instruction-")[2]
            rows += [{**row, "instruction": instruction} for row in read_tsv(path)]
    return text_samples(film, rows, model=model)


def _film(path: Path) -> str:
    return path.name.removesuffix(TEXTS_ENDING).rpartition("_instruction-")[0]
