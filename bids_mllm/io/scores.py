"""Scores of one model as one npz file."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np

from bids_mllm.io.files import atomic_path
from bids_mllm.records import Condition, ModelScores

_WORDS = ("model", "conditions", "layers", "fold_names", "warnings")


def save_scores(path: Path, scores: ModelScores) -> None:
    """Write scores atomically; arrays as they are, the rest as one JSON string."""
    words = {
        "model": scores.model,
        "conditions": [[c.pooling, c.instruction] for c in scores.conditions],
        "layers": list(scores.layers),
        "fold_names": list(scores.fold_names),
        "warnings": list(scores.warnings),
    }
    arrays = {f.name: getattr(scores, f.name) for f in fields(ModelScores) if f.name not in _WORDS}
    with atomic_path(path) as scratch, scratch.open("wb") as stream:
        np.savez(stream, words=np.array(json.dumps(words)), **arrays)


def load_scores(path: Path) -> ModelScores:
    """Read scores that `save_scores` wrote."""
    with np.load(path, allow_pickle=False) as content:
        words = json.loads(str(content["words"]))
        arrays = {name: content[name] for name in content.files if name != "words"}
    return ModelScores(
        model=words["model"],
        conditions=tuple(Condition(pooling, instruction) for pooling, instruction in words["conditions"]),
        layers=tuple(words["layers"]),
        fold_names=tuple(words["fold_names"]),
        warnings=tuple(words["warnings"]),
        **arrays,
    )
