"""The pass over blocks against the plain functions, column by column and run by run."""

import numpy as np
import pytest

from bids_mllm.score import held_out
from bids_mllm.score.correlation import concatenated_r, pearson_r, pearson_r_by_run, r2_score_columns
from bids_mllm.score.held_out import score_columns


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    Y = rng.normal(size=(60, 23)).astype(np.float32)
    predictions = (0.4 * Y + rng.normal(size=Y.shape)).astype(np.float32)
    runs = np.repeat([4, 1, 7], [20, 25, 15])
    Y[3, 2] = np.nan
    predictions[:, 5] = np.nan
    predictions[:, 7] = 0.0
    Y[:, 9] = 2.0
    predictions[runs == 1, 11] = 0.5
    return Y, predictions, runs


@pytest.mark.parametrize("block", [4, 4096])
def test_all_scores_are_those_of_the_plain_functions(data, monkeypatch, block):
    monkeypatch.setattr(held_out, "BLOCK_TARGETS", block)
    Y, predictions, runs = data
    scores = score_columns(Y, predictions, runs)
    np.testing.assert_allclose(scores.r, pearson_r(Y, predictions), atol=1e-12)
    np.testing.assert_allclose(scores.r2, r2_score_columns(Y, predictions), atol=1e-12)
    np.testing.assert_allclose(scores.r_rows, concatenated_r(*pearson_r_by_run(Y, predictions, runs)), atol=1e-12)


def test_rows_are_picked_from_all(data):
    Y, predictions, runs = data
    rows = np.array([5, 50, 7, 30, 31, 8, 9])
    chosen = score_columns(Y, predictions[rows], runs[rows], rows=rows)
    np.testing.assert_allclose(chosen.r, pearson_r(Y[rows], predictions[rows]), atol=1e-12)


def test_concatenated_rows_are_z_scored_by_run(data):
    Y, predictions, runs = data
    a, b = Y[:, 0].astype(float), predictions[:, 0].astype(float)
    for run in np.unique(runs):
        mine = runs == run
        a[mine] = (a[mine] - a[mine].mean()) / a[mine].std()
        b[mine] = (b[mine] - b[mine].mean()) / b[mine].std()
    assert score_columns(Y, predictions, runs).r_rows[0] == pytest.approx(np.corrcoef(a, b)[0, 1])


def test_a_run_without_a_correlation_counts_as_zero(data):
    Y, predictions, runs = data
    by_run, n_rows = pearson_r_by_run(Y, predictions, runs)
    assert np.isnan(by_run[0, 11])
    expected = (by_run[1, 11] * n_rows[1] + by_run[2, 11] * n_rows[2]) / n_rows.sum()
    assert score_columns(Y, predictions, runs).r_rows[11] == pytest.approx(expected)


def test_the_sizes_of_predictions_do_not_weigh_runs(data):
    """Two folds with penalties that differ: the plain correlation of all rows follows the larger predictions."""
    Y, predictions, runs = data
    stretched = predictions * np.where(runs == 4, 100.0, 1.0)[:, None].astype(np.float32)
    np.testing.assert_allclose(
        score_columns(Y, stretched, runs).r_rows, score_columns(Y, predictions, runs).r_rows, atol=1e-6
    )
    assert abs(score_columns(Y, stretched, runs).r[0] - score_columns(Y, predictions, runs).r[0]) > 0.01


def test_unequal_lengths_are_named(data):
    Y, predictions, runs = data
    with pytest.raises(ValueError, match="Y has 60 samples and predictions has 59"):
        score_columns(Y, predictions[:-1], runs)
