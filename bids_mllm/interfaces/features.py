"""Nodes that fill the feature store."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from bids_mllm.exceptions import BidsMllmError, StoreError
from bids_mllm.features.extractor import Demonstration, Family, ReadOut
from bids_mllm.features.registry import load_family
from bids_mllm.features.table import FeatureTable, check_table, table_windows
from bids_mllm.interfaces.extraction import Machine, ModelTask, extract_film, make_task
from bids_mllm.interfaces.grid_work import missing_windows
from bids_mllm.interfaces.seeding import seed_everything
from bids_mllm.io.clips import read_clips
from bids_mllm.io.demonstrations import DemonstrationRow, read_demonstrations
from bids_mllm.io.files import write_json, write_tsv
from bids_mllm.io.store import FeatureEntry, FeatureStore, entry_description
from bids_mllm.io.tables import read_feature_table
from bids_mllm.records import Condition, Instruction, ModelSpec, Stimulus, WindowGrid


class _ExtractInputSpec(BaseInterfaceInputSpec):
    stimulus = traits.Str(mandatory=True, desc="JSON of a Stimulus")
    models = traits.Str(mandatory=True, desc="JSON list of {spec, readout, grids}, one a model")
    checkpoints = traits.List(traits.Str(), mandatory=True, desc="state of the weights, so that changed ones run again")
    demonstrations = traits.Str("", usedefault=True, desc="TOML file for models that learn in context")
    features_dir = traits.Str(mandatory=True, desc="folder of the feature store")
    texts_dir = traits.Str(mandatory=True, desc="folder of what the models generated")
    device = traits.Str("cpu", usedefault=True, nohash=True, desc="cpu, cuda or cuda:N")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc="counts against n_gpu_procs")
    memory_bytes = traits.Float(0.0, usedefault=True, nohash=True, desc="of this process at most, 0 = no bound")
    only_find = traits.Bool(False, usedefault=True, nohash=True, desc="fail where a clip is not there; run no model")
    app_version = traits.Str(mandatory=True, desc="so that a new version runs again")


class _ExtractOutputSpec(TraitedSpec):
    manifests = traits.List(File(exists=True), desc="JSONs, one a model: the entries of the store with its features")


class ExtractFeatures(SimpleInterface):
    """Extract the features of one stimulus for all models into the store, all conditions and layers."""

    input_spec = _ExtractInputSpec
    output_spec = _ExtractOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        stimulus = stimulus_from_json(self.inputs.stimulus)
        store = FeatureStore(Path(self.inputs.features_dir), only_find=self.inputs.only_find)
        tasks, failures = self._tasks(stimulus, store)
        if self.inputs.only_find and (lacks := _lacks(stimulus, tasks)):
            raise StoreError(lacking_sentence(lacks, store.folder))
        if tasks and not self.inputs.only_find:
            seed_everything(tasks[0].readout.seed)
            extract_film(stimulus, tasks, store, self._machine(tasks))
        if failures:
            raise failures[0]
        manifests = []
        for number, task in enumerate(tasks):
            path = Path(runtime.cwd) / f"{number:02d}_{task.spec.key.replace('+', 'plus')}.json"
            texts = write_texts(Path(self.inputs.texts_dir), stimulus, task)
            write_json(path, manifest(stimulus, task) | {"texts": [str(text) for text in texts]})
            manifests.append(str(path))
        self._results["manifests"] = manifests
        return runtime

    def lacking(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Return how many windows the store lacks, of how many, by model and stimulus; those with all are left out.

        Nothing is written.

        Raises
        ------
        BidsMllmError
            When a model cannot be planned.
        """
        stimulus = stimulus_from_json(self.inputs.stimulus)
        tasks, failures = self._tasks(stimulus, FeatureStore(Path(self.inputs.features_dir), only_find=True))
        if failures:
            raise failures[0]
        return _lacks(stimulus, tasks)

    def _tasks(self, stimulus: Stimulus, store: FeatureStore) -> tuple[list[ModelTask], list[BidsMllmError]]:
        """Plan all models; one that cannot be planned does not keep the others from being extracted."""
        tasks, failures = [], []
        for model in json.loads(self.inputs.models):
            try:
                tasks.append(self._task(stimulus, model, store))
            except BidsMllmError as error:
                failures.append(error)
        return tasks, failures

    def _task(self, stimulus: Stimulus, model: Mapping[str, Any], store: FeatureStore) -> ModelTask:
        spec = ModelSpec(**model["spec"])
        readout = readout_from_json(model["readout"])
        family = load_family(spec.family)
        if spec.kind.startswith("in-context") and self.inputs.demonstrations:
            shown = read_demonstrations(Path(self.inputs.demonstrations))
            readout = with_demonstrations(spec, readout, family, shown)
        grids = [WindowGrid(**grid) for grid in model["grids"]]
        return make_task(stimulus, spec, readout, family, grids, store)

    def _machine(self, tasks: Sequence[ModelTask]) -> Machine:
        """Return the device; free memory matters to models that say what they need."""
        if all(task.plan.cost is None or task.complete for task in tasks):
            return Machine(self.inputs.device)
        from bids_mllm.features.models.memory import free_bytes

        return Machine(self.inputs.device, partial(free_bytes, self.inputs.device, self.inputs.memory_bytes or None))


