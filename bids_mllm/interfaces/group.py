"""Nodes of the group level."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from bids_mllm.features.instructions import load_instructions
from bids_mllm.group.inference import prevalence
from bids_mllm.group.maps import group_choice, mean_maps
from bids_mllm.group.significance import fisher_combined
from bids_mllm.interfaces.group_tables import write_group_tables
from bids_mllm.io.derivatives import MapName, outputs, sidecar_path, write_map
from bids_mllm.io.files import read_json, write_json, written_record
from bids_mllm.io.maps import files_of_map
from bids_mllm.io.results import MapOfResult, ModelResult, find_results, stack_any_maps, stack_maps
from bids_mllm.records import FloatArray
from bids_mllm.score.multiplicity import fdr
from bids_mllm.score.roi import LEVEL

AVERAGING = "mean over participants with a value, without Fisher's z"


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


class SummariseCeiling(SimpleInterface):
    """Write the mean noise ceiling of the participants that have one."""

    input_spec = _GroupInputSpec
    output_spec = _GroupOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        results = _results(self.inputs, model=None)
        name = MapName(**json.loads(self.inputs.name))
        self._results["written"] = _listed(runtime, write_group_ceiling(results, name))
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
    """Write the group maps of one model; those of earlier calls that are not written again are removed.

    The mean, its standard error and the number of participants of each condition and of the nested choice; the
    condition and layer with the highest training-internal score on average over participants; the tests within
    participants combined and counted; and the mean differences from other models.
    """
    first = results[0].sidecar()
    conditions, layers = first["Conditions"], first["Layers"]
    facts = {
        "Model": first["Model"],
        "Participants": [result.name.participant for result in results],
        "Conditions": conditions,
        "Layers": layers,
        "Averaging": AVERAGING,
    }
    written = _write_means(results, name, "best", facts) + _write_training_score(results, name, facts)
    written += _write_prevalence(results, name, facts) + _write_fixed(results, name, facts)
    written += _write_normalized(results, name, facts) + _write_differences(results, name, facts)
    for condition in conditions:
        written += _write_means(results, name, condition, facts)
    written += _write_choice(results, name, facts)
    _remove_others(name.path(results[0].output_dir, model=results[0].model, stat="*"), written)
    return written


def write_group_ceiling(results: Sequence[ModelResult], name: MapName) -> list[Path]:
    """Write the mean noise ceiling of the participants that have one, where all have the same kind.

    Parameters
    ----------
    results
        Of all models; the ceiling is the same for every model of a participant.
    name

    Returns
    -------
    written : list of Path
        Empty where there is none; one of an earlier call is removed then.
    """
    path = name.path(results[0].output_dir, stat="noiseceiling")
    own = {result.name: replace(result, model="") for result in results}
    kinds = {result.name: result.sidecar().get("NoiseCeiling") or {} for result in results}
    maps = [(result, "noiseceiling", None) for result in own.values() if result.path("noiseceiling", None).is_file()]
    methods = {kinds[result.name].get("Method") for result, _, _ in maps}
    if len(methods) != 1:
        _remove_others(path, [])
        return []
    stacked, kept, grid = stack_any_maps(maps)
    facts = {
        "Participants": [result.name.participant for result, _, _ in maps],
        "Averaging": AVERAGING,
        "NoiseCeiling": [kinds[result.name] for result, _, _ in maps],
    }
    write_map(path, mean_maps(list(stacked))[0], kept, grid, outputs()["maps"]["noiseceiling"] | facts)
    return [path]


def _remove_others(pattern: Path, written: Sequence[Path]) -> None:
    """Remove the maps whose names match and that were not written now: fewer participants or options made them."""
    for path in set(pattern.parent.glob(pattern.name)) - set(written):
        for each in (*files_of_map(path), sidecar_path(path)):
            each.unlink(missing_ok=True)


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


def _write_fixed(results: Sequence[ModelResult], name: MapName, facts: dict[str, Any]) -> list[Path]:
    """Write the tests of the participants combined, their false discovery rate, and the mean r where it is low."""
    if not all(result.path("p", "best").is_file() for result in results):
        return []
    p, kept, grid = stack_maps(results, "p", "best")
    combined = fisher_combined(p)
    rate = fdr(combined)
    r, _, _ = stack_maps(results, "r", "best", kept=kept)
    maps = {
        "pfixed": combined,
        "qfixed": rate,
        "rthresholded": np.where(rate <= LEVEL, mean_maps(list(r))[0], np.nan),
    }
    test = {
        "Method": "Fisher's combination of the participants' permutation p",
        "FalseDiscoveryRate": "Benjamini and Hochberg over the places of this model",
        "Alpha": LEVEL,
        "Inference": "fixed effects: an effect in one participant is enough; it does not carry to other people",
    }
    written = []
    for stat, values in maps.items():
        path = name.path(results[0].output_dir, model=results[0].model, stat=stat, desc="best")
        write_map(path, values, kept, grid, outputs()["maps"][stat] | facts | {"Test": test})
        written.append(path)
    return written


def _write_differences(results: Sequence[ModelResult], name: MapName, facts: dict[str, Any]) -> list[Path]:
    """Write the mean difference from every other model, over the participants in whom both were compared.

    Which of two models comes first may differ between participants; that of the first participant counts, so that one
    of the two models has the map.
    """
    model, output_dir = results[0].model, results[0].output_dir
    written = []
    for other in _models_subtracted(results):
        directions = [_difference(result, other) for result in results]
        found = [(sign, one) for sign, one in directions if one[0].path(*one[1:]).is_file()]
        signs, maps = [sign for sign, _ in found], [one for _, one in found]
        if signs[0] < 0:
            continue
        stacked, kept, grid = stack_any_maps(maps)
        mean = mean_maps(list(stacked * np.array(signs)[:, None]))[0]
        path = name.path(output_dir, model=model, stat="rdifference", desc=f"vs{other}")
        extra = {"Participants": [one.name.participant for one, _, _ in maps], "Other": other}
        write_map(path, mean, kept, grid, outputs()["maps"]["rdifference"] | facts | extra)
        written.append(path)
    return written


def _difference(result: ModelResult, other: str) -> tuple[int, MapOfResult]:
    """Return the participant's map of the difference from `other`, and -1 where that is of the other one less this."""
    forward = (result, "rdifference", f"vs{other}")
    if result.path("rdifference", f"vs{other}").is_file():
        return 1, forward
    return -1, (replace(result, model=other), "rdifference", f"vs{result.model}")


