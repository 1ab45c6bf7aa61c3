"""Reading BOLD series of every form as (n_volumes, n_places) arrays, and the grid that their columns lie on."""

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.grids import GrayordinateGrid, Grid, ParcelGrid, SurfaceGrid, VolumeGrid
from bids_mllm.io.nifti_stream import read_masked
from bids_mllm.records import BoolArray, FloatArray, Run

#: Beginning of a GIFTI file in which its first array is described.
HEAD_BYTES = 2**20
#: Number of the header extension of NIfTI-2 that holds the CIFTI header.
CIFTI_CODE = 32


@contextmanager
def _readable(path: Path | None) -> Iterator[None]:
    """Turn what a damaged file raises into one sentence."""
    from xml.parsers.expat import ExpatError

    from nibabel.filebasedimages import ImageFileError

    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, zlib.error, ImageFileError, ExpatError) as error:
        raise InputDataError(f"{path} cannot be read to its end ({error}); fetch or preprocess it again.") from error


def series_grid(run: Run) -> Grid:
    """Return the grid of a run from its headers.

    Raises
    ------
    InputDataError
        When a file cannot be read.
    """
    if run.form == "surface":
        return SurfaceGrid(_n_vertices(run.bold), _n_vertices(run.bold_right))
    if run.form == "parcels" and _is_table(run):
        return ParcelGrid(_parcel_names(run))
    import nibabel as nib

    with _readable(run.bold):
        if run.form == "volume":
            image = nib.load(run.bold)
            return VolumeGrid(tuple(image.shape[:3]), image.affine)
        axis = _columns(_cifti_header(_path(run)))
        return ParcelGrid(tuple(axis.name), axis) if run.form == "parcels" else GrayordinateGrid(axis)


def brain_places(run: Run, grid: Grid) -> BoolArray:
    """Return the places inside the run's mask, (n_places,); all where there is no mask file.

    Of grayordinates those are set aside that are voxels outside the mask, or beyond its image.
    """
    if run.mask is None:
        return np.ones(grid.n_places, dtype=bool)
    import nibabel as nib

    with _readable(run.mask):
        image = nib.load(run.mask)
        inside: BoolArray = np.asarray(np.asarray(image.dataobj) > 0).reshape(image.shape[:3])
    return _voxels_inside(grid, inside, image.affine) if isinstance(grid, GrayordinateGrid) else inside.reshape(-1)


def _voxels_inside(grid: GrayordinateGrid, inside: BoolArray, affine: FloatArray) -> BoolArray:
    """Grayordinates that are vertices, or voxels whose centre lies in a voxel of `inside`, (n_places,)."""
    from nibabel.affines import apply_affine

    kept = np.ones(grid.n_places, dtype=bool)
    voxels = np.flatnonzero(grid.axis.volume_mask)
    if voxels.size:
        world = apply_affine(grid.axis.affine, grid.axis.voxel[voxels])
        there = np.rint(apply_affine(np.linalg.inv(affine), world)).astype(int)
        boxed = ((there >= 0) & (there < inside.shape)).all(axis=1)
        kept[voxels] = boxed
        kept[voxels[boxed]] = inside[tuple(there[boxed].T)]
    return kept


def read_series(run: Run, kept: BoolArray) -> FloatArray:
    """Return the series of one run at the places `kept` (n_places,), shape (n_volumes, n_kept) float32, as stored.

    Raises
    ------
    InputDataError
        When a file is damaged or has another number of volumes than its header said.
    """
    if run.form == "volume":
        series = read_masked(_path(run), kept)
    elif run.form == "surface":
        series = np.concatenate(_hemispheres(run), axis=1)[:, kept]
    elif run.form == "parcels" and _is_table(run):
        series = _table(run)[:, kept]
    else:
        series = _cifti(run)[:, kept]
    if len(series) != run.n_volumes:
        raise InputDataError(
            f"{run.bold} has {len(series)} volumes where {run.n_volumes} were found before; it was changed: run again."
        )
    return np.ascontiguousarray(series, dtype=np.float32)


def _path(run: Run) -> Path:
    if run.bold is None:
        raise ValueError(f"{run.label} has no file and should have been left out.")
    return run.bold


