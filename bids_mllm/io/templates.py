"""What is read from TemplateFlow's folder: which files there are for what, and the command that brings them."""

import os
from dataclasses import dataclass
from pathlib import Path

from bids_mllm.records import NATIVE_SPACES

#: Where the voxels of grayordinates lie.
DEEP_SPACE = "MNI152NLin6Asym"
#: Templates whose figures and atlases are fetched where none is named.
SPACES = ("MNI152NLin2009cAsym", DEEP_SPACE, "fsLR", "fsaverage")
#: Templates with Schaefer's parcels in volumes, and how many parcels those have.
SCHAEFER_SPACES = ("MNI152NLin2009cAsym", DEEP_SPACE)
SCHAEFER_SCALES = ("100", "200", "300", "400", "500", "600", "800", "1000")
SCHAEFER_NETWORKS = ("7", "17")


@dataclass(frozen=True)
class Template:
    """Something that is read from TemplateFlow's folder.

    Parameters
    ----------
    purpose
        What it is, in words.
    choices
        Sets of files that serve, the better one first, relative to the folder.
    table
        A file that belongs to each of them, if any; only an empty one in its place does not serve.
    request
        Options of ``bids-mllm-templates prefetch`` that fetch it.
    """

    purpose: str
    choices: tuple[tuple[str, ...], ...]
    request: str
    table: str | None = None


def templates_folder() -> Path | None:
    """Return TemplateFlow's folder, by its variable or where it would put it; None without a home folder."""
    named = os.environ.get("TEMPLATEFLOW_HOME")
    if named:
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(caches) if caches else Path.home() / ".cache") / "templateflow"
    except RuntimeError:
        return None


def find_template(template: Template, home: Path | None) -> tuple[Path, ...] | None:
    """Return the files of the best choice that is in a folder, without the table; None where none is.

    TemplateFlow lays out its folder with empty files and fills them as they are asked for, so an empty file is none.
    """
    if home is None or (template.table is not None and _is_empty(home / template.table)):
        return None
    for names in template.choices:
        if all(is_filled(home / name) for name in names):
            return tuple(home / name for name in names)
    return None


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def is_filled(path: Path) -> bool:
    """Whether a file is there with its content."""
    return path.is_file() and path.stat().st_size > 0


def how_to_fetch(template: Template) -> str:
    """Return in words how a template that is missing comes to a machine without a network."""
    return (
        f"fetch it on a connected machine with `bids-mllm-templates prefetch --to DIR {template.request}` and set "
        "TEMPLATEFLOW_HOME to DIR"
    )


def background(space: str) -> Template:
    """Return the T1w image of a template, on which figures are drawn."""
    stem = f"tpl-{space}/tpl-{space}"
    choices = tuple((f"{stem}{resolution}_T1w.nii.gz",) for resolution in ("_res-02", "_res-01", "_res-1", ""))
    return Template(f"background of figures in {space}", choices, f"--space {space} --atlas")


def fslr_meshes() -> Template:
    """Return the inflated hemispheres of fsLR."""
    files = tuple(f"tpl-fsLR/tpl-fsLR_den-32k_hemi-{side}_inflated.surf.gii" for side in "LR")
    return Template("surfaces of figures in fsLR", (files,), "--space fsLR --atlas")


def schaefer(space: str, n: str, k: str, *, resolution: str | None = None) -> Template | None:
    """Return Schaefer's n parcels of k networks in a space; None where TemplateFlow has none.

    Parameters
    ----------
    space
        A template of volumes, or any density of fsaverage.
    n, k
        Numbers of parcels and of networks.
    resolution
        Label of the resolution of the maps; 2 mm come first unless it is 1.
    """
    purpose, request = f"Schaefer{n}x{k} in {space}", f"--space {space} --atlas Schaefer{n}x{k}"
    if space.startswith("fsaverage"):
        stem = "tpl-fsaverage/tpl-fsaverage{}_atlas-Schaefer2018" + f"_seg-{k}n_scale-{n}_dseg"
        files = tuple(stem.format(f"_hemi-{side}_den-164k") + ".label.gii" for side in "LR")
        return Template(purpose, (files,), request, f"{stem.format('')}.tsv")
    if space in NATIVE_SPACES or space == "fsLR":
        return None
    stem = f"tpl-{space}/tpl-{space}" + "{}_atlas-Schaefer2018" + f"_desc-{n}Parcels{k}Networks_dseg"
    orders = ("01", "02") if resolution in ("1", "01") else ("02", "01")
    choices = tuple((stem.format(f"_res-{order}") + ".nii.gz",) for order in orders)
    return Template(purpose, choices, request, f"{stem.format('')}.tsv")


def templates_of(space: str) -> tuple[Template, ...]:
    """Return what figures in a space are drawn on; nothing for spaces of participants and what nilearn brings along."""
    if space in NATIVE_SPACES or space.startswith("fsaverage"):
        return ()
    return (fslr_meshes(), background(DEEP_SPACE)) if space == "fsLR" else (background(space),)
