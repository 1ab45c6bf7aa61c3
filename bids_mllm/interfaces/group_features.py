"""Tables of the group on what models do with instructions: similarity against brain score, and what they said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.group.coupling import best_layer, pair_means, text_means
from bids_mllm.interfaces.check_record import check_path
from bids_mllm.io.files import read_json, read_tsv
from bids_mllm.io.results import ModelResult
from bids_mllm.records import Condition

TEXTS_FOLDER = Path("sourcedata") / "texts"
TEXTS_ENDING = "_texts.tsv"
#: Clips of each model of which texts are shown.
N_SAMPLES = 3
#: Columns of the table of pairs of instructions that are averaged.
PAIR_VALUES = ("cka", "relative_difference")


@dataclass(frozen=True)
class _Checks:
    """What is known of the instructions of one model.

    `texts` gives for each kind of similarity the mean of each instruction to the others; `pairs` are rows of pairs
    of real instructions.
    """

    keys: tuple[str, ...]
    texts: Mapping[str, Mapping[str, float]]
    pairs: tuple[Mapping[str, Any], ...]


def coupling_rows(results: Sequence[ModelResult]) -> list[dict[str, Any]]:
    """Return how alike each instruction is to the others, and how well it predicts each participant.

    Features and brain are looked at on one layer: that with the highest mean training-internal score of the
    participant under this instruction.

    Parameters
    ----------
    results
        Of any participants and models; those without checks of several instructions have no rows.

    Returns
    -------
    rows : list of dict
        One a participant, model, pooling and instruction, with the columns of the table `coupling`.
    """
    rows = []
    checks: dict[str, _Checks | None] = {}
    for result in results:
        if result.model not in checks:
            checks[result.model] = _read_checks(result.output_dir, result.model)
        own = checks[result.model]
        if own is not None:
            rows += _of_result(result, own)
    return rows


def _read_checks(output_dir: Path, model: str) -> _Checks | None:
    paths = [check_path(output_dir, model, *name) for name in (("coupling", ".json"), ("conditioning", ".tsv"))]
    if not all(path.is_file() for path in paths):
        return None
    facts = read_json(paths[0])
    keys = tuple(facts["Instructions"])
    texts = {
        kind: dict(zip(keys, text_means(np.array(matrix, dtype=np.float64)).tolist(), strict=True))
        for kind, matrix in facts["TextSimilarity"].items()
    }
    pairs = (row for row in read_tsv(paths[1]) if row["null_a"] == row["null_b"] == "n/a")
    return _Checks(keys, texts, tuple(pairs))


def _of_result(result: ModelResult, checks: _Checks) -> list[dict[str, Any]]:
    sidecar = result.sidecar()
    rows = []
    for pooling in dict.fromkeys(row["pooling"] for row in checks.pairs):
        for key in checks.keys:
            condition = Condition(pooling, key).label
            place = _best_place(result, condition, sidecar["Layers"]) if condition in sidecar["Conditions"] else None
            if place is None:
                continue
            layer, r = place
            own = [row for row in checks.pairs if (row["pooling"], row["layer"]) == (pooling, str(layer))]
            row = {
                "participant": result.name.participant,
                "model": result.model,
                "condition": condition,
                "pooling": pooling,
                "instruction": key,
                "layer": layer,
                **{f"text_{kind}": means[key] for kind, means in checks.texts.items()},
            }
            for name in PAIR_VALUES:
                values = [(one["instruction_a"], one["instruction_b"], _number(one[name])) for one in own]
                row[name] = pair_means(values, checks.keys)[key]
            rows.append({**row, "r": r})
    return rows


def _best_place(result: ModelResult, condition: str, layers: Sequence[int]) -> tuple[int, float] | None:
    """Return the layer that training prefers over all voxels, and the mean held-out r there."""
    index = best_layer(np.atleast_2d(result.map("cvr2", condition)[0]))
    if index is None:
        return None
    r = np.atleast_2d(result.map("r", condition)[0])[index]
    finite = r[np.isfinite(r)]
    return layers[index], float(finite.mean(dtype=np.float64)) if finite.size else float("nan")


def _number(text: str) -> float:
    return float("nan") if text == "n/a" else float(text)


def text_sample_rows(output_dir: Path, models: Sequence[str]) -> list[dict[str, Any]]:
    """Return what models said of a few clips under each instruction.

    Parameters
    ----------
    output_dir
    models
        Those that generated nothing have no rows.

    Returns
    -------
    rows : list of dict
        For each model, instruction and one of `N_SAMPLES` clips, which are evenly spaced over all clips of all stimuli
        whatever was said of them: model, instruction, stimulus, start, end (seconds of the stimulus) and text.
    """
    rows = []
    for model in models:
        folder = output_dir / TEXTS_FOLDER / f"model-{model}"
        files: dict[str, dict[str, Path]] = {}
        for path in sorted(folder.glob(f"*{TEXTS_ENDING}")):
            stimulus, _, key = path.name.removesuffix(TEXTS_ENDING).rpartition("_instruction-")
            files.setdefault(stimulus, {})[key] = path
        for stimulus, start, end in _sample_clips(files):
            for key, path in files[stimulus].items():
                said = {(row["start"], row["end"]): row["text"] for row in read_tsv(path)}
                place = {"stimulus": stimulus, "start": start, "end": end, "text": said.get((start, end), "n/a")}
                rows.append({"model": model, "instruction": key, **place})
    return sorted(rows, key=lambda row: (models.index(row["model"]), row["instruction"]))


def _sample_clips(files: Mapping[str, Mapping[str, Path]]) -> list[tuple[str, str, str]]:
    """Return stimulus, start and end of the clips whose texts are shown."""
    clips = [
        (stimulus, row["start"], row["end"])
        for stimulus, own in files.items()
        for row in read_tsv(next(iter(own.values())))
    ]
    places = {len(clips) * (2 * number + 1) // (2 * N_SAMPLES) for number in range(N_SAMPLES)} if clips else set()
    return [clips[place] for place in sorted(places)]
