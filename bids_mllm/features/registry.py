"""Which models there are, and what a request on the command line means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_mllm.exceptions import CheckpointError, UsageError
from bids_mllm.features.catalogue import (
    FamilyEntry,
    Record,
    check_label,
    family_entry,
    family_of_config,
    load_families,
    load_family,
    load_records,
    load_registry,
    load_unavailable,
)
from bids_mllm.features.models.checkpoint import HUB_ID, read_config
from bids_mllm.records import ModelSpec

__all__ = [
    "RANDOM",
    "is_hub_id",
    "load_families",
    "load_family",
    "load_records",
    "load_registry",
    "load_unavailable",
    "resolve_models",
]

#: Behind a key, a hub id or a folder: the same model with weights drawn from a seed.
RANDOM = "+random"


@dataclass(frozen=True)
class _Request:
    """One request, taken apart: `label` None where it is to be found, `source` None where a key is given."""

    text: str
    name: str
    label: str | None
    source: str | None
    random: bool


def _parse(text: str) -> _Request:
    """Take a request apart: KEY, KEY=SOURCE or SOURCE, each with ``+random`` behind the key or at the end."""
    left, has_source, source = text.partition("=")
    random = left.endswith(RANDOM) or source.endswith(RANDOM)
    left, source = left.removesuffix(RANDOM), source.removesuffix(RANDOM)
    if not has_source:
        return _Request(text, left, None, None, random)
    check_label(left, f"The model {text!r}")
    if not source:
        raise UsageError(f"The model {text!r} has no folder or hub id after '='; write label=FOLDER.")
    return _Request(text, left, left, source, random)


def is_hub_id(source: str) -> bool:
    """Tell a hub id from a folder: an existing folder wins, and a hub id is ``owner/name``."""
    return not Path(source).expanduser().is_dir() and HUB_ID.fullmatch(source) is not None


def _with_checkpoints() -> list[str]:
    """Return the names of the families that have checkpoints."""
    return sorted(entry.name for entry in load_families().values() if entry.model_types)


def _label_of(source: str) -> str:
    """Return the label of a hub id or folder that came without one: the letters and digits of its name."""
    name = Path(source).expanduser().absolute().name if not is_hub_id(source) else source.rpartition("/")[2]
    label = "".join(character for character in name if character.isascii() and character.isalnum())
    if not label:
        raise UsageError(f"No label can be made of the name of {source}; write label={source}.")
    return label


def _check_available(name: str) -> None:
    """Raise a UsageError with the reason for a model that cannot be had."""
    for model in load_unavailable():
        if name.lower() in (model.key, model.source.lower()):
            raise UsageError(f"The model {model.key} cannot be had: {model.reason}")


def _family_of_folder(folder: Path, *, need_weights: bool, family: str | None) -> FamilyEntry:
    """Return the family of a checkpoint folder, from its config.json or as given."""
    try:
        config = read_config(folder, need_weights=need_weights)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    found = family_of_config(config)
    model_type = config.get("model_type")
    if found is None and family is None:
        choices = ", ".join(name for entry in load_families().values() for name in entry.model_types)
        raise UsageError(
            f"{folder / 'config.json'} has model_type {model_type!r}, which tells no family; give --family, or a "
            f"checkpoint with one of {choices}."
        )
    if found is not None and family is not None and found != family:
        raise UsageError(
            f"The folder {folder} holds a model of the family {found} (model_type {model_type!r}), but --family says "
            f"{family}; leave --family away or give another folder."
        )
    return family_entry(str(family or found))


def _from_folder(label: str, request: _Request, source: str, record: Record | None, family: str | None) -> Record:
    """Return the model of a folder: a known label's record with this source, or a new record."""
    folder = Path(source).expanduser().absolute()
    if record is None:
        entry = _family_of_folder(folder, need_weights=not request.random, family=family)
        return entry.record(label, str(folder))
    named = record.spec.family if record.spec.family not in load_families() else None
    entry = _family_of_folder(folder, need_weights=not request.random, family=named)
    if entry.name != record.spec.family:
        raise UsageError(
            f"The folder {folder} holds a model of the family {entry.name}, but {label} is of the family "
            f"{record.spec.family}; give it another label."
        )
    return replace(record, spec=replace(record.spec, source=str(folder), revision=None))


