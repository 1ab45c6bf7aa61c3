"""Preprocessed series of every form in a derivative: which files, which hemispheres, which keys of HDF5 files."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_mllm.discover.headers import hdf5_headers
from bids_mllm.discover.layout import Derivative
from bids_mllm.discover.names import BidsName, parse_name
from bids_mllm.discover.spaces import (
    DESCRIPTIONS,
    EXTENSIONS_OF_SERIES,
    SpaceQuery,
    form_of,
    plain_label,
    segmentation_of,
)
from bids_mllm.exceptions import InputDataError, UsageError
from bids_mllm.records import Form

#: Entities that the keys of an HDF5 file carry, by what PyBIDS calls them; its name may hold others.
KEY_ENTITIES = {"session": "ses", "task": "task", "run": "run"}


@dataclass(frozen=True)
class RunQuery:
    """Which runs are asked for; empty tuples mean all."""

    participants: tuple[str, ...]
    spaces: tuple[SpaceQuery, ...]
    sessions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    runs: tuple[int, ...] = ()
    filters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def fits(self, entities: Mapping[str, str]) -> bool:
        """Whether the session, task and run of a file are among those asked for."""
        return (
            (not self.sessions or entities.get("ses") in self.sessions)
            and (not self.tasks or entities.get("task") in self.tasks)
            and (not self.runs or plain_label(entities.get("run")) in [str(run) for run in self.runs])
        )


@dataclass(frozen=True)
class Series:
    """One preprocessed series: its name, the right hemisphere's file, the key in an HDF5 file, and where it lies."""

    name: BidsName
    form: Form
    derivative: Derivative
    right: Path | None = None
    dataset: str | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for the same run in the same place."""
        entities = self.name.entities
        labels = (entities.get("space"), plain_label(entities.get("res")), segmentation_of(entities))
        # A table of parcels has no density where the CIFTI file of the same parcels does.
        density = None if self.form == "parcels" else entities.get("den")
        return (self.name.run_key, *labels, density)

    @property
    def rank(self) -> tuple[int, int]:
        """Lower for the file that is taken where one run has several in one place."""
        extensions = sorted(EXTENSIONS_OF_SERIES, key=(".dtseries.nii", ".ptseries.nii").__contains__, reverse=True)
        # HDF5 files may have any description, and none is better than another.
        description = None if self.name.extension == ".h5" else self.name.entities.get("desc")
        return DESCRIPTIONS.index(description), extensions.index(self.name.extension)


def select(derivative: Derivative, query: RunQuery, name: str, **entities: Any) -> list[BidsName]:
    """Query the PyBIDS index with the user's filters for `name` (bold, mask or confounds); return parsed names."""
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
    paths = derivative.layout.get(return_type="filename", invalid_filters="allow", **wanted)
    parsed = (parse_name(Path(path)) for path in sorted(paths))
    found = [name for name in parsed if name is not None]
    strangers = [name.path for name in found if not name.path.is_relative_to(derivative.root)]
    if strangers:
        raise UsageError(
            f"The PyBIDS index names {strangers[0]}, which is not below {derivative.root}; it was made of another "
            "folder: remove it or choose another --bids-database-dir."
        )
    return found


def select_series(derivative: Derivative, query: RunQuery) -> list[BidsName]:
    """Return the names of all preprocessed series that match, in any space; HDF5 files by their participant only."""
    kinds = {"suffix": ["bold", "timeseries"], "extension": [e for e in EXTENSIONS_OF_SERIES if e != ".h5"]}
    names = select(derivative, query, "bold", **kinds)
    own = {key: value for key, value in query.filters.get("bold", {}).items() if key not in KEY_ENTITIES}
    of_files = RunQuery(query.participants, (), filters={"bold": own})
    names += select(derivative, of_files, "bold", extension=".h5")
    return [name for name in names if form_of(name) is not None]


