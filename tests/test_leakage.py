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


def smooth(rng, n_rows, n_columns, width=6):
    """Noise in which rows `width` and more apart have nothing in common, and nearer ones much."""
    white = rng.normal(size=(n_rows + width - 1, n_columns))
    sums = np.cumsum(np.vstack([np.zeros((1, n_columns)), white]), axis=0)
    return (sums[width:] - sums[:-width]) / np.sqrt(width)


def fold_of(run_of_row, test_run):
    train, test = np.flatnonzero(run_of_row != test_run), np.flatnonzero(run_of_row == test_run)
    own = run_of_row[train]
    inner = tuple((np.flatnonzero(own != run), np.flatnonzero(own == run)) for run in np.unique(own))
    return Fold("test", train, test, inner)


def test_delays_across_runs():
    """One recording cut into runs: with delays across the cuts, rows next to them share features and noise."""
    rng = np.random.default_rng(0)
    n_runs, length, delays, test_run = 10, 16, (1, 2, 3, 4, 5), 5
    leaked, own = [], []
    for _ in range(12):
        run_of_volume = np.repeat(np.arange(n_runs), length)
        X, Y = smooth(rng, n_runs * length, 300), smooth(rng, n_runs * length, 60)
        across = np.nan_to_num(delay_rows(X, delays))
        fold = fold_of(run_of_volume, test_run)
        fit = fit_ridge(feature_design(across, form="kernel"), Y, fold, alphas=ALPHAS)
        leaked.append(pearson_r(Y[fold.test], fit.predictions))
        rows = delayed_rows([np.arange(length) >= max(delays)] * n_runs, delays)
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


def test_a_run_that_is_cut_without_a_purge():
    """Rows on both sides of a cut share delayed windows and noise; those that are purged away do not.

    Parts have 60 volumes: in far shorter ones the means that z-scoring takes out carry a trace over the purge.
    """
    rng = np.random.default_rng(3)
    n, delays = 300, (1, 2, 3, 4, 5)
    leaked, own = [], []
    for seed in range(10):
        film = Films(seed, ["a.mkv"], [0.0], n)
        film.looks, film.series = smooth(rng, n, 300), smooth(rng, n, 60)
        rows = make_rows(film.design, delays=delays, cv=CVOptions(n_folds=5))
        own.append(film.r(rows))
        bare = tuple(without_purge(fold, len(rows.run_of_row)) for fold in rows.folds)
        leaked.append(film.r(replace(rows, folds=bare)))
    assert np.mean(leaked) > 0.05
    assert abs(np.mean(own)) < NOTHING


def without_purge(fold, n_rows):
    train = np.setdiff1d(np.arange(n_rows), fold.test)
    everything = np.arange(len(train))
    inner = tuple((np.setdiff1d(everything, part), part) for part in np.array_split(everything, 4))
    return Fold(fold.name, train, fold.test, inner)
