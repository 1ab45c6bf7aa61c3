"""Runs that take no part, each with its reason: content not fetched, nothing shown, aborted, not preprocessed."""

import re
from collections.abc import Sequence
from pathlib import Path

from bids_mllm.discover.layout import Derivative
from bids_mllm.discover.names import BidsName, normalise_entities, parse_name
from bids_mllm.discover.series import RunQuery, select_series
from bids_mllm.records import DroppedRun, Run

ABORTED = re.compile(r"(_bold)(__dup-?[0-9]+)(?=\.nii)")


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
            dropped.append(DroppedRun(run.participant, run.label, reason))
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
    """Return the runs of the raw data set that were asked for and are not among `runs`: aborted ones (``__dup``), and
    those without a preprocessed series.

    With a BIDS filter of the series only aborted runs are told, since others may have been filtered out.
    """
    everything = RunQuery(query.participants, ())
    names = [name for derivative in derivatives for name in select_series(derivative, everything)]
    preprocessed = {name.run_key for name in names}
    whole = {(run.participant, run.session, run.task, run.run) for run in runs}
    dropped = []
    for participant in query.participants:
        seen = set()
        for path in _raw_bolds(bids_dir / f"sub-{participant}"):
            aborted = ABORTED.search(path.name)
            name = parse_name(path.with_name(ABORTED.sub(r"\1", path.name)))
            if name is None or not query.fits(name.entities):
                continue
            if aborted:
                reason = f"the scanner's run {path.name} was aborted or repeated, and is no run of the data set"
                dropped.append(DroppedRun(participant, _label(name) + aborted[2], reason))
            elif name.run_key not in seen and not query.filters.get("bold") and not _among(name, whole):
                seen.add(name.run_key)
                known = name.run_key in preprocessed
                reason = "it has no series in the space asked for" if known else "it was not preprocessed"
                dropped.append(DroppedRun(participant, _label(name), f"{reason} ({path.name} is in the raw data set)"))
    return tuple(dropped)


def _raw_bolds(folder: Path) -> list[Path]:
    return sorted(path for pattern in ("func", "ses-*/func") for path in folder.glob(f"{pattern}/*_bold*.nii*"))


def _among(name: BidsName, whole: set[tuple[str, str | None, str, int | None]]) -> bool:
    """Whether a raw run is among the preprocessed ones; keys of HDF5 files have session, task and run only."""
    entities = normalise_entities(name.entities)
    run = entities.get("run", "")
    number = int(run) if run.isdigit() else None
    return (entities["sub"], entities.get("ses"), entities.get("task", ""), number) in whole


def _label(name: BidsName) -> str:
    """Return the name of a run without its participant."""
    return "_".join(f"{k}-{v}" for k, v in normalise_entities(name.entities).items() if k != "sub")
