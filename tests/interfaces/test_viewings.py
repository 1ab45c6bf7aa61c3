"""Held-out viewings of one film are averaged on the film's clock before they are scored; the fit sees single ones."""

from dataclasses import replace

import numpy as np
import pytest

from bids_mllm.align.windows import align_run
from bids_mllm.exceptions import DesignError
from bids_mllm.fit.cv_file import folds_to_values
from bids_mllm.interfaces.bands import Band, _Joint
from bids_mllm.interfaces.brain import Brain
from bids_mllm.interfaces.ceiling import Viewer, ceiling_from_participants, ceiling_from_repeats, restricted
from bids_mllm.interfaces.encoding import FitOptions, score_model
from bids_mllm.interfaces.inference import InferenceOptions, part_inference
from bids_mllm.interfaces.rows import CVOptions, make_rows, stack_targets
from bids_mllm.interfaces.viewings import moments_of
from bids_mllm.records import Condition, Fold, ParticipantDesign, Run, Showing
from bids_mllm.score.ceiling import repeat_ceiling
from bids_mllm.score.held_out import mean_of_viewings, score_fold, scored_predictions

TR = 2.0
AVERAGE = CVOptions(repeats="average")
OPTIONS = FitOptions(delays=(1,), alphas=(1e-1, 1e3, 5), high_pass=0.0, layers=None, cv=AVERAGE)


def design_of(*runs, test_runs, films=None, label="01"):
    """One run for each (showings, number of volumes, task, session)."""
    made = [
        Run(label, session, task, None, "T1w", None, None, None, TR, 0.0, n, None, tuple(showings))
        for showings, n, task, session in runs
    ]
    spans = {showing.stim_file: 1e4 for run in made for showing in run.showings} | (films or {})
    windows = tuple(align_run(run, spans, window=None) for run in made)
    return ParticipantDesign(label, "T1w", tuple(made), windows, (), test_runs)


def twice(*, n=60, onset=0.0, n_second=None, n_train=80):
    """A film that trains, and one that is held out and seen twice; the second time `onset` seconds into its run."""
    return design_of(
        ([Showing("bourne", 0.0)], n_train, "bourne", None),
        ([Showing("life", 0.0)], n, "life", "001"),
        ([Showing("life", onset)], n_second or n, "life", "002"),
        ([Showing("wolf", 0.0)], n_train, "wolf", None),
        test_runs=(1, 2),
    )


def scored_volumes(design, rows, fold=0):
    """Run and volume behind every scored row: arrays (n_viewings, n_scored), -1 where there is none."""
    scored = rows.folds[fold].scored
    return tuple(np.where(scored < 0, -1, of_row[scored]) for of_row in (rows.run_of_row, rows.volume_of_row))


def test_each_viewing_is_scored_unless_averages_are_asked_for():
    design = twice()
    (each,) = make_rows(design, delays=(1,), cv=CVOptions()).folds
    assert each.viewings is None
    np.testing.assert_array_equal(each.scored, each.test[None])
    predictions = np.zeros((len(each.test), 3))
    assert scored_predictions(predictions, each) is predictions


def test_viewings_are_paired_on_the_clock_of_the_film_where_their_volumes_differ_in_number():
    """The second viewing starts 6 s into its run and ends early: volume v of the first is v + 3 of the second."""
    design = twice(n=60, onset=6.0, n_second=50)
    rows = make_rows(design, delays=(1,), cv=AVERAGE)
    run, volume = scored_volumes(design, rows)
    assert run.shape[0] == 2
    assert set(run[0]) == {1}
    assert set(run[1]) == {2}
    np.testing.assert_array_equal(volume[1], volume[0] + 3)
    # Volume 0 of a run has no delayed window; volume 4 is the first of the second viewing that has one.
    np.testing.assert_array_equal(volume[0], np.arange(1, 47))


@pytest.mark.parametrize(("onset", "shift"), [(0.9, 0), (1.1, 1), (7.0 - 0.2, 3), (7.0 + 0.2, 4)])
def test_viewings_of_other_phase_pair_the_rows_nearest_to_the_first(onset, shift):
    _, volume = scored_volumes(*_made(twice(onset=onset)))
    np.testing.assert_array_equal(volume[1], volume[0] + shift)
    assert volume.shape[1] >= 54


def _made(design, cv=AVERAGE):
    return design, make_rows(design, delays=(1,), cv=cv)


