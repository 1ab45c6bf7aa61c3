"""How maps of a space become pictures."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bids_mllm.io.derivatives import MapName
from bids_mllm.io.grids import Grid, VolumeGrid
from bids_mllm.records import FloatArray
from bids_mllm.report.maps import category_map, layer_map, score_map


class Canvas(Protocol):
    """Draws maps (n_places,), NaN where there is nothing to draw, as PNG."""

    @property
    def words(self) -> str:
        """What the picture shows, for its alternative text, such as ``Slices of the brain``."""
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
        return VolumeCanvas(grid, template_background(name.space))
    raise NotImplementedError


NOTHING = "no place has a score"


@dataclass(frozen=True)
class VolumeCanvas:
    """Slices of a volume over an anatomical background; the MNI152 template of nilearn when that is None."""

    grid: VolumeGrid
    background: Any
    words: str = "Slices of the brain"

    def _image(self, values: FloatArray) -> Any:
        import nibabel as nib

        return nib.Nifti1Image(np.asarray(values, dtype=np.float32).reshape(self.grid.shape), self.grid.affine)

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
        if not np.isfinite(values).any():
            return NOTHING
        place = np.unravel_index(int(np.nanargmax(values)), self.grid.shape)
        x, y, z = (np.asarray(self.grid.affine) @ np.array([*place, 1.0]))[:3]
        return f"the highest, {np.nanmax(values):.2f}, lies at x {x:.0f}, y {y:.0f}, z {z:.0f} mm"


def template_background(space: str) -> Any:
    """Return the T1w template of a space from TemplateFlow's folder if it is there, else None; never downloads."""
    import nibabel as nib

    home = os.environ.get("TEMPLATEFLOW_HOME")
    if not home:
        return None
    for resolution in ("02", "01"):
        path = Path(home) / f"tpl-{space}" / f"tpl-{space}_res-{resolution}_T1w.nii.gz"
        if path.is_file() and path.stat().st_size > 0:
            return nib.load(path)
    return None
