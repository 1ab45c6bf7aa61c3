"""How alike instructions are on average, by hand."""

import numpy as np
import pytest

from bids_mllm.group.coupling import best_layer, pair_means, text_means

NAN = np.nan


def test_each_text_is_compared_with_the_others():
    similarity = np.array([[1, 0.2, 0.4], [0.2, 1, NAN], [0.4, NAN, 1]])
    np.testing.assert_allclose(text_means(similarity), [0.3, 0.2, 0.4])
    assert np.isnan(text_means(np.ones((1, 1)))).all()
    assert similarity[0, 0] == 1


def test_pairs_count_for_both_of_their_instructions():
    pairs = [("AR", "VU", 0.2), ("AR", "NU", 0.4), ("VU", "NU", NAN), ("AR", "other", 9.0)]
    assert pair_means(pairs, ["AR", "VU", "NU", "LE"]) == pytest.approx(
        {"AR": 0.3, "VU": 0.2, "NU": 0.4, "LE": NAN}, nan_ok=True
    )


def test_the_layer_is_that_of_the_highest_mean():
    cv_r2 = np.array([[0.9, NAN, 0.0], [0.2, 0.6, 0.7], [NAN, NAN, NAN]])
    assert best_layer(cv_r2) == 1
    assert best_layer(np.array([[-0.5, -0.4], [NAN, NAN]])) == 0
    assert best_layer(np.full((2, 3), NAN)) is None
