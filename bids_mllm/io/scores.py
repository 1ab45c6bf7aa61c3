"""Scores and inference of models, and noise ceilings, as npz files."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.io.files import atomic_path
from bids_mllm.outcomes import BandScores, CeilingMap, HeldOut, ModelScores, PairScores
from bids_mllm.records import Condition


def save_scores(path: Path, scores: ModelScores) -> None:
    """Write scores atomically; arrays as they are, the rest as one JSON string."""
    words = {
        "model": scores.model,
        "conditions": [[c.pooling, c.instruction] for c in scores.conditions],
        "layers": list(scores.layers),
        "fold_names": list(scores.fold_names),
        "warnings": list(scores.warnings),
    }
    _save(path, words, _arrays(scores, words))


def load_scores(path: Path) -> ModelScores:
    """Read scores that `save_scores` wrote."""
    words, arrays = _load(path)
    return ModelScores(
        model=words["model"],
        conditions=tuple(Condition(pooling, instruction) for pooling, instruction in words["conditions"]),
        layers=tuple(words["layers"]),
        fold_names=tuple(words["fold_names"]),
        warnings=tuple(words["warnings"]),
        **arrays,
    )


def _save(path: Path, words: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    with atomic_path(path) as scratch, scratch.open("wb") as stream:
        np.savez(stream, words=np.array(json.dumps(dict(words))), **arrays)


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as content:
        words = json.loads(str(content["words"]))
        return words, {name: content[name] for name in content.files if name != "words"}


def _arrays(record: Any, words: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record) if f.name not in words}


def save_held_out(path: Path, held_out: HeldOut) -> None:
    """Write the inference on held-out predictions atomically."""
    words = {"run_names": list(held_out.run_names), "facts": dict(held_out.facts)}
    _save(path, words, _arrays(held_out, words))


def load_held_out(path: Path) -> HeldOut:
    """Read what `save_held_out` wrote."""
    words, arrays = _load(path)
    return HeldOut(run_names=tuple(words["run_names"]), facts=words["facts"], **arrays)


def save_ceiling(path: Path, ceiling: CeilingMap) -> None:
    """Write a noise ceiling atomically."""
    _save(path, {"facts": dict(ceiling.facts)}, {"ceiling": ceiling.ceiling})


def load_ceiling(path: Path) -> CeilingMap:
    """Read what `save_ceiling` wrote."""
    words, arrays = _load(path)
    return CeilingMap(arrays["ceiling"], words["facts"])


def save_bands(path: Path, scores: BandScores) -> None:
    """Write the scores of a banded ridge atomically."""
    words = {"names": list(scores.names), "spaces": [list(own) for own in scores.spaces]}
    _save(path, words, _arrays(scores, words))


def load_bands(path: Path) -> BandScores:
    """Read what `save_bands` wrote."""
    words, arrays = _load(path)
    return BandScores(tuple(words["names"]), tuple(tuple(own) for own in words["spaces"]), **arrays)


def save_pairs(path: Path, scores: PairScores) -> None:
    """Write the scores of pairs of instructions atomically."""
    words = {
        "model": scores.model,
        "conditions": list(scores.conditions),
        "layers": list(scores.layers),
        "pairs": [list(pair) for pair in scores.pairs],
    }
    _save(path, words, _arrays(scores, words))


def load_pairs(path: Path) -> PairScores:
    """Read what `save_pairs` wrote."""
    words, arrays = _load(path)
    pairs = tuple((int(a), int(b)) for a, b in words["pairs"])
    return PairScores(words["model"], tuple(words["conditions"]), tuple(words["layers"]), pairs, **arrays)
