"""Ceilings against planted signal and noise, against formulas written out, and where they are undefined."""

import tracemalloc

import numpy as np
import pytest
from scipy.optimize import curve_fit
from sklearn.linear_model import Ridge

from bids_mllm.exceptions import DesignError
from bids_mllm.score import ceiling as module
from bids_mllm.score.ceiling import (
    all_subsets,
    explainable_variance,
    extrapolate_ceiling,
    leave_one_out_ceiling,
    normalized_correlation,
    repeat_ceiling,
    split_half_reliability,
)
from bids_mllm.score.correlation import pearson_r

N_VOXELS = 1000
TOLERANCE = 0.02
SIZES = np.array([1, 1, 1, 2, 2, 2, 3])


def simulate(reliability, n_series, n_times, n_voxels=N_VOXELS, seed=0):
    """Series that share a signal, with unit variance each and this share of it in common."""
    rng = np.random.default_rng(seed)
    rho = np.asarray(reliability)
    signal = rng.normal(size=(n_times, n_voxels))
    return np.sqrt(rho) * signal + np.sqrt(1 - rho) * rng.normal(size=(n_series, n_times, n_voxels))


def subset_scores(series, predict):
    """Sizes and scores of predicting series 0 from all subsets of the others."""
    labels = [str(index) for index in range(len(series))]
    subsets = all_subsets(labels, exclude="0")
    scores = [pearson_r(*predict(series[0], series[[int(label) for label in subset]])) for subset in subsets]
    return np.array([len(subset) for subset in subsets]), np.array(scores)


def mean_of_others(own, others):
    return own, others.mean(axis=0)


def ridge_of_same_voxel(own, others):
    """Held-out half of the rows and its prediction by a regression on the first half, voxel by voxel."""
    half = len(own) // 2
    predicted = [
        Ridge(alpha=1.0).fit(x[:half], y[:half]).predict(x[half:])
        for x, y in zip(others.transpose(2, 1, 0), own.T, strict=True)
    ]
    return own[half:], np.transpose(predicted)


def ridge_of_all_voxels(own, others):
    """As above, from all voxels of all others at once."""
    half = len(own) // 2
    x = np.concatenate(list(others), axis=1)
    return own[half:], Ridge(alpha=100.0).fit(x[:half], own[:half]).predict(x[half:])


class TestExplainableVariance:
    def test_is_the_formula_of_the_residuals(self):
        repeats = 5 + 3 * simulate(0.4, 3, 80, 6)
        expected = []
        for voxel in repeats.transpose(2, 0, 1):
            z = (voxel - voxel.mean(axis=1, keepdims=True)) / voxel.std(axis=1, keepdims=True)
            residual = z - z.mean(axis=0)
            ev = 1 - residual.var(axis=1, ddof=1).mean() / z.var(axis=1, ddof=1).mean()
            expected.append((ev, ev - (1 - ev) / (3 - 1)))
        uncorrected, corrected = np.transpose(expected)
        np.testing.assert_allclose(explainable_variance(repeats, bias_correction=False), uncorrected)
        np.testing.assert_allclose(explainable_variance(repeats), corrected)

    @pytest.mark.parametrize("n_repeats", [2, 3, 5])
    @pytest.mark.parametrize("reliability", [0.0, 0.3])
    def test_the_correction_removes_the_bias(self, n_repeats, reliability):
        repeats = simulate(reliability, n_repeats, 300)
        biased = reliability + (1 - reliability) / n_repeats
        assert explainable_variance(repeats).mean() == pytest.approx(reliability, abs=0.01)
        assert explainable_variance(repeats, bias_correction=False).mean() == pytest.approx(biased, abs=0.01)

    def test_is_negative_for_repeats_that_disagree(self):
        up = np.arange(10.0)[:, None]
        np.testing.assert_allclose(explainable_variance(np.array([up, -up])), [-1])