def test_training_rows_and_the_split_are_those_of_single_viewings_and_no_viewing_trains():
    design = twice(onset=6.0)
    each, average = (make_rows(design, delays=(1,), cv=cv) for cv in (CVOptions(), AVERAGE))
    labels = [run.label for run in design.runs]
    for one, other in zip(each.folds, average.folds, strict=True):
        np.testing.assert_array_equal(one.train, other.train)
        np.testing.assert_array_equal(one.test, other.test)
        assert set(average.run_of_row[other.train]) == {0, 3}
        assert set(average.run_of_row[other.scored.ravel()]) == {1, 2}
    split = [folds_to_values(rows.folds, rows.run_of_row, rows.volume_of_row, labels) for rows in (each, average)]
    assert split[0] == split[1]


def test_films_in_turn_hold_all_their_viewings_out_and_average_those():
    design = replace(twice(), test_runs=None)
    rows = make_rows(design, delays=(1,), cv=AVERAGE)
    counts = {fold.name: (fold.scored >= 0).sum(axis=0) for fold in rows.folds}
    assert sorted(set(count.tolist()).pop() for count in counts.values()) == [1, 1, 2]
    for fold in rows.folds:
        assert set(rows.run_of_row[fold.train]).isdisjoint(rows.run_of_row[fold.scored[fold.scored >= 0]])


def test_parts_of_one_film_are_averaged_over_its_viewings():
    design = design_of(
        ([Showing("life", 0.0)], 90, "life", "001"), ([Showing("life", 4.0)], 90, "life", "002"), test_runs=None
    )
    rows = make_rows(design, delays=(1,), cv=CVOptions(n_folds=3, repeats="average"))
    assert len(rows.folds) == 3
    for number in range(3):
        run, volume = scored_volumes(design, rows, number)
        assert (set(run[0]), set(run[1])) == ({0}, {1})
        np.testing.assert_array_equal(volume[1], volume[0] + 2)


def test_a_film_seen_once_is_scored_as_it_is_beside_one_seen_twice():
    design = design_of(
        ([Showing("bourne", 0.0)], 80, "bourne", None),
        ([Showing("once", 0.0, 0.0, 60.0), Showing("life", 60.0, 0.0, 60.0)], 60, "life", "001"),
        ([Showing("life", 0.0, 0.0, 60.0)], 30, "life", "002"),
        ([Showing("wolf", 0.0)], 80, "wolf", None),
        test_runs=(1, 2),
    )  # fmt: skip
    run, volume = scored_volumes(*_made(design))
    single = run[1] < 0
    np.testing.assert_array_equal(volume[0], np.sort(volume[0]))
    np.testing.assert_array_equal(volume[0][single], np.arange(1, 30))
    np.testing.assert_array_equal(volume[1][~single] + 30, volume[0][~single])


def test_playbacks_of_two_parts_are_one_viewing():
    """Each time the film was shown in two runs; the runs of the second time cut it elsewhere."""
    parts = [(0.0, 40), (80.0, 40), (0.0, 50), (100.0, 30)]
    design = design_of(
        ([Showing("bourne", 0.0)], 80, "bourne", None),
        *(([Showing("life", 0.0, at)], n, "life", f"00{number}") for number, (at, n) in enumerate(parts)),
        ([Showing("wolf", 0.0)], 80, "wolf", None),
        test_runs=(1, 2, 3, 4),
    )
    _, rows = _made(design)
    (fold,) = rows.folds
    moments = moments_of(design, rows.usable)
    assert (fold.scored >= 0).all()
    assert all(moments[a] == moments[b] for a, b in fold.scored.T)
    run, _ = scored_volumes(design, rows)
    assert set(zip(*run.tolist(), strict=True)) == {(1, 3), (2, 3), (2, 4)}
    # 80 moments, less the first volume of each run, which has no delayed window.
    assert fold.scored.shape[1] == 80 - 3


def test_a_viewing_that_broke_off_is_not_averaged_and_takes_nothing_from_the_others():
    design = design_of(
        ([Showing("bourne", 0.0)], 80, "bourne", None),
        ([Showing("life", 0.0)], 20, "life", "001"),
        ([Showing("life", 0.0)], 60, "life", "002"),
        ([Showing("life", 0.0)], 60, "life", "003"),
        test_runs=(1, 2, 3),
    )
    run, _ = scored_volumes(*_made(design))
    assert run.shape[0] == 2
    pairs, counts = np.unique(run, axis=1, return_counts=True)
    assert pairs.T.tolist() == [[1, -1], [2, 3]]
    assert counts.tolist() == [19, 59]