def find_series(derivative: Derivative, query: RunQuery) -> list[Series]:
    """Return the series of a derivative in the spaces asked for, one a run and place.

    Raises
    ------
    InputDataError
        When the file of a hemisphere is missing, or two files of one derivative are the same run in one place.
    """
    names = [name for name in select_series(derivative, query) if any(s.fits(name.entities) for s in query.spaces)]
    found: list[Series] = []
    sides: dict[tuple[Any, ...], dict[str, BidsName]] = defaultdict(dict)
    for name in names:
        form = form_of(name)
        if form == "surface":
            key = (name.path.parent, tuple((k, v) for k, v in name.entities.items() if k != "hemi"))
            sides[key][name.entities["hemi"]] = name
        elif name.extension == ".h5":
            found += _keys(name, derivative, query)
        elif form is not None:
            found.append(Series(name, form, derivative))
    found += [_pair(pair, derivative) for pair in sides.values()]
    return _best(found)


def _pair(pair: Mapping[str, BidsName], derivative: Derivative) -> Series:
    """Put both hemispheres of a series together."""
    if len(pair) < 2:
        (side, name), other = next(iter(pair.items())), "R" if "L" in pair else "L"
        missing = name.path.with_name(name.path.name.replace(f"hemi-{side}", f"hemi-{other}"))
        raise InputDataError(
            f"The other hemisphere of {name.path} is missing: there is no {missing}; preprocess the run again or fetch "
            "it, since both hemispheres are fitted together."
        )
    return Series(pair["L"], "surface", derivative, right=pair["R"].path)


def _keys(name: BidsName, derivative: Derivative, query: RunQuery) -> list[Series]:
    """Return one series a key of an HDF5 file, and the file itself where its content is not here."""
    if not name.path.exists():
        return [Series(name, "parcels", derivative)]
    wanted = query.filters.get("bold", {})
    found = []
    for key in hdf5_headers(name.path):
        inner = parse_name(Path(f"{key}_bold.h5"))
        if inner is None or "task" not in inner.entities:
            raise InputDataError(
                f"{name.path} has the key {key!r}, which names no run; expected keys such as ses-001_task-life01_run-1."
            )
        own = {k: v for k, v in name.entities.items() if k not in KEY_ENTITIES.values()}
        entities = own | dict(inner.entities)
        if query.fits(entities) and all(_passes(entities.get(e), wanted, k) for k, e in KEY_ENTITIES.items()):
            found.append(Series(BidsName(name.path, entities, "bold", ".h5"), "parcels", derivative, dataset=key))
    return found


def _passes(label: str | None, wanted: Mapping[str, Any], key: str) -> bool:
    """Whether a label passes one entity of a BIDS filter, as PyBIDS would have it."""
    if key not in wanted:
        return True
    value = wanted[key]
    if value is None or value == "*":
        return (label is None) == (value is None)
    values = value if isinstance(value, list) else [value]
    return plain_label(label) in [plain_label(str(one)) for one in values]


def _best(found: Sequence[Series]) -> list[Series]:
    """Keep one series a run and place: the better description, and CIFTI before other formats."""
    grouped: dict[tuple[Any, ...], list[Series]] = defaultdict(list)
    for series in found:
        grouped[series.key].append(series)
    kept = []
    for same in grouped.values():
        first, *others = sorted(same, key=lambda series: series.rank)
        if others and others[0].rank == first.rank:
            raise InputDataError(
                f"{first.name.path} and {others[0].name.path} are the same run in the same space; choose one with "
                "--bids-filter-file or move the other away."
            )
        kept.append(first)
    return kept


def check_overlap(found: Sequence[Series]) -> None:
    """Raise a `UsageError` when two derivatives have the same run in the same place."""
    seen: dict[tuple[Any, ...], Series] = {}
    for series in found:
        first = seen.setdefault(series.key, series)
        if first.derivative.name != series.derivative.name:
            raise UsageError(
                f"{first.name.path} and {series.name.path} are the same run in the same space; leave "
                f"{first.derivative.name} or {series.derivative.name} out of --derivatives, or ask for another --space."
            )
