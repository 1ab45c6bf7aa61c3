"""How well, and is it real: scores, noise ceilings, tests that respect autocorrelation, partitions, layers, regions.

Functions of arrays, usable without BIDS or nipype.
"""

from bids_mllm.score.bootstrap import BootstrapInterval, bootstrap_runs
from bids_mllm.score.ceiling import (
    ExtrapolatedCeiling,
    all_subsets,
    explainable_variance,
    extrapolate_ceiling,
    leave_one_out_ceiling,
    normalized_correlation,
    repeat_ceiling,
    split_half_reliability,
)
from bids_mllm.score.correlation import concatenated_r, pearson_r, pearson_r_by_run, r2_score_columns
from bids_mllm.score.held_out import ColumnScores, score_columns
from bids_mllm.score.layers import (
    HierarchyCorrelation,
    NestedDepth,
    hierarchy_correlation,
    layer_profile,
    nested_depth_scores,
    preferred_depth_argmax,
    preferred_depth_mass,
    relative_depth,
    resample_profile,
)
from bids_mllm.score.multiplicity import count_comparisons, fdr
from bids_mllm.score.paired import BlockScores, PairedTest, block_scores, paired_sign_flip, region_sign_flip
from bids_mllm.score.partition import (
    Partition,
    PartitionShares,
    partition_normalized_r,
    partition_r2,
    partition_sets,
    partition_shares,
    product_measure,
)
from bids_mllm.score.permutation import PermutationTest, join_tests, permutation_test

__all__ = [
    "BlockScores",
    "BootstrapInterval",
    "ColumnScores",
    "ExtrapolatedCeiling",
    "HierarchyCorrelation",
    "NestedDepth",
    "PairedTest",
    "Partition",
    "PartitionShares",
    "PermutationTest",
    "all_subsets",
    "block_scores",
    "bootstrap_runs",
    "concatenated_r",
    "count_comparisons",
    "explainable_variance",
    "extrapolate_ceiling",
    "fdr",
    "hierarchy_correlation",
    "join_tests",
    "layer_profile",
    "leave_one_out_ceiling",
    "nested_depth_scores",
    "normalized_correlation",
    "paired_sign_flip",
    "partition_normalized_r",
    "partition_r2",
    "partition_sets",
    "partition_shares",
    "pearson_r",
    "pearson_r_by_run",
    "permutation_test",
    "preferred_depth_argmax",
    "preferred_depth_mass",
    "product_measure",
    "r2_score_columns",
    "region_sign_flip",
    "relative_depth",
    "repeat_ceiling",
    "resample_profile",
    "score_columns",
    "split_half_reliability",
]
