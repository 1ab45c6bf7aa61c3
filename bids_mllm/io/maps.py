"""Maps in the format of their space: NIfTI, GIFTI of both hemispheres, CIFTI, or a table of parcels."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.io.files import atomic_path, write_tsv
from bids_mllm.io.grids import GrayordinateGrid, Grid, ParcelGrid, SurfaceGrid, VolumeGrid
from bids_mllm.records import BoolArray, FloatArray

#: Extension of maps by grid; of parcels that came in CIFTI another than of those that came as text.
EXTENSIONS = (".nii.gz", ".func.gii", ".dscalar.nii", ".pscalar.nii", ".tsv")
LEFT, RIGHT = "_hemi-L_", "_hemi-R_"
#: What GIFTI calls the hemispheres.
STRUCTURES = ("CortexLeft", "CortexRight")


def map_extension(grid: Grid) -> str:
    """Return the extension of maps on a grid."""
    if isinstance(grid, ParcelGrid):
        return ".tsv" if grid.axis is None else ".pscalar.nii"
    return {"volume": ".nii.gz", "surface": ".func.gii", "grayordinates": ".dscalar.nii"}[grid.form]


def files_of_map(path: Path) -> tuple[Path, ...]:
    """Return the files of a map: on surfaces, where `path` is the left hemisphere's, both."""
    if path.name.endswith(".func.gii"):
        return path, path.with_name(path.name.replace(LEFT, RIGHT))
    return (path,)


def save_map(path: Path, values: FloatArray | BoolArray, grid: Grid) -> None:
    """Write a map atomically.

    Parameters
    ----------
    path
        With the extension of `map_extension`; on surfaces that of the left hemisphere, with ``hemi-L`` in its name.
    values : (n_places,) or (n_maps, n_places) float or bool
        NaN where there is no value; a mask is stored as 0 and 1.
    """
    stored: Any = np.asarray(values, dtype=np.uint8 if values.dtype == bool else np.float32)
    if stored.shape[-1] != grid.n_places:
        raise ValueError(f"{stored.shape[-1]} values do not fit {grid.words}.")
    if isinstance(grid, VolumeGrid):
        _save_image(path, _volume_image(stored, grid))
    elif isinstance(grid, SurfaceGrid):
        # The left one comes last, since by it a map counts as written.
        sides = (stored[..., : grid.n_left], stored[..., grid.n_left :])
        for side, structure, own in sorted(zip(files_of_map(path), STRUCTURES, sides, strict=True), reverse=True):
            _save_image(side, _gifti_image(own, structure))
    elif isinstance(grid, ParcelGrid) and grid.axis is None:
        _save_table(path, stored, grid)
    else:
        _save_image(path, _cifti_image(stored, grid))


def _save_image(path: Path, image: Any) -> None:
    with atomic_path(path) as scratch:
        image.to_filename(scratch)


def _volume_image(values: FloatArray, grid: VolumeGrid) -> Any:
    import nibabel as nib

    shape = grid.shape if values.ndim == 1 else (*grid.shape, len(values))
    return nib.Nifti1Image(np.ascontiguousarray(values.T).reshape(shape), grid.affine)


def _gifti_image(values: FloatArray, structure: str) -> Any:
    import nibabel as nib

    kind = "NIFTI_TYPE_UINT8" if values.dtype == np.uint8 else "NIFTI_TYPE_FLOAT32"
    arrays = [
        nib.gifti.GiftiDataArray(np.ascontiguousarray(one), intent="NIFTI_INTENT_NONE", datatype=kind)
        for one in np.atleast_2d(values)
    ]
    meta = nib.gifti.GiftiMetaData({"AnatomicalStructurePrimary": structure})
    return nib.gifti.GiftiImage(darrays=arrays, meta=meta)


def _cifti_image(values: FloatArray, grid: GrayordinateGrid | ParcelGrid) -> Any:
    """Return what a CIFTI file of maps is on disk: a NIfTI-2 image with the axes in its header extension.

    nibabel's own image makes the axis of the places anew several times for each file, which takes a second.
    """
    import nibabel as nib
    from nibabel.cifti2 import Cifti2Header, Cifti2Matrix, ScalarAxis
    from nibabel.cifti2.parse_cifti2 import Cifti2Extension

    rows = np.atleast_2d(values).astype(np.float32)
    matrix = Cifti2Matrix()
    matrix.append(ScalarAxis([f"map {number}" for number in range(1, len(rows) + 1)]).to_mapping(0))
    matrix.append(grid.mapping)
    image = nib.Nifti2Image(rows.reshape(1, 1, 1, 1, *rows.shape), None)
    image.header.extensions.append(Cifti2Extension.from_bytes(Cifti2Header(matrix).to_xml()))
    kind = "PARCELLATED_SCALAR" if isinstance(grid, ParcelGrid) else "DENSE_SCALARS"
    image.header.set_intent(f"NIFTI_INTENT_CONNECTIVITY_{kind}")
    image.header["pixdim"][:4] = 1
    return image


def _save_table(path: Path, values: FloatArray, grid: ParcelGrid) -> None:
    """Write one row a parcel, with one column a map."""
    rows = np.atleast_2d(values)
    columns = ["value"] if len(rows) == 1 else [f"value{number}" for number in range(1, len(rows) + 1)]
    table = [
        {"index": number, "name": name, **dict(zip(columns, map(float, rows[:, number - 1]), strict=True))}
        for number, name in enumerate(grid.names, start=1)
    ]
    write_tsv(path, table, ["index", "name", *columns])


def load_map(path: Path) -> tuple[FloatArray, Grid]:
    """Return the values (n_places,) or (n_maps, n_places) of a map that `save_map` wrote, and its grid."""
    if path.name.endswith(".tsv"):
        return _load_table(path)
    import nibabel as nib

    if path.name.endswith(".func.gii"):
        sides = [np.stack([array.data for array in nib.load(side).darrays]) for side in files_of_map(path)]
        values = np.concatenate(sides, axis=1)
        return _one_or_more(values), SurfaceGrid(sides[0].shape[1], sides[1].shape[1])
    image = nib.load(path)
    data = np.asarray(image.dataobj, dtype=np.float32)
    if isinstance(image, nib.Cifti2Image):
        axis = image.header.get_axis(1)
        parcels = isinstance(axis, nib.cifti2.ParcelsAxis)
        return _one_or_more(data), ParcelGrid(tuple(axis.name), axis) if parcels else GrayordinateGrid(axis)
    grid = VolumeGrid(tuple(image.shape[:3]), image.affine)
    return data.reshape(-1) if data.ndim == 3 else data.reshape(-1, data.shape[3]).T, grid


def _one_or_more(values: FloatArray) -> FloatArray:
    return values[0] if len(values) == 1 else values


def _load_table(path: Path) -> tuple[FloatArray, ParcelGrid]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    columns = [name for name in rows[0] if name not in ("index", "name")]
    values = [[float("nan") if row[name] == "n/a" else float(row[name]) for row in rows] for name in columns]
    return _one_or_more(np.asarray(values, dtype=np.float32)), ParcelGrid(tuple(row["name"] for row in rows))
