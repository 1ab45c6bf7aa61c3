"""Which models there are: built-in records, plug-ins, and what a request on the command line means."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module, resources
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from bids_mllm.exceptions import CheckpointError, UsageError
from bids_mllm.features.extractor import Family
from bids_mllm.features.models.checkpoint import HUB_ID, read_config
from bids_mllm.records import ModelSpec

PLUGIN_GROUP = "bids_mllm.models"
FAMILY_OF_MODEL_TYPE = {"qwen2_5_vl": "qwen25vl"}
INSTRUCTED_VIDEO = "instruction-tuned video"
SPEC_FIELDS = frozenset(field.name for field in fields(ModelSpec))


@dataclass(frozen=True)
class Record:
    """A model of the registry, and the parameters that replace its own in a quick trial run."""

    spec: ModelSpec
    sloppy: Mapping[str, Any]

    def chosen(self, sloppy: bool) -> ModelSpec:
        """Return the model with the parameters for this kind of run."""
        if not sloppy:
            return self.spec
        return replace(self.spec, parameters={**self.spec.parameters, **self.sloppy})


def _builtin() -> dict[str, Any]:
    """Return the packaged table of families and models."""
    return tomllib.loads(resources.files("bids_mllm").joinpath("data", "models.toml").read_text("utf-8"))


def _record(key: str, values: Mapping[str, Any], origin: str) -> Record:
    """Return one record, checked; `origin` names where it was written."""
    entry = {name: value for name, value in values.items() if name not in ("key", "sloppy")}
    unknown = sorted(set(entry) - SPEC_FIELDS)
    absent = sorted({"family", "media"} - set(entry))
    if unknown or absent:
        problem = f"the unknown field {unknown[0]!r}" if unknown else f"no field {absent[0]!r}"
        raise UsageError(f"The model {key!r} of {origin} has {problem}; correct its record.")
    _check_label(key, f"The model {key!r} of {origin}")
    return Record(ModelSpec(key=key, **entry), dict(values.get("sloppy", {})))


def _check_label(label: str, what: str) -> None:
    """Raise a UsageError for a label that cannot stand in a file name."""
    if not (label.isascii() and label.isalnum()):
        raise UsageError(f"{what} has the label {label!r}, but a label holds letters and digits only.")


def _plugin_records() -> list[Record]:
    """Return the records that installed packages announce under the entry point group."""
    records = []
    for entry_point in entry_points(group=PLUGIN_GROUP):
        origin = f"the plug-in {entry_point.name!r} ({entry_point.value})"
        try:
            found = entry_point.load()
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{origin} cannot be loaded ({error}); repair or remove the package.") from error
        if not isinstance(found, Mapping):
            raise UsageError(f"{origin} is not a mapping from key to record; correct the package.")
        records += [_record(str(key), values, origin) for key, values in found.items()]
    return records


def load_records() -> dict[str, Record]:
    """Return all records, built-in ones first; a key that comes twice raises a UsageError."""
    builtin = [_record(entry["key"], entry, "the built-in registry") for entry in _builtin()["model"]]
    records: dict[str, Record] = {}
    for record in builtin + _plugin_records():
        key = record.spec.key
        if key in records:
            raise UsageError(f"The model {key!r} is registered twice; rename or remove one of the plug-ins.")
        records[key] = record
    return records


def load_registry() -> dict[str, ModelSpec]:
    """Return the models by key, built-in ones first, then those of plug-ins.

    A plug-in is a package with an entry point in the group ``bids_mllm.models`` that loads a mapping from
    key to record: a mapping with the fields of `ModelSpec`, where `family` is ``module:attribute`` of a
    `Family`, and optionally a table `sloppy`.
    """
    return {key: record.spec for key, record in load_records().items()}


def load_family(name: str) -> Family:
    """Return a family by its name, or by ``module:attribute``; its module is imported only now."""
    families: dict[str, str] = _builtin()["families"]
    target = families.get(name, name)
    module_name, _, attribute = target.partition(":")
    if not attribute:
        choices = ", ".join(sorted(families))
        raise UsageError(f"There is no family {name!r}; choose from {choices}, or module:attribute.")
    try:
        family = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"The family {name!r} cannot be loaded from {target} ({error}).") from error
    if not isinstance(family, Family):
        raise UsageError(f"{target} is not a Family of bids_mllm.features.extractor; correct the plug-in.")
    return family


def _is_hub_id(source: str) -> bool:
    """Tell a hub id from a folder: an existing folder wins, and a hub id is ``owner/name``."""
    return not Path(source).expanduser().is_dir() and HUB_ID.fullmatch(source) is not None


def _family_of_folder(folder: Path) -> str:
    """Return the family of a checkpoint folder, from the model_type of its config.json."""
    try:
        model_type = read_config(folder).get("model_type")
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    family = FAMILY_OF_MODEL_TYPE.get(str(model_type))
    if family is None:
        choices = ", ".join(FAMILY_OF_MODEL_TYPE)
        raise UsageError(
            f"{folder / 'config.json'} has model_type {model_type!r}, which is not supported; the supported "
            f"ones are {choices}."
        )
    return family


def _from_folder(label: str, source: str, record: Record | None) -> Record:
    """Return the model of a folder: a known label's record with this source, or a new record."""
    folder = Path(source).expanduser().absolute()
    family = _family_of_folder(folder)
    if record is None:
        spec = ModelSpec(key=label, family=family, media="video", source=str(folder), kind=INSTRUCTED_VIDEO)
        return Record(spec, {"max_frames": 4})
    if record.spec.family != family:
        raise UsageError(
            f"The folder {folder} holds a model of the family {family}, but {label} is of the family "
            f"{record.spec.family}; give it another label."
        )
    return replace(record, spec=replace(record.spec, source=str(folder), revision=None))


