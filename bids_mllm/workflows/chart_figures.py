"""Charts of the models, the layers and the choices in each region, gathered from the tables on disk."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bids_mllm.group.tables import MIN_COVERAGE, roi_summary
from bids_mllm.io.derivatives import MapName
from bids_mllm.io.files import read_tsv
from bids_mllm.io.results import ModelResult, table_paths
from bids_mllm.report.bar_figures import BARS, CHOICES, CLASS_STYLES, FLAGS
from bids_mllm.report.content import Cell
from bids_mllm.report.figures import FigureData
from bids_mllm.report.layer_figures import CURVES, HEAT_MAP
from bids_mllm.workflows.figure_tables import (
    atlas_tables,
    by_model,
    by_name,
    classes_of,
    figure_name,
    in_order,
    known,
    labels_of,
    number_of,
    region_words,
    score_rows,
    short_names,
    table_rows,
    who_words,
)
from bids_mllm.workflows.pair_figures import partition_figures
from bids_mllm.workflows.scatter_figures import coupling_figures

#: Areas up to which each has bars of its own where an atlas has neither groups nor sets, and rows of a heat map.
MAX_BAR_AREAS = 12
MAX_LAYER_AREAS = 40
#: Largest false discovery rate of a difference that counts.
LEVEL = 0.05
MEASURES = {"r": "mean held-out r", "r_normalized": "mean r over the noise ceiling"}
_ORDERED = "layer"

Rows = Sequence[Mapping[str, Any]]


def chart_figures(results: Sequence[ModelResult], *, participant: str | None = None) -> list[FigureData]:
    """Return every chart that the tables on disk allow.

    Parameters
    ----------
    results
        What participants finished.
    participant
        Label of the one whose charts are wanted; None for those of the group.

    Returns
    -------
    figures : list of FigureData
        Bars, layers, choices, pairs of instructions, couplings; none of a kind whose tables are missing.
    """
    return [
        *score_figures(results, participant=participant),
        *choice_figures(results, participant=participant),
        *partition_figures(results, participant=participant),
        *coupling_figures(results, participant=participant),
    ]


def score_figures(results: Sequence[ModelResult], *, participant: str | None = None) -> list[FigureData]:
    """Return bars of the models in each region, and curves and a heat map of the layers of each model.

    Each table of scores is read once. Parameters as of `chart_figures`.
    """
    figures: list[FigureData] = []
    for name, own in by_name(results, participant).items():
        best: dict[str, list[dict[str, Any]]] = defaultdict(list)
        of_layers: list[FigureData] = []
        for of_model in by_model(own).values():
            for atlas, rows in score_rows(of_model).items():
                best[atlas] += [row for row in rows if row["condition"] == row["layer"] == "best"]
                of_layers += _layer_figures(name, atlas, rows)
        compared, classes = table_rows(own, "modelcomparison"), classes_of(own)
        for atlas, rows in best.items():
            figures += _bar_figures(name, atlas, rows, compared, classes)
        figures += of_layers
    return figures


def _bar_figures(
    name: MapName, atlas: str, best: Rows, compared: Sequence[Mapping[str, str]], classes: Mapping[str, str]
) -> list[FigureData]:
    """Return one figure a set, group and, where there are neither and they are few, area."""
    kinds = {row["roi"]: row["kind"] for row in best}
    areas = [roi for roi, kind in kinds.items() if kind == "area"]
    drawn = [roi for roi in in_order(kinds) if kinds[roi] != "area" or len(areas) <= MAX_BAR_AREAS]
    labels = labels_of(drawn)
    figures = []
    for roi in drawn:
        own = [row for row in best if row["roi"] == roi]
        rows = bar_rows(own, better_than(own, atlas, compared, classes), classes)
        if rows:
            title = f"{region_words(roi)} ({atlas})"
            figures.append(
                FigureData(
                    kind=BARS,
                    name=figure_name(name, "bars", atlas=atlas, desc=labels[roi]),
                    title=f"Models in {title}",
                    alt=_bar_alt(rows, title),
                    caption=_bar_caption(rows, classes, len({row["participant"] for row in own if _counts(row)})),
                    rows=rows,
                    options={"labels": {row["measure"]: MEASURES[str(row["measure"])] for row in rows}},
                )
            )
    return figures


def better_than(
    best: Rows, atlas: str, compared: Sequence[Mapping[str, str]], classes: Mapping[str, str]
) -> dict[str, dict[str, bool | None]]:
    """Return for each model in one region whether it is better than each model of a class within every participant.

    Every participant is who has a score of any model in the region; without that of the model there is no flag.

    Parameters
    ----------
    best
        Rows of scores of one region, of the nested choice.
    atlas
        Name of the atlas of the region.
    compared
        Rows of the comparisons within participants, as text; of several atlases, whose names stand before regions.
    classes
        Class of each model.

    Returns
    -------
    better : dict of dict
        Class by model to True or False; None where the model is of that class itself or no model is.
    """
    favours: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    rois = {name for row in best for name in (row["roi"], f"{atlas}:{row['roi']}")}
    for row in compared:
        if row["roi"] in rois:
            difference, q = number_of(row["mean_difference"]), number_of(row["q"])
            told = difference is not None and q is not None and q <= LEVEL
            person, a, b = row["participant"], row["model_a"], row["model_b"]
            favours[person, a, b].append(told and (difference or 0.0) > 0)
            favours[person, b, a].append(told and (difference or 0.0) < 0)
    models = dict.fromkeys(row["model"] for row in best)
    everyone = {row["participant"] for row in best if _counts(row)}
    better: dict[str, dict[str, bool | None]] = {}
    for model in models:
        people = {row["participant"] for row in best if row["model"] == model and _counts(row)}
        better[model] = {}
        for flag in FLAGS:
            others = [other for other in models if classes[other] == flag]
            if not others or classes[model] == flag:
                better[model][flag] = None
                continue
            found = [favours.get((person, model, other), [False]) for person in people for other in others]
            better[model][flag] = bool(people) and people == everyone and all(all(one) for one in found)
    return better


def _counts(row: Mapping[str, Any]) -> bool:
    return row["r"] is not None and float(row["coverage"]) >= MIN_COVERAGE


def bar_rows(
    best: Rows, better: Mapping[str, Mapping[str, bool | None]], classes: Mapping[str, str]
) -> tuple[dict[str, Cell], ...]:
    """Return the rows of bars of one region: per measure and model its mean, then its participants.

    Models stand by class and, within a class, from the highest mean r to the lowest. The flags are on the rows of r,
    which is what the tests are of.
    """
    order, rows = list(CLASS_STYLES), []
    summary = [
        row for row in roi_summary([one for one in best if one["coverage"] is not None]) if row["n_participants"]
    ]
    summary.sort(key=lambda row: -row["r"])
    summary.sort(key=lambda row: order.index(classes[row["model"]]) if classes[row["model"]] in order else len(order))
    for measure in MEASURES:
        if measure != "r" and not any(known(row[measure]) is not None for row in summary):
            continue
        for row in summary:
            model, flagged = row["model"], better[row["model"]] if measure == "r" else {}
            flags = {f"better_than_{flag}": _integer(flagged.get(flag)) for flag in FLAGS}
            first = {"measure": measure, "model": model, "class": classes[model]}
            mean = {"participant": None, "value": known(row[measure]), "sem": known(row[f"{measure}_sem"])}
            own = [one for one in best if one["model"] == model and _counts(one) and one[measure] is not None]
            rows.append({**first, **mean, "n_participants": len(own), **flags})
            for one in own if len(own) > 1 else ():
                dot = {"participant": one["participant"], "value": one[measure], "sem": None, "n_participants": None}
                rows.append({**first, **dot, **dict.fromkeys(flags)})
    return tuple(rows)


def _integer(value: bool | None) -> int | None:
    return None if value is None else int(value)


def _bar_alt(rows: Sequence[Mapping[str, Cell]], title: str) -> str:
    means = [row for row in rows if row["participant"] is None and row["measure"] == "r" and row["value"] is not None]
    ranked = sorted(means, key=lambda row: -float(row["value"] or 0.0))
    told = ", ".join(f"{row['model']} {float(row['value'] or 0.0):.3f}" for row in ranked[:12])
    more = f" and {len(ranked) - 12} more" if len(ranked) > 12 else ""
    return f"Bars of the mean held-out r of {len(ranked)} models in {title}, from high to low: {told}{more}."


def _bar_caption(rows: Sequence[Mapping[str, Cell]], classes: Mapping[str, str], n_people: int) -> str:
    means = [row for row in rows if row["participant"] is None and row["measure"] == "r"]
    counts = [row["n_participants"] for row in means]
    n, who = max(int(count or 0) for count in counts), who_words(counts)
    shown = {str(row["model"]) for row in means}
    dots = "dots are the participants; the line is the standard error over participants"
    words = [f"Condition and layer chosen inside training; {who}, {dots}."]
    if n < 2:
        each = " a model, not always the same" if n_people > 1 else ""
        words = [f"Condition and layer chosen inside training; {who}{each}."]
    whom = "every" if n_people > 1 else "this"
    for flag, symbol in zip(FLAGS, ("star", "diamond"), strict=True):
        others = [model for model in classes if classes[model] == flag and model in shown]
        if not others:
            words.append(f"No {flag} model was scored, so no {symbol} can stand here.")
            continue
        words.append(
            f"A {symbol} stands where, within {whom} participant, a model of another class has the higher mean r "
            f"than each {flag} model ({', '.join(others)}) with q of at most {LEVEL:g}."
        )
    if len(words) > 1 and any(classes[model] in FLAGS for model in shown):
        words.append(
            "q is the false discovery rate, over the pairs of models and regions of the participant, of sign flips of "
            "parts of the correlation."
        )
    return " ".join(words)


def _layer_figures(name: MapName, atlas: str, rows: Rows) -> list[FigureData]:
    """Return curves and a heat map of the layers of one model."""
    rows = [row for row in rows if "best" not in (row["condition"], row["layer"]) and row["coverage"] is not None]
    if len({row["layer"] for row in rows}) < 2:
        return []
    model, condition = rows[0]["model"], best_condition(rows)
    means = layer_rows([row for row in rows if row["condition"] == condition])
    if not means:
        return []
    many = len({row["condition"] for row in rows}) > 1
    which = f"Condition {condition}" + (
        ", the one with the highest training-internal R2 over the regions and layers shown" if many else ""
    )
    who = who_words(row["n_participants"] for row in means)
    peaks = ", ".join(f"{roi} layer {layer} ({r:.3f})" for roi, layer, r in _peaks(means)[:12])
    kinds = {
        CURVES: ("layercurves", "Curves", f"{which}; {who}. Bands are the standard error over participants, "
                         "rings the highest layer; grey is the range over these regions."),
        HEAT_MAP: ("layerheatmap", "Colours", f"{which}; {who}. r below 0 is grey; rings are the highest "
                           "layer of each region."),
    }  # fmt: skip
    return [
        FigureData(
            kind=kind,
            name=figure_name(name, suffix, model=model, atlas=atlas),
            title=f"Layers of {model} ({atlas}, {condition})",
            alt=f"{word} of the mean held-out r of the layers of {model} by region; highest: {peaks}.",
            caption=caption,
            rows=means,
            options={"label": MEASURES["r"]},
        )
        for kind, (suffix, word, caption) in kinds.items()
    ]


def best_condition(rows: Rows) -> str:
    """Return the condition with the highest mean training-internal score, the first where they are equal."""
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        scores[row["condition"]] += [row["cv_r2"]] if row["cv_r2"] is not None else []
    return max(scores, key=lambda one: sum(scores[one]) / len(scores[one]) if scores[one] else float("-inf"))


def layer_rows(rows: Rows) -> tuple[dict[str, Cell], ...]:
    """Return mean and standard error over participants by region and layer; of many areas the highest."""
    summary = [row for row in roi_summary(rows) if row["n_participants"]]
    kinds = {row["roi"]: row["kind"] for row in summary}
    drawn = in_order(kinds)
    if len(drawn) > MAX_LAYER_AREAS:
        top = {roi: max(row["r"] for row in summary if row["roi"] == roi) for roi in drawn}
        kept = set(sorted(drawn, key=lambda roi: -top[roi])[:MAX_LAYER_AREAS])
        drawn = [roi for roi in drawn if roi in kept]
    place = {roi: number for number, roi in enumerate(drawn)}
    summary = sorted((row for row in summary if row["roi"] in place), key=lambda row: place[row["roi"]])
    return tuple(
        {
            "model": row["model"], "condition": row["condition"], "roi": row["roi"], "kind": row["kind"],
            "layer": int(row["layer"]), "r": known(row["r"]), "r_sem": known(row["r_sem"]),
            "n_participants": row["n_participants"],
        }
        for row in summary
    )  # fmt: skip


def _peaks(rows: Sequence[Mapping[str, Cell]]) -> list[tuple[str, int, float]]:
    """Return region, layer and mean of the highest layer of each region."""
    peaks: dict[str, tuple[str, int, float]] = {}
    for row in rows:
        roi, r = str(row["roi"]), float(row["r"] or 0.0)
        if row["r"] is not None and (roi not in peaks or r > peaks[roi][2]):
            peaks[roi] = (roi, int(row["layer"] or 0), r)
    return list(peaks.values())


def choice_figures(results: Sequence[ModelResult], *, participant: str | None = None) -> list[FigureData]:
    """Return stacked bars of how often each condition and layer was chosen in each region.

    From the tables of the group, or of the participant. Parameters as of `chart_figures`.
    """
    figures: list[FigureData] = []
    for name, own in by_name(results, participant).items():
        of_group = participant is None
        tables = atlas_tables(name, own[0].output_dir, "choicecounts") if of_group else _own_choices(own)
        for atlas, rows in tables:
            for model, choice in dict.fromkeys((row["model"], row["choice"]) for row in rows):
                of_model = [row for row in rows if (row["model"], row["choice"]) == (model, choice)]
                figures += _choice_figure(name, atlas, model, choice, of_model)
    return figures


def _own_choices(results: Sequence[ModelResult]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield the atlas and the rows of all models of one participant."""
    paths = [table_paths(result, "choicecounts") for result in results]
    for atlas in dict.fromkeys(atlas for own in paths for atlas in own):
        yield atlas, [row for own in paths if atlas in own for row in read_tsv(own[atlas])]


