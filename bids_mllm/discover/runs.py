"""Functional runs in the spaces asked for, with their masks, confounds and clocks."""

import csv
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.discover.clocks import Clocks
from bids_mllm.discover.events import find_events
from bids_mllm.discover.names import BidsName, FolderIndex, normalise_entities, parse_name
from bids_mllm.exceptions import InputDataError, UsageError
from bids_mllm.records import DroppedRun, Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunQuery:
    """Which runs are asked for; empty tuples mean all."""

    participants: tuple[str, ...]
    spaces: tuple[str, ...]
    sessions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    runs: tuple[int, ...] = ()
    filters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def find_runs(layout: Any, bids_dir: Path, fmriprep_dir: Path, query: RunQuery) -> tuple[Run, ...]:
    """Return every run that matches, in order of participant, session, task and run.

    A run whose file is not there (a dangling git-annex link) is returned with ``bold=None`` and no
    volumes, so that it can be listed.

    Raises
    ------
    UsageError
        When nothing matches; says what was asked for and what there is.
    InputDataError
        When a mask has another shape than its BOLD, or header and sidecar disagree about the TR.
    """
    folders = FolderIndex()
    bolds = _select(layout, query, "bold", suffix="bold", extension=[".nii.gz", ".nii"], space=list(query.spaces))
    bolds = [name for name in bolds if name.entities.get("desc", "preproc") == "preproc"]
    if not bolds:
        raise UsageError(_nothing_matches(layout, query))
    _check_known(layout, query)
    masks = _select(layout, query, "mask", suffix="mask", extension=[".nii.gz", ".nii"], desc="brain")
    confounds = _select(
        layout, query, "confounds", suffix=["timeseries", "regressors"], extension=".tsv", desc="confounds"
    )
    clocks = Clocks(bids_dir, fmriprep_dir, folders)
    runs = [_make_run(bold, masks, confounds, clocks) for bold in bolds]
    return tuple(sorted(runs, key=lambda r: (r.participant, r.space, r.session or "", r.task, r.run or 0)))


def usable_runs(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[DroppedRun, ...]]:
    """Split off the runs that cannot be used, each with its reason."""
    usable, dropped = [], []
    for run in runs:
        if run.bold is None:
            reason = "the BOLD file is not here (a link to content that was not fetched); run datalad get on it"
            dropped.append(DroppedRun(run.participant, run.label, reason))
        elif run.mask is not None and not run.mask.exists():
            reason = f"its mask {run.mask.name} is a link to content that was not fetched; run datalad get on it"
            dropped.append(DroppedRun(run.participant, run.label, reason))
        elif not run.showings:
            reason = run.showings_rule or "no events file applies to it and no --stimulus-map row names it"
            dropped.append(DroppedRun(run.participant, run.label, reason))
        else:
            usable.append(run)
    return tuple(usable), tuple(dropped)


def _select(layout: Any, query: RunQuery, name: str, **entities: Any) -> list[BidsName]:
    """PyBIDS query with the user's filters, as parsed names."""
    from bids.layout import Query

    wanted = {
        "subject": list(query.participants),
        "session": list(query.sessions) or None,
        "task": list(query.tasks) or None,
        "run": list(query.runs) or None,
    }
    wanted = {key: value for key, value in wanted.items() if value is not None} | entities
    for key, value in query.filters.get(name, {}).items():
        wanted[key] = Query.NONE if value is None else Query.ANY if value == "*" else value
    paths = layout.get(return_type="filename", invalid_filters="allow", **wanted)
    root = Path(layout.root)
    parsed = (parse_name(Path(path)) for path in sorted(paths))
    found = [name for name in parsed if name is not None]
    strangers = [name.path for name in found if not name.path.is_relative_to(root)]
    if strangers:
        raise UsageError(
            f"The PyBIDS index names {strangers[0]}, which is not below {root}; it was made of another folder: remove "
            "it or choose another --bids-database-dir."
        )
    return found


def _check_known(layout: Any, query: RunQuery) -> None:
    """Raise a UsageError that lists the labels asked for that no preprocessed BOLD file has, and those there are."""
    everything = RunQuery(participants=query.participants, spaces=())
    names = _select(layout, everything, "", suffix="bold", extension=[".nii.gz", ".nii"])
    asked = {
        "space": query.spaces,
        "ses": query.sessions,
        "task": query.tasks,
        "run": tuple(str(run) for run in query.runs),
    }
    for entity, labels in asked.items():
        labelled = (name.entities for name in names if entity in name.entities)
        there = {(normalise_entities(e) | {"space": e.get("space", "")})[entity] for e in labelled}
        missing = [label for label in labels if label not in there]
        if missing:
            raise UsageError(
                f"No preprocessed BOLD file has {entity} {', '.join(missing)}; there are {', '.join(sorted(there))}."
            )


