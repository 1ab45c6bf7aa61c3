"""The board against a computation with everything in memory."""

from itertools import product

import numpy as np
import pytest

from bids_mllm.records import Condition
from bids_mllm.score.selection import ScoreBoard

CONDITIONS = (Condition("generated", "AR"), Condition("last", "AR"))
LAYERS = (0, 6, 12)
N_FOLDS, N_VOXELS = 3, 7
N_TEST = (4, 6, 5)


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    shape = (N_FOLDS, len(CONDITIONS), len(LAYERS), N_VOXELS)
    r, r2, cv_r2 = rng.normal(size=(3, *shape))
    # Equal training scores in one voxel: the first feature space is taken, whatever came first.
    cv_r2[..., 3] = 0.5
    # One voxel set aside, and one feature space without variance in one fold.
    for array in (r, r2, cv_r2):
        array[..., 5] = np.nan
        array[1, 0, 1] = np.nan
    r_rows = rng.normal(size=shape)
    r_rows[..., 5] = np.nan
    r_rows[1, 0, 1] = np.nan
    return {
        "r": r,
        "r_rows": r_rows,
        "r2": r2,
        "cv_r2": cv_r2,
        "alpha": 10.0 ** rng.integers(0, 5, size=shape),
        "at_edge": rng.random(shape) < 0.2,
        "predictions": rng.normal(size=(*shape[:3], max(N_TEST), N_VOXELS)),
    }


def at(values, place):
    """The values of one place; predictions have as many rows as its fold."""
    own = {name: array[place] for name, array in values.items()}
    return own | {"predictions": own["predictions"][: N_TEST[place[0]]]}


def filled(values, order=None):
    return board_of(values, order)[1]


def board_of(values, order=None):
    board = ScoreBoard(CONDITIONS, LAYERS, N_VOXELS, N_TEST)
    places = list(product(range(N_FOLDS), range(len(CONDITIONS)), range(len(LAYERS))))
    for index in order if order is not None else range(len(places)):
        place = places[index]
        board.add(*place, **at(values, place))
    return board, board.result("model", ["one", "two", "three"], ["a warning"])


def test_means_over_folds(values):
    scores = filled(values)
    for name in ("r", "r2", "cv_r2"):
        np.testing.assert_allclose(getattr(scores, name), values[name].mean(axis=0), rtol=1e-5, atol=1e-6)
        assert getattr(scores, name).dtype == np.float32
    np.testing.assert_allclose(scores.alpha, np.exp(np.log(values["alpha"]).mean(axis=0)), rtol=1e-5)
    np.testing.assert_array_equal(scores.alpha_edge, values["at_edge"].any(axis=0))
    assert scores.fold_names == ("one", "two", "three")
    assert scores.warnings == ("a warning",)
    assert (scores.model, scores.conditions, scores.layers) == ("model", CONDITIONS, LAYERS)


def expected_best(values, name, condition=None):
    """Mean over folds of the score of each fold's best feature space, with loops."""
    chosen = slice(None) if condition is None else slice(condition, condition + 1)
    best = np.full((N_FOLDS, N_VOXELS), np.nan)
    for fold, voxel in product(range(N_FOLDS), range(N_VOXELS)):
        training = values["cv_r2"][fold, chosen, :, voxel].ravel()
        if np.isfinite(training).any():
            best[fold, voxel] = values[name][fold, chosen, :, voxel].ravel()[np.nanargmax(training)]
    return best.mean(axis=0)


def test_best_scores_follow_each_folds_own_choice(values):
    scores = filled(values)
    np.testing.assert_allclose(scores.best_r, expected_best(values, "r"), rtol=1e-5)
    np.testing.assert_allclose(scores.best_r2, expected_best(values, "r2"), rtol=1e-5)
    for condition in range(len(CONDITIONS)):
        np.testing.assert_allclose(scores.condition_best_r[condition], expected_best(values, "r", condition), rtol=1e-5)


