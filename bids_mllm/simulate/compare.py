"""What was found against what was planted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_mllm.exceptions import InputDataError, UsageError
from bids_mllm.io.grids import VolumeGrid
from bids_mllm.io.results import ModelResult, find_results
from bids_mllm.records import FloatArray, IntArray

#: A voxel whose ceiling is lower tells little about which feature space drives it.
CEILING_THRESHOLD = 0.3
NOTHING = "none"


@dataclass(frozen=True)
class Finding:
    """One line of the comparison: what was planted, what was found, what must hold and whether it does."""

    participant: str
    planted: str
    found: str
    expected: str
    holds: bool


def compare_with_truth(dataset: Path, results_dir: Path) -> tuple[Finding, ...]:
    """Compare the maps of the participant level with the truth of a simulated data set.

    Parameters
    ----------
    dataset
        What `simulate_dataset` wrote.
    results_dir
        Output folder of the app.

    Raises
    ------
    UsageError, InputDataError
        When either folder lacks what is compared.
    """
    truth_dir = dataset / "sourcedata" / "truth"
    if not (truth_dir / "truth.json").is_file():
        raise UsageError(f"{dataset} has no sourcedata/truth/truth.json; give a folder that bids-mllm-simulate wrote.")
    truth = json.loads((truth_dir / "truth.json").read_text(encoding="utf-8"))
    results = find_results(results_dir)
    findings: list[Finding] = []
    for participant in dict.fromkeys(str(result.name.participant) for result in results):
        voxels = pd.read_csv(truth_dir / f"sub-{participant}_voxels.tsv", sep="\t", na_values="n/a")
        own = {result.model: result for result in results if result.name.participant == participant}
        findings += _participant(participant, voxels, own, truth["drivers"])
    if not findings:
        raise InputDataError(f"{results_dir} has no results of the participant level; run it first.")
    return tuple(findings)


def _participant(
    participant: str, voxels: pd.DataFrame, results: Mapping[str, ModelResult], drivers: Mapping[str, Any]
) -> list[Finding]:
    models = [driver["model"] for driver in drivers.values()]
    missing = [model for model in models if model not in results]
    if missing:
        raise InputDataError(f"sub-{participant} has no results of {', '.join(missing)}; run it with these models.")
    place = _places(voxels, results[models[0]])
    best_r = np.stack([results[model].map("r", "best")[0][place] for model in models])
    findings = [
        _best_space(participant, voxels, best_r, number, name, models[number]) for number, name in enumerate(drivers)
    ]
    for name, driver in drivers.items():
        if driver["instruction"] is not None:
            findings.append(_best_read_out(participant, voxels, place, results[driver["model"]], name, driver))
    silent = (voxels["driver"] == NOTHING).to_numpy()
    for number, model in enumerate(models):
        mean = float(np.nanmean(best_r[number, silent]))
        found = f"mean r of {model} {mean:+.3f} in {int(silent.sum())} voxels"
        findings.append(Finding(participant, "nothing", found, "within 0.02 of 0", abs(mean) <= 0.02))
        findings.append(_discoveries(participant, voxels, results[model].map("q", "best")[0][place], model))
    return findings


def _places(voxels: pd.DataFrame, result: ModelResult) -> IntArray:
    """Return where the voxels of the truth lie on the flat axis of the maps, (n_voxels,)."""
    _, grid = result.map("r", "best")
    if not isinstance(grid, VolumeGrid):
        raise InputDataError(f"The maps of {result.model} are no volumes, but the truth is of voxels; compare volumes.")
    indices = tuple(voxels[axis].to_numpy() for axis in "ijk")
    return np.asarray(np.ravel_multi_index(indices, grid.shape))


def _discoveries(participant: str, voxels: pd.DataFrame, q: FloatArray, model: str) -> Finding:
    """Among the voxels that a false discovery rate of .05 declares predicted, those in which nothing was planted."""
    silent = (voxels["driver"] == NOTHING).to_numpy()
    declared = q <= 0.05
    share = float(silent[declared].mean()) if declared.any() else 0.0
    found = f"{model} declared in {int(declared.sum())} voxels, {share:.0%} of them in vain"
    return Finding(participant, "nothing", found, "at most 15 %, 5 % expected", share <= 0.15)


def _best_space(
    participant: str, voxels: pd.DataFrame, best_r: FloatArray, number: int, driver: str, model: str
) -> Finding:
    rows = ((voxels["driver"] == driver) & (voxels["ceiling"] > CEILING_THRESHOLD)).to_numpy()
    share = float((np.nan_to_num(best_r[:, rows], nan=-2.0).argmax(axis=0) == number).mean()) if rows.any() else 0.0
    mean = float(np.nanmean(best_r[number, rows])) if rows.any() else float("nan")
    found = f"{model} best in {share:.0%} of {int(rows.sum())} voxels, mean r {mean:.3f}"
    return Finding(participant, model, found, "at least 80 %", share >= 0.8)


def _best_read_out(
    participant: str,
    voxels: pd.DataFrame,
    place: IntArray,
    result: ModelResult,
    driver: str,
    truth: Mapping[str, Any],
) -> Finding:
    rows = (voxels["driver"] == driver).to_numpy()
    sidecar = result.sidecar()
    means: dict[tuple[str, int], float] = {}
    for condition in sidecar["Conditions"]:
        values = np.atleast_2d(result.map("r", condition)[0])[:, place[rows]]
        means |= {(condition, layer): float(np.nanmean(values[k])) for k, layer in enumerate(sidecar["Layers"])}
    ordered = sorted(means, key=lambda key: -means[key])
    planted = (truth["condition"], truth["layer"])
    rank = ordered.index(planted) + 1
    rival = next(key for key in ordered if key != planted)
    found = (
        f"rank {rank} of {len(ordered)}: mean r {means[planted]:.3f}, best other {rival[0]} layer {rival[1]} "
        f"{means[rival]:.3f}"
    )
    what = f"{result.model} {planted[0]} layer {planted[1]}"
    return Finding(participant, what, found, "highest mean r", rank == 1)


def format_findings(findings: Sequence[Finding]) -> str:
    """Return the comparison as a table of text."""
    head = ("participant", "planted", "found", "must hold", "")
    rows = [head]
    rows += [(f.participant, f.planted, f.found, f.expected, "yes" if f.holds else "NO") for f in findings]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def conditioning_words(dataset: Path) -> str:
    """Say by how much the instructions of the planted model differ."""
    truth = json.loads((dataset / "sourcedata" / "truth" / "truth.json").read_text(encoding="utf-8"))
    lines = [
        f"Linear CKA of {driver['model']} layer {driver['layer']} between {driver['condition']} and "
        + ", ".join(f"{name}: {value:.2f}" for name, value in driver["cka_with_other_conditions"].items())
        + " (1 = alike)"
        for driver in truth["drivers"].values()
        if driver["cka_with_other_conditions"]
    ]
    return "\n".join(lines)
