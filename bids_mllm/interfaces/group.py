"""Nodes of the group level."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from bids_mllm.group.inference import prevalence
from bids_mllm.group.maps import group_choice, mean_maps
from bids_mllm.interfaces.group_tables import write_group_tables
from bids_mllm.io.derivatives import MapName, outputs, sidecar_path, write_map
from bids_mllm.io.files import write_json, written_record
from bids_mllm.io.maps import files_of_map
from bids_mllm.io.results import ModelResult, find_results, stack_maps
from bids_mllm.records import FloatArray


class _GroupInputSpec(BaseInterfaceInputSpec):
    output_dir = traits.Str(mandatory=True)
    participants = traits.List(traits.Str(), mandatory=True)
    name = traits.Str(mandatory=True, desc="JSON of the fields of a MapName")
    signatures = traits.Str(mandatory=True, desc="sizes and times of the inputs, so that changed ones run again")
    app_version = traits.Str(mandatory=True)


class _ModelInputSpec(_GroupInputSpec):
    model = traits.Str(mandatory=True)


class _GroupOutputSpec(TraitedSpec):
    written = File(exists=True, desc="JSON list of the files written")


class SummariseModel(SimpleInterface):
    """Write mean maps of one model over participants, and its best condition and layer."""

    input_spec = _ModelInputSpec
    output_spec = _GroupOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        results = _results(self.inputs, model=self.inputs.model)
        name = MapName(**json.loads(self.inputs.name))
        written = write_group_model(results, name)
        self._results["written"] = _listed(runtime, written)
        return runtime


class SummariseTables(SimpleInterface):
    """Write the ROI table of all participants and models, and model against model per participant."""

    input_spec = _GroupInputSpec
    output_spec = _GroupOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        results = _results(self.inputs, model=None)
        name = MapName(**json.loads(self.inputs.name))
        written = write_group_tables(results, name)
        self._results["written"] = _listed(runtime, written)
        return runtime


def _listed(runtime: Any, written: Sequence[Path]) -> str:
    path = Path(runtime.cwd) / "written.json"
    files = [file for each in written for file in files_of_map(each)]
    write_json(path, written_record([*files, *dict.fromkeys(map(sidecar_path, files))]))
    return str(path)


def _results(inputs: Any, *, model: str | None) -> tuple[ModelResult, ...]:
    wanted = MapName(**json.loads(inputs.name))
    found = find_results(Path(inputs.output_dir), inputs.participants)
    return tuple(
        result for result in found if result.name.of_group() == wanted and (model is None or result.model == model)
    )


def write_group_model(results: Sequence[ModelResult], name: MapName) -> list[Path]:
    """Write the group maps of one model.

    The mean, its standard error and the number of participants of each condition and of the nested choice; and
    the condition and layer with the highest training-internal score on average over participants.
    """
    first = results[0].sidecar()
    conditions, layers = first["Conditions"], first["Layers"]
    facts = {
        "Model": first["Model"],
        "Participants": [result.name.participant for result in results],
        "Conditions": conditions,
        "Layers": layers,
        "Averaging": "mean over participants with a value, without Fisher's z",
    }
    written = _write_means(results, name, "best", facts) + _write_training_score(results, name, facts)
    written += _write_prevalence(results, name, facts) + _write_normalized(results, name, facts)
    for condition in conditions:
        written += _write_means(results, name, condition, facts)
    return written + _write_choice(results, name, facts)


def _write_means(results: Sequence[ModelResult], name: MapName, desc: str, facts: dict[str, Any]) -> list[Path]:
    stacked, kept, grid = stack_maps(results, "r", desc)
    output_dir = results[0].output_dir
    written = []
    mean, sem, n = mean_maps(list(stacked))
    for stat, values in (("r", mean), ("sem", sem), ("n", n.astype(np.float32))):
        path = name.path(output_dir, model=results[0].model, stat=stat, desc=desc)
        write_map(path, values, kept, grid, outputs()["maps"][stat] | facts)
        written.append(path)
    return written


def _write_training_score(results: Sequence[ModelResult], name: MapName, facts: dict[str, Any]) -> list[Path]:
    """Write the mean training-internal score, by which voxels can be chosen without looking at held-out data."""
    stacked, kept, grid = stack_maps(results, "cvr2", "best")
    path = name.path(results[0].output_dir, model=results[0].model, stat="cvr2", desc="best")
    write_map(path, mean_maps(list(stacked))[0], kept, grid, outputs()["maps"]["cvr2"] | facts)
    return [path]


def _write_prevalence(results: Sequence[ModelResult], name: MapName, facts: dict[str, Any]) -> list[Path]:
    """Write in how many participants each voxel is predicted above chance, and what that says of the population."""
    if not all(result.path("p", "best").is_file() for result in results):
        return []
    p, kept, grid = stack_maps(results, "p", "best")
    found = prevalence(p)
    facts = facts | {"Alpha": found.alpha, "Confidence": found.confidence, "Unit": found.unit}
    maps = {"nsignificant": found.n_significant, "prevalence": found.map, "prevalencelow": found.low}
    written = []
    for stat, values in maps.items():
        path = name.path(results[0].output_dir, model=results[0].model, stat=stat, desc="best")
        write_map(path, np.asarray(values, dtype=np.float32), kept, grid, outputs()["maps"][stat] | facts)
        written.append(path)
    return written


def _write_normalized(results: Sequence[ModelResult], name: MapName, facts: dict[str, Any]) -> list[Path]:
    """Write the mean normalized correlation where every participant has one, by the same kind of ceiling."""
    if not all(result.path("rnormalized", "best").is_file() for result in results):
        return []
    ceilings = [result.sidecar()["NoiseCeiling"] for result in results]
    if len({str(one and one["Method"]) for one in ceilings}) > 1:
        return []
    stacked, kept, grid = stack_maps(results, "rnormalized", "best")
    path = name.path(results[0].output_dir, model=results[0].model, stat="rnormalized", desc="best")
    sidecar = outputs()["maps"]["rnormalized"] | facts | {"NoiseCeiling": ceilings}
    write_map(path, mean_maps(list(stacked))[0], kept, grid, sidecar)
    return [path]


def _write_choice(results: Sequence[ModelResult], name: MapName, facts: dict[str, Any]) -> list[Path]:
    _, kept, grid = stack_maps(results, "r", "best")
    per_condition = []
    for condition in facts["Conditions"]:
        stacked, _, _ = stack_maps(results, "cvr2", condition, kept=kept)
        per_condition.append(stacked if stacked.ndim == 3 else stacked[:, None, :])
    condition, layer = group_choice(np.stack(per_condition, axis=1))
    numbers = np.asarray(facts["Layers"], dtype=np.float32)[np.maximum(layer, 0)]
    chosen: dict[str, FloatArray] = {
        "bestcondition": np.where(condition >= 0, condition, np.nan),
        "bestlayer": np.where(layer >= 0, numbers, np.nan),
    }
    written = []
    for stat, values in chosen.items():
        path = name.path(results[0].output_dir, model=results[0].model, stat=stat)
        extra = {"Choice": "highest training-internal R2, mean over participants"}
        write_map(path, values, kept, grid, outputs()["maps"][stat] | facts | extra)
        written.append(path)
    return written
