"""Atlases on the grid of the maps: regions by name, and groups of them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.exceptions import UsageError
from bids_mllm.io.atlas_labels import BOTH, CORTEX, Labels, read_labels
from bids_mllm.io.grids import AFFINE_TOLERANCE, GrayordinateGrid, Grid, ParcelGrid, SurfaceGrid, VolumeGrid
from bids_mllm.io.rois import ALL, FoundGroup, RoiGroup, find_groups
from bids_mllm.records import Atlas, BoolArray, IntArray

#: Vertices of a hemisphere of fsaverage3 to fsaverage, of which the coarse ones are the first of the finer ones.
NESTED = (642, 2562, 10242, 40962, 163842)


@dataclass(frozen=True)
class AtlasFiles:
    """Where one atlas comes from in one space.

    Attributes
    ----------
    name
        Label of the atlas in file names.
    paths
        Label files: one, or those of the left and the right hemisphere; none where parcels are the regions.
    table
        TSV of names, None where the files hold them.
    groups
        Groups of regions that are looked for in it.
    terms
        On what terms it is used, for logs and sidecars; '' where nothing is known.
    digest
        Of the content of all these files.
    """

    name: str
    paths: tuple[Path, ...] = ()
    table: Path | None = None
    groups: tuple[RoiGroup, ...] = ()
    terms: str = ""
    digest: str = ""

    def to_json(self) -> str:
        """Return all of it as one line of JSON."""
        plain = asdict(self) | {"paths": [str(p) for p in self.paths], "table": self.table and str(self.table)}
        return json.dumps(plain, sort_keys=True)


def atlas_from_json(text: str) -> AtlasFiles:
    """Return what `AtlasFiles.to_json` wrote."""
    plain = json.loads(text)
    groups = tuple(RoiGroup(**(group | {"areas": tuple(group["areas"])})) for group in plain["groups"])
    paths = tuple(Path(path) for path in plain["paths"])
    table = Path(plain["table"]) if plain["table"] else None
    return AtlasFiles(plain["name"], paths, table, groups, plain["terms"], plain["digest"])


def files_digest(paths: Sequence[Path]) -> str:
    """Return a digest of the content of files."""
    sha256 = hashlib.sha256()
    for path in paths:
        try:
            sha256.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise UsageError(f"The atlas {path} cannot be read ({error}); check its permissions.") from error
    return sha256.hexdigest()


@dataclass(frozen=True)
class _Region:
    """A region on a grid: its label in the file, and its places."""

    name: str
    index: int
    rank: float
    places: IntArray


def load_atlas(files: AtlasFiles, grid: Grid, kept: BoolArray) -> Atlas:
    """Load an atlas on the grid of the maps.

    Volumes are brought to the grid by nearest neighbour where needed; of fsaverage the first vertices are taken for
    its coarser versions; CIFTI is matched by structure and vertex or voxel; parcels are regions themselves.

    Parameters
    ----------
    files
    grid
    kept : (grid.n_places,) bool
        Places that have scores.

    Returns
    -------
    atlas : Atlas
        Regions in the order of their hemispheres and labels, then groups and sets.

    Raises
    ------
    UsageError
        When a file cannot be read, does not match its table or cannot serve the grid.
    """
    notes: list[str] = [files.terms] if files.terms else []
    if isinstance(grid, ParcelGrid):
        nan = float("nan")
        regions = [_Region(name, n + 1, nan, np.array([n], dtype=np.int64)) for n, name in enumerate(grid.names)]
    else:
        labels = read_labels(files.paths, files.table)
        regions = _merged(_parts_on(grid, labels, files, notes), labels)
        notes += labels.notes
        lost = _lost(labels, regions)
        if not regions:
            raise UsageError(
                f"No region of the atlas {files.paths[0]} lies on the grid of the maps ({grid.words}); check that it "
                "is in their space."
            )
        if lost:
            notes.append(f"No place of the grid of the maps lies in {', '.join(lost)} of {files.name}.")
    return _atlas(files, regions, kept, notes)


def _lost(labels: Labels, regions: Sequence[_Region]) -> list[str]:
    found = {region.name for region in regions}
    return sorted({name for name in labels.names.names.values() if name not in found})


def _parts_on(grid: Grid, labels: Labels, files: AtlasFiles, notes: list[str]) -> list[tuple[str, int, IntArray]]:
    """Return hemisphere, first place and labels of the parts of a grid."""
    if isinstance(grid, VolumeGrid) and labels.volume is not None:
        return [(BOTH, 0, _resampled(labels, grid))]
    if isinstance(grid, SurfaceGrid) and labels.vertices:
        sizes = {"L": grid.n_left, "R": grid.n_right}
        sides = {side: _on_mesh(labels, side, size, files, notes) for side, size in sizes.items()}
        return [("L", 0, sides["L"]), ("R", grid.n_left, sides["R"])]
    if isinstance(grid, GrayordinateGrid) and labels.vertices:
        return list(_on_grayordinates(grid, labels, files, notes))
    raise UsageError(
        f"The atlas {files.paths[0]} cannot serve maps of {grid.words}; give one of their form with --atlas: a NIfTI "
        "label image for volumes, GIFTI or annot files of both hemispheres for surfaces, .dlabel.nii for grayordinates."
    )


def _resampled(labels: Labels, grid: VolumeGrid) -> IntArray:
    import nibabel as nib
    from nilearn.image import resample_img

    volume = np.asarray(labels.volume)
    if volume.shape == grid.shape and np.allclose(labels.affine, grid.affine, atol=AFFINE_TOLERANCE):
        flat: IntArray = volume.ravel()
        return flat
    source = nib.Nifti1Image(volume.astype(np.int32), labels.affine)
    moved = resample_img(
        source, grid.affine, grid.shape, interpolation="nearest", force_resample=True, copy_header=True
    )
    labelled: IntArray = np.rint(np.asarray(moved.dataobj)).astype(np.int64).ravel()
    return labelled


def _on_mesh(labels: Labels, side: str, n_vertices: int, files: AtlasFiles, notes: list[str]) -> IntArray:
    """Return the labels of the vertices of one hemisphere's mesh, the first ones of a finer fsaverage."""
    own = labels.vertices.get(side)
    if own is None:
        raise UsageError(f"The atlas {files.paths[0]} has no labels of the {side} hemisphere; give both with --atlas.")
    if len(own) == n_vertices:
        return own
    if len(own) in NESTED and n_vertices in NESTED and len(own) > n_vertices:
        note = f"Of the {len(own)} vertices of {files.name} the first {n_vertices}, those of the maps, are taken."
        notes += [] if note in notes else [note]
        return own[:n_vertices]
    raise UsageError(
        f"The atlas {files.paths[0]} has {len(own)} vertices in the {side} hemisphere, but the maps have {n_vertices}; "
        "give the atlas on the surface of the maps."
    )


