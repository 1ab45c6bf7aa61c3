"""Over participants: means, tests whose unit is the participant, prevalence.

Functions of arrays, usable without BIDS or nipype.
"""

from bids_mllm.group.inference import (
    GroupTest,
    Prevalence,
    prevalence,
    sign_flip_over_participants,
    wilcoxon_over_participants,
)
from bids_mllm.group.maps import group_choice, mean_maps

__all__ = [
    "GroupTest",
    "Prevalence",
    "group_choice",
    "mean_maps",
    "prevalence",
    "sign_flip_over_participants",
    "wilcoxon_over_participants",
]
