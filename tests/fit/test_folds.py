"""Splits against hand-made cases: repeats together, borders purged, inner splits inside training."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.folds import SegmentClock, group_repeats, make_folds

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


def schemes_of(groups, films=None, *, scheme, n_folds=2, segments=None, purge=0.0):
    run_of_row, position = stacked(len(groups))
    folds = make_folds(
        run_of_row,
        position,
        np.asarray(groups),
        run_names=[f"run{index}" for index in range(len(groups))],
        test_runs=None,
        n_folds=n_folds,
        purge=purge,
        scheme=scheme,
        film_of_run=None if films is None else np.asarray(films),
        segments=segments,
    )
    return folds, run_of_row


def held_out(folds, run_of_row):
    return [sorted(set(run_of_row[fold.test])) for fold in folds]


def test_films_are_held_out_whole_and_so_are_they_inside():
    folds, run_of_row = schemes_of([0, 1, 2, 3, 4], [0, 0, 1, 1, 2], scheme="film")
    assert held_out(folds, run_of_row) == [[0, 1], [2, 3], [4]]
    assert [sorted(set(run_of_row[folds[0].train[held]])) for _, held in folds[0].inner] == [[2, 3], [4]]


def test_where_one_film_is_left_to_train_on_its_runs_take_turns():
    folds, run_of_row = schemes_of([0, 1, 2, 3], [0, 0, 1, 1], scheme="film")
    assert [sorted(set(run_of_row[folds[0].train[held]])) for _, held in folds[0].inner] == [[2], [3]]


def test_k_folds_of_neighbouring_groups():
    folds, run_of_row = schemes_of([0, 1, 0, 2, 3, 4], scheme="kfold", n_folds=2)
    assert held_out(folds, run_of_row) == [[0, 1, 2, 3], [4, 5]]
    every = np.sort(np.concatenate([fold.test for fold in folds]))
    np.testing.assert_array_equal(every, np.arange(len(run_of_row)))
    assert [sorted(set(run_of_row[folds[1].train[held]])) for _, held in folds[1].inner] == [[0, 1, 2], [3]]


def test_fewer_groups_than_folds_are_counted():
    with pytest.raises(DesignError, match="4 folds of runs are asked for, but there are 3 groups"):
        schemes_of([0, 1, 2, 0], scheme="kfold", n_folds=4)


def test_an_unknown_scheme_is_named():
    with pytest.raises(ValueError, match="scheme is 'leave', but must be one of auto, run, film, kfold"):
        schemes_of([0, 1], scheme="leave")


@given(
    groups=st.lists(st.integers(0, 5), min_size=3, max_size=9),
    scheme=st.sampled_from(["auto", "run", "film", "kfold"]),
)
@settings(max_examples=60, deadline=None)
def test_no_group_is_ever_on_both_sides(groups, scheme):
    numbered = np.unique(groups, return_inverse=True)[1]
    if len(set(groups)) < 3:
        return
    folds, run_of_row = schemes_of(numbered, numbered // 2, scheme=scheme, n_folds=3)
    group_of_row = numbered[run_of_row]
    tested = np.concatenate([fold.test for fold in folds])
    np.testing.assert_array_equal(np.sort(tested), np.arange(len(run_of_row)))
    for fold in folds:
        assert not set(group_of_row[fold.train]) & set(group_of_row[fold.test])
        for fit, held in fold.inner:
            own = group_of_row[fold.train]
            assert not set(own[fit]) & set(own[held]) or len(set(own)) == 1


def test_training_rows_next_to_a_held_out_segment_are_left_out():
    """Three segments of one film and one of another: the ends that meet lose their margin, the others nothing."""
    run_of_row, position = stacked(4)
    clock = SegmentClock(
        film=np.repeat([0, 0, 0, 1], N),
        number=np.repeat([1, 2, 3, 1], N),
        since_start=position,
        until_end=N - 1 - position,
        margin=3.0,
    )
    folds, _ = schemes_of([0, 1, 2, 3], scheme="run", segments=clock)
    kept = {
        fold.name: {run: sorted(position[fold.train][run_of_row[fold.train] == run]) for run in range(4)}
        for fold in folds
    }
    whole, head, tail = list(range(N)), list(range(3, N)), list(range(N - 3))
    assert kept["run0"] == {0: [], 1: head, 2: whole, 3: whole}
    assert kept["run1"] == {0: tail, 1: [], 2: head, 3: whole}
    assert kept["run2"] == {0: whole, 1: tail, 2: [], 3: whole}
    assert kept["run3"] == {0: whole, 1: whole, 2: whole, 3: []}
    inner = folds[3].inner
    assert [len(fit) for fit, _ in inner] == [2 * N - 3, 2 * N - 6, 2 * N - 3]
    assert [len(held) for _, held in inner] == [N, N, N]
