"""Small images on disk for the tests of reading."""

from pathlib import Path

import nibabel as nib
import numpy as np

from bids_mllm.records import Run

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (3, 4, 2)
TR = 2.0


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(values, affine).to_filename(path)
    return path


def bold_run(
    folder: Path,
    name: str = "sub-01_task-a_run-1",
    *,
    n_volumes: int = 60,
    seed: int = 0,
    mask: np.ndarray | None = None,
    affine: np.ndarray = AFFINE,
    shape: tuple[int, ...] = SHAPE,
    values: np.ndarray | None = None,
    confounds: bool = False,
) -> Run:
    """Write a BOLD of noise around 1000, its mask where given, and return its record."""
    if values is None:
        values = 1000 + 10 * np.random.default_rng(seed).standard_normal((*shape, n_volumes))
    stem = f"{name}_space-MNI152NLin2009cAsym"
    bold = save(folder / f"{stem}_desc-preproc_bold.nii.gz", values.astype(np.float32), affine)
    brain = None
    if mask is not None:
        brain = save(folder / f"{stem}_desc-brain_mask.nii.gz", mask.astype(np.uint8), affine)
    table = folder / f"{name}_desc-confounds_timeseries.tsv" if confounds else None
    return Run("01", None, "a", 1, "MNI152NLin2009cAsym", bold, brain, table, TR, 0.0, values.shape[3])
