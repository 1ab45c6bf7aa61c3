"""Leaks planted on purpose: each raises r where there is nothing to find, and the app's own path does not.

The features of a moment are random and wide enough for a regression to remember every training row, and the BOLD is
noise that no model can generalise to. What a leak gives away is a memory of the row itself.
"""

from dataclasses import replace

import numpy as np
import pytest

from bids_mllm.align.windows import align_run
from bids_mllm.exceptions import DesignError
from bids_mllm.fit.delays import delay_rows
from bids_mllm.fit.design import delayed_design, delayed_rows, feature_design
from bids_mllm.fit.ridge import fit_ridge
from bids_mllm.fit.scaling import zscore_segments
from bids_mllm.interfaces.rows import CVOptions, make_rows, stack_features, stack_targets
from bids_mllm.records import Condition, Fold, ParticipantDesign, Run, Showing
from bids_mllm.score.correlation import pearson_r
from bids_mllm.score.held_out import score_columns
from bids_mllm.score.selection import ScoreBoard

TR = 2.0
ALPHAS = np.logspace(0, 4, 5)
NOTHING = 0.03
LEAK = 0.08


def autocorrelated(rng, n_rows, n_columns, memory=0.8):
    noise = rng.normal(size=(n_rows, n_columns))
    for row in range(1, n_rows):
        noise[row] = memory * noise[row - 1] + np.sqrt(1 - memory**2) * noise[row]
    return noise


def fold_of(run_of_row, test_run):
    train, test = np.flatnonzero(run_of_row != test_run), np.flatnonzero(run_of_row == test_run)
    own = run_of_row[train]
    inner = tuple((np.flatnonzero(own != run), np.flatnonzero(own == run)) for run in np.unique(own))
    return Fold("test", train, test, inner)


def test_delays_across_runs():
    """One recording cut into short runs: the first rows of a run remember the end of the run before."""
    rng = np.random.default_rng(0)
    n_runs, length, delays, test_run = 12, 16, (1, 2, 3, 4, 5), 6
    leaked, own = [], []
    for _ in range(25):
        run_of_volume = np.repeat(np.arange(n_runs), length)
        X = rng.normal(size=(n_runs * length, 300))
        Y = autocorrelated(rng, len(X), 40, memory=0.95)
        across = np.nan_to_num(delay_rows(X, delays))
        fold = fold_of(run_of_volume, test_run)
        first = slice(0, max(delays))
        fit = fit_ridge(feature_design(across, form="kernel"), Y, fold, alphas=ALPHAS)
        leaked.append(pearson_r(Y[fold.test][first], fit.predictions[first]))
        usable = [np.arange(length) >= max(delays)] * n_runs
        rows = delayed_rows(usable, delays)
        fold = fold_of(run_of_volume[rows.usable], test_run)
        targets = zscore_segments(Y[rows.usable], run_of_volume[rows.usable])
        fit = fit_ridge(delayed_design(X, rows), targets, fold, alphas=ALPHAS)
        own.append(pearson_r(targets[fold.test], fit.predictions))
    assert np.nanmean(leaked) > LEAK
    assert abs(np.nanmean(own)) < NOTHING


def test_the_rows_that_would_reach_into_the_run_before_are_refused():
    usable = np.arange(16) >= 4
    with pytest.raises(DesignError, match="uses one of its first 5 volumes"):
        delayed_rows([usable], (1, 5))


class Films:
    """Segments of one film that overlap by `overlap` seconds, or repeats; a response to each moment that is noise."""

    def __init__(self, seed, names, starts, length, *, repeats=False):
        rng = np.random.default_rng(seed)
        self.starts = starts
        runs, series = [], []
        moments = rng.normal(size=(4000, 30))
        self.looks = rng.normal(size=(4000, 400))
        for number, (name, start) in enumerate(zip(names, starts, strict=True)):
            showing = Showing(name, 0.0, 0.0, length * TR)
            runs.append(Run("01", None, f"t{number}", None, "T1w", None, None, None, TR, 0.0, length, None, (showing,)))
            at = int(start / TR) + np.arange(length)
            # The response to a moment comes one TR late; half of it is noise of the viewing.
            response = np.vstack([moments[:1] * 0, moments[at][:-1]])
            series.append(response + rng.normal(size=response.shape))
        films = dict.fromkeys(names, length * TR)
        windows = tuple(align_run(run, films, window=None) for run in runs)
        self.design = ParticipantDesign("01", "T1w", tuple(runs), windows, (), None)
        self.series = np.concatenate(series)

    def r(self, rows):
        def read(run, showing):
            n = self.design.windows[run].grids[showing].n_windows
            return self.looks[int(self.starts[run] / TR) + np.arange(n)]

        X = stack_features(self.design, rows, read, high_pass=0.0)
        Y = stack_targets(self.series, rows)
        design = delayed_design(X, rows.delayed)
        found = []
        for fold in rows.folds:
            fit = fit_ridge(design, Y, fold, alphas=ALPHAS)
            found.append(pearson_r(Y[fold.test], fit.predictions))
        return np.mean(found)


def test_overlapping_segments_on_both_sides():
    length, step = 40, 70.0
    starts = [number * step for number in range(6)]
    leaked, own = [], []
    for seed in range(6):
        films = Films(seed, [f"film{number}.mkv" for number in range(6)], starts, length)
        own.append(films.r(make_rows(films.design, delays=(1,), cv=CVOptions("run"))))
        # Names without numbers hide that these are neighbours.
        hidden = Films(seed, [f"film_{letter}.mkv" for letter in "abcdef"], starts, length)
        leaked.append(hidden.r(make_rows(hidden.design, delays=(1,), cv=CVOptions("run"))))
    assert np.mean(leaked) > LEAK
    assert abs(np.mean(own)) < NOTHING


