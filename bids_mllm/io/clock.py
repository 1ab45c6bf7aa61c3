"""Fast features of stimuli as npz files, and checks of the clocks as npz files and as tables of the output."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.io.derivatives import outputs, sidecar_path, write_table
from bids_mllm.io.files import atomic_path, read_json, read_tsv
from bids_mllm.outcomes import EXPECTED_PEAK, ClockCheck
from bids_mllm.records import FastFeature, FloatArray


def save_fast_features(path: Path, stim_file: str, features: Sequence[FastFeature]) -> None:
    """Write the fast features of one stimulus atomically."""
    words = {"stim_file": stim_file, "features": [[one.name, one.origin, one.step] for one in features]}
    _save(path, words, {one.name: one.values for one in features})


def load_fast_features(path: Path) -> tuple[str, tuple[FastFeature, ...]]:
    """Read what `save_fast_features` wrote: the stimulus and its features."""
    words, arrays = _load(path)
    features = tuple(FastFeature(name, origin, step, arrays[name]) for name, origin, step in words["features"])
    return words["stim_file"], features


def save_clock(path: Path, check: ClockCheck) -> None:
    """Write a check of the clocks atomically."""
    words = {"features": list(check.features), "facts": dict(check.facts)}
    arrays = {"lags": check.lags, "r": check.r, "peaks": check.peaks, "strengths": check.strengths}
    _save(path, words, arrays)


def load_clock(path: Path) -> ClockCheck:
    """Read what `save_clock` wrote."""
    words, arrays = _load(path)
    return ClockCheck(features=tuple(words["features"]), facts=words["facts"], **arrays)


def _save(path: Path, words: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> None:
    with atomic_path(path) as scratch, scratch.open("wb") as stream:
        np.savez(stream, allow_pickle=False, words=np.array(json.dumps(dict(words))), **arrays)


def _load(path: Path) -> tuple[dict[str, Any], dict[str, FloatArray]]:
    with np.load(path, allow_pickle=False) as content:
        words = json.loads(str(content["words"]))
        return words, {name: content[name] for name in content.files if name != "words"}


def write_clock_table(path: Path, check: ClockCheck, sidecar: Mapping[str, Any]) -> None:
    """Write the lag curves as a table, with the lag of each peak in its JSON.

    Parameters
    ----------
    path
        Of the TSV.
    check
    sidecar
        What else its JSON says.
    """
    declared = outputs()["tables"]["clocklag"]
    rows = [
        {"lag": lag, **{name: float(r) for name, r in zip(check.features, column, strict=True)}}
        for lag, column in zip(check.lags.tolist(), check.r.T, strict=True)
    ]
    found = {
        "Peaks": dict(zip(check.features, map(_number, check.peaks), strict=True)),
        "Strengths": dict(zip(check.features, map(_number, check.strengths), strict=True)),
        "ExpectedPeak": list(EXPECTED_PEAK),
        "ClockCheck": dict(check.facts),
    }
    write_table(path, rows, declared["Columns"], {"Description": declared["Description"], **found, **sidecar})


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def read_clock_table(path: Path) -> ClockCheck:
    """Read the table that `write_clock_table` wrote."""
    content = read_json(sidecar_path(path))
    rows = read_tsv(path)
    names = tuple(content["Peaks"])

    def found(key: str) -> FloatArray:
        return np.array([np.nan if content[key][name] is None else content[key][name] for name in names])

    return ClockCheck(
        features=names,
        lags=np.array([float(row["lag"]) for row in rows]),
        r=np.array([[float(row[name]) for row in rows] for name in names]).reshape(len(names), len(rows)),
        peaks=found("Peaks"),
        strengths=found("Strengths"),
        facts=content["ClockCheck"],
    )
