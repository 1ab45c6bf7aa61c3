"""Functional runs in the spaces asked for, with their masks, confounds and clocks."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_mllm.discover.clocks import Clocks
from bids_mllm.discover.events import find_events
from bids_mllm.discover.headers import SeriesHeader, hdf5_headers, image_shape, read_header
from bids_mllm.discover.layout import Derivative
from bids_mllm.discover.names import BidsName, FolderIndex, normalise_entities
from bids_mllm.discover.series import RunQuery, Series, check_overlap, find_series, select, select_series
from bids_mllm.discover.spaces import plain_label, segmentation_of, space_words, spaces_by_form
from bids_mllm.exceptions import InputDataError, UsageError
from bids_mllm.records import Run

logger = logging.getLogger(__name__)

#: Space of the subcortical voxels of CIFTI files.
VOXELS_OF_GRAYORDINATES = "MNI152NLin6Asym"

EMPTY = SeriesHeader(0, 0.0, (), "")


@dataclass(frozen=True)
class _Files:
    """Where the other files of the runs of one derivative are looked for."""

    masks: Mapping[tuple[object, ...], BidsName]
    confounds: Mapping[tuple[object, ...], BidsName]
    main_confounds: Mapping[tuple[object, ...], BidsName]
    clocks: Clocks


def find_runs(derivatives: Sequence[Derivative], bids_dir: Path, query: RunQuery) -> tuple[Run, ...]:
    """Return every run that matches, in order of participant, place, session, task and run.

    A run whose file is not there (a dangling git-annex link) is returned with ``bold=None`` and no volumes, and with
    the file in `missing`, so that it can be listed.

    Parameters
    ----------
    derivatives
        The main one first: confounds are looked for beside the series, then there.
    bids_dir
        Root of the raw data set.
    query

    Raises
    ------
    UsageError
        When nothing matches, or two derivatives have the same run; says what was asked for and what there is.
    InputDataError
        When files of a run do not fit together, or the runs of a participant are on different grids.
    """
    found = [series for derivative in derivatives for series in find_series(derivative, query)]
    if not found:
        raise UsageError(_nothing_matches(derivatives, query))
    _check_known(derivatives, query, found)
    check_overlap(found)
    folders = FolderIndex()
    main = _confounds(derivatives[0], query)
    files = {}
    for derivative in derivatives:
        masks = select(derivative, query, "mask", suffix="mask", extension=[".nii.gz", ".nii"], desc="brain")
        files[derivative.name] = _Files(
            {_mask_key(name): name for name in reversed(masks)},
            main if derivative is derivatives[0] else {**main, **_confounds(derivative, query)},
            main,
            Clocks(bids_dir, derivative.root, folders, main_dir=derivatives[0].root),
        )
    headers = _headers(found)
    _check_grids(found, headers)
    runs = [
        _make_run(series, header, files[series.derivative.name]) for series, header in zip(found, headers, strict=True)
    ]
    return tuple(sorted(runs, key=lambda r: (r.participant, r.place, r.session or "", r.task, r.run or 0)))


def _confounds(derivative: Derivative, query: RunQuery) -> dict[tuple[object, ...], BidsName]:
    names = select(
        derivative, query, "confounds", suffix=["timeseries", "regressors"], extension=".tsv", desc="confounds"
    )
    return {name.run_key: name for name in reversed(names)}


def _check_known(derivatives: Sequence[Derivative], query: RunQuery, found: Sequence[Series]) -> None:
    """Raise a UsageError that lists the labels asked for that no preprocessed BOLD file has, and those there are."""
    for space in query.spaces:
        if not any(space.fits(series.name.entities) for series in found):
            raise UsageError(_nothing_matches(derivatives, RunQuery(query.participants, (space,))))
    asked = {"ses": query.sessions, "task": query.tasks, "run": tuple(str(run) for run in query.runs)}
    for entity, labels in asked.items():
        missing = [label for label in labels if label not in _labels(found, entity)]
        if missing:
            everything = RunQuery(query.participants, query.spaces)
            there = _labels([series for one in derivatives for series in find_series(one, everything)], entity)
            raise UsageError(
                f"No preprocessed BOLD file has {entity} {', '.join(missing)}; there are {', '.join(sorted(there))}."
            )


def _labels(found: Sequence[Series], entity: str) -> set[str]:
    labels = (normalise_entities(series.name.entities).get(entity) for series in found)
    return {label for label in labels if label is not None}


def _nothing_matches(derivatives: Sequence[Derivative], query: RunQuery) -> str:
    everything = RunQuery(query.participants, ())
    names = [name for derivative in derivatives for name in select_series(derivative, everything)]
    asked = {
        "space": [space.words for space in query.spaces],
        "participant": query.participants,
        "session": query.sessions,
        "task": query.tasks,
        "run": query.runs,
    }
    words = "; ".join(f"{key} {', '.join(map(str, value))}" for key, value in asked.items() if value)
    there = {"tasks": "task", "sessions": "ses"}
    found = [
        f"{key} {', '.join(sorted({n.entities[e] for n in names if e in n.entities})) or 'none'}"
        for key, e in there.items()
    ]
    roots = ", ".join(str(derivative.root) for derivative in derivatives)
    return f"No preprocessed BOLD file matches {words}; {roots} has {'; '.join([spaces_by_form(names), *found])}."


def _headers(found: Sequence[Series]) -> list[SeriesHeader]:
    """Read the size of every series that is here."""
    stores: dict[Path, dict[str, SeriesHeader]] = {}
    headers = []
    for series in found:
        path = series.name.path
        if _missing(series) is not None:
            headers.append(EMPTY)
        elif series.dataset is not None:
            if path not in stores:
                stores[path] = hdf5_headers(path)
            headers.append(stores[path][series.dataset])
        else:
            headers.append(read_header(series.form, path, series.right))
    return headers


def _missing(series: Series) -> Path | None:
    """Return the first file of a series that is a link to content that was not fetched."""
    paths = (series.name.path, series.right)
    return next((path for path in paths if path is not None and not path.exists()), None)


def _check_grids(found: Sequence[Series], headers: Sequence[SeriesHeader]) -> None:
    """Refuse a participant whose series in one space have different columns."""
    first: dict[tuple[object, ...], tuple[Series, SeriesHeader]] = {}
    for series, header in zip(found, headers, strict=True):
        if header is EMPTY:
            continue
        entities = series.name.entities
        place = (entities["sub"], space_words({**entities, "res": plain_label(entities.get("res")) or ""}))
        other, known = first.setdefault(place, (series, header))
        if known.places != header.places:
            raise InputDataError(
                f"{other.name.path} has {known.words} but {series.name.path} has {header.words}"
                f"{' in another order' if known.words == header.words else ''}; the runs of a participant must be on "
                "one grid: preprocess them together, or choose some with --bids-filter-file."
            )


def _make_run(series: Series, header: SeriesHeader, files: _Files) -> Run:
    name, entities = series.name, series.name.entities
    missing = _missing(series)
    mask = _mask_of(series, files.masks)
    if series.form == "volume" and missing is None and mask is not None and mask.path.exists():
        _check_mask(name.path, header, mask.path)
    confounds = files.confounds.get(name.run_key)
    tables = [table.path for table in (files.main_confounds.get(name.run_key), confounds) if table is not None]
    flagged = [_non_steady_state(series, header, table) for table in dict.fromkeys(tables)]
    clock = files.clocks.clock(name, header.repetition_time, tolerant=missing is not None)
    events = find_events(files.clocks.bids_dir, name, files.clocks.folders)
    events_here = events is None or events.exists()
    run = plain_label(entities.get("run"))
    return Run(
        participant=entities["sub"],
        session=entities.get("ses"),
        task=entities.get("task", ""),
        run=int(run) if run and run.isdigit() else None,
        space=entities.get("space", ""),
        bold=name.path if missing is None else None,
        mask=mask.path if mask else None,
        confounds=confounds.path if confounds else None,
        repetition_time=clock.repetition_time,
        start_time=clock.start_time,
        n_volumes=header.n_volumes,
        events=events if events_here else None,
        resolution=plain_label(entities.get("res")),
        non_steady_state=max(flagged, default=0),
        form=series.form,
        bold_right=series.right if missing is None else None,
        density=entities.get("den"),
        segmentation=segmentation_of(entities),
        dataset=series.dataset,
        derivative=series.derivative.name,
        denoised=series.derivative.denoised or entities.get("desc") == "denoised" or name.extension == ".h5",
        missing=missing if events_here else missing or events,
    )


def _non_steady_state(series: Series, header: SeriesHeader, confounds: Path) -> int:
    """Number of volumes up to the last that fMRIPrep flags as taken before the magnetisation was steady.

    A series that has other volumes than its confounds have rows is refused, since each volume is dated by its number.
    """
    if not confounds.is_file():
        return 0
    with confounds.open(encoding="utf-8", errors="replace", newline="") as stream:
        rows = csv.reader(stream, delimiter="\t")
        columns = [k for k, name in enumerate(next(rows, [])) if name.startswith("non_steady_state_outlier")]
        marks = [any(row[k : k + 1] in (["1"], ["1.0"]) for k in columns) for row in rows if row]
    if header is not EMPTY and len(marks) != header.n_volumes:
        which = f", {series.dataset}," if series.dataset else ""
        raise InputDataError(
            f"{series.name.path}{which} has {header.n_volumes} volumes but the confounds {confounds} of its run have "
            f"{len(marks)} rows; a series must have all volumes of its run, in order: preprocess it again without "
            "removing any (of XCP-D give the interpolated output, made without removal of dummy scans)."
        )
    return max((number for number, mark in enumerate(marks, 1) if mark), default=0)


def _mask_key(name: BidsName) -> tuple[object, ...]:
    """Equal for a mask and the series that it is of."""
    return name.run_key, name.entities.get("space"), plain_label(name.entities.get("res"))


def _mask_of(series: Series, masks: Mapping[tuple[object, ...], BidsName]) -> BidsName | None:
    """Return the brain mask of a run: of volumes on their grid, of the voxels of grayordinates in their space."""
    if series.form == "volume":
        return masks.get(_mask_key(series.name))
    if series.form != "grayordinates":
        return None
    run = series.name.run_key
    # At 2 mm where there is one, since those are the voxels of most CIFTI files; any other is read by its affine.
    of_run = [key for key in masks if key[:2] == (run, VOXELS_OF_GRAYORDINATES)]
    found = min(of_run, key=lambda key: (key[2] != "2", str(key[2])), default=None)
    return None if found is None else masks[found]


def _check_mask(bold: Path, header: SeriesHeader, mask: Path) -> None:
    shape = image_shape(mask)
    if shape[:3] != header.places:
        raise InputDataError(
            f"The mask {mask} has the shape {shape} but its BOLD {bold.name} has "
            f"{header.places}; both must be on one grid: preprocess the run again or remove the mask."
        )
