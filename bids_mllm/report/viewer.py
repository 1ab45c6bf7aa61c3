"""Maps that readers turn and choose from: colours as codes of one byte, packed into the page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from bids_mllm.records import FloatArray
from bids_mllm.report.content import Picture, ViewerBlock
from bids_mllm.report.maps import SpatialImage, anatomy_of
from bids_mllm.report.packing import packed
from bids_mllm.report.style import name_colours, score_colours
from bids_mllm.report.surfaces import Hemispheres, Mesh

#: Bytes of all packed maps of a viewer.
BUDGET = 6_000_000
#: Codes of scores; code 0 is what is not shown.
N_CODES = 254
_UNIT = 0.01
_GAP = 2.0
_MAX_ANATOMY = 600_000
_SULCUS, _GYRUS = 150, 205


@dataclass(frozen=True)
class Scale:
    """What the codes of a map mean: parts of the range from `low` to `high`, or the position in `names` plus 1.

    Parameters
    ----------
    label
        Text of the legend.
    colours
        One colour a code from 1, such as ``#882e72``.
    names
        Names of the codes from 1; empty for scores.
    low, high
        Ends of the scores.
    """

    label: str
    colours: tuple[str, ...]
    names: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class ViewerMap:
    """One map to choose: its model, its name, the heading it is listed under, and its codes.

    Parameters
    ----------
    model, name, group
    scale
        Position of its scale among those of the viewer.
    codes : (n_places,) uint8
        0 = nothing is shown; on surfaces the left hemisphere comes first.
    """

    model: str
    name: str
    group: str
    scale: int
    codes: NDArray[np.uint8]


@dataclass(frozen=True)
class VolumePlace:
    """A grid of voxels in C order, with the anatomy below it; None = the MNI152 template of nilearn."""

    shape: tuple[int, int, int]
    affine: FloatArray
    background: SpatialImage | None = None


Place = Hemispheres | VolumePlace


def score_scale(label: str, high: float) -> Scale:
    """Return the scale of scores from 0 to `high`."""
    colours = score_colours()(np.linspace(0.0, 1.0, N_CODES))
    return Scale(label, tuple(to_hex(colour) for colour in colours), high=float(high))


def name_scale(label: str, names: Sequence[str], *, ordered: bool = False) -> Scale:
    """Return the scale of names, each in a colour of its own, from dark to light where they are `ordered`."""
    from matplotlib import colormaps

    if ordered:
        colours = tuple(to_hex(colour) for colour in colormaps["viridis"](np.linspace(0.0, 1.0, len(names))))
    else:
        colours = name_colours(len(names))
    return Scale(label, colours, tuple(names))


def score_codes(values: FloatArray, scale: Scale) -> NDArray[np.uint8]:
    """Return the codes of scores (n_places,); not finite or at most the lower end is 0, beyond the upper end the last.

    A code stands for (code / 254) of the range, so a value is off by at most half of that.
    """
    finite = np.isfinite(values)
    share = (np.where(finite, values, scale.low) - scale.low) / (scale.high - scale.low)
    codes = np.clip(np.round(share * N_CODES), 1, N_CODES)
    return np.where(share > 0, codes, 0).astype(np.uint8)


def name_codes(positions: FloatArray) -> NDArray[np.uint8]:
    """Return the codes of positions in a list of names; negative or not finite is 0."""
    positions = np.nan_to_num(np.asarray(positions, dtype=float), nan=-1.0, posinf=-1.0, neginf=-1.0)
    return np.where(positions >= 0, positions + 1, 0).astype(np.uint8)


def viewer_block(
    place: Place, scales: Sequence[Scale], maps: Sequence[ViewerMap], *, picture: Picture, caption: str
) -> ViewerBlock:
    """Return a viewer of maps that takes at most about `BUDGET` bytes of maps.

    Parameters
    ----------
    place
        Both hemispheres, or a grid of voxels.
    scales
    maps
        The important ones first: where all are too large every second voxel is taken along each axis, and where
        these are still too large the last ones are left out.
    picture
        What is seen where no script runs or nothing can be drawn.
    caption

    Returns
    -------
    ViewerBlock
    """
    notes: list[str] = []
    texts = _packed_maps(place, maps)
    if isinstance(place, VolumePlace) and len(texts) < len(maps):
        place, maps = _thinned(place, maps)
        texts = _packed_maps(place, maps)
        notes.append("To keep the page small the viewer shows every second voxel along each axis.")
    if len(texts) < len(maps):
        left_out = len(maps) - len(texts)
        notes.append(f"To keep the page small {left_out} of {len(maps)} maps are left out of the viewer.")
    content = {
        "place": _volume_content(place, maps[0].codes) if isinstance(place, VolumePlace) else _surface_content(place),
        "scales": [_scale_content(scale) for scale in scales],
        "maps": [
            {"model": one.model, "name": one.name, "group": one.group, "scale": one.scale, "codes": text}
            for one, text in zip(maps, texts, strict=False)
        ],
    }
    return ViewerBlock(content, picture, caption, tuple(notes))


def _packed_maps(place: Place, maps: Sequence[ViewerMap]) -> list[str]:
    """Return the codes of the first maps as text, as many as fit."""
    texts: list[str] = []
    room = BUDGET
    for one in maps:
        text = packed(_ordered(place, one.codes))
        room -= len(text)
        if room < 0:
            break
        texts.append(text)
    return texts


def _scale_content(scale: Scale) -> dict[str, Any]:
    ends = {"names": list(scale.names)} if scale.names else {"low": scale.low, "high": scale.high}
    return {"label": scale.label, "colours": list(scale.colours), **ends}


def _ordered(place: Place, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return codes in the order of the browser: voxels as in NIfTI, where the first axis is fastest."""
    return codes.reshape(place.shape).T if isinstance(place, VolumePlace) else codes


