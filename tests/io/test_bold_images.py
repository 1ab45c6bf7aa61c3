"""Masking and cleaning of BOLD, against least squares by numpy."""

from dataclasses import replace

import numpy as np
import pytest
from volumes import AFFINE, SHAPE, TR, bold_run

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.bold import clean_run, common_mask, prepare_runs, unusable_voxels
from bids_mllm.io.grids import VolumeGrid, same_grid
from bids_mllm.io.maps import load_map, save_map
from bids_mllm.io.series import read_series

GRID = VolumeGrid(SHAPE, AFFINE)

WHOLE = np.ones(SHAPE, dtype=bool)


def cleaned_of(series, confounds, **options):
    """A cleaned copy."""
    cleaned = np.array(series, dtype=np.float32)
    clean_run(cleaned, confounds, **options)
    return cleaned


def without(*voxels):
    mask = WHOLE.copy()
    for voxel in voxels:
        mask[voxel] = False
    return mask


def test_the_common_mask_is_the_overlap(tmp_path):
    runs = [
        bold_run(tmp_path / "a", mask=without((0, 0, 0))),
        bold_run(tmp_path / "b", mask=without((2, 3, 1))),
        bold_run(tmp_path / "c"),
    ]
    mask, grid = common_mask(runs)
    np.testing.assert_array_equal(mask, without((0, 0, 0), (2, 3, 1)).ravel())
    assert same_grid(grid, GRID)
    assert common_mask(runs[2:])[0].all()


def test_masks_without_a_common_voxel(tmp_path):
    runs = [
        bold_run(tmp_path / "a", mask=~without((0, 0, 0))),
        bold_run(tmp_path / "b", mask=without((0, 0, 0))),
    ]
    with pytest.raises(InputDataError, match=r"sub-01 in space MNI152NLin2009cAsym have no voxel in common"):
        common_mask(runs)


@pytest.mark.parametrize("other", [{"shape": (3, 4, 3)}, {"affine": np.diag([3.0, 2.0, 2.0, 1.0])}])
def test_runs_on_different_grids_name_both(tmp_path, other):
    runs = [bold_run(tmp_path / "a"), bold_run(tmp_path / "b", **other)]
    with pytest.raises(InputDataError) as caught:
        common_mask(runs)
    assert all(str(run.bold) in str(caught.value) for run in runs)


def test_a_run_is_read_voxel_by_voxel_as_stored(tmp_path):
    values = np.arange(24 * 7, dtype=float).reshape(*SHAPE, 7)
    run = bold_run(tmp_path, values=values)
    mask = without((1, 1, 1))
    series = read_series(run, mask.ravel())
    assert (series.shape, series.dtype) == ((7, 23), np.float32)
    np.testing.assert_array_equal(series, values.reshape(24, 7)[mask.ravel()].T)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:10] + b"\xff" + b[11:]])
def test_a_truncated_or_damaged_file_is_one_sentence(tmp_path, damage):
    run = bold_run(tmp_path, n_volumes=200, mask=WHOLE)
    run.bold.write_bytes(damage(run.bold.read_bytes()))
    with pytest.raises(InputDataError, match=r"preproc_bold.nii.gz cannot be read to its end"):
        read_series(run, WHOLE.ravel())


def test_a_truncated_mask_is_one_sentence(tmp_path):
    shape = (20, 20, 20)
    run = bold_run(tmp_path, n_volumes=2, shape=shape, mask=np.random.default_rng(0).random(shape) > 0.5)
    run.mask.write_bytes(run.mask.read_bytes()[:-300])
    with pytest.raises(InputDataError, match=r"brain_mask.nii.gz cannot be read to its end"):
        common_mask([run])


def test_a_movement_that_looks_like_a_drift_does_not_switch_the_high_pass_off():
    n, high_pass = 200, 0.01
    drifts = cosines(n, high_pass)
    rng = np.random.default_rng(0)
    motion = drifts[:, :1] + 0.05 * rng.standard_normal((n, 1))
    series = 100 * drifts[:, 4:5] + rng.standard_normal((n, 1))
    cleaned = cleaned_of(series, motion, repetition_time=TR, high_pass=high_pass)
    assert np.abs(drifts.T @ cleaned).max() < 1e-3
    assert cleaned.std() < 1.2


def test_constant_and_non_finite_voxels_are_unusable():
    series = np.random.default_rng(0).standard_normal((10, 6))
    series[3, 1] = np.nan
    series[0, 2] = -np.inf
    series[:, 3] = 7.0
    series[:, 4] = 0.0
    assert unusable_voxels(series).tolist() == [False, True, True, True, True, False]


def cosines(n_volumes, high_pass):
    """Cosine drifts below `high_pass`, from their definition: cos(pi k (t + 1/2) / n), k <= 2 n TR f."""
    order = int(np.floor(2 * n_volumes * high_pass * TR))
    t = np.arange(n_volumes) + 0.5
    return np.stack([np.cos(np.pi * k * t / n_volumes) for k in range(1, order + 1)], axis=1)