def _lacks(stimulus: Stimulus, tasks: Sequence[ModelTask]) -> dict[tuple[str, str], tuple[int, int]]:
    lacks = {}
    for task in tasks:
        n_missing = sum(missing_windows(entries) for _, entries in task.grids)
        if n_missing:
            lacks[task.spec.key, stimulus.stim_file] = (n_missing, sum(grid.n_windows for grid, _ in task.grids))
    return lacks


def lacking_sentence(lacks: Mapping[tuple[str, str], tuple[int, int]], folder: Path) -> str:
    """Say in one sentence which features are not in the store, and what brings them there."""
    named = [f"{n_missing} of {n} clips of {model} from {film}" for (model, film), (n_missing, n) in lacks.items()]
    more = f" and more of {len(named) - 3} others" if len(named) > 3 else ""
    return (
        f"The feature store {folder} lacks {', '.join(named[:3])}{more}; run the same command with --stages features "
        "first, or give the --features-dir where they are."
    )


def readout_from_json(content: Mapping[str, Any]) -> ReadOut:
    """Rebuild a ReadOut from its fields as JSON values; demonstrations are read from their file."""
    values = dict(content)
    values["poolings"] = tuple(values["poolings"])
    values["instructions"] = tuple(Instruction(**item) for item in values["instructions"])
    values["demonstrations"] = ()
    return ReadOut(**values)


def with_demonstrations(
    spec: ModelSpec, readout: ReadOut, family: Family, shown: Sequence[DemonstrationRow]
) -> ReadOut:
    """Return the read-out with the media of demonstrations, decoded as the model takes them."""
    rows = [Demonstration(row.clip, row.stimulus.sha256, row.instruction, row.answer) for row in shown]
    request = family.plan(spec, replace(readout, demonstrations=tuple(rows))).request
    decoded = [next(iter(read_clips(row.stimulus, [row.clip], request))) for row in shown]
    return replace(
        readout,
        demonstrations=tuple(replace(row, media=media) for row, media in zip(rows, decoded, strict=True)),
    )


def stimulus_from_json(text: str) -> Stimulus:
    """Rebuild a Stimulus from the JSON of its fields."""
    content = json.loads(text)
    return Stimulus(**(content | {"path": Path(content["path"])}))


def manifest(stimulus: Stimulus, task: ModelTask) -> dict[str, Any]:
    """Return where the features of one model and stimulus are, and which windows have none."""
    rows = []
    for grid, entries in task.grids:
        for condition, entry in entries.items():
            rows.append(_manifest_row(grid, condition, entry))
    return {"model": task.spec.key, "stim_file": stimulus.stim_file, "entries": rows}