def test_the_mean_of_viewings_by_hand():
    values = np.arange(12, dtype=np.float32).reshape(6, 2) ** 2
    rows = np.array([[0, 3], [4, -1], [5, -1]])
    expected = np.stack([values[[0, 4, 5]].mean(axis=0), values[3]])
    np.testing.assert_allclose(mean_of_viewings(values, rows), expected, rtol=1e-6)
    assert mean_of_viewings(values, rows).dtype == np.float32
    np.testing.assert_array_equal(mean_of_viewings(values, rows[:1]), values[[0, 3]])


def series_of(design, signal, rng, *, noise):
    """BOLD: the signal at the moment that each volume shows, and noise of its own in every viewing."""
    parts = []
    for run, windows in zip(design.runs, design.windows, strict=True):
        name = windows.stim_files[0]
        moment = np.clip(np.nan_to_num(windows.start / TR).round().astype(int), 0, len(signal[name]) - 1)
        parts.append(signal[name][moment] + noise * rng.normal(size=(run.n_volumes, signal[name].shape[1])))
    return np.concatenate(parts)


def numpy_scores(y, p):
    r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(y.T, p.T, strict=True)])
    return r, 1 - ((y - p) ** 2).sum(axis=0) / ((y - y.mean(axis=0)) ** 2).sum(axis=0)


def test_scores_are_those_of_numpy_on_averaged_rows_and_the_closed_form():
    """Of a signal of share rho, one viewing correlates sqrt(rho), the mean of two sqrt(2 rho / (1 + rho))."""
    rng = np.random.default_rng(0)
    rho, n_voxels = 0.3, 60
    design = twice(n=600, onset=6.0, n_second=590)
    signal = {name: rng.normal(size=(700, n_voxels)) for name in ("bourne", "life", "wolf")}
    series = series_of(design, signal, rng, noise=np.sqrt((1 - rho) / rho))
    found = {}
    for cv in (CVOptions(), AVERAGE):
        rows = make_rows(design, delays=(1,), cv=cv)
        (fold,) = rows.folds
        Y = stack_targets(series, rows)
        moments = moments_of(design, rows.usable)
        perfect = np.stack([signal["life"][round(moments[row][1] / TR)] for row in fold.test]).astype(np.float32)
        scored = scored_predictions(perfect, fold)
        scores = score_fold(Y, scored, fold, rows.segment_of_row)
        found[cv.repeats] = scores.r.mean()
        # By hand: volume v of run 1 with volume v + 3 of run 2.
        if cv.repeats == "average":
            where = {(run, v): i for i, (run, v) in enumerate(zip(rows.run_of_row, rows.volume_of_row, strict=True))}
            pairs = [(where[1, v], where[2, v + 3]) for v in range(1, 600) if (2, v + 3) in where]
            y = np.stack([(Y[a].astype(float) + Y[b]) / 2 for a, b in pairs])
            p = np.stack([signal["life"][round(moments[a][1] / TR)] for a, _ in pairs])
            r, r2 = numpy_scores(y, p)
            np.testing.assert_allclose(scores.r, r, atol=1e-6)
            np.testing.assert_allclose(scores.r2, r2, atol=1e-5)
            np.testing.assert_allclose(scores.r_rows, r, atol=1e-6)
    assert found["each"] == pytest.approx(np.sqrt(rho), abs=0.01)
    assert found["average"] == pytest.approx(np.sqrt(2 * rho / (1 + rho)), abs=0.01)


class Features:
    """Stands for the features of a model: the signal of the film and something else, in every volume."""

    def __init__(self, design, signal, columns, model):
        self.design, self.model, self.signal, self.columns = design, model, signal, columns
        self.conditions, self.layers, self.warnings = (Condition("media"),), (0, 1), ()

    def matrix(self, rows, condition, layer):
        parts = []
        for run, windows in zip(self.design.runs, self.design.windows, strict=True):
            moment = np.nan_to_num(windows.start / TR).round().astype(int)
            X = self.signal[windows.stim_files[0]][moment][:, self.columns].copy()
            X = X if layer == 0 else np.random.default_rng(run.n_volumes).normal(size=X.shape)
            X[~windows.valid] = np.nan
            parts.append(X)
        return np.concatenate(parts)


