"""The methods text of an output folder, which several calls of participants each may have filled."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bids_mllm.exceptions import BidsMllmError
from bids_mllm.io.derivatives import locked_dataset
from bids_mllm.io.files import read_json, write_json, write_text
from bids_mllm.report.citations import citation_files
from bids_mllm.report.methods import MethodsFacts, methods_text
from bids_mllm.workflows.plan import StudyPlan
from bids_mllm.workflows.reports import bibliography, methods_facts

#: What the text says of the data, of which calls for other participants may add.
OF_DATA = ("n_runs", "space", "units", "repetition_times", "fmriprep_versions")
#: What may differ between participants that were treated alike.
OF_PARTICIPANTS = (*OF_DATA, "participants", "confound_columns", "cv_scheme", "noise_ceiling")


def write_citations(plan: StudyPlan) -> None:
    """Write the methods text as ``logs/CITATION.{md,bib,html,tex}`` of the output folder.

    It counts the participants of earlier calls too, where these were made with the same settings and their results
    are there. Calls may run at once; ``logs/methods.json`` keeps what each said of its participants.
    """
    settings = plan.settings
    facts = methods_facts(plan, plan.designs)
    own = _by_participant(plan)
    with locked_dataset(settings.output_dir):
        path = settings.output_dir / "logs" / "methods.json"
        known = {label: record for label, record in _known(path).items() if label not in own}
        alike = {label: record for label, record in known.items() if _counts(record, facts, label, settings.output_dir)}
        markdown = methods_text(_merged(facts, {**alike, **own}))
        for name, text in citation_files(markdown, bibliography(), md_only=settings.md_only_boilerplate).items():
            write_text(path.with_name(name), text)
        if not settings.boilerplate_only:
            write_json(path, dict(sorted({**known, **own}.items())))


def _by_participant(plan: StudyPlan) -> dict[str, dict[str, Any]]:
    """Return what the text says of the data of each participant, with a digest of all else."""
    records = {}
    for label in dict.fromkeys(design.participant for design in plan.designs):
        facts = methods_facts(plan, [design for design in plan.designs if design.participant == label])
        data = {name: value for name, value in asdict(facts).items() if name in OF_DATA}
        records[label] = {"settings": _digest(facts), **data}
    return records


def _digest(facts: MethodsFacts) -> str:
    """Digest of what must be equal for one text to hold for several participants."""
    common = {name: value for name, value in asdict(facts).items() if name not in OF_PARTICIPANTS}
    return hashlib.sha256(repr(sorted(common.items())).encode()).hexdigest()


def _known(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except BidsMllmError:
        return {}  # a damaged record costs a count, nothing else
    return content if isinstance(content, dict) else {}


def _counts(record: Any, facts: MethodsFacts, label: str, output_dir: Path) -> bool:
    """Whether a participant of an earlier call was treated as those of this one, and has results."""
    same = isinstance(record, dict) and record.get("settings") == _digest(facts) and set(OF_DATA) <= set(record)
    return same and (output_dir / f"sub-{label}" / "func").is_dir()


def _merged(facts: MethodsFacts, records: Mapping[str, Mapping[str, Any]]) -> MethodsFacts:
    return replace(
        facts,
        participants=tuple(sorted(records)),
        n_runs=sum(record["n_runs"] for record in records.values()),
        space=", ".join(_union([record["space"].split(", ") for record in records.values()])),
        units=_union([record["units"] for record in records.values()]),
        repetition_times=tuple(sorted(_union([record["repetition_times"] for record in records.values()]))),
        fmriprep_versions=_union([record["fmriprep_versions"] for record in records.values()]),
    )


def _union(lists: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(item for items in lists for item in items))
