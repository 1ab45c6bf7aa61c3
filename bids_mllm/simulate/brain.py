"""The grid, the mask and the planted regions of the simulated brains, in MNI152NLin2009cAsym."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.records import BoolArray, FloatArray, IntArray

VOXEL_SIZE = 8.0
# The field of view of the 1 mm MNI152NLin2009cAsym template: first voxel and extent in mm.
ORIGIN = (-96.0, -132.0, -78.0)
EXTENT = (193.0, 229.0, 193.0)


@dataclass(frozen=True)
class Region:
    """A ball of cortex: `centre` (right, anterior, superior) and `radius` in mm, and what drives it."""

    name: str
    centre: tuple[float, float, float]
    radius: float
    driver: str


# Left and right differ on purpose, so that a flipped image cannot pass.
REGIONS = (
    Region("L_Occipital", (-16.0, -92.0, 2.0), 30.0, "motionenergy"),
    Region("R_Occipital", (20.0, -92.0, 6.0), 22.0, "motionenergy"),
    Region("L_LateralTemporal", (-60.0, -20.0, 2.0), 26.0, "melspectrogram"),
    Region("R_LateralTemporal", (62.0, -14.0, -2.0), 20.0, "melspectrogram"),
    Region("L_InferiorFrontal", (-48.0, 30.0, 12.0), 28.0, "model"),
    Region("L_Parietal", (-46.0, -56.0, 46.0), 26.0, "model"),
    Region("R_InferiorFrontal", (50.0, 30.0, 12.0), 22.0, "none"),
    Region("R_Parietal", (48.0, -54.0, 46.0), 20.0, "none"),
)


@dataclass(frozen=True)
class Brain:
    """Where the voxels are and which region each belongs to.

    Attributes
    ----------
    affine : (4, 4) float
        Voxel indices to mm.
    mask : (nx, ny, nz) bool
    labels : (n_voxels,) int
        1 + index into `REGIONS` for the voxels of the mask in C order; 0 outside every region.
    """

    affine: FloatArray
    mask: BoolArray
    labels: IntArray

    @property
    def ijk(self) -> IntArray:
        """Indices of the voxels of the mask, shape (n_voxels, 3)."""
        return np.argwhere(self.mask)

    @property
    def xyz(self) -> FloatArray:
        """Positions of the voxels of the mask in mm, shape (n_voxels, 3)."""
        return self.ijk @ self.affine[:3, :3].T + self.affine[:3, 3]

    def volume(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Put values (n_voxels, ...) into an image (nx, ny, nz, ...), zero outside the mask."""
        image = np.zeros((*self.mask.shape, *values.shape[1:]), dtype=values.dtype)
        image[self.mask] = values
        return image


def make_brain() -> Brain:
    """Return the outermost layer of 8 mm voxels of the MNI152 brain (cortex, about 1,200 voxels)."""
    from nilearn.datasets import load_mni152_brain_mask
    from scipy.ndimage import affine_transform, binary_erosion

    affine = np.diag([VOXEL_SIZE, VOXEL_SIZE, VOXEL_SIZE, 1.0])
    affine[:3, 3] = ORIGIN
    template = load_mni152_brain_mask(resolution=2)
    to_template = np.linalg.inv(template.affine) @ affine
    solid = affine_transform(
        np.asarray(template.dataobj, dtype=np.float64),
        to_template[:3, :3],
        offset=to_template[:3, 3],
        output_shape=tuple(int(np.ceil(side / VOXEL_SIZE)) for side in EXTENT),
        order=1,
    )
    brain = solid > 0.5
    mask = brain & ~binary_erosion(brain)
    positions = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    return Brain(affine, mask, _label(positions))


def _label(positions: NDArray[Any]) -> IntArray:
    """Region of each position (n_voxels, 3): the nearest centre whose ball holds it, in units of radii."""
    distances = np.stack(
        [np.linalg.norm(positions - region.centre, axis=1) / region.radius for region in REGIONS], axis=1
    )
    nearest = np.argmin(distances, axis=1)
    return np.where(distances.min(axis=1) <= 1, nearest + 1, 0)
