"""Series of every form as tools write them, tiny."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from movie10_tree import cifti

from .tree import TR, Study, write_json


def add_surfaces(
    study: Study, task: str, space: str, *, n_volumes: tuple[int, int] = (5, 5), n_vertices: int = 7
) -> Path:
    """Write both hemispheres as fMRIPrep names them, with one sidecar; return the left one."""
    folder = study.func(study.prep, "01", None)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {side: folder / f"sub-01_task-{task}_hemi-{side}_space-{space}_bold.func.gii" for side in "LR"}
    for path, number in zip(paths.values(), n_volumes, strict=True):
        arrays = [
            nib.gifti.GiftiDataArray(np.zeros(n_vertices, np.float32), intent="NIFTI_INTENT_TIME_SERIES")
            for _ in range(number)
        ]
        nib.gifti.GiftiImage(darrays=arrays).to_filename(path)
    write_json(folder / f"sub-01_task-{task}_space-{space}_bold.json", {"RepetitionTime": TR})
    return paths["L"]


def add_dense(study: Study, task: str, *, n_volumes: int = 5, n_vertices: int = 6, density: str = "91k") -> Path:
    """Write a dense CIFTI series."""
    path = study.func(study.prep, "01", None) / f"sub-01_task-{task}_space-fsLR_den-{density}_bold.dtseries.nii"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cifti(n_volumes, n_vertices))
    return path


def add_table(
    root: Path, stem: str, names: Sequence[str], n_volumes: int = 5, *, sidecar: Mapping[str, float] | None = None
) -> Path:
    """Write a table of parcels with its sidecar."""
    folder = root / "sub-01" / "func"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"sub-01_{stem}_timeseries.tsv"
    rows = ["\t".join(names)] + ["\t".join(["0.5"] * len(names))] * n_volumes
    path.write_text("\n".join(rows) + "\n")
    if sidecar is not None:
        write_json(path.with_suffix(".json"), sidecar)
    return path


def add_parcels_of_cifti(path: Path, n_volumes: int = 5, names: Sequence[str] = ("a", "b")) -> Path:
    """Write a ``.ptseries.nii``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    axis = nib.cifti2.ParcelsAxis(
        list(names),
        voxels=[np.zeros((0, 3), int)] * len(names),
        vertices=[{"CIFTI_STRUCTURE_CORTEX_LEFT": np.array([k])} for k in range(len(names))],
        nvertices={"CIFTI_STRUCTURE_CORTEX_LEFT": 10},
    )
    image = nib.Cifti2Image(
        np.zeros((n_volumes, len(names)), np.float32), header=(nib.cifti2.SeriesAxis(0, TR, n_volumes), axis)
    )
    image.update_headers()
    image.to_filename(path)
    return path


def add_store(
    root: Path, shapes: Mapping[str, tuple[int, ...]], sub: str = "01", *, task: str = "movie10", desc: str = ""
) -> Path:
    """Write an HDF5 file as Algonauts 2025 names it, one array a key; the folder has no description."""
    name = f"sub-{sub}_task-{task}_space-MNI152NLin2009cAsym_atlas-Schaefer18_parcel-1000Par7Net{desc}_bold.h5"
    path = root / f"sub-{sub}" / "func" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as content:
        for key, shape in shapes.items():
            content[key] = np.zeros(shape, np.float32)
    return path
