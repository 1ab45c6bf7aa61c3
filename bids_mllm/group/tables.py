"""Comparisons of models within each participant, and regions over participants.

Everything here describes; nothing is a test. Voxels are not independent samples, and with a handful of
participants no rank test over participants can reach the usual levels.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from bids_mllm.group.maps import mean_maps
from bids_mllm.records import FloatArray

ROI_KEYS = ("model", "condition", "pooling", "instruction", "layer", "roi_index", "roi")
ROI_SCORES = ("r", "r2", "cv_r2")


def compare_models(best_r: Mapping[str, FloatArray], *, participants: Sequence[str]) -> list[dict[str, Any]]:
    """Compare every pair of models within every participant, over the voxels that both have.

    The values are descriptive: no p-value belongs to them.

    Parameters
    ----------
    best_r
        Model to array (n_participants, n_voxels) of held-out correlations, NaN where undefined.
    participants
        Labels of the rows.

    Returns
    -------
    rows : list of dict
        Keys participant, model_a, model_b, mean_difference (mean of a minus b), share_a_higher (share of
        the voxels in which a exceeds b) and n_voxels; the first two values are NaN without voxels.
    """
    for model, values in best_r.items():
        if len(values) != len(participants):
            raise ValueError(f"{model} has {len(values)} participants, but {len(participants)} are named.")
    rows = []
    for model_a, model_b in combinations(best_r, 2):
        for index, participant in enumerate(participants):
            difference = np.asarray(best_r[model_a][index] - best_r[model_b][index], dtype=np.float64)
            difference = difference[np.isfinite(difference)]
            rows.append(
                {
                    "participant": participant,
                    "model_a": model_a,
                    "model_b": model_b,
                    "mean_difference": float(difference.mean()) if difference.size else float("nan"),
                    "share_a_higher": float((difference > 0).mean()) if difference.size else float("nan"),
                    "n_voxels": int(difference.size),
                }
            )
    return rows


def roi_summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard error over participants of the long rows of regions.

    Parameters
    ----------
    rows
        Rows of all participants, with the keys model, condition, pooling, instruction, layer, roi_index,
        roi and the scores r, r2 and cv_r2 (None or NaN where undefined).

    Returns
    -------
    summary : list of dict
        The same keys in the order of first appearance, each score's mean and ``<score>_sem``, and
        n_participants: the participants with a finite r.
    """
    collected: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        collected.setdefault(tuple(row[key] for key in ROI_KEYS), []).append(row)
    summary = []
    for key, members in collected.items():
        values = [[_number(row[name]) for name in ROI_SCORES] for row in members]
        mean, sem, n = mean_maps([np.array(one) for one in values])
        entry: dict[str, Any] = dict(zip(ROI_KEYS, key, strict=True))
        for column, name in enumerate(ROI_SCORES):
            entry[name], entry[f"{name}_sem"] = float(mean[column]), float(sem[column])
        summary.append({**entry, "n_participants": int(n[0])})
    return summary


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