def test_the_choice_maps_hold_the_highest_mean_training_score(values):
    scores = filled(values)
    mean = values["cv_r2"].mean(axis=0)
    for voxel in range(N_VOXELS):
        if voxel == 5:
            assert scores.best_condition[voxel] == scores.best_layer[voxel] == -1
            assert (scores.condition_best_layer[:, voxel] == -1).all()
            continue
        place = np.unravel_index(np.nanargmax(mean[..., voxel]), mean.shape[:2])
        assert (scores.best_condition[voxel], scores.best_layer[voxel]) == place
        layers = [np.nanargmax(mean[condition, :, voxel]) for condition in range(len(CONDITIONS))]
        np.testing.assert_array_equal(scores.condition_best_layer[:, voxel], layers)
    assert scores.best_layer.dtype == scores.condition_best_layer.dtype == np.int16


def test_the_concatenated_r_weighs_folds_by_their_rows(values):
    expected = np.average(values["r_rows"], axis=0, weights=N_TEST)
    np.testing.assert_allclose(filled(values).r_concatenated, expected, rtol=1e-5, atol=1e-6)


def test_the_predictions_are_those_of_each_folds_own_choice(values):
    board, _ = board_of(values)
    for fold in range(N_FOLDS):
        predictions = board.best_predictions(fold)
        assert predictions.shape == (N_TEST[fold], N_VOXELS)
        for voxel in range(N_VOXELS):
            training = values["cv_r2"][fold, :, :, voxel]
            if not np.isfinite(training).any():
                assert np.isnan(predictions[:, voxel]).all()
                continue
            place = np.unravel_index(np.nanargmax(training), training.shape)
            expected = values["predictions"][(fold, *place)][: N_TEST[fold], voxel]
            np.testing.assert_allclose(predictions[:, voxel], expected, rtol=1e-6)


def test_the_training_score_of_a_whole_brain_is_kept_by_fold(values):
    training = values["cv_r2"]
    positive = np.where(np.isfinite(training), np.maximum(training, 0), np.nan)
    expected = np.array([[[np.nanmean(x) if np.isfinite(x).any() else np.nan for x in c] for c in f] for f in positive])
    np.testing.assert_allclose(filled(values).fold_cv_r2, expected, rtol=1e-5)


def test_a_voxel_set_aside_is_nan(values):
    scores = filled(values)
    assert np.isnan(scores.best_r[5])
    assert np.isnan(scores.condition_best_r[:, 5]).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_arrival_does_not_matter(values, seed):
    order = np.random.default_rng(seed).permutation(N_FOLDS * len(CONDITIONS) * len(LAYERS))
    first, second = filled(values), filled(values, order)
    for name in ("r", "r2", "cv_r2", "alpha"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-5, atol=1e-6)
    for name in ("best_r", "best_r2", "condition_best_r", "best_condition", "best_layer", "alpha_edge"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_held_out_scores_do_not_choose(values):
    swapped = {**values, "r": -values["r"]}
    np.testing.assert_array_equal(filled(values).best_layer, filled(swapped).best_layer)
    np.testing.assert_allclose(filled(values).best_r, -filled(swapped).best_r)


def test_a_place_is_filled_once_and_every_place_is(values):
    board = ScoreBoard(CONDITIONS, LAYERS, N_VOXELS, N_TEST[:1])
    place = at(values, (0, 0, 0))
    board.add(0, 0, 0, **place)
    with pytest.raises(ValueError, match="added before"):
        board.add(0, 0, 0, **place)
    with pytest.raises(ValueError, match="5 of 6 scores"):
        board.result("model", ["one"])
    with pytest.raises(ValueError, match="2 fold names for 1 folds"):
        board.result("model", ["one", "two"])


def test_memory_does_not_grow_with_folds_times_spaces():
    import tracemalloc

    n_voxels, n_layers = 10_000, 40
    sizes = []
    for n_folds in (1, 9):
        tracemalloc.start()
        ScoreBoard(CONDITIONS[:1], range(n_layers), n_voxels, [0] * n_folds)
        sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert (sizes[1] - sizes[0]) / 8 < 10 * 8 * n_voxels
    assert sizes[0] < (5 * n_layers + 60) * 8 * n_voxels