def _from_hub(label: str | None, source: str, records: Mapping[str, Record], family: str | None) -> Record:
    """Return the model of a hub id: a known label with this source, a known source, or a new record."""
    if label is not None and label in records:
        spec = records[label].spec
        revision = spec.revision if spec.source == source else None
        return replace(records[label], spec=replace(spec, source=source, revision=revision))
    for record in records.values():
        if record.spec.source == source:
            return record if label is None else replace(record, spec=replace(record.spec, key=label))
    _check_available(source)
    if family is None:
        raise UsageError(
            f"{source} is neither an existing folder nor a registered hub id, so its family is not known; give "
            f"--family with one of {', '.join(_with_checkpoints())}, or write KEY={source} with the key of a "
            "registered model of its family."
        )
    return family_entry(family).record(label or _label_of(source), source)


def _without_label(request: _Request, records: Mapping[str, Record], family: str | None) -> Record:
    """Return the model of a key, a hub id or a folder that came without a label."""
    name = request.name
    if name in records:
        return records[name]
    _check_available(name)
    if "/" in name and Path(name).expanduser().is_dir():
        return _from_folder(_label_of(name), request, name, None, family)
    if HUB_ID.fullmatch(name):
        return _from_hub(None, name, records, family)
    raise UsageError(
        f"There is no model {name!r}; choose from {', '.join(records)}, or write label=FOLDER for a checkpoint of "
        "your own."
    )


def _resolve(request: _Request, records: Mapping[str, Record], family: str | None) -> Record:
    """Return the record that one request means, before its weights are drawn at random."""
    if request.label is None or request.source is None:
        return _without_label(request, records, family)
    known = records.get(request.label)
    if known is not None and not known.spec.source:
        raise UsageError(
            f"The model {request.label} has no weights, so {request.text!r} makes no sense; write {request.label}."
        )
    if is_hub_id(request.source):
        return _from_hub(request.label, request.source, records, family)
    return _from_folder(request.label, request, request.source, known, family)


def _randomised(record: Record) -> Record:
    """Return the same model with weights drawn from a seed, labelled ``KEY+random``."""
    spec = record.spec
    if not spec.source:
        raise UsageError(f"The model {spec.key} has no weights to draw at random; write {spec.key}.")
    return replace(record, spec=replace(spec, key=spec.key + RANDOM, weights="random"))


def resolve_models(
    requests: Sequence[str], *, revision: str | None = None, sloppy: bool = False, family: str | None = None
) -> tuple[ModelSpec, ...]:
    """Return the models that the requests name, in their order.

    Parameters
    ----------
    requests
        Each a key of the registry, a hub id, a folder, or ``label=SOURCE`` with a folder or a hub id, and each
        with ``+random`` behind it for the control with random weights (``key+random``, ``key+random=SOURCE``).
        A known label keeps its record with the new source; a label, hub id or folder without a record takes
        media, kind and parameters from its family and runs in float32. A folder's family is told by its
        config.json. Without a label the letters and digits of the name are the label.
    revision
        Commit, tag or branch for the models that come from the hub.
    sloppy
        Whether each record's cheaper parameters replace its own.
    family
        Family of the hub ids without a record and of folders whose config.json does not tell it.

    Raises
    ------
    UsageError
        For an unknown key or family, a model that cannot be had, a folder that is not a checkpoint or belongs to
        another family, a hub id without a family, ``+random`` for a model without weights, or a label that
        comes twice.
    """
    if family is not None:
        family_entry(family)
    records = load_records()
    resolved: dict[str, ModelSpec] = {}
    for text in requests:
        request = _parse(text)
        record = _resolve(request, records, family)
        spec = (_randomised(record) if request.random else record).chosen(sloppy)
        if revision is not None and spec.source and is_hub_id(spec.source):
            spec = replace(spec, revision=revision)
        if spec.key in resolved:
            raise UsageError(f"The model label {spec.key!r} comes twice; give each model its own.")
        resolved[spec.key] = spec
    return tuple(resolved.values())
