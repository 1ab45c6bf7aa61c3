"""The parts of the simulation against closed forms and hand-made cases."""

import numpy as np
import pytest

from bids_mllm.simulate.design import Viewing
from bids_mllm.simulate.noise import (
    CEILING_RANGE,
    ar_noise,
    cosines,
    draw_noise,
    framewise_displacement,
    head_motion,
    motion_artefact,
    scan,
)
from bids_mllm.simulate.planting import (
    DELAYS,
    haemodynamic_weights,
    leading_components,
    plant_signals,
    respond,
)
from bids_mllm.simulate.truth import measured_ceiling


def test_noise_has_the_asked_autocorrelation_and_size() -> None:
    ar = np.array([0.3, 0.4, 0.5])
    noise = ar_noise(40000, ar, np.random.default_rng(0))
    lagged = [np.corrcoef(noise[1:, k], noise[:-1, k])[0, 1] for k in range(3)]
    np.testing.assert_allclose(lagged, ar, atol=0.02)
    np.testing.assert_allclose(noise.std(axis=0), 1, atol=0.03)
    assert noise[0].std() > 0.1


def test_ceilings_follow_from_the_noise() -> None:
    rng = np.random.default_rng(1)
    drawn = draw_noise(np.array([1.0, 1.0, 1.0, 0.0]), rng)
    assert drawn.ceiling[3] == 0
    assert np.all((drawn.ceiling[:3] >= CEILING_RANGE[0]) & (drawn.ceiling[:3] <= CEILING_RANGE[1]))
    signal = rng.standard_normal((40000, 4)) * [1, 1, 1, 0]
    noise = drawn.size * ar_noise(40000, drawn.ar, rng)
    viewing = Viewing("001", "a", None, "a.mkv", 40000, 40000)
    measured = measured_ceiling([signal], [noise], [viewing])
    np.testing.assert_allclose(measured[:3], drawn.ceiling[:3], atol=0.02)
    assert np.isnan(measured[3])


def test_ceilings_use_complete_rows_of_each_run_alone() -> None:
    rng = np.random.default_rng(2)
    viewings = [Viewing("001", "a", None, "a.mkv", 30, 25), Viewing("002", "b", None, "b.mkv", 20, 40)]
    signals = [rng.standard_normal((v.n_volumes, 2)) + shift for v, shift in zip(viewings, (0, 100), strict=True)]
    noises = [rng.standard_normal((v.n_volumes, 2)) for v in viewings]
    rows = [slice(5, 25), slice(5, 20)]
    clean = [(s[r] - s[r].mean(0)) / s[r].std(0) for s, r in zip(signals, rows, strict=True)]
    both = [s + n for s, n in zip(signals, noises, strict=True)]
    noisy = [(b[r] - b[r].mean(0)) / b[r].std(0) for b, r in zip(both, rows, strict=True)]
    expected = [np.corrcoef(np.concatenate(clean)[:, k], np.concatenate(noisy)[:, k])[0, 1] for k in range(2)]
    np.testing.assert_allclose(measured_ceiling(signals, noises, viewings), expected)


def test_what_is_measured_is_the_sum_of_its_parts() -> None:
    """Motion and the two slowest cosines explain all that is not response or autocorrelated noise."""
    rng = np.random.default_rng(3)
    n_volumes, n_voxels = 90, 7
    signal, noise = rng.standard_normal((2, n_volumes, n_voxels))
    motion = head_motion(n_volumes, rng)
    bold = scan(signal, noise, motion, np.full(n_voxels, 1.5), rng)
    assert 600 < bold.mean() < 1400
    slow = np.cos(np.pi * np.outer(np.arange(n_volumes) + 0.5, [0, 1, 2]) / n_volumes)
    for voxel in range(n_voxels):
        design = np.column_stack([slow, motion, signal[:, voxel] + noise[:, voxel]])
        weights, *_ = np.linalg.lstsq(design, bold[:, voxel], rcond=None)
        np.testing.assert_allclose(design @ weights, bold[:, voxel], rtol=1e-9)
        # The response is half a percent of the baseline: the constant without the motion's mean.
        constant = weights[0] + motion.mean(axis=0) @ weights[3:9]
        assert weights[9] / constant == pytest.approx(0.005, rel=1e-6)