@pytest.fixture
def fitted(tmp_path):
    """Two models on four voxels; the BOLD follows the features by one TR."""
    rng = np.random.default_rng(1)
    design = twice(n=150, onset=6.0, n_second=140, n_train=300)
    latent = {name: rng.normal(size=(320, 6)) for name in ("bourne", "life", "wolf")}
    weights = rng.normal(size=(6, 4))
    late = {name: np.roll(values, 1, axis=0) @ weights for name, values in latent.items()}
    path = tmp_path / "series.npy"
    np.save(path, series_of(design, late, rng, noise=2.0).astype(np.float32))
    rows = make_rows(design, delays=(1,), cv=AVERAGE)
    models = {key: Features(design, latent, columns, key) for key, columns in (("a", [0, 1, 2]), ("b", [3, 4, 5]))}
    return design, rows, Brain(path, rows, "cpu"), models


def test_a_model_is_scored_on_averages_from_the_fit_to_the_tests(fitted):
    design, rows, brain, models = fitted
    scores, (predictions,) = score_model(models["a"], brain, OPTIONS)
    (fold,) = rows.folds
    truth = np.stack([(brain.Y[a].astype(float) + brain.Y[b]) / 2 for a, b in fold.scored.T])
    assert predictions.shape == truth.shape
    r, r2 = numpy_scores(truth, predictions)
    np.testing.assert_allclose(scores.best_r, r, atol=1e-5)
    np.testing.assert_allclose(scores.best_r2, r2, atol=1e-5)
    single, _ = score_model(models["a"], Brain(brain._series, *_single(design)), OPTIONS)
    np.testing.assert_array_equal(single.alpha, scores.alpha)
    np.testing.assert_array_equal(single.cv_r2, scores.cv_r2)
    assert (scores.best_r > single.best_r).all()
    labels = [run.label for run in design.runs]
    options = InferenceOptions(n_permutations=99, block_length=5)
    held_out = part_inference(rows, brain.Y, [predictions], labels, options, max_block_bytes=2**26).held_out
    assert held_out.run_names == ("task-life (mean of 2 viewings)",)
    np.testing.assert_allclose(held_out.r_by_run[0], r, atol=1e-5)
    np.testing.assert_allclose(held_out.block_products.sum(axis=0), r, atol=1e-4)
    assert held_out.facts["Rows"] <= len(truth)
    assert held_out.facts["RowsByRun"] == [len(truth)]


def _single(design):
    return make_rows(design, delays=(1,), cv=CVOptions()), "cpu"


def test_bands_are_scored_on_averages_too(fitted):
    _, rows, brain, models = fitted
    scores = {key: score_model(model, brain, OPTIONS)[0] for key, model in models.items()}
    work = _Joint(brain, models, scores, OPTIONS, 2**26)
    bands = work.fit_bands([Band("a", "a"), Band("b", "b")])
    # The product measure parts the R2 of the joint prediction, and without one band the other is left.
    np.testing.assert_allclose(bands.product_r2.sum(axis=0), bands.r2, atol=1e-4)
    np.testing.assert_allclose(bands.r_without[0], scores["b"].best_r, atol=1e-5)
    np.testing.assert_allclose(bands.r_without[1], scores["a"].best_r, atol=1e-5)
    assert (bands.r > bands.r_without.max(axis=0)).all()
    assert len(rows.folds[0].scored) == 2


def test_runs_are_named_by_how_many_viewings_their_rows_are_the_mean_of(fitted):
    rng = np.random.default_rng(5)
    design = design_of(
        ([Showing("bourne", 0.0)], 80, "bourne", None),
        ([Showing("once", 0.0, 0.0, 60.0), Showing("life", 60.0, 0.0, 60.0)], 60, "mixed", "001"),
        ([Showing("life", 0.0, 0.0, 60.0)], 30, "life", "002"),
        ([Showing("other", 0.0)], 40, "other", "002"),
        ([Showing("wolf", 0.0)], 80, "wolf", None),
        test_runs=(1, 2, 3),
    )
    _, rows = _made(design)
    (fold,) = rows.folds
    Y = rng.normal(size=(len(rows.run_of_row), 2)).astype(np.float32)
    predictions = rng.normal(size=(fold.scored.shape[1], 2)).astype(np.float32)
    labels = [run.label for run in design.runs]
    options = InferenceOptions(n_permutations=99, block_length=3)
    found = part_inference(rows, Y, [predictions], labels, options, max_block_bytes=2**26).held_out
    assert found.run_names == ("ses-001_task-mixed (mean of 1 to 2 viewings)", "ses-002_task-other")


def viewer_of(folder, design, series):
    path = folder / f"series_{design.participant}.npy"
    np.save(path, series.astype(np.float32))
    return Viewer(design, make_rows(design, delays=(1,), cv=AVERAGE), path)