def _on_grayordinates(
    grid: GrayordinateGrid, labels: Labels, files: AtlasFiles, notes: list[str]
) -> Iterator[tuple[str, int, IntArray]]:
    sides = {structure: side for side, structure in CORTEX.items()}
    for structure, place, model in grid.axis.iter_structures():
        start = place.start or 0
        if structure in sides and sides[structure] in labels.vertices:
            mesh = _on_mesh(labels, sides[structure], model.nvertices[structure], files, notes)
            yield sides[structure], start, mesh[model.vertex]
        elif structure in labels.voxels:
            yield BOTH, start, _on_voxels(grid, labels, structure, model.voxel, files)


def _on_voxels(grid: GrayordinateGrid, labels: Labels, structure: str, voxels: IntArray, files: AtlasFiles) -> IntArray:
    """Return the labels of the voxels of a structure, matched by their indices in one volume."""
    shape = tuple(grid.axis.volume_shape)
    same = labels.shape == shape and np.allclose(labels.affine, grid.axis.affine, atol=AFFINE_TOLERANCE)
    if not same:
        raise UsageError(
            f"The atlas {files.paths[0]} has its voxels in another volume ({labels.shape}) than the maps ({shape}); "
            "give one of their density, or one of the cortex alone."
        )
    ijk, values = labels.voxels[structure]
    dense = np.zeros(shape, dtype=np.int64)
    dense[tuple(ijk.T)] = values
    return np.asarray(dense[tuple(voxels.T)])


