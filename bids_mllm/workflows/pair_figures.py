"""Figures of what pairs of instructions explain together and alone, from the tables on disk."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bids_mllm.group.partition import KINDS, PARTS, partition_means
from bids_mllm.io.derivatives import MapName
from bids_mllm.io.files import iter_tsv
from bids_mllm.io.results import ModelResult
from bids_mllm.report.content import Cell
from bids_mllm.report.figures import FigureData
from bids_mllm.report.partition_figures import SHARED, VENN
from bids_mllm.workflows.figure_tables import (
    WHOLE,
    by_model,
    by_name,
    figure_name,
    in_order,
    known,
    labels_of,
    number_of,
    region_words,
    short_names,
    who_words,
)
from bids_mllm.workflows.statistics import INSTRUCTED_POOLINGS

#: Label in file names of each measure of a partition.
MEASURES = {"R2": "", "normalized r": "normalized"}
_FLOOR = "parts below 0 are drawn as 0"
#: Column of the percent of what the circles show, unlike that of the joint.
_OF_CIRCLES = "circles_shared_percent"


def partition_figures(results: Sequence[ModelResult], *, participant: str | None = None) -> list[FigureData]:
    """Return, of models with a partition, a heat map a region and one figure of Venn diagrams for each pooling.

    Regions are all places and the sets of the atlas, without the former where a set is the whole brain.

    Parameters
    ----------
    results
        What participants finished.
    participant
        Label of the one whose figures are wanted; None for those of the group.
    """
    figures: list[FigureData] = []
    for name, own in by_name(results, participant).items():
        for model, of_model in by_model(own).items():
            rows: list[dict[str, str]] = []
            for result in of_model:
                path = result.path("partition", None, extension=".tsv")
                rows += (row for row in iter_tsv(path) if row["kind"] in KINDS) if path.is_file() else []
            for measure in dict.fromkeys(row["measure"] for row in rows):
                parts = mean_parts([row for row in rows if row["measure"] == measure])
                for pooling in INSTRUCTED_POOLINGS:
                    own_parts = [row for row in parts if _both_of(row, pooling)]
                    if own_parts:
                        figures += _of_pooling(name, model, pooling, own_parts)
    return figures


def _both_of(row: Mapping[str, Any], pooling: str) -> bool:
    return all(str(row[key]).startswith(pooling) for key in ("condition_a", "condition_b"))


def mean_parts(rows: Sequence[Mapping[str, str]]) -> tuple[dict[str, Cell], ...]:
    """Return the means over participants of the parts of each pair in all places and in each set.

    `shared_percent` is that of the table of the group: the shared part in per cent of the joint score, below 0 or above
    100 where a part is below 0; None where the joint is not above 0.
    """
    texts = [{part: number_of(row[part]) for part in PARTS} for row in rows]
    parts = [{part: float("nan") if value is None else value for part, value in own.items()} for own in texts]
    means = partition_means([{**row, **own} for row, own in zip(rows, parts, strict=True)])
    kinds = {row["roi"]: row["kind"] for row in means}
    if WHOLE[0] in kinds:
        kinds = {roi: kind for roi, kind in kinds.items() if kind != "all"}
    order = in_order(kinds)
    shown = sorted((row for row in means if row["roi"] in kinds), key=lambda row: order.index(row["roi"]))
    told = ("roi", "kind", "measure", "condition_a", "condition_b")
    table = []
    for row in shown:
        own = {part: known(row[part]) for part in PARTS}
        facts = {"shared_percent": known(row["shared_percent"]), "n_participants": row["n_participants"]}
        table.append({name: row[name] for name in told} | own | facts)
    return tuple(table)


def _of_pooling(name: MapName, model: str, pooling: str, parts: Sequence[Mapping[str, Cell]]) -> list[FigureData]:
    """Return the heat maps and the Venn diagrams of one model, pooling and measure."""
    names = list(dict.fromkeys(str(row[key]) for key in ("condition_a", "condition_b") for row in parts))
    short = short_names(names)
    labels = labels_of(dict.fromkeys(str(row["roi"]) for row in parts))
    figures = [
        _heat_figure(name, model, pooling, [row for row in parts if row["roi"] == roi], short, desc)
        for roi, desc in labels.items()
        if any(row["roi"] == roi and row["shared_percent"] is not None for row in parts)
    ]
    return [*figures, *_venn_figure(name, model, pooling, parts, short)]


def _heat_figure(
    name: MapName, model: str, pooling: str, own: Sequence[Mapping[str, Cell]], short: Mapping[str, str], desc: str
) -> FigureData:
    roi, (measure, label) = region_words(str(own[0]["roi"])), _measure(own)
    return FigureData(
        kind=SHARED,
        name=figure_name(name, "sharedheatmap", model=model, desc=f"{pooling}{desc}{label}"),
        title=f"What pairs of instructions share: {model}, {roi}, {measure}, {pooling}",
        alt=f"Shared part of {len(own)} pairs of instructions of {model} in {roi}: {_range(own, short)}.",
        caption=f"Shared part in per cent of the joint {measure}. A part below 0, as noise gives, stays so: the shared "
        f"one is then below 0 or, with a unique one, can be above 100; colours end at 0 and 100. "
        f"{_who(own)}.{_paper(measure)}",
        rows=tuple(own),
        options={"conditions": list(short), "labels": dict(short), "label": f"shared, % of the joint {measure}"},
    )


def _venn_figure(
    name: MapName, model: str, pooling: str, parts: Sequence[Mapping[str, Cell]], short: Mapping[str, str]
) -> list[FigureData]:
    rois = list(dict.fromkeys(str(row["roi"]) for row in parts))
    chosen = _chosen_pairs(parts, rois[0])
    rows = tuple(
        {**row, _OF_CIRCLES: _of_circles(row), "pair": chosen[row["condition_a"], row["condition_b"]]}
        for row in sorted(parts, key=lambda row: _rank(row, rois, chosen))
        if (row["condition_a"], row["condition_b"]) in chosen
    )
    if not rows:
        return []
    measure, label = _measure(parts)
    shares = "; ".join(
        f"{region_words(str(row['roi']))}, {short[str(row['condition_a'])]} and {short[str(row['condition_b'])]}: "
        f"{_percent(row[_OF_CIRCLES])} shared"
        for row in rows
    )
    return [
        FigureData(
            kind=VENN,
            name=figure_name(name, "venn", model=model, desc=f"{pooling}{label}"),
            title=f"Unique and shared parts of instructions: {model}, {measure}, {pooling}",
            alt=f"Two circles a pair of instructions, areas in proportion to the parts of {measure}; {shares}.",
            caption=f"Pairs whose shared part is least, the median and most of the joint in {region_words(rois[0])}. "
            f"Per cent above the circles are of the joint. Areas of circles and overlap are in proportion to unique "
            f"and shared parts; {_FLOOR}, and per cent beside the circles are of the sum of what is drawn. "
            f"{_who(rows)}.{_paper(measure)}",
            rows=rows,
            options={"labels": dict(short)},
        )
    ]


def _of_circles(row: Mapping[str, Cell]) -> float | None:
    """Return the shared part in per cent of what is drawn: the sum of all three parts, each at least 0."""
    unique_a, unique_b, shared = (max(float(row[part] or 0.0), 0.0) for part in PARTS[:-1])
    total = unique_a + unique_b + shared
    return 100 * shared / total if total > 0 else None


def _measure(parts: Sequence[Mapping[str, Cell]]) -> tuple[str, str]:
    """Return the measure of a partition and its label in file names."""
    measure = str(parts[0]["measure"])
    return measure, MEASURES.get(measure, "other")


def _who(parts: Sequence[Mapping[str, Cell]]) -> str:
    words = who_words(row["n_participants"] for row in parts)
    return words[0].upper() + words[1:]


def _paper(measure: str) -> str:
    return "" if measure == "R2" else " Correlations do not add up, R2 does; this is how arXiv 2506.08277 counts."


def _percent(value: Cell) -> str:
    return "nothing" if value is None else f"{float(value):.0f} %"


def _range(rows: Sequence[Mapping[str, Cell]], short: Mapping[str, str]) -> str:
    ranked = sorted(
        (row for row in rows if row["shared_percent"] is not None), key=lambda row: float(row["shared_percent"] or 0.0)
    )
    words = [
        f"{word} {_percent(row['shared_percent'])} ({short[str(row['condition_a'])]}, {short[str(row['condition_b'])]})"
        for word, row in (("lowest", ranked[0]), ("highest", ranked[-1]))
    ]
    median = float(np.median([float(row["shared_percent"] or 0.0) for row in ranked]))
    return f"{words[0]}, median {median:.0f} %, {words[1]}"


def _chosen_pairs(parts: Sequence[Mapping[str, Cell]], roi: str) -> dict[tuple[Cell, Cell], str]:
    """Return the pairs that share least, the median and most in a region."""
    ranked = sorted(
        (row for row in parts if row["roi"] == roi and row["shared_percent"] is not None),
        key=lambda row: float(row["shared_percent"] or 0.0),
    )
    chosen: dict[tuple[Cell, Cell], str] = {}
    if ranked:
        for place, word in ((0, "least shared"), (len(ranked) - 1, "most shared"), (len(ranked) // 2, "median")):
            chosen.setdefault((ranked[place]["condition_a"], ranked[place]["condition_b"]), word)
    return chosen


def _rank(
    row: Mapping[str, Cell], rois: Sequence[str], chosen: Mapping[tuple[Cell, Cell], str]
) -> tuple[int, int]:  # fmt: skip
    words = ("least shared", "median", "most shared")
    word = chosen.get((row["condition_a"], row["condition_b"]), words[-1])
    return rois.index(str(row["roi"])), words.index(word)