class TestSplitHalf:
    def test_two_repeats_are_spearman_browns_formula(self):
        first, second = repeats = simulate(0.5, 2, 100, 5)
        r = pearson_r(first, second)
        np.testing.assert_allclose(split_half_reliability(repeats), 2 * r / (1 + r))

    def test_all_splits_of_four_are_averaged(self):
        repeats = simulate(0.5, 4, 100, 5)
        z = (repeats - repeats.mean(axis=1, keepdims=True)) / repeats.std(axis=1, keepdims=True)
        halves = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
        r = np.mean([pearson_r(z[list(a)].mean(axis=0), z[list(b)].mean(axis=0)) for a, b in halves], axis=0)
        np.testing.assert_allclose(split_half_reliability(repeats), 2 * r / (1 + r))

    def test_unequal_halves_of_three_solve_for_one_viewing(self):
        repeats = simulate(0.5, 3, 200, 5)
        z = (repeats - repeats.mean(axis=1, keepdims=True)) / repeats.std(axis=1, keepdims=True)
        r = np.mean([pearson_r(z[one], np.delete(z, one, axis=0).mean(axis=0)) for one in range(3)], axis=0)
        reliability = split_half_reliability(repeats)
        single = reliability / (3 - 2 * reliability)
        np.testing.assert_allclose(single * np.sqrt(2 / (1 + single)), r)

    def test_random_splits_agree_with_all_and_follow_the_seed(self):
        repeats = simulate(0.3, 6, 200, 50)
        exact = split_half_reliability(repeats, n_splits=10)
        drawn = split_half_reliability(repeats, n_splits=9, seed=1)
        np.testing.assert_allclose(drawn, exact, atol=0.05)
        assert not np.array_equal(drawn, exact)
        np.testing.assert_array_equal(drawn, split_half_reliability(repeats, n_splits=9, seed=1))
        assert not np.array_equal(drawn, split_half_reliability(repeats, n_splits=9, seed=2))

    def test_is_nan_where_not_positive(self):
        up = np.arange(10.0)[:, None]
        np.testing.assert_array_equal(split_half_reliability(np.array([up, -up])), [np.nan])


class TestRepeatCeiling:
    @pytest.mark.parametrize("averaged", [False, True])
    @pytest.mark.parametrize("method", ["explainable_variance", "split_half"])
    @pytest.mark.parametrize("n_repeats", [2, 3, 4, 5])
    def test_recovers_the_planted_ceiling_on_average(self, n_repeats, method, averaged):
        for reliability in (0.1, 0.3, 0.7):
            repeats = simulate(reliability, n_repeats, 500)
            noise = (1 - reliability) / n_repeats if averaged else 1 - reliability
            planted = np.sqrt(reliability / (reliability + noise))
            found = repeat_ceiling(repeats, method=method, averaged=averaged)
            assert np.nanmean(found) == pytest.approx(planted, abs=TOLERANCE)
            assert np.isnan(found).mean() < 0.05

    @pytest.mark.parametrize("averaged", [False, True])
    def test_is_what_the_true_signal_reaches(self, averaged):
        rng = np.random.default_rng(3)
        signal = rng.normal(size=(400, N_VOXELS))
        reliability = rng.uniform(0.1, 0.8, size=N_VOXELS)
        repeats = np.sqrt(reliability) * signal + np.sqrt(1 - reliability) * rng.normal(size=(3, 400, N_VOXELS))
        reached = pearson_r(repeats.mean(axis=0) if averaged else repeats[0], signal)
        found = repeat_ceiling(repeats, averaged=averaged)
        assert np.nanmean(found) == pytest.approx(reached.mean(), abs=TOLERANCE)
        assert np.nanmean(normalized_correlation(reached, found)) == pytest.approx(1, abs=TOLERANCE)

    @pytest.mark.parametrize("averaged", [False, True])
    @pytest.mark.parametrize("method", ["explainable_variance", "split_half"])
    def test_is_nan_exactly_where_the_reliability_is_not_positive(self, method, averaged):
        repeats = simulate(0.0, 2, 50)
        found = repeat_ceiling(repeats, method=method, averaged=averaged)
        np.testing.assert_array_equal(np.isnan(found), pearson_r(*repeats) <= 0)
        assert np.isnan(found).sum() > N_VOXELS / 3

    def test_an_unknown_method_lists_the_choices(self):
        with pytest.raises(ValueError, match="'explainable_variance', 'split_half'"):
            repeat_ceiling(simulate(0.5, 2, 10, 1), method="half", averaged=True)


REPEAT_FUNCTIONS = [
    explainable_variance,
    split_half_reliability,
    lambda repeats: repeat_ceiling(repeats, averaged=True),
    lambda repeats: repeat_ceiling(repeats, method="split_half", averaged=False),
]