def _thinned(place: VolumePlace, maps: Sequence[ViewerMap]) -> tuple[VolumePlace, list[ViewerMap]]:
    """Return every second voxel along each axis."""
    thin = [one.codes.reshape(place.shape)[::2, ::2, ::2] for one in maps]
    affine = np.asarray(place.affine, dtype=float) @ np.diag([2.0, 2.0, 2.0, 1.0])
    shape = thin[0].shape
    small = [replace(one, codes=codes.reshape(-1)) for one, codes in zip(maps, thin, strict=True)]
    return VolumePlace((shape[0], shape[1], shape[2]), affine, place.background), small


def _volume_content(place: VolumePlace, first: NDArray[np.uint8]) -> dict[str, Any]:
    """Return the grid, the anatomy, its extent in millimetres, and the cuts that begin at the peak of a map."""
    anatomy = anatomy_of(place.background)
    values, affine = np.nan_to_num(np.asarray(anatomy.get_fdata(), dtype=float)), np.asarray(anatomy.affine)
    step = int(np.ceil((values.size / _MAX_ANATOMY) ** (1 / 3)))
    values, affine = values[::step, ::step, ::step], affine @ np.diag([step, step, step, 1.0])
    top = float(np.percentile(values[values > 0], 99.5)) if (values > 0).any() else 1.0
    grey = np.clip(np.round(255 * values / top), 0, 255).astype(np.uint8)
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (np.array(values.shape) - 1)
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    low, high = np.ceil(world.min(axis=0)).astype(int), np.floor(world.max(axis=0)).astype(int)
    peak = np.asarray(np.unravel_index(int(first.argmax()), place.shape))
    start = np.asarray(place.affine)[:3, :3] @ peak + np.asarray(place.affine)[:3, 3]
    return {
        "kind": "volume",
        "shape": list(place.shape),
        "affine": _numbers(place.affine),
        "background": {"shape": list(values.shape), "affine": _numbers(affine), "codes": packed(grey.T)},
        "extent": [low.tolist(), high.tolist()],
        "start": np.clip(np.round(start).astype(int), low, high).tolist(),
    }


def _numbers(affine: FloatArray) -> list[float]:
    return [round(float(value), 6) for value in np.asarray(affine).reshape(-1)]


def _surface_content(place: Hemispheres) -> dict[str, Any]:
    """Return both hemispheres, moved apart, since inflated ones lie in each other."""
    left = _side_content(place.left, -float(np.max(place.left.points[:, 0])) - _GAP)
    right = _side_content(place.right, -float(np.min(place.right.points[:, 0])) + _GAP)
    return {"kind": "surface", "unit": _UNIT, "left": left, "right": right}


def _side_content(mesh: Mesh, shift: float) -> dict[str, str]:
    points = np.asarray(mesh.points, dtype=float) + np.array([shift, 0.0, 0.0])
    n_points = len(points)
    folds = np.full(n_points, _GYRUS) if mesh.sulci is None else np.where(mesh.sulci, _SULCUS, _GYRUS)
    return {
        "points": packed(np.round(points / _UNIT).astype(np.int16)),
        "faces": packed(np.asarray(mesh.faces).astype(np.uint16)),
        "folds": packed(folds.astype(np.uint8)),
    }
