"""Load, mask and clean one run against nilearn's NiftiMasker; fit more voxels than fit into memory.

usage: python benchmarks/io.py [--quick] [--blocks [VOXELS VOLUMES GIB]]

One run of 97 x 115 x 97 voxels x 405 volumes of float32 (100 volumes with --quick), smooth signals with noise over the
whole field of view, compressed as nibabel does, and a mask of about 230,000 voxels. Both sides take the mean (the
masker's is taken off afterwards), 24 confounds and the drifts below 1/128 Hz out of every voxel of the mask. The
masker is called by its manual: ``NiftiMasker(mask_img, standardize=None, detrend=False).fit_transform(run,
confounds=)``. Each side runs in a process of its own, in turns, two each (one with --quick); its seconds are from the
path to the cleaned array without imports, the shortest turn counts; its memory is the peak resident size of the
process, imports included.

With `--blocks` one feature space of few columns is fitted, scored and tested by the app's own node instead, in so many
voxels and volumes (50,000 x 3,000 unless told) with so much memory allowed (1 GiB), the series on disk. Its last
line has the peak of the memory that the process held for itself (anonymous pages, every 10 ms) and of all that was
resident, with all imports, the size of the targets, and the seconds.

The last line is one JSON object: `load_time_ratio` and `load_memory_ratio`, the app over the masker; `max_abs_diff`,
the largest difference of a value in standard deviations of its voxel; and the figures that they are made of.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

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


class Columns:
    """Stands for a model of one feature space of a few columns, made up in every volume."""

    def __init__(self, design: Any, n_volumes: int) -> None:
        from bids_mllm.records import Condition

        self.design, self.model, self.width = design, "columns", 8
        self.conditions, self.layers, self.warnings = (Condition("media"),), (0,), ()
        self.X = np.random.default_rng(0).standard_normal((n_volumes, self.width))

    def memory(self, brain: Any) -> Any:
        """As for any model."""
        from bids_mllm.interfaces.encoding import ModelFeatures

        self._block_length = 10
        return ModelFeatures.memory(self, brain)

    def matrix(self, rows: Any, condition: Any, layer: int) -> np.ndarray:
        """Columns in all volumes."""
        return self.X


def write_series(path: Path, columns: np.ndarray, n_voxels: int) -> None:
    """Write a series that follows the columns, a few volumes in memory at a time."""
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((columns.shape[1], n_voxels), dtype=np.float32)
    series = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(columns), n_voxels))
    for start in range(0, len(columns), 100):
        signal = columns[start : start + 100].astype(np.float32) @ weights
        series[start : start + 100] = signal + 3 * rng.standard_normal(signal.shape, dtype=np.float32)


def design_of_films(n_volumes: int) -> Any:
    """Return a design of one participant with runs of at most 500 volumes, each of a film of its own."""
    from bids_mllm.align.windows import align_run
    from bids_mllm.records import ParticipantDesign, Run, Showing

    parts = np.array_split(np.arange(n_volumes), max(5, n_volumes // 500))
    runs = tuple(
        Run(
            "01",
            None,
            f"film{n}",
            None,
            "T1w",
            None,
            None,
            None,
            1.0,
            0.0,
            len(part),
            None,
            (Showing(f"film{n}x", 0.0),),
        )
        for n, part in enumerate(parts)
    )
    windows = tuple(align_run(run, {f"film{n}x": 1e4}, window=None) for n, run in enumerate(runs))
    return ParticipantDesign("01", "T1w", runs, windows, (), None)


class Peak:
    """The highest that a figure of this process got while the block ran, in MB."""

    def __init__(self, field: str) -> None:
        self.field, self.mb, self.done = field, 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self) -> None:
        """Look until the block has ended."""
        while not self.done.wait(0.01):
            self.mb = max(self.mb, kernel_mb(self.field))

    def __enter__(self) -> "Peak":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()


def measure_blocks(folder: Path, n_voxels: int, n_volumes: int, gib: float) -> dict[str, float]:
    """Peak of memory of a fit that may take so many GiB, and what there was to fit."""
    from bids_mllm.interfaces.brain import Brain
    from bids_mllm.interfaces.encoding import FitOptions, FitScores
    from bids_mllm.interfaces.inference import InferenceOptions
    from bids_mllm.interfaces.rows import CVOptions, make_rows
    from bids_mllm.io.scores import load_scores

    design = design_of_films(n_volumes)
    features = Columns(design, n_volumes)
    write_series(folder / "series.npy", features.X, n_voxels)
    options = FitOptions(
        delays=(0, 1), alphas=(1.0, 1e4, 5), high_pass=0.0, layers=None, inference=InferenceOptions(n_permutations=100)
    )
    rows = make_rows(design, delays=options.delays, cv=CVOptions())
    node = FitScores()
    node.inputs.memory_bytes = node.inputs.max_block_bytes = int(gib * 2**30)
    begin = time.perf_counter()
    with Peak("RssAnon") as own, Peak("VmRSS") as resident:
        node._fit(folder / "scores.npz", features, Brain(folder / "series.npy", rows, "cpu"), options)
    seconds = time.perf_counter() - begin
    r = load_scores(folder / "scores.npz").best_r
    return {
        "allowed_mb": gib * 1024,
        "peak_own_mb": own.mb,
        "peak_resident_mb": resident.mb,
        "targets_mb": len(rows.run_of_row) * n_voxels * 4 / 2**20,
        "voxels": n_voxels,
        "rows": len(rows.run_of_row),
        "median_r": float(np.median(r)),
        "s": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--blocks", nargs="*", type=float, metavar="N", help="VOXELS VOLUMES GIB")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(options.side, options.folder)
        return
    with tempfile.TemporaryDirectory(prefix="bids-mllm-benchmark-") as folder:
        if options.blocks is None:
            figures = measure_loading(Path(folder), quick=options.quick)
        else:
            n_voxels, n_volumes, gib = options.blocks or (50_000, 3_000, 1.0)
            figures = measure_blocks(Path(folder), int(n_voxels), int(n_volumes), gib)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()} | {"quick": options.quick}))


if __name__ == "__main__":
    main()
