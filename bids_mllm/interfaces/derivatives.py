"""Node that writes one participant's maps and tables into the output data set."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from bids_mllm.io.atlas import load_atlas
from bids_mllm.io.derivatives import MapName, outputs, read_map, sidecar_path, write_map, write_mask, write_table
from bids_mllm.io.design import read_design
from bids_mllm.io.files import read_json, write_json, written_record
from bids_mllm.io.scores import load_scores
from bids_mllm.records import BoolArray, FloatArray, ModelScores
from bids_mllm.score.roi import roi_table
from bids_mllm.score.selection import at_choice


class _MapsInputSpec(BaseInterfaceInputSpec):
    design = File(exists=True, mandatory=True)
    bold = File(exists=True, mandatory=True, desc="JSON that PrepareBold wrote")
    scores = File(exists=True, mandatory=True, desc="JSON that FitScores wrote")
    facts = traits.Str(mandatory=True, desc="JSON: what every sidecar of this participant says")
    atlases = traits.List(traits.Str(), desc="label images")
    atlas_digests = traits.List(traits.Str(), desc="of images and tables, so that changed ones count")
    output_dir = traits.Str(mandatory=True)
    app_version = traits.Str(mandatory=True)


class _MapsOutputSpec(TraitedSpec):
    written = File(exists=True, desc="JSON list of the files written")


class WriteMaps(SimpleInterface):
    """Write maps, masks, ROI tables and sidecars of one participant in one space."""

    input_spec = _MapsInputSpec
    output_spec = _MapsOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        design = read_design(Path(self.inputs.design))
        bold = read_json(Path(self.inputs.bold))
        facts = json.loads(self.inputs.facts)
        mask, affine = read_map(Path(bold["mask"]))
        usable, _ = read_map(Path(bold["usable"]))
        target = _Target(
            name=MapName(design.participant, facts["task"], design.space, facts["resolution"]),
            output_dir=Path(self.inputs.output_dir),
            mask=mask > 0,
            usable=(usable > 0)[mask > 0],
            affine=affine,
            facts=facts["sidecar"] | {"ConfoundRegressors": bold["confounds"]},
        )
        written = [target.write_encoding_mask(bold)]
        fitted = read_json(Path(self.inputs.scores))
        for key, path in fitted["models"].items():
            scores = load_scores(Path(path))
            model = facts["models"][key] | {"Width": fitted["widths"][key]}
            target.forget(scores.model)
            written += target.write_tables(scores, model, [Path(p) for p in self.inputs.atlases])
            written += target.write_model(scores, model)
        out = Path(runtime.cwd) / "written.json"
        write_json(out, written_record([*written, *map(sidecar_path, written)]))
        self._results["written"] = str(out)
        return runtime


@dataclass(frozen=True)
class _Target:
    """Where and on which voxels one participant's outputs are written."""

    name: MapName
    output_dir: Path
    mask: BoolArray
    usable: BoolArray
    affine: Any
    facts: Mapping[str, Any]

    def write_encoding_mask(self, bold: Mapping[str, Any]) -> Path:
        """Write the mask of the voxels that have scores."""
        volume = self.mask.copy()
        volume[self.mask] = self.usable
        path = self.name.path(self.output_dir, suffix="mask", desc="encoding")
        sidecar = {
            "Description": outputs()["descriptions"]["encoding"],
            "Type": "Brain",
            "VoxelsInBrain": bold["n_voxels"],
            "VoxelsSetAside": bold["n_set_aside"],
            "Sources": self.facts["Sources"],
        }
        if self.name.resolution:
            sidecar["Resolution"] = f"res-{self.name.resolution} of the input"
        write_mask(path, volume, self.affine, sidecar)
        return path

    def forget(self, model: str) -> None:
        """Remove the map by which a model counts as finished; it is written again last."""
        path = self.name.path(self.output_dir, model=model, stat="r", desc="best")
        path.unlink(missing_ok=True)
        sidecar_path(path).unlink(missing_ok=True)

    def write_model(self, scores: ModelScores, model: Mapping[str, Any]) -> list[Path]:
        """Write every map of one model."""
        written = []
        for stat, desc, values, extra in _maps(scores):
            path = self.name.path(self.output_dir, model=scores.model, stat=stat, desc=desc)
            sidecar = outputs()["maps"][stat] | extra | {"Model": dict(model)} | dict(self.facts)
            sidecar |= {"Folds": list(scores.fold_names), "Warnings": list(scores.warnings)}
            write_map(path, self._expand(values), self.mask, self.affine, sidecar)
            written.append(path)
        return written

    def write_tables(self, scores: ModelScores, model: Mapping[str, Any], atlases: Sequence[Path]) -> list[Path]:
        """Write one ROI table an atlas."""
        declared = outputs()["tables"]["scores"]
        written = []
        volume = self.mask.copy()
        volume[self.mask] = self.usable
        for image in atlases:
            atlas = load_atlas(image, volume, self.affine)
            rows = [{"participant": self.name.participant, **row} for row in roi_table(scores, atlas)]
            path = self.name.path(
                self.output_dir, extension=".tsv", model=scores.model, stat="scores", atlas=atlas.name
            )
            sidecar = {"Description": declared["Description"], "Model": dict(model), "Atlas": image.name}
            write_table(path, rows, declared["Columns"], sidecar | dict(self.facts))
            written.append(path)
        return written

    def _expand(self, values: FloatArray) -> FloatArray:
        """From usable voxels to all voxels of the mask, NaN where set aside."""
        full = np.full((*values.shape[:-1], self.usable.size), np.nan, dtype=np.float32)
        full[..., self.usable] = values
        return full


def _maps(scores: ModelScores) -> Iterator[tuple[str, str | None, FloatArray, dict[str, Any]]]:
    """Give (stat, desc, values, what the sidecar adds) of every map of one model."""
    conditions = [condition.label for condition in scores.conditions]
    layers = list(scores.layers)
    chosen = {"Conditions": conditions, "Layers": layers}
    yield "r2", "best", scores.best_r2, chosen
    yield "cvr2", "best", at_choice(scores.cv_r2, scores.best_condition, scores.best_layer, np.nan), chosen
    yield "bestcondition", None, _index(scores.best_condition), chosen
    yield "bestlayer", None, _layer_numbers(scores), chosen
    for number, condition in enumerate(scores.conditions):
        extra = {"Condition": condition.label, "Layers": layers, "Pooling": condition.pooling}
        extra |= {"Instruction": condition.instruction} if condition.instruction else {}
        for stat, array in (
            ("r", scores.r),
            ("r2", scores.r2),
            ("cvr2", scores.cv_r2),
            ("alpha", scores.alpha),
            ("alphaedge", scores.alpha_edge),
        ):
            values = np.asarray(array[number], dtype=np.float32)
            yield stat, condition.label, values[0] if len(layers) == 1 else values, extra
    yield "r", "best", scores.best_r, chosen  # last: by this map a model counts as finished


def _index(choice: Any) -> FloatArray:
    return np.where(choice >= 0, choice, np.nan).astype(np.float32)


def _layer_numbers(scores: ModelScores) -> FloatArray:
    numbers = np.asarray(scores.layers, dtype=np.float32)[np.maximum(scores.best_layer, 0)]
    return np.where(scores.best_layer >= 0, numbers, np.nan).astype(np.float32)
