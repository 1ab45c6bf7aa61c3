"""Runs that take no part, each with its reason: content not fetched, nothing shown, aborted, not preprocessed."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from bids_mllm.discover.layout import Derivative
from bids_mllm.discover.names import BidsName, normalise_entities, parse_name
from bids_mllm.discover.series import RunQuery, select_series
from bids_mllm.discover.spaces import SpaceQuery
from bids_mllm.records import DroppedRun, Run

ABORTED = re.compile(r"(_bold)(__dup-?[0-9]+)(?=\.nii)")
#: Session, task and number of a run.
_Identity = tuple[str | None, str, int | None]


def usable_runs(runs: Sequence[Run], *, use_confounds: bool = False) -> tuple[tuple[Run, ...], tuple[DroppedRun, ...]]:
    """Split off the runs that cannot be used, each with its reason.

    Parameters
    ----------
    runs
    use_confounds
        Whether confounds are removed, so that their files must be here.
    """
    usable, dropped = [], []
    for run in runs:
        reason = _fault(run, use_confounds=use_confounds)
        if reason is None:
            usable.append(run)
        else:
            dropped.append(DroppedRun(run.participant, run.label, reason, run.place))
    return tuple(usable), tuple(dropped)


def _fault(run: Run, *, use_confounds: bool) -> str | None:
    if run.bold is None:
        return _not_fetched("BOLD", run.missing)
    if run.mask is not None and not run.mask.exists():
        return _not_fetched("mask", run.mask)
    if use_confounds and not run.denoised and run.confounds is not None and not run.confounds.exists():
        return _not_fetched("confounds", run.confounds)
    if run.showings:
        return None
    if run.missing is not None:
        return _not_fetched("events", run.missing)
    return run.showings_rule or "no events file applies to it and no --stimulus-map row names it"


def _not_fetched(kind: str, path: Path | None) -> str:
    return f"its {kind} file is a link to content that was not fetched; run: datalad get {path}"


def raw_faults(
    derivatives: Sequence[Derivative], bids_dir: Path, query: RunQuery, runs: Sequence[Run]
) -> tuple[DroppedRun, ...]:
    """Return the runs that were asked for and are not among `runs`: aborted ones of the raw data set (``__dup``), those
    of it without a preprocessed series, and those that have one in some of the places only, once for each other place.

    With a BIDS filter of the series only aborted runs are told, since others may have been filtered out.
    """
    everything = RunQuery(query.participants, ())
    names = [name for derivative in derivatives for name in select_series(derivative, everything)]
    preprocessed = {name.run_key for name in names}
    dropped = []
    for participant in query.participants:
        every = [run for run in runs if run.participant == participant]
        own = [run for run in every if not _unread(run)]
        found: dict[_Identity, set[str]] = defaultdict(set)
        for run in own:
            found[run.session, run.task, run.run].add(run.place)
        asked = {(run.session, run.task, run.run): (run.label, f"it is there in {run.place}") for run in own}
        nowhere: dict[object, tuple[str, str]] = {}
        for path in _raw_bolds(bids_dir / f"sub-{participant}"):
            aborted = ABORTED.search(path.name)
            name = parse_name(path.with_name(ABORTED.sub(r"\1", path.name)))
            if name is None or not query.fits(name.entities):
                continue
            there = f"{path.name} is in the raw data set"
            if aborted:
                reason = f"the scanner's run {path.name} was aborted or repeated, and is no run of the data set"
                dropped.append(DroppedRun(participant, _label(name) + aborted[2], reason))
            elif _identity(name) in found or name.run_key in preprocessed:
                asked.setdefault(_identity(name), (_label(name), there))
            else:
                nowhere.setdefault(name.run_key, (_label(name), there))
        if query.filters.get("bold"):
            continue
        reason = "it was not preprocessed"
        dropped += [DroppedRun(participant, label, f"{reason} ({there})") for label, there in nowhere.values()]
        dropped += [
            DroppedRun(participant, label, f"{reason} in {place} ({there})", place)
            for place in _places(every, query.spaces)
            for run, (label, there) in asked.items()
            if place not in found[run]
        ]
    return tuple(dropped)


def _places(runs: Sequence[Run], spaces: Sequence[SpaceQuery]) -> tuple[str, ...]:
    """Places in which the runs of a participant are looked for: those of any, and spaces asked for that none is in."""
    unread = {run.place for run in runs if _unread(run)}
    places = {run.place: None for run in runs if run.place not in unread}
    for space in spaces:
        if not any(space.fits(_entities(run)) for run in runs):
            places[space.words.replace(":", "_")] = None
    return tuple(places)


def _unread(run: Run) -> bool:
    """Whether a run stands for an HDF5 file that is not here, of which nothing tells what runs it holds."""
    return run.bold is None and run.missing is not None and run.missing.suffix == ".h5"


def _entities(run: Run) -> dict[str, str]:
    labels = {"space": run.space, "res": run.resolution, "den": run.density, "seg": run.segmentation}
    return {key: label for key, label in labels.items() if label is not None}


def _raw_bolds(folder: Path) -> list[Path]:
    return sorted(path for pattern in ("func", "ses-*/func") for path in folder.glob(f"{pattern}/*_bold*.nii*"))


def _identity(name: BidsName) -> _Identity:
    """What the run of a file is known by in every space; keys of HDF5 files have session, task and run only."""
    entities = normalise_entities(name.entities)
    run = entities.get("run", "")
    return entities.get("ses"), entities.get("task", ""), int(run) if run.isdigit() else None


def _label(name: BidsName) -> str:
    """Return the name of a run without its participant."""
    return "_".join(f"{k}-{v}" for k, v in normalise_entities(name.entities).items() if k != "sub")
