"""BIDS file names as entities, and the inheritance rule over folders."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

#: Entities that say how a file was derived, not which run it belongs to.
DERIVATIVE_ENTITIES = frozenset(
    {"space", "res", "den", "desc", "echo", "part", "hemi", "seg", "atlas", "stat", "parcel", "scale"}
)


@dataclass(frozen=True)
class BidsName:
    """A file name taken apart: ``sub-01_task-rest_bold.nii.gz`` -> entities, suffix, extension."""

    path: Path
    entities: Mapping[str, str]
    suffix: str
    extension: str

    @cached_property
    def run_key(self) -> tuple[tuple[str, str], ...]:
        """Entities of the acquisition with integer runs, so that run-01 and run-1 are one run."""
        return tuple(sorted(normalise_entities(self.entities).items()))


def parse_name(path: Path) -> BidsName | None:
    """Take a BIDS file name apart; None when it is not of that form (``__dup`` copies included)."""
    stem, dot, extension = path.name.partition(".")
    *pairs, suffix = stem.split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if pair.count("-") == 1)
    if len(entities) != len(pairs) or not suffix.isalnum() or not all(entities.values()):
        return None
    return BidsName(path, entities, suffix, dot + extension)


def normalise_entities(entities: Mapping[str, str]) -> dict[str, str]:
    """Drop what derivation added and write numeric runs without leading zeros."""
    kept = {k: v for k, v in entities.items() if k not in DERIVATIVE_ENTITIES}
    if kept.get("run", "").isdigit():
        kept["run"] = str(int(kept["run"]))
    return kept


class FolderIndex:
    """Names in folders, each folder listed once."""

    def __init__(self) -> None:
        self._names: dict[Path, tuple[BidsName, ...]] = {}

    def names(self, folder: Path) -> tuple[BidsName, ...]:
        """Return the BIDS names in `folder`, empty when there is no such folder."""
        if folder not in self._names:
            paths = sorted(folder.iterdir()) if folder.is_dir() else []
            parsed = (parse_name(p) for p in paths if "." in p.name)
            self._names[folder] = tuple(name for name in parsed if name is not None)
        return self._names[folder]

    def inherited(
        self, root: Path, folder: Path, entities: Mapping[str, str], *, suffix: str, extension: str
    ) -> tuple[BidsName, ...]:
        """Files that apply to `entities`, the shallowest first (BIDS inheritance principle).

        A file applies when it lies in `root` or in a folder between `root` and `folder` and all its
        entities are among `entities` with equal values (runs compared as integers). Within one folder
        files with fewer entities come first.
        """
        wanted = normalise_entities(entities) | {k: v for k, v in entities.items() if k in DERIVATIVE_ENTITIES}
        found: list[BidsName] = []
        for place in _ancestry(root, folder):
            fitting = [
                name
                for name in self.names(place)
                if name.suffix == suffix and name.extension == extension and _is_subset(name.entities, wanted)
            ]
            found += sorted(fitting, key=lambda name: len(name.entities))
        return tuple(found)


def _ancestry(root: Path, folder: Path) -> list[Path]:
    """Folders from `root` down to `folder`."""
    below = folder.relative_to(root).parts
    return [root.joinpath(*below[:depth]) for depth in range(len(below) + 1)]


def _is_subset(entities: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    for key, value in entities.items():
        if key == "run" and value.isdigit():
            value = str(int(value))
        if wanted.get(key) != value:
            return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an undecodable or foreign file counts as empty, since it must not stop a run
    that does not need it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
