"""Scatters of what features, texts and brain scores have in common, from the tables on disk."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.group.tables import MIN_COVERAGE
from bids_mllm.interfaces.check_record import check_path
from bids_mllm.interfaces.conditioning import read_checks
from bids_mllm.io.derivatives import MapName
from bids_mllm.io.files import read_json
from bids_mllm.io.results import ModelResult
from bids_mllm.report.conditioning import TEXT_NAMES, ModelChecks, coupling_curve, difference_range
from bids_mllm.report.content import Cell
from bids_mllm.report.coupling_figures import SCATTER
from bids_mllm.report.figures import FigureData
from bids_mllm.workflows.figure_tables import (
    WHOLE,
    atlas_tables,
    by_model,
    by_name,
    figure_name,
    known,
    number_of,
    region_words,
    score_rows,
)

MIN_POINTS = 3
#: Columns of the table of the coupling, in words.
QUANTITIES = {
    "text_embedding": "similarity to the other texts (model's embeddings)",
    "text_tfidf": "similarity to the other texts (TF-IDF)",
    "cka": "linear CKA with the features of the others",
    "relative_difference": "relative difference from the features of the others",
}


def coupling_figures(results: Sequence[ModelResult], *, participant: str | None = None) -> list[FigureData]:
    """Return, of models whose features were checked, scatters: features against texts, and either against brain scores.

    Parameters
    ----------
    results
        What participants finished.
    participant
        Label of the one whose figures are wanted; None for those of the group, which alone has a table of instructions
        against brain scores.
    """
    figures: list[FigureData] = []
    for name, own in by_name(results, participant).items():
        for model, of_model in by_model(own).items():
            output_dir = of_model[0].output_dir
            checks = read_checks(output_dir, model)
            if checks is None:
                continue
            figures += _text_figure(name, checks, output_dir)
            figures += _brain_figures(name, checks, of_model)
        for _, rows in atlas_tables(name, own[0].output_dir, "coupling") if participant is None else ():
            for model in dict.fromkeys(row["model"] for row in rows):
                figures += _instruction_figure(name, model, [row for row in rows if row["model"] == model])
    return figures


def _instruction_figure(name: MapName, model: str, rows: Sequence[Mapping[str, str]]) -> list[FigureData]:
    """Return how alike each instruction is to the others against how well its features predict, a point each."""
    points: list[dict[str, Cell]] = []
    panels: list[dict[str, Any]] = []
    for pooling in dict.fromkeys(row["pooling"] for row in rows):
        of_pooling = [row for row in rows if row["pooling"] == pooling]
        for column, words in QUANTITIES.items():
            panel = f"{pooling}, {column}"
            own: list[dict[str, Cell]] = []
            for key in dict.fromkeys(row["instruction"] for row in of_pooling):
                members = [row for row in of_pooling if row["instruction"] == key]
                both = [(number_of(row[column]), number_of(row["r"])) for row in members]
                values = np.array([one for one in both if None not in one], dtype=float)
                if values.size:
                    x, y = (float(value) for value in values.mean(axis=0))
                    own.append({"panel": panel, "point": key, "x": x, "y": y})
            line = regression(own)
            if line is not None:
                panels.append(_panel(panel, f"{pooling}: r = {line[2]:.2f}", words, "mean held-out r", line))
                points += own
    caption = (
        "One point an instruction: how alike it is to the others, against held-out r over all places under it, at the "
        "layer that training prefers, mean over participants; with the line of the least squares. With so few points "
        "there is no p."
    )
    return _scatter(name, model, "instructions", "Instructions and brain scores", caption, points, panels)


def _text_figure(name: MapName, checks: ModelChecks, output_dir: Path) -> list[FigureData]:
    """Return similarity of texts against that of features over pairs of instructions, at the last layer."""
    path = check_path(output_dir, checks.model, "coupling", ".json")
    if not checks.coupling or not path.is_file():
        return []
    facts = read_json(path)
    keys, texts = facts["Instructions"], facts["TextSimilarity"]
    rows: list[dict[str, Cell]] = []
    panels: list[dict[str, Any]] = []
    for pooling in dict.fromkeys(row["pooling"] for row in checks.coupling):
        layer = max(int(row["layer"]) for row in checks.coupling if row["pooling"] == pooling)
        pairs = [row for row in checks.pairs if (row["pooling"], row["layer"]) == (pooling, str(layer))]
        for text, matrix in texts.items():
            panel = f"{pooling}, {text}"
            own: list[dict[str, Cell]] = []
            for pair in pairs:
                a, b = pair["instruction_a"], pair["instruction_b"]
                cka = number_of(pair["cka"])
                # A text without a word of the others has no similarity: null in JSON.
                alike = matrix[keys.index(a)][keys.index(b)] if a in keys and b in keys else None
                if alike is not None and np.isfinite(alike) and cka is not None:
                    own.append({"panel": panel, "point": f"{a}-{b}", "x": float(alike), "y": cka})
            layers, r, p = coupling_curve(checks, pooling, text)
            told = (
                (known(float(r[layers.index(layer)])), known(float(p[layers.index(layer)])))
                if layer in layers
                else None
            )
            line = regression(own)
            if line is not None:
                words = f"{pooling}, layer {layer}: r = {line[2] if told is None or told[0] is None else told[0]:.2f}"
                if told and told[1] is not None:
                    words += f", p = {told[1]:.2g}"
                panels.append(
                    _panel(
                        panel,
                        words,
                        f"similarity of texts ({TEXT_NAMES.get(text, text)})",
                        "linear CKA of features",
                        line,
                    )
                )
                rows += own
    caption = (
        "One point a pair of instructions, at the last layer, with the line of the least squares; p by permuting "
        "instructions, not corrected."
    )
    return _scatter(name, checks.model, "texts", "Similarity of texts and features", caption, rows, panels)


def regression(rows: Sequence[Mapping[str, Cell]]) -> tuple[float, float, float] | None:
    """Return slope, intercept and r of y on x by least squares; None with few points or without spread."""
    x, y = (np.array([float(row[key] or 0.0) for row in rows]) for key in ("x", "y"))
    if len(rows) < MIN_POINTS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    slope = float(np.cov(x, y, bias=True)[0, 1] / x.var())
    return slope, float(y.mean() - slope * x.mean()), float(np.corrcoef(x, y)[0, 1])


def _panel(name: str, title: str, x: str, y: str, line: tuple[float, float, float]) -> dict[str, Any]:
    slope, intercept, r = (float(f"{value:.6g}") for value in line)
    return {
        "name": name, "title": title, "x_label": x, "y_label": y, "slope": slope, "intercept": intercept, "r": r,
    }  # fmt: skip


def _brain_figures(name: MapName, checks: ModelChecks, results: Sequence[ModelResult]) -> list[FigureData]:
    """Return how much instructions change features against the mean brain score, over layers."""
    figures: list[FigureData] = []
    for atlas, scores in score_rows(results).items():
        region = _whole(scores)
        rows: list[dict[str, Cell]] = []
        panels: list[dict[str, Any]] = []
        for pooling in dict.fromkeys(row["pooling"] for row in checks.pairs):
            changed = difference_range(checks, pooling)
            means = layer_means([row for row in scores if row["pooling"] == pooling and row["roi"] in region])
            own: list[dict[str, Cell]] = [
                {"panel": pooling, "point": str(layer), "x": float(value), "y": means[layer]}
                for layer, value in zip(changed.layers, changed.median, strict=True)
                if np.isfinite(value) and layer in means
            ]
            line = regression(own)
            if line is not None:
                words = f"{pooling}, {_place_words(region)}: r = {line[2]:.2f}"
                panels.append(
                    _panel(pooling, words, "relative difference between instructions", "mean held-out r", line)
                )
                rows += own
        caption = (
            f"One point a layer, numbered (0 = embedding): median difference between the features of two instructions "
            f"against held-out r in {_place_words(region)}, mean over participants and instructions, with the line of "
            "the least squares. Neighbouring layers are alike, so there is no p."
        )
        figures += _scatter(
            name,
            checks.model,
            "brain",
            "Difference between instructions and brain scores",
            caption,
            rows,
            panels,
            atlas=atlas,
        )
    return figures


def _whole(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the region that is the whole brain, or all areas where a table has none."""
    rois = dict.fromkeys(str(row["roi"]) for row in rows)
    return next(((roi,) for roi in WHOLE if roi in rois), tuple(rois))


