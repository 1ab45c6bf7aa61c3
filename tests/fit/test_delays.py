"""Delays against a hand-written case; no row may come from another run."""

import numpy as np
import pytest

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.delays import delay_rows, delayed_valid

X = np.array([[1.0, 10], [2, 20], [3, 30], [4, 40]])


def test_blocks_are_the_delayed_columns():
    nan = np.nan
    expected = [[1, 10, nan, nan], [2, 20, nan, nan], [3, 30, 1, 10], [4, 40, 2, 20]]
    np.testing.assert_array_equal(delay_rows(X, (0, 2)), expected)


def test_blocks_keep_the_order_of_the_delays():
    np.testing.assert_array_equal(delay_rows(X, (2, 0))[2], [1, 10, 3, 30])


def test_a_row_without_features_stays_missing_in_every_block():
    gap = X.copy()
    gap[1] = np.nan
    delayed = delay_rows(gap, (0, 1))
    np.testing.assert_array_equal(np.isnan(delayed[1]), [True, True, False, False])
    np.testing.assert_array_equal(np.isnan(delayed[2]), [False, False, True, True])


def test_delays_of_stacked_runs_do_not_cross_the_border():
    runs = [np.full((5, 1), 1.0), np.full((4, 1), 2.0)]
    delayed = np.concatenate([delay_rows(run, (1, 2)) for run in runs])
    second = delayed[5:]
    assert np.isnan(second[0]).all()
    assert set(second[np.isfinite(second)]) == {2.0}


def test_valid_rows_need_every_delayed_window():
    valid = np.array([True, True, False, True, True, True])
    np.testing.assert_array_equal(delayed_valid(valid, (0, 1)), [False, True, False, False, True, True])
    np.testing.assert_array_equal(delayed_valid(valid, (2,)), [False, False, False, True, False, True])


def test_valid_rows_are_those_without_nan():
    rng = np.random.default_rng(0)
    valid = rng.random(40) > 0.2
    features = rng.normal(size=(40, 3))
    features[~valid] = np.nan
    complete = np.isfinite(delay_rows(features, (0, 1, 4))).all(axis=1)
    np.testing.assert_array_equal(delayed_valid(valid, (0, 1, 4)), complete)


@pytest.mark.parametrize("delays", [(), (-1,), (1, 1), (0.5,)])
def test_impossible_delays_are_refused(delays):
    with pytest.raises(ValueError, match="delays are"):
        delay_rows(X, delays)


def test_a_run_shorter_than_the_delays_is_refused():
    with pytest.raises(DesignError, match="4 TRs is not longer than the longest delay of 4"):
        delay_rows(X, (1, 4))
    with pytest.raises(DesignError, match="3 TRs"):
        delayed_valid(np.ones(3, dtype=bool), (3,))
