"""How long after a fast feature of the stimulus the best voxels follow: a check of the clocks.

Where the clock of the run and that of the stimulus agree, BOLD follows sound and cuts by the lag of a haemodynamic
response. A wrong start time, onset or pairing of runs and stimuli moves the whole curve by as much.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_mllm.records import FastFeature, FloatArray, IntArray

# Seconds: what is drawn, and its steps.
FIRST_LAG, LAST_LAG = -6.0, 12.0
LONGEST_STEP = 0.25
# Slower than this (Hz) is drift, in the BOLD and in the feature.
HIGH_PASS = 0.01
# Best voxels: this share, within these bounds.
BEST_SHARE, FEWEST_BEST, MOST_BEST = 0.01, 10, 200
# Seconds on either side of the highest point that the parabola is laid through.
PARABOLA = 2.5
# Volumes are shifted in circle by at least this many seconds, beyond what a response lasts.
LEAST_SHIFT = 20.0
N_SHIFTS = 50
# Fewer volumes than this in a half say nothing.
FEWEST_VOLUMES = 40
# The curve must stand so many times above what shifted volumes give; noise reached 4.1 in 300 simulations.
CLEAR = 4.5


@dataclass(frozen=True)
class Viewing:
    """Volumes of one playback of one stimulus.

    Attributes
    ----------
    times : (n_volumes,) float
        Seconds on the stimulus clock, equally spaced.
    series : (n_volumes, n_voxels) float
        BOLD of these volumes.
    features
        Fast features of the stimulus, as far as they were shown.
    """

    times: FloatArray
    series: FloatArray
    features: tuple[FastFeature, ...]

    @property
    def repetition_time(self) -> float:
        """Seconds of the stimulus from volume to volume."""
        return float(self.times[-1] - self.times[0]) / (len(self.times) - 1)


@dataclass(frozen=True)
class LagCurve:
    """How strongly the best voxels follow a feature at each lag.

    Attributes
    ----------
    r : (n_lags,) float
        Mean correlation of the best voxels, chosen on the other half of the data.
    peak : float
        Seconds at which it is highest; NaN where the curve does not stand out.
    strength : float
        Its highest value over the spread of the values that the same voxels have when their volumes are shifted in
        circle; NaN where there are too few volumes.
    """

    r: FloatArray
    peak: float
    strength: float


def lags_of(repetition_time: float) -> FloatArray:
    """Return the lags in seconds, (n_lags,): from -6 to 12 in steps of a quarter of a TR or 0.25, whichever is less."""
    n_steps = int(np.ceil((LAST_LAG - FIRST_LAG) / min(repetition_time / 4, LONGEST_STEP) - 1e-9))
    lags: FloatArray = np.linspace(FIRST_LAG, LAST_LAG, n_steps + 1)
    return lags


def lag_curves(viewings: Sequence[Viewing], lags: FloatArray) -> dict[str, LagCurve]:
    """Correlate voxels with fast features at each lag, and find the lag of those that follow each feature best.

    At lag L the BOLD at second t of the film meets the feature around ``t - L``, averaged over half a TR, so that the
    steps may be smaller than a TR. Drifts slower than 100 s are taken from both, each half of each viewing is
    z-scored, and the best voxels of one half are drawn with the volumes of the other, both ways.

    Parameters
    ----------
    viewings
        Of one participant, all on the same voxels.
    lags : (n_lags,) float
        Seconds, rising in equal steps.

    Returns
    -------
    dict
        By the name of the feature, from the viewings whose stimulus has it. The correlation of a voxel over n volumes
        is ``sum(y * f) / n`` of z-scored values, where feature values that are not known count as 0.
    """
    series = [_halves(without_drift(viewing.series, viewing.repetition_time)) for viewing in viewings]
    names = dict.fromkeys(feature.name for viewing in viewings for feature in viewing.features)
    return {name: _curve_of(name, viewings, series, lags) for name in names}


def _curve_of(
    name: str, viewings: Sequence[Viewing], series: Sequence[tuple[FloatArray, FloatArray]], lags: FloatArray
) -> LagCurve:
    own, shown, steps = [], [], []
    for viewing, of_viewing in zip(viewings, series, strict=True):
        for feature in viewing.features:
            if feature.name == name:
                step = viewing.repetition_time
                wanted = sampled_at(feature, viewing.times[:, None] - lags, step / 2)
                own.append(_halves(without_drift(wanted, step)))
                shown.append(of_viewing)
                steps.append(step)
    halves = [_Half([y[number] for y in shown], [f[number] for f in own]) for number in (0, 1)]
    least = int(np.ceil(LEAST_SHIFT / min(steps)))
    curves, spreads = [], []
    for choosing, drawing in (halves, halves[::-1]):
        curve, noise = drawing.curve(best_voxels(choosing.correlations()), least)
        curves.append(curve)
        spreads.append(noise)
    r: FloatArray = np.mean(curves, axis=0)
    # The noise of the two halves is independent.
    spread = float(np.sqrt(np.sum(np.square(spreads)))) / 2
    strength = float(r.max()) / spread if min(spreads) > 0 else np.nan
    return LagCurve(r, peak_of(lags, r) if strength >= CLEAR else np.nan, strength)


def _halves(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    middle = len(values) // 2
    return standard(values[:middle]), standard(values[middle:])


@dataclass(frozen=True)
class _Half:
    """One half of every viewing, z-scored: series (n, n_voxels) and the feature at every lag (n, n_lags)."""

    series: list[FloatArray]
    features: list[FloatArray]

    def correlations(self) -> FloatArray:
        """Correlation of every voxel at every lag, (n_voxels, n_lags)."""
        n_volumes = sum(map(len, self.series))
        total = sum(y.T @ f.astype(y.dtype) for y, f in zip(self.series, self.features, strict=True))
        r: FloatArray = np.asarray(total) / n_volumes
        return r

    def curve(self, chosen: IntArray, least: int) -> tuple[FloatArray, float]:
        """Mean correlation of the chosen voxels at every lag, and its spread when volumes are shifted in circle.

        `chosen` (n_voxels,) is 1 or -1 for the voxels that count and 0 for the others.
        """
        mean = np.concatenate([y @ chosen.astype(y.dtype) for y in self.series]) / max(1, np.abs(chosen).sum())
        feature = np.concatenate(self.features)
        curve: FloatArray = mean @ feature / len(mean)
        if len(mean) < max(2 * least, FEWEST_VOLUMES):
            return curve, np.nan
        shifts = np.unique(np.linspace(least, len(mean) - least, N_SHIFTS).astype(int))
        shifted = np.stack([np.roll(mean, shift) for shift in shifts]) @ feature / len(mean)
        # Robust: a film seen twice meets itself at some shift.
        return curve, float(np.median(np.abs(shifted)) / 0.6745)


def best_voxels(r: FloatArray) -> IntArray:
    """Mark the voxels that follow a feature best at any lag.

    Parameters
    ----------
    r : (n_voxels, n_lags) float

    Returns
    -------
    chosen : (n_voxels,) int
        1 for the best hundredth (at least 10 and at most 200), -1 for those among them that fall where others rise, 0
        for the others.
    """
    highest = np.nan_to_num(np.abs(r)).max(axis=1)
    n_best = min(len(r), int(np.clip(BEST_SHARE * len(r), FEWEST_BEST, MOST_BEST)))
    best = np.argsort(-highest, kind="stable")[:n_best]
    at = np.abs(r[best]).argmax(axis=1)
    chosen: IntArray = np.zeros(len(r), dtype=int)
    chosen[best] = np.sign(r[best, at])
    return chosen


def peak_of(lags: FloatArray, r: FloatArray) -> float:
    """Seconds of the top of a parabola through the highest point and its neighbours within 2.5 s.

    Parameters
    ----------
    lags, r : (n_lags,) float

    Returns
    -------
    float
        The end itself where the highest point is at one.
    """
    top = int(np.argmax(r))
    near = np.abs(lags - lags[top]) <= PARABOLA + 1e-9
    square, slope, _ = np.polyfit(lags[near] - lags[top], r[near], 2)
    moved = -slope / (2 * square) if square < 0 else 0.0
    return float(np.clip(lags[top] + np.clip(moved, -PARABOLA, PARABOLA), lags[0], lags[-1]))


def sampled_at(feature: FastFeature, times: FloatArray, width: float) -> FloatArray:
    """Average a feature over `width` seconds around each time, exactly; NaN where some of it is not known.

    Parameters
    ----------
    feature
    times : (...) float
        Seconds on the stimulus clock.
    width
        Seconds.
    """
    known = np.isfinite(feature.values)
    edges = feature.origin + feature.step * np.arange(len(feature.values) + 1)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, feature.values, 0.0))]) * feature.step
    gaps = np.concatenate([[0.0], np.cumsum(~known)])
    first, last = times - width / 2, times + width / 2
    whole = (first >= edges[0] - 1e-9) & (last <= edges[-1] + 1e-9)
    whole &= np.interp(last, edges, gaps) - np.interp(first, edges, gaps) < 1e-9
    means = (np.interp(last, edges, sums) - np.interp(first, edges, sums)) / width
    values: FloatArray = np.where(whole, means, np.nan)
    return values


def without_drift(values: FloatArray, repetition_time: float) -> FloatArray:
    """Subtract mean and slow cosines from each column (n_rows, n_columns); NaN rows of a column stay NaN."""
    n_rows = len(values)
    n_waves = int(2 * n_rows * repetition_time * HIGH_PASS)
    angles = np.pi * (np.arange(n_rows) + 0.5) / n_rows
    waves = np.cos(angles[:, None] * np.arange(n_waves + 1)).astype(values.dtype)
    known = np.isfinite(values)
    if known.all():
        return _residual(values, waves)
    cleaned = np.full_like(values, np.nan)
    for column in range(values.shape[1]):
        rows = known[:, column]
        if rows.sum() > waves.shape[1]:
            cleaned[rows, column] = _residual(values[rows, column], waves[rows])
    return cleaned


def _residual(values: FloatArray, waves: FloatArray) -> FloatArray:
    basis, _ = np.linalg.qr(waves)
    left: FloatArray = values - basis @ (basis.T @ values)
    # What is left of a constant is rounding.
    left[..., np.abs(left).max(axis=0) <= 1e-5 * np.abs(values).max(axis=0)] = 0.0
    return left


def standard(values: FloatArray) -> FloatArray:
    """Z-score the known values of each column (n_rows, n_columns); the others, and columns without variance, are 0."""
    known = np.isfinite(values)
    n_known = np.maximum(known.sum(axis=0), 1).astype(values.dtype)
    filled = np.where(known, values, 0)
    centred = np.where(known, filled - filled.sum(axis=0) / n_known, 0)
    spread = np.sqrt((centred**2).sum(axis=0) / n_known)
    result: FloatArray = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    return result