def _place_words(region: Sequence[str]) -> str:
    return region_words(region[0]) if len(region) == 1 else f"{len(region)} regions, each counting the same"


def layer_means(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return the mean r of each layer over participants, conditions and regions that their masks cover."""
    collected: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row["layer"] != "best" and row["r"] is not None and (row["coverage"] or 0.0) >= MIN_COVERAGE:
            collected[int(row["layer"])].append(row["r"])
    return {layer: float(np.mean(values)) for layer, values in collected.items()}


def _scatter(
    name: MapName, model: str, desc: str, title: str, caption: str, rows: Sequence[Mapping[str, Cell]],
    panels: Sequence[Mapping[str, Any]], *, atlas: str | None = None,
) -> list[FigureData]:  # fmt: skip
    if not rows:
        return []
    told = "; ".join(f"{panel['name']}: r = {panel['r']:.2f}" for panel in panels)
    return [
        FigureData(
            kind=SCATTER,
            name=figure_name(name, "coupling", model=model, atlas=atlas, desc=desc),
            title=f"{title}: {model}",
            alt=f"Scatter of {title[0].lower()}{title[1:]} of {model}; {told}.",
            caption=f"{caption} Found: {told}.",
            rows=tuple(rows),
            options={"panels": list(panels)},
        )
    ]
