"""How maps of a space become pictures."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bids_mllm.io.derivatives import MapName
from bids_mllm.io.grids import GrayordinateGrid, Grid, ParcelGrid, SurfaceGrid, VolumeGrid
from bids_mllm.io.meshes import Meshes, find_meshes
from bids_mllm.io.templates import DEEP_SPACE, background, find_template, fslr_meshes, how_to_fetch, templates_folder
from bids_mllm.records import FloatArray
from bids_mllm.report.bars import count_bars, histogram, ranked_bars
from bids_mllm.report.maps import category_map, layer_map, score_map
from bids_mllm.report.surfaces import Deep, category_surface, layer_surface, score_surface

NOTHING = "no place has a score"
_NO_MESH = "No mesh of this space is at hand, so the map is counted instead of drawn"
_STRUCTURE = "CIFTI_STRUCTURE_"
_CORTICES = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")


class Canvas(Protocol):
    """Draws maps (n_places,), NaN where there is nothing to draw, as PNG."""

    @property
    def words(self) -> str:
        """How the alternative text of a picture begins, such as ``Slices of the brain coloured by``."""
        ...

    @property
    def note(self) -> str:
        """A sentence for the caption about how the map is drawn; empty if there is nothing to say."""
        ...

    def scores(self, values: FloatArray, *, top: float | None, label: str) -> bytes:
        """Draw scores from 0 to `top`."""
        ...

    def layers(self, positions: FloatArray, layers: "list[int]") -> bytes:
        """Draw positions in a list of layers."""
        ...

    def categories(self, positions: FloatArray, names: "list[str]", *, label: str) -> bytes:
        """Draw positions in a list of names."""
        ...

    def peak(self, values: FloatArray) -> str:
        """Say where the highest value lies."""
        ...


def canvas_of(name: MapName, grid: Grid) -> Canvas:
    """Return what draws the maps of a place."""
    if isinstance(grid, VolumeGrid):
        anatomy = template_background(name.space)
        lacking = f"The anatomy is the MNI152 template, since that of {name.space} is not at hand."
        return VolumeCanvas(grid, anatomy, note="" if anatomy is not None else lacking)
    if isinstance(grid, ParcelGrid):
        return ParcelCanvas(grid)
    left, right = _vertices(grid)
    meshes = find_meshes(name.space, left, right)
    if meshes is None:
        what = "vertices" if isinstance(grid, SurfaceGrid) else "grayordinates"
        return HistogramCanvas(grid, what, f"{_NO_MESH}{_brought(name.space)}.")
    if isinstance(grid, SurfaceGrid):
        return SurfaceCanvas(grid, meshes)
    return GrayordinateCanvas(grid, meshes, template_background(DEEP_SPACE))


def _brought(space: str) -> str:
    """Return in words what brings the mesh of a space to this machine; nothing where that is not known."""
    return f"; {how_to_fetch(fslr_meshes())}" if space == "fsLR" else ""


def _vertices(grid: SurfaceGrid | GrayordinateGrid) -> tuple[int, int]:
    """Return the vertices of the whole hemispheres; one that was not measured is as large as the other."""
    if isinstance(grid, SurfaceGrid):
        return grid.n_left, grid.n_right
    counts = [int(grid.axis.nvertices.get(structure, 0)) for structure in _CORTICES]
    return counts[0] or counts[1], counts[1] or counts[0]


@dataclass(frozen=True)
class VolumeCanvas:
    """Slices of a volume over an anatomical background; the MNI152 template of nilearn when that is None."""

    grid: VolumeGrid
    background: Any
    words: str = "Slices of the brain coloured by"
    note: str = ""

    def _image(self, values: FloatArray) -> Any:
        return _image(np.asarray(values, dtype=np.float32).reshape(self.grid.shape), self.grid.affine)

    def scores(self, values: FloatArray, *, top: float | None, label: str) -> bytes:
        """See `Canvas`."""
        return score_map(self._image(values), background=self.background, vmax=top, label=label)

    def layers(self, positions: FloatArray, layers: list[int]) -> bytes:
        """See `Canvas`."""
        return layer_map(self._image(positions), layers, background=self.background)

    def categories(self, positions: FloatArray, names: list[str], *, label: str) -> bytes:
        """See `Canvas`."""
        return category_map(self._image(positions), names, label=label, background=self.background)

    def peak(self, values: FloatArray) -> str:
        """See `Canvas`."""
        return _peak(self.grid, values)


@dataclass(frozen=True)
class SurfaceCanvas:
    """Inflated hemispheres, from the side and from the middle."""

    grid: SurfaceGrid
    meshes: Meshes
    words: str = "Surfaces of both hemispheres coloured by"

    @property
    def note(self) -> str:
        """See `Canvas`."""
        n_drawn = len(self.meshes.left.points)
        drawn = "" if n_drawn == self.grid.n_left else f", with the first {n_drawn} vertices of each hemisphere"
        return f"Drawn on the inflated {self.meshes.name}{drawn}."

    def sides(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the values of the vertices of the left hemisphere and of the right one."""
        return values[: self.grid.n_left], values[self.grid.n_left :]

    def scores(self, values: FloatArray, *, top: float | None, label: str) -> bytes:
        """See `Canvas`."""
        return score_surface(self.meshes, *self.sides(values), vmax=top, label=label)

    def layers(self, positions: FloatArray, layers: list[int]) -> bytes:
        """See `Canvas`."""
        return layer_surface(self.meshes, *self.sides(positions), layers)

    def categories(self, positions: FloatArray, names: list[str], *, label: str) -> bytes:
        """See `Canvas`."""
        return category_surface(self.meshes, *self.sides(positions), names, label=label)

    def peak(self, values: FloatArray) -> str:
        """See `Canvas`."""
        return _peak(self.grid, values)