def _nothing_matches(layout: Any, query: RunQuery) -> str:
    there = {
        "spaces": layout.get_spaces(suffix="bold") if hasattr(layout, "get_spaces") else [],
        "tasks": layout.get_tasks(),
        "sessions": layout.get_sessions(),
    }
    asked = {
        "space": query.spaces,
        "participant": query.participants,
        "session": query.sessions,
        "task": query.tasks,
        "run": query.runs,
    }
    words = "; ".join(f"{key} {', '.join(map(str, value))}" for key, value in asked.items() if value)
    found = "; ".join(f"{key} {', '.join(map(str, value)) or 'none'}" for key, value in there.items())
    return f"No preprocessed NIfTI BOLD file matches {words}; the derivative has {found}."


def _make_run(bold: BidsName, masks: Sequence[BidsName], confounds: Sequence[BidsName], clocks: Clocks) -> Run:
    present = bold.path.exists()
    mask = _same_grid(bold, masks)
    shape, header_tr = _read_header(bold.path) if present else ((0, 0, 0, 0), 0.0)
    if present and mask is not None and mask.exists():
        _check_mask(bold.path, shape, mask)
    clock = clocks.clock(bold, header_tr)
    confound = next((name.path for name in confounds if name.run_key == bold.run_key), None)
    run = bold.entities.get("run")
    return Run(
        participant=bold.entities["sub"],
        session=bold.entities.get("ses"),
        task=bold.entities.get("task", ""),
        run=int(run) if run and run.isdigit() else None,
        space=bold.entities.get("space", ""),
        bold=bold.path if present else None,
        mask=mask,
        confounds=confound,
        repetition_time=clock.repetition_time,
        start_time=clock.start_time,
        n_volumes=shape[3],
        events=find_events(clocks.bids_dir, bold, clocks.folders),
        resolution=bold.entities.get("res"),
        non_steady_state=_non_steady_state(confound),
    )


def _non_steady_state(confounds: Path | None) -> int:
    """Number of volumes up to the last that fMRIPrep flags as taken before the magnetisation was steady."""
    if confounds is None or not confounds.is_file():
        return 0
    with confounds.open(encoding="utf-8", errors="replace", newline="") as stream:
        rows = csv.reader(stream, delimiter="\t")
        columns = [k for k, name in enumerate(next(rows, [])) if name.startswith("non_steady_state_outlier")]
        if not columns:
            return 0
        flagged = [
            number for number, row in enumerate(rows, 1) if any(row[k : k + 1] in (["1"], ["1.0"]) for k in columns)
        ]
    return max(flagged, default=0)


def _same_grid(bold: BidsName, masks: Sequence[BidsName]) -> Path | None:
    keys = ("space", "res")
    for name in masks:
        same = all(name.entities.get(key) == bold.entities.get(key) for key in keys)
        if same and name.run_key == bold.run_key:
            return name.path
    return None


def _header(path: Path) -> Any:
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        return nib.load(path).header
    except (ImageFileError, OSError, EOFError, zlib.error) as error:
        raise InputDataError(f"{path} cannot be read as an image ({error}); fetch or preprocess it again.") from error


def _read_header(path: Path) -> tuple[tuple[int, int, int, int], float]:
    header = _header(path)
    shape = header.get_data_shape()
    if len(shape) != 4:
        raise InputDataError(f"{path} has the shape {shape}; expected a 4-D BOLD series.")
    zooms = header.get_zooms()
    unit = header.get_xyzt_units()[1]
    scale = {"msec": 1e-3, "usec": 1e-6}.get(unit, 1.0)
    return shape, float(np.round(float(zooms[3]) * scale, 6))


def _check_mask(bold: Path, shape: Sequence[int], mask: Path) -> None:
    mask_shape = _header(mask).get_data_shape()
    if tuple(mask_shape[:3]) != tuple(shape[:3]):
        raise InputDataError(
            f"The mask {mask} has the shape {tuple(mask_shape)} but its BOLD {bold.name} has "
            f"{tuple(shape[:3])}; both must be on one grid: preprocess the run again or remove the mask."
        )
