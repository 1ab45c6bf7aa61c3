"""Unique and shared variance by the app's own banded ridge, on bands of which the parts are planted."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bids_mllm.exceptions import DesignError
from bids_mllm.fit import FitMemory, band_weights, feature_design, fit_banded, fit_ridge, prepare_targets
from bids_mllm.interfaces import bands as module
from bids_mllm.interfaces.encoding import FitOptions, FitScores
from bids_mllm.interfaces.rows import Rows
from bids_mllm.records import Condition, Fold
from bids_mllm.score import (
    normalized_correlation,
    partition_normalized_r,
    partition_r2,
    partition_shares,
    product_measure,
    score_columns,
)

N, N_TARGETS = 2500, 60
ALPHAS = np.logspace(0, 4, 5)
RUNS = np.repeat(np.arange(5), [300, 300, 300, 300, 1300])
TRAIN = np.flatnonzero(RUNS < 4)
FOLD = Fold(
    "last", TRAIN, np.flatnonzero(RUNS == 4),
    tuple((np.flatnonzero(RUNS[TRAIN] != run), np.flatnonzero(RUNS[TRAIN] == run)) for run in range(4)),
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def standardised(values):
    return (values - values.mean(axis=0)) / values.std(axis=0)


class Bands:
    """Two bands with `unique_1`, `unique_2` and `shared` parts of the variance of every target; the rest is noise."""

    def __init__(self, unique_1, unique_2, shared, *, seed=0):
        rng = np.random.default_rng(seed)
        own = [standardised(rng.normal(size=(N, 6))) for _ in range(3)]
        parts = [standardised(X @ rng.normal(size=(6, N_TARGETS))) for X in own]
        noise = standardised(rng.normal(size=(N, N_TARGETS)))
        sizes = (unique_1, unique_2, shared)
        signal = sum(np.sqrt(size) * part for size, part in zip(sizes, parts, strict=True))
        self.Y = standardised(signal + np.sqrt(1 - sum(sizes)) * noise)
        self.columns = [np.hstack([own[0], own[2]]), np.hstack([own[1], own[2]])]

    def scores(self):
        """Scores of the first, the second and both, and the parts of the product measure."""
        designs = [feature_design(X, form="kernel") for X in self.columns]
        single = [fit_ridge(design, self.Y, FOLD, alphas=ALPHAS).predictions for design in designs]
        joint = fit_banded(designs, self.Y, FOLD, alphas=ALPHAS, weights=band_weights(2, 5))
        truth = self.Y[FOLD.test] - self.Y[FOLD.test].mean(axis=0)
        product = product_measure(truth, joint.band_predictions - joint.band_predictions.mean(axis=1, keepdims=True))
        runs = RUNS[FOLD.test]
        scores = [score_columns(self.Y, p, runs, rows=FOLD.test) for p in (*single, joint.predictions)]
        return scores, product


@pytest.mark.parametrize("planted", [(0.2, 0.1, 0.25), (0.0, 0.3, 0.2), (0.15, 0.15, 0.0), (0.0, 0.0, 0.4)])
def test_the_planted_parts_are_found_in_r2(planted):
    (first, second, joint), product = Bands(*planted).scores()
    parts = partition_r2(first.r2, second.r2, joint.r2)
    found = [parts.unique_1.mean(), parts.unique_2.mean(), parts.shared.mean()]
    np.testing.assert_allclose(found, planted, atol=0.02)
    assert parts.joint.mean() == pytest.approx(sum(planted), abs=0.02)
    np.testing.assert_allclose(product.sum(axis=0).mean(), joint.r2.mean(), atol=0.01)


def test_identical_bands_share_all():
    bands = Bands(0.2, 0.0, 0.2)
    bands.columns[1] = bands.columns[0]
    (first, second, joint), _ = bands.scores()
    shares = partition_shares(partition_r2(first.r2, second.r2, joint.r2))
    assert shares.shared.mean() == pytest.approx(100, abs=1)
    assert abs(shares.unique_1.mean()) < 1
    assert abs(shares.unique_2.mean()) < 1


def test_independent_bands_share_none():
    (first, second, joint), product = Bands(0.25, 0.15, 0.0).scores()
    parts = partition_r2(first.r2, second.r2, joint.r2)
    assert abs(parts.shared.mean()) < 0.01
    np.testing.assert_allclose(product.mean(axis=1), [0.25, 0.15], atol=0.02)


def test_normalized_correlations_do_not_add_up_as_r2_does():
    """Independent bands: by R2 nothing is shared; r1 + r2 - r12 says that much is."""
    (first, second, joint), _ = Bands(0.25, 0.25, 0.0).scores()
    ceiling = np.full(N_TARGETS, np.sqrt(0.5))
    normalized = [normalized_correlation(one.r, ceiling) for one in (first, second, joint)]
    parts = partition_normalized_r(*normalized)
    assert parts.measure == "normalized r"
    assert parts.shared.mean() == pytest.approx(2 * np.sqrt(0.5) - 1, abs=0.04)
    assert abs(partition_r2(first.r2, second.r2, joint.r2).shared.mean()) < 0.02


class Made:
    """A model of thirteen instructions whose columns are made up, and a note of every matrix that was asked for."""

    def __init__(self):
        rng = np.random.default_rng(1)
        runs = np.repeat([0, 1, 2], 20)
        train = np.arange(40)
        self.fold = Fold("last", train, np.arange(40, 60), ((train[:20], train[20:]), (train[20:], train[:20])))
        rows = Rows((0,), (np.ones(60, dtype=bool),), (), runs, np.arange(60), runs, (self.fold,))
        self.Y = rng.normal(size=(60, 4)).astype(np.float32)
        self.keys = [f"I{number}" for number in range(13)]
        self.columns = {(key, layer): rng.normal(size=(60, 5)) for key in self.keys for layer in (2, 4)}
        self.asked = []
        brain = SimpleNamespace(rows=rows, Y=self.Y, targets=prepare_targets(self.Y, (self.fold,)), device="cpu")
        training = np.zeros((1, 13, 2))
        training[0, :, 1] = 0.1  # layer 4 is preferred on average, layer 2 by the instructions I3 and I4
        training[0, 3:5, 0] = 0.5
        conditions = tuple(Condition("generated", key) for key in self.keys)
        scores = SimpleNamespace(conditions=conditions, layers=(2, 4), fold_cv_r2=training)
        options = FitOptions(delays=(0,), alphas=(1.0, 100.0, 2), high_pass=0.0, layers=None)
        self.work = module._Joint(brain, {"m": self}, {"m": scores}, options, 2**26)

    def matrix(self, rows, condition, layer):
        self.asked.append((condition.instruction, layer))
        return self.columns[condition.instruction, layer]

    def r2(self, designs, weights):
        fit = fit_banded(designs, self.Y, self.fold, alphas=np.array([1.0, 100.0]), weights=weights)
        runs = np.full(20, 2)
        return score_columns(self.Y, fit.predictions, runs, rows=self.fold.test).r2


def test_all_pairs_of_instructions_use_kernels_that_are_made_once(monkeypatch):
    """78 pairs of 13 conditions: thirteen kernels, and no other Gram matrix of features."""
    monkeypatch.setattr(module, "PAIR_POINTS", 3)
    made = Made()
    made.work.scores["m"].fold_cv_r2[0, 3:5, 0] = 0.0
    pairs = made.work.fit_pairs("m", made.keys)
    assert made.asked == [(key, 4) for key in made.keys]
    assert len(pairs.pairs) == 78
    assert pairs.pair_r2.shape == (78, 4)
    assert pairs.layers == (4,)
    designs = [feature_design(made.columns[made.keys[k], 4]) for k in pairs.pairs[40]]
    np.testing.assert_allclose(pairs.pair_r2[40], made.r2(designs, band_weights(2, 3)), atol=1e-5)


def test_a_group_of_instructions_is_a_band_of_their_columns_side_by_side():
    made = Made()
    groups = [module.Band("m:first", "m", ("I0", "I1", "I2")), module.Band("m:other", "m", ("I3", "I4"))]
    bands = made.work.fit_bands(groups)
    assert bands.names == ("m:first", "m:other")
    assert bands.spaces == (("generatedI0 generatedI1 generatedI2 layer 4", "generatedI3 generatedI4 layer 2"),)
    sides = [("I0", "I1", "I2"), 4], [("I3", "I4"), 2]
    designs = [feature_design(np.hstack([made.columns[key, layer] for key in keys])) for keys, layer in sides]
    np.testing.assert_allclose(bands.r2, made.r2(designs, band_weights(2, module.PAIR_POINTS)), atol=1e-5)
    np.testing.assert_allclose(bands.product_r2.sum(axis=0), bands.r2, atol=1e-4)
    best = made.work.fit_bands([module.Band("m", "m"), groups[0]])
    assert best.spaces[0][0] == "generatedI3 layer 2"


def test_fits_that_need_more_memory_than_is_allowed_end_with_both_figures(tmp_path):
    features = SimpleNamespace(memory=lambda brain: FitMemory(2**32, 2**30, 2**30))
    options = FitOptions(delays=(1,), alphas=(1.0, 10.0, 2), high_pass=0.0, layers=None)
    node = FitScores()
    node.inputs.memory_bytes, node.inputs.max_block_bytes = 2**32, 2**30
    # The fewest voxels at once are a quarter of these.
    brain = SimpleNamespace(n_voxels=1000)
    with pytest.raises(DesignError, match=r"need about 4\.56 GiB .* but 4\.00 GiB are allowed"):
        node._fit(tmp_path / "scores.npz", features, brain, options)
    assert list(tmp_path.iterdir()) == []
