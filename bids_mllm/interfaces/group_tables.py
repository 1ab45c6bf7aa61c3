"""Tables of the group level: what the participants' tables and maps say, gathered and tested."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bids_mllm.group.tables import group_tests
from bids_mllm.io.derivatives import MapName, outputs, write_table
from bids_mllm.io.files import read_tsv
from bids_mllm.io.results import ModelResult, roi_tables


def write_group_tables(results: Sequence[ModelResult], name: MapName) -> list[Path]:
    """Write every table of the group in one space; return the paths of those that have rows."""
    return [*write_roi_tables(results, name), *write_comparison(results, name)]


def write_roi_tables(results: Sequence[ModelResult], name: MapName) -> list[Path]:
    """Write, for each atlas, the rows of all participants and models as one long table."""
    declared = outputs()["tables"]["scores"]
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        for atlas, own in roi_tables(result).items():
            rows[atlas] += own
    written = []
    for atlas, own in rows.items():
        path = name.path(results[0].output_dir, extension=".tsv", stat="scores", atlas=atlas)
        write_table(path, own, declared["Columns"], {"Description": declared["Description"]})
        written.append(path)
    return written


def write_comparison(results: Sequence[ModelResult], name: MapName) -> list[Path]:
    """Write the comparisons of all participants as one table, and the tests over participants."""
    rows: list[dict[str, Any]] = []
    for own in dict.fromkeys(result.name for result in results):
        path = own.path(results[0].output_dir, extension=".tsv", stat="modelcomparison")
        rows += read_tsv(path) if path.is_file() else []
    models = {result.model for result in results}
    rows = [row for row in rows if row["model_a"] in models and row["model_b"] in models]
    numbers = [{**row, "mean_difference": _number(row["mean_difference"])} for row in rows]
    written = []
    for stat, content in (("modelcomparison", rows), ("grouptest", group_tests(numbers))):
        if content:
            declared = outputs()["tables"][stat]
            path = name.path(results[0].output_dir, extension=".tsv", stat=stat)
            write_table(path, content, declared["Columns"], {"Description": declared["Description"]})
            written.append(path)
    return written


def _number(text: str) -> float:
    return float("nan") if text == "n/a" else float(text)
