"""Confound tables with the columns of fMRIPrep."""

from typing import Any

import numpy as np
import pandas as pd

from bids_mllm.records import FloatArray
from bids_mllm.simulate.noise import MOTION, cosines, framewise_displacement

HIGH_PASS_SECONDS = 128.0
N_COMPONENTS = 6


def confound_table(
    bold: FloatArray, motion: FloatArray, *, repetition_time: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Return the confounds of a run, one row a volume.

    Motion has its derivatives and squares; the first value of a derivative is missing, as fMRIPrep leaves it.
    The tissue signals and components carry random values, since nothing of them is in the simulated voxels.

    Parameters
    ----------
    bold : (n_volumes, n_voxels) float
        Its mean is the global signal.
    motion : (n_volumes, 6) float
    repetition_time
        Seconds.
    rng
        Of the random columns.
    """
    n_volumes = len(bold)
    columns: dict[str, FloatArray] = {"global_signal": bold.mean(axis=1)}
    for tissue in ("csf", "white_matter"):
        columns[tissue] = 900 + 3 * rng.standard_normal(n_volumes)
    columns["framewise_displacement"] = framewise_displacement(motion)
    for name, values in zip(MOTION, motion.T, strict=True):
        change = np.concatenate([[np.nan], np.diff(values)])
        columns[name] = values
        columns[f"{name}_derivative1"] = change
        columns[f"{name}_derivative1_power2"] = change**2
        columns[f"{name}_power2"] = values**2
    n_cosines = int(2 * n_volumes * repetition_time / HIGH_PASS_SECONDS)
    for k, wave in enumerate(cosines(n_volumes, n_cosines).T):
        columns[f"cosine{k:02d}"] = wave
    for k in range(N_COMPONENTS):
        columns[f"a_comp_cor_{k:02d}"] = rng.standard_normal(n_volumes) / np.sqrt(n_volumes)
    return pd.DataFrame(columns)


def confound_metadata(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Describe the anatomical components of a confound table, as fMRIPrep's sidecar does."""
    names = [name for name in table.columns if name.startswith("a_comp_cor_")]
    return {
        name: {
            "Mask": "combined",
            "Method": "aCompCor",
            "Retained": True,
            "SingularValue": float(len(names) - place),
            "VarianceExplained": 0.1,
            "CumulativeVarianceExplained": round(0.1 * (place + 1), 3),
        }
        for place, name in enumerate(names)
    }
