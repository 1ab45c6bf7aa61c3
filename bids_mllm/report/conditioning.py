"""The part of a page that says whether instructions make a difference, and what a model generated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from bids_mllm.records import FloatArray
from bids_mllm.report.content import Block, Bullets, Cell, Heading, Paragraph, Picture, Table
from bids_mllm.report.style import CHART_STYLE, FAINT, INK, PALETTE, new_figure, svg_bytes

# What the check calls no difference, drawn as a line; differences below the axis are drawn at its foot.
NO_DIFFERENCE = 1e-3
FOOT = 1e-5
SIGNIFICANT = 0.05
TEXT_NAMES = {"embedding": "model's embeddings", "tfidf": "TF-IDF"}
_TEXT_LINES = {"embedding": "-", "tfidf": "--"}
_MARKERS = ("o", "s", "^", "D")


@dataclass(frozen=True)
class ModelChecks:
    """The checks of one model as they were written.

    `summary` is the JSON beside the table of pairs; `pairs`, `matrices` and `coupling` are the rows of the
    three tables as text, ``n/a`` where there is no value.
    """

    model: str
    summary: Mapping[str, Any]
    pairs: tuple[Mapping[str, str], ...] = ()
    matrices: tuple[Mapping[str, str], ...] = ()
    coupling: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class LayerRange:
    """Median, lowest and highest value on each of some layers, (n_layers,) each; NaN where there is no value."""

    layers: tuple[int, ...]
    median: FloatArray
    lowest: FloatArray
    highest: FloatArray


def conditioning_blocks(checks: ModelChecks) -> tuple[Block, ...]:
    """Return what a page shows of one model: warnings in words first, then numbers and the figure."""
    warnings = tuple(checks.summary["Warnings"])
    blocks: list[Block] = [Heading(checks.model)]
    if warnings:
        blocks.append(Bullets(warnings, "warning"))
    blocks.append(Paragraph(_verdict_words(checks)))
    if checks.summary["Poolings"]:
        blocks.append(pooling_table(checks))
    if any(row["relative_difference"] != "n/a" for row in checks.pairs):
        blocks.append(conditioning_picture(checks))
    return tuple(blocks)


def conditioning_warnings(checks: Sequence[ModelChecks]) -> tuple[str, ...]:
    """Return the warnings of all models, for the list at the head of a page."""
    return tuple(warning for own in checks for warning in own.summary["Warnings"])


def _verdict_words(checks: ModelChecks) -> str:
    summary = checks.summary
    of_all = f"{summary['Clips']} clips checked"
    if not summary["Poolings"]:
        return f"{of_all}; without instructions there is nothing to compare."
    return (
        f"{of_all}, {summary['ClipsCompared']} of them compared between instructions, each column of the features "
        "centred over the clips."
    )


def pooling_table(checks: ModelChecks) -> Table:
    """Return for each pooling how much its instructions differ, how far from their null instructions, the coupling."""
    kinds = list(dict.fromkeys(k for p in checks.summary["Poolings"].values() for k in p["MedianDifferenceFromNull"]))
    texts = list(dict.fromkeys(row["text_similarity"] for row in checks.coupling))
    columns = (
        "Pooling", "Instructions", "Make a difference", "Relative difference", "Linear CKA",
        *(f"Difference from null, {kind}" for kind in kinds),
        *(f"Median r with texts, {TEXT_NAMES.get(text, text)}" for text in texts),
    )  # fmt: skip
    rows = tuple(
        (
            pooling,
            facts["Instructions"],
            {True: "yes", False: "no", None: None}[facts["Conditioned"]],
            _range_words(facts["RelativeDifference"]),
            _range_words(facts["CKA"]),
            *(_number(facts["MedianDifferenceFromNull"].get(kind)) for kind in kinds),
            *(_median_r(checks, pooling, text) for text in texts),
        )
        for pooling, facts in checks.summary["Poolings"].items()
    )
    caption = (
        f"Instructions of {checks.model} compared: median (lowest to highest) over pairs of instructions and layers "
        "above the embedding. r is between similarity of texts and linear CKA."
    )
    return Table(caption, columns, rows)


def _range_words(values: Mapping[str, float | None]) -> str | None:
    if values["Median"] is None:
        return None
    return f"{_number(values['Median'])} ({_number(values['Smallest'])} to {_number(values['Largest'])})"


def _number(value: float | None) -> str | None:
    """Return a number with three digits that matter, so that small differences do not become zero."""
    return None if value is None else f"{value:.3g}"


def _median_r(checks: ModelChecks, pooling: str, text: str) -> Cell:
    _, r, _ = coupling_curve(checks, pooling, text)
    finite = r[np.isfinite(r)]
    return float(np.median(finite)) if finite.size else None


def difference_range(checks: ModelChecks, pooling: str, *, null: str | None = None) -> LayerRange:
    """Return the relative difference of the pairs of a pooling by layer.

    Parameters
    ----------
    checks
    pooling
    null
        None for the pairs of real instructions, else the kind of null instruction that one of the two is. A
        null instruction made from another instruction's text does not count.
    """
    by_layer: dict[int, list[float]] = {}
    for row in checks.pairs:
        if row["pooling"] == pooling and _belongs(row, null):
            by_layer.setdefault(int(row["layer"]), []).append(_float(row["relative_difference"]))
    layers = tuple(sorted(by_layer))
    values = [np.array([v for v in by_layer[layer] if np.isfinite(v)] or [np.nan]) for layer in layers]
    return LayerRange(
        layers,
        np.array([np.median(own) for own in values]),
        np.array([own.min() for own in values]),
        np.array([own.max() for own in values]),
    )


def _belongs(row: Mapping[str, str], null: str | None) -> bool:
    a, b = (row["instruction_a"], row["null_a"]), (row["instruction_b"], row["null_b"])
    if null is None:
        return a[1] == b[1] == "n/a"
    (real, kind_of_real), (control, kind) = (b, a) if a[1] != "n/a" else (a, b)
    return kind_of_real == "n/a" and kind == null and (null == "empty" or control == f"{real}{null}")


def coupling_curve(checks: ModelChecks, pooling: str, text: str) -> tuple[tuple[int, ...], FloatArray, FloatArray]:
    """Return layers, r and p of text similarity against linear CKA for a pooling."""
    wanted = (pooling, text, "cka")
    rows = [
        row
        for row in checks.coupling
        if (row["pooling"], row["text_similarity"], row["representation_similarity"]) == wanted
    ]
    layers = tuple(int(row["layer"]) for row in rows)
    return layers, np.array([_float(row["r"]) for row in rows]), np.array([_float(row["p"]) for row in rows])


def _float(text: str) -> float:
    return float("nan") if text == "n/a" else float(text)


def conditioning_picture(checks: ModelChecks) -> Picture:
    """Return the figure of one model: difference between instructions, and coupling with texts, by layer."""
    words = [
        f"with the pooling {pooling} the median difference over layers is {_number(median)}"
        for pooling, facts in checks.summary["Poolings"].items()
        if (median := facts["RelativeDifference"]["Median"]) is not None
    ]
    coupled = any(row["r"] != "n/a" for row in checks.coupling)
    right = " and, on the right, the correlation of text similarity with similarity of features" if coupled else ""
    alt = (
        f"Relative difference between the features of {checks.model} under different instructions against the "
        f"layer{right}; {'; '.join(words)}."
    )
    caption = (
        "Left: relative difference between instructions, median over pairs as a line, lowest to highest as a band; "
        f"below the dotted line ({NO_DIFFERENCE:g}) instructions make no difference."
    )
    if coupled:
        caption += f" Right: r of text similarity with linear CKA; filled where uncorrected p is below {SIGNIFICANT}."
    return Picture(conditioning_chart(checks), alt, caption)


def conditioning_chart(checks: ModelChecks) -> bytes:
    """Draw the relative difference between instructions by layer and, where there is one, the coupling with texts.

    Returns
    -------
    bytes
        An SVG.
    """
    poolings = list(dict.fromkeys(row["pooling"] for row in checks.pairs))
    coupled = any(row["r"] != "n/a" for row in checks.coupling)
    with rc_context(dict(CHART_STYLE)):
        figure = new_figure(9.0, 3.4)
        axes = figure.subplots(1, 2 if coupled else 1, squeeze=False)[0]
        _draw_differences(axes[0], checks, poolings)
        if coupled:
            _draw_coupling(axes[1], checks, poolings)
        for own in axes:
            own.set_xlabel("layer (0 = embedding)")
            own.grid(axis="y", color=FAINT, linewidth=0.5)
            own.xaxis.get_major_locator().set_params(integer=True)
            own.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7.5, ncols=2, handlelength=2.6)
        return svg_bytes(figure)


def _draw_differences(axes: Axes, checks: ModelChecks, poolings: Sequence[str]) -> None:
    """Draw a line and a band for each pooling, and dotted and dashed lines for the null instructions."""
    kinds = list(dict.fromkeys(row["null_b"] for row in checks.pairs if row["null_b"] != "n/a"))
    for number, pooling in enumerate(poolings):
        colour, marker = PALETTE[number % len(PALETTE)], _MARKERS[number % len(_MARKERS)]
        real = difference_range(checks, pooling)
        if real.layers:
            axes.fill_between(
                real.layers, _lifted(real.lowest), _lifted(real.highest), color=colour, alpha=0.18, linewidth=0
            )
            axes.plot(
                real.layers, _lifted(real.median), color=colour, marker=marker, markersize=3.5, linewidth=1.6,
                label=pooling,
            )  # fmt: skip
        for line, kind in zip(("--", "-.", ":"), kinds, strict=False):
            null = difference_range(checks, pooling, null=kind)
            if null.layers:
                axes.plot(
                    null.layers, _lifted(null.median), color=colour, linestyle=line, linewidth=1.2,
                    label=f"{pooling}, from {kind} null",
                )  # fmt: skip
    axes.axhline(NO_DIFFERENCE, color=INK, linestyle=":", linewidth=1.0)
    axes.set_yscale("log")
    axes.set_ylim(FOOT / 1.5, 3.0)
    axes.set_ylabel("relative difference")
    axes.set_title("Between instructions")


def _lifted(values: FloatArray) -> FloatArray:
    """Return values with those below the foot of the logarithmic axis put on it."""
    return np.maximum(values, FOOT)


def _draw_coupling(axes: Axes, checks: ModelChecks, poolings: Sequence[str]) -> None:
    """Draw r by layer, one colour a pooling and one line style a similarity of texts."""
    for number, pooling in enumerate(poolings):
        colour, marker = PALETTE[number % len(PALETTE)], _MARKERS[number % len(_MARKERS)]
        for text in dict.fromkeys(row["text_similarity"] for row in checks.coupling):
            layers, r, p = coupling_curve(checks, pooling, text)
            if not layers:
                continue
            label = f"{pooling}, {TEXT_NAMES.get(text, text)}"
            axes.plot(layers, r, color=colour, linestyle=_TEXT_LINES.get(text, ":"), linewidth=1.4, label=label)
            at = np.asarray(layers)
            for chosen, face in ((p < SIGNIFICANT, colour), (~(p < SIGNIFICANT), "white")):
                axes.plot(
                    at[chosen], r[chosen], linestyle="none", marker=marker, markersize=4, color=colour,
                    markerfacecolor=face,
                )  # fmt: skip
    axes.axhline(0.0, color=INK, linewidth=0.8)
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("r over pairs of instructions")
    axes.set_title("Texts against features")


def text_samples(
    film: str, rows: Sequence[Mapping[str, str]], *, model: str, instructions: Sequence[str] = (), n_clips: int = 3
) -> Table:
    """Return generated texts of a few clips of one film under every instruction.

    Parameters
    ----------
    film
        The stimulus, for the caption.
    rows
        Rows of text with the columns `start` and `end` (seconds on the stimulus clock), `instruction` (key)
        and `text`; ``n/a`` where a window has no text.
    model
    instructions
        Keys to show, in this order; all where empty.
    n_clips
        Clips shown, evenly spaced over those that have a text.
    """
    told = [row for row in rows if row["text"] != "n/a"]
    keys = instructions or tuple(dict.fromkeys(row["instruction"] for row in told))
    clips = sorted({(float(row["start"]), float(row["end"])) for row in told if row["instruction"] in keys})
    chosen = [
        clips[i] for i in dict.fromkeys(np.linspace(0, len(clips) - 1, min(n_clips, len(clips))).round().astype(int))
    ]
    texts = {(row["instruction"], float(row["start"]), float(row["end"])): row["text"] for row in told}
    shown = tuple(
        (key, f"{start:.2f} to {end:.2f}", texts[key, start, end])
        for start, end in chosen
        for key in keys
        if (key, start, end) in texts
    )
    caption = f"What {model} generated for {len(chosen)} of {len(clips)} clips of {film}."
    return Table(caption, ("Instruction", "Clip (s)", "Generated text"), shown)
