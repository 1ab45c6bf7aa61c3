"""The tests against simulated BOLD without an effect, and with planted ones.

Every voxel is an independent pair of a noise series and a prediction, so 20,000 voxels are 20,000 data sets.
Noise: AR(1), or a mixture of AR(1), slow drift and white noise, after a cosine high-pass of 128 s at TR
1.49 s. Predictions: five delays, weighted like a haemodynamic response, of AR(1) features; high-passed or not.
Rows: three runs of about 10 minutes, which do not divide into blocks of 10.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import binom, pearsonr

from bids_mllm.score.multiplicity import fdr
from bids_mllm.score.paired import block_scores, paired_sign_flip
from bids_mllm.score.permutation import permutation_test, standardize

LENGTHS = (403, 397, 409)
RUNS = np.repeat(np.arange(3), LENGTHS)
BOUNDS = ((0, 403), (403, 800), (800, 1209))
REPETITION_TIME, HIGH_PASS_SECONDS = 1.49, 128.0
DELAY_WEIGHTS = np.array([0.3, 1.0, 1.0, 0.6, 0.2])
N_VOXELS, N_PERMUTATIONS = 20_000, 399
ALPHA = 0.05
INTERVAL = tuple(binom.ppf([0.025, 0.975], N_VOXELS, ALPHA) / N_VOXELS)


@dataclass(frozen=True)
class Case:
    """AR(1) coefficients of noise and features, whether drift is mixed in, and what is high-passed."""

    noise: float
    feature: float
    drift: bool = False
    filtered_predictions: bool = True


CASES = {
    "light": Case(noise=0.3, feature=0.5),
    "typical": Case(noise=0.45, feature=0.7),
    "heavy": Case(noise=0.6, feature=0.9, drift=True),
    "unfiltered": Case(noise=0.6, feature=0.9, filtered_predictions=False),
}


def ar1(rng, n, n_voxels, coefficient):
    """Stationary from the first row on, of unit variance."""
    series = rng.standard_normal((n, n_voxels), dtype=np.float32)
    series[1:] *= np.float32(np.sqrt(1 - coefficient**2))
    for row in range(1, n):
        series[row] += np.float32(coefficient) * series[row - 1]
    return series


def high_pass(values):
    n = len(values)
    order = int(2 * n * REPETITION_TIME / HIGH_PASS_SECONDS)
    time = np.arange(n)[:, None]
    basis = np.linalg.qr(np.cos(np.pi * np.arange(order + 1) * (2 * time + 1) / (2 * n)))[0].astype(np.float32)
    return values - basis @ (basis.T @ values)


def response(rng, n, n_voxels, coefficient):
    """Five weighted delays of a slow feature, of unit variance."""
    feature = ar1(rng, n + 4, n_voxels, coefficient)
    lags = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    variance = DELAY_WEIGHTS @ coefficient**lags @ DELAY_WEIGHTS
    weights = (DELAY_WEIGHTS / np.sqrt(variance)).astype(np.float32)
    return sum(weight * feature[4 - delay : 4 - delay + n] for delay, weight in enumerate(weights))


def noise(rng, n, n_voxels, case):
    series = ar1(rng, n, n_voxels, case.noise)
    if case.drift:
        slow, white = ar1(rng, n, n_voxels, 0.98), rng.standard_normal((n, n_voxels), dtype=np.float32)
        series = (0.8 * series + 0.6 * slow + 0.5 * white) / np.float32(np.sqrt(1.25))
    return series


def simulate(case, seed, effect=0.0, n_voxels=N_VOXELS):
    """Y and predictions; `effect` is the amplitude of the predicted series in Y, in units of the noise."""
    rng = np.random.default_rng(seed)
    all_y, all_x = [], []
    for n in LENGTHS:
        x = response(rng, n, n_voxels, case.feature)
        all_y.append(high_pass(noise(rng, n, n_voxels, case) + np.float32(effect) * x))
        all_x.append(high_pass(x) if case.filtered_predictions else x)
    return np.concatenate(all_y), np.concatenate(all_x)


def simulate_two_models(case, seed, shared, n_voxels=N_VOXELS):
    """Y and the predictions of two models that are equally good: `shared` is the amplitude of what both know."""
    rng = np.random.default_rng(seed)
    parts = []
    for n in LENGTHS:
        known, error_a, error_b = (response(rng, n, n_voxels, case.feature) for _ in range(3))
        y = noise(rng, n, n_voxels, case) + np.float32(shared) * known
        weight = np.float32(shared > 0)
        parts.append([high_pass(one) for one in (y, weight * known + error_a, weight * known + error_b)])
    return tuple(np.concatenate(one) for one in zip(*parts, strict=True))


def rate(p):
    return float(np.mean(p <= ALPHA))


def assert_calibrated(p):
    low, high = INTERVAL
    assert low <= rate(p) <= high


@pytest.fixture(scope="module", params=CASES)
def null_data(request):
    return simulate(CASES[request.param], seed=100)


@pytest.mark.parametrize("method", ["block", "circular"])
def test_false_positives_lie_in_the_binomial_interval(null_data, method):
    test = permutation_test(*null_data, RUNS, method=method, n_permutations=N_PERMUTATIONS)
    assert_calibrated(test.p)
    assert (fdr(test.p) <= ALPHA).sum() == 0
    assert (test.p_max <= ALPHA).sum() <= 2


def test_plain_tests_of_the_same_data_miss_the_interval(null_data):
    """Pearson's p and permuted rows are liberal; plain blocks err to either side, as their inflation says."""
    y, x = (values[:, :4000] for values in null_data)
    low, high = binom.ppf([0.025, 0.975], 4000, ALPHA) / 4000
    scaled_y, scaled_x = (standardize(values, BOUNDS)[0] for values in (y, x))
    assert rate(pearsonr(scaled_x, scaled_y, alternative="greater", axis=0).pvalue) > 1.3 * high
    row = permutation_test(y[:, :500], x[:, :500], RUNS, block_length=1, n_permutations=99, studentized=False)
    assert rate(row.p) > binom.ppf(0.975, 500, ALPHA) / 500
    plain = permutation_test(y, x, RUNS, n_permutations=N_PERMUTATIONS, studentized=False)
    assert not low <= rate(plain.p) <= high
    inflation = permutation_test(y, x, RUNS, n_permutations=1).inflation.mean()
    assert (inflation > 1) == (rate(plain.p) > ALPHA)


