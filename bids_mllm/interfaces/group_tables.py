"""Tables of the group level: what the participants' tables and maps say, gathered and tested."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm.group.classes import compare_classes, compare_classes_by_run, model_class
from bids_mllm.group.counts import choice_rows
from bids_mllm.group.partition import PARTS, partition_means
from bids_mllm.group.tables import group_tests
from bids_mllm.interfaces.group_features import coupling_rows, text_sample_rows
from bids_mllm.interfaces.participant_tables import ALL
from bids_mllm.io.derivatives import MapName, outputs, sidecar_path, write_table
from bids_mllm.io.files import read_json, read_tsv
from bids_mllm.io.results import ModelResult, table_paths
from bids_mllm.records import FloatArray, IntArray
from bids_mllm.score.bootstrap import bootstrap_runs
from bids_mllm.score.multiplicity import fdr, simes
from bids_mllm.score.roi import BEST, LEVEL


def write_group_tables(results: Sequence[ModelResult], name: MapName) -> list[Path]:
    """Write every table of the group in one space; return the paths of those that have rows.

    Tables of atlases that no participant has any more are removed.
    """
    output_dir = results[0].output_dir
    models = list(dict.fromkeys(result.model for result in results))
    written = [
        *write_roi_tables(results, name),
        *write_comparison(results, name),
        *write_class_comparison(results, name),
        *write_partition(results, name),
        *write_choice_counts(results, name),
        *_write("coupling", coupling_rows(results), name, output_dir),
        *_write("textsamples", text_sample_rows(output_dir, models), name, output_dir),
    ]
    for stat in ("scores", "choicecounts"):
        for path in set(table_paths(ModelResult(name, "", output_dir), stat).values()) - set(written):
            _remove(path)
    return written


def write_roi_tables(results: Sequence[ModelResult], name: MapName) -> list[Path]:
    """Write, for each atlas, the rows of all participants and models as one long table.

    Every model has a row of all voxels, and rows of the nested choice have a false discovery rate over the regions
    and models of their participant.
    """
    written = []
    for atlas, best in best_scores(results).items():
        rows = _all_scores(results, atlas, with_rates(best))
        written.append(_table("scores", rows, name, results[0].output_dir, atlas=atlas))
    return written


def best_scores(results: Sequence[ModelResult]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the nested choice of all participants and models by atlas, each model with all voxels."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        for atlas, path in table_paths(result, "scores").items():
            own: list[dict[str, Any]] = [*read_tsv(path, _is_best)]
            rows[atlas] += own if any(row["roi"] == ALL for row in own) else [whole_row(result), *own]
    return dict(rows)


def _is_best(row: Mapping[str, Any]) -> bool:
    return bool(row["condition"] == row["layer"] == BEST)


def _all_scores(
    results: Sequence[ModelResult], atlas: str, best: Sequence[Mapping[str, Any]]
) -> Iterator[Mapping[str, Any]]:
    """Give the rows of every model's table of an atlas, one table in memory at a time, with `best` in their places."""
    chosen: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in best:
        chosen[row["participant"], row["model"]].append(row)
    for result in results:
        path = table_paths(result, "scores").get(atlas)
        if path is not None:
            yield from read_tsv(path, lambda row: not _is_best(row))
            yield from chosen[str(result.name.participant), result.model]