def _is_table(run: Run) -> bool:
    return _path(run).suffix in (".tsv", ".h5")


def _n_vertices(path: Path | None) -> int:
    """Vertices of a GIFTI series, from the first of its arrays; the others are not read."""
    with _readable(path):
        if path is None:
            raise ValueError("there is no file of this hemisphere")
        with path.open("rb") as stream:
            found = re.search(rb'<DataArray[^>]*\bDim0="(\d+)"', stream.read(HEAD_BYTES))
        if found is None:
            raise ValueError("no DataArray with a Dim0 at its beginning")
        return int(found[1])


def _hemispheres(run: Run) -> tuple[FloatArray, FloatArray]:
    """Both hemispheres, (n_volumes, n_vertices) each."""
    import nibabel as nib

    sides = []
    for path in (run.bold, run.bold_right):
        with _readable(path):
            arrays = [array.data for array in nib.load(path).darrays]
            # A series is one array a volume; some tools write one array with the volumes as columns.
            sides.append(arrays[0].T if len(arrays) == 1 and arrays[0].ndim == 2 else np.stack(arrays))
    left, right = sides
    if len(left) != len(right):
        raise InputDataError(
            f"{run.bold} has {len(left)} volumes but {run.bold_right} {len(right)}; both hemispheres must be of one "
            "preprocessing: preprocess the run again."
        )
    return left, right


def _cifti(run: Run) -> FloatArray:
    """Series of a CIFTI file, (n_volumes, n_places), read as the NIfTI-2 file that it is on disk."""
    import nibabel as nib

    with _readable(run.bold):
        values = np.asarray(nib.Nifti2Image.from_filename(run.bold).dataobj, dtype=np.float32)
        return values.reshape(values.shape[-2:])


def _cifti_header(path: Path) -> bytes:
    """XML of a CIFTI file, with the number of volumes left out, so that it is equal where the places are."""
    import nibabel as nib

    extensions = nib.Nifti2Image.from_filename(path).header.extensions
    xml = next((each.content for each in extensions if each.get_code() == CIFTI_CODE), None)
    if xml is None:
        raise ValueError("no CIFTI header")
    return re.sub(rb'NumberOfSeriesPoints="\d+"', b'NumberOfSeriesPoints="1"', xml)


@lru_cache(maxsize=4)
def _columns(xml: bytes) -> Any:
    """Axis of the places of a CIFTI file; kept, since runs share it and parsing it takes most of a second."""
    from nibabel.cifti2.parse_cifti2 import Cifti2Extension

    return Cifti2Extension.from_bytes(xml).get_object().get_axis(1)


def _parcel_names(run: Run) -> tuple[str, ...]:
    if _path(run).suffix == ".h5":
        n_parcels = _hdf5_shape(run)[1]
        return tuple(f"parcel{number:0{len(str(n_parcels))}d}" for number in range(1, n_parcels + 1))
    with _readable(run.bold), _path(run).open(encoding="utf-8-sig") as stream:
        return tuple(stream.readline().rstrip("\r\n").split("\t"))


def _table(run: Run) -> FloatArray:
    return _hdf5(run) if _path(run).suffix == ".h5" else _text(run)


def _hdf5(run: Run) -> FloatArray:
    import h5py

    with _readable(run.bold), h5py.File(run.bold, "r") as content:
        return np.asarray(content[run.dataset], dtype=np.float32)


def _hdf5_shape(run: Run) -> tuple[int, ...]:
    """Shape (n_volumes, n_parcels) of a series in an HDF5 file, which is not read."""
    import h5py

    with _readable(run.bold), h5py.File(run.bold, "r") as content:
        shape: tuple[int, ...] = content[run.dataset].shape
    if len(shape) != 2:
        raise InputDataError(
            f"{run.dataset} in {run.bold} has the shape {shape}; expected (volumes, parcels); write it again."
        )
    return shape


def _text(run: Run) -> Any:
    import pandas as pd

    with _readable(run.bold):
        return pd.read_csv(_path(run), sep="\t", na_values="n/a", encoding="utf-8-sig", dtype=np.float32).to_numpy()
