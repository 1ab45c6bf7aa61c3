"""Outputs of participants that hold tables with planted numbers, for the tests of the charts."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from bids_mllm.io.derivatives import MapName, sidecar_path
from bids_mllm.io.files import write_tsv
from bids_mllm.io.results import ModelResult

MODELS: Mapping[str, str] = {
    "videollm": "instruction-tuned video",
    "audiollm": "instruction-tuned audio",
    "tvlt": "multimodal",
    "clip": "multimodal",
    "vjepa": "unimodal video",
    "wav2vec": "unimodal audio",
    "motion": "low-level",
}
REGIONS: Mapping[str, str] = {"whole brain": "set", "visual": "set", "EVC": "group", "L_V1": "area", "R_V1": "area"}
PEOPLE = ("01", "02", "03")
Score = Callable[[str, str, str, str, int], float]


class Outputs:
    """An output folder; each method adds tables of all participants."""

    def __init__(
        self, folder: Path, *, models: Mapping[str, str] = MODELS, regions: Mapping[str, str] = REGIONS,
        people: Sequence[str] = PEOPLE,
    ) -> None:  # fmt: skip
        self.folder, self.models, self.regions, self.people = folder, models, regions, people
        for result in self.results:
            path = sidecar_path(result.path("r", "best"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"Model": {"Kind": models[result.model]}}))

    @property
    def results(self) -> tuple[ModelResult, ...]:
        names = [MapName(person, "film", "fsLR", density="91k", extension=".dscalar.nii") for person in self.people]
        return tuple(ModelResult(name, model, self.folder) for name in names for model in self.models)

    def scores(
        self, best: Mapping[str, float], *, by_layer: Score | None = None, layers: int = 1,
        conditions: Iterable[str] = ("generatedAR",), missing: Iterable[tuple[str, str]] = (),
    ) -> None:  # fmt: skip
        """Write scores: `best` by model, plus .01 for each further participant; `missing` are masked out."""
        for result in self.results:
            person, rows = str(result.name.participant), []
            for roi, kind in self.regions.items():
                coverage = 0.1 if (person, roi) in missing else 1.0
                r = best[result.model] + 0.01 * self.people.index(person)
                rows.append(_score(result, "best", "best", roi, kind, coverage, r))
                for condition in conditions if by_layer else ():
                    rows.append(_score(result, condition, "best", roi, kind, coverage, 0.9))
                    for layer in range(layers):
                        value = by_layer(person, result.model, condition, roi, layer) if by_layer else 0.0
                        rows.append(_score(result, condition, str(layer), roi, kind, coverage, value))
            write_tsv(result.path("scores", None, extension=".tsv", atlas="planted"), rows)

    def comparisons(self, decide: Callable[[str, str, str, str], tuple[float, float]]) -> None:
        """Write model against model; `decide` gives difference and q of participant, region and both models."""
        for name in dict.fromkeys(result.name for result in self.results):
            rows = []
            for a, b in combinations(self.models, 2):
                for roi in self.regions:
                    difference, q = decide(str(name.participant), roi, a, b)
                    rows.append(
                        {
                            "participant": name.participant, "model_a": a, "model_b": b, "roi": roi, "kind": "set",
                            "coverage": 1, "mean_difference": difference, "q": q,
                        }
                    )  # fmt: skip
            write_tsv(name.path(self.folder, extension=".tsv", stat="modelcomparison"), rows)

    def partition(
        self, model: str, conditions: Sequence[str], parts: Callable[[str, str, str, str], tuple[float, float, float]]
    ) -> None:
        """Write parts of R2; `parts` gives unique a, shared, unique b of participant, region and both conditions."""
        for result in self.results:
            if result.model == model:
                rows = []
                for roi, kind in {"all": "all", **self.regions}.items():
                    for a, b in combinations(conditions, 2):
                        first, both, second = parts(str(result.name.participant), roi, a, b)
                        rows.append(
                            {
                                "participant": result.name.participant, "model": model, "condition_a": a,
                                "condition_b": b, "roi": roi, "kind": kind, "measure": "R2", "unique_a": first,
                                "unique_b": second, "shared": both, "joint": first + both + second, "n_voxels": 10,
                            }
                        )  # fmt: skip
                write_tsv(result.path("partition", None, extension=".tsv"), rows)

    def choices(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the tables of choices of the group and of each participant."""
        path = self.results[0].name.of_group().path(
            self.folder, extension=".tsv", stat="choicecounts", atlas="planted"
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tsv(path, [dict(row) for row in rows])
        for result in self.results:
            whose = (result.name.participant, result.model)
            own = [dict(row) for row in rows if (row["participant"], row["model"]) == whose]
            write_tsv(result.path("choicecounts", None, extension=".tsv", atlas="planted"), own)

    def checks(
        self, model: str, texts: Mapping[str, Sequence[Sequence[float]]], keys: Sequence[str],
        pairs: Callable[[int, str, str], tuple[float, float]], *, layers: int,
    ) -> None:  # fmt: skip
        """Write the checks of a model; `pairs` gives relative difference and CKA of layer and both instructions."""
        folder = self.folder / "sourcedata" / "checks"
        folder.mkdir(parents=True, exist_ok=True)
        rows, coupling = [], []
        for layer in range(layers):
            for a, b in combinations(keys, 2):
                difference, cka = pairs(layer, a, b)
                rows.append(
                    {
                        "pooling": "generated", "layer": layer, "instruction_a": a, "instruction_b": b,
                        "null_a": "n/a", "null_b": "n/a", "relative_difference": difference, "cka": cka,
                    }
                )  # fmt: skip
            for text in texts:
                coupling.append(
                    {
                        "pooling": "generated", "layer": layer, "text_similarity": text,
                        "representation_similarity": "cka", "r": 0.5, "p": 0.25,
                    }
                )  # fmt: skip
        (folder / f"model-{model}_conditioning.json").write_text("{}")
        write_tsv(folder / f"model-{model}_conditioning.tsv", rows)
        write_tsv(folder / f"model-{model}_coupling.tsv", coupling)
        facts = {"Instructions": list(keys), "TextSimilarity": texts}
        (folder / f"model-{model}_coupling.json").write_text(json.dumps(facts))


def _score(
    result: ModelResult, condition: str, layer: str, roi: str, kind: str, coverage: float, r: float
) -> dict[str, Any]:  # fmt: skip
    return {
        "participant": result.name.participant, "model": result.model, "condition": condition,
        "pooling": "n/a" if condition == "best" else condition.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        "instruction": condition.removeprefix("generated"), "layer": layer, "depth": "n/a", "roi_index": "n/a",
        "roi": roi, "kind": kind, "n_voxels": 10, "coverage": coverage, "r": r, "r2": r * abs(r),
        "cv_r2": r * abs(r), "r_normalized": 2 * r,
    }  # fmt: skip
