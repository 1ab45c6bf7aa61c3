"""The exact solver against himalaya and the normal equations, whatever way the squared errors are reached."""

import itertools

import numpy as np
import pytest
import torch
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.scoring import r2_score
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_mllm.exceptions import DesignError
from bids_mllm.fit import kernel_solver, ridge
from bids_mllm.fit.backend import himalaya_backend
from bids_mllm.fit.delays import delay_rows
from bids_mllm.fit.design import delayed_design, delayed_rows, feature_design, kernel_design
from bids_mllm.fit.kernel_solver import FewTask, StackedTask, kernel_task
from bids_mllm.fit.ridge import alpha_grid, decompose, dual_weights, fit_ridge
from bids_mllm.fit.scaling import zscore_segments
from bids_mllm.fit.targets import prepare_targets
from bids_mllm.records import Fold

ALPHAS = np.logspace(-1, 6, 8)
DELAYS = (1, 2, 3)
# The way, and from how many penalties on an eigendecomposition is made.
TASKS = {"dual": (FewTask, 99), "spectral": (FewTask, 0), "mixed": (FewTask, 4), "stacked": (StackedTask, 0)}
WAYS = [*TASKS, "primal"]
TIE = 1e-5
CLOSE_R = 1e-4


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Problem:
    """Delayed features of several runs, targets, and a fold whose inner splits leave runs out."""

    def __init__(self, X, run_lengths, *, n_targets=15, n_train_runs=None, seed=0, delays=DELAYS):
        rng = np.random.default_rng(seed)
        runs = np.repeat(np.arange(len(run_lengths)), run_lengths)
        self.X = zscore_segments(X, runs)
        self.rows = delayed_rows([np.arange(n) >= max(delays) for n in run_lengths], delays)
        each = [delay_rows(self.X[runs == run], delays) for run in range(len(run_lengths))]
        self.columns = np.concatenate(each)[self.rows.usable]
        self.run_of_row = runs[self.rows.usable]
        weights = rng.normal(size=(self.columns.shape[1], n_targets)) / np.sqrt(self.columns.shape[1])
        signal = self.columns @ weights * np.linspace(0, 2, n_targets)
        self.Y = zscore_segments(signal + rng.normal(size=signal.shape), self.run_of_row)
        n_train_runs = len(run_lengths) - 1 if n_train_runs is None else n_train_runs
        self.fold = fold_of(self.run_of_row, n_train_runs)

    def fit(self, way, *, Y=None, **options):
        Y = self.Y if Y is None else Y
        design = delayed_design(self.X, self.rows, form="primal" if way == "primal" else "kernel")
        with pytest.MonkeyPatch.context() as patch:
            if way != "primal":
                task, from_alphas = TASKS[way]
                patch.setattr(ridge, "kernel_task", lambda *args: task)
                patch.setattr(kernel_solver, "EIGH_COST", {"cpu": from_alphas})
            return fit_ridge(design, Y, self.fold, alphas=ALPHAS, **options)


def fold_of(run_of_row, n_train_runs):
    train = np.flatnonzero(run_of_row < n_train_runs)
    test = np.flatnonzero(run_of_row >= n_train_runs)
    own = run_of_row[train]
    inner = tuple((np.flatnonzero(own != run), np.flatnonzero(own == run)) for run in range(n_train_runs))
    return Fold("last", train, test, inner)


def by_himalaya(problem, Y=None):
    """Predictions, best alphas and the R2 of every alpha (n_alphas, n_targets), in float64."""
    Y = problem.Y if Y is None else Y
    X, fold = problem.columns, problem.fold
    scores = np.zeros((len(ALPHAS), Y.shape[1]))
    with himalaya_backend("cpu"):
        for place, alpha in enumerate(ALPHAS):
            one = KernelRidgeCV(alphas=[alpha], cv=list(fold.inner), warn=False, solver_params={"score_func": r2_score})
            one.fit(torch.from_numpy(X[fold.train]), torch.from_numpy(Y[fold.train]))
            scores[place] = one.cv_scores_.numpy()
        model = KernelRidgeCV(alphas=ALPHAS, cv=list(fold.inner), warn=False, solver_params={"score_func": r2_score})
        model.fit(torch.from_numpy(X[fold.train]), torch.from_numpy(Y[fold.train]))
        predictions = model.predict(torch.from_numpy(X[fold.test])).numpy()
        chosen = model.best_alphas_.numpy()
    return predictions, ALPHAS[np.abs(np.log(chosen)[:, None] - np.log(ALPHAS)).argmin(axis=1)], scores


