"""Figures that a study published beside those that were found."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from bids_mllm.exceptions import InputDataError
from bids_mllm.group.tables import MIN_COVERAGE

Measure = Literal["r_normalized", "percent", "coupling", "depth_order", "ceiling"]
MEASURES: tuple[Measure, ...] = ("r_normalized", "percent", "coupling", "depth_order", "ceiling")
#: Slack for the binary form of decimal numbers, so that a difference of the tolerance itself lies within it.
ROUNDING = 1e-9
#: Name of a table's region that holds every voxel with a score, where no atlas names the whole brain.
WHOLE = ("whole brain", "all")


@dataclass(frozen=True)
class Published:
    """One published figure.

    Attributes
    ----------
    id, what
        Short name, and what the value is.
    measure
        Which of `MEASURES`.
    value, tolerance
        As published, and how exactly the value is known.
    source
        Where the paper has it.
    models, stand_ins
        Keys of the models that it is of, and of those that take their place where the app lacks them.
    class_a, class_b
        Classes of models, for a measure of classes.
    roi, roi_b
        Regions.
    relation
        ``equal`` to the value, or ``above`` it, where only an order is published.
    """

    id: str
    what: str
    measure: Measure
    value: float
    source: str
    tolerance: float = 0.0
    models: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()
    class_a: str = ""
    class_b: str = ""
    roi: str = ""
    roi_b: str = ""
    relation: Literal["equal", "above"] = "equal"


@dataclass(frozen=True)
class Study:
    """A study's published figures, and the data that they are of."""

    preset: str
    title: str
    data_set: str
    train_films: tuple[str, ...]
    test_films: tuple[str, ...]
    participants: tuple[str, ...]
    figures: tuple[Published, ...]

    @property
    def models(self) -> frozenset[str]:
        """Keys of all models that a figure is of."""
        return frozenset(key for figure in self.figures for key in (*figure.models, *figure.stand_ins))


@dataclass(frozen=True)
class Found:
    """A value that was found, over how many participants, and what a reader should know of it."""

    value: float
    n_participants: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Compared:
    """A published figure beside what was found; `found`, `difference` and `within` are None where it was not run.

    `difference` is found less published. `note` says why it was not run, or what the value is of.
    """

    published: Published
    found: float | None
    difference: float | None
    within: bool | None
    n_participants: int | None
    note: str


def study_of(content: Mapping[str, Any]) -> Study:
    """Return a study from what its TOML file holds.

    Raises
    ------
    InputDataError
        For a key or a measure that does not exist, a figure that lacks what it must have, or an id that comes twice.
    """
    figures = tuple(_figure(entry) for entry in content["figures"])
    names = [figure.id for figure in figures]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputDataError(f"The published figures {', '.join(twice)} come twice; give each an id of its own.")
    own = {name: _plain(content[name]) for name in (f.name for f in fields(Study)) if name != "figures"}
    return Study(**own, figures=figures)


def _figure(entry: Mapping[str, Any]) -> Published:
    unknown = sorted(entry.keys() - {field.name for field in fields(Published)})
    missing = [name for name in ("id", "what", "measure", "value", "source") if name not in entry]
    if unknown or missing:
        raise InputDataError(
            f"The published figure {entry.get('id', '')!r} has the unknown keys {unknown} and lacks {missing}; its "
            f"keys are {', '.join(field.name for field in fields(Published))}."
        )
    if entry["measure"] not in MEASURES:
        raise InputDataError(
            f"The published figure {entry['id']!r} is of the measure {entry['measure']!r}; measures are "
            f"{', '.join(MEASURES)}."
        )
    return Published(**{name: _plain(value) for name, value in entry.items()})


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def compare(figures: Iterable[Published], found: Mapping[str, Found | str]) -> tuple[Compared, ...]:
    """Put every published figure beside what was found.

    Parameters
    ----------
    figures
    found
        By the id of a figure, what was found, or why it was not run.

    Returns
    -------
    compared
        One a figure, in their order. It is within the tolerance where found and published differ by no more, or, of
        an order, where the value is above the published one.
    """
    return tuple(_compared(figure, found.get(figure.id, "nothing was looked up")) for figure in figures)


def _compared(figure: Published, found: Found | str) -> Compared:
    if isinstance(found, str):
        return Compared(figure, None, None, None, None, found)
    difference = found.value - figure.value
    within = difference > 0 if figure.relation == "above" else abs(difference) <= figure.tolerance + ROUNDING
    return Compared(figure, found.value, difference, within, found.n_participants, found.note)


def found_score(figure: Published, rows: Sequence[Mapping[str, Any]]) -> Found | str:
    """Return the normalised score of a figure's model in its region, mean over participants.

    Parameters
    ----------
    figure
    rows
        Rows of the tables of scores of all participants, by the nested choice of each model: participant, model, roi,
        coverage and r_normalized. Those whose coverage is below `MIN_COVERAGE` do not count, as in all means.
    """
    asked = dict.fromkeys((*figure.models, *figure.stand_ins))
    present = {row["model"] for row in rows}
    model = next((key for key in asked if key in present), None)
    if model is None:
        return not_run(tuple(asked))
    own = [row for row in rows if row["model"] == model]
    regions = {row["roi"] for row in own}
    roi = _region(figure.roi, regions)
    if roi is None:
        return f"no row of the region {figure.roi}"
    here = [row for row in own if row["roi"] == roi and float(row["coverage"]) >= MIN_COVERAGE]
    values = [float(row["r_normalized"]) for row in here if math.isfinite(float(row["r_normalized"]))]
    if not values:
        return f"{model} has no normalised score in {roi}, which needs a noise ceiling"
    notes = [f"{model} in its place"] if model not in figure.models else []
    notes += [f"region {roi}"] if roi != figure.roi else []
    return Found(sum(values) / len(values), len(values), "; ".join(notes))


