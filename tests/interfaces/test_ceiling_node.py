"""Noise ceilings from designs and series: viewings and participants are paired on the clock of the film."""

from dataclasses import replace

import numpy as np
import pytest

from bids_mllm.align.windows import align_run
from bids_mllm.exceptions import DesignError
from bids_mllm.interfaces import ceiling as ceiling_module
from bids_mllm.interfaces.ceiling import (
    Gram,
    Viewer,
    ceiling_from_participants,
    ceiling_from_repeats,
    chosen_subsets,
    common_rows,
    matched_repeats,
    nearest,
    repeat_rows,
    restricted,
    sharing_viewers,
)
from bids_mllm.interfaces.encoding import FitOptions
from bids_mllm.interfaces.rows import CVOptions, make_rows
from bids_mllm.records import Fold, ParticipantDesign, Run, Showing

TR = 2.0
DELAYS = (1, 2)


def viewer_of(folder, runs, *, participant="01", test_runs=None, series=None):
    """Runs are (stim_file, onset, number of volumes); the series has `n` voxels made by the caller."""
    made = [
        Run(participant, None, f"t{number}", None, "T1w", None, None, None, TR, 0.0, n, None, (Showing(film, onset),))
        for number, (film, onset, n) in enumerate(runs)
    ]
    films = {showing.stim_file: 2000.0 for run in made for showing in run.showings}
    windows = tuple(align_run(run, films, window=None) for run in made)
    design = ParticipantDesign(participant, "T1w", tuple(made), windows, (), test_runs)
    rows = make_rows(design, delays=DELAYS, cv=CVOptions(n_folds=2))
    path = folder / f"series_{participant}.npy"
    if series is not None:
        np.save(path, series.astype(np.float32))
    return Viewer(design, rows, path)


def test_viewings_of_drifting_clocks_are_paired_on_the_clock_of_the_film(tmp_path):
    """In the second viewing the film runs 2 % slow, so that its volume k is at 0.98 x 2 k s: by counting it is off by
    six volumes at the end.
    """
    straight, slow = (Showing("a", 0.0, 0.0, None, rate) for rate in (1.0, 0.98))
    runs = tuple(
        Run("01", None, f"t{n}", None, "T1w", None, None, None, TR, 0.0, volumes, None, (showing,))
        for n, (showing, volumes) in enumerate([(straight, 300), (Showing("b", 0.0), 100), (slow, 300)])
    )
    windows = tuple(align_run(run, {"a": 2000.0, "b": 2000.0}) for run in runs)
    design = ParticipantDesign("01", "T1w", runs, windows, (), (0, 2))
    viewer = Viewer(design, make_rows(design, delays=DELAYS, cv=CVOptions(n_folds=2)), tmp_path / "none.npy")
    (matched,) = repeat_rows(viewer)
    one, other = (viewer.rows.volume_of_row[rows] for rows in matched)
    # Volume j of the first shows the film from 2 j s on, volume k of the second, up to 299, from 1.96 k s on.
    np.testing.assert_array_equal(one, np.arange(2, 294))
    np.testing.assert_array_equal(other, np.rint(one / 0.98))


def test_viewings_are_paired_on_the_clock_and_not_by_counting(tmp_path):
    """The second viewing starts 6 s later in its run and is shorter: volume 10 of one is volume 13 of the other."""
    viewer = viewer_of(tmp_path, [("a", 0.0, 60), ("b", 0.0, 50), ("a", 6.0, 45)], test_runs=(0, 2))
    (matched,) = repeat_rows(viewer)
    assert len(matched) == 2
    volume = viewer.rows.volume_of_row
    np.testing.assert_array_equal(volume[matched[1]], volume[matched[0]] + 3)
    assert set(viewer.rows.run_of_row[matched[0]]) == {0}
    assert set(viewer.rows.run_of_row[matched[1]]) == {2}
    moments = viewer.moments()
    assert all(moments[i] == moments[j] for i, j in zip(*matched, strict=True))


def test_the_ceiling_of_repeats_is_the_planted_one(tmp_path):
    rng = np.random.default_rng(0)
    n, n_voxels, rho = 600, 400, np.tile([0.3, 0.6], 200)
    shared = rng.normal(size=(n, n_voxels)) * np.sqrt(rho)
    views = [shared + rng.normal(size=shared.shape) * np.sqrt(1 - rho) for _ in range(2)]
    series = np.concatenate([views[0], rng.normal(size=(50, n_voxels)), views[1]])
    viewer = viewer_of(tmp_path, [("a", 0.0, n), ("b", 0.0, 50), ("a", 0.0, n)], test_runs=(0, 2), series=series)
    ceiling = ceiling_from_repeats(viewer)
    for value in (0.3, 0.6):
        assert ceiling.ceiling[rho == value].mean() == pytest.approx(np.sqrt(value), abs=0.02)
    assert ceiling.facts["Viewings"] == 2
    assert ceiling.facts["Volumes"] == n - 2


