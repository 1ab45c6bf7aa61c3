"""Load, mask and clean one run against nilearn's NiftiMasker.

usage: python benchmarks/io.py [--quick]

One run of 97 x 115 x 97 voxels x 405 volumes of float32 (100 volumes with --quick), smooth signals with noise over the
whole field of view, compressed as nibabel does, and a mask of about 230,000 voxels. Both sides take the mean (the
masker's is taken off afterwards), 24 confounds and the drifts below 1/128 Hz out of every voxel of the mask. The
masker is called by its manual: ``NiftiMasker(mask_img, standardize=None, detrend=False).fit_transform(run,
confounds=)``. Each side runs in a process of its own, in turns, two each (one with --quick); its seconds are from the
path to the cleaned array without imports, the shortest turn counts; its memory is the peak resident size of the
process, imports included.

The last line is one JSON object: `load_time_ratio` and `load_memory_ratio`, the app over the masker; `max_abs_diff`,
the largest difference of a value in standard deviations of its voxel; and the figures that they are made of.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE = (97, 115, 97)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
REPETITION_TIME, HIGH_PASS = 1.49, 1 / 128
N_CONFOUNDS = 24
SIDES = ("masker", "app")


def write_run(folder: Path, n_volumes: int) -> None:
    """Write a run, its mask and its regressors."""
    import nibabel as nib
    from scipy.ndimage import gaussian_filter

    from bids_mllm.io.cleaning import cosine_drifts

    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    radius = np.sqrt(sum((axis / size) ** 2 for axis, size in zip(axes, (0.75, 0.88, 0.72), strict=True)))
    mask = radius < 0.958
    nib.Nifti1Image(mask.astype(np.uint8), AFFINE).to_filename(folder / "mask.nii.gz")

    def smooth(sigma: float) -> np.ndarray:
        return gaussian_filter(rng.standard_normal(SHAPE, dtype=np.float32), sigma)

    still = (3 * smooth(3) + 1) * 8000 * np.clip(1.6 - radius, 0.02, 1)
    patterns = np.stack([2000 * smooth(4) for _ in range(6)])
    courses = rng.standard_normal((n_volumes, 6)).cumsum(axis=0) / 5
    values = np.empty((*SHAPE, n_volumes), dtype=np.float32, order="F")
    for number, course in enumerate(courses):
        noise = 60 * rng.standard_normal(SHAPE, dtype=np.float32)
        values[..., number] = still + np.tensordot(course, patterns, axes=1) + noise
    nib.Nifti1Image(values, AFFINE).to_filename(folder / "bold.nii.gz")
    confounds = rng.standard_normal((n_volumes, N_CONFOUNDS)).cumsum(axis=0)
    drifts = cosine_drifts(n_volumes, repetition_time=REPETITION_TIME, high_pass=HIGH_PASS)
    np.save(folder / "regressors.npy", np.hstack([drifts, confounds]))


def by_masker(folder: Path, regressors: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the series by nilearn, and the seconds."""
    from nilearn.maskers import NiftiMasker

    begin = time.perf_counter()
    masker = NiftiMasker(mask_img=folder / "mask.nii.gz", standardize=None, detrend=False)
    series = masker.fit_transform(folder / "bold.nii.gz", confounds=regressors)
    return series, time.perf_counter() - begin


def by_app(folder: Path, regressors: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the series by the app, and the seconds."""
    import nibabel as nib
    import scipy.linalg  # noqa: F401  imports are not timed

    from bids_mllm.io.cleaning import clean_in_place
    from bids_mllm.io.nifti_stream import read_masked

    begin = time.perf_counter()
    mask = np.asarray(nib.load(folder / "mask.nii.gz").dataobj) > 0
    series = read_masked(folder / "bold.nii.gz", mask)
    clean_in_place(series, regressors)
    return series, time.perf_counter() - begin


def kernel_mb(field: str) -> float:
    """Return a figure of memory of this program alone; getrusage also counts the one that started it."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def side(name: str, folder: Path) -> None:
    """Load the run one way, print seconds and peak of memory, then keep the series."""
    series, seconds = {"masker": by_masker, "app": by_app}[name](folder, np.load(folder / "regressors.npy"))
    print(json.dumps({"s": seconds, "mb": kernel_mb("VmHWM")}), flush=True)
    np.save(folder / f"{name}.npy", series)


def turn(name: str, folder: Path) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", name, "--folder", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of centred series, in standard deviations of each column; arrays may be on disk."""
    if found.shape != expected.shape:
        raise RuntimeError(f"The app has {found.shape} values, the masker {expected.shape}.")
    largest = 0.0
    for start in range(0, found.shape[1], 4096):
        one, other = (values[:, start : start + 4096].astype(np.float64) for values in (found, expected))
        difference = np.abs(one - one.mean(axis=0) - (other - other.mean(axis=0)))
        largest = max(largest, float((difference / other.std(axis=0)).max()))
    return largest


def measure_loading(folder: Path, *, quick: bool) -> dict[str, float]:
    """Ratios of seconds and memory, and what they are made of."""
    write_run(folder, 100 if quick else 405)
    turns = [{name: turn(name, folder) for name in SIDES} for _ in range(1 if quick else 2)]
    best = {f"{name}_{unit}": min(one[name][unit] for one in turns) for name in SIDES for unit in ("s", "mb")}
    app, masker = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("app", "masker"))
    return {
        "load_time_ratio": best["app_s"] / best["masker_s"],
        "load_memory_ratio": best["app_mb"] / best["masker_mb"],
        "max_abs_diff": largest_difference(app, masker),
        "volumes": len(app),
        "voxels": app.shape[1],
    } | best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(options.side, options.folder)
        return
    with tempfile.TemporaryDirectory(prefix="bids-mllm-benchmark-") as folder:
        figures = measure_loading(Path(folder), quick=options.quick)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()} | {"quick": options.quick}))


if __name__ == "__main__":
    main()