@pytest.mark.parametrize("method", ["block", "circular"])
def test_power_is_that_of_the_best_test_of_known_variance(method):
    """The correction costs no power: compare with a z-test that knows the spread of r without an effect."""
    case = CASES["typical"]
    y, x = simulate(case, seed=10, n_voxels=4000)
    spread = permutation_test(y, x, RUNS, method=method, n_permutations=1).r.std()
    for effect, least in ((0.1, 0.6), (0.15, 0.9)):
        y, x = simulate(case, seed=11, effect=effect, n_voxels=4000)
        test = permutation_test(y, x, RUNS, method=method, n_permutations=N_PERMUTATIONS)
        best = np.mean(test.r > 1.645 * spread)
        assert rate(test.p) >= max(least, best - 0.02)


def test_discovery_rates_with_a_share_of_true_effects():
    n_true = 400
    y, x = simulate(CASES["typical"], seed=12, effect=0.25, n_voxels=n_true)
    y_null, x_null = simulate(CASES["typical"], seed=13, n_voxels=3600)
    y, x = np.hstack([y, y_null]), np.hstack([x, x_null])
    test = permutation_test(y, x, RUNS, n_permutations=4999)
    for found, allowed in ((fdr(test.p) <= ALPHA, ALPHA), (fdr(test.p, method="by") <= ALPHA, ALPHA)):
        assert found[n_true:].sum() / found.sum() <= allowed + 2 * np.sqrt(allowed / found.sum())
        assert found[:n_true].mean() > 0.8
    # The mean statistic is 4.5; the maximum of 4000 normal ones passes 4.2 in 5 %.
    assert (test.p_max[:n_true] <= ALPHA).mean() > 0.55
    assert (test.p_max[n_true:] <= ALPHA).sum() <= 2


def test_family_wise_error_and_global_null_discoveries_stay_at_alpha():
    """200 maps of 50 voxels; by independence of voxels one simulation serves as many maps."""
    n_maps, n_voxels = 200, 50
    y, x = simulate(CASES["heavy"], seed=14, n_voxels=n_maps * n_voxels)
    family, discovered = 0, 0
    for one in range(n_maps):
        voxels = slice(one * n_voxels, (one + 1) * n_voxels)
        test = permutation_test(y[:, voxels], x[:, voxels], RUNS, n_permutations=199)
        family += (test.p_max <= ALPHA).any()
        discovered += (fdr(test.p) <= ALPHA).any()
    highest = binom.ppf(0.975, n_maps, ALPHA)
    assert family <= highest
    assert discovered <= highest


@pytest.mark.parametrize(
    ("name", "shared"),
    [("typical", 0.0), ("heavy", 0.0), ("heavy", 0.5), ("typical", 1.0)],
    ids=["typical-bad", "heavy-bad", "heavy-good", "typical-very-good"],
)
def test_paired_false_positives_lie_in_the_binomial_interval(name, shared):
    y, a, b = simulate_two_models(CASES[name], seed=200, shared=shared)
    scores_a, scores_b = block_scores(y, a, RUNS), block_scores(y, b, RUNS)
    test = paired_sign_flip(scores_a, scores_b, n_permutations=N_PERMUTATIONS)
    assert_calibrated(test.p)
    assert (fdr(test.p) <= ALPHA).sum() == 0


def test_flipping_contiguous_blocks_misses_the_interval():
    y, a, b = simulate_two_models(CASES["heavy"], seed=30, shared=0.0, n_voxels=4000)
    y, a, b = (standardize(values, BOUNDS)[0][:1200] for values in (y, a, b))
    parts = ((a - b) * y).reshape(120, 10, -1).sum(axis=1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(499, 120))
    reached = (np.abs(signs @ parts) >= np.abs(parts.sum(axis=0))).sum(axis=0)
    assert rate((1 + reached) / 500) > 1.5 * binom.ppf(0.975, 4000, ALPHA) / 4000


def test_paired_power():
    """r of about 0.21 and 0.33 on 1209 rows."""
    y, x = simulate(CASES["typical"], seed=31, effect=0.35, n_voxels=4000)
    worse = x + simulate(CASES["typical"], seed=32, n_voxels=4000)[1] * np.float32(1.2)
    test = paired_sign_flip(block_scores(y, x, RUNS), block_scores(y, worse, RUNS), n_permutations=N_PERMUTATIONS)
    assert 0.08 < test.difference.mean() < 0.16
    assert rate(test.p) > 0.8
