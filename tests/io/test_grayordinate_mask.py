"""Voxels of grayordinates outside the brain mask of their run are set aside; vertices are not."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from volumes import save

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.bold import common_mask, prepare_runs
from bids_mllm.io.grids import GrayordinateGrid
from bids_mllm.io.series import brain_places
from bids_mllm.records import Run

#: As fMRIPrep's: x falls with the first index, which the affines of masks need not.
CIFTI_AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
#: Voxels of the structure, of which the last lies beyond a small mask image.
VOXELS = np.array([[40, 50, 30], [41, 50, 30], [40, 51, 30], [40, 50, 31], [60, 80, 60]])
N_VERTICES = 3


def axis():
    left = nib.cifti2.BrainModelAxis.from_surface(np.arange(N_VERTICES), 10, "CortexLeft")
    voxels = nib.cifti2.BrainModelAxis(
        "CIFTI_STRUCTURE_THALAMUS_LEFT", voxel=VOXELS, affine=CIFTI_AFFINE, volume_shape=(91, 109, 91)
    )
    return left + voxels


def dense_run(folder, mask=None):
    """A run of noise whose grayordinates all vary."""
    n_places = N_VERTICES + len(VOXELS)
    series = 1000 + np.random.default_rng(0).normal(size=(40, n_places))
    image = nib.Cifti2Image(series.astype(np.float32), header=(nib.cifti2.SeriesAxis(0, 2.0, 40), axis()))
    image.update_headers()
    path = folder / "sub-01_task-a_space-fsLR_den-91k_bold.dtseries.nii"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return Run(
        "01", None, "a", 1, "fsLR", path, mask, None, 2.0, 0.0, 40, form="grayordinates", density="91k"
    )  # fmt: skip


def mask_with(path, world, affine, shape):
    """A mask of one voxel, that which holds a point of the world (mm)."""
    values = np.zeros(shape, dtype=np.uint8)
    place = np.rint(np.linalg.solve(affine, [*world, 1.0]))[:3].astype(int)
    values[tuple(place)] = 1
    return save(path, values, affine)


# World of voxel 1 by hand: 90 - 2 * 41, -126 + 2 * 50, -72 + 2 * 30.
WORLD = (8.0, -26.0, -12.0)
AFFINES = {
    "the same grid": (CIFTI_AFFINE, (91, 109, 91)),
    "x the other way": (np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]), (91, 109, 91)),
    "1 mm": (np.array([[1.0, 0, 0, -91], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]]), (182, 218, 182)),
    "a small box": (np.array([[2.0, 0, 0, 0], [0, 2, 0, -40], [0, 0, 2, -20], [0, 0, 0, 1]]), (8, 10, 8)),
}


@pytest.mark.parametrize("name", AFFINES)
def test_voxels_are_looked_up_in_the_mask_by_both_affines(tmp_path, name):
    affine, shape = AFFINES[name]
    run = dense_run(tmp_path, mask_with(tmp_path / "mask.nii.gz", WORLD, affine, shape))
    inside = brain_places(run, GrayordinateGrid(axis()))
    np.testing.assert_array_equal(inside, [True] * N_VERTICES + [False, True, False, False, False])


def test_voxels_beyond_the_image_of_the_mask_are_outside(tmp_path):
    """In the box all voxels are brain; negative and too large positions are beyond it."""
    affine, shape = AFFINES["a small box"]
    run = dense_run(tmp_path, save(tmp_path / "mask.nii.gz", np.ones(shape, np.uint8), affine))
    np.testing.assert_array_equal(brain_places(run, GrayordinateGrid(axis())), [True] * 7 + [False])


def test_the_grayordinates_of_a_participant_are_inside_the_masks_of_all_runs(tmp_path):
    affine, shape = AFFINES["the same grid"]
    values = np.ones(shape, np.uint8)
    values[tuple(VOXELS[0])] = 0
    first = dense_run(tmp_path / "a", save(tmp_path / "a" / "mask.nii.gz", values, affine))
    values = np.ones(shape, np.uint8)
    values[tuple(VOXELS[3])] = 0
    second = replace(first, bold=dense_run(tmp_path / "b").bold, mask=save(tmp_path / "b/mask.nii.gz", values, affine))
    unmasked = dense_run(tmp_path / "c")
    expected = [True] * N_VERTICES + [False, True, True, False, True]
    np.testing.assert_array_equal(common_mask([first, second, unmasked])[0], expected)
    prepared = prepare_runs([first, second, unmasked], tmp_path / "out.npy", strategy="none", high_pass=0.0)
    np.testing.assert_array_equal(prepared.usable, expected)
    assert np.load(tmp_path / "out.npy").shape == (120, 6)


def test_grayordinates_without_voxels_need_none(tmp_path):
    cortex = nib.cifti2.BrainModelAxis.from_surface(np.arange(N_VERTICES), 10, "CortexLeft")
    run = dense_run(tmp_path, save(tmp_path / "mask.nii.gz", np.zeros((2, 2, 2), np.uint8)))
    assert brain_places(run, GrayordinateGrid(cortex)).all()


def test_a_damaged_mask_is_one_sentence(tmp_path):
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(b"no image")
    with pytest.raises(InputDataError, match="cannot be read to its end"):
        common_mask([dense_run(tmp_path, path)])
