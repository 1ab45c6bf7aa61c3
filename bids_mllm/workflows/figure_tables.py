"""What the charts read: the tables of participants, as rows of numbers, by films and space."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_mllm.group.classes import model_class
from bids_mllm.io.derivatives import MapName
from bids_mllm.io.files import iter_tsv, read_tsv
from bids_mllm.io.results import ModelResult, table_paths
from bids_mllm.report.content import Cell
from bids_mllm.workflows.statistics import INSTRUCTED_POOLINGS

TEXT_COLUMNS = ("participant", "model", "condition", "pooling", "instruction", "layer", "roi", "kind", "roi_index")
NUMBER_COLUMNS = ("coverage", "r", "r2", "cv_r2", "r_normalized")
#: Names of the region that is the whole brain, the first that there is.
WHOLE = ("whole brain", "all")
#: In which order regions are drawn.
KINDS = ("all", "set", "group", "area")


def by_name(results: Sequence[ModelResult], participant: str | None) -> dict[MapName, list[ModelResult]]:
    """Return the results by films and space: of one participant under its name, or of all under that of the group."""
    collected: dict[MapName, list[ModelResult]] = defaultdict(list)
    for result in results:
        if participant is None:
            collected[result.name.of_group()].append(result)
        elif result.name.participant == participant:
            collected[result.name].append(result)
    return dict(collected)


def by_model(results: Iterable[ModelResult]) -> dict[str, list[ModelResult]]:
    """Return the results by model, in the order of first appearance."""
    collected: dict[str, list[ModelResult]] = defaultdict(list)
    for result in results:
        collected[result.model].append(result)
    return dict(collected)


def classes_of(results: Iterable[ModelResult]) -> dict[str, str]:
    """Return the class of each model."""
    classes: dict[str, str] = {}
    for result in results:
        if result.model not in classes:
            classes[result.model] = model_class(result.sidecar()["Model"])
    return classes


def score_rows(results: Sequence[ModelResult]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the tables of scores by atlas: of groups and sets where there are any, else of areas."""
    collected: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        for atlas, path in table_paths(result, "scores").items():
            coarse = any(row["kind"] in ("group", "set") for row in iter_tsv(path))
            collected[atlas] += [numbers(row) for row in iter_tsv(path) if not (coarse and row["kind"] == "area")]
    return dict(collected)


def numbers(row: Mapping[str, str]) -> dict[str, Any]:
    """Return the columns of a row of scores that the charts use, None where there is no number."""
    return {name: row.get(name, "n/a") for name in TEXT_COLUMNS} | {
        name: number_of(row.get(name, "n/a")) for name in NUMBER_COLUMNS
    }


def number_of(text: str) -> float | None:
    """Return the number of a cell, None where there is none."""
    return None if text in ("n/a", "nan") else float(text)


def known(value: float) -> float | None:
    """Return a number, None in place of NaN."""
    return None if value != value else value


def in_order(kinds: Mapping[str, str]) -> list[str]:
    """Return regions with sets before groups before areas, in their own order otherwise."""
    return sorted(kinds, key=lambda roi: KINDS.index(kinds[roi]) if kinds[roi] in KINDS else len(KINDS))


def table_rows(results: Sequence[ModelResult], stat: str) -> list[dict[str, str]]:
    """Return the rows of one kind of table of these participants that is not of one model; [] where there is none."""
    rows: list[dict[str, str]] = []
    for own in dict.fromkeys(result.name for result in results):
        path = own.path(results[0].output_dir, extension=".tsv", stat=stat)
        rows += read_tsv(path) if path.is_file() else []
    return rows


def atlas_tables(name: MapName, output_dir: Path, stat: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield the atlas (empty without one) and the rows of each table of a kind under one name."""
    paths = [name.path(output_dir, extension=".tsv", stat=stat)]
    pattern = name.path(output_dir, extension=".tsv", stat=stat, atlas="*")
    paths += sorted(pattern.parent.glob(pattern.name))
    for path in paths:
        if path.is_file():
            match = re.search(r"_atlas-([^_]+)_", path.name)
            yield (match.group(1) if match else ""), read_tsv(path)


def figure_name(
    name: MapName, suffix: str, *, model: str | None = None, atlas: str | None = None, desc: str | None = None
) -> str:
    """Return the stem of the files of a figure."""
    return name.path(Path(), suffix=suffix, extension="", model=model, atlas=atlas or None, desc=desc).name


def labels_of(names: Iterable[str]) -> dict[str, str]:
    """Return for each name letters and digits that stand for it in file names, all different."""
    labels: dict[str, str] = {}
    for name in names:
        base = re.sub(r"[^A-Za-z0-9]", "", name) or "region"
        label, number = base, 1
        while label.casefold() in {other.casefold() for other in labels.values()}:
            number += 1
            label = f"{base}{number}"
        labels[name] = label
    return labels


def short_names(conditions: Iterable[str]) -> dict[str, str]:
    """Return the conditions by name without their pooling, where those with an instruction all have the same one."""
    names = list(dict.fromkeys(conditions))
    poolings = {pooling for pooling in INSTRUCTED_POOLINGS if any(name.startswith(pooling) for name in names)}
    only = poolings.pop() if len(poolings) == 1 else ""
    return {name: name.removeprefix(only) or name for name in names}


def participants_words(counts: Iterable[Cell]) -> str:
    """Return how many participants a figure is of: "one participant", "4 participants" or "1 to 4 participants".

    Parameters
    ----------
    counts
        Participants of each mean; those of none do not count.
    """
    found = sorted({int(count) for count in counts if count})
    if not found or found[-1] == 1:
        return "one participant"
    return f"{found[-1]} participants" if len(found) == 1 else f"{found[0]} to {found[-1]} participants"


def who_words(counts: Iterable[Cell]) -> str:
    """Return over whom means are taken, in words. Parameters as of `participants_words`."""
    words = participants_words(counts)
    return words if words == "one participant" else f"mean over {words}"


def region_words(roi: str) -> str:
    """Return what a region is called in words."""
    return "all places with a score" if roi == "all" else roi
