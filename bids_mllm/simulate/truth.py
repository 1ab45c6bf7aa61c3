"""The answers of the simulated data set: what drives each voxel and how well it can be predicted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bids_mllm.features.conditioning import linear_cka
from bids_mllm.records import FloatArray
from bids_mllm.simulate.brain import REGIONS, Brain
from bids_mllm.simulate.design import Viewing
from bids_mllm.simulate.drivers import ConditionFeatures, Driver
from bids_mllm.simulate.files import write_image, write_json, write_table
from bids_mllm.simulate.noise import (
    AR_RANGE,
    ARTEFACT_SIZE,
    CEILING_RANGE,
    DRIFT_SIZE,
    PERCENT_SIGNAL,
    VoxelNoise,
    correlate_columns,
)
from bids_mllm.simulate.planting import DELAYS, N_COMPONENTS, SHARED_WEIGHT, haemodynamic_weights


def voxel_drivers(brain: Brain, drivers: Sequence[str]) -> NDArray[np.str_]:
    """Name of what drives each voxel, (n_voxels,); ``none`` outside the regions of the given drivers."""
    names = ["none", *(r.driver if r.driver in drivers else "none" for r in REGIONS)]
    return np.array(names)[brain.labels]


def measured_ceiling(
    signals: Sequence[FloatArray], noises: Sequence[FloatArray], viewings: Sequence[Viewing]
) -> FloatArray:
    """Correlation of the response with response plus autocorrelated noise over some runs, (n_voxels,).

    Each run is cut to the volumes whose window and delayed windows are complete and z-scored. NaN where there
    is no response.
    """
    clean, noisy = [], []
    for signal, noise, viewing in zip(signals, noises, viewings, strict=True):
        rows = slice(max(DELAYS), min(viewing.n_windows, viewing.n_volumes))
        clean.append(_standardised(signal[rows]))
        noisy.append(_standardised(signal[rows] + noise[rows]))
    return correlate_columns(np.concatenate(clean), np.concatenate(noisy))


def _standardised(values: FloatArray) -> FloatArray:
    centred = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    scaled: FloatArray = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    return scaled


def write_voxels(path: Path, brain: Brain, drivers: NDArray[np.str_], noise: VoxelNoise, ceiling: FloatArray) -> None:
    """Write one row a voxel: indices, mm, region, driver, measured ceiling, AR coefficient and SNR.

    The SNR is the standard deviation of the response over that of the autocorrelated noise.
    """
    regions = np.array(["none", *(region.name for region in REGIONS)])[brain.labels]
    driven = drivers != "none"
    table = pd.DataFrame(np.asarray(brain.ijk), columns=list("ijk"))
    table[["x", "y", "z"]] = brain.xyz
    table["region"], table["driver"] = regions, drivers
    table["ceiling"] = ceiling
    table["ar1"] = noise.ar
    table["snr"] = np.where(driven, 1 / noise.size, 0.0)
    write_table(path, table)


def write_atlas(folder: Path, brain: Brain) -> None:
    """Write the regions as a label image and the table of its names."""
    write_image(folder / "atlas-planted_dseg.nii.gz", brain.volume(brain.labels.astype(np.int16)), brain.affine)
    table = pd.DataFrame({"index": range(1, len(REGIONS) + 1), "name": [region.name for region in REGIONS]})
    write_table(folder / "atlas-planted_dseg.tsv", table)


def instruction_cka(driver: Driver, features: Mapping[str, ConditionFeatures]) -> dict[str, float]:
    """Linear CKA between the planted condition and every other one at the planted layer."""
    stacked = {
        condition: np.concatenate([per_film[condition][:, driver.layer] for per_film in features.values()])
        for condition in next(iter(features.values()))
    }
    return {
        condition.label: round(linear_cka(stacked[driver.condition], values), 6)
        for condition, values in stacked.items()
        if condition != driver.condition
    }


def describe_driver(driver: Driver, cka: Mapping[str, float]) -> dict[str, Any]:
    """Plain values that say which feature space a driver is."""
    return {
        "model": driver.spec.key,
        "family": driver.spec.family,
        "parameters": {key: _plain(value) for key, value in driver.spec.parameters.items()},
        "condition": driver.condition.label,
        "pooling": driver.condition.pooling,
        "instruction": driver.condition.instruction,
        "layer": driver.layer,
        "max_new_tokens": driver.read_out.max_new_tokens,
        "cka_with_other_conditions": dict(cka),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def write_truth(
    path: Path,
    drivers: Mapping[str, Mapping[str, Any]],
    *,
    seed: int,
    repetition_time: float,
    test_tasks: Sequence[str],
) -> None:
    """Write the settings of the simulation that are the same for all participants."""
    write_json(
        path,
        {
            "seed": seed,
            "repetition_time": repetition_time,
            "window": repetition_time,
            "drivers": drivers,
            "components_per_driver": N_COMPONENTS,
            "delays": list(DELAYS),
            "response_weights": [round(float(weight), 9) for weight in haemodynamic_weights()],
            "shared_weight": SHARED_WEIGHT,
            "ceiling_range": list(CEILING_RANGE),
            "snr_range": [round(float(1 / np.sqrt(1 / c**2 - 1)), 6) for c in CEILING_RANGE],
            "ar1_range": list(AR_RANGE),
            "drift_size": DRIFT_SIZE,
            "artefact_size": ARTEFACT_SIZE,
            "percent_signal": PERCENT_SIGNAL,
            "test_tasks": list(test_tasks),
            "regions": {
                region.name: {"index": place, "centre": list(region.centre), "radius": region.radius}
                for place, region in enumerate(REGIONS, start=1)
            },
        },
    )
