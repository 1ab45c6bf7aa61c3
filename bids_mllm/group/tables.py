"""Tests of models over participants, and regions over participants.

The unit of every test here is the participant: voxels are not independent samples. With a handful of participants no
test can reach the usual levels, so the smallest p that it could reach stands beside each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bids_mllm.group.inference import sign_flip_over_participants, wilcoxon_over_participants
from bids_mllm.group.maps import mean_maps

# Not the label in a file: distributions of one atlas differ in it, names do not.
ROI_KEYS = ("model", "condition", "pooling", "instruction", "layer", "roi", "kind")
ROI_SCORES = ("r", "r2", "cv_r2", "r_normalized")
#: Participants whose mask holds less than this share of a region take no part in its mean.
MIN_COVERAGE = 0.5


def group_tests(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Test over participants whether one model predicts a region better than another.

    Parameters
    ----------
    rows
        Rows of all participants with the keys participant, model_a, model_b, roi and mean_difference (None or NaN
        where undefined), and coverage; those whose coverage is below `MIN_COVERAGE` do not count.

    Returns
    -------
    tests : list of dict
        One a pair and region in the order of first appearance, with mean_difference (mean over participants),
        n_participants, p_wilcoxon and p_sign_flip (two-sided, exact), smallest_p (what that many participants can
        reach at best) and unit.
    """
    collected: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        key = (row["model_a"], row["model_b"], row["roi"])
        value = _number(row["mean_difference"]) if _covered(row) else float("nan")
        collected.setdefault(key, {})[row["participant"]] = value
    tests = []
    for (model_a, model_b, roi), by_participant in collected.items():
        difference = np.array(list(by_participant.values()))[:, None]
        nothing = np.zeros_like(difference)
        wilcoxon = wilcoxon_over_participants(difference, nothing)
        flipped = sign_flip_over_participants(difference, nothing)
        tests.append(
            {
                "model_a": model_a,
                "model_b": model_b,
                "roi": roi,
                "mean_difference": float(flipped.difference[0]),
                "n_participants": int(flipped.n_participants[0]),
                "p_wilcoxon": float(wilcoxon.p[0]),
                "p_sign_flip": float(flipped.p[0]),
                "smallest_p": float(flipped.smallest_p[0]),
                "unit": flipped.unit,
            }
        )
    return tests


def roi_summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard error over participants of the long rows of regions.

    Parameters
    ----------
    rows
        Rows of all participants, with the keys model, condition, pooling, instruction, layer, roi, kind, roi_index,
        coverage and the scores r, r2, cv_r2 and r_normalized (None or NaN where undefined).

    Returns
    -------
    summary : list of dict
        The same keys in the order of first appearance, each score's mean and ``<score>_sem``, n_participants (those
        with a finite r and a coverage of at least `MIN_COVERAGE`, over whom the means are taken) and lowest_coverage
        (over all participants).
    """
    collected: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        collected.setdefault(tuple(row[key] for key in ROI_KEYS), []).append(row)
    summary = []
    for key, members in collected.items():
        nothing = [float("nan")] * len(ROI_SCORES)
        values = [[_number(row[name]) for name in ROI_SCORES] if _covered(row) else nothing for row in members]
        mean, sem, n = mean_maps([np.array(one) for one in values])
        entry: dict[str, Any] = dict(zip(ROI_KEYS, key, strict=True))
        for column, name in enumerate(ROI_SCORES):
            entry[name], entry[f"{name}_sem"] = float(mean[column]), float(sem[column])
        entry |= {"roi_index": members[0]["roi_index"], "n_participants": int(n[0])}
        summary.append({**entry, "lowest_coverage": min(float(row["coverage"]) for row in members)})
    return summary


def coverage_warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of which regions the masks of which participants hold too little for the means over participants.

    Parameters
    ----------
    rows
        Rows of all participants with the keys participant, roi and coverage.

    Returns
    -------
    warnings : list of str
        One sentence a participant with such regions, in the order of first appearance.
    """
    short: dict[str, dict[str, float]] = {}
    for row in rows:
        if not _covered(row):
            short.setdefault(row["participant"], {}).setdefault(row["roi"], float(row["coverage"]))
    return [
        f"sub-{participant} takes no part in the means of {_some(regions)}, of which its mask holds less than "
        f"{MIN_COVERAGE:.0%}."
        for participant, regions in short.items()
    ]


def _some(regions: Mapping[str, float], n: int = 10) -> str:
    shown = [f"{roi} ({coverage:.0%})" for roi, coverage in list(regions.items())[:n]]
    more = f" and {len(regions) - n} more regions" if len(regions) > n else ""
    return ", ".join(shown) + more


def _covered(row: Mapping[str, Any]) -> bool:
    return float(row["coverage"]) >= MIN_COVERAGE


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