def test_repeats_on_both_sides():
    """Four films seen twice: with their names the viewings stay together, without they do not."""
    starts = [0.0, 200.0, 400.0, 600.0] * 2
    leaked, own = [], []
    for seed in range(3):
        films = Films(seed, ["a.mkv", "b.mkv", "c.mkv", "d.mkv"] * 2, starts, 40)
        own.append(films.r(make_rows(films.design, delays=(1,), cv=CVOptions("run"))))
        hidden = Films(seed, [f"{letter}.mkv" for letter in "abcdefgh"], starts, 40)
        leaked.append(hidden.r(make_rows(hidden.design, delays=(1,), cv=CVOptions("run"))))
    assert np.mean(leaked) > 2 * LEAK
    assert abs(np.mean(own)) < NOTHING


def test_scaling_on_all_data():
    """The signal of the scanner drifts over a session and the film gets louder: no response, but offsets that agree."""
    rng = np.random.default_rng(1)
    runs = np.repeat(np.arange(8), 60)
    drift = np.linspace(-2, 2, len(runs))[:, None]
    X = rng.normal(size=(len(runs), 10)) + drift
    Y = rng.normal(size=(len(runs), 200)) + drift * rng.choice([-1, 1], size=200)
    train, test = np.flatnonzero(runs % 2 == 0), np.flatnonzero(runs % 2 == 1)
    own = runs[train]
    inner = tuple((np.flatnonzero(own != run), np.flatnonzero(own == run)) for run in np.unique(own))
    fold = Fold("odd", train, test, inner)

    def mean_r(segments):
        scaled = [zscore_segments(values, segments) for values in (X, Y)]
        # What is left of the drift inside a run is taken out as the app's high-pass does.
        basis = np.column_stack([(runs == run) * (np.arange(len(runs)) - 60 * run - 29.5) for run in range(8)])
        scaled = [values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0] for values in scaled]
        fit = fit_ridge(scaled[0], scaled[1], fold, alphas=ALPHAS)
        return np.nanmean(pearson_r(scaled[1][test], fit.predictions))

    assert mean_r(np.zeros(len(runs), dtype=int)) > 0.5
    assert abs(mean_r(runs)) < NOTHING


def test_the_best_layer_by_test_data():
    """Thirty layers of noise: the highest held-out r of each voxel is no score, that of the nested choice is."""
    rng = np.random.default_rng(2)
    runs = np.repeat(np.arange(5), 50)
    Y = zscore_segments(rng.normal(size=(250, 400)), runs)
    fold = fold_of(runs, 4)
    board = ScoreBoard((Condition("stimulus"),), range(30), 400, [50])
    for layer in range(30):
        X = zscore_segments(rng.normal(size=(250, 20)), runs)
        fit = fit_ridge(X, Y, fold, alphas=ALPHAS)
        scores = score_columns(Y, fit.predictions, runs[fold.test], rows=fold.test)
        board.add(
            0, 0, layer, r=scores.r, r2=scores.r2, r_rows=scores.r_rows, cv_r2=fit.cv_r2, alpha=fit.best_alphas,
            at_edge=np.zeros(400, dtype=bool), predictions=fit.predictions,
        )  # fmt: skip
    result = board.result("noise", ["test"])
    assert np.nanmean(result.r.max(axis=(0, 1))) > 3 * LEAK
    assert abs(np.nanmean(result.best_r)) < NOTHING


def test_the_seconds_between_held_out_and_training_parts_of_one_run():
    """A cut without a purge: rows on both sides of it share delayed windows."""
    rng = np.random.default_rng(3)
    delays, n = (1, 2, 3, 4, 5), 60
    leaked, own = [], []
    for _ in range(20):
        film = Films(int(rng.integers(1 << 30)), ["a.mkv"], [0.0], n)
        series = autocorrelated(rng, n, 30, memory=0.9)
        rows = make_rows(film.design, delays=delays, cv=CVOptions(n_folds=5))
        purged = film_r(film, series, rows, [fold.test for fold in rows.folds])
        bare = replace(rows, folds=tuple(without_purge(fold, len(rows.run_of_row)) for fold in rows.folds))
        leaked.append(film_r(film, series, bare, [edges(fold) for fold in bare.folds]))
        own.append(purged)
    assert np.mean(leaked) > LEAK
    assert np.mean(own) < NOTHING


def film_r(film, series, rows, scored):
    film.series = series
    X = stack_features(film.design, rows, lambda run, showing: film.looks[:60], high_pass=0.0)
    Y = stack_targets(series, rows)
    found = []
    for fold, some in zip(rows.folds, scored, strict=True):
        fit = fit_ridge(delayed_design(X, rows.delayed), Y, fold, alphas=ALPHAS)
        chosen = np.isin(fold.test, some)
        found.append(np.nanmean((zscored(Y[fold.test]) * zscored(fit.predictions))[chosen]))
    return np.mean(found)


def zscored(values):
    return (values - values.mean(axis=0)) / values.std(axis=0)


def without_purge(fold, n_rows):
    train = np.setdiff1d(np.arange(n_rows), fold.test)
    halves = np.array_split(np.arange(len(train)), 4)
    inner = tuple((np.setdiff1d(np.arange(len(train)), part), part) for part in halves)
    return Fold(fold.name, train, fold.test, inner)


def edges(fold):
    """The two held-out rows next to each cut."""
    return np.r_[fold.test[:2], fold.test[-2:]]
