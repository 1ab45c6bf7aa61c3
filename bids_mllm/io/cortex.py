"""Which place of a map each vertex of the drawn cortex shows."""

from dataclasses import dataclass

import numpy as np

from bids_mllm.io.grids import GrayordinateGrid, Grid, ParcelGrid, SurfaceGrid, VolumeGrid
from bids_mllm.io.meshes import Meshes, find_flat, find_meshes, folded_fsaverage5
from bids_mllm.records import BoolArray, IntArray

_CORTICES = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")
_FSAVERAGE5 = 10242
#: Where the cortex is looked at between its inner surface (0) and its outer one (1), the middle first.
_DEPTHS = (0.5, 0.35, 0.65, 0.2, 0.8, 0.0, 1.0)


@dataclass(frozen=True)
class Cortex:
    """Surfaces, and what is seen on them.

    Parameters
    ----------
    inflated
    flat
        None where there are no flat ones.
    left, right : (n_vertices,) int
        The place of the map that each vertex shows, -1 for none.
    """

    inflated: Meshes
    flat: Meshes | None
    left: IntArray
    right: IntArray


def cortex_of(space: str, grid: Grid, shown: BoolArray) -> Cortex | None:
    """Return the surfaces that maps of a space can be drawn on.

    Vertices show the place of their own. Volumes of MNI spaces are seen on fsaverage5: each vertex shows the voxel at
    the middle of the cortex there, or where that has no value, the nearest one between its inner and outer surface.

    Parameters
    ----------
    space
        Label of the space.
    grid
        Of the maps.
    shown : (n_places,) bool
        Places that have a value.

    Returns
    -------
    Cortex or None
        None where there is no surface: in volumes of a participant's own, and where the mesh is not at hand.
    """
    if isinstance(grid, VolumeGrid):
        if not space.startswith("MNI"):
            return None
        meshes = find_meshes("fsaverage5", _FSAVERAGE5, _FSAVERAGE5)
        places = _of_volume(grid, shown)
        sides = [places[:_FSAVERAGE5], places[_FSAVERAGE5:]]
    else:
        counts = _n_vertices(grid)
        meshes = find_meshes(space, *counts)
        sides = [np.where((side >= 0) & shown[side], side, -1) for side in _of_vertices(grid, counts)]
    if meshes is None:
        return None
    left, right = (side[: len(meshes.left.points)].astype(np.int64) for side in sides)
    return Cortex(meshes, find_flat(meshes), left, right)


def _n_vertices(grid: Grid) -> tuple[int, int]:
    """Vertices of the whole hemispheres; one that was not measured is as large as the other."""
    if isinstance(grid, SurfaceGrid):
        return grid.n_left, grid.n_right
    if isinstance(grid, VolumeGrid) or grid.axis is None:
        return 0, 0
    left, right = (int(grid.axis.nvertices.get(structure, 0)) for structure in _CORTICES)
    return left or right, right or left


def _of_vertices(grid: Grid, counts: tuple[int, int]) -> list[IntArray]:
    """Place of every vertex of the left and of the right hemisphere, -1 for none."""
    sides: list[IntArray] = [np.full(count, -1, dtype=np.int64) for count in counts]
    if isinstance(grid, SurfaceGrid):
        return [np.arange(grid.n_left), np.arange(grid.n_left, grid.n_places)]
    for side, structure in zip(sides, _CORTICES, strict=True):
        if isinstance(grid, GrayordinateGrid):
            own = np.flatnonzero(np.asarray(grid.axis.name) == structure)
            side[grid.axis.vertex[own]] = own
        elif isinstance(grid, ParcelGrid) and grid.axis is not None:
            for parcel, vertices in enumerate(grid.axis.vertices):
                side[np.asarray(vertices.get(structure, []), dtype=int)] = parcel
    return sides


def _of_volume(grid: VolumeGrid, shown: BoolArray) -> IntArray:
    """Voxel of every vertex of both hemispheres of fsaverage5, -1 where no depth of the cortex has a value."""
    surfaces, inverse = folded_fsaverage5(), np.linalg.inv(np.asarray(grid.affine, dtype=float))
    places = np.full(len(surfaces.white), -1, dtype=np.int64)
    for depth in _DEPTHS:
        points = (1 - depth) * surfaces.white + depth * surfaces.pial
        voxels = np.floor(points @ inverse[:3, :3].T + inverse[:3, 3] + 0.5).astype(int)
        inside = np.asarray(((voxels >= 0) & (voxels < grid.shape)).all(axis=1))
        found = np.asarray(np.ravel_multi_index(tuple(np.where(inside[:, None], voxels, 0).T), grid.shape))
        new = np.flatnonzero((places < 0) & inside & shown[found])
        places[new] = found[new]
    return places