def correlation(a, b):
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))


def check_same(problem, fit, oracle, *, targets=slice(None)):
    predictions, best, scores = (value[..., targets] for value in oracle)
    own = fit.best_alphas[targets]
    differ = ~np.isclose(own, best)
    chosen_score = scores[np.abs(np.log(own)[:, None] - np.log(ALPHAS)).argmin(axis=1), np.arange(len(own))]
    assert np.all(scores.max(axis=0)[differ] - chosen_score[differ] < TIE)
    assert differ.mean() < 0.2
    np.testing.assert_allclose(fit.cv_r2[targets], scores.max(axis=0), atol=TIE)
    y = problem.Y[problem.fold.test][:, targets]
    same = ~differ & (np.abs(predictions).max(axis=0) > 1e-6)
    r, expected = correlation(y, fit.predictions[:, targets]), correlation(y, predictions)
    np.testing.assert_allclose(r[same], expected[same], atol=CLOSE_R)


def random_features(rng, n_rows, n_columns):
    return rng.normal(size=(n_rows, n_columns))


def collinear_features(rng, n_rows, n_columns):
    base = rng.normal(size=(n_rows, n_columns))
    return np.concatenate([base, base[:, ::-1] + 1e-7 * rng.normal(size=base.shape)], axis=1)


def deficient_features(rng, n_rows, n_columns):
    return rng.normal(size=(n_rows, 3)) @ rng.normal(size=(3, n_columns))


def dominated_features(rng, n_rows, n_columns):
    """One massive direction, as language models have: the largest eigenvalue is 1e8 times the smallest."""
    X = rng.normal(size=(n_rows, n_columns)) * np.logspace(0, -4, n_columns)
    return X @ np.linalg.qr(rng.normal(size=(n_columns, n_columns)))[0]


KINDS = [random_features, collinear_features, deficient_features, dominated_features]
SHAPES = {"fewer rows than columns": 40, "more rows than columns": 8}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n_columns", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_alphas_and_r_are_those_of_himalaya(kind, n_columns, way):
    lengths = [21, 35, 28, 40]
    problem = Problem(kind(np.random.default_rng(1), sum(lengths), n_columns), lengths)
    oracle = by_himalaya(problem)
    assert len(set(oracle[1])) > 2
    check_same(problem, problem.fit(way), oracle)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(12, 30), min_size=3, max_size=5),
    n_columns=st.integers(1, 30),
    kind=st.sampled_from(KINDS[:3]),
    seed=st.integers(0, 2**16),
)
def test_any_problem_gives_what_himalaya_gives(way, lengths, n_columns, kind, seed):
    X = kind(np.random.default_rng(seed), sum(lengths), n_columns)
    problem = Problem(X, lengths, n_targets=6, seed=seed)
    check_same(problem, problem.fit(way, precision="float64"), by_himalaya(problem))


@pytest.mark.parametrize("way", WAYS)
def test_parts_of_one_run_with_a_purged_margin(way):
    """What is purged is left out with the held rows but not scored."""
    problem = Problem(random_features(np.random.default_rng(2), 160, 20), [120, 40])
    own = np.arange(len(problem.fold.train))
    inner = []
    for part in np.array_split(own, 4):
        margin = (own >= part[0] - 5) & (own <= part[-1] + 5)
        inner.append((own[~margin], part))
    problem.fold = Fold("parts", problem.fold.train, problem.fold.test, tuple(inner))
    check_same(problem, problem.fit(way), by_himalaya(problem))


@pytest.mark.parametrize("way", WAYS)
def test_rows_in_any_order_and_splits_that_cover_a_part(way):
    problem = Problem(random_features(np.random.default_rng(3), 120, 15), [40, 40, 40], n_train_runs=2)
    rng = np.random.default_rng(4)
    train = rng.permutation(problem.fold.train)
    held = [np.sort(rng.choice(len(train), 12, replace=False)) for _ in range(3)]
    inner = tuple((np.setdiff1d(np.arange(len(train)), one), one) for one in held)
    problem.fold = Fold("any", train, problem.fold.test[::-1].copy(), inner)
    check_same(problem, problem.fit(way), by_himalaya(problem))


@pytest.mark.parametrize("way", WAYS)
def test_constant_and_missing_targets_are_set_aside(way):
    problem = Problem(random_features(np.random.default_rng(5), 120, 30), [30, 30, 30, 30])
    broken = problem.Y.copy()
    broken[:, 3] = 1.0
    broken[7, 5] = np.nan
    fit = problem.fit(way, Y=broken)
    good = np.setdiff1d(np.arange(15), [3, 5])
    assert np.isnan(fit.best_alphas[[3, 5]]).all()
    assert np.isnan(fit.predictions[:, [3, 5]]).all()
    check_same(problem, fit, by_himalaya(problem), targets=good)


