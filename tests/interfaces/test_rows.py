"""Rows of runs that differ in length: delays, purging, segments, and the pairing of features with BOLD."""

from dataclasses import replace

import numpy as np
import pytest

from bids_mllm.align.windows import align_run
from bids_mllm.interfaces.rows import make_rows, stack_features, stack_targets
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


def kept(rows, n_volumes):
    """Volumes of the only run, as the numbers that the positions in folds stand for."""
    return np.arange(n_volumes)[rows.usable[0]]


def test_delays_never_cross_runs():
    rows = make_rows(design_of(("a", 60), ("b", 40)), delays=(1, 3), n_folds=2)
    assert [usable.sum() for usable in rows.usable] == [57, 37]
    assert not rows.usable[0][:3].any()
    assert not rows.usable[1][:3].any()
    assert rows.run_of_row.tolist() == [0] * 57 + [1] * 37


def test_features_and_bold_stay_paired_where_runs_differ_in_length():
    """The BOLD of a volume is what was shown two TRs before, in every run another film."""
    design = design_of(("a", 40), ("b", 25), ("c", 33))
    rows = make_rows(design, delays=(2,), n_folds=2)
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((design.windows[run].grids[0].n_windows, 1)) for run in range(3)]
    bold = [np.full((run.n_volumes, 1), 1e3) for run in design.runs]
    for number, run in enumerate(design.runs):
        bold[number][2:] = features[number][: run.n_volumes - 2]
    X = stack_features(design, rows, lambda run, showing: features[run], high_pass=0.0)
    Y = stack_targets(np.concatenate(bold), rows)
    assert X.shape == Y.shape == (38 + 23 + 31, 1)
    for run in range(3):
        mine = rows.run_of_row == run
        assert np.corrcoef(X[mine, 0], Y[mine, 0])[0, 1] == pytest.approx(1.0)
    one_late = np.corrcoef(X[1:, 0], Y[:-1, 0])[0, 1]
    assert abs(one_late) < 0.5


def test_the_planted_row_time_comes_out_in_the_block_of_its_delay():
    design = design_of(("a", 60), ("b", 40))
    rows = make_rows(design, delays=(0, 1, 4), n_folds=2)
    times = np.arange(600, dtype=float)[:, None]
    X = stack_features(design, rows, lambda run, showing: times, high_pass=0.0)
    for run, n_volumes in enumerate((60, 40)):
        at = np.arange(4, n_volumes, dtype=float)
        scaled = (np.arange(n_volumes) - (n_volumes - 1) / 2) / np.arange(n_volumes).std()
        mine = X[rows.run_of_row == run]
        for block, delay in enumerate((0, 1, 4)):
            np.testing.assert_allclose(mine[:, block], scaled[(at - delay).astype(int)], atol=1e-12)


def test_each_showing_reads_its_own_features():
    design = design_of(([Showing("a", 0.0, 0.0, 40.0), Showing("b", 40.0, 0.0, 40.0)], 40), ("c", 60))
    rows = make_rows(design, delays=(0,), n_folds=2)
    tables = {(0, 0): 10.0, (0, 1): 20.0, (1, 0): 30.0}
    seen = []

    def read(run, showing):
        seen.append((run, showing))
        base = tables[run, showing]
        return base + np.arange(600, dtype=float)[:, None] % 7

    X = stack_features(design, rows, read, high_pass=0.0)
    assert sorted(seen) == sorted(tables)
    first = X[rows.run_of_row == 0, 0]
    expected = np.concatenate([10 + np.arange(20) % 7, 20 + np.arange(20) % 7])
    np.testing.assert_allclose(first, (expected - expected.mean()) / expected.std())


@pytest.mark.parametrize(("delays", "window", "purged"), [((1, 2, 3), None, 3), ((1,), 8.0, 4), ((2, 5), 7.0, 5)])
def test_exactly_max_of_delay_and_window_is_purged_on_both_sides_of_a_single_run(delays, window, purged):
    n_volumes, n_folds = 200, 4
    rows = make_rows(design_of(("a", n_volumes), window=window), delays=delays, n_folds=n_folds)
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
    rows = make_rows(design_of(("a", 120)), delays=delays, n_folds=3)
    volume = kept(rows, 120)
    for fold in rows.folds:
        held = set(volume[fold.test])
        assert not any(v - delay in held for v in volume[fold.train] for delay in delays)


