"""Node that checks the features of one model: are they sound, and do instructions make a difference?"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiPath,
    SimpleInterface,
    TraitedSpec,
    traits,
)
from numpy.typing import NDArray
from tqdm import tqdm

from bids_mllm.exceptions import StoreError
from bids_mllm.features.conditioning import (
    MAX_BYTES,
    MAX_CLIPS,
    ConditioningChecks,
    MatrixCheck,
    PairCheck,
    check_conditioning,
)
from bids_mllm.features.controls import null_kind
from bids_mllm.features.coupling import N_PERMUTATIONS, cosine_similarity, mantel, pair_matrix, tfidf_similarity
from bids_mllm.features.verdict import PoolingVerdict, Range, conditioning_warnings, judge
from bids_mllm.interfaces.check_record import (
    check_path,
    checks_locked,
    coverage,
    is_covered,
    others,
    write_record,
)
from bids_mllm.io.files import read_json, read_tsv, write_json, write_tsv
from bids_mllm.io.store import FeatureEntry
from bids_mllm.records import Condition, FloatArray, Instruction, ModelSpec
from bids_mllm.report.conditioning import ModelChecks

TABLES = ("conditioning", "columns", "coupling")
#: What a node's checks had to cover, in its own folder.
COVERED_FILE = "covered.json"
REPRESENTATIONS = ("cka", "cosine")
PAIR_COLUMNS = {
    "pooling": "Which hidden states were averaged.",
    "layer": "Layer; 0 is the embedding.",
    "instruction_a": "Key of the first instruction.",
    "instruction_b": "Key of the second instruction.",
    "null_a": "Kind of null instruction that the first is (empty, scrambled, unrelated); n/a for a real one.",
    "null_b": "Kind of null instruction that the second is; n/a for a real one.",
    "n_clips": "Clips compared: those chosen, without clips in which a value is not finite.",
    "relative_difference": "Norm of the difference over the mean of the two norms, each column centred over the clips; "
    "2 where only one varies over the clips, n/a where neither does.",
    "cka": "Linear centred kernel alignment, from 0 to 1; n/a where either does not vary.",
    "cosine": "Mean over clips of the cosine of the two centred rows; n/a where either does not vary.",
    "duplicate": "Whether the matrices are equal to the bit or differ by less than 1e-6.",
}
MATRIX_COLUMNS = {
    "condition": "Pooling and instruction, as in desc-.",
    "pooling": "Which hidden states were averaged.",
    "instruction": "Key of the instruction; n/a without one.",
    "null": "Kind of null instruction; n/a for a real one and without one.",
    "layer": "Layer; 0 is the embedding.",
    "n_clips": "Clips with features.",
    "n_columns": "Columns of the feature matrix.",
    "n_nonfinite": "Values that are NaN or infinite.",
    "n_constant": "Columns that do not vary over the clips but for rounding.",
    "saturated_share": "Share of the values with a magnitude above 60000, near the end of float16 (65504).",
    "largest": "Highest magnitude of a finite value.",
    "dominance": "Highest magnitude of a column's mean over the median of them.",
    "n_massive": "Columns whose mean is at least 100 times that median in magnitude.",
}
COUPLING_COLUMNS = {
    "pooling": "Which hidden states were averaged.",
    "layer": "Layer; 0 is the embedding.",
    "text_similarity": "Between the texts of two instructions: embedding (cosine of the means of the model's own input "
    "embeddings) or tfidf (cosine of TF-IDF weights of their words).",
    "representation_similarity": "Between the features under two instructions: cka or cosine, as for the pairs.",
    "n_instructions": "Real instructions that have both similarities.",
    "n_pairs": "Pairs of them.",
    "r": "Pearson correlation of the two similarities over pairs.",
    "p": "Two-sided p of r by permuting the labels of the instructions (Mantel test), not corrected for the number of "
    "layers, poolings and similarities.",
    "n_permutations": "Permutations tried, the identity not counted.",
}


class _CheckInputSpec(BaseInterfaceInputSpec):
    manifests = InputMultiPath(File(exists=True), mandatory=True, desc="JSONs of feature entries; others' are ignored")
    model = traits.Str(mandatory=True, desc="JSON of a ModelSpec")
    instructions = traits.Str(mandatory=True, desc="JSON list of Instructions, null ones included")
    output_dir = traits.Str(mandatory=True)
    random_seed = traits.Int(0, usedefault=True, desc="of the permutations")
    app_version = traits.Str(mandatory=True, desc="so that a new version runs again")


class _CheckOutputSpec(TraitedSpec):
    summary = File(exists=True, desc="JSON: warnings and the verdict on each pooling")
    covered = File(exists=True, desc="JSON: what the checks had to cover for this step")


class CheckConditioning(SimpleInterface):
    """Check the features of one model over all its stimuli and compare them between instructions.

    Where the checks that are there cover these stimuli and instructions, they stand. Else they are made anew, over
    the stimuli that other tasks have checked too.
    """

    input_spec = _CheckInputSpec
    output_spec = _CheckOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        spec = ModelSpec(**json.loads(self.inputs.model))
        instructions = tuple(Instruction(**item) for item in json.loads(self.inputs.instructions))
        read = [read_json(Path(path)) for path in self.inputs.manifests]
        manifests = [manifest for manifest in read if manifest["model"] == spec.key]
        output_dir, version = Path(self.inputs.output_dir), self.inputs.app_version
        seed = self.inputs.random_seed
        own = coverage(manifests, instructions, seed=seed, version=version)
        with checks_locked(output_dir, spec.key):
            if not is_covered(output_dir, spec.key, own):
                manifests += others(output_dir, spec.key, manifests)
                features = StoredFeatures(spec.key, manifests)
                written = check_features(features, spec, instructions, output_dir, seed=seed)
                covered = coverage(manifests, instructions, seed=seed, version=version)
                write_record(output_dir, spec.key, covered, written)
        self._results["covered"] = str(Path(runtime.cwd) / COVERED_FILE)
        write_json(Path(self._results["covered"]), own)
        self._results["summary"] = str(check_path(output_dir, spec.key, "conditioning", ".json"))
        return runtime


def must_check_again(folder: Path, output_dir: Path, model: str) -> bool:
    """Whether checks that a node with this folder made or found there no longer cover what it needs."""
    path = folder / COVERED_FILE
    return path.is_file() and not is_covered(output_dir, model, read_json(path))


class StoredFeatures:
    """The features of one model over all its stimuli, read from the store one condition and layer at a time.

    Windows that were masked, since their media are damaged, are left out.
    """

    def __init__(self, model: str, manifests: Sequence[Mapping[str, Any]]) -> None:
        places: dict[Condition, dict[tuple[Any, ...], FeatureEntry]] = {}
        for manifest in manifests:
            for row in manifest["entries"]:
                condition = Condition(row["pooling"], row["instruction"])
                place = (manifest["stim_file"], row["origin"], row["step"], row["length"])
                entry = FeatureEntry(Path(row["path"]), row["n_windows"], row["n_layers"], row["width"])
                places.setdefault(condition, {})[place] = entry
        self.conditions = tuple(places)
        if len({tuple(sorted(own)) for own in places.values()}) != 1:
            raise StoreError(
                f"The conditions of {model} do not all have the same stimuli and windows, or it has none; run the "
                "participant level again."
            )
        self._entries = {condition: [own[place] for place in sorted(own)] for condition, own in places.items()}
        shapes = {(entry.n_layers, entry.width) for own in self._entries.values() for entry in own}
        if len(shapes) != 1:
            raise StoreError(
                f"The features of {model} have {len(shapes)} different numbers of layers or columns; remove its "
                "entries and run the participant level again."
            )
        ((self.n_layers, _),) = shapes
        self._kept = self._with_media()

    def _with_media(self) -> list[NDArray[np.bool_]]:
        """Return for each entry which windows were not masked."""
        kept = [np.ones(entry.n_windows, dtype=bool) for entry in self._entries[self.conditions[0]]]
        for own in self._entries.values():
            for some, entry in zip(kept, own, strict=True):
                some[list(entry.masked())] = False
        return kept

    @property
    def n_masked(self) -> int:
        """Windows without features."""
        return sum(int(np.count_nonzero(~some)) for some in self._kept)

    def read(self, condition: Condition, layer: int) -> NDArray[np.float32]:
        """Return the features of one condition and layer, (n_clips, width), stimuli one after another."""
        parts = [entry.read(layer)[some] for entry, some in zip(self._entries[condition], self._kept, strict=True)]
        return np.concatenate(parts)


def check_features(
    features: StoredFeatures, spec: ModelSpec, instructions: Sequence[Instruction], output_dir: Path, *, seed: int = 0
) -> list[Path]:
    """Check the features of a model and write the tables; return the files written.

    The table of pairs and that of the coupling are written for models with several instructions only.
    """
    nulls = {i.key: kind for i in instructions if (kind := null_kind(i)) is not None}
    spaces = len(features.conditions) * features.n_layers
    with tqdm(total=spaces, desc=f"check {spec.key}", unit="space", mininterval=5) as bar:

        def read(condition: Condition, layer: int) -> NDArray[np.float32]:
            bar.update()
            return features.read(condition, layer)

        checks = check_conditioning(spec.key, features.conditions, features.n_layers, read, nulls=set(nulls))
    real = [i for i in instructions if i.key not in nulls and _asked(features, i.key)]
    texts = text_similarities(spec, real)
    tables = {
        "columns": ([_matrix_row(matrix, nulls) for matrix in checks.matrices], MATRIX_COLUMNS, {}),
        "conditioning": (
            [_pair_row(pair, nulls) for pair in checks.pairs],
            PAIR_COLUMNS,
            _summary(checks, features, spec, instructions, nulls),
        ),
        "coupling": (
            coupling_rows(checks, [i.key for i in real], texts, seed=seed),
            COUPLING_COLUMNS,
            _coupling_facts(real, texts),
        ),
    }
    return _write_tables(output_dir, spec.key, tables)


def _asked(features: StoredFeatures, key: str) -> bool:
    return any(condition.instruction == key for condition in features.conditions)


def text_similarities(spec: ModelSpec, instructions: Sequence[Instruction]) -> dict[str, FloatArray]:
    """Return the similarities of the texts, (n, n) each; by the model's own embeddings only where it has any."""
    if not instructions:
        return {}
    from bids_mllm.features.models.text_embeddings import text_embeddings

    texts = [instruction.text for instruction in instructions]
    found = {"tfidf": tfidf_similarity(texts)}
    embeddings = text_embeddings(spec, texts)
    return found if embeddings is None else {"embedding": cosine_similarity(embeddings), **found}