@pytest.mark.parametrize("way", WAYS)
def test_a_target_that_is_flat_in_one_split_is_scored_in_the_others(way):
    problem = Problem(random_features(np.random.default_rng(6), 120, 30), [30, 30, 30, 30], n_targets=4)
    Y = problem.Y.copy()
    Y[problem.run_of_row == 1, 2] = 0.0
    fit = problem.fit(way, Y=Y, precision="float64")
    fold = problem.fold
    scores = []
    for alpha in ALPHAS:
        of_split = []
        for fitted, held in (fold.inner[0], fold.inner[2]):
            X, y = problem.columns[fold.train], Y[fold.train, 2]
            weights = np.linalg.solve(X[fitted].T @ X[fitted] + alpha * np.eye(X.shape[1]), X[fitted].T @ y[fitted])
            of_split.append(1 - ((y[held] - X[held] @ weights) ** 2).sum() / ((y[held] - y[held].mean()) ** 2).sum())
        scores.append(np.mean(of_split))
    assert fit.cv_r2[2] == pytest.approx(max(scores), abs=1e-9)
    assert fit.best_alphas[2] == ALPHAS[np.argmax(scores)]


@pytest.mark.parametrize("way", WAYS)
def test_blocks_of_targets_change_nothing(way):
    problem = Problem(random_features(np.random.default_rng(7), 120, 30), [30, 30, 30, 30])
    whole, blocks = problem.fit(way), problem.fit(way, max_block_bytes=20_000)
    np.testing.assert_array_equal(whole.best_alphas, blocks.best_alphas)
    np.testing.assert_allclose(whole.predictions, blocks.predictions, atol=1e-5)
    np.testing.assert_allclose(whole.cv_r2, blocks.cv_r2, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_float32_alone_fails_where_auto_does_not(way):
    """A condition of 1e9: the choice of precision matters, and it is made."""
    X = dominated_features(np.random.default_rng(8), 160, 60) * np.float64(30)
    problem = Problem(X, [40, 40, 40, 40])
    problem.X = problem.X * 100
    problem.columns = problem.columns * 100
    oracle = by_himalaya(problem)
    check_same(problem, problem.fit(way), oracle)


def test_the_gram_of_delayed_features_is_that_of_delayed_columns():
    rng = np.random.default_rng(9)
    lengths = [700, 31, 50]
    usable = [rng.random(n) > 0.2 for n in lengths]
    for of_run in usable:
        of_run[:4] = False
    X = rng.normal(size=(sum(lengths), 6))
    rows = delayed_rows(usable, (0, 2, 4))
    runs = np.repeat(np.arange(3), lengths)
    columns = np.concatenate([delay_rows(X[runs == run], (0, 2, 4)) for run in range(3)])[rows.usable]
    gram = delayed_design(X, rows, form="kernel").values.numpy()
    np.testing.assert_allclose(gram, columns @ columns.T, atol=1e-9)
    np.testing.assert_array_equal(delayed_design(X, rows, form="primal").values.numpy(), columns)


def test_volumes_that_no_row_reaches_may_be_missing():
    X = np.random.default_rng(10).normal(size=(30, 4))
    usable = np.arange(30) >= 20
    rows = delayed_rows([usable], (1, 2))
    whole = delayed_design(X, rows, form="kernel").values
    gap = X.copy()
    gap[:10] = np.nan
    torch.testing.assert_close(delayed_design(gap, rows, form="kernel").values, whole)
    gap[19, 1] = np.inf
    with pytest.raises(ValueError, match="X has 1 non-finite"):
        delayed_design(gap, rows, form="kernel")
    with pytest.raises(ValueError, match="X has 2 non-finite"):
        delayed_design(gap, rows, form="primal")


def test_the_form_follows_the_shape():
    X = np.random.default_rng(11).normal(size=(60, 6))
    rows = delayed_rows([np.arange(60) >= 2], (1, 2))
    assert delayed_design(X, rows).form == "primal"
    assert delayed_design(np.tile(X, (1, 3)), rows).form == "kernel"


def test_the_way_follows_the_shape():
    problem = Problem(random_features(np.random.default_rng(12), 90, 20), [30, 30, 30])
    few = prepare_targets(problem.Y, (problem.fold,))
    many = prepare_targets(np.tile(problem.Y, (1, 10)), (problem.fold,))
    assert kernel_task(few, problem.fold) is FewTask
    assert kernel_task(many, problem.fold) is StackedTask


def test_targets_are_prepared_once_for_many_spaces():
    problem = Problem(random_features(np.random.default_rng(13), 120, 30), [30, 30, 30, 30])
    targets = prepare_targets(problem.Y, (problem.fold,))
    first = fit_ridge(delayed_design(problem.X, problem.rows), targets, problem.fold, alphas=ALPHAS)
    again = fit_ridge(delayed_design(problem.X, problem.rows), targets, problem.fold, alphas=ALPHAS)
    np.testing.assert_array_equal(first.predictions, again.predictions)
    np.testing.assert_array_equal(first.best_alphas, problem.fit("spectral").best_alphas)


def test_himalaya_as_the_solver_gives_the_same():
    problem = Problem(random_features(np.random.default_rng(14), 120, 30), [30, 30, 30, 30])
    check_same(problem, problem.fit("dual", solver="himalaya"), by_himalaya(problem))
    check_same(problem, problem.fit("primal", solver="himalaya"), by_himalaya(problem))


def test_dual_weights_are_those_of_the_normal_equations():
    problem = Problem(random_features(np.random.default_rng(15), 120, 30), [30, 30, 30, 30])
    targets = prepare_targets(problem.Y, (problem.fold,), dtype="float64")
    best = np.array(list(itertools.islice(itertools.cycle([1.0, 10.0, 1e3]), 15)))
    gram = kernel_design(problem.columns @ problem.columns.T).values
    eigen = decompose(gram, problem.fold)
    weights = dual_weights(eigen, targets, problem.fold, which=np.arange(15), best_alphas=best).numpy()
    own = gram.numpy()[np.ix_(problem.fold.train, problem.fold.train)]
    for target, alpha in enumerate(best):
        expected = np.linalg.solve(own + alpha * np.eye(len(own)), problem.Y[problem.fold.train, target])
        np.testing.assert_allclose(weights[target], expected, atol=1e-9)


def test_plain_features_are_taken():
    problem = Problem(random_features(np.random.default_rng(16), 120, 30), [30, 30, 30, 30])
    plain = fit_ridge(problem.columns, problem.Y, problem.fold, alphas=ALPHAS)
    np.testing.assert_allclose(plain.predictions, problem.fit("spectral").predictions, atol=1e-5)


@pytest.mark.parametrize("solver", ["exact", "himalaya"])
def test_unequal_lengths_are_named(solver):
    problem = Problem(random_features(np.random.default_rng(17), 90, 5), [30, 30, 30])
    with pytest.raises(ValueError, match="The design has 81 samples and Y has 80"):
        fit_ridge(problem.columns, problem.Y[:-1], fold_of(problem.run_of_row[:-1], 2), alphas=ALPHAS, solver=solver)


def test_a_penalty_too_small_for_the_scale_is_named():
    X = np.ones((40, 1)) * 1e9 + np.random.default_rng(18).normal(size=(40, 1))
    fold = fold_of(np.repeat([0, 1, 2, 3], 10), 3)
    Y = np.random.default_rng(19).normal(size=(40, 2))
    with pytest.raises(Exception, match=r"alpha 1e-20.*start the grid of penalties higher"):
        fit_ridge(feature_design(X, form="kernel"), Y, fold, alphas=np.array([1e-20, 1.0]), precision="float64")


def test_the_default_grid_is_wide():
    grid = alpha_grid()
    assert (grid[0], grid[-1], len(grid)) == pytest.approx((0.1, 1e9, 11))


@pytest.mark.parametrize("way", WAYS)
def test_a_target_that_varies_in_no_held_row_has_no_score(way):
    problem = Problem(random_features(np.random.default_rng(20), 120, 30), [30, 30, 30, 30], n_targets=3)
    train = problem.fold.train
    held = np.arange(10)
    problem.fold = Fold("odd", train, problem.fold.test, ((np.arange(10, len(train)), held),))
    Y = problem.Y.copy()
    Y[train[held], 1] = 0.5
    fit = problem.fit(way, Y=Y)
    assert np.isnan(fit.cv_r2[1])
    assert np.isfinite(fit.cv_r2[[0, 2]]).all()


def test_a_run_shorter_than_the_delays_is_named():
    with pytest.raises(DesignError, match="A run of 3 TRs is not longer than the longest delay of 5 TRs"):
        delayed_rows([np.zeros(40, dtype=bool), np.zeros(3, dtype=bool)], (1, 5))
