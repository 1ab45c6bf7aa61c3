"""What a scanner adds: autocorrelated noise, drift, head motion and its artefact."""

from dataclasses import dataclass

import numpy as np

from bids_mllm.records import FloatArray

CEILING_RANGE = (0.45, 0.9)
AR_RANGE = (0.3, 0.5)
BASELINE = 1000.0
# Standard deviations relative to the autocorrelated noise.
DRIFT_SIZE = 0.7
ARTEFACT_SIZE = 0.5
# Response of a driven voxel in percent of the baseline.
PERCENT_SIGNAL = 0.5
N_DRIFTS = 2
MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
HEAD_RADIUS = 50.0


@dataclass(frozen=True)
class VoxelNoise:
    """Noise of the voxels of one participant, all (n_voxels,).

    `ceiling` is the correlation asked for between response and response plus autocorrelated noise (0 where
    there is no response), `ar` the first-order coefficient, `size` the standard deviation of the noise in
    units of the response's.
    """

    ceiling: FloatArray
    ar: FloatArray
    size: FloatArray


def draw_noise(driven: FloatArray, rng: np.random.Generator) -> VoxelNoise:
    """Draw the noise of each voxel; `driven` (n_voxels,) is non-zero where a voxel has a response.

    A response of variance 1 with noise of variance s^2 has the ceiling ``1 / sqrt(1 + s^2)``.
    """
    ceiling = rng.uniform(*CEILING_RANGE, size=len(driven))
    ar = rng.uniform(*AR_RANGE, size=len(driven))
    size = np.sqrt(1 / ceiling**2 - 1)
    return VoxelNoise(np.where(driven != 0, ceiling, 0.0), ar, size)


def ar_noise(n_volumes: int, ar: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Stationary noise ``e[t] = ar * e[t-1] + u[t]`` of variance 1, shape (n_volumes, n_voxels)."""
    noise: FloatArray = rng.standard_normal((n_volumes, len(ar)))
    noise[1:] *= np.sqrt(1 - ar**2)
    for t in range(1, n_volumes):
        noise[t] += ar * noise[t - 1]
    return noise


def cosines(n_volumes: int, n_columns: int) -> FloatArray:
    """The first slow cosines of a run, ``sqrt(2 / n) cos(pi k (t + 1/2) / n)``, (n_volumes, n_columns)."""
    times = (np.arange(n_volumes) + 0.5) / n_volumes
    orders = np.arange(1, n_columns + 1)
    waves: FloatArray = np.sqrt(2 / n_volumes) * np.cos(np.pi * times[:, None] * orders)
    return waves


def drift(n_volumes: int, n_voxels: int, rng: np.random.Generator) -> FloatArray:
    """Random sums of the two slowest cosines of a run, (n_volumes, n_voxels), expected variance 1."""
    waves = cosines(n_volumes, N_DRIFTS) * np.sqrt(n_volumes / N_DRIFTS)
    slow: FloatArray = waves @ rng.standard_normal((N_DRIFTS, n_voxels))
    return slow


def head_motion(n_volumes: int, rng: np.random.Generator) -> FloatArray:
    """Six parameters (n_volumes, 6) that wander: translations in mm, then rotations in radians."""
    steps = rng.standard_normal((n_volumes, 6)) * ([0.02] * 3 + [0.02 / HEAD_RADIUS] * 3)
    jerks = (rng.random((n_volumes, 1)) < 0.03) * rng.standard_normal((n_volumes, 6))
    motion: FloatArray = np.cumsum(steps + jerks * ([0.15] * 3 + [0.15 / HEAD_RADIUS] * 3), axis=0)
    return motion


def framewise_displacement(motion: FloatArray) -> FloatArray:
    """Power's displacement in mm, (n_volumes,), NaN first: rotations are arcs on a sphere of 50 mm."""
    change = np.abs(np.diff(motion, axis=0)) * ([1.0] * 3 + [HEAD_RADIUS] * 3)
    displacement: FloatArray = np.concatenate([[np.nan], change.sum(axis=1)])
    return displacement


def motion_artefact(motion: FloatArray, n_voxels: int, rng: np.random.Generator) -> FloatArray:
    """Random sums of the standardised motion parameters, (n_volumes, n_voxels), variance near 1."""
    standard = (motion - motion.mean(axis=0)) / motion.std(axis=0)
    weights = rng.standard_normal((standard.shape[1], n_voxels)) / np.sqrt(standard.shape[1])
    artefact: FloatArray = standard @ weights
    return artefact


def scan(
    signal: FloatArray, noise: FloatArray, motion: FloatArray, size: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Measured intensities (n_volumes, n_voxels): baseline, response, noise, drift and motion artefact.

    Parameters
    ----------
    signal, noise : (n_volumes, n_voxels) float
        Response and autocorrelated noise, in the same units.
    motion : (n_volumes, 6) float
    size : (n_voxels,) float
        Standard deviation of the noise, to which drift and artefact are scaled.
    """
    n_volumes, n_voxels = signal.shape
    level = BASELINE * (1 + 0.1 * rng.standard_normal(n_voxels))
    slow = DRIFT_SIZE * size * drift(n_volumes, n_voxels, rng)
    moved = ARTEFACT_SIZE * size * motion_artefact(motion, n_voxels, rng)
    measured: FloatArray = level * (1 + PERCENT_SIGNAL / 100 * (signal + noise + slow + moved))
    return measured


def correlate_columns(first: FloatArray, second: FloatArray) -> FloatArray:
    """Pearson r of the columns of two (n_samples, n_columns) arrays; NaN where one does not vary."""
    a = first - first.mean(axis=0)
    b = second - second.mean(axis=0)
    norms = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    products: FloatArray = (a * b).sum(axis=0)
    r: FloatArray = np.divide(products, norms, out=np.full(products.shape, np.nan), where=norms > 0)
    return r
