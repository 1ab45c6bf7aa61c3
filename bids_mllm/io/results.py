"""Finding and reading what the participant level wrote."""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.derivatives import MapName, outputs, sidecar_path
from bids_mllm.io.files import iter_tsv, read_json
from bids_mllm.io.grids import Grid, same_grid
from bids_mllm.io.maps import EXTENSIONS, load_map
from bids_mllm.records import BoolArray, FloatArray

_BEST = re.compile(
    r"sub-(?P<sub>[^_]+)_task-(?P<task>[^_]+)(?:_hemi-L)?_space-(?P<space>[^_]+)(?:_seg-(?P<seg>[^_]+))?"
    r"(?:_res-(?P<res>[^_]+))?(?:_den-(?P<den>[^_]+))?_model-(?P<model>[^_]+)_stat-r_desc-best_statmap"
    rf"(?P<extension>{'|'.join(map(re.escape, EXTENSIONS))})$"
)
_STAT = re.compile(r"_stat-(?P<stat>[^_]+)(?:_desc-(?P<desc>[^_]+))?_statmap")
#: What the sidecar of every best map says since the first version.
NEEDED = ("Conditions", "Layers", "Model", "NoiseCeiling", "CrossValidation", "Sloppy", "AppVersion")

#: Columns that every table of a kind has had since the first version.
TABLE_COLUMNS = {
    "scores": ("participant", "model", "condition", "layer", "roi", "kind", "coverage", "r"),
    "choicecounts": ("participant", "model", "roi", "kind", "choice", "value", "count", "share"),
    "layers": ("participant", "model", "condition", "roi", "depth"),
    "partition": (
        "participant", "model", "condition_a", "condition_b", "roi", "kind", "measure", "unique_a", "unique_b",
        "shared", "joint",
    ),
    "modelcomparison": ("participant", "model_a", "model_b", "roi", "coverage", "mean_difference"),
}  # fmt: skip
#: Columns of these tables whose cells are numbers or n/a; others are text.
NUMBER_COLUMNS = frozenset(
    ("alpha_edge_share", "count", "coverage", "cv_r2", "depth", "depth_mass", "depth_voxels", "joint",
     "mean_difference", "n_a_higher", "n_b_higher", "n_ceiling", "n_voxels", "noise_ceiling", "p", "q", "r", "r2",
     "r_high", "r_low", "r_normalized", "share", "share_a_higher", "shared", "significant_share", "smallest_p",
     "unique_a", "unique_b")
)  # fmt: skip
#: Columns whose cells are numbers in every row; others may be n/a.
ALWAYS_KNOWN = ("coverage", "count")

#: Bytes read at a time where a file is only looked through.
CHUNK = 2**20
T = TypeVar("T")


@dataclass(frozen=True)
class ModelResult:
    """The maps of one model in one participant."""

    name: MapName
    model: str
    output_dir: Path

    def path(self, stat: str, desc: str | None, *, extension: str | None = None, atlas: str | None = None) -> Path:
        """Return the path of one of its outputs, of a map unless another extension is given."""
        return self.name.path(self.output_dir, model=self.model, stat=stat, desc=desc, extension=extension, atlas=atlas)

    def heading(self, others: Sequence["ModelResult"]) -> str:
        """Return the model's name, with films and space where these differ among `others`."""
        places = {(other.name.task, other.name.place) for other in others}
        if len(places) < 2:
            return self.model
        return f"{self.model} (films {self.name.task}, space {self.name.place})"

    def sidecar(self) -> dict[str, Any]:
        """Return the sidecar of its best map."""
        content: dict[str, Any] = read_json(sidecar_path(self.path("r", "best")))
        return content

    def map(self, stat: str, desc: str | None) -> tuple[FloatArray, Grid]:
        """Return the values (n_places,) or (n_maps, n_places) and the grid of one map."""
        return self._read(load_map, stat, desc)

    def check_map(self, stat: str, desc: str | None) -> int:
        """Read one map to its end, with the check sum that compressed ones have there; return how many places it has.

        A damaged one is an InputDataError.
        """
        return self._read(_places_of_volume if self.name.extension == ".nii.gz" else _places, stat, desc)

    def _read(self, read: Callable[[Path], T], stat: str, desc: str | None) -> T:
        path = self.path(stat, desc)
        try:
            return read(path)
        except _reading_errors() as error:
            raise InputDataError(
                f"{path} cannot be read ({error}); run the participant level of sub-{self.name.participant} again."
            ) from error


