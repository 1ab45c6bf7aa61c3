"""Confound regressors of a run by a named strategy, read through nilearn."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.exceptions import InputDataError
from bids_mllm.records import FloatArray, Run

#: Arguments of nilearn's `load_confounds` by strategy. Cosine drifts are added by the high-pass filter, not
#: here, except for compcor, whose components nilearn gives only together with fMRIPrep's cosines.
STRATEGIES: dict[str, dict[str, Any]] = {
    "none": {},
    "motion": {"strategy": ("motion",), "motion": "full"},
    "simple": {"strategy": ("motion", "wm_csf"), "motion": "full", "wm_csf": "basic"},
    "compcor": {
        "strategy": ("motion", "high_pass", "compcor"),
        "motion": "full",
        "compcor": "anat_combined",
        "n_compcor": 5,
    },
}


def load_confounds(run: Run, strategy: str) -> tuple[FloatArray | None, tuple[str, ...]]:
    """Return the regressors (n_volumes, n_confounds) of `run` and their names.

    None for strategy none and for series from which the derivative has removed confounds already. The first value of
    derivative columns, which fMRIPrep leaves n/a, is filled by nilearn with the next.
    """
    if not STRATEGIES[strategy] or run.denoised:
        return None, ()
    if run.confounds is None or run.bold is None:
        raise InputDataError(
            f"{run.label} of sub-{run.participant} has no desc-confounds_timeseries.tsv beside its BOLD, which "
            f"the strategy {strategy} needs; fetch it or pass --confounds none."
        )
    from nilearn.interfaces.fmriprep import load_confounds as nilearn_load_confounds

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)
            table, _ = nilearn_load_confounds(str(_image_beside(run.confounds)), **STRATEGIES[strategy])
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputDataError(
            f"The confounds {run.confounds} do not serve the strategy {strategy} ({reason}); choose another with "
            "--confounds."
        ) from error
    if len(table) != run.n_volumes:
        raise InputDataError(
            f"The confounds {run.confounds} have {len(table)} rows but the BOLD {run.bold.name} has {run.n_volumes} "
            "volumes; both must be of one preprocessing: preprocess the run again."
        )
    return np.asarray(table, dtype=np.float64), tuple(str(name) for name in table.columns)


def _image_beside(confounds: Path) -> Path:
    """Name an image by which nilearn finds these confounds; it looks at the name alone, whatever the series are."""
    stem = re.sub(r"_desc-confounds_(timeseries|regressors)$", "", confounds.stem)
    return confounds.with_name(f"{stem}_desc-preproc_bold.nii.gz")