@pytest.mark.parametrize("n_confounds", [0, 1, 24])
@pytest.mark.parametrize("high_pass", [0.0, 0.0078125, 0.02])
def test_cleaning_equals_least_squares(n_confounds, high_pass):
    rng = np.random.default_rng(0)
    n = 150
    confounds = rng.standard_normal((n, n_confounds)).cumsum(axis=0) + 50 if n_confounds else None
    series = 500 + rng.standard_normal((n, 8)).cumsum(axis=0)
    parts = [np.ones((n, 1))]
    parts += [cosines(n, high_pass)] if high_pass else []
    parts += [confounds] if n_confounds else []
    design = np.hstack(parts)
    expected = series - design @ np.linalg.lstsq(design, series, rcond=None)[0]
    cleaned = cleaned_of(series, confounds, repetition_time=TR, high_pass=high_pass)
    assert cleaned.dtype == np.float32
    np.testing.assert_allclose(cleaned, expected, atol=2e-4)


def test_a_large_mean_costs_no_precision():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((200, 3)).astype(np.float32)
    series = (signal * 8).round() / 8 + np.float32(10000)
    plain = cleaned_of(series - np.float32(10000), None, repetition_time=TR, high_pass=0.01)
    np.testing.assert_allclose(cleaned_of(series, None, repetition_time=TR, high_pass=0.01), plain, atol=1e-4)


def test_bad_voxels_of_any_run_are_set_aside_in_all(tmp_path):
    rng = np.random.default_rng(0)
    volumes = [1000 + rng.standard_normal((*SHAPE, 40)) for _ in range(2)]
    volumes[0][0, 0, 0, 5] = np.nan
    volumes[1][1, 2, 1] = 3.0
    mask = without((2, 3, 1))
    runs = [bold_run(tmp_path / str(i), values=v, mask=mask) for i, v in enumerate(volumes)]
    found = prepare_runs(runs, tmp_path / "series.npy", strategy="none", high_pass=0.0)
    series = np.load(tmp_path / "series.npy")
    kept = mask & without((0, 0, 0), (1, 2, 1))
    np.testing.assert_array_equal(found.mask, mask.ravel())
    np.testing.assert_array_equal(found.usable, kept.ravel())
    assert found.confounds == ()
    assert same_grid(found.grid, GRID)
    assert (series.shape, series.dtype) == ((80, 21), np.float32)
    expected = np.concatenate([v[kept].T - v[kept].T.mean(axis=0) for v in volumes])
    np.testing.assert_allclose(series, expected, atol=2e-3)


def test_no_usable_voxel_at_all(tmp_path):
    runs = [bold_run(tmp_path, values=np.full((*SHAPE, 10), 5.0))]
    with pytest.raises(InputDataError, match=r"Every voxel of sub-01"):
        prepare_runs(runs, tmp_path / "series.npy", strategy="none", high_pass=0.0)
    assert not list(tmp_path.glob("*.npy"))


def test_confounds_asked_for_but_not_there(tmp_path):
    runs = [bold_run(tmp_path)]
    with pytest.raises(InputDataError, match=r"desc-confounds_timeseries.tsv.*--confounds none"):
        prepare_runs(runs, tmp_path / "series.npy", strategy="motion", high_pass=0.0)
    assert not list(tmp_path.glob("*.npy"))


def test_a_mask_is_written_and_read_back(tmp_path):
    mask = without((0, 1, 0), (2, 2, 1))
    save_map(tmp_path / "new" / "mask.nii.gz", mask.ravel(), GRID)
    run = replace(bold_run(tmp_path), mask=tmp_path / "new" / "mask.nii.gz")
    np.testing.assert_array_equal(common_mask([run])[0], mask.ravel())


def test_several_maps_are_volumes_of_one_image(tmp_path):
    import nibabel as nib

    values = np.arange(48, dtype=np.float32).reshape(2, 24)
    values[1, 5] = np.nan
    save_map(tmp_path / "a_statmap.nii.gz", values, GRID)
    image = nib.load(tmp_path / "a_statmap.nii.gz")
    np.testing.assert_array_equal(image.get_fdata()[..., 1], values[1].reshape(SHAPE))
    again, grid = load_map(tmp_path / "a_statmap.nii.gz")
    np.testing.assert_array_equal(again, values)
    assert same_grid(grid, GRID)


def test_images_with_a_scale_factor_are_read_in_their_units(tmp_path):
    import nibabel as nib

    values = np.random.default_rng(0).standard_normal((*SHAPE, 9)) * 3 + 100
    image = nib.Nifti1Image(values, AFFINE)
    image.set_data_dtype(np.int16)
    path = tmp_path / "sub-01_bold.nii.gz"
    image.to_filename(path)
    run = replace(bold_run(tmp_path), bold=path, n_volumes=9)
    np.testing.assert_allclose(read_series(run, WHOLE.ravel()), values.reshape(24, 9).T, atol=1e-3)


def test_volumes_before_the_steady_state_take_no_part():
    rng = np.random.default_rng(5)
    confounds = rng.normal(size=(60, 6))
    series = (confounds @ rng.normal(size=(6, 4)) + rng.normal(size=(60, 4))).astype(np.float32)
    spiked = series.copy()
    spiked[:2] += 1000
    options = {"repetition_time": 2.0, "high_pass": 0.01, "non_steady_state": 2}
    cleaned = cleaned_of(spiked, confounds, **options)
    assert np.isnan(cleaned[:2]).all()
    np.testing.assert_allclose(cleaned[2:], cleaned_of(series, confounds, **options)[2:], atol=1e-3)
