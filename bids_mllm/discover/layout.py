"""The raw data set and its fMRIPrep derivative, and the part of it that PyBIDS indexes."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_mllm.discover.names import read_json
from bids_mllm.exceptions import InputDataError, UsageError


def check_raw_dataset(bids_dir: Path) -> None:
    """Raise an `InputDataError` when `dataset_description.json` lacks what BIDS requires."""
    path = bids_dir / "dataset_description.json"
    missing = [key for key in ("Name", "BIDSVersion") if key not in read_json(path)]
    if missing:
        raise InputDataError(
            f"{path} has no {' and no '.join(missing)}, which every BIDS data set must state; add it, "
            "or pass --skip-bids-validation to go on without."
        )


def find_fmriprep(bids_dir: Path, derivatives: Mapping[str, Path]) -> Path:
    """Return the root of the fMRIPrep derivative.

    It is the one named ``fmriprep`` in `derivatives`, else the only one there, else the one derivative
    under ``bids_dir/derivatives`` whose GeneratedBy names fMRIPrep.
    """
    if "fmriprep" in derivatives:
        return _existing(derivatives["fmriprep"])
    if len(derivatives) == 1:
        return _existing(next(iter(derivatives.values())))
    candidates = list(derivatives.values()) or _folders(bids_dir / "derivatives")
    found = [path for path in candidates if _made_by_fmriprep(path)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(path) for path in found)
        raise UsageError(
            f"More than one fMRIPrep derivative was found ({names}); choose one with --derivatives fmriprep=PATH."
        )
    raise UsageError(
        f"No fMRIPrep derivative was found under {bids_dir / 'derivatives'}; name its folder with "
        "--derivatives fmriprep=PATH."
    )


def _existing(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(
            f"The derivative folder {path} does not exist; give the root of an fMRIPrep output with "
            "--derivatives fmriprep=PATH."
        )
    return path


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []


def generated_by(path: Path) -> list[dict[str, Any]]:
    """Return the GeneratedBy entries of a data set, in the older PipelineDescription form too."""
    description = read_json(path / "dataset_description.json")
    entries = description.get("GeneratedBy") or [description.get("PipelineDescription", {})]
    return [entry for entry in entries if isinstance(entry, dict)]


def _made_by_fmriprep(path: Path) -> bool:
    return any(str(entry.get("Name", "")).lower() == "fmriprep" for entry in generated_by(path))


def choose_participants(fmriprep_dir: Path, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the participants to process, all there are when `labels` is empty.

    Raises
    ------
    UsageError
        When a label is unknown; lists the missing and the available ones.
    """
    available = tuple(p.name.removeprefix("sub-") for p in _folders(fmriprep_dir) if p.name.startswith("sub-"))
    if not available:
        raise InputDataError(
            f"{fmriprep_dir} holds no sub-* folder; give the root of an fMRIPrep output with "
            "--derivatives fmriprep=PATH."
        )
    missing = [label for label in labels if label not in available]
    if missing:
        raise UsageError(
            f"Participants not found in {fmriprep_dir}: {', '.join(missing)}; available are {', '.join(available)}."
        )
    return tuple(labels) or available


def index_derivative(fmriprep_dir: Path, participants: Sequence[str], *, database_dir: Path | None = None) -> Any:
    """Return a PyBIDS layout of the functional files, without metadata.

    Without `database_dir` only the folders of `participants` are read; with it the whole derivative is
    indexed once and the index is reused.
    """
    from bids import BIDSLayout, BIDSLayoutIndexer

    database = None
    wanted = "|".join(re.escape(label) for label in participants)
    ignore = [re.compile(r"(^|/)(logs?|figures|anat|sourcedata|code|work|xfm)(/|$)"), re.compile(r"\.html$")]
    if database_dir is None:
        ignore.append(re.compile(rf"(^|/)sub-(?!(?:{wanted})(?:[/_]|$))[0-9a-zA-Z+]+"))
    else:
        database = database_dir / "fmriprep"
        database_dir.mkdir(parents=True, exist_ok=True)
    try:
        return BIDSLayout(
            fmriprep_dir,
            validate=False,
            is_derivative=True,
            database_path=database,
            indexer=BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignore),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputDataError(
            f"PyBIDS cannot index {fmriprep_dir} ({error}); check its dataset_description.json."
        ) from error


def read_filters(path: Path | None) -> dict[str, dict[str, Any]]:
    """Read a BIDS filter file: ``{query: {entity: value}}`` with the queries bold, mask, confounds."""
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The BIDS filter file {path} cannot be read ({error}); expected JSON such as "
            '{"bold": {"task": "movie"}}.'
        ) from error
    queries = ("bold", "mask", "confounds")
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise UsageError(f"The BIDS filter file {path} must hold an object of objects, one a query.")
    unknown = sorted(set(content) - set(queries))
    if unknown:
        raise UsageError(
            f"The BIDS filter file {path} has the queries {', '.join(unknown)}; known are {', '.join(queries)}."
        )
    return content
