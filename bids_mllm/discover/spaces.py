"""Spaces as they are asked for on the command line, and what of a file name they are compared with."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from bids_mllm.discover.names import BidsName
from bids_mllm.exceptions import UsageError
from bids_mllm.records import Form

#: One name for the densities that have two.
SAME_SURFACES = {
    ("fsaverage", "10k"): "fsaverage5",
    ("fsaverage", "41k"): "fsaverage6",
    ("fsaverage", "164k"): "fsaverage",
}
#: fMRIPrep's other word for the participant's own anatomy.
SAME_SPACES = {"anat": "T1w"}
#: Each run has a grid of its own there, so runs cannot be fitted together.
RUN_SPACES = ("func", "bold", "boldref", "run", "sbref")
#: The resolution of files that do not name one.
NATIVE = "native"
MODIFIERS = {"res": "resolution", "den": "density", "seg": "segmentation", "atlas": "segmentation"}
#: Descriptions of the series that are fitted, the better one first.
DESCRIPTIONS = ("preproc", None, "denoised")
EXTENSIONS_OF_SERIES = (".nii.gz", ".nii", ".dtseries.nii", ".func.gii", ".ptseries.nii", ".tsv", ".h5")
PLURALS: dict[Form, str] = {
    "volume": "volumes", "surface": "surfaces", "grayordinates": "grayordinates", "parcels": "parcels"
}  # fmt: skip


@dataclass(frozen=True)
class SpaceQuery:
    """One item of ``--space``; None matches any resolution or density, and for the segmentation dense series only."""

    space: str
    resolution: str | None = None
    density: str | None = None
    segmentation: str | None = None

    def fits(self, entities: Mapping[str, str]) -> bool:
        """Whether a file with these entities is in the space asked for."""
        resolution, density = plain_label(entities.get("res")), entities.get("den")
        asked = NATIVE if self.resolution == NATIVE else plain_label(self.resolution)
        return (
            _canonical(entities.get("space", ""), density) == _canonical(self.space, self.density)
            and self.segmentation == segmentation_of(entities)
            and asked in (None, resolution or NATIVE)
            and (self.density is None or density in (self.density, None))
        )

    @property
    def words(self) -> str:
        """The item as it would be written."""
        labels = {"space": self.space, "res": self.resolution, "den": self.density, "seg": self.segmentation}
        return space_words({key: label for key, label in labels.items() if label is not None})


def _canonical(space: str, density: str | None) -> str:
    return SAME_SURFACES.get((space, density or ""), space)


def plain_label(label: str | None) -> str | None:
    """Return a label without leading zeros where it is a number, so that ``res-02`` is ``res-2``."""
    return str(int(label)) if label is not None and label.isdigit() else label


def segmentation_of(entities: Mapping[str, str]) -> str | None:
    """Return the label of the parcels of a series; None for dense ones."""
    return entities.get("seg") or entities.get("atlas")


def parse_space(text: str) -> SpaceQuery:
    """Read one item of ``--space`` in fMRIPrep's syntax, e.g. ``MNI152NLin6Asym:res-2`` or ``fsLR:den-91k``.

    Raises
    ------
    UsageError
        When it is not of that form.
    """
    space, *modifiers = text.split(":")
    space = SAME_SPACES.get(space, space)
    if not re.fullmatch("[0-9a-zA-Z+]+", space):
        raise UsageError(f"--space {text!r} is no space; give a label such as MNI152NLin6Asym:res-2 or fsLR:den-91k.")
    if space in RUN_SPACES:
        raise UsageError(
            f"--space {text} is another grid in every run, so runs cannot be fitted together; choose T1w, fsnative or "
            "a template."
        )
    values: dict[str, str] = {}
    for modifier in modifiers:
        key, _, label = modifier.partition("-")
        if key not in MODIFIERS or not re.fullmatch("[0-9a-zA-Z+]+", label) or MODIFIERS[key] in values:
            known = ", ".join(f"{name}-LABEL" for name in MODIFIERS)
            raise UsageError(
                f"--space {text} has {modifier!r} behind a colon, but must have each of {known} at most once (seg and "
                "atlas are one), such as MNI152NLin6Asym:res-2 or MNI152NLin6Asym:seg-4S456Parcels."
            )
        values[MODIFIERS[key]] = label
    return SpaceQuery(space, **values)


def form_of(name: BidsName) -> Form | None:
    """Return the form of a preprocessed series by its name; None for every other file."""
    entities, extension = name.entities, name.extension
    # In the HDF5 files of Algonauts 2025 it says which seasons of a series they hold.
    described = extension == ".h5" or entities.get("desc") in DESCRIPTIONS
    if not described or "echo" in entities or entities.get("part", "mag") != "mag":
        return None
    if segmentation_of(entities) is not None:
        suffixes = {".tsv": ("timeseries",), ".ptseries.nii": ("bold", "timeseries"), ".h5": ("bold", "timeseries")}
        fits = name.suffix in suffixes.get(extension, ()) and entities.get("stat", "mean") == "mean"
        return "parcels" if fits else None
    if name.suffix != "bold" or "space" not in entities:
        return None
    forms: dict[str, Form] = {".nii.gz": "volume", ".nii": "volume", ".dtseries.nii": "grayordinates"}
    if extension == ".func.gii" and entities.get("hemi") in ("L", "R"):
        return "surface"
    return forms.get(extension)


def space_words(entities: Mapping[str, str]) -> str:
    """Return the space of a file as it would be asked for."""
    parts = {"res": entities.get("res"), "den": entities.get("den"), "seg": segmentation_of(entities)}
    return ":".join([entities.get("space", "none"), *(f"{key}-{label}" for key, label in parts.items() if label)])


def spaces_by_form(names: list[BidsName]) -> str:
    """Return in words the spaces that there are, by form."""
    found: dict[Form, set[str]] = {form: set() for form in get_args(Form)}
    for name in names:
        form = form_of(name)
        if form is not None:
            found[form].add(space_words(name.entities))
    words = [f"{PLURALS[form]} in {', '.join(sorted(spaces))}" for form, spaces in found.items() if spaces]
    return "; ".join(words) or "no preprocessed series in any space"
