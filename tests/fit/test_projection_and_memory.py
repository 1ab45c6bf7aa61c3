"""Principal components against scikit-learn, and the estimate of memory against what is allocated."""

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.design import delayed_rows
from bids_mllm.fit.memory import PROCESS, SMALLEST_BLOCK, FitMemory, block_bytes, fit_memory
from bids_mllm.fit.projection import equal_rank_columns
from bids_mllm.records import Fold


def setting(n_features, n_volumes=90):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_volumes, n_features)) @ np.diag(np.linspace(3, 0.1, n_features))
    rows = delayed_rows([np.arange(n_volumes) >= 2], (1, 2))
    n_rows = n_volumes - 2
    train = np.arange(n_rows - 30)
    return X, rows, Fold("f", train, np.arange(n_rows - 30, n_rows), ((train[:30], train[30:]),))


@pytest.mark.parametrize("n_features", [12, 200])
def test_components_are_those_of_the_training_rows(n_features):
    X, rows, fold = setting(n_features)
    own = equal_rank_columns(X, rows, fold, rank=5)
    training = X[2:][fold.train]
    oracle = TruncatedSVD(5, algorithm="arpack").fit(training)
    np.testing.assert_allclose(np.abs(own), np.abs(oracle.transform(X)), atol=1e-8)


def test_held_out_rows_have_no_influence():
    X, rows, fold = setting(20)
    changed = X.copy()
    changed[2:][fold.test] = 100.0
    first, second = (equal_rank_columns(one, rows, fold, rank=4) for one in (X, changed))
    np.testing.assert_allclose(first[2:][fold.train], second[2:][fold.train], atol=1e-10)


def test_constant_columns_lower_the_rank():
    X, rows, fold = setting(6)
    X[:, 3:] = 0.0
    assert equal_rank_columns(X, rows, fold, rank=5).shape == (90, 3)


def test_a_rank_that_is_not_there_is_refused():
    X, rows, fold = setting(6)
    with pytest.raises(DesignError, match="7 components are asked for, but there are 6 features and 58 training rows"):
        equal_rank_columns(X, rows, fold, rank=7)


def test_the_estimate_grows_as_its_parts_do():
    wide = fit_memory(1000, 200, 5000, n_volumes=1100, n_features=2000, n_delays=5)
    assert wide.fixed == 8 * (2 * 1100 * 2000 + 5 * 1000**2) + 12 * 4 * 5000
    assert wide.targets == 8 * 1000 * 5000
    assert wide.predictions == 16 * 200 * 5000
    double = fit_memory(1000, 200, 5000, n_volumes=1100, n_features=2000, n_delays=5, n_spaces=10, wide=True)
    assert double.targets == 12 * 1000 * 5000
    assert double.fixed - wide.fixed == 9 * 12 * 4 * 5000
    narrow = fit_memory(1000, 200, 5000, n_volumes=1100, n_features=20, n_delays=5)
    assert narrow.fixed < wide.fixed / 10


def test_blocks_take_what_is_left_and_too_little_is_said_with_both_figures():
    need = FitMemory(2**30, 2**30, 0)
    assert block_bytes(need, 3 * 2**30) == 2**30 - PROCESS
    assert block_bytes(need, 2**31 + SMALLEST_BLOCK) == SMALLEST_BLOCK
    with pytest.raises(DesignError, match=r"need about 2\.06 GiB .* but 2\.00 GiB are allowed; raise --mem"):
        block_bytes(need, 2**31)


def test_the_estimate_is_above_what_a_fit_allocates():
    import torch

    from bids_mllm.fit.design import feature_design
    from bids_mllm.fit.ridge import fit_ridge

    rng = np.random.default_rng(1)
    n_rows, n_features, n_targets = 400, 900, 50
    train = np.arange(320)
    fold = Fold("f", train, np.arange(320, 400), tuple((np.delete(train, p), p) for p in np.array_split(train, 4)))
    X, Y = rng.normal(size=(n_rows, n_features)), rng.normal(size=(n_rows, n_targets)).astype(np.float32)
    need = fit_memory(n_rows, 80, n_targets, n_volumes=n_rows, n_features=n_features, n_delays=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        fit_ridge(feature_design(X, form="kernel"), Y, fold, alphas=np.logspace(0, 4, 3))
    live = peak = 0
    for event in sorted(record.events(), key=lambda one: one.time_range.start):
        live += event.self_cpu_memory_usage if hasattr(event, "self_cpu_memory_usage") else 0
        peak = max(peak, live)
    assert 0 < peak < need.total + SMALLEST_BLOCK
