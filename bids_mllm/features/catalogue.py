"""What the registry holds: families, models and models that cannot be had, built in and from plug-ins."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from importlib import import_module, resources
from importlib.metadata import entry_points
from typing import Any, cast

from bids_mllm.exceptions import UsageError
from bids_mllm.features.extractor import Family
from bids_mllm.records import Media, ModelSpec

PLUGIN_GROUP = "bids_mllm.models"
MEDIA = ("video", "audio", "both")
DTYPES = ("float32", "bfloat16", "float16")
KINDS = (
    "instruction-tuned video",
    "instruction-tuned audio",
    "instruction-tuned omni",
    "in-context",
    "multimodal",
    "unimodal video",
    "unimodal audio",
    "unimodal image",
    "low-level",
)
#: What a record may say; whether weights are drawn at random is said by a request, not by a record.
RECORD_FIELDS = frozenset(spec_field.name for spec_field in fields(ModelSpec)) - {"key", "weights"}


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


@dataclass(frozen=True)
class FamilyEntry:
    """A family of the registry.

    Attributes
    ----------
    name, target
        Its name, and the ``module:attribute`` of its `Family`.
    media, kind, parameters, sloppy
        What a checkpoint of the family is that has no record.
    model_types, architectures
        Values of ``model_type`` and ``architectures`` in a config.json that mean this family.
    remote_code
        Whether its checkpoints run only with code from their own repository.
    """

    name: str
    target: str
    media: Media
    kind: str
    model_types: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    remote_code: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    sloppy: Mapping[str, Any] = field(default_factory=dict)

    def record(self, label: str, source: str) -> Record:
        """Return a record for a checkpoint of this family; it runs in float32."""
        spec = ModelSpec(
            key=label,
            family=self.name,
            media=self.media,
            source=source,
            kind=self.kind,
            parameters=dict(self.parameters),
        )
        return Record(spec, dict(self.sloppy))


@dataclass(frozen=True)
class Unavailable:
    """A model that cannot be had, why in one sentence that names another, and its hub id if it has one."""

    key: str
    reason: str
    source: str = ""


@lru_cache(maxsize=1)
def _builtin() -> dict[str, Any]:
    """Return the packaged table of families and models; callers leave it unchanged."""
    return tomllib.loads(resources.files("bids_mllm").joinpath("data", "models.toml").read_text("utf-8"))


def check_label(label: str, what: str) -> None:
    """Raise a UsageError for a label that cannot stand in a file name; `what` starts the sentence."""
    if not (label.isascii() and label.isalnum()):
        raise UsageError(f"{what} has the label {label!r}, but a label holds letters and digits only.")


def _fault(entry: Mapping[str, Any]) -> str | None:
    """Say what is wrong with the fields of a record, None when they are right."""
    if unknown := sorted(set(entry) - RECORD_FIELDS):
        return f"the unknown field {unknown[0]!r}"
    if absent := sorted({"family", "media"} - set(entry)):
        return f"no field {absent[0]!r}"
    if entry["media"] not in MEDIA:
        return f"media {entry['media']!r}, which is none of {', '.join(MEDIA)}"
    if entry.get("dtype", DTYPES[0]) not in DTYPES:
        return f"dtype {entry['dtype']!r}, which is none of {', '.join(DTYPES)}"
    return None


def _record(key: str, values: Mapping[str, Any], origin: str) -> Record:
    """Return one record, checked; `origin` names where it was written."""
    entry = {name: value for name, value in values.items() if name not in ("key", "sloppy")}
    fault = _fault(entry)
    if fault is not None:
        raise UsageError(f"The model {key!r} of {origin} has {fault}; correct its record.")
    check_label(key, f"The model {key!r} of {origin}")
    return Record(ModelSpec(key=key, **entry), dict(values.get("sloppy", {})))


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


def load_families() -> dict[str, FamilyEntry]:
    """Return the built-in families by name."""
    entries = {}
    for name, values in _builtin()["families"].items():
        lists = {key: tuple(values.get(key, ())) for key in ("model_types", "architectures")}
        entries[name] = FamilyEntry(name=name, **{**values, **lists})
    return entries


def load_unavailable() -> tuple[Unavailable, ...]:
    """Return the models that are known and cannot be had."""
    return tuple(Unavailable(**values) for values in _builtin()["unavailable"])


def family_entry(name: str) -> FamilyEntry:
    """Return a family by its name, or by the ``module:attribute`` that a plug-in's record names.

    Raises
    ------
    UsageError
        For a name that no family has; it lists the choices.
    """
    families = load_families()
    if name in families:
        return families[name]
    for record in load_records().values():
        if record.spec.family == name:
            return FamilyEntry(name=name, target=name, media=record.spec.media, kind=record.spec.kind)
    raise UsageError(f"There is no family {name!r}; choose from {', '.join(sorted(families))}.")


def family_of_config(config: Mapping[str, Any]) -> str | None:
    """Return the family whose checkpoints have such a config.json, None where there is none."""
    architectures = cast("list[str]", config.get("architectures") or [])
    for family in load_families().values():
        if set(family.architectures) & set(architectures) or config.get("model_type") in family.model_types:
            return family.name
    return None


def load_family(name: str) -> Family:
    """Return a family by its name, or by ``module:attribute``; its module is imported only now."""
    families = load_families()
    target = families[name].target if name in families else name
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