#: A map of a participant: whose, `stat` and `desc`.
MapOfResult = tuple[ModelResult, str, str | None]


def _reading_errors() -> tuple[type[Exception], ...]:
    """What reading a damaged map raises."""
    from xml.parsers.expat import ExpatError

    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    general = (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, zlib.error, struct.error)
    return (*general, ImageFileError, ExpatError, HeaderDataError, WrapStructError)


def _places_of_volume(path: Path) -> int:
    """Read a compressed volume to its end without keeping it; raises what reading raises when it is damaged.

    The check sum stands after the voxels, so that who reads only these does not see it.
    """
    import nibabel as nib

    voxels = nib.load(path).dataobj
    size = 0
    with gzip.open(path) as stream:
        while block := stream.read(CHUNK):
            size += len(block)
    if size < voxels.offset + voxels.dtype.itemsize * math.prod(voxels.shape):
        raise EOFError("it has fewer voxels than its header says")
    return math.prod(voxels.shape[:3])


def _places(path: Path) -> int:
    return load_map(path)[1].n_places


def check_readable(result: ModelResult) -> None:
    """Read what the group level uses of a result: sidecars, tables, and maps but those that it has no part in.

    Raises
    ------
    BidsMllmError
        When a file is missing, cannot be read or has other places than the rest, the sidecar of the best map or of its
        runs lacks a key, or a table a column or a number; names the file.
    """
    content = result.sidecar()
    missing = [key for key in NEEDED if not isinstance(content, dict) or key not in content]
    again = f"run the participant level of sub-{result.name.participant} again"
    if missing:
        raise InputDataError(f"{sidecar_path(result.path('r', 'best'))} lacks {missing[0]}; {again}.")
    first: tuple[Path, int] | None = None
    for one, stat, desc in _used_maps(result, content["Conditions"]):
        path, n_places = one.path(stat, desc), one.check_map(stat, desc)
        described = read_json(sidecar_path(path))
        if stat == "rbyrun" and not (isinstance(described, dict) and "Runs" in described):
            raise InputDataError(f"{sidecar_path(path)} lacks Runs; {again}.")
        first = first or (path, n_places)
        if n_places != first[1]:
            raise InputDataError(
                f"{path} has {n_places} {result.name.units} and {first[0]} has {first[1]}, but maps of one participant "
                f"have the same; {again}."
            )
    for stat in TABLE_COLUMNS:
        owner = replace(result, model="") if stat == "modelcomparison" else result
        for table in (owner.path(stat, None, extension=".tsv"), *table_paths(owner, stat).values()):
            if table.is_file():
                _check_table(table, stat, again)


def _check_table(path: Path, stat: str, again: str) -> None:
    """Read a table to its end, row by row; raises where it is cut short, or lacks a column or a number."""
    try:
        with path.open("rb") as stream:
            columns = stream.readline().decode(errors="replace").removesuffix("\n").split("\t")
            stream.seek(max(path.stat().st_size - 1, 0))
            whole = stream.read() == b"\n"
    except OSError as error:
        raise InputDataError(f"{path} cannot be read ({error}); {again}.") from error
    missing = [column for column in TABLE_COLUMNS[stat] if column not in columns]
    if missing:
        raise InputDataError(f"{path} lacks the column {missing[0]}; {again}.")
    numeric = [column for column in columns if column in NUMBER_COLUMNS]
    for line, row in enumerate(iter_tsv(path), 2):
        for column in numeric:
            if not _is_number(row[column], column):
                raise InputDataError(
                    f"{path} has {row[column]!r} in line {line} of the column {column}, where a number is expected; "
                    f"{again}."
                )
    if not whole:
        raise InputDataError(f"{path} is cut short, since its last line has no end; {again}.")


