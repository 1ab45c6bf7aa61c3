"""Finding and reading what the participant level wrote."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.derivatives import MapName, read_map, sidecar_path
from bids_mllm.io.files import read_json, read_tsv
from bids_mllm.records import BoolArray, FloatArray

_BEST = re.compile(
    r"sub-(?P<sub>[^_]+)_task-(?P<task>[^_]+)_space-(?P<space>[^_]+)(?:_res-(?P<res>[^_]+))?"
    r"_model-(?P<model>[^_]+)_stat-r_desc-best_statmap\.nii\.gz$"
)


@dataclass(frozen=True)
class ModelResult:
    """The maps of one model in one participant."""

    name: MapName
    model: str
    output_dir: Path

    def path(self, stat: str, desc: str | None, *, extension: str = ".nii.gz", atlas: str | None = None) -> Path:
        """Return the path of one of its outputs."""
        return self.name.path(self.output_dir, model=self.model, stat=stat, desc=desc, extension=extension, atlas=atlas)

    def heading(self, others: Sequence["ModelResult"]) -> str:
        """Return the model's name, with films and space where these differ among `others`."""
        places = {(other.name.task, other.name.space, other.name.resolution) for other in others}
        if len(places) < 2:
            return self.model
        return f"{self.model} (films {self.name.task}, space {self.name.space})"

    def sidecar(self) -> dict[str, Any]:
        """Return the sidecar of its best map."""
        content: dict[str, Any] = read_json(sidecar_path(self.path("r", "best")))
        return content

    def map(self, stat: str, desc: str | None) -> tuple[FloatArray, Any]:
        """Return (x, y, z, n_layers) or (x, y, z) values and the affine of one map."""
        from nibabel.filebasedimages import ImageFileError

        path = self.path(stat, desc)
        try:
            return read_map(path)
        except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
            raise InputDataError(
                f"{path} cannot be read ({error}); run the participant level of sub-{self.name.participant} again."
            ) from error


def find_results(output_dir: Path, participants: Sequence[str] = ()) -> tuple[ModelResult, ...]:
    """Return every model that the participant level finished, ordered by participant, task, space, model."""
    found = []
    for path in sorted(output_dir.glob("sub-*/func/*_stat-r_desc-best_statmap.nii.gz")):
        match = _BEST.match(path.name)
        if match and (not participants or match["sub"] in participants):
            name = MapName(match["sub"], match["task"], match["space"], match["res"])
            found.append(ModelResult(name, match["model"], output_dir))
    return tuple(found)


def roi_tables(result: ModelResult) -> dict[str, list[dict[str, str]]]:
    """Return the ROI tables of one model by atlas, as rows of text."""
    pattern = result.path("scores", None, extension=".tsv", atlas="*").name
    tables = {}
    for path in sorted(result.path("scores", None, extension=".tsv").parent.glob(pattern)):
        atlas = re.search(r"_atlas-([^_]+)_", path.name)
        if atlas:
            tables[atlas.group(1)] = read_tsv(path)
    return tables


def stack_maps(
    results: Sequence[ModelResult], stat: str, desc: str | None, *, mask: BoolArray | None = None
) -> tuple[FloatArray, BoolArray, Any]:
    """Return one map of several participants as (n_participants, [n_layers,] n_voxels) with mask and affine.

    The voxels are those of `mask`, or those where any participant has a value.

    Raises
    ------
    InputDataError
        When the maps are on different grids; names two files.
    """
    volumes, affine = [], None
    for result in results:
        volume, own = result.map(stat, desc)
        if affine is not None and (volume.shape != volumes[0].shape or not np.allclose(own, affine, atol=1e-3)):
            raise InputDataError(
                f"{result.path(stat, desc)} has the grid {volume.shape} and "
                f"{results[0].path(stat, desc)} {volumes[0].shape}, or another affine; group maps need one grid: use a "
                "template space and one resolution for all participants."
            )
        affine = own
        volumes.append(volume)
    stacked = np.stack(volumes)
    if mask is None:
        finite = np.isfinite(stacked).any(axis=0)
        mask = np.asarray(finite.any(axis=-1) if finite.ndim == 4 else finite)
    return np.stack([volume[mask].T for volume in stacked]), mask, affine