@pytest.mark.parametrize("function", REPEAT_FUNCTIONS)
class TestRepeats:
    def test_constant_and_missing_targets_are_nan_and_spoil_no_other(self, function):
        repeats = simulate(0.6, 3, 60, 6)
        whole = function(repeats)
        repeats[0, :, 0] = 0.1
        repeats[1, 5, 1], repeats[2, 0, 2] = np.nan, np.inf
        np.testing.assert_array_equal(np.isnan(function(repeats)), [True, True, True, False, False, False])
        np.testing.assert_array_equal(function(repeats)[3:], whole[3:])

    def test_scale_and_mean_of_a_viewing_do_not_matter(self, function):
        repeats = simulate(0.6, 3, 60, 4)
        scaled = repeats * np.array([1, 10, 0.1])[:, None, None] + np.array([1e4, 0, -3])[:, None, None]
        np.testing.assert_allclose(function(scaled), function(repeats), rtol=1e-8)

    def test_one_viewing_is_refused(self, function):
        with pytest.raises(DesignError, match="at least two viewings of the same film, not 1"):
            function(simulate(0.5, 1, 20, 2))

    def test_blocks_are_one_block(self, function, monkeypatch):
        repeats = simulate(0.5, 3, 40, 23).astype(np.float32)
        whole = function(repeats)
        monkeypatch.setattr(module, "BLOCK_VALUES", 3 * 40 * 5)
        np.testing.assert_array_equal(function(repeats), whole)

    def test_memory_is_bounded_by_the_block(self, function, monkeypatch):
        repeats = np.random.default_rng(0).normal(size=(2, 50, 20_000)).astype(np.float32)
        block_bytes = repeats.size * 8 // 50
        monkeypatch.setattr(module, "BLOCK_VALUES", repeats.size // 50)
        assert peak_memory(function, repeats) < 4 * block_bytes + 4 * 20_000 * 8


def peak_memory(function, *arguments):
    tracemalloc.start()
    function(*arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


class TestSubsets:
    def test_all_sizes_in_order(self):
        subsets = all_subsets(["05", "02", "03", "01"], exclude="02")
        singles = (("01",), ("03",), ("05",))
        assert subsets == (*singles, ("01", "03"), ("01", "05"), ("03", "05"), ("01", "03", "05"))

    def test_the_order_of_participants_does_not_matter(self):
        assert all_subsets("abcde", exclude="c") == all_subsets("edcba", exclude="c")
        assert len(all_subsets("abcde", exclude="c")) == 2**4 - 1

    def test_a_participant_alone_has_none(self):
        assert all_subsets(["01"], exclude="01") == ()

    def test_the_participant_must_be_one_of_them(self):
        with pytest.raises(ValueError, match=r"exclude is '03', .* '01', '02'"):
            all_subsets(["01", "02"], exclude="03")


def exponential(x, v0, tau):
    return v0 * (1 - np.exp(-x / tau))


def reliability_curve(x, v0, tau):
    return v0 * np.sqrt(x / (x + tau))


CURVES = {"exponential": exponential, "reliability": reliability_curve}


def planted_scores(curve, v0, tau, noise, n_voxels=N_VOXELS, sizes=SIZES):
    rng = np.random.default_rng(5)
    return CURVES[curve](sizes[:, None], v0, tau) + noise * rng.normal(size=(len(sizes), n_voxels))


class TestExtrapolation:
    @pytest.mark.parametrize("v0", [0.2, 0.5, 0.8])
    @pytest.mark.parametrize(
        ("curve", "tau"), [("exponential", 0.5), ("exponential", 1.5), ("reliability", 1.0), ("reliability", 4.0)]
    )
    def test_recovers_a_planted_curve_from_noisy_scores(self, curve, tau, v0):
        found = extrapolate_ceiling(SIZES, planted_scores(curve, v0, tau, 0.02 * v0), curve=curve, n_bootstraps=50)
        assert np.mean(found.ceiling) == pytest.approx(v0, abs=TOLERANCE)
        assert np.median(found.tau) == pytest.approx(tau, rel=0.1)
        assert (found.low <= found.ceiling).all()
        assert (found.ceiling <= found.high).all()

    @pytest.mark.parametrize(("curve", "tau"), [("exponential", 2.0), ("reliability", 9.0)])
    def test_a_curve_without_noise_is_found_exactly(self, curve, tau):
        v0 = np.linspace(0.1, 1, 10)
        found = extrapolate_ceiling(SIZES, planted_scores(curve, v0, tau, 0, 10), curve=curve, n_bootstraps=2)
        np.testing.assert_allclose(found.ceiling, v0, rtol=1e-3)
        np.testing.assert_allclose(found.tau, tau, rtol=5e-3)
        np.testing.assert_allclose(found.high - found.low, 0, atol=1e-12)

    @pytest.mark.parametrize("planted", [0.5, 0.97])
    @pytest.mark.parametrize(("curve", "bound"), [("exponential", 3.0), ("reliability", 30.0)])
    def test_a_fit_is_scipys_bounded_least_squares(self, curve, bound, planted):
        scores = planted_scores(curve, planted, 1.0, 0.02, 20, np.arange(1, 4))
        found = extrapolate_ceiling(np.arange(1, 4), scores, curve=curve, n_bootstraps=1)
        for voxel, y in enumerate(scores.T):
            (v0, tau), _ = curve_fit(CURVES[curve], np.arange(1, 4), y, p0=(0.5, 1), bounds=((0, 0.1), (1, bound)))
            assert found.ceiling[voxel] == pytest.approx(v0, rel=2e-3)
            assert found.tau[voxel] == pytest.approx(tau, rel=1e-2)

    def test_growth_in_a_straight_line_does_not_run_away(self):
        line = 0.1 * SIZES[:, None]
        found = extrapolate_ceiling(SIZES, line)
        assert found.tau == pytest.approx([3])
        assert 0.3 < found.ceiling[0] < 0.3 * 1.6
        assert 0.3 < extrapolate_ceiling(SIZES, line, curve="reliability").ceiling[0] < 0.3 * 3.4

    def test_a_ceiling_is_a_correlation(self):
        found = extrapolate_ceiling(SIZES, 0.33 * SIZES[:, None])
        np.testing.assert_array_equal(found.ceiling, [1])

    def test_scores_that_do_not_grow_are_their_own_ceiling(self):
        found = extrapolate_ceiling(SIZES, np.full((7, 1), 0.3))
        np.testing.assert_allclose(found.ceiling, [0.3], rtol=1e-3)

    def test_is_nan_where_undefined(self):
        scores = planted_scores("exponential", 0.4, 1.0, 0.0, 6)
        scores[SIZES > 1, 0] = np.nan
        scores[:, 1] = np.nan
        scores[:, 2] *= -1
        scores[[0, 4], 3] = np.nan
        scores[SIZES == 3, 4] = np.nan
        found = extrapolate_ceiling(SIZES, scores)
        for values in (found.ceiling, found.tau, found.low, found.high):
            np.testing.assert_array_equal(np.isnan(values), [True, True, True, False, False, False])
        np.testing.assert_allclose(found.ceiling[3:], 0.4, rtol=2e-3)

    def test_one_size_is_never_enough(self):
        found = extrapolate_ceiling(np.array([1, 1]), np.full((2, 3), 0.5))
        assert np.isnan(found.ceiling).all()

    def test_a_size_of_which_no_score_was_drawn_keeps_its_mean(self):
        sizes = np.array([1, 1, 2, 2])
        scores = exponential(sizes, 0.4, 1.0)[:, None]
        scores[[0, 3]] = np.nan
        found = extrapolate_ceiling(sizes, scores)
        np.testing.assert_allclose([found.low, found.ceiling, found.high], 0.4, rtol=2e-3)

    def test_follows_the_seed_and_varies_with_the_subsets_only(self):
        scores = planted_scores("exponential", 0.4, 1.0, 0.02, 5)
        first, again, other = (extrapolate_ceiling(SIZES, scores, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first.low, again.low)
        assert not np.array_equal(first.low, other.low)
        assert (first.high > first.low).all()

    def test_blocks_are_one_block_and_bound_the_memory(self, monkeypatch):
        scores = planted_scores("reliability", 0.4, 1.0, 0.02, 8000)
        whole = extrapolate_ceiling(SIZES, scores, n_bootstraps=20)
        monkeypatch.setattr(module, "BLOCK_VALUES", 100_000)
        peak = peak_memory(lambda: extrapolate_ceiling(SIZES, scores, n_bootstraps=20))
        np.testing.assert_allclose(extrapolate_ceiling(SIZES, scores, n_bootstraps=20).ceiling, whole.ceiling)
        assert peak < 2 * 100_000 * 8 + 5 * 8000 * 8

    def test_arguments_are_checked(self):
        scores = np.ones((7, 2))
        with pytest.raises(ValueError, match="6 subsets and scores has 7"):
            extrapolate_ceiling(SIZES[1:], scores)
        with pytest.raises(ValueError, match="holds 0, but"):
            extrapolate_ceiling(SIZES - 1, scores)
        with pytest.raises(ValueError, match="n_bootstraps is 0"):
            extrapolate_ceiling(SIZES, scores, n_bootstraps=0)
        with pytest.raises(ValueError, match="'exponential', 'reliability'"):
            extrapolate_ceiling(SIZES, scores, curve="linear")


class TestSimulatedParticipants:
    @pytest.mark.parametrize("n_participants", [3, 4, 5])
    @pytest.mark.parametrize("reliability", [0.2, 0.5])
    def test_reliability_curve_reaches_the_ceiling(self, n_participants, reliability):
        series = simulate(reliability, n_participants, 800)
        found = extrapolate_ceiling(*subset_scores(series, mean_of_others), curve="reliability", n_bootstraps=20)
        assert np.nanmean(found.ceiling) == pytest.approx(np.sqrt(reliability), abs=TOLERANCE)

    @pytest.mark.parametrize("own", [0.2, 0.6])
    def test_reliability_curve_reaches_it_when_participants_differ(self, own):
        series = simulate(np.array([own, 0.4, 0.5, 0.4])[:, None, None], 4, 1000)
        found = extrapolate_ceiling(*subset_scores(series, mean_of_others), curve="reliability", n_bootstraps=20)
        assert np.nanmean(found.ceiling) == pytest.approx(np.sqrt(own), abs=TOLERANCE)

    @pytest.mark.parametrize("n_participants", [4, 5])
    def test_reliability_curve_reaches_it_from_a_regression(self, n_participants):
        series = simulate(0.4, n_participants, 2000, 100)
        found = extrapolate_ceiling(*subset_scores(series, ridge_of_same_voxel), curve="reliability", n_bootstraps=20)
        assert np.nanmean(found.ceiling) == pytest.approx(np.sqrt(0.4), abs=TOLERANCE)

    def test_no_curve_gives_back_what_a_wide_regression_loses(self):
        rng = np.random.default_rng(0)
        signal = rng.normal(size=(2000, 20)) @ rng.normal(size=(20, 40)) / np.sqrt(20)
        series = np.sqrt(0.4) * signal + np.sqrt(0.6) * rng.normal(size=(4, 2000, 40))
        sizes, scores = subset_scores(series, ridge_of_all_voxels)
        found = extrapolate_ceiling(sizes, scores, curve="reliability", n_bootstraps=20)
        assert scores[-1].mean() < found.ceiling.mean() < np.sqrt(0.4) - 0.03

    def test_exponential_stays_below_whatever_the_length(self):
        # The analytic curve itself, as if the recording had no end, for 3 others.
        for reliability, shortfall in ((0.1, 0.150), (0.35, 0.124), (0.7, 0.061)):
            scores = np.sqrt(reliability) * np.sqrt(SIZES * reliability / (1 + (SIZES - 1) * reliability))
            found = extrapolate_ceiling(SIZES, scores[:, None], n_bootstraps=2)
            assert found.ceiling[0] == pytest.approx(np.sqrt(reliability) - shortfall, abs=0.005)


class TestLeaveOneOut:
    @pytest.mark.parametrize("n_participants", [2, 3, 4, 6])
    @pytest.mark.parametrize("reliability", [0.15, 0.4, 0.7])
    def test_recovers_the_planted_ceiling_on_average(self, n_participants, reliability):
        found = leave_one_out_ceiling(simulate(reliability, n_participants, 400))
        assert found.shape == (n_participants, N_VOXELS)
        np.testing.assert_allclose(np.nanmean(found, axis=1), np.sqrt(reliability), atol=TOLERANCE)
        assert np.isnan(found).mean() < 0.01

    def test_raw_is_the_correlation_with_the_mean_of_the_z_scored_others(self):
        series = simulate(0.4, 4, 100, 5) * np.array([1, 5, 0.2, 30])[:, None, None]
        z = (series - series.mean(axis=1, keepdims=True)) / series.std(axis=1, keepdims=True)
        expected = [pearson_r(z[one], np.delete(z, one, axis=0).mean(axis=0)) for one in range(4)]
        np.testing.assert_allclose(leave_one_out_ceiling(series, correct=False), expected)

    def test_raw_is_below_the_planted_ceiling(self):
        raw = leave_one_out_ceiling(simulate(0.3, 4, 500), correct=False)
        expected = np.sqrt(0.3 * 0.9 / 1.6)
        np.testing.assert_allclose(raw.mean(axis=1), expected, atol=0.01)
        assert expected < np.sqrt(0.3) - 0.1

    def test_participants_that_differ_are_right_on_average_only(self):
        found = leave_one_out_ceiling(simulate(np.array([0.2, 0.5, 0.5, 0.5])[:, None, None], 4, 1000))
        error = np.nanmean(found, axis=1) - np.sqrt([0.2, 0.5, 0.5, 0.5])
        assert error[0] == pytest.approx(0.08, abs=0.02)
        assert error.mean() == pytest.approx(0, abs=TOLERANCE)

    @pytest.mark.parametrize("correct", [True, False])
    def test_one_participant_is_a_row_of_all(self, correct):
        series = simulate(0.4, 3, 50, 5)
        whole = leave_one_out_ceiling(series, correct=correct)
        for target in (1, -1):
            found = leave_one_out_ceiling(series, target=target, correct=correct)
            np.testing.assert_array_equal(found, whole[[target]])

    @pytest.mark.parametrize("correct", [True, False])
    def test_a_participant_without_the_voxel_is_left_out_of_the_others(self, correct):
        series = simulate(0.5, 4, 100, 3)
        without = leave_one_out_ceiling(np.delete(series, 2, axis=0), correct=correct)
        series[2, 7, 0], series[2, :, 1] = np.nan, 4.0
        found = leave_one_out_ceiling(series, correct=correct)
        np.testing.assert_array_equal(np.isnan(found[2]), [True, True, False])
        np.testing.assert_allclose(found[[0, 1, 3], :2], without[:, :2])

    def test_is_nan_without_others_or_where_the_correlation_is_not_positive(self):
        series = simulate(0.5, 2, 100, 3)
        series[1, :, 0] = 0
        series[1, :, 1] *= -1
        np.testing.assert_array_equal(np.isnan(leave_one_out_ceiling(series)), [[True, True, False]] * 2)
        raw = leave_one_out_ceiling(series, correct=False)
        np.testing.assert_array_equal(np.isnan(raw), [[True, False, False]] * 2)
        assert raw[0, 1] < 0

    def test_blocks_are_one_block(self, monkeypatch):
        series = simulate(0.5, 3, 40, 23)
        whole = leave_one_out_ceiling(series)
        monkeypatch.setattr(module, "BLOCK_VALUES", 3 * 40 * 5)
        np.testing.assert_array_equal(leave_one_out_ceiling(series), whole)

    def test_a_participant_alone_is_refused(self):
        with pytest.raises(DesignError, match="at least two participants, not 1"):
            leave_one_out_ceiling(simulate(0.5, 1, 20, 2))


class TestNormalizedCorrelation:
    def test_is_the_ratio_not_its_square_and_not_clipped(self):
        r = np.array([[0.2, 0.6, -0.1], [0.1, np.nan, 0.8]])
        expected = [[0.5, 1.2, -0.2], [0.25, np.nan, 1.6]]
        np.testing.assert_allclose(normalized_correlation(r, np.array([0.4, 0.5, 0.5])), expected)

    def test_is_nan_below_the_threshold_and_without_a_ceiling(self):
        ceiling = np.array([0.05, 0.049, 0.0, -0.3, np.nan, np.inf])
        normalized = normalized_correlation(np.full(6, 0.1), ceiling)
        np.testing.assert_array_equal(np.isnan(normalized), [False, True, True, True, True, True])
        assert normalized[0] == pytest.approx(2)
        assert np.isnan(normalized_correlation(np.full(1, 0.1), np.array([0.3]), threshold=0.5)).all()

    @pytest.mark.parametrize("threshold", [0, -0.1])
    def test_the_threshold_is_positive(self, threshold):
        with pytest.raises(ValueError, match="must be above 0"):
            normalized_correlation(np.ones(1), np.ones(1), threshold=threshold)