def _manifest_row(grid: WindowGrid, condition: Condition, entry: FeatureEntry) -> dict[str, Any]:
    return {
        "origin": grid.origin,
        "step": grid.step,
        "length": grid.length,
        "pooling": condition.pooling,
        "instruction": condition.instruction,
        "path": str(entry.path),
        "n_windows": entry.n_windows,
        "n_layers": entry.n_layers,
        "width": entry.width,
        "masked": {str(window): reason for window, reason in entry.masked().items()},
    }


def write_texts(folder: Path, stimulus: Stimulus, task: ModelTask) -> list[Path]:
    """Write what a model generated, one table an instruction: start and end of each window, and the text.

    Windows of several grids follow one another in one table.
    """
    tables: dict[str, list[dict[str, Any]]] = {}
    for grid, entries in task.grids:
        for condition, entry in entries.items():
            said = entry.texts() if condition.pooling == "generated" else None
            if said is not None and condition.instruction is not None:
                tables.setdefault(condition.instruction, []).extend(
                    {"start": float(start), "end": float(end), "text": text or None}
                    for start, end, text in zip(grid.starts, grid.ends, said, strict=True)
                )
    stem = re.sub(r"[^0-9A-Za-z.-]+", "-", stimulus.stim_file)
    paths = []
    for key, rows in tables.items():
        path = folder / f"model-{task.spec.key}" / f"{stem}_instruction-{key}_texts.tsv"
        write_tsv(path, rows, ["start", "end", "text"])
        paths.append(path)
    return paths


class _TableInputSpec(BaseInterfaceInputSpec):
    name = traits.Str(mandatory=True, desc="label of the feature table")
    folder = traits.Str(mandatory=True, desc="folder of its files")
    stim_file = traits.Str(mandatory=True)
    sha256 = traits.Str(mandatory=True, desc="of the table, so that a changed one runs again")
    span = traits.Float(mandatory=True, desc="seconds of the stimulus that the table must cover")
    grids = traits.Str(mandatory=True, desc="JSON list of WindowGrids")
    features_dir = traits.Str(mandatory=True)
    app_version = traits.Str(mandatory=True)


class _TableOutputSpec(TraitedSpec):
    manifests = traits.List(File(exists=True), desc="one JSON: the entries of the store that hold the features")


class ReadFeatureTable(SimpleInterface):
    """Bring a feature table of the user's to windows and put it into the store."""

    input_spec = _TableInputSpec
    output_spec = _TableOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        content = read_feature_table(Path(self.inputs.folder), self.inputs.stim_file)
        table = table_from_content(content, self.inputs.stim_file)
        grids = [WindowGrid(**grid) for grid in json.loads(self.inputs.grids)]
        check_table(table, self.inputs.span, window=max(grid.length for grid in grids))
        store = FeatureStore(Path(self.inputs.features_dir))
        condition = Condition("stimulus")
        rows = []
        for grid in grids:
            entry = store.entry(
                entry_description(
                    media={"sha256": content["sha256"], "kind": "table"},
                    grid=grid,
                    identity={"family": "table", "columns": content["columns"]},
                    condition=condition,
                    instruction_text=None,
                ),
                n_windows=grid.n_windows,
                n_layers=1,
                width=len(table.columns),
            )
            values = table_windows(table, grid.starts, grid.ends).astype(np.float32)
            for chunk in entry.missing_chunks():
                entry.write(chunk, values[entry.rows(chunk), None, :])
            rows.append(_manifest_row(grid, condition, entry))
        path = Path(runtime.cwd) / "manifest.json"
        write_json(path, {"model": self.inputs.name, "stim_file": table.stim_file, "entries": rows})
        self._results["manifests"] = [str(path)]
        return runtime


def table_from_content(content: Mapping[str, Any], stim_file: str) -> FeatureTable:
    """Turn what io read into the record of the features room."""
    return FeatureTable(
        stim_file=stim_file,
        columns=tuple(content["columns"]),
        onset=np.asarray(content["onset"], dtype=float),
        duration=np.asarray(content["duration"], dtype=float),
        values=np.asarray(content["values"], dtype=float).reshape(-1, len(content["columns"])),
        aggregation=tuple(content["aggregation"]),
    )
