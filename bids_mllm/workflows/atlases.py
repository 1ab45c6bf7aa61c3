"""Which atlases the maps of each space are averaged over, checked before anything runs."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from bids_mllm.config import Settings
from bids_mllm.exceptions import UsageError
from bids_mllm.io.atlas import AtlasFiles, load_atlas
from bids_mllm.io.atlas_find import AtlasItem, atlas_items, find_atlas
from bids_mllm.io.atlas_names import INDIVIDUAL
from bids_mllm.io.rois import check_own_groups, load_groups
from bids_mllm.io.series import series_grid
from bids_mllm.records import ParticipantDesign, Run

logger = logging.getLogger("bids_mllm")


def plan_atlases(
    settings: Settings, designs: Sequence[ParticipantDesign], *, only_find: bool = False
) -> Mapping[str, tuple[AtlasFiles, ...]]:
    """Find the atlases of every place of the designs.

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
        By place; series of parcels have one atlas, their own.

    Raises
    ------
    UsageError
        When an atlas serves none of the places, cannot be read or does not match its table, or when a group of the
        user's names an area that there is not.
    """
    items, groups = atlas_items(settings.atlas), load_groups(settings.rois)
    runs = {design.place: design.runs[0] for design in designs}
    found = _found(items, runs, settings, tolerate_missing=only_find)
    atlases = {place: tuple(replace(files, groups=groups) for files in own) for place, own in found.items()}
    if settings.rois is not None and not any(atlases.values()):
        raise UsageError(f"--rois {settings.rois} needs regions to group; give an atlas with --atlas.")
    if not only_find:
        names = _loaded(atlases, designs)
        if settings.rois is not None:
            check_own_groups(groups, names, settings.rois)
    return atlases


def _found(
    items: Sequence[AtlasItem], runs: Mapping[str, Run], settings: Settings, *, tolerate_missing: bool
) -> dict[str, tuple[AtlasFiles, ...]]:
    """Find every atlas in every place; one that serves some places only is left out of the others, with a warning."""
    found: dict[str, list[AtlasFiles]] = {place: [] for place in runs}
    dense = {place: run for place, run in runs.items() if run.form != "parcels"}
    for item in items:
        faults = {}
        for place, run in dense.items():
            try:
                found[place].append(find_atlas(item, run, settings.atlas_dir))
            except UsageError as error:
                faults[place] = error
        if faults and len(faults) == len(dense) and (item.sources or not tolerate_missing):
            raise next(iter(faults.values()))
        for place, fault in faults.items():
            logger.warning("No tables of %s are written for %s: %s", item.name, place, fault)
    for place, run in runs.items():
        if run.form == "parcels":
            found[place].append(AtlasFiles(run.segmentation or "parcels"))
            if items:
                logger.info("The parcels of %s are its regions; --atlas has no effect there.", place)
    return {place: tuple(own) for place, own in found.items()}


def _loaded(
    atlases: Mapping[str, Sequence[AtlasFiles]], designs: Sequence[ParticipantDesign]
) -> dict[str, tuple[str, ...]]:
    """Load every atlas on the grid of its maps, and tell its notes once; return the names of areas by atlas."""
    names: dict[str, tuple[str, ...]] = {}
    notes: dict[str, None] = {}
    for run in _first_runs(designs):
        if not atlases[run.place]:
            continue
        grid = series_grid(run)
        for files in atlases[run.place]:
            atlas = load_atlas(files, grid, np.ones(grid.n_places, dtype=bool))
            areas = [name for name, kind in zip(atlas.names, atlas.kinds, strict=True) if kind == "area"]
            names[files.name] = tuple(dict.fromkeys([*names.get(files.name, ()), *areas]))
            notes |= dict.fromkeys(atlas.notes)
    for note in notes:
        logger.info("%s", note)
    return names


def _first_runs(designs: Sequence[ParticipantDesign]) -> list[Run]:
    """One run of every grid: of each place, and of each participant where places are individual."""
    keys = {
        (design.place, design.participant if design.runs[0].space in INDIVIDUAL else ""): design.runs[0]
        for design in reversed(designs)
    }
    return list(keys.values())[::-1]


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
