"""Names, maps and sidecars of the output data set."""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.exceptions import StoreError
from bids_mllm.io.files import read_tsv, write_json, write_text, write_tsv
from bids_mllm.io.grids import Grid
from bids_mllm.io.locks import locked
from bids_mllm.io.maps import LEFT, RIGHT, save_map
from bids_mllm.records import BoolArray, FloatArray

logger = logging.getLogger("bids_mllm")

BIDS_VERSION = "1.11.1"
CODE_URL = "https://github.com/bids-mllm/bids-mllm"
# Without trailing slashes: a line `figures/` would silence the content but not the folder.
BIDSIGNORE = ("*.html", "**/figures", "**/log", "*_statmap.*", "*_features.*", "*_split.json", "group")
MAX_TASK_LABEL = 40
#: Seconds to wait for another call that writes the files of the whole data set, which takes it less than one.
LOCK_SECONDS = 120.0


def outputs() -> dict[str, Any]:
    """Return the declaration of every map and table that the app writes."""
    content: dict[str, Any] = json.loads((files("bids_mllm") / "data" / "outputs.json").read_text(encoding="utf-8"))
    return content


def pybids_config() -> Path:
    """Return the PyBIDS configuration that knows the entities of this app's outputs (model, stat, ...)."""
    return Path(str(files("bids_mllm") / "data" / "bids_config.json"))


def film_label(tasks: Sequence[str]) -> str:
    """Name a set of tasks by their films: ``life01 life02`` -> ``life``; several joined by ``+``."""
    films = sorted({re.sub(r"[0-9]+$", "", task) or task for task in tasks})
    label = "+".join(films)
    return label if len(label) <= MAX_TASK_LABEL else f"{len(films)}films"


@dataclass(frozen=True)
class MapName:
    """Entities of one output file of a participant, or of the group when `participant` is None.

    `extension` is that of maps; those of surfaces are named by their left hemisphere.
    """

    participant: str | None
    task: str
    space: str
    resolution: str | None = None
    density: str | None = None
    segmentation: str | None = None
    extension: str = ".nii.gz"

    @property
    def place(self) -> str:
        """What the maps are in, as in file names."""
        entities = {"seg": self.segmentation, "res": self.resolution, "den": self.density}
        return "_".join([self.space, *(f"{key}-{label}" for key, label in entities.items() if label)])

    @property
    def units(self) -> str:
        """What the places are called: voxels, vertices, grayordinates or parcels."""
        names = {".nii.gz": "voxels", ".func.gii": "vertices", ".dscalar.nii": "grayordinates"}
        return names.get(self.extension, "parcels")

    def of_group(self) -> "MapName":
        """Return the name of the same output of the group."""
        return replace(self, participant=None)

    def path(
        self,
        output_dir: Path,
        *,
        suffix: str = "statmap",
        extension: str | None = None,
        model: str | None = None,
        stat: str | None = None,
        desc: str | None = None,
        atlas: str | None = None,
    ) -> Path:
        """Return the path of an output; None leaves the entity out, and means a map for the extension."""
        extension = self.extension if extension is None else extension
        entities = {
            "sub": self.participant,
            "task": self.task,
            "hemi": "L" if extension == ".func.gii" else None,
            "space": self.space,
            "atlas": atlas,
            "seg": self.segmentation,
            "res": self.resolution,
            "den": self.density,
            "model": model,
            "stat": stat,
            "desc": desc,
        }
        stem = "_".join(f"{key}-{value}" for key, value in entities.items() if value)
        folder = output_dir / ("group" if self.participant is None else f"sub-{self.participant}") / "func"
        return folder / f"{stem}_{suffix}{extension}"


