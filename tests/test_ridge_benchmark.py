"""The benchmark of the ridge: its data, its rivals and its counts are right. Nothing is timed here."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bids_mllm.fit.design import delayed_design

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = ("ridge", "ridge_cases", "ridge_rivals", "ridge_measure", "ridge_memory")


@pytest.fixture(scope="module")
def code() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name.removeprefix("ridge_"): importlib.import_module(name) for name in NAMES})


@pytest.fixture(scope="module")
def shape(code: Any) -> Any:
    return code.cases.Shape("toy", n_train=120, n_features=30, n_targets=40, n_runs=6, n_folds=3)


@pytest.fixture(scope="module")
def problem(code: Any, shape: Any) -> Any:
    return code.cases.make_problem(shape, "random")


def columns(code: Any, problem: Any, name: str) -> Any:
    delayed = code.cases.delayed_columns(problem.space(0), problem.shape)
    return code.rivals.RIVALS[name].ready(delayed, problem.Y, problem.shape.fold(), "cpu")


def fit_app(code: Any, problem: Any) -> Any:
    targets, _ = code.measure.prepare_y(problem, "cpu")
    return code.rivals.fit_app(problem.space(0), targets, problem.shape, "cpu")


@pytest.mark.parametrize("sizes", ["SHAPES", "QUICK_SHAPES"])
def test_shapes_have_the_rows_they_name(code: Any, sizes: str) -> None:
    assert tuple(getattr(code.cases, sizes)) == code.ridge.SHAPE_NAMES
    for shape in getattr(code.cases, sizes).values():
        fold = shape.fold()
        assert len(fold.train) == shape.n_train
        assert int(shape.rows().usable.sum()) == shape.n_train + shape.n_test == len(shape.run_of_row)
        assert len(fold.inner) == shape.n_folds
        np.testing.assert_array_equal(np.sort(np.concatenate([held for _, held in fold.inner])), fold.train)
        for fit, held in fold.inner:
            assert not np.isin(shape.run_of_row[fit], shape.run_of_row[held]).any()


def test_full_sizes_are_those_of_the_reference(code: Any) -> None:
    assert {s.name: (s.n_train, s.n_features, s.n_targets, s.n_folds) for s in code.cases.SHAPES.values()} == {
        "parcel5": (3000, 1024, 1000, 5),
        "parcel27": (2970, 1024, 1000, 27),
        "voxel5": (2000, 512, 20000, 5),
        "primal": (2400, 128, 20000, 5),
    }


def test_delayed_columns_come_from_the_same_run(code: Any, shape: Any) -> None:
    volumes = np.arange(len(shape.run_of_volume))
    X = np.stack([volumes, shape.run_of_volume], axis=1).astype(np.float32)
    delayed = code.cases.delayed_columns(X, shape).reshape(-1, len(code.cases.DELAYS), 2)
    rows = shape.rows().volumes
    np.testing.assert_array_equal(delayed[:, :, 0], rows[:, None] - np.array(code.cases.DELAYS))
    np.testing.assert_array_equal(delayed[:, :, 1], np.tile(shape.run_of_row[:, None], (1, 5)))


def test_data_are_scaled_by_run_and_spaces_differ(problem: Any, shape: Any) -> None:
    one, two = problem.space(0), problem.space(1)
    for values, runs in ((problem.Y, shape.run_of_row), (one, shape.run_of_volume)):
        assert values.dtype == np.float32
        for run in range(shape.n_runs + 1):
            np.testing.assert_allclose(values[runs == run].mean(axis=0), 0, atol=1e-5)
            np.testing.assert_allclose(values[runs == run].std(axis=0), 1, atol=1e-4)
    np.testing.assert_array_equal(one, problem.space(0))
    assert np.abs(one - two).max() > 0.1


def test_only_realistic_features_ask_for_float64(code: Any) -> None:
    shape = code.cases.QUICK_SHAPES["parcel5"]
    found = {
        kind: code.measure.stages(code.cases.make_problem(shape, kind), "cpu")["float64_alphas"]
        for kind in code.cases.KINDS
    }
    assert found["random"] == 0 < found["realistic"]


@pytest.mark.parametrize("name", ["kernelridgecv", "kernelridgecv_float64", "ridgecv", "sklearn"])
def test_exact_rivals_agree_with_the_app(code: Any, problem: Any, name: str) -> None:
    data = columns(code, problem, name)
    assert str(data.train.dtype).endswith("float64" if name.endswith("float64") else "float32")
    app, rival = fit_app(code, problem), code.rivals.RIVALS[name].fit(data)
    delayed = code.cases.delayed_columns(problem.space(0), problem.shape)
    found = code.measure.compare(app, rival, problem, delayed, look_into=True)
    assert (found.same | found.tie).all()
    assert found.dr[found.same].max() < 1e-5
    assert np.unique(app.best_alphas).size > 2


def test_the_direct_loss_has_its_lowest_at_the_chosen_penalty(code: Any, problem: Any) -> None:
    n_train, alphas = problem.shape.n_train, code.cases.ALPHAS
    delayed = code.cases.delayed_columns(problem.space(0), problem.shape)[:n_train]
    losses = code.measure.direct_losses(delayed, problem.Y[:n_train], problem.shape.fold(), range(len(alphas)))
    chosen = np.searchsorted(alphas, fit_app(code, problem).best_alphas * 0.99)
    np.testing.assert_allclose(losses[chosen, np.arange(len(chosen))], losses.min(axis=0), atol=1e-6)


@pytest.mark.parametrize("name", ["bootstrap", "sklearn_loo"])
def test_other_rivals_solve_the_same_ridge(code: Any, problem: Any, name: str) -> None:
    data = columns(code, problem, name)
    found = code.rivals.RIVALS[name].fit(data)
    assert np.isin(found.best_alphas, code.cases.ALPHAS).all()
    X, Y = data.train.astype(float), data.Y.astype(float)
    for target in (0, 7):
        gram = X.T @ X + found.best_alphas[target] * np.eye(X.shape[1])
        expected = data.test @ np.linalg.solve(gram, X.T @ Y[:, target])
        np.testing.assert_allclose(found.predictions[:, target], expected, atol=1e-4)


def test_every_rival_is_a_choice(code: Any) -> None:
    assert set(code.rivals.RIVALS) == set(code.ridge.RIVAL_NAMES)


def test_held_chunks_are_consecutive_and_a_fifth(code: Any) -> None:
    held = code.rivals.draw_held(1000, np.random.default_rng(0))
    assert held.sum() == 200
    assert np.count_nonzero(np.diff(held.astype(int)) == 1) <= 5
    assert 0 < code.rivals.draw_held(50, np.random.default_rng(0)).sum() < 50


def test_correlation_of_columns(code: Any) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 20, 3))
    b[:, 2] = 1.0
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in (0, 1)]
    np.testing.assert_allclose(code.rivals.column_correlation(a, b), [*expected, 0.0])


def test_penalties_are_put_back_on_the_grid(code: Any) -> None:
    rounded = np.exp(np.log(code.cases.ALPHAS).astype(np.float32)).astype(np.float32)
    np.testing.assert_array_equal(code.rivals.on_grid(rounded[::-1]), code.cases.ALPHAS[::-1])


def test_another_penalty_is_a_tie_or_somebody_is_better(
    code: Any, problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alphas, n = code.cases.ALPHAS, problem.shape.n_targets
    predictions = np.random.default_rng(0).standard_normal((problem.shape.n_test, n))
    app, other = np.full(n, alphas[3]), np.full(n, alphas[3])
    other[[2, 5, 9]] = alphas[[4, 4, 8]]
    losses = np.array([[0.5, 0.5, 0.5], [0.5 + 5e-6, 0.6, 9.0], [9.0, 9.0, 0.4]])
    monkeypatch.setattr(code.measure, "direct_losses", lambda *given: losses)
    fits = [code.rivals.Fitted(chosen, predictions) for chosen in (app, other)]
    found = code.measure.compare(*fits, problem, np.zeros((1, 1)), look_into=True)
    assert np.flatnonzero(~found.same).tolist() == [2, 5, 9]
    assert np.flatnonzero(found.tie).tolist() == [2]
    assert np.flatnonzero(found.app_better).tolist() == [5]
    assert found.dr.max() == 0.0


def test_a_ratio_is_the_median_over_pairs(code: Any) -> None:
    app, rival = np.array([[1.0, 2.0], [2.0, 2.0], [1.0, 1.0]]), np.array([[9.0, 9.0], [10.0, 8.0], [7.0, 5.0]])
    turns = code.measure.Turns(app, rival, np.zeros((3, 2)), ())
    assert turns.ratio(0) == (7.0, 5.0, 9.0)
    assert turns.ratio(1) == (4.5, 4.0, 5.0)


@pytest.mark.parametrize(("budget", "n_pairs"), [((3, 1e9, 1), 3), ((3, 0.0, 2), 2), ((2, 0.0, 2), 2)])
def test_the_app_and_a_rival_take_turns(
    code: Any, problem: Any, monkeypatch: pytest.MonkeyPatch, budget: tuple[int, float, int], n_pairs: int
) -> None:
    called: list[str] = []
    fitted = code.rivals.Fitted(np.full(40, code.cases.ALPHAS[0]), problem.y_test)

    def fake(name: str) -> Any:
        return lambda *given: (called.append(name), fitted)[1]

    monkeypatch.setattr(code.measure, "fit_app", fake("app"))
    rival = code.rivals.Rival("a rival", fake("rival"))
    turns = code.measure.take_turns(problem, rival, code.measure.Budget(*budget), "cpu", exact=True)
    assert called == ["app", "rival"] * n_pairs
    assert turns.app.shape == turns.rival.shape == turns.delays.shape == (n_pairs, 2)
    assert turns.over_targets("same").all()
    assert turns.over_targets("same").size == 40 * n_pairs


def test_operations_are_counted_by_the_form(code: Any) -> None:
    def flops(T: int, D: int, V: int) -> float:
        return code.measure.useful_flops(code.cases.Shape("counted", T, D, V, 2, 2))

    # One test run of T / 2 rows; 3 (T / 2 + 5) volumes; 10 penalties; two splits of T / 2 rows.
    volumes = 3 * 25
    common = volumes**2 * 30 + 10 * 40**3
    assert flops(40, 30, 8) == common + 2 * 40 * 20 * 8 + 10 * (2 * 40**2 * 8 + 2 * 20**3 + 2 * 2 * 20**2 * 8)
    many = 10 * (2 * 2 * 20**2 * 40 + 4 / 3 * 40**3 + 40**2 * 100)
    assert flops(40, 30, 100) == pytest.approx(common + 2 * 40 * 20 * 100 + many)
    primal = 40 * 20**2 + 4 * 40 * 20 * 8 + 10 * (2 * 20**3 / 3 + 2 * 20**2 * 40 + 2 * 40 * 20 * 8) + 2 * 20 * 20 * 8
    assert flops(40, 4, 8) == pytest.approx(primal)


def test_the_count_follows_the_form_of_the_app(code: Any) -> None:
    for name, shape in code.cases.QUICK_SHAPES.items():
        X = np.ones((len(shape.run_of_volume), shape.n_features), dtype=np.float32)
        assert (delayed_design(X, shape.rows()).form == "primal") == (name == "primal")


def test_peaks_count_the_data(code: Any) -> None:
    problem = code.cases.make_problem(code.cases.Shape("big", 300, 50, 3000, 6, 3), "random")
    found = code.memory.peaks(problem, ["app", "kernelridgecv"], "cpu", 1)
    assert set(found) == {"app", "kernelridgecv"}
    assert min(found.values()) > problem.Y.nbytes / code.memory.MB


def test_rivals_depend_on_the_case(code: Any) -> None:
    on_cpu, on_gpu = code.ridge.parse([]), code.ridge.parse(["--device", "cuda"])
    assert "kernelridgecv_float64" not in code.ridge.rivals_of("voxel5", on_cpu)
    assert code.ridge.rivals_of("voxel5_realistic", on_cpu) == list(code.ridge.RIVAL_NAMES)
    assert "ridgecv" not in code.ridge.rivals_of("parcel27_realistic", on_cpu)
    assert code.ridge.rivals_of("primal", on_gpu) == ["kernelridgecv", "ridgecv"]
    assert (on_cpu.spaces, on_cpu.which, on_gpu.which, code.ridge.parse(["--threads", "2"]).which) == (10, 1, 0, 0)


def test_the_last_line_is_one_object() -> None:
    words = [FOLDER / "ridge.py", "--quick", "--cases", "primal", "--rivals", "kernelridgecv", "--spaces", "1"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    found = json.loads(lines[-1])
    assert lines[0].startswith("case")
    assert found["primal"].keys() >= {"vs_kernelridgecv", "same_alphas", "max_dr", "peak_memory_ratio", "gemm_share"}
    assert found["growth"].keys() == {"T", "D", "V", "spaces"}
    assert (found["quick"], found["threads"], found["device"], found["spaces"]) == (True, 1, "cpu", 1)