def test_artefact_and_displacement() -> None:
    motion = np.zeros((4, 6))
    motion[1, 0], motion[2, 3] = 0.5, 0.01
    # From volume 1 to 2 the head moves back by 0.5 mm and turns by 0.01 rad, 0.5 mm on a 50 mm sphere.
    np.testing.assert_allclose(framewise_displacement(motion), [np.nan, 0.5, 1.0, 0.5])
    rng = np.random.default_rng(4)
    moving = rng.standard_normal((4000, 6))
    assert motion_artefact(moving, 500, rng).std() == pytest.approx(1, abs=0.1)
    waves = cosines(50, 4)
    np.testing.assert_allclose(waves.T @ waves, np.eye(4), atol=1e-12)


def test_response_by_hand() -> None:
    impulse = np.zeros((6, 1))
    impulse[1] = 1
    weights = haemodynamic_weights()
    assert weights.sum() == pytest.approx(1)
    assert len(weights) == len(DELAYS) == 5
    np.testing.assert_allclose(respond(impulse, 10)[:, 0], [0, 0, *weights, 0, 0, 0])
    np.testing.assert_allclose(respond(impulse, 4)[:, 0], [0, 0, *weights[:2]])


def test_components_are_the_principal_ones() -> None:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(5)
    values = rng.standard_normal((60, 10)) @ rng.standard_normal((10, 10)) * np.arange(1, 11) + 7
    values[:, 3] = 2.5
    split = {"a": values[:25].astype(np.float32), "b": values[25:].astype(np.float32)}
    scores = leading_components(split)
    assert scores["a"].shape == (25, 4)
    joined = np.concatenate([scores["a"], scores["b"]])
    kept = StandardScaler().fit_transform(np.delete(values, 3, axis=1))
    expected = PCA(4, whiten=True).fit_transform(kept) * np.sqrt(60 / 59)
    np.testing.assert_allclose(np.abs(joined), np.abs(expected), atol=1e-3)


def test_drivers_explain_the_noiseless_responses() -> None:
    rng = np.random.default_rng(6)
    components = {name: {stim: rng.standard_normal((40, 3)) for stim in ("a", "b")} for name in ("first", "second")}
    drivers = np.array(["first", "second", "none", "first"])
    shown = [("a", 44), ("b", 38), ("a", 41)]
    one, other = (plant_signals(components, drivers, shown, seed=1, participant=p) for p in (0, 1))
    stacked = np.concatenate(one)
    np.testing.assert_allclose(stacked[:, [0, 1, 3]].std(axis=0), 1)
    assert not stacked[:, 2].any()
    for voxel, mine, wrong in ((0, "first", "second"), (1, "second", "first")):
        for name in (mine, wrong):
            rows = []
            for stim, n_volumes in shown:
                padded = np.zeros((n_volumes + 60, 3))
                padded[10:50] = components[name][stim]
                rows.append(np.column_stack([padded[10 - d : 10 - d + n_volumes] for d in DELAYS]))
            design = np.column_stack([np.concatenate(rows), np.ones(len(stacked))])
            left = stacked[:, voxel] - design @ np.linalg.lstsq(design, stacked[:, voxel], rcond=None)[0]
            explained = 1 - left.var()
            assert explained > 1 - 1e-9 if name == mine else explained < 0.5
    # Participants share most of their weights.
    r = [np.corrcoef(stacked[:, k], np.concatenate(other)[:, k])[0, 1] for k in (0, 1, 3)]
    assert 0.5 < np.mean(r) < 0.999
