"""Means and choices over participants on hand-made arrays."""

import numpy as np
import pytest

from bids_mllm.group.maps import group_choice, mean_maps

NAN = np.nan


def test_mean_sem_and_count_leave_missing_values_out():
    maps = [np.array([1.0, 1, NAN, NAN]), np.array([2.0, NAN, NAN, 5]), np.array([6.0, 3, NAN, NAN])]
    mean, sem, n = mean_maps(maps)
    np.testing.assert_allclose(mean, [3, 2, NAN, 5])
    np.testing.assert_allclose(sem, [np.sqrt(7 / 3), 1, NAN, NAN])
    np.testing.assert_array_equal(n, [3, 2, 0, 1])


def test_leading_axes_are_kept():
    maps = np.random.default_rng(0).normal(size=(4, 2, 3, 5))
    mean, sem, n = mean_maps(list(maps))
    np.testing.assert_allclose(mean, maps.mean(axis=0))
    np.testing.assert_allclose(sem, maps.std(axis=0, ddof=1) / 2)
    assert n.shape == (2, 3, 5)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2,\), \(3,\)"):
        mean_maps([np.zeros(2), np.zeros(3)])


def test_the_choice_is_of_the_mean_over_participants():
    cv_r2 = np.zeros((2, 2, 3, 1))
    cv_r2[0, 0, 2], cv_r2[1, 0, 2] = 0.9, -0.9
    cv_r2[:, 1, 1] = 0.2
    condition, layer = group_choice(cv_r2)
    assert (condition[0], layer[0]) == (1, 1)
    assert condition.dtype == layer.dtype == np.int16


def test_a_participant_without_the_voxel_takes_no_part():
    cv_r2 = np.zeros((2, 1, 2, 2))
    cv_r2[1, :, :, 0] = NAN
    cv_r2[0, 0, 1, 0] = 0.1
    cv_r2[..., 1] = NAN
    condition, layer = group_choice(cv_r2)
    np.testing.assert_array_equal(condition, [0, -1])
    np.testing.assert_array_equal(layer, [1, -1])


def test_a_space_that_one_participant_lacks_is_not_chosen():
    cv_r2 = np.array([[[[0.9], [0.1]]], [[[NAN], [0.2]]]])
    assert group_choice(cv_r2)[1][0] == 1