def _models_subtracted(results: Sequence[ModelResult]) -> list[str]:
    """Return the models that this one has been compared with, where it came first, in any participant."""
    found = []
    for result in results:
        pattern = result.path("rdifference", "vs*")
        names = (re.search(r"_desc-vs([^_]+)_", path.name) for path in sorted(pattern.parent.glob(pattern.name)))
        found += [match.group(1) for match in names if match]
    return list(dict.fromkeys(found))


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
    """Write the best condition and layer, and the best condition of each group of instructions."""
    _, kept, grid = stack_maps(results, "r", "best")
    per_condition = []
    for condition in facts["Conditions"]:
        stacked, _, _ = stack_maps(results, "cvr2", condition, kept=kept)
        per_condition.append(stacked if stacked.ndim == 3 else stacked[:, None, :])
    scores = np.stack(per_condition, axis=1)
    best, layer = group_choice(scores)
    numbers = np.asarray(facts["Layers"], dtype=np.float32)[np.maximum(layer, 0)]
    chosen: list[tuple[str, str | None, FloatArray, dict[str, Any]]] = [
        ("bestcondition", None, np.where(best >= 0, best, np.nan), {}),
        ("bestlayer", None, np.where(layer >= 0, numbers, np.nan), {}),
    ]
    for group, own in instruction_groups(results[0], facts["Conditions"]).items():
        best, _ = group_choice(scores[:, own])
        values = np.where(best >= 0, np.asarray(own)[np.maximum(best, 0)], np.nan)
        among = {"InstructionGroup": group, "ChosenAmong": [facts["Conditions"][index] for index in own]}
        chosen.append(("bestcondition", group, values, among))
    written = []
    for stat, desc, values, among in chosen:
        path = name.path(results[0].output_dir, model=results[0].model, stat=stat, desc=desc)
        extra = {"Choice": "highest training-internal R2, mean over participants", **among}
        write_map(path, values, kept, grid, outputs()["maps"][stat] | facts | extra)
        written.append(path)
    return written


def instruction_groups(result: ModelResult, conditions: Sequence[str]) -> dict[str, list[int]]:
    """Return the places in `conditions` of each group of instructions of which the model has several.

    The groups are those of the built-in lists; an instruction counts by its key and text.
    """
    model = result.sidecar()["Model"]
    texts = model.get("Instructions") or {}
    if not texts:
        return {}
    groups = {one.key: one.group for one in load_instructions(media=model["Media"]) if texts.get(one.key) == one.text}
    places: dict[str, list[int]] = defaultdict(list)
    keys: dict[str, set[str]] = defaultdict(set)
    for index, condition in enumerate(conditions):
        key = read_json(sidecar_path(result.path("cvr2", condition))).get("Instruction")
        if key in groups:
            places[groups[key]].append(index)
            keys[groups[key]].add(key)
    return {group: own for group, own in places.items() if len(keys[group]) > 1}
