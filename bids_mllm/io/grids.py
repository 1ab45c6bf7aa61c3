"""Where the columns of series and maps lie: voxels, vertices, grayordinates or parcels, always as one flat axis."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from bids_mllm.records import FloatArray, Form

#: Affines closer than this (mm) are equal.
AFFINE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class VolumeGrid:
    """Voxels in the order of a C-ordered array of `shape`; `affine` (4, 4) from voxels to world millimetres."""

    shape: tuple[int, int, int]
    affine: FloatArray
    form: ClassVar[Form] = "volume"

    @property
    def n_places(self) -> int:
        """Number of voxels, in and outside the brain."""
        return int(np.prod(self.shape))

    @property
    def words(self) -> str:
        """The grid in words, for messages."""
        corner = ", ".join(f"{value:g}" for value in np.asarray(self.affine)[:3, 3])
        return f"{' x '.join(map(str, self.shape))} voxels from {corner} mm"


@dataclass(frozen=True)
class SurfaceGrid:
    """Vertices of the left hemisphere, then those of the right one."""

    n_left: int
    n_right: int
    form: ClassVar[Form] = "surface"

    @property
    def n_places(self) -> int:
        """Number of vertices of both hemispheres."""
        return self.n_left + self.n_right

    @property
    def words(self) -> str:
        """The grid in words, for messages."""
        return f"{self.n_left} + {self.n_right} vertices"


@dataclass(frozen=True)
class GrayordinateGrid:
    """Grayordinates of a CIFTI file with all its brain models; `axis` is nibabel's BrainModelAxis."""

    axis: Any
    form: ClassVar[Form] = "grayordinates"

    @property
    def n_places(self) -> int:
        """Number of grayordinates."""
        return len(self.axis)

    @property
    def words(self) -> str:
        """The grid in words, for messages."""
        models = [structure for structure, *_ in self.axis.iter_structures()]
        return f"{self.n_places} grayordinates of {len(models)} structures"

    @cached_property
    def mapping(self) -> Any:
        """The axis as CIFTI headers of maps hold it; made once, since it takes long."""
        return self.axis.to_mapping(1)


@dataclass(frozen=True)
class ParcelGrid:
    """Parcels of a table; `axis` is nibabel's ParcelsAxis for those of a CIFTI file, None for those of text."""

    names: tuple[str, ...]
    axis: Any = None
    form: ClassVar[Form] = "parcels"

    @property
    def n_places(self) -> int:
        """Number of parcels."""
        return len(self.names)

    @property
    def words(self) -> str:
        """The grid in words, for messages."""
        return f"{self.n_places} parcels ({', '.join(self.names[:2])}, ...)"

    @cached_property
    def mapping(self) -> Any:
        """The axis as CIFTI headers of maps hold it; made once, since it takes long."""
        return self.axis.to_mapping(1)


Grid = VolumeGrid | SurfaceGrid | GrayordinateGrid | ParcelGrid


def same_grid(one: Grid, other: Grid) -> bool:
    """Whether the columns of two series or maps mean the same places."""
    if isinstance(one, VolumeGrid) and isinstance(other, VolumeGrid):
        return one.shape == other.shape and np.allclose(one.affine, other.affine, atol=AFFINE_TOLERANCE)
    if isinstance(one, GrayordinateGrid) and isinstance(other, GrayordinateGrid):
        return one.axis is other.axis or bool(one.axis == other.axis)
    if isinstance(one, ParcelGrid) and isinstance(other, ParcelGrid):
        return one.names == other.names
    return isinstance(one, SurfaceGrid) and one == other