@dataclass(frozen=True)
class GrayordinateCanvas:
    """The cortices of CIFTI on inflated hemispheres, and its voxels as slices below them."""

    grid: GrayordinateGrid
    meshes: Meshes
    background: Any

    @property
    def words(self) -> str:
        """See `Canvas`."""
        slices = " and slices of what lies below the cortex" if self._has_voxels else ""
        return f"Surfaces of both hemispheres{slices} coloured by"

    @property
    def note(self) -> str:
        """See `Canvas`."""
        voxels = int(np.sum(self.grid.axis.volume_mask))
        return f"Drawn on the inflated {self.meshes.name}{f' and in {voxels} voxels' if voxels else ''}."

    @property
    def _has_voxels(self) -> bool:
        return bool(np.any(self.grid.axis.volume_mask))

    def sides(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the values of the vertices of the left hemisphere and of the right one, NaN without cortex."""
        axis, whole = self.grid.axis, np.full((2, len(self.meshes.left.points)), np.nan)
        for side, structure in zip(whole, _CORTICES, strict=True):
            own = np.asarray(axis.name) == structure
            side[axis.vertex[own]] = values[own]
        return whole[0], whole[1]

    def _deep(self, values: FloatArray) -> Deep | None:
        if not self._has_voxels:
            return None
        axis = self.grid.axis
        volume = np.full(axis.volume_shape, np.nan, dtype=np.float32)
        volume[tuple(axis.voxel[axis.volume_mask].T)] = values[axis.volume_mask]
        return Deep(_image(volume, axis.affine), self.background)

    def scores(self, values: FloatArray, *, top: float | None, label: str) -> bytes:
        """See `Canvas`."""
        return score_surface(self.meshes, *self.sides(values), vmax=top, label=label, deep=self._deep(values))

    def layers(self, positions: FloatArray, layers: list[int]) -> bytes:
        """See `Canvas`."""
        return layer_surface(self.meshes, *self.sides(positions), layers, deep=self._deep(positions))

    def categories(self, positions: FloatArray, names: list[str], *, label: str) -> bytes:
        """See `Canvas`."""
        deep = self._deep(positions)
        return category_surface(self.meshes, *self.sides(positions), names, label=label, deep=deep)

    def peak(self, values: FloatArray) -> str:
        """See `Canvas`."""
        voxels = np.asarray(self.grid.axis.volume_mask)
        below = np.where(voxels, values, np.nan)
        whole = _peak(self.grid, values)
        if not np.isfinite(below).any() or voxels[int(np.nanargmax(values))]:
            return whole
        return f"{whole}; below the cortex {_peak(self.grid, below)}"


@dataclass(frozen=True)
class ParcelCanvas:
    """Bars: the scores of the highest parcels, or how many parcels each layer and name has."""

    grid: ParcelGrid
    words: str = "Bars of parcels by"
    note: str = ""

    def scores(self, values: FloatArray, *, top: float | None, label: str) -> bytes:
        """See `Canvas`."""
        return ranked_bars(values, self.grid.names, vmax=top, label=label)

    def layers(self, positions: FloatArray, layers: list[int]) -> bytes:
        """See `Canvas`."""
        return count_bars(positions, [str(layer) for layer in layers], label="layer", what="parcels", ordered=True)

    def categories(self, positions: FloatArray, names: list[str], *, label: str) -> bytes:
        """See `Canvas`."""
        return count_bars(positions, names, label=label, what="parcels")

    def peak(self, values: FloatArray) -> str:
        """See `Canvas`."""
        return _peak(self.grid, values)


@dataclass(frozen=True)
class HistogramCanvas:
    """Counts of vertices or grayordinates whose surface is not at hand; `what` is their name in the plural."""

    grid: SurfaceGrid | GrayordinateGrid
    what: str
    note: str = f"{_NO_MESH}."

    @property
    def words(self) -> str:
        """See `Canvas`."""
        return f"Counts of {self.what} by"

    def scores(self, values: FloatArray, *, top: float | None, label: str) -> bytes:
        """See `Canvas`."""
        return histogram(values, vmax=top, label=label, what=self.what)

    def layers(self, positions: FloatArray, layers: list[int]) -> bytes:
        """See `Canvas`."""
        return count_bars(positions, [str(layer) for layer in layers], label="layer", what=self.what, ordered=True)

    def categories(self, positions: FloatArray, names: list[str], *, label: str) -> bytes:
        """See `Canvas`."""
        return count_bars(positions, names, label=label, what=self.what)

    def peak(self, values: FloatArray) -> str:
        """See `Canvas`."""
        return _peak(self.grid, values)


def _image(values: FloatArray, affine: FloatArray) -> Any:
    import nibabel as nib

    return nib.Nifti1Image(values, affine)


def _peak(grid: Grid, values: FloatArray) -> str:
    """Return the highest value and where it lies, in words."""
    if not np.isfinite(values).any():
        return NOTHING
    highest = int(np.nanargmax(values))
    return f"the highest, {values[highest]:.2f}, lies {_where(grid, highest)}"


def _where(grid: Grid, place: int) -> str:
    """Return the words for a column of a map; vertices count from 0."""
    if isinstance(grid, VolumeGrid):
        return f"at {_millimetres(grid.affine, np.unravel_index(place, grid.shape))}"
    if isinstance(grid, ParcelGrid):
        return f"in {grid.names[place]}"
    if isinstance(grid, SurfaceGrid):
        side, vertex = ("left", place) if place < grid.n_left else ("right", place - grid.n_left)
        return f"at vertex {vertex} of the {side} hemisphere"
    axis = grid.axis
    structure = _structure_words(str(axis.name[place]))
    if axis.volume_mask[place]:
        return f"in the {structure} at {_millimetres(axis.affine, axis.voxel[place])}"
    return f"at vertex {axis.vertex[place]} of the {structure}"


def _millimetres(affine: FloatArray, voxel: Any) -> str:
    x, y, z = (np.asarray(affine) @ np.array([*voxel, 1.0]))[:3]
    return f"x {x:.0f}, y {y:.0f}, z {z:.0f} mm"


def _structure_words(structure: str) -> str:
    """Return ``left thalamus`` for ``CIFTI_STRUCTURE_THALAMUS_LEFT``."""
    words = structure.removeprefix(_STRUCTURE).lower().split("_")
    return " ".join([words[-1], *words[:-1]] if words[-1] in ("left", "right") else words)


def template_background(space: str) -> Any:
    """Return the T1w template of a space from TemplateFlow's folder if it is there, else None; never downloads."""
    import nibabel as nib

    found = find_template(background(space), templates_folder())
    return nib.load(found[0]) if found is not None else None
