"""From features to the noiseless response: leading components, a haemodynamic response, voxel weights."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bids_mllm.records import FloatArray

N_COMPONENTS = 4
DELAYS = (1, 2, 3, 4, 5)
# The response is planted in TRs, so that a film with a short TR keeps it within the same delays.
RESPONSE_TR = 1.49
# Share of a voxel's weights that all participants have in common.
SHARED_WEIGHT = 0.9


def haemodynamic_weights() -> FloatArray:
    """Weights of the delays 1 to 5 TR, shape (5,), summing to 1.

    A double-gamma response (peaks at 5 s and 15 s, the second a sixth of the first) read at the middle of
    each window, ``(delay - 0.5) * 1.49 s``; what lies beyond five TRs is left out.
    """
    from scipy.stats import gamma

    times = (np.asarray(DELAYS) - 0.5) * RESPONSE_TR
    values: FloatArray = gamma.pdf(times, 6) - gamma.pdf(times, 16) / 6
    weights: FloatArray = values / values.sum()
    return weights


def leading_components(features: Mapping[str, NDArray[np.float32]]) -> dict[str, FloatArray]:
    """Scores of the first components of standardised features, each with variance 1.

    Parameters
    ----------
    features
        For each stimulus an array (n_windows, n_features); columns are standardised over all windows of all
        stimuli, and those without variance are left out.

    Returns
    -------
    components
        For each stimulus an array (n_windows, min(4, rank)).
    """
    stacked = np.concatenate([values.astype(np.float64) for values in features.values()])
    spread = stacked.std(axis=0)
    kept = spread > 1e-6 * max(1.0, float(np.abs(stacked).max()))
    standard = (stacked[:, kept] - stacked[:, kept].mean(axis=0)) / spread[kept]
    left, sizes, _ = np.linalg.svd(standard, full_matrices=False)
    rank = min(N_COMPONENTS, int((sizes > 1e-6 * sizes[0]).sum()))
    # The sign of a singular vector is arbitrary; fix it for equal results on every machine.
    signs = np.sign(left[np.abs(left[:, :rank]).argmax(axis=0), np.arange(rank)])
    scores = left[:, :rank] * signs * np.sqrt(len(stacked))
    ends = np.cumsum([len(values) for values in features.values()])[:-1]
    return dict(zip(features, np.split(scores, ends), strict=True))


def respond(components: FloatArray, n_volumes: int) -> FloatArray:
    """Convolve window values (n_windows, n_components) with the response, (n_volumes, n_components).

    Volume v answers to the windows v - 1 to v - 5; windows before and after the film count as 0, the mean.
    """
    response = np.zeros((n_volumes, components.shape[1]))
    for delay, weight in zip(DELAYS, haemodynamic_weights(), strict=True):
        n_rows = min(n_volumes - delay, len(components))
        if n_rows > 0:
            response[delay : delay + n_rows] += weight * components[:n_rows]
    return response


def voxel_weights(
    n_components: int, n_voxels: int, *, shared: np.random.Generator, own: np.random.Generator
) -> FloatArray:
    """Random weights (n_components, n_voxels): 0.9 of a common draw, the rest the participant's."""
    common = shared.standard_normal((n_components, n_voxels))
    individual = own.standard_normal((n_components, n_voxels))
    weights: FloatArray = SHARED_WEIGHT * common + np.sqrt(1 - SHARED_WEIGHT**2) * individual
    return weights


def plant_signals(
    components: Mapping[str, Mapping[str, FloatArray]],
    drivers: NDArray[np.str_],
    shown: Sequence[tuple[str, int]],
    *,
    seed: int,
    participant: int,
) -> list[FloatArray]:
    """Return the noiseless response of every voxel in every run of one participant.

    Parameters
    ----------
    components
        For each driver the components of each stimulus, (n_windows, n_components).
    drivers : (n_voxels,) str
        Name of the driver of each voxel; a name that `components` lacks means no signal.
    shown
        Stimulus and number of volumes of each run.
    seed, participant
        Seeds of the common and of the participant's own weights.

    Returns
    -------
    signals
        One array (n_volumes, n_voxels) a run; over all runs each driven voxel has mean 0 and variance 1, the
        others are 0.
    """
    totals: list[FloatArray] = [np.zeros((n_volumes, len(drivers))) for _, n_volumes in shown]
    for order, (driver, per_stimulus) in enumerate(sorted(components.items())):
        voxels = np.flatnonzero(drivers == driver)
        responses = [respond(per_stimulus[stimulus], n_volumes) for stimulus, n_volumes in shown]
        weights = voxel_weights(
            responses[0].shape[1],
            len(voxels),
            shared=np.random.default_rng([seed, 11, order]),
            own=np.random.default_rng([seed, 12, order, participant]),
        )
        signals = [response @ weights for response in responses]
        stacked = np.concatenate(signals)
        mean, spread = stacked.mean(axis=0), stacked.std(axis=0)
        for total, signal in zip(totals, signals, strict=True):
            total[:, voxels] = (signal - mean) / spread
    return totals
