"""Classes of models against each other: over participants, and over the runs of one participant.

A class is what a model was made for, such as instruction-tuned or unimodal; its score is the mean over its models.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from bids_mllm.group.inference import sign_flip_over_participants, wilcoxon_over_participants
from bids_mllm.group.tables import MIN_COVERAGE
from bids_mllm.records import FloatArray

RANDOM = "random weights"
#: In the order in which pairs name them; the first of a pair is the one that is said to be better.
CLASSES = ("instruction-tuned", "in-context", "multimodal", "unimodal", "low-level", "feature table", RANDOM)
CONFIDENCE = 0.95

#: Ends of the interval of the mean over runs of values (n_runs,), weighted by the second array.
Interval = Callable[[FloatArray, FloatArray], tuple[float, float]]


def model_class(model: Mapping[str, Any]) -> str:
    """Return the class of a model.

    Parameters
    ----------
    model
        What sidecars say of it: Kind, of which the first words count, and Weights.

    Returns
    -------
    name : str
        One of `CLASSES`; a kind that is in none of them is a class of its own.
    """
    if model.get("Weights") == RANDOM.partition(" ")[0]:
        return RANDOM
    kind = str(model["Kind"])
    return next((name for name in CLASSES if kind == name or kind.startswith(f"{name} ")), kind)


def class_pairs(classes: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return every pair of the classes of these models (class by model), each in the order of `CLASSES`."""
    found = list(dict.fromkeys(classes.values()))
    ordered = [*(name for name in CLASSES if name in found), *(name for name in found if name not in CLASSES)]
    return [(a, b) for number, a in enumerate(ordered) for b in ordered[number + 1 :]]


