"""Masked series by streaming, against nibabel."""

import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.nifti_stream import read_masked

SHAPE = (5, 4, 3)
MASK = np.random.default_rng(1).random(SHAPE) > 0.4


def write(path, dtype="<f4", *, slope=None, inter=None, values=None, kind=nib.Nifti1Image):
    """Write 7 volumes as they are, with the scaling in the header beside them."""
    if values is None:
        values = np.random.default_rng(0).integers(0, 120, (*SHAPE, 7)).astype(dtype)
    header = kind.header_class(endianness=np.dtype(dtype).byteorder.replace("|", "<").replace("=", "<"))
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape(values.shape)
    header.set_slope_inter(slope, inter)
    header["vox_offset"] = 352 if kind is nib.Nifti1Image else 544
    header["magic"] = header.single_magic
    content = header.binaryblock
    content += b"\0" * (int(header["vox_offset"]) - len(content)) + values.astype(dtype).tobytes(order="F")
    path.write_bytes(gzip.compress(content, compresslevel=1) if path.suffix == ".gz" else content)
    return path


def by_nibabel(path, mask=MASK):
    return np.asarray(nib.load(path).dataobj)[mask].T.astype(np.float32)


@pytest.mark.parametrize("scaling", [(None, None), (1.0, 0.0), (0.25, -31.5), (1.0, 3.0)])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<i2", ">i2", "u1", "i1", "<u2", ">u2", "<i4", "<i8"])
def test_every_type_and_byte_order_is_read_as_by_nibabel(tmp_path, dtype, scaling):
    path = write(tmp_path / "a_bold.nii.gz", dtype, slope=scaling[0], inter=scaling[1])
    series = read_masked(path, MASK)
    assert (series.shape, series.dtype) == ((7, int(MASK.sum())), np.float32)
    np.testing.assert_array_equal(series, by_nibabel(path))
    assert series.flags.c_contiguous


@pytest.mark.parametrize("name", ["a_bold.nii", "a_bold.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_both_versions_plain_or_compressed(tmp_path, name, kind):
    path = write(tmp_path / name, kind=kind)
    np.testing.assert_array_equal(read_masked(path, MASK), by_nibabel(path))


def test_a_flat_mask_is_in_the_order_of_maps(tmp_path):
    path = write(tmp_path / "a_bold.nii.gz")
    np.testing.assert_array_equal(read_masked(path, MASK.ravel()), by_nibabel(path))
    assert read_masked(path, np.zeros(SHAPE, dtype=bool)).shape == (7, 0)


def test_a_file_of_several_members_is_read_through(tmp_path):
    path = write(tmp_path / "a_bold.nii")
    content = path.read_bytes()
    packed = tmp_path / "b_bold.nii.gz"
    packed.write_bytes(b"".join(gzip.compress(content[start : start + 500]) for start in range(0, len(content), 500)))
    np.testing.assert_array_equal(read_masked(packed, MASK), by_nibabel(path))


def test_values_that_are_not_finite_stay(tmp_path):
    values = np.random.default_rng(0).standard_normal((*SHAPE, 7))
    values[..., 2], values[..., 3], values[..., 4] = np.nan, np.inf, 1e300
    path = write(tmp_path / "a_bold.nii.gz", "<f8", values=values)
    series = read_masked(path, MASK)
    assert np.isnan(series[2]).all()
    assert np.isposinf(series[3:5]).all()


def of_level(level):
    """Change one bit in the middle of data compressed by `level`; at 0 they are stored as they are."""

    def damage(path):
        content = bytearray(gzip.decompress(path.read_bytes()))
        packed = bytearray(gzip.compress(bytes(content), compresslevel=level))
        packed[len(packed) // 2] ^= 1
        path.write_bytes(bytes(packed))

    return damage


DAMAGES = {
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its checksum": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "another checksum": lambda path: path.write_bytes(path.read_bytes()[:-8] + b"\1\2\3\4" + path.read_bytes()[-4:]),
    "one bit of stored data": of_level(0),
    "one bit of compressed data": of_level(6),
    "fewer volumes than its header says": lambda path: path.write_bytes(
        gzip.compress(gzip.decompress(path.read_bytes())[:-4])
    ),
    "empty": lambda path: path.write_bytes(b""),
    "no gzip": lambda path: path.write_bytes(gzip.decompress(path.read_bytes())),
    "no NIfTI": lambda path: path.write_bytes(gzip.compress(b"words " * 200)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_one_sentence(tmp_path, damage):
    path = write(tmp_path / "a_bold.nii.gz", values=np.random.default_rng(0).standard_normal((*SHAPE, 60)))
    damage(path)
    with pytest.raises(InputDataError, match=r"a_bold.nii.gz cannot be read to its end .*; fetch or preprocess"):
        read_masked(path, MASK)


def test_a_plain_file_that_is_short(tmp_path):
    path = write(tmp_path / "a_bold.nii")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputDataError, match=r"a_bold.nii cannot be read to its end \(it ends in volume 7 of 7\)"):
        read_masked(path, MASK)


@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 7, 2), (*SHAPE, 0)])
def test_other_axes_are_refused(tmp_path, shape):
    path = tmp_path / "a_bold.nii.gz"
    nib.Nifti1Image(np.zeros(shape, dtype=np.float32), np.eye(4)).to_filename(path)
    with pytest.raises(InputDataError, match=r"a_bold.nii.gz has the shape 5 x 4 x 3.*one of time were expected"):
        read_masked(path, MASK)


def test_other_images_are_refused(tmp_path):
    path = tmp_path / "a_bold.nii.gz"
    nib.Nifti1Image(np.zeros((*SHAPE, 7), dtype=np.complex64), np.eye(4)).to_filename(path)
    with pytest.raises(InputDataError, match=r"a_bold.nii.gz holds values of the type complex64"):
        read_masked(path, MASK)
    mgh = tmp_path / "a_bold.mgz"
    nib.MGHImage(np.zeros((*SHAPE, 7), dtype=np.float32), np.eye(4)).to_filename(mgh)
    with pytest.raises(InputDataError, match=r"a_bold.mgz is no NIfTI image"):
        read_masked(mgh, MASK)


@pytest.mark.parametrize("mask", [np.ones((5, 4, 2), dtype=bool), np.ones(61, dtype=bool)])
def test_a_mask_of_another_grid_is_refused(tmp_path, mask):
    with pytest.raises(InputDataError, match=r"a_bold.nii.gz has the grid 5 x 4 x 3, but its mask has"):
        read_masked(write(tmp_path / "a_bold.nii.gz"), mask)


def test_the_image_is_never_held_whole(tmp_path):
    shape = (40, 40, 40, 50)
    values = np.random.default_rng(0).integers(0, 50, shape).astype(np.float32)
    mask = np.zeros(shape[:3], dtype=bool)
    mask[:4] = True
    path = write(tmp_path / "a_bold.nii.gz", values=values)
    tracemalloc.start()
    try:
        series = read_masked(path, mask)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The result, the numbers of all voxels, and blocks of the file on their way.
    assert peak < series.nbytes + 8 * mask.size + 4 * 2**20 < values.nbytes / 2
