"""Splits against hand-made cases: repeats together, borders purged, inner splits inside training."""

import numpy as np
import pytest

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.folds import group_repeats, make_folds

N = 20


def stacked(n_runs, n_rows=N, step=1.0):
    """Run index and position of runs of equal length."""
    return np.repeat(np.arange(n_runs), n_rows), np.tile(np.arange(n_rows) * step, n_runs)


def folds_of(n_runs, groups, *, test_runs=None, n_folds=2, purge=0.0, n_rows=N):
    run_of_row, position = stacked(n_runs, n_rows)
    names = [f"run{index}" for index in range(n_runs)]
    folds = make_folds(
        run_of_row,
        position,
        np.asarray(groups),
        run_names=names,
        test_runs=test_runs,
        n_folds=n_folds,
        purge=purge,
    )
    return folds, run_of_row, position


def test_repeats_are_grouped_through_other_runs():
    runs = [{"a"}, {"b"}, {"c", "a"}, {"d"}, ["c"], set()]
    np.testing.assert_array_equal(group_repeats(runs), [0, 1, 0, 2, 0, 3])


def test_two_groups_are_joined_by_a_later_run():
    np.testing.assert_array_equal(group_repeats([{"a"}, {"b"}, {"d"}, {"a", "b"}]), [0, 0, 1, 0])


def test_given_test_runs_make_one_fold():
    folds, run_of_row, _ = folds_of(4, [0, 1, 2, 3], test_runs=[2])
    (fold,) = folds
    assert fold.name == "run2"
    assert set(run_of_row[fold.test]) == {2}
    assert set(run_of_row[fold.train]) == {0, 1, 3}
    assert [set(run_of_row[fold.train[held]]) for _, held in fold.inner] == [{0}, {1}, {3}]


def test_a_training_run_that_repeats_a_test_film_is_refused():
    with pytest.raises(DesignError, match="Training run run0 and test run run2 show the same film"):
        folds_of(4, [0, 1, 0, 1], test_runs=[2, 3])


@pytest.mark.parametrize("test_runs", [[0, 1], []])
def test_both_sides_need_a_run(test_runs):
    with pytest.raises(DesignError, match="Of 2 runs"):
        folds_of(2, [0, 1], test_runs=test_runs)


def test_groups_are_left_out_whole_outside_and_inside():
    folds, run_of_row, _ = folds_of(5, [0, 1, 0, 2, 1])
    assert [fold.name for fold in folds] == ["run0, run2", "run1, run4", "run3"]
    group_of_row = np.array([0, 1, 0, 2, 1])[run_of_row]
    for held, fold in enumerate(folds):
        assert set(group_of_row[fold.test]) == {held}
        assert held not in group_of_row[fold.train]
        assert len(fold.inner) == 2
        for fit, validation in fold.inner:
            inside = group_of_row[fold.train]
            assert not set(inside[fit]) & set(inside[validation])
            assert len(fit) + len(validation) == len(fold.train)


def test_one_run_is_cut_into_purged_parts():
    folds, _, position = folds_of(1, [0], n_folds=4, purge=3.0, n_rows=80)
    tests = [fold.test for fold in folds]
    np.testing.assert_array_equal(np.concatenate(tests), np.arange(80))
    assert {len(test) for test in tests} == {20}
    second = folds[1]
    np.testing.assert_array_equal(position[second.train], [*range(0, 18), *range(42, 80)])
    assert second.name == "20.0 to 39.0 s"


def test_parts_of_a_film_are_purged_in_all_its_viewings():
    folds, run_of_row, position = folds_of(2, [0, 0], n_folds=2, purge=5.0, n_rows=60)
    first = folds[0]
    assert set(run_of_row[first.test]) == {0, 1}
    np.testing.assert_array_equal(np.unique(position[first.test]), np.arange(30))
    np.testing.assert_array_equal(np.unique(position[first.train]), np.arange(34, 60))
    assert set(run_of_row[first.train]) == {0, 1}


def test_viewings_on_different_clocks_are_cut_at_the_same_second():
    run_of_row = np.repeat([0, 1], 60)
    position = np.concatenate([np.arange(60.0), np.arange(60.0) + 0.4])
    folds = make_folds(
        run_of_row, position, np.array([0, 0]), run_names=["a", "b"], test_runs=None, n_folds=3, purge=4.0
    )
    for fold in folds:
        distance = np.abs(position[fold.train][:, None] - position[fold.test]).min()
        assert distance >= 4.0 - 1e-6


def test_inner_parts_are_purged_too_and_stay_inside_training():
    folds, _, position = folds_of(1, [0], n_folds=3, purge=4.0, n_rows=120)
    for fold in folds:
        for fit, held in fold.inner:
            assert np.abs(position[fold.train[fit]][:, None] - position[fold.train[held]]).min() >= 4.0
        all_held = np.sort(np.concatenate([held for _, held in fold.inner]))
        np.testing.assert_array_equal(all_held, np.arange(len(fold.train)))


def test_inner_parts_serve_where_one_group_is_left_to_train():
    (fold, other), run_of_row, position = folds_of(2, [0, 1], n_folds=2, purge=2.0, n_rows=40)
    assert set(run_of_row[fold.test]) == {0}
    fit, held = fold.inner[0]
    np.testing.assert_array_equal(position[fold.train[held]], np.arange(20))
    np.testing.assert_array_equal(position[fold.train[fit]], np.arange(21, 40))
    assert len(other.inner) == 2


def test_a_purge_of_a_whole_number_of_trs_is_not_lost_to_rounding():
    run_of_row, position = stacked(1, 90, step=1.49)
    folds = make_folds(
        run_of_row,
        position,
        np.array([0]),
        run_names=["a"],
        test_runs=None,
        n_folds=3,
        purge=3 * 1.49,
    )
    assert [len(fold.train) for fold in folds] == [58, 56, 58]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_folds": 1}, "n_folds is 1"),
        ({"n_folds": 5, "n_rows": 4}, "Only 4 distinct volumes"),
        ({"n_folds": 2, "n_rows": 12}, "6 volumes are left for training and 6 are held out"),
        ({"n_folds": 2, "n_rows": 40, "purge": 100.0}, "0 volumes are left for training"),
    ],
)
def test_too_little_data_is_refused_with_counts(changes, words):
    with pytest.raises(DesignError, match=words):
        folds_of(1, [0], **changes)


def test_runs_too_short_for_inner_splits_are_refused():
    with pytest.raises(DesignError, match="inner fold 1 of the fold that holds out run0"):
        folds_of(3, [0, 1, 2], n_rows=6)