def test_films_that_train_say_nothing_of_the_ceiling(tmp_path):
    viewer = viewer_of(tmp_path, [("a", 0.0, 60), ("b", 0.0, 50), ("a", 0.0, 60)], test_runs=(1,))
    with pytest.raises(DesignError, match="sub-01 saw no held-out film more than once"):
        ceiling_from_repeats(viewer)


def test_a_film_shown_twice_in_one_run_is_two_viewings(tmp_path):
    viewer = viewer_of(tmp_path, [("a", 0.0, 40), ("b", 0.0, 60)])
    shown = (Showing("a", 0.0, 0.0, 60.0), Showing("a", 60.0, 0.0, 60.0))
    run = replace(viewer.design.runs[0], n_volumes=60, showings=shown)
    windows = (align_run(run, {"a": 60.0}, window=None), viewer.design.windows[1])
    design = replace(viewer.design, runs=(run, viewer.design.runs[1]), windows=windows)
    twice = Viewer(design, make_rows(design, delays=DELAYS, cv=CVOptions()), viewer.series)
    (matched,) = repeat_rows(twice)
    assert len(matched) == 2
    assert matched[0].size >= 26
    assert np.all(matched[1] > matched[0].max())


def test_the_nearest_moment():
    np.testing.assert_array_equal(
        nearest(np.array([0.0, 2.0, 4.0]), np.array([-1.0, 0.9, 1.1, 3.5, 9.0])), [0, 0, 1, 2, 2]
    )
    np.testing.assert_array_equal(nearest(np.array([5.0]), np.array([0.0, 9.0])), [0, 0])


def test_participants_are_paired_on_the_clock(tmp_path):
    """The other one saw the films in another order, later in their runs, and less of one."""
    first = viewer_of(tmp_path, [("a", 0.0, 60), ("b", 0.0, 50)])
    second = viewer_of(tmp_path, [("b", 4.0, 30), ("a", 2.0, 70)], participant="02")
    own, (theirs,) = common_rows([first, second])
    mine, other = first.moments(), second.moments()
    assert all(mine[i] == other[j] for i, j in zip(own, theirs, strict=True))
    assert {mine[i][0] for i in own} == {"a", "b"}
    assert max(mine[i][1] for i in own if mine[i][0] == "b") <= 27 * TR


def test_without_a_common_moment_it_is_said(tmp_path):
    first = viewer_of(tmp_path, [("a", 0.0, 60), ("b", 0.0, 50)])
    second = viewer_of(tmp_path, [("c", 0.0, 60), ("d", 0.0, 50)], participant="02")
    with pytest.raises(DesignError, match="sub-01 shares no moment of a stimulus with all of 02"):
        common_rows([first, second])


def test_folds_are_renumbered_for_the_rows_that_are_left():
    fold = Fold("f", np.arange(0, 20), np.arange(20, 30), ((np.arange(10, 20), np.arange(0, 10)),))
    left = restricted(fold, np.array([0, 1, 2, 10, 11, 12, 13, 25]))
    np.testing.assert_array_equal(left.train, np.arange(7))
    np.testing.assert_array_equal(left.test, [7])
    np.testing.assert_array_equal(left.inner[0][0], [3, 4, 5, 6])
    np.testing.assert_array_equal(left.inner[0][1], [0, 1, 2])
    with pytest.raises(DesignError, match="no moments are left that all participants saw"):
        restricted(fold, np.arange(5))


@pytest.mark.parametrize(("method", "tolerance"), [("participants", 0.05), ("participants-exponential", 0.15)])
def test_the_ceiling_of_participants_is_near_the_planted_one(tmp_path, method, tolerance):
    """Four participants with one signal in ten voxels each: predictions by ridge lose little at this size."""
    rng = np.random.default_rng(1)
    runs = [("a", 0.0, 700), ("b", 0.0, 700), ("c", 0.0, 700)]
    signal = rng.normal(size=(2100, 3))
    viewers = []
    for number in range(4):
        voxels = signal[:, np.arange(9) % 3]
        series = voxels * np.sqrt(0.5) + rng.normal(size=voxels.shape) * np.sqrt(0.5)
        viewers.append(viewer_of(tmp_path, runs, participant=f"0{number + 1}", test_runs=(2,), series=series))
    options = FitOptions(delays=DELAYS, alphas=(1e0, 1e5, 6), high_pass=0.0, layers=None)
    ceiling = ceiling_from_participants(viewers, options, method, "cpu", 2**28)
    assert np.nanmean(ceiling.ceiling) == pytest.approx(np.sqrt(0.5), abs=tolerance)
    assert ceiling.facts["Participants"] == ["02", "03", "04"]
    assert ceiling.facts["Subsets"] == 7


