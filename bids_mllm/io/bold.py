"""BOLD series as (n_volumes, n_voxels) arrays, masked and cleaned run by run."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.confounds import load_confounds
from bids_mllm.io.files import atomic_path
from bids_mllm.records import BoolArray, FloatArray, Run


def common_mask(runs: Sequence[Run]) -> tuple[BoolArray, Any]:
    """Return the voxels inside the brain in every run (x, y, z) and the affine.

    A run without a mask file counts every voxel as brain. Runs on different grids are an error.
    """
    import nibabel as nib

    first = nib.load(runs[0].bold)
    mask = np.ones(first.shape[:3], dtype=bool)
    for run in runs:
        image = nib.load(run.bold)
        if image.shape[:3] != first.shape[:3] or not np.allclose(image.affine, first.affine, atol=1e-3):
            raise InputDataError(
                f"{run.bold} is on another grid than {runs[0].bold} ({image.shape[:3]} against "
                f"{first.shape[:3]}, or another affine); all runs of a participant in one space must share one: "
                "choose one resolution with --bids-filter-file."
            )
        if run.mask is not None:
            mask &= _read_voxels(run.mask) > 0
    if not mask.any():
        raise InputDataError(
            f"The masks of sub-{runs[0].participant} in space {runs[0].space} have no voxel in common; check them "
            "or leave the differing run out."
        )
    return mask, first.affine


def load_run(run: Run, mask: BoolArray) -> FloatArray:
    """Return the masked series of one run, shape (n_volumes, n_voxels), float32, as stored."""
    return np.ascontiguousarray(_read_voxels(run.bold)[mask].T, dtype=np.float32)


def _read_voxels(path: Path | None) -> Any:
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        return np.asarray(nib.load(path).dataobj)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise InputDataError(f"{path} cannot be read to its end ({error}); fetch or preprocess it again.") from error


def unusable_voxels(series: FloatArray) -> BoolArray:
    """Return True for voxels with a non-finite or a constant series, shape (n_voxels,)."""
    finite = np.isfinite(series).all(axis=0)
    safe = np.where(finite, series, 0)
    unusable: BoolArray = ~finite | (safe.max(axis=0) == safe.min(axis=0))
    return unusable


def clean_run(
    series: FloatArray,
    confounds: FloatArray | None,
    *,
    repetition_time: float,
    high_pass: float,
    non_steady_state: int = 0,
) -> FloatArray:
    """Regress confounds and cosine drifts out of one run in one step, by nilearn.

    The drifts are handed over as regressors: with ``filter="cosine"`` nilearn leaves all of them out as soon as
    one confound, such as a slow movement, correlates above 0.9 with one of them.

    Parameters
    ----------
    series : (n_volumes, n_voxels)
    confounds : (n_volumes, n_confounds) or None
    high_pass
        Hz; 0 removes the mean only.
    non_steady_state
        First volumes that take no part in the regression; they come out as NaN.
    """
    from nilearn.signal import clean

    kept = slice(non_steady_state, None)
    drifts = _cosine_drifts(len(series), repetition_time=repetition_time, high_pass=high_pass)
    regressors = drifts if confounds is None else np.hstack([drifts, confounds])
    centred = series[kept] - series[kept].mean(axis=0, dtype=np.float64)
    if regressors.shape[1]:
        centred = clean(centred, detrend=False, standardize=None, confounds=regressors[kept], filter=False)
    cleaned = np.full(series.shape, np.nan, dtype=np.float32)
    cleaned[kept] = centred
    return cleaned


def _cosine_drifts(n_volumes: int, *, repetition_time: float, high_pass: float) -> FloatArray:
    """Nilearn's cosine drifts without the constant, shape (n_volumes, n_drifts)."""
    from nilearn.glm.first_level import make_first_level_design_matrix

    if high_pass == 0:
        return np.empty((n_volumes, 0))
    frame_times = np.arange(n_volumes) * repetition_time
    design = make_first_level_design_matrix(frame_times, drift_model="cosine", high_pass=high_pass)
    drifts: FloatArray = design.drop(columns="constant").to_numpy(dtype=np.float64)
    return drifts


def prepare_runs(
    runs: Sequence[Run], *, strategy: str, high_pass: float
) -> tuple[FloatArray, BoolArray, BoolArray, Any, tuple[str, ...]]:
    """Load, mask and clean all runs of one participant in one space.

    Returns
    -------
    series : (n_volumes of all runs, n_good) float32
        In the order of `runs`.
    good : (n_voxels,) bool
        Voxels of the mask that are usable in every run.
    mask : (x, y, z) bool
    affine
    confound_names
    """
    mask, affine = common_mask(runs)
    bad = np.zeros(int(mask.sum()), dtype=bool)
    cleaned = []
    names: tuple[str, ...] = ()
    for run in runs:
        raw = load_run(run, mask)
        unusable = unusable_voxels(raw)
        raw[:, unusable] = 0.0
        confounds, names = load_confounds(run, strategy)
        cleaned.append(
            clean_run(
                raw,
                confounds,
                repetition_time=run.repetition_time,
                high_pass=high_pass,
                non_steady_state=run.non_steady_state,
            )
        )
        bad |= unusable
    if bad.all():
        raise InputDataError(
            f"Every voxel of sub-{runs[0].participant} in space {runs[0].space} is constant or not finite in some "
            "run; check the BOLD files."
        )
    return np.concatenate([series[:, ~bad] for series in cleaned]), ~bad, mask, affine, names


def save_mask(path: Path, mask: BoolArray, affine: Any) -> None:
    """Write a mask image atomically."""
    import nibabel as nib

    with atomic_path(path) as scratch:
        nib.Nifti1Image(mask.astype(np.uint8), affine).to_filename(scratch)


def to_volume(values: FloatArray, mask: BoolArray, *, fill: float = np.nan) -> FloatArray:
    """Put (n_voxels,) or (n_maps, n_voxels) values back into (x, y, z) or (x, y, z, n_maps)."""
    shape = mask.shape if values.ndim == 1 else (*mask.shape, values.shape[0])
    volume = np.full(shape, fill, dtype=np.float32)
    volume[mask] = values.T
    return volume
