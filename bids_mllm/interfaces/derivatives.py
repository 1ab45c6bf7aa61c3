"""Node that writes one participant's maps and tables into the output data set."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from bids_mllm.interfaces.participant_maps import Map, ModelResults, bands_maps, model_maps, pairs_maps
from bids_mllm.interfaces.participant_tables import (
    ComparisonOptions,
    compare_pairs,
    comparison_rows,
    count_rows,
    hierarchy_rows,
    layer_rows,
    partition_rows,
    rate_of,
    score_rows,
)
from bids_mllm.io.atlas import atlas_facts, atlas_from_json, load_atlas
from bids_mllm.io.clock import load_clock, write_clock_table
from bids_mllm.io.derivatives import MapName, outputs, sidecar_path, write_map, write_mask, write_table
from bids_mllm.io.design import read_design
from bids_mllm.io.files import read_json, write_json, written_record
from bids_mllm.io.grids import Grid
from bids_mllm.io.maps import files_of_map, load_map, map_extension
from bids_mllm.io.scores import load_bands, load_ceiling, load_held_out, load_pairs, load_scores
from bids_mllm.outcomes import CeilingMap
from bids_mllm.records import Atlas, BoolArray, FloatArray, Run
from bids_mllm.score.multiplicity import count_comparisons
from bids_mllm.score.paired import BlockScores

BANDS = "bands"


class _MapsInputSpec(BaseInterfaceInputSpec):
    design = File(exists=True, mandatory=True)
    bold = File(exists=True, mandatory=True, desc="JSON that PrepareBold wrote")
    scores = File(exists=True, mandatory=True, desc="JSON that FitScores wrote")
    ceiling = File(exists=True, desc="npz that EstimateCeiling wrote")
    joint = File(exists=True, desc="JSON that FitJointly wrote")
    clock = File(exists=True, desc="npz that CheckClock wrote")
    facts = traits.Str(mandatory=True, desc="JSON: what every sidecar of this participant says")
    atlases = traits.List(traits.Str(), desc="JSON of AtlasFiles, with digests, so that changed ones count")
    fdr = traits.Enum("bh", "by", usedefault=True)
    n_permutations = traits.Int(5000, usedefault=True, desc="sign flips between models")
    seed = traits.Int(0, usedefault=True)
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
        ceiling = load_ceiling(Path(self.inputs.ceiling)) if isdefined(self.inputs.ceiling) else None
        target = _target(design, bold, facts, ceiling, Path(self.inputs.output_dir))
        fitted = read_json(Path(self.inputs.scores))
        options = ComparisonOptions(self.inputs.fdr, self.inputs.n_permutations, self.inputs.seed)
        index = fitted["models"]
        rates = model_rates(index, options)
        atlases = target.atlases(self.inputs.atlases)
        for model in index:
            target.forget(model)
        written = [*target.write_encoding_mask(bold, design.runs), *target.write_split(fitted["folds"])]
        written += target.write_ceiling()
        if isdefined(self.inputs.clock):
            written += target.write_clock(Path(self.inputs.clock))
        written += target.write_comparisons(list(index), block_reader(index), atlases, options)
        if isdefined(self.inputs.joint):
            written += target.write_joint(read_json(Path(self.inputs.joint)), facts["models"], atlases)
        comparisons = counted(index, rates)
        for key, entry in index.items():
            result = load_result(entry, rates[key], ceiling)
            model = facts["models"][key] | {"Width": entry["width"]}
            written += target.write_tables(result, model, atlases, self.inputs.seed)
            written += target.write_maps(key, model_maps(result), target.model_sidecar(result, comparisons, model))
        target.remove_stale(written, list(index))
        out = Path(runtime.cwd) / "written.json"
        sidecars = dict.fromkeys(sidecar_path(path) for path in written if path.suffix != ".json")
        write_json(out, written_record([*written, *sidecars]))
        self._results["written"] = str(out)
        return runtime


def model_rates(index: Mapping[str, Mapping[str, Any]], options: ComparisonOptions) -> dict[str, FloatArray]:
    """False discovery rate of every model over the voxels of all of them."""
    return rate_of({key: load_held_out(Path(entry["held_out"])).p for key, entry in index.items()}, options.fdr)


def block_reader(index: Mapping[str, Mapping[str, Any]]) -> Callable[[str], BlockScores]:
    """Return what reads the block scores of one model, so that not all are in memory at once."""

    def read(model: str) -> BlockScores:
        held_out = load_held_out(Path(index[model]["held_out"]))
        return BlockScores(held_out.block_products, held_out.block_energies)

    return read


def load_result(entry: Mapping[str, Any], q: FloatArray, ceiling: CeilingMap | None) -> ModelResults:
    """Read what was found of one model."""
    return ModelResults(
        scores=load_scores(Path(entry["scores"])),
        held_out=load_held_out(Path(entry["held_out"])),
        q=q,
        ceiling=ceiling,
        equal_rank=load_scores(Path(entry["equal_rank"])) if "equal_rank" in entry else None,
        n_layers=int(entry["n_layers"]),
    )


def counted(index: Mapping[str, Mapping[str, Any]], rates: Mapping[str, FloatArray]) -> dict[str, Any]:
    """Count what was compared, for the sidecars."""
    return {
        "Models": len(index),
        "Tests": sum(count_comparisons(q) for q in rates.values()),
        "FeatureSpaces": sum(int(entry["n_spaces"]) for entry in index.values()),
        "Selection": "conditions and layers are chosen inside training and not tested one by one",
    }


def _entities(stem: str) -> dict[str, str]:
    return dict(part.partition("-")[::2] for part in stem.split("_"))


def _place_of(entities: Mapping[str, str]) -> str:
    """What a file is in, by its entities."""
    return MapName(
        None, "", entities.get("space", ""), entities.get("res"), entities.get("den"), entities.get("seg")
    ).place


def brain_mask_words(runs: Sequence[Run]) -> str | None:
    """Name the brain masks that were applied, without the entities of runs; None where there is none."""
    masks = [run.mask for run in runs if run.mask is not None]
    if not masks:
        return None
    kinds = ["_".join([*re.findall(r"(?:space|res|desc)-[^_]+", mask.name), "mask"]) for mask in masks]
    words = ", ".join(dict.fromkeys(kinds))
    return words if len(masks) == len(runs) else f"{words} in {len(masks)} of {len(runs)} runs"


def _target(
    design: Any, bold: Mapping[str, Any], facts: Mapping[str, Any], ceiling: CeilingMap | None, output_dir: Path
) -> "_Target":
    usable, grid = load_map(Path(bold["usable"]))
    known = {"ConfoundRegressors": bold["confounds"], "NoiseCeiling": None if ceiling is None else dict(ceiling.facts)}
    run = design.runs[0]
    return _Target(
        name=MapName(
            design.participant, facts["task"], run.space, run.resolution, run.density, run.segmentation,
            map_extension(grid),
        ),
        output_dir=output_dir,
        usable=usable > 0,
        grid=grid,
        facts=facts["sidecar"] | known,
        ceiling=ceiling,
    )  # fmt: skip


@dataclass(frozen=True)
class _Target:
    """Where and on which places one participant's outputs are written; `usable` (n_places,) have scores."""

    name: MapName
    output_dir: Path
    usable: BoolArray
    grid: Grid
    facts: Mapping[str, Any]
    ceiling: CeilingMap | None

    @property
    def participant(self) -> str:
        """Label of the participant."""
        return str(self.name.participant)

    def atlases(self, described: Sequence[str]) -> list[Atlas]:
        """Load atlases on the usable places."""
        return [load_atlas(atlas_from_json(text), self.grid, self.usable) for text in described]

    def write_encoding_mask(self, bold: Mapping[str, Any], runs: Sequence[Run]) -> list[Path]:
        """Write the mask of the places that have scores; BIDS has a suffix for those of volumes only."""
        is_volume = self.grid.form == "volume"
        path = self.name.path(
            self.output_dir,
            suffix="mask" if is_volume else "statmap",
            stat=None if is_volume else "mask",
            desc="encoding",
        )
        sidecar = {
            "Description": outputs()["descriptions"]["encoding"],
            "Type": "Brain",
            "VoxelsInBrain": bold["n_voxels"],
            "VoxelsSetAside": bold["n_set_aside"],
            "BrainMask": brain_mask_words(runs),
            "Sources": self.facts["Sources"],
        }
        if self.name.resolution:
            sidecar["Resolution"] = f"res-{self.name.resolution} of the input"
        if self.name.density:
            sidecar["Density"] = f"den-{self.name.density} of the input: {self.grid.words}"
        write_mask(path, self.usable, self.grid, sidecar)
        return list(files_of_map(path))

    def write_split(self, folds: Sequence[Mapping[str, Any]]) -> list[Path]:
        """Write the split by runs and volumes, which ``--cv-file`` reads."""
        path = self.name.path(self.output_dir, suffix="split", extension=".json", desc="cv")
        write_json(path, {"Description": outputs()["descriptions"]["cv"], "Folds": list(folds)})
        return [path]

    def write_ceiling(self) -> list[Path]:
        """Write the noise ceiling where there is one."""
        if self.ceiling is None:
            return []
        values: Iterable[Map] = [("noiseceiling", None, self.ceiling.ceiling, {})]
        return self.write_maps(None, values, dict(self.facts))

    def write_clock(self, check: Path) -> list[Path]:
        """Write the check of the clocks."""
        path = self.name.path(self.output_dir, extension=".tsv", stat="clocklag")
        write_clock_table(path, load_clock(check), self.facts)
        return [path]

    def forget(self, model: str) -> None:
        """Remove the map by which a model counts as finished; it is written again last."""
        path = self.name.path(self.output_dir, model=model, stat="r", desc="best")
        for each in (*files_of_map(path), sidecar_path(path)):
            each.unlink(missing_ok=True)

    def model_sidecar(
        self, result: ModelResults, comparisons: Mapping[str, Any], model: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What the sidecars of all maps of one model say."""
        shown = {"Model": dict(model), **self.facts, "Comparisons": dict(comparisons)}
        return shown | {"Folds": list(result.scores.fold_names), "Warnings": list(result.scores.warnings)}

    def remove_stale(self, written: Sequence[Path], models: Sequence[str]) -> None:
        """Remove what an earlier call wrote of these models, or of none, and this one did not write again."""
        kept = {*written, *(sidecar_path(path) for path in written)}
        stem = self.name.path(self.output_dir, suffix="x", extension="").name.removesuffix("_x")
        for path in written[0].parent.glob(f"sub-{self.participant}_*"):
            entities = _entities(path.name)
            same_place = _entities(stem).items() <= entities.items() and _place_of(entities) == self.name.place
            if same_place and entities.get("model", BANDS) in {*models, BANDS} and path not in kept:
                path.unlink()

    def write_maps(self, model: str | None, maps: Iterable[Map], shared: Mapping[str, Any]) -> list[Path]:
        """Write maps of one model, or of none."""
        written: list[Path] = []
        for stat, desc, values, extra in maps:
            path = self.name.path(self.output_dir, model=model, stat=stat, desc=desc)
            write_map(path, values, self.usable, self.grid, outputs()["maps"][stat] | extra | dict(shared))
            written += files_of_map(path)
        return written

    def write_comparisons(
        self,
        models: Sequence[str],
        blocks: Callable[[str], BlockScores],
        atlases: Sequence[Atlas],
        options: ComparisonOptions,
    ) -> list[Path]:
        """Write the maps and the table of model against model."""
        written = []
        comparisons = compare_pairs(models, blocks, atlases, options)
        for one in comparisons:
            extra = {
                "Other": one.model_b,
                "Test": {
                    "Method": "sign flips of parts of the correlation",
                    "Blocks": one.test.n_blocks,
                    "Permutations": one.test.n_permutations,
                    "SmallestP": one.test.smallest_p,
                    "Unit": "part of a run within the participant",
                },
            }
            desc = f"vs{one.model_b}"
            maps: list[Map] = [
                ("rdifference", desc, one.test.difference, extra),
                ("pdifference", desc, one.test.p, extra),
                ("qdifference", desc, one.q, extra),
            ]
            written += self.write_maps(one.model_a, maps, self.facts)
        rows = comparison_rows(self.participant, comparisons, atlases, options)
        return written + self._write_rows("modelcomparison", rows, {})

    def write_joint(self, joint: Mapping[str, Any], models: Mapping[str, Any], atlases: Sequence[Atlas]) -> list[Path]:
        """Write what joint fits gave."""
        written = []
        if joint["bands"]:
            bands = load_bands(Path(joint["bands"]))
            described = {"Model": {name: models[name.partition(":")[0]] for name in bands.names}, **self.facts}
            written += self.write_maps(BANDS, bands_maps(bands, self.ceiling), described)
        for model, path in joint["pairs"].items():
            pairs = load_pairs(Path(path))
            described = {"Model": models[model], **self.facts}
            written += self.write_maps(model, pairs_maps(pairs, self.ceiling), described)
            rows = partition_rows(self.participant, pairs, self.ceiling, atlases)
            written += self._write_rows("partition", rows, {"Model": models[model]}, model=model)
        return written

    def write_tables(
        self, result: ModelResults, model: Mapping[str, Any], atlases: Sequence[Atlas], seed: int
    ) -> list[Path]:
        """Write the tables of one model, one of each kind an atlas."""
        written = []
        for atlas in atlases:
            heads = {"Model": dict(model), **atlas_facts(atlas)}
            place = {"model": result.scores.model, "atlas": atlas.name}
            layers = layer_rows(self.participant, result, atlas)
            tables = {
                "scores": score_rows(self.participant, result, atlas, seed),
                "layers": layers,
                "hierarchy": hierarchy_rows(layers, seed),
                "choicecounts": count_rows(self.participant, result, atlas),
            }
            for stat, rows in tables.items():
                if rows:
                    written += self._write_rows(stat, rows, heads, **place)
        return written

    def _write_rows(
        self,
        stat: str,
        rows: list[dict[str, Any]],
        heads: Mapping[str, Any],
        *,
        model: str | None = None,
        atlas: str | None = None,
    ) -> list[Path]:
        if not rows:
            return []
        declared = outputs()["tables"][stat]
        path = self.name.path(self.output_dir, extension=".tsv", model=model, stat=stat, atlas=atlas)
        write_table(path, rows, declared["Columns"], {"Description": declared["Description"], **heads, **self.facts})
        return [path]
