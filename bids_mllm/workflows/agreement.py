"""What the group page says of the agreement with a published study, from the tables on disk."""

import re
import tomllib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.config import Settings
from bids_mllm.group.agreement import (
    Compared,
    Found,
    Published,
    Study,
    compare,
    found_ceiling,
    found_coupling,
    found_depth_order,
    found_percent,
    found_score,
    not_run,
    study_of,
    unlike,
)
from bids_mllm.group.classes import compare_classes, model_class
from bids_mllm.interfaces.conditioning import read_checks
from bids_mllm.io.files import read_json, read_tsv
from bids_mllm.io.maps import load_map
from bids_mllm.io.results import ModelResult
from bids_mllm.report.agreement import AgreementRow, agreement_content
from bids_mllm.report.content import Block

#: What writes data sets that no one was scanned for.
SIMULATOR = "bids-mllm-simulate"


def studies() -> tuple[Study, ...]:
    """Return the studies whose published figures come with the app."""
    folder = files("bids_mllm") / "data" / "studies"
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return tuple(study_of(tomllib.loads(file.read_text("utf-8"))) for file in found)


def agreement_blocks(settings: Settings, results: Sequence[ModelResult]) -> tuple[Block, ...]:
    """Return the published figures of a study beside those found, where its preset or one of its models was run.

    Parameters
    ----------
    settings
        Of the group level.
    results
        What participants wrote; the tables of the group are read where the output folder has them.
    """
    if not results:
        return ()
    sidecars = {result: result.sidecar() for result in results}
    presets = {str(sidecar.get("Preset") or "") for sidecar in sidecars.values()}
    blocks: list[Block] = []
    for study in studies():
        if study.preset in presets or any(result.model in study.models for result in results):
            tables = tuple(
                (caption, tuple(map(_row, compared))) for caption, compared in _tables(settings, study, sidecars)
            )
            blocks += agreement_content(study.title, tables, unlike=_unlike(settings, study, sidecars))
    return tuple(blocks)


def _row(one: Compared) -> AgreementRow:
    figure = one.published
    value = f"{figure.value:.3g}"
    published = f"above {value}" if figure.relation == "above" else f"{value} ± {figure.tolerance:g}"
    return AgreementRow(
        figure.what, published, figure.source, one.found, one.difference, one.within, one.n_participants, one.note
    )


def _tables(
    settings: Settings, study: Study, sidecars: Mapping[ModelResult, Mapping[str, Any]]
) -> list[tuple[str, tuple[Compared, ...]]]:
    """Compare in every space, and with every atlas; without one, what needs no regions."""
    tables = []
    for name in dict.fromkeys(result.name.of_group() for result in sidecars):
        own = {result: side for result, side in sidecars.items() if result.name.of_group() == name}
        pattern = name.path(settings.output_dir, extension=".tsv", stat="scores", atlas="*")
        paths: list[Path | None] = [*sorted(pattern.parent.glob(pattern.name))]
        for path in paths or [None]:
            atlas = _atlas_of(path)
            found = _found(settings.output_dir, study, own, path, atlas)
            place = f"{name.place}, {atlas}" if atlas else f"{name.place}, no atlas"
            tables.append((f"Agreement with the study ({place})", compare(study.figures, found)))
    return tables


def _atlas_of(path: Path | None) -> str:
    match = re.search(r"_atlas-([^_]+)_", path.name) if path else None
    return match[1] if match else ""


def _found(
    output_dir: Path,
    study: Study,
    own: Mapping[ModelResult, Mapping[str, Any]],
    scores: Path | None,
    atlas: str,
) -> dict[str, Found | str]:
    """Return by the id of each figure what was found in one space with one atlas, or why nothing was."""
    rows = _best_rows(scores) if scores else []
    classes = {result.model: model_class(side["Model"]) for result, side in own.items()}
    ceiling = _ceiling(own)
    ways: dict[str, Callable[[Published], Found | str]] = {
        "r_normalized": lambda figure: found_score(figure, rows) if scores else _no_table(figure, classes),
        "percent": lambda figure: _percent(figure, rows, classes, own, atlas),
        "coupling": lambda figure: found_coupling(
            figure, {model: _coupling(output_dir, model) for model in _of_class(classes, figure.class_a)}
        ),
        "depth_order": lambda figure: found_depth_order(
            figure, _depths(own, set(_of_class(classes, figure.class_a)), atlas)
        ),
        "ceiling": lambda figure: ceiling,
    }
    return {figure.id: ways[figure.measure](figure) for figure in study.figures}


def _no_table(figure: Published, models: Container[str]) -> str:
    asked = (*figure.models, *figure.stand_ins)
    if not any(key in models for key in asked):
        return not_run(asked)
    return "there is no table of scores, which needs an atlas"