def _merged(parts: Sequence[tuple[str, int, IntArray]], labels: Labels) -> list[_Region]:
    """Collect the places of every region by name over the parts of a grid."""
    places: dict[str, list[IntArray]] = {}
    known: dict[str, tuple[int, float]] = {}
    for side, start, values in parts:
        order = np.argsort(values, kind="stable")
        found, first = np.unique(values[order], return_index=True)
        for label, own in zip(found.tolist(), np.split(order, first[1:]), strict=True):
            name = labels.names.name(side, label)
            if name is None:
                continue
            places.setdefault(name, []).append(own + start)
            known.setdefault(name, (label, labels.names.rank(side, label)))
    return [_Region(name, *known[name], np.sort(np.concatenate(own))) for name, own in places.items()]


def _atlas(files: AtlasFiles, regions: Sequence[_Region], kept: BoolArray, notes: list[str]) -> Atlas:
    """Return regions, then groups, as positions among the places that are kept."""
    position = np.cumsum(kept) - 1
    groups = find_groups(files.groups, [region.name for region in regions])
    notes += [note for group in groups if (note := _note_of_missing(group, files.name))]
    unions = [np.unique(np.concatenate([regions[place].places for place in one.regions])) for one in groups]
    every = [*(region.places for region in regions), *unions]
    sizes = [len(region.places) for region in regions]
    sizes += [_size(one, len(union)) for one, union in zip(groups, unions, strict=True)]
    taken = {region.name for region in regions}
    names = [f"{one.group.name} ({one.group.kind})" if one.group.name in taken else one.group.name for one in groups]
    return Atlas(
        name=files.name,
        n_voxels=int(kept.sum()),
        members=tuple(position[places[kept[places]]] for places in every),
        names=(*(region.name for region in regions), *names),
        kinds=(*("area" for _ in regions), *(one.group.kind for one in groups)),
        indices=(*(region.index for region in regions), *(None for _ in groups)),
        total_voxels=tuple(sizes),
        hierarchy=(*(region.rank for region in regions), *(float("nan") for _ in groups)),
        notes=tuple(notes),
        sources=_sources(names, groups),
    )


def _size(found: FoundGroup, n_places: int) -> int:
    """Places of a group, with areas that the atlas lacks counted as large as the others are on average."""
    return round(n_places * (len(found.regions) + len(found.missing)) / len(found.regions))


def _note_of_missing(found: FoundGroup, atlas: str) -> str:
    if not found.missing:
        return ""
    return (
        f"{found.group.name}: {atlas} lacks {', '.join(found.missing)}; they count as uncovered in its coverage, as "
        "large as the others on average."
    )


def _sources(names: Sequence[str], groups: Sequence[FoundGroup]) -> dict[str, str]:
    """Say of every group what it is and where that comes from."""
    return {
        name: f"{'all areas' if one.group.areas == (ALL,) else ', '.join(one.group.areas)}: {one.group.source}"
        for name, one in zip(names, groups, strict=True)
    }


def atlas_facts(atlas: Atlas) -> dict[str, Any]:
    """Return what the sidecars of the tables of an atlas say of it."""
    more = {"AtlasNotes": list(atlas.notes), "Groups": dict(atlas.sources)}
    return {"Atlas": atlas.name} | {key: value for key, value in more.items() if value}