def not_run(models: Sequence[str]) -> str:
    """Say that none of some models was run."""
    return f"{models[0]} was not run" if len(models) == 1 else f"none of {', '.join(models)} was run"


def _region(wanted: str, regions: set[str]) -> str | None:
    names = WHOLE if wanted in WHOLE else (wanted,)
    return next((name for name in names if name in regions), None)


def found_percent(figure: Published, rows: Sequence[Mapping[str, Any]], *, note: str = "") -> Found | str:
    """Return by how many percent one class of models exceeds another, mean over participants.

    Parameters
    ----------
    figure
    rows
        Of `compare_classes`, or of its table: unit, roi, class_a, class_b, percent_difference and n_percent.
    note
        What a reader should know of these rows.
    """
    pairs = [
        row
        for row in rows
        if row["unit"] == "participant" and (row["class_a"], row["class_b"]) == (figure.class_a, figure.class_b)
    ]
    if not pairs:
        return f"the classes {figure.class_a} and {figure.class_b} were not both run"
    roi = _region(figure.roi, {row["roi"] for row in pairs})
    if roi is None:
        return f"no row of the region {figure.roi}"
    row = next(row for row in pairs if row["roi"] == roi)
    if not math.isfinite(float(row["percent_difference"])):
        return f"the difference in {roi} is not defined"
    notes = [f"region {roi}"] if roi != figure.roi else []
    notes += [note] if note else []
    return Found(float(row["percent_difference"]), int(row["n_percent"]), "; ".join(notes))


def found_coupling(figure: Published, r_of_model: Mapping[str, Sequence[float]]) -> Found | str:
    """Return the mean over models of the mean over layers of the coupling of texts with features.

    Parameters
    ----------
    figure
    r_of_model
        The correlations of the layers above the embedding, of the models of the figure's class.
    """
    means = {}
    for model, values in r_of_model.items():
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            means[model] = sum(finite) / len(finite)
    if not means:
        return f"no {figure.class_a} model was run with several instructions"
    return Found(sum(means.values()) / len(means), None, f"mean over layers of {', '.join(means)}")


def found_depth_order(figure: Published, rows: Sequence[Mapping[str, Any]]) -> Found | str:
    """Return the relative depth of one region less that of another, mean over conditions, models and participants.

    Parameters
    ----------
    figure
    rows
        Rows of the tables of layers of the models of the figure's class: participant, model, condition, roi, depth.
    """
    if not rows:
        return f"there are no layers of regions of {figure.class_a} models"
    depths: dict[tuple[Any, Any, Any], dict[str, float]] = {}
    for row in rows:
        value = float(row["depth"])
        if row["roi"] in (figure.roi, figure.roi_b) and math.isfinite(value):
            depths.setdefault((row["participant"], row["model"], row["condition"]), {})[row["roi"]] = value
    both = {key: own for key, own in depths.items() if len(own) == 2}
    if not both:
        return f"no depths of both {figure.roi} and {figure.roi_b}"
    by_participant: dict[Any, list[float]] = {}
    for (participant, _, _), own in both.items():
        by_participant.setdefault(participant, []).append(own[figure.roi] - own[figure.roi_b])
    means = [sum(values) / len(values) for values in by_participant.values()]
    return Found(sum(means) / len(means), len(means), "")


def found_ceiling(highest: Mapping[str, float]) -> Found | str:
    """Return the mean over participants of the highest noise ceiling of each."""
    finite = [value for value in highest.values() if math.isfinite(value)]
    return Found(sum(finite) / len(finite), len(finite)) if finite else "there is no noise ceiling"


def unlike(
    study: Study,
    *,
    data_set: str,
    participants: Sequence[str],
    train: Sequence[str],
    test: Sequence[str],
    presets: Sequence[str],
) -> tuple[str, ...]:
    """Say in sentences in what the data and the settings are not those of the study; nothing where they are.

    Parameters
    ----------
    study
    data_set
        Name of the data set as it tells it, with the name of its folder.
    participants, train, test
        Labels, and the films of training and of test, without the numbers of their parts.
    presets
        Presets that the results were made with, "" for none.
    """
    sentences = []
    if study.data_set not in data_set.casefold():
        sentences.append(f"The data set is {data_set!r}, not {study.data_set}.")
    for words, own, theirs in (
        ("Training films", train, study.train_films),
        ("Held-out films", test, study.test_films),
        ("Participants", participants, study.participants),
    ):
        if sorted(own) != sorted(theirs):
            sentences.append(f"{words} are {', '.join(own) or 'not told'}; those of the study are {', '.join(theirs)}.")
    if set(presets) != {study.preset}:
        named = ", ".join(dict.fromkeys(preset or "none" for preset in presets))
        sentences.append(f"The results were made with the preset {named}, not with {study.preset}.")
    return tuple(sentences)