def _of_class(classes: Mapping[str, str], wanted: str) -> list[str]:
    return [model for model, own in classes.items() if own == wanted]


def _best_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the nested choice, with their normalised scores as numbers."""
    best = [row for row in read_tsv(path) if row["layer"] == row["condition"] == "best"]
    return [{**row, "r_normalized": _number(row["r_normalized"])} for row in best]


def _percent(
    figure: Published,
    rows: Sequence[Mapping[str, Any]],
    classes: Mapping[str, str],
    own: Iterable[ModelResult],
    atlas: str,
) -> Found | str:
    """Compare classes by normalised scores, as the study does; by r, which is said, where there are none.

    The table of r names regions after their atlas where there are several.
    """
    known = [{**row, "r": row["r_normalized"]} for row in rows if row["model"] in classes]
    found = found_percent(figure, compare_classes(known, classes))
    if isinstance(found, Found):
        return found
    result = next(iter(own))
    path = result.name.of_group().path(result.output_dir, extension=".tsv", stat="classcomparison")
    table = read_tsv(path) if path.is_file() else []
    by_r = [
        {
            **row,
            "roi": row["roi"].removeprefix(f"{atlas}:"),
            "percent_difference": _number(row["percent_difference"]),
        }
        for row in table
    ]
    return found_percent(figure, by_r, note="of r, which is not normalised")


def _coupling(output_dir: Path, model: str) -> list[float]:
    """Return the coupling by the model's own embedding of the texts and CKA, layers above the embedding."""
    checks = read_checks(output_dir, model)
    wanted = ("generated", "embedding", "cka")
    return [
        _number(row["r"])
        for row in (checks.coupling if checks else ())
        if (row["pooling"], row["text_similarity"], row["representation_similarity"]) == wanted and row["layer"] != "0"
    ]


def _depths(results: Mapping[ModelResult, Any], models: set[str], atlas: str) -> list[dict[str, Any]]:
    """Return the rows of the tables of layers of some models."""
    rows: list[dict[str, Any]] = []
    for result in results:
        path = result.path("layers", None, extension=".tsv", atlas=atlas or None)
        if result.model in models and path.is_file():
            rows += [{**row, "depth": _number(row["depth"])} for row in read_tsv(path)]
    return rows


def _ceiling(results: Mapping[ModelResult, Any]) -> Found | str:
    """Return the highest noise ceiling, mean over participants."""
    highest = {}
    for result in results:
        path = result.name.path(result.output_dir, stat="noiseceiling")
        participant = str(result.name.participant)
        if participant not in highest and path.is_file():
            values, _ = load_map(path)
            highest[participant] = float(np.max(values, initial=-np.inf, where=np.isfinite(values)))
    return found_ceiling(highest)


def _number(text: str) -> float:
    return float("nan") if text == "n/a" else float(text)


def _unlike(settings: Settings, study: Study, sidecars: Mapping[ModelResult, Mapping[str, Any]]) -> tuple[str, ...]:
    """Say what of the data, the settings and the models is not the study's."""
    sides = list(sidecars.values())
    sentences = unlike(
        study,
        data_set=_data_set(settings.bids_dir),
        participants=tuple(dict.fromkeys(str(result.name.participant) for result in sidecars)),
        train=_films(side.get("TrainRuns", ()) for side in sides),
        test=_films(side.get("TestRuns", ()) for side in sides),
        presets=tuple(dict.fromkeys(str(side.get("Preset") or "") for side in sides)),
    )
    random = dict.fromkeys(
        result.model for result, side in sidecars.items() if side["Model"].get("Weights") == "random"
    )
    of_random = (f"Weights are random, not those of the trained model: {', '.join(random)}.",) if random else ()
    sloppy = ("Made with --sloppy, which is for trying out only.",) if any(s.get("Sloppy") for s in sides) else ()
    return (*sentences, *of_random, *sloppy)


def _films(labels_of_runs: Any) -> tuple[str, ...]:
    """Return the films of runs: their tasks without the numbers of parts."""
    found = (re.search(r"task-([^_]+)", label) for labels in labels_of_runs for label in labels)
    return tuple(dict.fromkeys(re.sub(r"[0-9]+$", "", match[1]) for match in found if match))


def _data_set(bids_dir: Path) -> str:
    """Return the name that the data set gives itself, with the name of its folder; one that was simulated says so."""
    path = bids_dir / "dataset_description.json"
    described = read_json(path) if path.is_file() else {}
    if any(entry.get("Name") == SIMULATOR for entry in described.get("GeneratedBy", ())):
        return "simulated"
    names = dict.fromkeys((str(described.get("Name", "")), bids_dir.resolve().name))
    return ", ".join(name for name in names if name)