def coupling_rows(
    checks: ConditioningChecks, keys: Sequence[str], texts: Mapping[str, FloatArray], *, seed: int
) -> list[dict[str, Any]]:
    """Return one row a pooling, layer and pair of similarities, over the real instructions `keys`."""
    rows: list[dict[str, Any]] = []
    if len(keys) < 3:
        return rows
    places: dict[tuple[str, int], list[PairCheck]] = {}
    for pair in checks.pairs:
        places.setdefault((pair.pooling, pair.layer), []).append(pair)
    for (pooling, layer), pairs in places.items():
        for text, similarity in texts.items():
            for representation in REPRESENTATIONS:
                coupling = mantel(similarity, pair_matrix(pairs, keys, representation), seed=seed)
                place = {"pooling": pooling, "layer": layer, "text_similarity": text}
                rows.append({**place, "representation_similarity": representation, **asdict(coupling)})
    return rows


def _pair_row(pair: PairCheck, nulls: Mapping[str, str]) -> dict[str, Any]:
    kinds = {"null_a": nulls.get(pair.instruction_a), "null_b": nulls.get(pair.instruction_b)}
    return asdict(pair) | kinds | {"duplicate": str(pair.duplicate).lower()}


def _matrix_row(matrix: MatrixCheck, nulls: Mapping[str, str]) -> dict[str, Any]:
    condition = matrix.space.condition
    names = {
        "condition": condition.label,
        "pooling": condition.pooling,
        "instruction": condition.instruction,
        "null": nulls.get(condition.instruction or ""),
        "layer": matrix.space.layer,
    }
    return names | {name: getattr(matrix, name) for name in MATRIX_COLUMNS if name not in names}


