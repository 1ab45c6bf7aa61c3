"""Which atlases the maps of each space are averaged over, checked before anything runs."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from bids_mllm.config import Settings
from bids_mllm.exceptions import UsageError
from bids_mllm.io.atlas import AtlasFiles, load_atlas
from bids_mllm.io.atlas_find import AtlasItem, atlas_items, find_atlas
from bids_mllm.io.rois import check_own_groups, load_groups
from bids_mllm.io.series import series_grid
from bids_mllm.records import NATIVE_SPACES, ParticipantDesign, Run

logger = logging.getLogger("bids_mllm")

#: A participant in a place.
Spot = tuple[str, str]


def plan_atlases(
    settings: Settings, designs: Sequence[ParticipantDesign], *, only_find: bool = False
) -> Mapping[Spot, tuple[AtlasFiles, ...]]:
    """Find the atlases of every participant and place of the designs.

    Parameters
    ----------
    settings
    designs
    only_find
        Do not load the atlases on the grids of the maps, which needs the files of the runs, and only warn of names
        that serve no place.

    Returns
    -------
    atlases : dict of tuple
        By participant and place; series of parcels have one atlas, their own.

    Raises
    ------
    UsageError
        When an atlas serves none of the places, cannot be read or does not match its table, or when a group of the
        user's names an area that there is not.
    """
    items, groups = atlas_items(settings.atlas), load_groups(settings.rois)
    runs = {(design.participant, design.place): design.runs[0] for design in designs}
    found = _found(items, runs, settings, tolerate_missing=only_find)
    atlases = {spot: tuple(replace(files, groups=groups) for files in own) for spot, own in found.items()}
    if settings.rois is not None and not any(atlases.values()):
        raise UsageError(f"--rois {settings.rois} needs regions to group; give an atlas with --atlas.")
    if not only_find:
        names = _loaded(atlases, designs)
        if settings.rois is not None:
            check_own_groups(groups, names, settings.rois)
    return atlases


def _found(
    items: Sequence[AtlasItem], runs: Mapping[Spot, Run], settings: Settings, *, tolerate_missing: bool
) -> dict[Spot, tuple[AtlasFiles, ...]]:
    """Find every atlas for everybody in every place; where it serves only some, the others are told in a warning."""
    found: dict[Spot, list[AtlasFiles]] = {spot: [] for spot in runs}
    dense = {spot: run for spot, run in runs.items() if run.form != "parcels"}
    n_participants = len({participant for participant, _ in runs})
    for item in items:
        faults = {}
        for spot, run in dense.items():
            try:
                found[spot].append(find_atlas(item, run, settings.atlas_dir, n_participants))
            except UsageError as error:
                faults[spot] = error
        if faults and len(faults) == len(dense) and (item.sources or not tolerate_missing):
            raise next(iter(faults.values()))
        _warn(item.name, faults, dense)
    for spot, run in runs.items():
        if run.form == "parcels":
            found[spot].append(AtlasFiles(run.segmentation or "parcels"))
    if items:
        for place in dict.fromkeys(run.place for run in runs.values() if run.form == "parcels"):
            logger.info("The parcels of %s are its regions; --atlas has no effect there.", place)
    return {spot: tuple(own) for spot, own in found.items()}


def _warn(name: str, faults: Mapping[Spot, UsageError], spots: Iterable[Spot]) -> None:
    """Tell each fault of an atlas once, with the participants where it is not that of all."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (participant, place), fault in faults.items():
        alike[place, str(fault)].append(participant)
    for (place, sentence), own in alike.items():
        all_of_them = len(own) == sum(one == place for _, one in spots)
        who = "" if all_of_them else f" of {', '.join(f'sub-{label}' for label in own)}"
        logger.warning("No tables of %s are written for %s%s: %s", name, place, who, sentence)


def _loaded(
    atlases: Mapping[Spot, Sequence[AtlasFiles]], designs: Sequence[ParticipantDesign]
) -> dict[str, tuple[str, ...]]:
    """Load every atlas on the grid of its maps, and tell its notes once; return the names of areas by atlas."""
    names: dict[str, tuple[str, ...]] = {}
    notes: dict[str, None] = {}
    for run, own in _unlike(atlases, designs):
        grid = series_grid(run)
        for files in own:
            atlas = load_atlas(files, grid, np.ones(grid.n_places, dtype=bool))
            areas = [name for name, kind in zip(atlas.names, atlas.kinds, strict=True) if kind == "area"]
            names[files.name] = tuple(dict.fromkeys([*names.get(files.name, ()), *areas]))
            notes |= dict.fromkeys(atlas.notes)
    for note in notes:
        logger.info("%s", note)
    return names


def _unlike(
    atlases: Mapping[Spot, Sequence[AtlasFiles]], designs: Sequence[ParticipantDesign]
) -> list[tuple[Run, Sequence[AtlasFiles]]]:
    """One run of every grid with its atlases: of each place, and of everybody where grids or atlases are individual."""
    found: dict[tuple[str, str, tuple[AtlasFiles, ...]], tuple[Run, Sequence[AtlasFiles]]] = {}
    for design in designs:
        own, run = atlases[design.participant, design.place], design.runs[0]
        if own:
            whose = design.participant if run.space in NATIVE_SPACES else ""
            found.setdefault((design.place, whose, tuple(own)), (run, own))
    return list(found.values())


def atlas_words(atlases: Sequence[AtlasFiles]) -> str:
    """Return sentences for the methods: over which regions scores were averaged, and on what terms."""
    if not atlases:
        return ""
    names = ", ".join(dict.fromkeys(files.name for files in atlases))
    terms = dict.fromkeys(files.terms for files in atlases if files.terms)
    return " ".join(
        [
            f"Scores were averaged over the regions of {names} and, where their areas are in it, over groups of areas "
            "of both hemispheres; the sidecars of the tables list the groups with their sources.",
            *terms,
        ]
    )
