"""The sidecar of the mask of what has scores names the brain masks that were applied."""

from pathlib import Path

from bids_mllm.interfaces.derivatives import brain_mask_words
from bids_mllm.records import Run


def run_with(mask):
    path = None if mask is None else Path(f"/data/sub-01_ses-1_task-a_run-1_{mask}.nii.gz")
    return Run("01", "1", "a", 1, "fsLR", None, path, None, 2.0, 0.0, 10, form="grayordinates")


def test_kinds_of_masks_are_named_once_and_runs_without_one_are_counted():
    fine, other = "space-MNI152NLin6Asym_res-2_desc-brain_mask", "space-MNI152NLin6Asym_desc-brain_mask"
    assert brain_mask_words([run_with(fine), run_with(fine)]) == fine
    assert brain_mask_words([run_with(fine), run_with(other)]) == f"{fine}, {other}"
    assert brain_mask_words([run_with(fine), run_with(None), run_with(None)]) == f"{fine} in 1 of 3 runs"
    assert brain_mask_words([run_with(None)]) is None
    assert brain_mask_words([run_with("desc-brain_mask")]) == "desc-brain_mask"
