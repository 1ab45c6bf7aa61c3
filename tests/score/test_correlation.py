"""Scores against NumPy and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import r2_score

from bids_mllm.score.correlation import pearson_r, r2_score_columns

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 50, 6))


def test_pearson_is_numpys():
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(A.T, B.T, strict=True)]
    np.testing.assert_allclose(pearson_r(A, B), expected)


def test_pearson_ignores_shift_and_scale_and_keeps_digits_on_a_large_mean():
    np.testing.assert_allclose(pearson_r(3 * A + 2, 0.1 * B - 7), pearson_r(A, B))
    np.testing.assert_allclose(pearson_r(A + 1e6, B + 1e6), pearson_r(A, B), atol=1e-8)


def test_pearson_is_nan_for_constant_or_missing_columns():
    a, b = A.copy(), B.copy()
    a[:, 0], b[:, 1], a[3, 2] = 0.1, 5.0, np.nan
    np.testing.assert_array_equal(np.isnan(pearson_r(a, b)), [True, True, True, False, False, False])


def test_r2_is_scikit_learns():
    np.testing.assert_allclose(r2_score_columns(A, B), r2_score(A, B, multioutput="raw_values"))


def test_r2_is_nan_for_constant_truth_or_missing_values():
    truth, predicted = A.copy(), B.copy()
    truth[:, 0], predicted[1, 1] = 0.1, np.nan
    np.testing.assert_array_equal(np.isnan(r2_score_columns(truth, predicted))[:3], [True, True, False])


def test_a_constant_prediction_of_the_mean_has_r2_of_zero():
    predicted = np.broadcast_to(A.mean(axis=0), A.shape)
    np.testing.assert_allclose(r2_score_columns(A, predicted), 0, atol=1e-12)


@pytest.mark.parametrize("score", [pearson_r, r2_score_columns])
def test_lengths_must_agree(score):
    with pytest.raises(ValueError, match=r"50 samples and .* 49"):
        score(A, B[1:])
