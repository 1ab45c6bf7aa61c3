"""Learn: delays within a run, scaling per run, folds that keep repeats together, ridge and banded ridge.

Functions of arrays, usable without BIDS or nipype.
"""

from bids_mllm.fit.banded import BandedFit, band_weights, fit_banded
from bids_mllm.fit.cv_file import folds_from_values, folds_to_values
from bids_mllm.fit.delays import delay_rows, delayed_valid
from bids_mllm.fit.design import DelayedRows, Design, delayed_design, delayed_rows, feature_design, kernel_design
from bids_mllm.fit.folds import SegmentClock, group_repeats, make_folds
from bids_mllm.fit.memory import FitMemory, block_bytes, fit_memory, joint_memory, part_of_targets
from bids_mllm.fit.participants import scores_from_participants
from bids_mllm.fit.projection import equal_rank_columns
from bids_mllm.fit.ridge import alpha_at_edge, alpha_grid, fit_ridge
from bids_mllm.fit.scaling import high_pass_rows, zscore_segments
from bids_mllm.fit.targets import Targets, prepare_targets

__all__ = [
    "BandedFit",
    "DelayedRows",
    "Design",
    "FitMemory",
    "SegmentClock",
    "Targets",
    "alpha_at_edge",
    "alpha_grid",
    "band_weights",
    "block_bytes",
    "delay_rows",
    "delayed_design",
    "delayed_rows",
    "delayed_valid",
    "equal_rank_columns",
    "feature_design",
    "fit_banded",
    "fit_memory",
    "fit_ridge",
    "folds_from_values",
    "folds_to_values",
    "group_repeats",
    "high_pass_rows",
    "joint_memory",
    "kernel_design",
    "make_folds",
    "part_of_targets",
    "prepare_targets",
    "scores_from_participants",
    "zscore_segments",
]