def test_the_ceiling_of_repeats_is_that_of_the_mean(tmp_path):
    rng = np.random.default_rng(2)
    rho = 0.4
    design = twice(n=600)
    signal = {name: rng.normal(size=(700, 200)) for name in ("bourne", "life", "wolf")}
    viewer = viewer_of(tmp_path, design, series_of(design, signal, rng, noise=np.sqrt((1 - rho) / rho)))
    ceiling = ceiling_from_repeats(viewer)
    assert ceiling.facts["Of"] == "correlation with the mean of 2 viewings"
    assert np.nanmean(ceiling.ceiling) == pytest.approx(np.sqrt(2 * rho / (1 + rho)), abs=0.01)
    expected = repeat_ceiling(viewer.targets()[viewer.rows.folds[0].scored], averaged=True)
    np.testing.assert_allclose(ceiling.ceiling, expected, atol=1e-6)


def test_the_ceiling_of_repeats_weighs_films_that_were_seen_once(tmp_path):
    rng = np.random.default_rng(3)
    rho = 0.4
    design = design_of(
        ([Showing("bourne", 0.0)], 80, "bourne", None),
        ([Showing("life", 0.0)], 401, "life", "001"),
        ([Showing("life", 0.0)], 401, "life", "002"),
        ([Showing("other", 0.0)], 1201, "other", "002"),
        ([Showing("wolf", 0.0)], 80, "wolf", None),
        test_runs=(1, 2, 3),
    )
    signal = {name: rng.normal(size=(1300, 200)) for name in ("bourne", "life", "other", "wolf")}
    viewer = viewer_of(tmp_path, design, series_of(design, signal, rng, noise=np.sqrt((1 - rho) / rho)))
    ceiling = ceiling_from_repeats(viewer)
    assert ceiling.facts["Of"] == "correlation with means of 1 to 2 viewings, as they are scored"
    expected = 0.25 * np.sqrt(2 * rho / (1 + rho)) + 0.75 * np.sqrt(rho)
    assert np.nanmean(ceiling.ceiling) == pytest.approx(expected, abs=0.02)


def test_the_ceiling_of_participants_is_of_averaged_rows(tmp_path):
    """Others predict both viewings of the first, who saw the second one later in the run; the mean is scored."""
    rng = np.random.default_rng(4)
    rho = 0.4
    signal = {name: rng.normal(size=(900, 3)) for name in ("bourne", "life", "wolf")}
    voxels = {name: values[:, np.arange(12) % 3] for name, values in signal.items()}
    viewers = []
    for number in range(4):
        onset, n_second = (6.0, 690) if number == 0 else (0.0, 700)
        design = twice(n=700, onset=onset, n_second=n_second, n_train=800)
        runs = tuple(replace(run, participant=f"0{number + 1}") for run in design.runs)
        design = replace(design, participant=f"0{number + 1}", runs=runs)
        viewers.append(viewer_of(tmp_path, design, series_of(design, voxels, rng, noise=np.sqrt((1 - rho) / rho))))
    options = FitOptions(delays=(1,), alphas=(1e0, 1e5, 6), high_pass=0.0, layers=None, cv=AVERAGE)
    found = {}
    for cv in ("average", "each"):
        own = [Viewer(v.design, make_rows(v.design, delays=(1,), cv=CVOptions(repeats=cv)), v.series) for v in viewers]
        found[cv] = ceiling_from_participants(own, options, "participants", "cpu", 2**28)
    assert found["average"].facts["Of"] == "correlation with the mean of 2 viewings"
    assert found["each"].facts["Of"] == "correlation with single viewings"
    assert np.nanmean(found["each"].ceiling) == pytest.approx(np.sqrt(rho), abs=0.05)
    assert np.nanmean(found["average"].ceiling) == pytest.approx(np.sqrt(2 * rho / (1 + rho)), abs=0.05)


def test_rows_that_are_left_keep_their_viewings():
    viewings = np.array([[0, 1, 2, 6], [3, 4, 5, -1]])
    fold = Fold("f", np.arange(0, 20), np.arange(20, 27), ((np.arange(10, 20), np.arange(0, 10)),), viewings)
    kept = np.r_[np.arange(20), 20, 21, 22, 24, 25, 26]
    left = restricted(fold, kept)
    np.testing.assert_array_equal(kept[left.scored[0]], [21, 22, 26])
    np.testing.assert_array_equal(kept[left.scored[1]][:2], [24, 25])
    assert left.scored[1, 2] == -1
    with pytest.raises(DesignError, match="no moments are left that all participants saw"):
        restricted(fold, np.r_[np.arange(20), 20, 21])
