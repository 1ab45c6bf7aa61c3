"""Linear CKA against closed forms."""

import numpy as np
import pytest

from bids_mllm.features.conditioning import linear_cka


def test_rotation_shift_and_scale_change_nothing() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(30, 6))
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert linear_cka(a, 3.0 * a @ rotation + rng.normal(size=6)) == pytest.approx(1.0, abs=1e-12)


def test_orthogonal_directions_share_nothing() -> None:
    a = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    b = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    assert linear_cka(a, b) == pytest.approx(0.0, abs=1e-12)


def test_one_column_each_is_the_squared_correlation() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(50, 1))
    b = a + rng.normal(size=(50, 1))
    assert linear_cka(a, b) == pytest.approx(np.corrcoef(a[:, 0], b[:, 0])[0, 1] ** 2, abs=1e-12)


def test_orthonormal_columns_give_a_known_value() -> None:
    """With centred orthonormal columns, A sharing k of its p columns with B of q: k / sqrt(p * q)."""
    rng = np.random.default_rng(2)
    columns = rng.normal(size=(40, 8))
    basis, _ = np.linalg.qr(columns - columns.mean(axis=0))
    assert linear_cka(basis[:, :4], basis[:, 2:8]) == pytest.approx(2 / np.sqrt(4 * 6), abs=1e-12)


@pytest.mark.parametrize("constant", [0.0, 1.7])
def test_a_matrix_without_variation_has_no_value(constant: float) -> None:
    a = np.random.default_rng(3).normal(size=(10, 2)).astype(np.float32)
    assert np.isnan(linear_cka(a, np.full((10, 3), constant, dtype=np.float32)))


def test_unequal_numbers_of_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="a has 3 samples and b has 4"):
        linear_cka(np.zeros((3, 2)), np.zeros((4, 2)))
