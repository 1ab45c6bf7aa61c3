"""Groups of regions by name, the app's own and the user's, and where they lie in an atlas."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from bids_mllm.exceptions import UsageError
from bids_mllm.io.atlas_names import nearest_names, region_key

#: A built-in group becomes a row where at least this share of its areas is in the atlas.
LEAST_SHARE = 0.5
ALL = "all"


@dataclass(frozen=True)
class RoiGroup:
    """Regions that are averaged together.

    `areas` are names of regions, without a hemisphere for both; ``("all",)`` stands for every region. `kind` is group
    or set. Of a group of the user's every area must be in some atlas.
    """

    name: str
    kind: str
    areas: tuple[str, ...]
    source: str
    own: bool = False


@dataclass(frozen=True)
class FoundGroup:
    """A group in an atlas: positions of its regions, and the areas, with hemisphere, that the atlas lacks."""

    group: RoiGroup
    regions: tuple[int, ...]
    missing: tuple[str, ...]


def load_groups(own: Path | None = None) -> tuple[RoiGroup, ...]:
    """Read the app's groups and sets, and those of a file of the user's; an own group of the same name comes instead.

    Raises
    ------
    UsageError
        When the file cannot be read or is not of the form of ``data/rois.toml``.
    """
    text = (files("bids_mllm") / "data" / "rois.toml").read_text(encoding="utf-8")
    built_in = _groups(tomllib.loads(text), {}, own=False)
    if own is None:
        return tuple(built_in.values())
    try:
        content = tomllib.loads(own.read_text(encoding="utf-8"))
        added = _groups(content, built_in, own=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"The file of regions {own} (--rois) cannot be read as TOML: {error}.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"The file of regions {own} (--rois) is not of the form expected ({error}): tables [groups.NAME] with "
            "areas, a list of names of regions, and source, a text; or [sets.NAME] with groups and source."
        ) from error
    return tuple((built_in | added).values())


def _groups(content: Mapping[str, Any], known: Mapping[str, RoiGroup], *, own: bool) -> dict[str, RoiGroup]:
    unknown = set(content) - {"groups", "sets"}
    if unknown or not content:
        raise KeyError(f"it has {', '.join(sorted(unknown)) or 'no table'}")
    made: dict[str, RoiGroup] = {}
    for name, entry in content.get("groups", {}).items():
        made[name] = RoiGroup(name, "group", _texts(name, "areas", entry), str(entry.get("source", "n/a")), own)
    for name, entry in content.get("sets", {}).items():
        areas: tuple[str, ...] = (ALL,)
        if entry["groups"] != ALL:
            parts = [({**known, **made}).get(part) for part in _texts(name, "groups", entry)]
            if None in parts:
                raise KeyError(f"the set {name} names {entry['groups'][parts.index(None)]}, which is no group")
            areas = tuple(dict.fromkeys(area for part in parts if part for area in part.areas))
        made[name] = RoiGroup(name, "set", areas, str(entry.get("source", "n/a")), own)
    return made


def _texts(name: str, key: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    values = entry.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) and value for value in values):
        raise TypeError(f"{key} of {name} must be a list of names")
    return tuple(values)


def find_groups(groups: Iterable[RoiGroup], names: Sequence[str]) -> tuple[FoundGroup, ...]:
    """Find the regions of each group by name.

    Parameters
    ----------
    groups
    names
        Of the regions of an atlas.

    Returns
    -------
    found : tuple of FoundGroup
        Groups of the user's with any area in the atlas, the app's own with at least half of them, and the set of all
        regions where any other of these is there.
    """
    keys = [region_key(name) for name in names]
    sides = sorted({side for side, _ in keys if side}) and ["L", "R"]
    found = []
    for group in groups:
        if group.areas == (ALL,):
            found.append(FoundGroup(group, tuple(range(len(names))), ()))
            continue
        wanted = [(side, area) for area in group.areas for side in _sides_of(area, keys, sides)]
        regions = [_places(side, area, keys) for side, area in wanted]
        missing = tuple(
            f"{side}_{area}" if side and not region_key(area)[0] else area
            for (side, area), places in zip(wanted, regions, strict=True)
            if not places
        )
        share = 1 - len(missing) / len(wanted)
        if share > 0 and (group.own or share >= LEAST_SHARE):
            found.append(FoundGroup(group, tuple(sorted({place for own in regions for place in own})), missing))
    return tuple(found) if any(one.group.areas != (ALL,) for one in found) else ()


def _sides_of(area: str, keys: Sequence[tuple[str, str]], sides: Sequence[str]) -> Sequence[str]:
    """Hemispheres in which an area is looked for: its own, else those of the atlas, or '' where it tells none."""
    side, name = region_key(area)
    if side:
        return [side]
    undivided = any(key == ("", name) for key in keys)
    return sides if sides and not undivided else [""]


def _places(side: str, area: str, keys: Sequence[tuple[str, str]]) -> list[int]:
    wanted = (side, region_key(area)[1])
    return [place for place, key in enumerate(keys) if key == wanted]


def check_own_groups(groups: Iterable[RoiGroup], names: Mapping[str, Sequence[str]], source: Path) -> None:
    """Raise a UsageError for the first area of a group of the user's that no atlas has.

    Parameters
    ----------
    groups
    names
        Names of regions by atlas.
    source
        The file of the groups, for the message.
    """
    every = [name for own in names.values() for name in own]
    keys = {region_key(name) for name in every}
    areas = {area for _, area in keys}
    for group in groups:
        for area in group.areas if group.own and group.areas != (ALL,) else ():
            side, plain = region_key(area)
            if (side, plain) in keys or (not side and plain in areas):
                continue
            close = nearest_names(area, every)
            hint = f"; the nearest names are {', '.join(close)}" if close else ""
            raise UsageError(
                f"{source} (--rois): {group.name} names the area {area}, which is no region of "
                f"{', '.join(names) or 'any atlas, since no --atlas is given'}{hint}."
            )
