"""Finding and reading what the participant level wrote."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.derivatives import MapName, sidecar_path
from bids_mllm.io.files import read_json, read_tsv
from bids_mllm.io.grids import Grid, same_grid
from bids_mllm.io.maps import EXTENSIONS, load_map
from bids_mllm.records import BoolArray, FloatArray

_BEST = re.compile(
    r"sub-(?P<sub>[^_]+)_task-(?P<task>[^_]+)(?:_hemi-L)?_space-(?P<space>[^_]+)(?:_seg-(?P<seg>[^_]+))?"
    r"(?:_res-(?P<res>[^_]+))?(?:_den-(?P<den>[^_]+))?_model-(?P<model>[^_]+)_stat-r_desc-best_statmap"
    rf"(?P<extension>{'|'.join(map(re.escape, EXTENSIONS))})$"
)


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
        from xml.parsers.expat import ExpatError

        from nibabel.filebasedimages import ImageFileError

        path = self.path(stat, desc)
        try:
            return load_map(path)
        except (OSError, EOFError, ValueError, KeyError, IndexError, zlib.error, ImageFileError, ExpatError) as error:
            raise InputDataError(
                f"{path} cannot be read ({error}); run the participant level of sub-{self.name.participant} again."
            ) from error


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


def stack_maps(
    results: Sequence[ModelResult], stat: str, desc: str | None, *, kept: BoolArray | None = None
) -> tuple[FloatArray, BoolArray, Grid]:
    """Return one map of several participants at some places, which these are, and the grid.

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
    loaded = [result.map(stat, desc) for result in results]
    first, grid = loaded[0]
    for result, (values, own) in zip(results, loaded, strict=True):
        if not same_grid(own, grid) or values.shape != first.shape:
            raise InputDataError(
                f"{result.path(stat, desc)} has {own.words} and {results[0].path(stat, desc)} has {grid.words}; group "
                "maps need one grid: use a template space, and one resolution or density for all participants."
            )
    stacked = np.stack([values for values, _ in loaded])
    if kept is None:
        kept = np.asarray(np.isfinite(stacked).any(axis=tuple(range(stacked.ndim - 1))))
    return stacked[..., kept], kept, grid
