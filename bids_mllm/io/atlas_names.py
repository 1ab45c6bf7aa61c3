"""Names of regions, hemispheres and atlas files, however a distribution spells them."""

import re
from collections.abc import Iterable
from pathlib import Path

from bids_mllm.records import Form

#: Endings of the files that can hold labels, longest first, with the form of what they label.
ENDINGS: dict[str, Form] = {
    ".dlabel.nii": "grayordinates",
    ".label.gii": "surface",
    ".nii.gz": "volume",
    ".annot": "surface",
    ".gii": "surface",
    ".nii": "volume",
}
BACKGROUND = re.compile(r"\?*|none|(unknown|background|medial[ _-]?wall|corpuscallosum)\b.*", re.I)
_SIDE = r"(l|r|lh|rh|left|right)"
_PREFIX = re.compile(rf"^(?:ctx[ _.-])?{_SIDE}[ _.-]+(?=\S)", re.I)
_SUFFIX = re.compile(rf"(?<=\S)[ _.]+{_SIDE}$", re.I)
_HEMISPHERE_OF_FILE = re.compile(r"(?P<before>^|[_.-])(?P<side>hemi-L|hemi-R|lh|rh|L|R)(?=[_.-])")
_PARTICIPANT_OF_FILE = re.compile(r"(?:^|[_.])sub-([0-9a-zA-Z+]+)")
_OTHER_SIDE = {"hemi-L": "hemi-R", "hemi-R": "hemi-L", "lh": "rh", "rh": "lh", "L": "R", "R": "L"}


def region_key(name: str) -> tuple[str, str]:
    """Return hemisphere (L, R or '') and area of a region, by which regions are matched.

    ``L_V1_ROI``, ``V1_L``, ``lh_V1``, ``Left V1`` and ``L_V1`` are one; so are ``7Networks_LH_Vis_1`` and ``LH_Vis_1``.
    """
    area = re.sub(r"_ROI$", "", name.strip(), flags=re.I)
    area = re.sub(r"^[0-9]+networks[ _]", "", area, flags=re.I)
    side = ""
    for pattern in (_PREFIX, _SUFFIX):
        match = pattern.search(area)
        if match:
            side = match.group(1)[0].upper()
            area = area[: match.start()] + area[match.end() :]
            break
    return side, re.sub(r"[ _.]+", "_", re.sub(r"_ROI$", "", area, flags=re.I)).casefold()


def same_region(one: str, other: str) -> bool:
    """Whether two names mean one region; a hemisphere that only one of them tells does not part them."""
    (side, area), (other_side, other_area) = region_key(one), region_key(other)
    return area == other_area and (side == other_side or "" in (side, other_side))


def is_background(name: str) -> bool:
    """Whether a label stands for what belongs to no region."""
    return any(BACKGROUND.fullmatch(text) for text in (name.strip(), region_key(name)[1]))


def with_side(name: str, side: str) -> str:
    """Return the name of a region of one hemisphere's file, with the hemisphere where the name lacks it."""
    return f"{side}_{name}" if side and not region_key(name)[0] else name


def form_of(path: Path) -> Form | None:
    """Return what a label file labels, by its ending; None for other files."""
    return next((form for ending, form in ENDINGS.items() if path.name.lower().endswith(ending)), None)


def stem_of(path: Path) -> str:
    """Return the name of a label file without its ending."""
    ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), "")
    return path.name[: len(path.name) - len(ending)] if ending else path.name.partition(".")[0]


def hemisphere_of(path: Path) -> str | None:
    """Return L or R for a file of one hemisphere, by ``hemi-L``, ``lh.`` or ``.L.`` in its name; else None."""
    match = _HEMISPHERE_OF_FILE.search(path.name)
    return match["side"].removeprefix("hemi-")[0].upper() if match else None


def other_hemisphere(path: Path) -> Path:
    """Return the path of the other hemisphere's file."""
    return path.with_name(
        _HEMISPHERE_OF_FILE.sub(lambda match: match["before"] + _OTHER_SIDE[match["side"]], path.name)
    )


def atlas_name(path: Path) -> str:
    """Return the label of an atlas: its ``atlas-`` entity, else the letters and digits of its name."""
    entity = entity_of(path, "atlas")
    if entity:
        return entity
    name = path.name.partition(".")[0]
    if form_of(path) == "surface":
        name = _HEMISPHERE_OF_FILE.sub("", stem_of(path) + ".")
    return re.sub(r"[^0-9a-zA-Z]", "", _PARTICIPANT_OF_FILE.sub("", name))


def entity_of(path: Path, *keys: str) -> str | None:
    """Return the label of the first of these entities in a file name."""
    for key in keys:
        match = re.search(rf"(?:^|_){key}-([0-9a-zA-Z+]+)", path.name)
        if match:
            return match.group(1)
    return None


def participant_of(path: Path) -> str | None:
    """Return the label of the one participant whose atlas a file is, None where it tells none."""
    match = _PARTICIPANT_OF_FILE.search(path.name)
    return match.group(1) if match else None


def space_of(path: Path) -> str | None:
    """Return the space of a file by its entities, None where they tell none."""
    space = entity_of(path, "space", "tpl")
    return None if space is None else surface_space(space, entity_of(path, "den"))


def surface_space(space: str, density: str | None) -> str:
    """Return the one name of a version of fsaverage, which a density can tell as well; other spaces as they are."""
    return {"10k": "fsaverage5", "41k": "fsaverage6"}.get(density or "", space) if space == "fsaverage" else space


def space_serves(of_file: str | None, of_maps: str) -> bool:
    """Whether a file of one space can serve maps of another; a file that tells none is taken at its word.

    The vertices of fsaverage5 and fsaverage6 are the first ones of fsaverage.
    """
    if of_file is None or of_file == of_maps:
        return True
    orders = ("fsaverage3", "fsaverage4", "fsaverage5", "fsaverage6", "fsaverage")
    return of_file in orders and of_maps in orders and orders.index(of_file) > orders.index(of_maps)


def nearest_names(wanted: str, names: Iterable[str], n: int = 3) -> list[str]:
    """Return the names that look most like one that does not exist."""
    from difflib import get_close_matches

    by_area = {region_key(name)[1]: name for name in names}
    close = get_close_matches(region_key(wanted)[1], list(by_area), n=n, cutoff=0.4)
    return [by_area[area] for area in close]