def _summary(
    checks: ConditioningChecks,
    features: StoredFeatures,
    spec: ModelSpec,
    instructions: Sequence[Instruction],
    nulls: Mapping[str, str],
) -> dict[str, Any]:
    """Return what the JSON of the table of pairs says beside its columns."""
    return {
        "Description": "Whether the features of a model differ between instructions, after centring over clips.",
        "Model": spec.key,
        "Clips": checks.n_clips,
        "ClipsMasked": features.n_masked,
        "ClipsCompared": checks.n_compared,
        "ClipChoice": f"evenly spaced over all clips of all stimuli; at most {MAX_CLIPS}, and fewer where one layer of "
        f"all instructions would take more than {MAX_BYTES // 2**20} MiB",
        "Layers": checks.n_layers,
        "Instructions": {i.key: i.text for i in instructions if _asked(features, i.key)},
        "NullInstructions": {key: kind for key, kind in nulls.items() if _asked(features, key)},
        "Warnings": list(conditioning_warnings(checks, nulls, dtype=spec.dtype)),
        "Poolings": {verdict.pooling: _verdict_facts(verdict) for verdict in judge(checks, nulls)},
    }


def _verdict_facts(verdict: PoolingVerdict) -> dict[str, Any]:
    return {
        "Instructions": verdict.n_instructions,
        "Pairs": verdict.n_pairs,
        "Conditioned": verdict.conditioned,
        "LayersWithoutDifference": list(verdict.same_layers),
        "RelativeDifference": _range_facts(verdict.relative_difference),
        "CKA": _range_facts(verdict.cka),
        "MedianDifferenceFromNull": {kind: _known(value) for kind, value in verdict.null_difference.items()},
    }