def write_map(path: Path, values: FloatArray, kept: BoolArray, grid: Grid, sidecar: Mapping[str, Any]) -> None:
    """Write a map in the format of its grid with its sidecar.

    Parameters
    ----------
    path
    values : (n_kept,) or (n_maps, n_kept) float
    kept : (n_places,) bool
        Places that have a value; the others become NaN.
    grid
    sidecar
    """
    values = np.asarray(values, dtype=np.float32)
    full = np.full((*values.shape[:-1], grid.n_places), np.nan, dtype=np.float32)
    full[..., kept] = values
    write_json(sidecar_path(path), dict(sidecar))
    save_map(path, full, grid)


def write_mask(path: Path, mask: BoolArray, grid: Grid, sidecar: Mapping[str, Any]) -> None:
    """Write a mask with its sidecar."""
    save_map(path, mask, grid)
    write_json(sidecar_path(path), dict(sidecar))


def sidecar_path(path: Path) -> Path:
    """Return the JSON beside an output; both hemispheres share one."""
    stem = path.name.partition(".")[0]
    if path.name.endswith(".func.gii"):
        stem = stem.replace(LEFT, "_").replace(RIGHT, "_")
    return path.with_name(f"{stem}.json")


def write_table(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], sidecar: Mapping[str, Any]
) -> None:
    """Write a TSV and the JSON that describes its columns."""
    write_tsv(path, rows, list(columns))
    # A key that is also the name of an entity of the file would stop PyBIDS, which takes it for that entity.
    described = {name: {"Description": text} for name, text in columns.items() if name != "model"}
    write_json(sidecar_path(path), {**sidecar, **described})


def write_dataset_files(
    output_dir: Path,
    *,
    version: str,
    links: Mapping[str, str],
    sources: Sequence[Mapping[str, str]],
    licence: str | None,
    descriptions: Mapping[str, str],
    container: Mapping[str, str] | None = None,
) -> None:
    """Write dataset_description.json, .bidsignore and descriptions.tsv.

    Parallel jobs write these at once, so a lock is held; a description that an older version wrote is noticed.
    `container` is BIDS's Container of what ran: Type, Tag.
    """
    generator = {"Name": "bids-mllm", "Version": version, "CodeURL": CODE_URL}
    with locked_dataset(output_dir):
        path = output_dir / "dataset_description.json"
        _warn_of_other_version(path, version)
        content = {
            "Name": "bids-mllm: encoding models of films from multimodal language models",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [generator | ({"Container": dict(container)} if container else {})],
            "SourceDatasets": [dict(source) for source in sources],
            "DatasetLinks": dict(links),
        }
        write_json(path, content | ({"License": licence} if licence else {}))
        write_text(output_dir / ".bidsignore", "\n".join(BIDSIGNORE) + "\n")
        _merge_descriptions(output_dir / "descriptions.tsv", descriptions)


@contextmanager
def locked_dataset(output_dir: Path) -> Iterator[None]:
    """Hold the lock of the files that belong to the whole data set, which parallel jobs write at once."""
    path = output_dir / "logs" / ".dataset.lock"
    busy = StoreError(
        f"The output folder {output_dir} has been locked by another call for {LOCK_SECONDS:.0f} s; see whether one "
        "hangs that writes there, end it, and run again."
    )
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(path, wait=LOCK_SECONDS, busy=busy))
        except OSError as error:
            raise StoreError(
                f"The output folder {output_dir} cannot be written ({error}); check its permissions or take another."
            ) from error
        yield


def _warn_of_other_version(path: Path, version: str) -> None:
    if not path.is_file():
        return
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))["GeneratedBy"][0]
    except (ValueError, KeyError, IndexError, TypeError):
        return
    if entry.get("Version") != version:
        logger.warning(
            "%s was written by %s %s, this is %s: results of two versions are side by side.",
            path.parent,
            entry.get("Name"),
            entry.get("Version"),
            version,
        )


def _merge_descriptions(path: Path, descriptions: Mapping[str, str]) -> None:
    known = (
        {row["desc_id"].removeprefix("desc-"): row["description"] for row in read_tsv(path)} if path.is_file() else {}
    )
    merged = known | dict(descriptions)
    write_tsv(path, [{"desc_id": f"desc-{key}", "description": merged[key]} for key in sorted(merged)])
