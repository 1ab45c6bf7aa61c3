"""What a series holds, from the first bytes of its file: volumes, seconds between them, and places."""

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.exceptions import InputDataError
from bids_mllm.records import Form

#: Beginning of a GIFTI file in which its first array is described.
HEAD_BYTES = 2**20
NIFTI2_BYTES = 540


@dataclass(frozen=True)
class SeriesHeader:
    """Size of one series.

    `repetition_time` is 0 where the file does not tell. `places` is equal where the columns of two series are the
    same; `words` says them.
    """

    n_volumes: int
    repetition_time: float
    places: tuple[Any, ...]
    words: str


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    try:
        yield
    except (
        ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, KeyError, zlib.error
    ) as error:  # fmt: skip
        raise InputDataError(f"{path} cannot be read as a series ({error}); fetch or preprocess it again.") from error


def read_header(form: Form, path: Path, right: Path | None = None) -> SeriesHeader:
    """Return the size of a series; on surfaces `right` is the right hemisphere's file.

    Raises
    ------
    InputDataError
        When a file cannot be read, or the hemispheres differ in volumes.
    """
    if form == "surface" and right is not None:
        return _surfaces(path, right)
    with _readable(path):
        if path.name.endswith(".tsv"):
            return _table(path)
        return _nifti(path) if form == "volume" else _cifti(path)


def image_shape(path: Path) -> tuple[int, ...]:
    """Return the shape of a NIfTI image without reading its values."""
    import nibabel as nib

    with _readable(path):
        return tuple(nib.load(path).header.get_data_shape())


def _nifti(path: Path) -> SeriesHeader:
    import nibabel as nib

    header = nib.load(path).header
    shape = header.get_data_shape()
    if len(shape) != 4:
        raise InputDataError(f"{path} has the shape {shape}; expected a 4-D BOLD series.")
    scale = {"msec": 1e-3, "usec": 1e-6}.get(header.get_xyzt_units()[1], 1.0)
    seconds = float(np.round(float(header.get_zooms()[3]) * scale, 6))
    return SeriesHeader(shape[3], seconds, tuple(shape[:3]), f"{' x '.join(map(str, shape[:3]))} voxels")


def _cifti(path: Path) -> SeriesHeader:
    """Read the sizes from the NIfTI-2 header and the rest from the tags of the XML behind it, which lists every vertex
    and would take long to parse.
    """
    import nibabel as nib

    with path.open("rb") as stream:
        header = nib.Nifti2Header(stream.read(NIFTI2_BYTES))
        xml = stream.read(max(int(header["vox_offset"]) - NIFTI2_BYTES, 0))
    shape = header.get_data_shape()
    maps = [_attributes(tag) for tag in re.findall(rb"<MatrixIndicesMap\b[^>]*>", xml)]
    series = next((m for m in maps if m.get("IndicesMapToDataType") == "CIFTI_INDEX_TYPE_SERIES"), None)
    if len(shape) != 6 or series is None:
        raise InputDataError(f"{path} is no CIFTI time series; expected a .dtseries.nii or .ptseries.nii file.")
    seconds = float(series.get("SeriesStep", 0)) * 10.0 ** float(series.get("SeriesExponent", 0))
    if series.get("SeriesUnit") != "SECOND":
        seconds = 0.0
    structures = tuple(re.findall(rb"<(?:BrainModel|Parcel)\b[^>]*>", xml))
    words = f"{shape[5]} {'grayordinates' if b'<BrainModel' in xml else 'parcels'}"
    return SeriesHeader(shape[4], round(seconds, 6), (shape[5], structures), words)


def _attributes(tag: bytes) -> Mapping[str, str]:
    return {key.decode(): value.decode() for key, value in re.findall(rb'(\w+)="([^"]*)"', tag)}


def _table(path: Path) -> SeriesHeader:
    with path.open("rb") as stream:
        names = tuple(stream.readline().removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").split(b"\t"))
        n_volumes = sum(1 for line in stream if line.strip())
    if n_volumes == 0:
        raise InputDataError(
            f"{path} holds no volume; expected a line of names of parcels and a line a volume: fetch or preprocess it "
            "again."
        )
    return SeriesHeader(n_volumes, 0.0, names, f"{len(names)} parcels")


def _surfaces(left: Path, right: Path) -> SeriesHeader:
    sides = []
    for path in (left, right):
        with _readable(path):
            sides.append(_hemisphere(path))
    (n_left, on_left), (n_right, on_right) = sides
    if n_left != n_right:
        raise InputDataError(
            f"{left} has {n_left} volumes but {right} has {n_right}; both hemispheres must be of one preprocessing: "
            "preprocess the run again."
        )
    return SeriesHeader(n_left, 0.0, (on_left, on_right), f"{on_left} + {on_right} vertices")


def _hemisphere(path: Path) -> tuple[int, int]:
    """Number of volumes and of vertices of a GIFTI series, which is one array a volume, or one with them as columns."""
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    root, first = (re.search(rb"<%s\b[^>]*>" % name, head) for name in (b"GIFTI", b"DataArray"))
    if root is None or first is None:
        raise ValueError("no array is described at its beginning")
    n_arrays, array = int(_attributes(root[0])["NumberOfDataArrays"]), _attributes(first[0])
    columns = n_arrays == 1 and array.get("Dimensionality") == "2"
    return int(array["Dim1"]) if columns else n_arrays, int(array["Dim0"])


def hdf5_headers(path: Path) -> dict[str, SeriesHeader]:
    """Return the size of every series of an HDF5 file, by key.

    Raises
    ------
    InputDataError
        When the file cannot be read, or holds no series of (volumes, parcels).
    """
    import h5py

    with _readable(path), h5py.File(os.fspath(path), "r") as content:
        shapes = {key: value.shape for key, value in content.items() if isinstance(value, h5py.Dataset)}
    found = {
        key: SeriesHeader(shape[0], 0.0, (shape[1],), f"{shape[1]} parcels")
        for key, shape in shapes.items()
        if len(shape) == 2
    }
    if not found:
        raise InputDataError(
            f"{path} holds no array of (volumes, parcels) under a key such as ses-001_task-life01_run-1."
        )
    return found