def test_segments_are_cut_at_the_edges_of_folds():
    rows = make_rows(design_of(("a", 123)), delays=(1, 2), n_folds=3)
    for fold in rows.folds:
        held = set(rows.segment_of_row[fold.test])
        assert len(held) == 1
        assert held.isdisjoint(rows.segment_of_row[fold.train])
    np.testing.assert_array_equal(rows.segments[0][rows.usable[0]], rows.segment_of_row)


def test_segments_are_runs_where_films_take_turns():
    rows = make_rows(design_of(("a", 60), ("b", 40)), delays=(1,), n_folds=2)
    np.testing.assert_array_equal(rows.segment_of_row, rows.run_of_row)
    assert [fold.name for fold in rows.folds] == ["task-t0", "task-t1"]


def test_two_viewings_of_one_film_are_cut_at_the_same_instants_of_the_film():
    design = design_of(("a", 100), ([Showing("a", 10.0)], 110))
    rows = make_rows(design, delays=(1, 2), n_folds=4)
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
    rows = make_rows(design, delays=(1,), n_folds=3)
    instant = design.windows[0].start[rows.usable[0]]
    for fold in rows.folds:
        assert set(np.round(instant[fold.test], 6)).isdisjoint(np.round(instant[fold.train], 6))


def test_fixed_test_runs_are_one_fold():
    rows = make_rows(design_of(("a", 30), ("b", 20), ("c", 25), test_runs=(1,)), delays=(1,), n_folds=2)
    (fold,) = rows.folds
    assert set(rows.run_of_row[fold.test]) == {1}
    assert set(rows.run_of_row[fold.train]) == {0, 2}


def test_the_high_pass_of_the_bold_takes_the_same_drift_out_of_features():
    design = design_of(("a", 150), ("b", 150))
    rows = make_rows(design, delays=(0,), n_folds=2)
    drift = np.cos(np.pi * (np.arange(600) + 0.5) / 150)  # half a cosine over the run
    signal = np.sin(2 * np.pi * np.arange(600) / 6)
    X = stack_features(design, rows, lambda run, showing: (5 * drift + signal)[:, None], high_pass=0.01)
    assert np.corrcoef(X[:150, 0], signal[:150])[0, 1] > 0.999
    assert abs(np.corrcoef(X[:150, 0], drift[:150])[0, 1]) < 1e-6


def test_targets_are_scaled_within_each_segment():
    design = design_of(("a", 60), ("b", 40))
    rows = make_rows(design, delays=(1,), n_folds=2)
    series = np.random.default_rng(1).standard_normal((100, 2)) * 7 + 100
    Y = stack_targets(series, rows)
    by_hand = [series[1:60], series[61:100]]
    np.testing.assert_allclose(Y, np.concatenate([(b - b.mean(0)) / b.std(0) for b in by_hand]))


def test_volumes_before_the_steady_state_are_left_out_but_their_film_counts():
    design = design_of(("a", 60), ("b", 40))
    late = replace(design.runs[0], non_steady_state=5)
    rows = make_rows(replace(design, runs=(late, design.runs[1])), delays=(1, 2), n_folds=2)
    assert np.flatnonzero(rows.usable[0])[0] == 5
    assert np.flatnonzero(rows.usable[1])[0] == 2


def test_inner_folds_of_a_run_with_two_films_follow_the_run():
    """Two runs of two films each: what is left to train on is one run, cut in the order of its volumes."""
    first = [Showing("a", 0.0, 0.0, 80.0), Showing("b", 80.0, 0.0, 80.0)]
    second = [Showing("c", 0.0, 0.0, 80.0), Showing("d", 80.0, 0.0, 80.0)]
    rows = make_rows(design_of((first, 80), (second, 80), film=80.0), delays=(1, 2), n_folds=3)
    volumes = np.concatenate([np.flatnonzero(usable) for usable in rows.usable])
    for fold in rows.folds:
        trained = volumes[fold.train]
        for fit, held in fold.inner:
            inside = trained[held]
            assert np.array_equal(inside, np.arange(inside[0], inside[-1] + 1))
            distance = np.abs(trained[fit][:, None] - inside[None, :]).min()
            assert distance == 3