def with_rates(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add `q` to rows of scores: the false discovery rate of `p` over all rows of a participant that have one.

    Parameters
    ----------
    rows
        With the key participant, and p where there is one, n/a or NaN where nothing was tested.

    Returns
    -------
    rows : list of dict
        With p and q, NaN where there is none.
    """
    p = np.array([number(row.get("p")) for row in rows])
    people = np.array([row["participant"] for row in rows])
    q: FloatArray = np.full(len(rows), np.nan)
    for participant in np.unique(people):
        q[people == participant] = fdr(p[people == participant])
    return [{**row, "p": float(one), "q": float(rate)} for row, one, rate in zip(rows, p, q, strict=True)]


def whole_row(result: ModelResult) -> dict[str, Any]:
    """Return the row of all voxels of the nested choice from the maps, for tables that lack it."""
    maps = {stat: _map_or_none(result, stat) for stat in ("r", "r2", "cvr2", "rnormalized", "p", "q")}
    heads = {"participant": result.name.participant, "model": result.model, "condition": BEST, "pooling": BEST}
    r, q = maps["r"], maps["q"]
    tested = np.zeros(0) if q is None else q[np.isfinite(q)]
    return {
        **heads,
        "layer": BEST,
        "roi": ALL,
        "kind": ALL,
        "n_voxels": 0 if r is None else int(np.isfinite(r).sum()),
        "coverage": 1.0,
        "r": finite_mean(r),
        "r2": finite_mean(maps["r2"]),
        "cv_r2": finite_mean(maps["cvr2"]),
        "r_normalized": finite_mean(maps["rnormalized"]),
        "significant_share": float((tested <= LEVEL).mean()) if tested.size else float("nan"),
        "p": float("nan") if maps["p"] is None else simes(maps["p"]),
    }


def _map_or_none(result: ModelResult, stat: str) -> FloatArray | None:
    return result.map(stat, BEST)[0] if result.path(stat, BEST).is_file() else None


def finite_mean(values: FloatArray | None) -> float:
    """Mean of the finite values; NaN where there is none."""
    finite = np.zeros(0) if values is None else values[np.isfinite(values)]
    return float(finite.mean(dtype=np.float64)) if finite.size else float("nan")


def write_comparison(results: Sequence[ModelResult], name: MapName) -> list[Path]:
    """Write the comparisons of all participants as one table, and the tests over participants."""
    rows: list[dict[str, Any]] = []
    for own in dict.fromkeys(result.name for result in results):
        path = own.path(results[0].output_dir, extension=".tsv", stat="modelcomparison")
        rows += read_tsv(path) if path.is_file() else []
    models = {result.model for result in results}
    rows = [row for row in rows if row["model_a"] in models and row["model_b"] in models]
    numbers = [{**row, "mean_difference": number(row["mean_difference"])} for row in rows]
    output_dir = results[0].output_dir
    tests = group_tests(numbers)
    return [*_write("modelcomparison", rows, name, output_dir), *_write("grouptest", tests, name, output_dir)]


def write_class_comparison(results: Sequence[ModelResult], name: MapName) -> list[Path]:
    """Write classes of models against each other: over participants, and over the runs of each."""
    classes = {result.model: model_class(result.sidecar()["Model"]) for result in results}
    if len(set(classes.values())) < 2:
        return _write("classcomparison", [], name, results[0].output_dir)
    rows = compare_classes(class_scores(results), classes)
    by_participant: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for result in results:
        if result.path("rbyrun", BEST).is_file():
            by_participant[str(result.name.participant)][result.model] = run_means(result)
    for participant, by_run in by_participant.items():
        rows += compare_classes_by_run(participant, by_run, classes, run_interval)
    return _write("classcomparison", rows, name, results[0].output_dir)


def class_scores(results: Sequence[ModelResult]) -> list[dict[str, Any]]:
    """Return the rows of the nested choice that classes are compared in: all voxels, groups and sets.

    The areas of an atlas count where it has no groups. Where there are several atlases its name stands before a region.
    """
    atlases = best_scores(results)
    whole: dict[tuple[str, str], dict[str, Any]] = {}
    rows = []
    for atlas, every in atlases.items():
        own = [{**row, "r": number(row["r"])} for row in every]
        whole = {(row["participant"], row["model"]): row for row in own if row["roi"] == ALL} | whole
        grouped = [row for row in own if row["kind"] in ("group", "set")]
        regions = grouped or [row for row in own if row["roi"] != ALL]
        prefix = f"{atlas}:" if len(atlases) > 1 else ""
        rows += [{**row, "roi": f"{prefix}{row['roi']}"} for row in regions]
    keys = [(str(result.name.participant), result.model) for result in results]
    return [*(whole.get(key) or whole_row(result) for key, result in zip(keys, results, strict=True)), *rows]


def run_means(result: ModelResult) -> dict[str, float]:
    """Return the mean r over all voxels of each held-out run, of the nested choice."""
    names = read_json(sidecar_path(result.path("rbyrun", BEST)))["Runs"]
    values = np.atleast_2d(result.map("rbyrun", BEST)[0])
    return {run: finite_mean(own) for run, own in zip(names, values, strict=True)}


def run_interval(values: FloatArray, weights: FloatArray) -> tuple[float, float]:
    """Return the ends of the 95 % bootstrap interval of the weighted mean of values (n_runs,)."""
    interval = bootstrap_runs(values[:, None], weights)
    return float(interval.low[0]), float(interval.high[0])


def write_partition(results: Sequence[ModelResult], name: MapName) -> list[Path]:
    """Write the means over participants of what pairs of instructions explain alone and together."""
    rows: list[dict[str, Any]] = []
    for result in results:
        path = result.path("partition", None, extension=".tsv")
        own = read_tsv(path) if path.is_file() else []
        rows += [{**row, **{part: number(row[part]) for part in PARTS}} for row in own]
    of_participants = ("participant", "n_voxels")
    return _write("partition", partition_means(rows), name, results[0].output_dir, without=of_participants)


def write_choice_counts(results: Sequence[ModelResult], name: MapName) -> list[Path]:
    """Write, for each atlas, how many voxels of each participant prefer each condition and layer.

    Without an atlas, and of models whose tables an older version wrote, there are rows of all voxels alone.
    """
    found = [table_paths(result, "choicecounts") for result in results]
    scored = [table_paths(result, "scores") for result in results]
    atlases: list[str | None] = [*dict.fromkeys(atlas for own in scored for atlas in own)]
    written = _write("choicecounts", [], name, results[0].output_dir) if atlases else []
    for atlas in atlases or [None]:
        rows: list[dict[str, Any]] = []
        for result, own, tables in zip(results, found, scored, strict=True):
            if atlas is None or atlas in tables:
                rows += read_tsv(own[atlas]) if atlas in own else whole_counts(result)
        written += _write("choicecounts", rows, name, results[0].output_dir, atlas=atlas)
    return written


def whole_counts(result: ModelResult) -> list[dict[str, Any]]:
    """Return from the maps how many of all voxels prefer each condition and layer."""
    sidecar = result.sidecar()
    condition, layer, r = (result.map(*key)[0] for key in (("bestcondition", None), ("bestlayer", None), ("r", BEST)))
    # Maps hold numbers of layers.
    place = np.full(layer.shape, np.nan)
    for index, fitted in enumerate(sidecar["Layers"]):
        place[layer == fitted] = index
    heads = {"participant": result.name.participant, "model": result.model, "roi_index": None, "roi": ALL, "kind": ALL}
    choices: dict[str, tuple[IntArray | FloatArray, Sequence[Any]]] = {
        "condition": (condition, sidecar["Conditions"]),
        "layer": (place, sidecar["Layers"]),
    }
    return choice_rows(heads, choices, r)


def _write(
    stat: str,
    rows: Sequence[Mapping[str, Any]],
    name: MapName,
    output_dir: Path,
    *,
    atlas: str | None = None,
    without: Sequence[str] = (),
) -> list[Path]:
    """Write a table of the group, or remove an old one where there are no rows."""
    if rows:
        return [_table(stat, rows, name, output_dir, atlas=atlas, without=without)]
    _remove(name.path(output_dir, extension=".tsv", stat=stat, atlas=atlas))
    return []


def _remove(table: Path) -> None:
    for stale in (table, sidecar_path(table)):
        stale.unlink(missing_ok=True)


def _table(
    stat: str,
    rows: Iterable[Mapping[str, Any]],
    name: MapName,
    output_dir: Path,
    *,
    atlas: str | None = None,
    without: Sequence[str] = (),
) -> Path:
    """Write a table with the columns that are declared for the group, but for some; return its path."""
    declared = outputs()["tables"][stat]
    columns = declared["Columns"] | declared.get("GroupColumns", {})
    shown = {column: text for column, text in columns.items() if column not in without}
    path = name.path(output_dir, extension=".tsv", stat=stat, atlas=atlas)
    write_table(path, rows, shown, {"Description": declared["Description"]})
    return path


def number(value: Any) -> float:
    """Return a cell of a table as a number; NaN where it is n/a or missing."""
    return float("nan") if value is None or value == "n/a" else float(value)