def _choice_figure(
    name: MapName, atlas: str, model: str, choice: str, rows: Sequence[Mapping[str, str]]
) -> list[FigureData]:
    """Return the figure of one model and one kind of choice, none where only one value was ever chosen."""
    shares = choice_rows(rows, ordered=choice == _ORDERED)
    if len({row["value"] for row in shares}) < 2:
        return []
    who = who_words(row["n_participants"] for row in shares)
    first = str(shares[0]["roi"])
    top = sorted((row for row in shares if row["roi"] == first), key=lambda row: -float(row["share"] or 0.0))[:3]
    told = ", ".join(f"{row['value']} {100 * float(row['share'] or 0.0):.0f} %" for row in top)
    places = f" ({atlas})" if atlas else ""
    return [
        FigureData(
            kind=CHOICES,
            name=figure_name(name, "choices", model=model, atlas=atlas, desc=choice),
            title=f"Best {choice} of {model} by region{places}",
            alt=f"Stacked bars of the share of places at which each {choice} of {model} was chosen, by region; in "
            f"{region_words(first)} most often {told}.",
            caption=f"Share of the {name.units} with a held-out r above 0 in each region at which training prefers "
            f"each {choice}; {who}.",
            rows=shares,
            options={
                "ordered": choice == _ORDERED,
                "what": choice,
                "labels": short_names(str(row["value"]) for row in shares),
                "label": f"share of the {name.units} with r above 0",
            },
        )
    ]


def choice_rows(rows: Sequence[Mapping[str, str]], *, ordered: bool) -> tuple[dict[str, Cell], ...]:
    """Return the mean share over participants of each choice in each region, choices in one order in all regions.

    A participant without a row of a choice did not choose it there.
    """
    kinds = {row["roi"]: row["kind"] for row in rows}
    if any(kind in ("group", "set") for kind in kinds.values()):
        kinds = {roi: kind for roi, kind in kinds.items() if kind != "area"}
    values = list(dict.fromkeys(row["value"] for row in rows))
    if ordered:
        values.sort(key=float)
    totals: dict[tuple[str, str], float] = defaultdict(float)
    people: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        share = number_of(row["share"])
        if share is not None:
            totals[row["roi"], row["value"]] += share
            people[row["roi"]].add(row["participant"])
    return tuple(
        {
            "roi": roi, "kind": kinds[roi], "value": value, "share": totals[roi, value] / len(people[roi]),
            "n_participants": len(people[roi]),
        }
        for roi in in_order(kinds)[:MAX_LAYER_AREAS]
        if people[roi]
        for value in values
    )  # fmt: skip