def _from_hub(label: str, source: str, records: Mapping[str, Record]) -> Record:
    """Return the model of a hub id: a known label with this source, or a known source with this label."""
    if label in records:
        spec = records[label].spec
        revision = spec.revision if spec.source == source else None
        return replace(records[label], spec=replace(spec, source=source, revision=revision))
    for record in records.values():
        if record.spec.source == source:
            return replace(record, spec=replace(record.spec, key=label))
    choices = ", ".join(key for key, record in records.items() if record.spec.source)
    raise UsageError(
        f"{source} is neither an existing folder nor a registered hub id; a hub id that is not registered "
        f"needs a registered label that tells its family: {choices}."
    )


def _resolve(request: str, records: Mapping[str, Record]) -> Record:
    """Return the record that one request means."""
    label, has_source, source = request.partition("=")
    if not has_source:
        if request in records:
            return records[request]
        for record in records.values():
            if record.spec.source == request:
                return record
        raise UsageError(
            f"There is no model {request!r}; choose from {', '.join(records)}, or write label=FOLDER for a "
            "checkpoint of your own."
        )
    _check_label(label, f"The model {request!r}")
    if not source:
        raise UsageError(f"The model {request!r} has no folder or hub id after '='; write label=FOLDER.")
    if label in records and not records[label].spec.source:
        raise UsageError(f"The model {label} has no weights, so {request!r} makes no sense; write {label}.")
    if _is_hub_id(source):
        return _from_hub(label, source, records)
    return _from_folder(label, source, records.get(label))


def resolve_models(
    requests: Sequence[str], *, revision: str | None = None, sloppy: bool = False
) -> tuple[ModelSpec, ...]:
    """Return the models that the requests name, in their order.

    Parameters
    ----------
    requests
        Each a key of the registry, a hub id that the registry has, or ``label=SOURCE`` with a folder or
        a hub id. A known label keeps its record with the new source; a new label takes its family from
        the folder's config.json and runs in float32.
    revision
        Commit, tag or branch for the models that come from the hub.
    sloppy
        Whether each record's cheaper parameters replace its own.

    Raises
    ------
    UsageError
        For an unknown key, a folder that is not a checkpoint, a model_type without a family, or a label
        that comes twice.
    """
    records = load_records()
    resolved: dict[str, ModelSpec] = {}
    for request in requests:
        spec = _resolve(request, records).chosen(sloppy)
        if revision is not None and spec.source and _is_hub_id(spec.source):
            spec = replace(spec, revision=revision)
        if spec.key in resolved:
            raise UsageError(f"The model label {spec.key!r} comes twice; give each model its own.")
        resolved[spec.key] = spec
    return tuple(resolved.values())
