"""False discovery rates against the definition and scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import false_discovery_control, norm

from bids_mllm.score.multiplicity import count_comparisons, fdr, simes

P = np.array([[0.01, 0.04, np.nan], [0.03, 0.5, 0.005]])


def test_hand_made_case():
    expected = [[0.025, 0.05, np.nan], [0.05, 0.5, 0.025]]
    np.testing.assert_allclose(fdr(P), expected)
    np.testing.assert_allclose(fdr(P, method="by"), np.minimum(1, np.array(expected) * (137 / 60)))
    assert count_comparisons(P) == 5


@given(hnp.arrays(float, st.integers(1, 30), elements=st.floats(1e-9, 1)), st.sampled_from(["bh", "by"]))
def test_is_scipys_and_monotone(p, method):
    q = fdr(p, method=method)
    np.testing.assert_allclose(q, false_discovery_control(p, method=method))
    assert (np.diff(q[np.argsort(p, kind="stable")]) >= -1e-12).all()


@given(
    hnp.arrays(float, st.integers(1, 20), elements=st.floats(1e-9, 1)),
    st.integers(0, 40),
    st.sampled_from(["bh", "by"]),
)
def test_tests_that_were_tried_but_not_handed_in_count_as_ones(p, more, method):
    padded = false_discovery_control(np.concatenate([p, np.ones(more)]), method=method)[: len(p)]
    np.testing.assert_allclose(fdr(p, method=method, n_comparisons=len(p) + more), padded)


def test_fewer_comparisons_than_handed_in_change_nothing():
    np.testing.assert_array_equal(fdr(P, n_comparisons=2), fdr(P))


def test_nothing_to_test_stays_nan():
    assert np.isnan(fdr(np.full((2, 2), np.nan))).all()
    assert fdr(np.zeros((0, 3))).shape == (0, 3)
    assert count_comparisons(np.full(3, np.nan)) == 0


def test_p_outside_its_range_and_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="'bh', 'by'"):
        fdr(P, method="bonferroni")
    with pytest.raises(ValueError, match="between 0 and 1"):
        fdr(np.array([0.2, 1.5]))


def test_simes_by_hand():
    # 3 p_(i) / i of 0.02, 0.03, 0.9: 0.06, 0.045, 0.9.
    assert simes(np.array([0.9, np.nan, 0.02, 0.03])) == pytest.approx(0.045)
    assert simes(np.array([0.2])) == pytest.approx(0.2)
    assert np.isnan(simes(np.array([np.nan])))
    assert np.isnan(simes(np.zeros(0)))


@given(hnp.arrays(float, st.integers(1, 30), elements=st.floats(1e-9, 1)))
def test_simes_is_the_smallest_rate_of_scipy(p):
    assert simes(p) == pytest.approx(false_discovery_control(p).min())


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
def test_simes_keeps_its_level_where_voxels_are_alike(correlation):
    rng = np.random.default_rng(0)
    common = rng.normal(size=(2000, 1)) * np.sqrt(correlation)
    p = norm.sf(common + rng.normal(size=(2000, 20)) * np.sqrt(1 - correlation))
    share = np.mean([simes(row) <= 0.05 for row in p])
    assert share <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
