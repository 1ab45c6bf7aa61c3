"""Finding and reading what the participant level wrote."""

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.derivatives import MapName, outputs, sidecar_path
from bids_mllm.io.files import read_json, read_tsv
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
        path = self.path(stat, desc)
        try:
            return load_map(path)
        except _reading_errors() as error:
            raise InputDataError(
                f"{path} cannot be read ({error}); run the participant level of sub-{self.name.participant} again."
            ) from error


def _reading_errors() -> tuple[type[Exception], ...]:
    """What reading a damaged map raises."""
    from xml.parsers.expat import ExpatError

    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    general = (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, zlib.error, struct.error)
    return (*general, ImageFileError, ExpatError, HeaderDataError, WrapStructError)


def check_readable(result: ModelResult) -> None:
    """Read what the group level uses of a result: sidecars, tables, and maps but those that it has no part in.

    Raises
    ------
    BidsMllmError
        When a file cannot be read, or the sidecar of the best map lacks a key; names the file.
    """
    path = sidecar_path(result.path("r", "best"))
    content = result.sidecar()
    missing = [key for key in NEEDED if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputDataError(
            f"{path} lacks {missing[0]}; run the participant level of sub-{result.name.participant} again."
        )
    shared = replace(result, model="")
    for one, pattern in ((result, result.path("*", None)), (shared, shared.path("noiseceiling", None))):
        for file in sorted(pattern.parent.glob(pattern.name)):
            match = _STAT.search(file.name)
            if match and match["stat"] in outputs()["maps"] and _is_used(match["stat"], match["desc"]):
                one.map(match["stat"], match["desc"])
                read_json(sidecar_path(file))
    roi_tables(result)
    for table in (
        result.path("partition", None, extension=".tsv"),
        shared.path("modelcomparison", None, extension=".tsv"),
    ):
        if table.is_file():
            read_tsv(table)


def _is_used(stat: str, desc: str | None) -> bool:
    """Whether the group level has a use for a map; of those of one condition, which are large, only for two."""
    return stat in ("r", "cvr2") or desc in (None, "best") or desc.startswith("vs")


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
    return {atlas.group(1): path for atlas, path in found if atlas}


def roi_tables(result: ModelResult) -> dict[str, list[dict[str, str]]]:
    """Return the tables of scores of one model by atlas, as rows of text."""
    return {atlas: read_tsv(path) for atlas, path in table_paths(result, "scores").items()}


#: A map of a participant: whose, `stat` and `desc`.
MapOfResult = tuple[ModelResult, str, str | None]


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
