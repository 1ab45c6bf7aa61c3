"""Designs as JSON files: the seam between the planning of a workflow and its nodes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.io.files import read_json
from bids_mllm.records import DroppedRun, ParticipantDesign, Run, Showing, TRWindows, WindowGrid


def design_to_text(design: ParticipantDesign) -> str:
    """Return the design as JSON text; equal designs give equal texts."""
    return json.dumps(asdict(design), default=_plain, sort_keys=True, indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray):
        return [None if isinstance(v, float) and v != v else v for v in value.tolist()]
    raise TypeError(f"A design holds {type(value)}, which JSON cannot.")


def read_design(path: Path) -> ParticipantDesign:
    """Read a design that `design_to_text` wrote."""
    content = read_json(path)
    test_runs = content["test_runs"]
    return ParticipantDesign(
        participant=content["participant"],
        space=content["space"],
        runs=tuple(_run(item) for item in content["runs"]),
        windows=tuple(_windows(item) for item in content["windows"]),
        dropped=tuple(DroppedRun(**item) for item in content["dropped"]),
        test_runs=None if test_runs is None else tuple(test_runs),
    )


def _run(item: dict[str, Any]) -> Run:
    paths = {k: Path(item[k]) if item[k] else None for k in ("bold", "bold_right", "mask", "confounds", "events")}
    showings = tuple(Showing(**showing) for showing in item["showings"])
    return Run(**(item | paths | {"showings": showings}))


def _windows(item: dict[str, Any]) -> TRWindows:
    return TRWindows(
        run_label=item["run_label"],
        showing=np.array(item["showing"], dtype=int),
        index=np.array(item["index"], dtype=int),
        start=np.array(item["start"], dtype=float),
        end=np.array(item["end"], dtype=float),
        stim_files=tuple(item["stim_files"]),
        grids=tuple(WindowGrid(**grid) for grid in item["grids"]),
        report=item["report"],
    )