def test_one_who_lacks_a_film_takes_no_part_and_stops_nobody(tmp_path):
    rng = np.random.default_rng(3)
    runs = [("a", 0.0, 200), ("b", 0.0, 200), ("c", 0.0, 200)]
    viewers = [
        viewer_of(tmp_path, runs, participant=f"0{n}", test_runs=(2,), series=rng.normal(size=(600, 4)))
        for n in range(1, 4)
    ]
    lacking = viewer_of(tmp_path, runs[:2], participant="04", series=rng.normal(size=(400, 4)))
    options = FitOptions(delays=DELAYS, alphas=(1e0, 1e5, 3), high_pass=0.0, layers=None)
    assert [v.design.participant for v in sharing_viewers([*viewers, lacking])] == ["02", "03"]
    ceiling = ceiling_from_participants([*viewers, lacking], options, "participants", "cpu", 2**28)
    assert ceiling.facts["Participants"] == ["02", "03"]


def test_of_many_others_some_subsets_of_each_size_are_tried():
    assert len(chosen_subsets(["a", "b", "c"])) == 7
    labels = [f"{number:02d}" for number in range(12)]
    subsets = chosen_subsets(labels)
    assert subsets == chosen_subsets(labels)
    sizes = [len(subset) for subset in subsets]
    assert set(sizes) == set(range(1, 13))
    assert max(np.bincount(sizes)) <= 10
    assert all(len(set(subset)) == len(subset) for subset in subsets)


def test_hardly_any_common_volumes_are_no_repeat(tmp_path):
    """Two short runs that show parts of one film which overlap in most, but few, volumes."""
    viewer = viewer_of(tmp_path, [("a", 0.0, 25), ("b", 0.0, 50), ("a", -20.0, 25)], test_runs=(0, 2))
    assert 0 < sum(len(rows[0]) for rows in repeat_rows(viewer)) < 20
    assert matched_repeats(viewer) is None
    with pytest.raises(DesignError, match="for 20 volumes or more"):
        ceiling_from_repeats(viewer)


def test_a_film_seen_twice_over_two_runs_each_is_two_viewings(tmp_path):
    """Each time the film was cut in two at another place: 80 moments, and each of four runs lacks its first two."""
    parts = [("a", 0.0, 40), ("a", -80.0, 40), ("b", 0.0, 50), ("a", 0.0, 50), ("a", -100.0, 30)]
    viewer = viewer_of(tmp_path, parts, test_runs=(0, 1, 3, 4))
    (matched,) = repeat_rows(viewer)
    moments, run = viewer.moments(), viewer.rows.run_of_row
    assert [moments[row] for row in matched[0]] == [moments[row] for row in matched[1]]
    assert [set(run[rows]) for rows in matched] == [{0, 1}, {3, 4}]
    assert matched[0].size == 80 - 3 * 2
    assert matched_repeats(viewer).shape == (2, 74)


def test_a_viewing_that_broke_off_takes_nothing_from_the_ceiling(tmp_path):
    viewer = viewer_of(tmp_path, [("a", 0.0, 60), ("b", 0.0, 50), ("a", 0.0, 15), ("a", 0.0, 60)], test_runs=(0, 2, 3))
    assert matched_repeats(viewer).shape == (2, 58)
    assert set(viewer.rows.run_of_row[matched_repeats(viewer).ravel()]) == {0, 3}


def test_a_film_seen_whole_is_paired_with_one_seen_in_two_runs(tmp_path):
    """Either way round the moments of both parts are shared but for the first two of each run, which lack delays."""
    whole = viewer_of(tmp_path, [("a", 0.0, 80), ("b", 0.0, 50)])
    parts = viewer_of(tmp_path, [("a", 0.0, 40), ("a", -80.0, 40), ("b", 0.0, 50)], participant="02")
    for target, other in ((whole, parts), (parts, whole)):
        own, (matched,) = common_rows([target, other])
        seen, theirs = target.moments(), other.moments()
        assert [seen[row] for row in own] == [theirs[row] for row in matched]
        assert sum(seen[row][0] == "a" for row in own) == 80 - 2 * 2


def test_the_gram_of_voxels_is_made_tile_by_tile(tmp_path, monkeypatch):
    series = np.random.default_rng(4).normal(size=(110, 7))
    viewer = viewer_of(tmp_path, [("a", 0.0, 60), ("b", 0.0, 50)], series=series)
    places = np.arange(0, 100, 3)
    monkeypatch.setattr(ceiling_module, "VOXEL_TILE", 3)
    Y = viewer.targets()[places].astype(float)
    np.testing.assert_allclose(Gram(viewer, places).on("cpu").numpy(), Y @ Y.T, atol=1e-4)


def test_two_participants_are_too_few(tmp_path):
    rng = np.random.default_rng(2)
    runs = [("a", 0.0, 60), ("b", 0.0, 60)]
    viewers = [viewer_of(tmp_path, runs, participant=label, series=rng.normal(size=(120, 3))) for label in ("01", "02")]
    options = FitOptions(delays=DELAYS, alphas=(1e0, 1e5, 6), high_pass=0.0, layers=None)
    with pytest.raises(DesignError, match=r"two or more others in the call .* but there is 02"):
        ceiling_from_participants(viewers, options, "participants", "cpu", 2**28)