def _range_facts(values: Range) -> dict[str, float | None]:
    return {"Median": _known(values.median), "Smallest": _known(values.smallest), "Largest": _known(values.largest)}


def _known(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _coupling_facts(real: Sequence[Instruction], texts: Mapping[str, FloatArray]) -> dict[str, Any]:
    return {
        "Description": "Whether instructions with similar texts give similar features, over pairs of real ones.",
        "Permutations": f"all where they are no more than {N_PERMUTATIONS}, else {N_PERMUTATIONS} at random",
        "Instructions": [instruction.key for instruction in real],
        "TextSimilarity": {
            name: [[_known(value) for value in row] for row in similarity] for name, similarity in texts.items()
        },
    }


def _write_tables(
    output_dir: Path, model: str, tables: Mapping[str, tuple[list[dict[str, Any]], Mapping[str, str], dict[str, Any]]]
) -> list[Path]:
    """Write each table that has rows, and the JSONs; a table of an earlier call without rows now is removed."""
    written = []
    for name, (rows, columns, facts) in tables.items():
        path, sidecar = (check_path(output_dir, model, name, extension) for extension in (".tsv", ".json"))
        if rows:
            write_tsv(path, rows, list(columns))
            written.append(path)
        else:
            path.unlink(missing_ok=True)
        if rows or name == "conditioning":
            write_json(sidecar, facts | {column: {"Description": text} for column, text in columns.items()})
            written.append(sidecar)
        else:
            sidecar.unlink(missing_ok=True)
    return written


def read_checks(output_dir: Path, model: str) -> ModelChecks | None:
    """Return what `CheckConditioning` wrote on a model, or None where there is nothing."""
    summary = check_path(output_dir, model, "conditioning", ".json")
    if not summary.is_file():
        return None
    paths = {name: check_path(output_dir, model, name, ".tsv") for name in TABLES}
    rows = {name: read_tsv(path) if path.is_file() else [] for name, path in paths.items()}
    return ModelChecks(
        model=model,
        summary=read_json(summary),
        pairs=tuple(rows["conditioning"]),
        matrices=tuple(rows["columns"]),
        coupling=tuple(rows["coupling"]),
    )
