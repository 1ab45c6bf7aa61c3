"""Label atlases on the grid of the maps."""

import csv
import hashlib
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.exceptions import UsageError
from bids_mllm.records import Atlas, BoolArray


def atlas_name(path: Path) -> str:
    """Return the label of an atlas: its ``atlas-`` entity, else the letters and digits of its name."""
    entity = re.search(r"(?:^|_)atlas-([0-9a-zA-Z+]+)", path.name)
    return entity.group(1) if entity else re.sub(r"[^0-9a-zA-Z]", "", path.name.partition(".")[0])


def read_labels(image_path: Path) -> dict[int, str]:
    """Read the table beside a label image: TSV of the same name with the columns index and name."""
    table = image_path.with_name(image_path.name.partition(".")[0] + ".tsv")
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"The atlas table {table} cannot be read as text: {error}.") from error
    except OSError:
        raise UsageError(
            f"The atlas {image_path} has no table {table.name} beside it; write one with the tab-separated columns "
            "index and name."
        ) from None
    try:
        labels = {int(row["index"]): row["name"].strip() for row in rows}
    except (AttributeError, KeyError, ValueError, TypeError):
        raise UsageError(
            f"The atlas table {table} must have the tab-separated columns index (integers) and name."
        ) from None
    return {index: name for index, name in labels.items() if index != 0}


def read_hierarchy(image_path: Path) -> dict[int, float]:
    """Read the ranks in the cortical hierarchy from the column ``hierarchy`` of the table; empty without one."""
    table = image_path.with_name(image_path.name.partition(".")[0] + ".tsv")
    with table.open(encoding="utf-8-sig", newline="") as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if row.get("hierarchy") not in (None, "", "n/a")]
    try:
        return {int(row["index"]): float(row["hierarchy"]) for row in rows}
    except ValueError:
        raise UsageError(
            f"The column hierarchy of the atlas table {table} must hold numbers, or n/a where a region has no rank."
        ) from None


def atlas_digest(image_path: Path) -> str:
    """Return a digest of the image and its table."""
    table = image_path.with_name(image_path.name.partition(".")[0] + ".tsv")
    return hashlib.sha256(image_path.read_bytes() + table.read_bytes()).hexdigest()


def check_atlas(image_path: Path) -> None:
    """Raise a UsageError when the image or its table cannot be read, before anything is computed."""
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    read_labels(image_path)
    read_hierarchy(image_path)
    try:
        nib.load(image_path)
    except (OSError, ImageFileError) as error:
        raise UsageError(f"The atlas {image_path} cannot be read as a label image: {error}.") from error


def load_atlas(image_path: Path, mask: BoolArray, affine: Any) -> Atlas:
    """Load a label image for the voxels of `mask`, brought to its grid by nearest neighbour where needed.

    `total_voxels` counts each label on that grid, in and outside the mask, for the coverage.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nilearn.image import resample_img

    names, ranks = read_labels(image_path), read_hierarchy(image_path)
    try:
        image = nib.load(image_path)
        labels = np.asarray(image.dataobj)
        labels = labels[..., 0] if labels.ndim == 4 and labels.shape[3] == 1 else labels
    except (OSError, EOFError, zlib.error, ImageFileError) as error:
        raise UsageError(f"The atlas {image_path} cannot be read as a label image: {error}.") from error
    if labels.ndim != 3:
        raise UsageError(
            f"The atlas {image_path} has the shape {labels.shape}; expected a 3-D label image, one whole number an ROI."
        )
    if labels.shape != mask.shape or not np.allclose(image.affine, affine, atol=1e-3):
        source = nib.Nifti1Image(labels.astype(np.int32), image.affine)
        moved = resample_img(source, affine, mask.shape, interpolation="nearest", force_resample=True, copy_header=True)
        labels = np.asarray(moved.dataobj)
    whole = np.rint(labels).astype(np.int64)
    present = sorted(set(np.unique(whole)) & set(names))
    if not present:
        raise UsageError(
            f"No label of the table beside {image_path} occurs in the image on the grid of the maps; check that both "
            "are of one atlas and in the space of the maps."
        )
    return Atlas(
        name=atlas_name(image_path),
        labels=whole[mask],
        indices=tuple(int(i) for i in present),
        names=tuple(names[int(i)] for i in present),
        total_voxels=tuple(int((whole == i).sum()) for i in present),
        hierarchy=tuple(ranks.get(int(i), float("nan")) for i in present),
    )