def mean_interval(values: FloatArray) -> tuple[float, float, float]:
    """Mean of the finite values and its 95 % interval by Student's t; NaN where there are too few."""
    nan = float("nan")
    values = np.asarray(values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return nan, nan, nan
    mean = float(finite.mean())
    if finite.size == 1:
        return mean, nan, nan
    half = float(student.ppf((1 + CONFIDENCE) / 2, finite.size - 1) * finite.std(ddof=1) / np.sqrt(finite.size))
    return mean, mean - half, mean + half


def percent_difference(a: FloatArray, b: FloatArray) -> FloatArray:
    """``100 (a - b) / b``, NaN where b is not above 0."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    percent: FloatArray = np.full(a.shape, np.nan)
    np.divide(100 * (a - b), b, out=percent, where=b > 0)
    return percent


def compare_classes(rows: Sequence[Mapping[str, Any]], classes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Compare classes of models over participants, region by region.

    The score of a class in a participant is the mean r over its models that the participant has.

    Parameters
    ----------
    rows
        Scores of the nested choice of every participant, model and region: participant, model, roi, kind, coverage
        and r (NaN where undefined); those whose coverage is below `MIN_COVERAGE` do not count.
    classes
        Class by model.

    Returns
    -------
    comparisons : list of dict
        One a region and pair of classes that any participant has both of. mean_difference is the mean over
        participants of the first less the second, low and high its t interval; percent_difference, percent_low and
        percent_high the same for `percent_difference` of each participant, of whom n_percent have one.
    """
    regions: dict[str, str] = {}
    scores: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        regions.setdefault(row["roi"], row["kind"])
        if float(row["coverage"]) >= MIN_COVERAGE and np.isfinite(row["r"]):
            scores[row["roi"], classes[row["model"]], row["participant"]].append(float(row["r"]))
    people = list(dict.fromkeys(row["participant"] for row in rows))
    comparisons = []
    for roi, kind in regions.items():
        for first, second in class_pairs(classes):
            a, b = (np.array([_mean(scores.get((roi, name, who), ())) for who in people]) for name in (first, second))
            both = np.isfinite(a) & np.isfinite(b)
            if both.any():
                heads = {"roi": roi, "kind": kind, **_names(first, second, classes)}
                comparisons.append({**heads, **_over_participants(a[both], b[both])})
    return comparisons


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _names(first: str, second: str, classes: Mapping[str, str]) -> dict[str, str]:
    """Return both classes and their models."""
    models = [", ".join(model for model, own in classes.items() if own == name) for name in (first, second)]
    return {"class_a": first, "class_b": second, "models_a": models[0], "models_b": models[1]}


def _over_participants(a: FloatArray, b: FloatArray) -> dict[str, Any]:
    """Compare the scores (n_participants,) of two classes."""
    difference, low, high = mean_interval(a - b)
    percent = percent_difference(a, b)
    percent_mean, percent_low, percent_high = mean_interval(percent)
    flipped = sign_flip_over_participants(a[:, None], b[:, None])
    ranked = wilcoxon_over_participants(a[:, None], b[:, None])
    return {
        "unit": flipped.unit,
        "participant": None,
        "mean_a": float(a.mean()),
        "mean_b": float(b.mean()),
        "mean_difference": difference,
        "low": low,
        "high": high,
        "percent_difference": percent_mean,
        "percent_low": percent_low,
        "percent_high": percent_high,
        "n_percent": int(np.isfinite(percent).sum()),
        "n_participants": len(a),
        "n_runs": None,
        "p_sign_flip": float(flipped.p[0]),
        "p_wilcoxon": float(ranked.p[0]),
        "smallest_p": float(flipped.smallest_p[0]),
    }


def compare_classes_by_run(
    participant: str, by_run: Mapping[str, Mapping[str, float]], classes: Mapping[str, str], interval: Interval
) -> list[dict[str, Any]]:
    """Compare classes of models within one participant, whose runs are the unit.

    What is said holds for other runs of this participant.

    Parameters
    ----------
    participant
    by_run
        For each model the mean r of each run; runs that all models of both classes have count.
    classes
        Class by model.
    interval
        Gives the intervals of the mean difference and of the percent difference. The latter is a mean of the percents
        of runs weighted by what the second class scores, so that no run of that may be at 0 or below; otherwise
        percent_low and percent_high are NaN.

    Returns
    -------
    comparisons : list of dict
        Keys as of `compare_classes`, for the region all; percent_difference is that of the means over runs.
    """
    comparisons = []
    for first, second in class_pairs({model: classes[model] for model in by_run}):
        a, b = _run_means(by_run, classes, (first, second))
        if not len(a):
            continue
        flipped = sign_flip_over_participants(a[:, None], b[:, None])
        low, high = interval(a - b, np.ones(len(a)))
        percent = float(percent_difference(a.mean(), b.mean()))
        percent_low, percent_high = interval(percent_difference(a, b), b) if (b > 0).all() else (np.nan, np.nan)
        comparisons.append(
            {
                "roi": "all",
                "kind": "all",
                **_names(first, second, {model: classes[model] for model in by_run}),
                "unit": "run",
                "participant": participant,
                "mean_a": float(a.mean()),
                "mean_b": float(b.mean()),
                "mean_difference": float(flipped.difference[0]),
                "low": low,
                "high": high,
                "percent_difference": percent,
                "percent_low": percent_low,
                "percent_high": percent_high,
                "n_percent": int(np.isfinite(percent)),
                "n_participants": 1,
                "n_runs": len(a),
                "p_sign_flip": float(flipped.p[0]),
                "smallest_p": float(flipped.smallest_p[0]),
            }
        )
    return comparisons


def _run_means(
    by_run: Mapping[str, Mapping[str, float]], classes: Mapping[str, str], pair: tuple[str, str]
) -> Iterator[FloatArray]:
    """Give for both classes the means (n_runs,) over their models, of the runs that all of these have."""
    of_class = [[own for model, own in by_run.items() if classes[model] == name] for name in pair]
    every = [own for models in of_class for own in models]
    shared = [run for run in every[0] if all(np.isfinite(own.get(run, np.nan)) for own in every)]
    for models in of_class:
        yield np.array([[own[run] for run in shared] for own in models]).mean(axis=0)
