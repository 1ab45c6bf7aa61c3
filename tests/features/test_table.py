"""Feature tables against hand-made windows."""

import numpy as np
import pytest

from bids_mllm.exceptions import StimulusError
from bids_mllm.features.table import FeatureTable, check_table, table_windows


def table(rows, *kinds):
    """A table from rows (onset, duration, value, ...)."""
    array = np.array(rows, dtype=float).reshape(len(rows), 2 + len(kinds))
    names = tuple(f"column{index}" for index in range(len(kinds)))
    return FeatureTable("film.mkv", names, array[:, 0], array[:, 1], array[:, 2:], kinds)


LEVELS = table([(0, 1, 10), (1, 1, 20), (2, 2, 40)], "mean")


def test_mean_is_weighted_by_overlap():
    features = table_windows(LEVELS, np.array([0.0, 0.5, 1.5]), np.array([1.0, 1.5, 3.5]))
    np.testing.assert_allclose(features[:, 0], [10, 15, (0.5 * 20 + 1.5 * 40) / 2])


def test_mean_is_nan_where_the_window_is_not_covered():
    features = table_windows(LEVELS, np.array([-0.5, 3.5, 9.0]), np.array([0.5, 4.5, 10.0]))
    assert np.isnan(features).all()


def test_a_rounded_edge_of_half_a_millisecond_is_no_gap():
    touching = table([(0, 0.9995, 1), (1, 1, 3)], "mean")
    np.testing.assert_allclose(table_windows(touching, np.array([0.0]), np.array([2.0])), 2.0, atol=1e-3)


def test_sum_takes_the_share_of_each_row():
    counts = table([(0, 2, 4), (1, 2, 6), (5, 0, 1)], "sum")
    features = table_windows(counts, np.array([0.0, 1.0, 4.0, 5.0, 8.0]), np.array([1.0, 2.0, 5.0, 6.0, 9.0]))
    np.testing.assert_allclose(features[:, 0], [2, 5, 0, 1, 0])


def test_sums_over_a_partition_keep_the_total():
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.uniform(0, 9, 50), rng.choice([0, 0.5], 50), rng.normal(size=50)])
    edges = np.linspace(0, 10, 14)
    features = table_windows(table(rows, "sum"), edges[:-1], edges[1:])
    assert features.sum() == pytest.approx(rows[:, 2].sum())


def test_long_rows_reach_windows_far_from_their_onset():
    rows = [(0, 100, 100), (1, 0, 5), (2, 0, 5), (3, 0, 5)]
    np.testing.assert_allclose(table_windows(table(rows, "sum"), np.array([50.0]), np.array([51.0])), 1.0)


def test_columns_are_aggregated_by_their_own_rule_in_any_row_order():
    both = table([(2, 2, 40, 8), (0, 1, 10, 1), (1, 1, 20, 2)], "mean", "sum")
    np.testing.assert_allclose(table_windows(both, np.array([1.0]), np.array([3.0])), [[30, 6]])


def test_a_missing_value_stays_within_the_windows_it_touches():
    rows = table([(0, 1, np.nan, np.nan), (1, 1, 2, 3)], "mean", "sum")
    features = table_windows(rows, np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    assert np.isnan(features[0]).all()
    np.testing.assert_allclose(features[1], [2, 3])


def test_a_complete_table_passes():
    counts = table([(3, 0, 1), (3, 1, 1)], "sum")
    passed = [(LEVELS, 4.0, 0.0), (LEVELS, 4.0005, 0.0), (LEVELS, 5.0, 1.5), (counts, 100.0, 0.0)]
    assert [check_table(rows, span, window=window) for rows, span, window in passed] == [None] * 4
    with pytest.raises(StimulusError, match="4"):
        check_table(LEVELS, 5.0)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(0, 1, 1)], "has 1 rows"),
        ([(0, 1, 1), (1.5, 3, 1)], r"column0 .* from second 1\.000 to 1\.500"),
        ([(0.5, 1, 1), (1.5, 3, 1)], r"from second 0\.000 to 0\.500"),
        ([(0, 1.2, 1), (1, 3, 1)], r"overlap at second 1\.000"),
        ([(0, 1, 1), (1, 1, 1)], r"ends at second 2\.000, but the windows need 4\.000"),
        ([(0, 1, 1), (1, -1, 1)], "duration -1 in row 2"),
        ([(0, 1, 1), (np.nan, 1, 1)], "onset nan"),
    ],
)
def test_faults_name_file_column_and_second(rows, words):
    with pytest.raises(StimulusError, match=words) as error:
        check_table(table(rows, "mean"), 4.0)
    assert "film.mkv" in str(error.value)
