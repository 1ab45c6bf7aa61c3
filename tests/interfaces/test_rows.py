"""Rows of runs that differ in length: delays, purging, segments, and the pairing of features with BOLD."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bids_mllm.align.windows import align_run
from bids_mllm.exceptions import DesignError
from bids_mllm.fit.design import delayed_design
from bids_mllm.interfaces.encoding import FitScores, lost_windows, lost_words
from bids_mllm.interfaces.rows import CVOptions, grid_key, make_rows, stack_features, stack_targets, without_windows
from bids_mllm.records import ParticipantDesign, Run, Showing

TR = 2.0


def design_of(*runs: tuple[str | list[Showing], int], window=None, test_runs=None, film=1000.0, start=0.0):
    """One run for each (stimulus or showings, number of volumes)."""
    made = []
    for number, (shown, n_volumes) in enumerate(runs):
        showings = (Showing(shown, 0.0),) if isinstance(shown, str) else tuple(shown)
        made.append(Run("01", None, f"t{number}", None, "T1w", None, None, None, TR, start, n_volumes, None, showings))
    films = {showing.stim_file: film for run in made for showing in run.showings}
    windows = tuple(align_run(run, films, window=window) for run in made)
    return ParticipantDesign("01", "T1w", tuple(made), windows, (), test_runs)


def columns_of(design, rows, read, *, high_pass):
    """Delayed columns of the rows, (n_rows, n_features * n_delays)."""
    X = stack_features(design, rows, read, high_pass=high_pass)
    assert len(X) == sum(run.n_volumes for run in design.runs)
    return delayed_design(X, rows.delayed, form="primal").values.numpy()


def kept(rows, n_volumes):
    """Volumes of the only run, as the numbers that the positions in folds stand for."""
    return np.arange(n_volumes)[rows.usable[0]]


def test_delays_never_cross_runs():
    rows = make_rows(design_of(("a", 60), ("b", 40)), delays=(1, 3), cv=CVOptions(n_folds=2))
    assert [usable.sum() for usable in rows.usable] == [57, 37]
    assert not rows.usable[0][:3].any()
    assert not rows.usable[1][:3].any()
    assert rows.run_of_row.tolist() == [0] * 57 + [1] * 37


def test_features_and_bold_stay_paired_where_runs_differ_in_length():
    """The BOLD of a volume is what was shown two TRs before, in every run another film."""
    design = design_of(("a", 40), ("b", 25), ("c", 33))
    rows = make_rows(design, delays=(2,), cv=CVOptions(n_folds=2))
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((design.windows[run].grids[0].n_windows, 1)) for run in range(3)]
    bold = [np.full((run.n_volumes, 1), 1e3) for run in design.runs]
    for number, run in enumerate(design.runs):
        bold[number][2:] = features[number][: run.n_volumes - 2]
    X = columns_of(design, rows, lambda run, showing: features[run], high_pass=0.0)
    Y = stack_targets(np.concatenate(bold), rows)
    assert X.shape == Y.shape == (38 + 23 + 31, 1)
    for run in range(3):
        mine = rows.run_of_row == run
        assert np.corrcoef(X[mine, 0], Y[mine, 0])[0, 1] == pytest.approx(1.0)
    one_late = np.corrcoef(X[1:, 0], Y[:-1, 0])[0, 1]
    assert abs(one_late) < 0.5


def test_the_planted_row_time_comes_out_in_the_block_of_its_delay():
    design = design_of(("a", 60), ("b", 40))
    rows = make_rows(design, delays=(0, 1, 4), cv=CVOptions(n_folds=2))
    times = np.arange(600, dtype=float)[:, None]
    X = columns_of(design, rows, lambda run, showing: times, high_pass=0.0)
    for run, n_volumes in enumerate((60, 40)):
        at = np.arange(4, n_volumes, dtype=float)
        scaled = (np.arange(n_volumes) - (n_volumes - 1) / 2) / np.arange(n_volumes).std()
        mine = X[rows.run_of_row == run]
        for block, delay in enumerate((0, 1, 4)):
            np.testing.assert_allclose(mine[:, block], scaled[(at - delay).astype(int)], atol=1e-12)


def test_each_showing_reads_its_own_features():
    design = design_of(([Showing("a", 0.0, 0.0, 40.0), Showing("b", 40.0, 0.0, 40.0)], 40), ("c", 60))
    rows = make_rows(design, delays=(0,), cv=CVOptions(n_folds=2))
    tables = {(0, 0): 10.0, (0, 1): 20.0, (1, 0): 30.0}
    seen = []

    def read(run, showing):
        seen.append((run, showing))
        base = tables[run, showing]
        return base + np.arange(600, dtype=float)[:, None] % 7

    X = columns_of(design, rows, read, high_pass=0.0)
    assert sorted(seen) == sorted(tables)
    first = X[rows.run_of_row == 0, 0]
    expected = np.concatenate([10 + np.arange(20) % 7, 20 + np.arange(20) % 7])
    np.testing.assert_allclose(first, (expected - expected.mean()) / expected.std())


@pytest.mark.parametrize(("delays", "window", "purged"), [((1, 2, 3), None, 3), ((1,), 8.0, 4), ((2, 5), 7.0, 5)])
def test_exactly_max_of_delay_and_window_is_purged_on_both_sides_of_a_single_run(delays, window, purged):
    n_volumes, n_folds = 200, 4
    rows = make_rows(design_of(("a", n_volumes), window=window), delays=delays, cv=CVOptions(n_folds=n_folds))
    volume = kept(rows, n_volumes)
    assert len(rows.folds) == n_folds
    assert sorted(np.concatenate([volume[f.test] for f in rows.folds])) == volume.tolist()
    for fold in rows.folds:
        low, high = volume[fold.test].min(), volume[fold.test].max()
        assert volume[fold.test].tolist() == list(range(low, high + 1))
        train = [v for v in volume if v < low - purged or v > high + purged]
        assert volume[fold.train].tolist() == train
        for fit, held in fold.inner:
            inner = volume[fold.train]
            low, high = inner[held].min(), inner[held].max()
            assert not set(range(low - purged, high + purged + 1)) & set(inner[fit])


def test_no_training_row_of_a_cut_run_reads_a_window_of_the_held_out_part():
    delays = (1, 2, 3)
    rows = make_rows(design_of(("a", 120)), delays=delays, cv=CVOptions(n_folds=3))
    volume = kept(rows, 120)
    for fold in rows.folds:
        held = set(volume[fold.test])
        assert not any(v - delay in held for v in volume[fold.train] for delay in delays)


def test_segments_are_cut_at_the_edges_of_folds():
    rows = make_rows(design_of(("a", 123)), delays=(1, 2), cv=CVOptions(n_folds=3))
    for fold in rows.folds:
        held = set(rows.segment_of_row[fold.test])
        assert len(held) == 1
        assert held.isdisjoint(rows.segment_of_row[fold.train])
    np.testing.assert_array_equal(rows.segments[0][rows.usable[0]], rows.segment_of_row)


def test_segments_are_runs_where_films_take_turns():
    rows = make_rows(design_of(("a", 60), ("b", 40)), delays=(1,), cv=CVOptions(n_folds=2))
    np.testing.assert_array_equal(rows.segment_of_row, rows.run_of_row)
    assert [fold.name for fold in rows.folds] == ["task-t0", "task-t1"]


def test_two_viewings_of_one_film_are_cut_at_the_same_instants_of_the_film():
    design = design_of(("a", 100), ([Showing("a", 10.0)], 110))
    rows = make_rows(design, delays=(1, 2), cv=CVOptions(n_folds=4))
    instant = np.concatenate([w.start[u] for w, u in zip(design.windows, rows.usable, strict=True)])
    for fold in rows.folds:
        held, train = set(np.round(instant[fold.test], 6)), set(np.round(instant[fold.train], 6))
        assert set(rows.run_of_row[fold.test]) == {0, 1}
        assert held.isdisjoint(train)
        assert min(abs(a - b) for a in (min(held), max(held)) for b in train) == pytest.approx(3 * TR)
        assert set(rows.segment_of_row[fold.test]).isdisjoint(rows.segment_of_row[fold.train])


def test_a_film_shown_twice_within_one_run_stays_on_one_side():
    shown = [Showing("a", 0.0, 0.0, 100.0), Showing("a", 120.0, 0.0, 100.0)]
    design = design_of((shown, 115), film=100.0)
    rows = make_rows(design, delays=(1,), cv=CVOptions(n_folds=3))
    instant = design.windows[0].start[rows.usable[0]]
    for fold in rows.folds:
        assert set(np.round(instant[fold.test], 6)).isdisjoint(np.round(instant[fold.train], 6))


def test_fixed_test_runs_are_one_fold():
    rows = make_rows(design_of(("a", 30), ("b", 20), ("c", 25), test_runs=(1,)), delays=(1,), cv=CVOptions(n_folds=2))
    (fold,) = rows.folds
    assert set(rows.run_of_row[fold.test]) == {1}
    assert set(rows.run_of_row[fold.train]) == {0, 2}


def test_the_high_pass_of_the_bold_takes_the_same_drift_out_of_features():
    design = design_of(("a", 150), ("b", 150))
    rows = make_rows(design, delays=(0,), cv=CVOptions(n_folds=2))
    drift = np.cos(np.pi * (np.arange(600) + 0.5) / 150)  # half a cosine over the run
    signal = np.sin(2 * np.pi * np.arange(600) / 6)
    X = columns_of(design, rows, lambda run, showing: (5 * drift + signal)[:, None], high_pass=0.01)
    assert np.corrcoef(X[:150, 0], signal[:150])[0, 1] > 0.999
    assert abs(np.corrcoef(X[:150, 0], drift[:150])[0, 1]) < 1e-6


def test_targets_are_scaled_within_each_segment():
    design = design_of(("a", 60), ("b", 40))
    rows = make_rows(design, delays=(1,), cv=CVOptions(n_folds=2))
    series = np.random.default_rng(1).standard_normal((100, 2)) * 7 + 100
    Y = stack_targets(series, rows)
    by_hand = [series[1:60], series[61:100]]
    np.testing.assert_allclose(Y, np.concatenate([(b - b.mean(0)) / b.std(0) for b in by_hand]))


def test_volumes_before_the_steady_state_are_left_out_but_their_film_counts():
    design = design_of(("a", 60), ("b", 40))
    late = replace(design.runs[0], non_steady_state=5)
    rows = make_rows(replace(design, runs=(late, design.runs[1])), delays=(1, 2), cv=CVOptions(n_folds=2))
    assert np.flatnonzero(rows.usable[0])[0] == 5
    assert np.flatnonzero(rows.usable[1])[0] == 2


def test_inner_folds_of_a_run_with_two_films_follow_the_run():
    """Two runs of two films each: what is left to train on is one run, cut in the order of its volumes."""
    first = [Showing("a", 0.0, 0.0, 80.0), Showing("b", 80.0, 0.0, 80.0)]
    second = [Showing("c", 0.0, 0.0, 80.0), Showing("d", 80.0, 0.0, 80.0)]
    rows = make_rows(design_of((first, 80), (second, 80), film=80.0), delays=(1, 2), cv=CVOptions(n_folds=3))
    volumes = np.concatenate([np.flatnonzero(usable) for usable in rows.usable])
    for fold in rows.folds:
        trained = volumes[fold.train]
        for fit, held in fold.inner:
            inside = trained[held]
            assert np.array_equal(inside, np.arange(inside[0], inside[-1] + 1))
            distance = np.abs(trained[fit][:, None] - inside[None, :]).min()
            assert distance == 3


# Windows without features


def manifest_of(design, masked, *, stim_file="a", model="m"):
    """What an extraction says of one film; `masked` are windows without features."""
    grids = {grid for w in design.windows for f, grid in zip(w.stim_files, w.grids, strict=True) if f == stim_file}
    rows = [
        {
            "origin": g.origin,
            "step": g.step,
            "length": g.length,
            "masked": {str(w): "The film is damaged." for w in masked},
        }
        for g in grids
    ]
    return json.loads(json.dumps({"model": model, "stim_file": stim_file, "entries": rows}))


def without(design, *manifests):
    return without_windows(design, {key: set(reasons) for key, reasons in lost_windows(manifests).items()})


@pytest.mark.parametrize("delays", [(0,), (1,), (1, 2, 3), (0, 5)])
def test_exactly_the_volumes_whose_own_or_delayed_window_is_lost_are_left_out(delays):
    design = design_of(("a", 60), ("b", 40))
    lost = {20, 21, 33}
    whole = make_rows(design, delays=delays, cv=CVOptions(n_folds=2))
    rows = make_rows(without(design, manifest_of(design, lost)), delays=delays, cv=CVOptions(n_folds=2))
    own = design.windows[0].index
    # The volume of window 20 is read by itself and by the volumes that are a delay later.
    hit = {v for v in range(60) if any(v - d >= 0 and own[v - d] in lost for d in (0, *delays))}
    assert set(np.flatnonzero(whole.usable[0] & ~rows.usable[0])) == hit & set(np.flatnonzero(whole.usable[0]))
    assert not rows.usable[0][sorted(hit)].any()
    np.testing.assert_array_equal(rows.usable[1], whole.usable[1])
    assert len(rows.run_of_row) == int(rows.usable[0].sum() + rows.usable[1].sum())


def test_features_of_the_windows_that_are_left_are_finite_and_paired():
    design = design_of(("a", 60), ("b", 40))
    features = [np.random.default_rng(run).standard_normal((600, 2)) for run in range(2)]
    features[0][[20, 21]] = np.nan
    left = without(design, manifest_of(design, {20, 21}))
    rows = make_rows(left, delays=(1, 2), cv=CVOptions(n_folds=2))
    X = columns_of(left, rows, lambda run, showing: features[run], high_pass=0.01)
    assert X.shape == (len(rows.run_of_row), 4)
    assert np.isfinite(X).all()
    # Where the lost ones stand in the features makes no difference to any other.
    features[0][[20, 21]] = 1e6
    np.testing.assert_array_equal(X, columns_of(left, rows, lambda run, showing: features[run], high_pass=0.01))


def test_what_one_model_lacks_is_left_out_for_all_and_other_grids_are_not_touched():
    design = design_of(("a", 60), ([Showing("a", 0.7)], 60), ("b", 40))
    manifests = [
        manifest_of(design, {20}, model="one"),
        manifest_of(design, {30}, model="two"),
        manifest_of(design, {5}, stim_file="b", model="two"),
        manifest_of(design, (), model="three"),
    ]
    grids = {w.grids[0].origin for w in design.windows[:2]}
    assert len(grids) == 2
    del manifests[0]["entries"][1]
    [key] = [k for k, windows in lost_windows(manifests).items() if set(windows) == {20, 30}]
    left = without(design, *manifests)
    for number, windows in enumerate(left.windows):
        expected = {"a": {30}, "b": {5}}[windows.stim_files[0]]
        expected = {20, 30} if grid_key(windows.stim_files[0], windows.grids[0]) == key else expected
        before = design.windows[number]
        np.testing.assert_array_equal(~windows.valid & before.valid, np.isin(before.index, list(expected)))
        np.testing.assert_array_equal(windows.showing < 0, windows.index < 0)
        np.testing.assert_array_equal(windows.start, before.start)


def test_a_second_showing_of_the_film_loses_the_same_windows():
    shown = [Showing("a", 0.0, 0.0, 60.0), Showing("b", 60.0, 0.0, 40.0), Showing("a", 100.0, 0.0, 60.0)]
    design = design_of((shown, 80), ("c", 40), film=100.0)
    left = without(design, manifest_of(design, {4}))
    hit = np.flatnonzero(design.windows[0].valid & ~left.windows[0].valid)
    assert hit.tolist() == [4, 54]


def test_nothing_lost_is_the_same_design():
    design = design_of(("a", 60), ("b", 40))
    left = without(design, manifest_of(design, ()))
    for one, other in zip(left.windows, design.windows, strict=True):
        np.testing.assert_array_equal(one.index, other.index)
    assert lost_windows([manifest_of(design, ())]) == {}
    assert lost_words({}) == ()


def test_a_film_that_is_lost_altogether_leaves_the_others():
    design = design_of(("a", 60), ("b", 60), ("c", 60))
    left = without(design, manifest_of(design, range(600)))
    rows = make_rows(left, delays=(1,), cv=CVOptions(n_folds=2))
    assert [fold.name for fold in rows.folds] == ["task-t1", "task-t2"]
    assert set(rows.run_of_row) == {1, 2}
    X = columns_of(left, rows, lambda run, showing: np.arange(600.0)[:, None], high_pass=0.0)
    assert len(X) == len(rows.run_of_row)


def test_where_one_film_is_left_its_parts_are_scaled_apart():
    design = design_of(("a", 60), ("b", 90))
    rows = make_rows(without(design, manifest_of(design, range(600))), delays=(1,), cv=CVOptions(n_folds=3))
    assert len(rows.folds) == 3
    for fold in rows.folds:
        assert set(rows.segment_of_row[fold.test]).isdisjoint(rows.segment_of_row[fold.train])


def test_too_little_left_is_one_sentence():
    design = design_of(("a", 60), ("b", 60), test_runs=(1,))
    with pytest.raises(DesignError, match=r"at least one of each is needed"):
        make_rows(without(design, manifest_of(design, range(600))), delays=(1,), cv=CVOptions(n_folds=2))


def test_words_say_how_much_of_which_film_is_lost():
    reasons = {3: "The stimulus a is damaged from 4.00 to 5.00 s.", 4: "The stimulus a is damaged from 4.00 to 5.00 s."}
    lost = {("a", 0.0, 2.0, 2.0): reasons, ("a", 0.5, 2.0, 2.0): {3: reasons[3]}, ("b", 0.0, 2.0, 2.0): {0: "Broken."}}
    first, second = lost_words(lost)
    assert first.startswith("3 windows of a have no features and are left out, with the volumes that they belong to: ")
    assert first.endswith("damaged from 4.00 to 5.00 s.")
    assert second == ("One window of b has no features and is left out, with the volumes that it belongs to: Broken.")


def test_scores_are_kept_apart_by_the_windows_that_are_lost(tmp_path):
    """Scores of a model whose own features are whole change with what another model lacks."""
    design = design_of(("a", 60), ("b", 40))
    path = tmp_path / "design.json"
    path.write_text("{}")
    node = FitScores(design=str(path), options="{}", cache_dir=str(tmp_path), app_version="1")
    own = [manifest_of(design, ())]
    lost = [lost_windows([manifest_of(design, windows, model="other")]) for windows in ((), {4}, {4, 5})]
    lost.append(lost_windows([manifest_of(design, {4}, stim_file="b", model="other")]))
    assert len({node._cached("bold", own, each) for each in lost}) == 4
    assert node._cached("bold", own, lost[1]) == node._cached("bold", own, dict(reversed(lost[1].items())))
