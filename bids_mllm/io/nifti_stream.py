"""Masked series of NIfTI images, volume by volume, so that no image is ever held whole."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bids_mllm.exceptions import InputDataError
from bids_mllm.records import BoolArray, FloatArray, IntArray

# Decompressed bytes of one block of the second thread, which holds a few of them.
READ_AHEAD = 2**18


def read_masked(path: Path, mask: BoolArray) -> FloatArray:
    """Return the series of the voxels of a mask.

    The file is decompressed in a second thread while voxels are taken from the volumes before, and to its end, so
    that its checksum is checked.

    Parameters
    ----------
    path
        A ``.nii`` or ``.nii.gz`` with three axes of space and one of time.
    mask : (x, y, z) or (x * y * z,) bool
        Flat in C order.

    Returns
    -------
    series : (n_volumes, n_kept) float32
        Scaled as the header says; in C order of the mask.

    Raises
    ------
    InputDataError
        When the file is no such image, is shorter than its header says or is damaged, or the mask is of another size.
    """
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    damage = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError)
    try:
        image = _opened(path)
        kept = _places(path, mask, image.shape)
        proxy = image.dataobj
        with _content(path) as stream:
            _skip(stream, proxy.offset)
            series = _series(stream, proxy, kept)
            while stream.read(READ_AHEAD):
                pass
    except damage as error:
        raise InputDataError(f"{path} cannot be read to its end ({error}); fetch or preprocess it again.") from error
    return series


def _opened(path: Path) -> Any:
    """Read the header; one image with three axes of space and one of time."""
    import nibabel as nib

    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image) or not path.name.endswith((".nii", ".nii.gz")):
        raise InputDataError(f"{path} is no NIfTI image (.nii or .nii.gz); give the BOLD as one.")
    shape = image.shape
    if len(shape) != 4 or 0 in shape:
        raise InputDataError(
            f"{path} has the shape {' x '.join(map(str, shape))}, where three axes of space and one of time were "
            "expected; give a BOLD series of one echo."
        )
    if image.get_data_dtype().kind not in "fiu":
        raise InputDataError(
            f"{path} holds values of the type {image.get_data_dtype()}, where real numbers were expected; store it "
            "as integers or floats."
        )
    return image


def _places(path: Path, mask: BoolArray, shape: tuple[int, ...]) -> IntArray:
    """Where in a volume, as the file stores it, the voxels of the mask lie."""
    n_voxels = int(np.prod(shape[:3]))
    if mask.shape not in {shape[:3], (n_voxels,)}:
        raise InputDataError(
            f"{path} has the grid {' x '.join(map(str, shape[:3]))}, but its mask has "
            f"{' x '.join(map(str, mask.shape))} voxels; give a mask on the grid of the series."
        )
    in_file = np.arange(n_voxels, dtype=np.intp).reshape(shape[:3], order="F")
    places: IntArray = in_file[mask.reshape(shape[:3])]
    return places


def _series(stream: BinaryIO, proxy: Any, kept: IntArray) -> FloatArray:
    """Take the voxels of every volume; scaled in float64, as nibabel does."""
    *space, n_volumes = proxy.shape
    volume = np.empty(int(np.prod(space)), dtype=proxy.dtype)
    slope, inter = np.float64(proxy.slope), np.float64(proxy.inter)
    scaled = (slope, inter) != (1.0, 0.0)
    series = np.empty((n_volumes, len(kept)), dtype=np.float32)
    for number, row in enumerate(series):
        _fill(stream, volume.view(np.uint8).data, f"volume {number + 1} of {n_volumes}")
        if volume.dtype == row.dtype and not scaled:
            # With a mode other than "raise" NumPy writes to `out` directly.
            np.take(volume, kept, out=row, mode="clip")
        else:
            values = volume[kept]
            with np.errstate(over="ignore", invalid="ignore"):
                row[:] = values * slope + inter if scaled else values
    return series


def _fill(stream: BinaryIO, buffer: memoryview, what: str) -> None:
    done = 0
    while done < len(buffer):
        n_read = stream.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not n_read:
            raise EOFError(f"it ends in {what}")
        done += n_read


def _skip(stream: BinaryIO, n_bytes: int) -> None:
    _fill(stream, memoryview(bytearray(n_bytes)), "its header")


@contextmanager
def _content(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading from its first byte, decompressed where its name says so."""
    if path.suffix == ".gz":
        from isal import igzip_threaded, isal_zlib

        broken: Any = isal_zlib.error
        try:
            with igzip_threaded.open(path, "rb", threads=1, block_size=READ_AHEAD) as stream:
                yield stream
        except broken as error:
            raise EOFError(str(error)) from error
    else:
        with path.open("rb") as plain:
            yield plain
