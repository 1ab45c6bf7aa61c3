"""Nodes that fill the feature store."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits
from numpy.typing import NDArray
from tqdm import tqdm

from bids_mllm.features.extraction import extract_clips
from bids_mllm.features.extractor import ExtractionPlan, Family, ReadOut
from bids_mllm.features.registry import load_family
from bids_mllm.features.table import FeatureTable, check_table, table_windows
from bids_mllm.interfaces.seeding import seed_everything
from bids_mllm.io.clips import decoder_identity, read_clips
from bids_mllm.io.files import write_json
from bids_mllm.io.store import FeatureEntry, FeatureStore, entry_description
from bids_mllm.io.tables import read_feature_table
from bids_mllm.records import Clip, Condition, Instruction, ModelSpec, Stimulus, WindowGrid


class _ExtractInputSpec(BaseInterfaceInputSpec):
    stimulus = traits.Str(mandatory=True, desc="JSON of a Stimulus")
    grids = traits.Str(mandatory=True, desc="JSON list of WindowGrids")
    model = traits.Str(mandatory=True, desc="JSON of a ModelSpec")
    checkpoint = traits.Str(mandatory=True, desc="state of the weights on disk, so that changed ones run again")
    readout = traits.Str(mandatory=True, desc="JSON of a ReadOut")
    features_dir = traits.Str(mandatory=True, desc="folder of the feature store")
    device = traits.Str("cpu", usedefault=True, nohash=True, desc="cpu, cuda or cuda:N")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc="counts against n_gpu_procs")
    app_version = traits.Str(mandatory=True, desc="so that a new version runs again")


class _ExtractOutputSpec(TraitedSpec):
    manifest = File(exists=True, desc="JSON: the entries of the store that hold the features")


class ExtractFeatures(SimpleInterface):
    """Extract one model's features of one stimulus into the store, all conditions and layers."""

    input_spec = _ExtractInputSpec
    output_spec = _ExtractOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        stimulus = _stimulus(self.inputs.stimulus)
        spec = ModelSpec(**json.loads(self.inputs.model))
        readout = readout_from_json(self.inputs.readout)
        seed_everything(readout.seed)
        grids = [WindowGrid(**grid) for grid in json.loads(self.inputs.grids)]
        entries = extract_stimulus(
            stimulus, grids, spec, readout, FeatureStore(Path(self.inputs.features_dir)), self.inputs.device
        )
        manifest = Path(runtime.cwd) / "manifest.json"
        write_json(manifest, {"model": spec.key, "stim_file": stimulus.stim_file, "entries": entries})
        self._results["manifest"] = str(manifest)
        return runtime


def readout_from_json(text: str) -> ReadOut:
    """Rebuild a ReadOut from the JSON of its fields."""
    content = json.loads(text)
    content["poolings"] = tuple(content["poolings"])
    content["instructions"] = tuple(Instruction(**item) for item in content["instructions"])
    return ReadOut(**content)


def _stimulus(text: str) -> Stimulus:
    content = json.loads(text)
    return Stimulus(**(content | {"path": Path(content["path"])}))


def extract_stimulus(
    stimulus: Stimulus,
    grids: Sequence[WindowGrid],
    spec: ModelSpec,
    readout: ReadOut,
    store: FeatureStore,
    device: str,
) -> list[dict[str, Any]]:
    """Fill what the store lacks of one stimulus and model; return its entries for the manifest.

    The weights are loaded only when a chunk is missing.
    """
    family = load_family(spec.family)
    plan = family.plan(spec, readout)
    texts = {instruction.key: instruction.text for instruction in readout.instructions}
    found = []
    todo: list[tuple[WindowGrid, dict[Condition, FeatureEntry]]] = []
    for grid in grids:
        entries = {
            condition: store.entry(
                entry_description(
                    media={"sha256": stimulus.sha256, "kind": spec.media, "decoder": decoder_identity()},
                    grid=grid,
                    identity=plan.identity,
                    condition=condition,
                    instruction_text=texts.get(condition.instruction or ""),
                ),
                n_windows=grid.n_windows,
                n_layers=plan.n_layers,
                width=plan.width,
            )
            for condition in plan.conditions
        }
        todo.append((grid, entries))
        found += [_manifest_row(grid, condition, entry) for condition, entry in entries.items()]
    if any(entry.missing_chunks() for _, entries in todo for entry in entries.values()):
        _fill(stimulus, todo, spec, readout, family, plan, device)
    return found


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
    }


def _fill(
    stimulus: Stimulus,
    todo: Sequence[tuple[WindowGrid, Mapping[Condition, FeatureEntry]]],
    spec: ModelSpec,
    readout: ReadOut,
    family: Family,
    plan: ExtractionPlan,
    device: str,
) -> None:
    extractor = family.load(spec, readout, device)
    try:
        for grid, entries in todo:
            missing = sorted({chunk for entry in entries.values() for chunk in entry.missing_chunks()})
            any_entry = next(iter(entries.values()))
            total = sum(any_entry.rows(chunk).stop - any_entry.rows(chunk).start for chunk in missing)
            with tqdm(total=total, desc=f"{spec.key} {stimulus.stim_file}", unit="clip", mininterval=2) as bar:
                for chunk in missing:
                    clips = _clips(stimulus.stim_file, grid, any_entry.rows(chunk))
                    media = _counted(read_clips(stimulus, clips, plan.request), bar)
                    features = extract_clips(extractor, plan, media, model=spec.key)
                    _write_chunk(entries, features, chunk)
    finally:
        extractor.close()


def _clips(stim_file: str, grid: WindowGrid, rows: slice) -> list[Clip]:
    starts, ends = grid.starts, grid.ends
    return [Clip(stim_file, k, float(starts[k]), float(ends[k])) for k in range(rows.start, rows.stop)]


def _counted(media: Iterator[Any], bar: Any) -> Iterator[Any]:
    for item in media:
        yield item
        bar.update()


def _write_chunk(
    entries: Mapping[Condition, FeatureEntry], features: Mapping[Condition, NDArray[np.float32]], chunk: int
) -> None:
    for condition, entry in entries.items():
        if chunk in entry.missing_chunks():
            entry.write(chunk, features[condition])


class _TableInputSpec(BaseInterfaceInputSpec):
    name = traits.Str(mandatory=True, desc="label of the feature table")
    folder = traits.Str(mandatory=True, desc="folder of its files")
    stim_file = traits.Str(mandatory=True)
    sha256 = traits.Str(mandatory=True, desc="of the table, so that a changed one runs again")
    span = traits.Float(mandatory=True, desc="seconds of the stimulus that the table must cover")
    grids = traits.Str(mandatory=True, desc="JSON list of WindowGrids")
    features_dir = traits.Str(mandatory=True)
    app_version = traits.Str(mandatory=True)


class ReadFeatureTable(SimpleInterface):
    """Bring a feature table of the user's to windows and put it into the store."""

    input_spec = _TableInputSpec
    output_spec = _ExtractOutputSpec

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
        manifest = Path(runtime.cwd) / "manifest.json"
        write_json(manifest, {"model": self.inputs.name, "stim_file": table.stim_file, "entries": rows})
        self._results["manifest"] = str(manifest)
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
