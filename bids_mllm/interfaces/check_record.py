"""What the checks of a model cover: which stimuli and instructions, read out in which way.

Tasks that share an output folder check the features of a model one after the other, each over its own stimuli and
those of the tasks before it; the record beside the tables says which these are. Entries of the store are named by
their digests alone, so that the record holds no path and is good for a store that was moved.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bids_mllm.exceptions import BidsMllmError, StoreError
from bids_mllm.io.files import read_json, write_json
from bids_mllm.io.locks import locked
from bids_mllm.io.store import FeatureEntry
from bids_mllm.records import Condition, Instruction

FOLDER = Path("sourcedata") / "checks"
PLACE = ("origin", "step", "length")

#: A manifest of `bids_mllm.interfaces.features`, or what one is read back as: model, stim_file, entries.
Manifest = Mapping[str, Any]


def check_path(output_dir: Path, model: str, table: str, extension: str) -> Path:
    """Return the path of a table of checks (conditioning, columns or coupling), of its JSON, or of the record."""
    return output_dir / FOLDER / f"model-{model}_{table}{extension}"


@contextmanager
def checks_locked(output_dir: Path, model: str) -> Iterator[None]:
    """Hold the checks of a model; another task that checks it waits, since it needs what this one writes."""
    busy = BidsMllmError(f"The checks of {model} are in use.")
    with ExitStack() as held:
        try:
            (output_dir / FOLDER).mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(output_dir / FOLDER / f".model-{model}.lock", wait=float("inf"), busy=busy))
        except OSError as error:
            raise StoreError(
                f"The folder {output_dir / FOLDER} cannot be written ({error.strerror or error}); check its "
                "permissions or choose another output folder."
            ) from error
        yield


def coverage(
    manifests: Sequence[Manifest], instructions: Sequence[Instruction], *, seed: int, version: str
) -> dict[str, Any]:
    """Return as JSON values what checks over these manifests of one model cover."""
    stimuli: dict[str, list[dict[str, Any]]] = {}
    asked: set[str | None] = set()
    for manifest in manifests:
        grids: dict[tuple[float, ...], dict[str, Any]] = {}
        for row in manifest["entries"]:
            asked.add(row["instruction"])
            place = {name: row[name] for name in (*PLACE, "n_windows", "n_layers", "width")}
            grid = grids.setdefault(tuple(place.values()), place | {"entries": {}})
            label = Condition(row["pooling"], row["instruction"]).label
            grid["entries"][label] = Path(row["path"]).name
        known = stimuli.setdefault(manifest["stim_file"], [])
        known += [grid for grid in grids.values() if grid not in known]
    told = [asdict(instruction) for instruction in instructions if instruction.key in asked]
    return {
        "Version": version,
        "Seed": seed,
        "Instructions": json.loads(json.dumps(told)),
        "Stimuli": {name: sorted(grids, key=_order) for name, grids in sorted(stimuli.items())},
    }


def _order(grid: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(grid[name] for name in (*PLACE, "n_windows"))


def read_record(output_dir: Path, model: str) -> dict[str, Any]:
    """Return the record beside the checks of a model; empty where there is none that can be read."""
    path = check_path(output_dir, model, "covered", ".json")
    try:
        content = read_json(path) if path.is_file() else {}
    except BidsMllmError:
        return {}
    return content if isinstance(content, dict) else {}


def write_record(output_dir: Path, model: str, covered: Mapping[str, Any], written: Sequence[Path]) -> None:
    """Write beside the checks of a model what they cover, and the checksums of their files."""
    files = {path.name: _checksum(path) for path in written}
    write_json(check_path(output_dir, model, "covered", ".json"), {**covered, "Files": files})


def is_covered(output_dir: Path, model: str, own: Mapping[str, Any]) -> bool:
    """Whether the checks of a model are there as they were written, and cover what `coverage` says of a task."""
    record = read_record(output_dir, model)
    if any(record.get(name) != own[name] for name in ("Version", "Seed", "Instructions")):
        return False
    known = record.get("Stimuli", {})
    if not all(grid in known.get(name, ()) for name, grids in own["Stimuli"].items() for grid in grids):
        return False
    files = record.get("Files", {})
    return bool(files) and all(_checksum(output_dir / FOLDER / name) == told for name, told in files.items())


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def others(output_dir: Path, model: str, own: Sequence[Manifest]) -> list[dict[str, Any]]:
    """Return manifests of the stimuli and grids that the record has beside those of `own`.

    Those are left out that are not whole in the store, or were not read out in the same way under the same
    instructions.
    """
    rows = [row for manifest in own for row in manifest["entries"]]
    conditions = {condition.label: condition for row in rows for condition in [_condition(row)]}
    ways = {(_condition(row).label, _way(Path(row["path"]))) for row in rows}
    places = {(manifest["stim_file"], *_place(row)) for manifest in own for row in manifest["entries"]}
    if not rows:
        return []
    store, found = Path(rows[0]["path"]).parents[1], []
    for name, grids in read_record(output_dir, model).get("Stimuli", {}).items():
        entries: list[dict[str, Any]] = []
        for grid in grids:
            if (name, *_place(grid)) not in places and set(grid["entries"]) == set(conditions):
                entries += _entries(grid, conditions, ways, store)
        found.append({"model": model, "stim_file": name, "entries": entries})
    return [manifest for manifest in found if manifest["entries"]]


def _entries(
    grid: Mapping[str, Any], conditions: Mapping[str, Condition], ways: set[tuple[str, str]], store: Path
) -> list[dict[str, Any]]:
    """Return the entries of a recorded grid as a manifest has them; none unless all are whole and of these ways."""
    rows = []
    shape = {name: grid[name] for name in (*PLACE, "n_windows", "n_layers", "width")}
    for label, digest in grid["entries"].items():
        entry = FeatureEntry(store / digest[:2] / digest, grid["n_windows"], grid["n_layers"], grid["width"])
        way = _way(entry.path)
        if not way or (label, way) not in ways or entry.missing_chunks():
            return []
        rows.append(shape | asdict(conditions[label]) | {"path": str(entry.path)})
    return rows


def _condition(row: Mapping[str, Any]) -> Condition:
    return Condition(row["pooling"], row["instruction"])


def _place(row: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(row[name] for name in PLACE)


def _way(folder: Path) -> str:
    """Return how an entry was read out: its description without the stimulus and the windows; '' without one."""
    try:
        description = dict(json.loads((folder / "entry.json").read_bytes())["description"])
        media = {name: value for name, value in description.pop("media").items() if name != "sha256"}
        del description["grid"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return json.dumps([description, media], sort_keys=True)