def _is_number(text: str, column: str) -> bool:
    if text == "n/a":
        return column not in ALWAYS_KNOWN
    try:
        float(text)
    except ValueError:
        return False
    return True


def _used_maps(result: ModelResult, conditions: Sequence[str]) -> list[MapOfResult]:
    """Return the maps of which the group level has a use: those it needs, and all others but of one condition."""
    shared = replace(result, model="")
    needed = [("r", "best"), ("cvr2", "best"), ("bestcondition", None), ("bestlayer", None)]
    needed += [(stat, condition) for condition in conditions for stat in ("r", "cvr2")]
    found: dict[MapOfResult, None] = dict.fromkeys((result, stat, desc) for stat, desc in needed)
    for one, pattern in ((result, result.path("*", None)), (shared, shared.path("noiseceiling", None))):
        for path in sorted(pattern.parent.glob(pattern.name)):
            match = _STAT.search(path.name)
            stat, desc = (match["stat"], match["desc"]) if match else ("", None)
            if stat in outputs()["maps"] and (desc in (None, "best") or desc.startswith("vs")):
                found[one, stat, desc] = None
    return list(found)


def find_results(output_dir: Path, participants: Sequence[str] = ()) -> tuple[ModelResult, ...]:
    """Return every model that the participant level finished, ordered by participant, task, space, model."""
    found = []
    for path in sorted(output_dir.glob("sub-*/func/*_stat-r_desc-best_statmap.*")):
        match = _BEST.match(path.name)
        if match and (not participants or match["sub"] in participants):
            name = MapName(*match.group("sub", "task", "space", "res", "den", "seg", "extension"))
            found.append(ModelResult(name, match["model"], output_dir))
    return tuple(found)


def table_paths(result: ModelResult, stat: str) -> dict[str, Path]:
    """Return the paths of the tables of one model and kind by atlas."""
    pattern = result.path(stat, None, extension=".tsv", atlas="*")
    found = ((re.search(r"_atlas-([^_]+)_", path.name), path) for path in sorted(pattern.parent.glob(pattern.name)))
    named = ((atlas.group(1), path) for atlas, path in found if atlas)
    # The star also stands for a resolution after the atlas, of which there are results apart.
    return {name: path for name, path in named if path == result.path(stat, None, extension=".tsv", atlas=name)}


def stack_maps(
    results: Sequence[ModelResult], stat: str, desc: str | None, *, kept: BoolArray | None = None
) -> tuple[FloatArray, BoolArray, Grid]:
    """Return one map of several participants at some places, as `stack_any_maps` does."""
    return stack_any_maps([(result, stat, desc) for result in results], kept=kept)


def stack_any_maps(maps: Sequence[MapOfResult], *, kept: BoolArray | None = None) -> tuple[FloatArray, BoolArray, Grid]:
    """Return maps of several participants at some places, which these are, and the grid.

    The places are those of `kept`, or those where any participant has a value.

    Returns
    -------
    values : (n_participants, n_kept) or (n_participants, n_maps, n_kept) float
    kept : (n_places,) bool
    grid

    Raises
    ------
    InputDataError
        When the maps are on different grids; names two files.
    """
    loaded = [result.map(stat, desc) for result, stat, desc in maps]
    paths = [result.path(stat, desc) for result, stat, desc in maps]
    first, grid = loaded[0]
    for path, (values, own) in zip(paths, loaded, strict=True):
        if not same_grid(own, grid) or values.shape != first.shape:
            raise InputDataError(
                f"{path} has {own.words} and {paths[0]} has {grid.words}; group "
                "maps need one grid: use a template space, and one resolution or density for all participants."
            )
    stacked = np.stack([values for values, _ in loaded])
    if kept is None:
        kept = np.asarray(np.isfinite(stacked).any(axis=tuple(range(stacked.ndim - 1))))
    return stacked[..., kept], kept, grid
