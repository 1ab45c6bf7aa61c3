"""Feature tables of the user's: one TSV a stimulus, with onset, duration and one column a feature."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from bids_mllm.exceptions import StimulusError

AGGREGATIONS = ("mean", "sum")


def table_path(folder: Path, stim_file: str) -> Path:
    """Return where the table of `stim_file` (``a/b.mkv``) is expected: ``folder/a/b.tsv``."""
    return (folder / stim_file).with_suffix(".tsv")


def read_feature_table(folder: Path, stim_file: str) -> dict[str, Any]:
    """Read the table of one stimulus.

    Returns
    -------
    dict
        path, sha256 of table and column descriptions, columns, aggregation (one a column), onset and duration
        (n_rows,) seconds, values (n_rows, n_columns), as plain lists.

    Notes
    -----
    How a column is brought to windows is said in a JSON of column descriptions, ``{column: {"Aggregation":
    "mean" or "sum"}}``, beside the table under its name or once for all in ``features.json`` in the root of the
    folder; ``mean`` where nothing is said.
    """
    path = table_path(folder, stim_file)
    if not path.is_file():
        raise StimulusError(
            f"The feature table {path} does not exist; write one for {stim_file} with the columns onset, duration "
            "and one a feature."
        )
    names, rows = _read_text(path)
    columns = [name for name in names if name not in ("onset", "duration")]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise StimulusError(f"The feature table {path} has the column {twice[0]} twice; give each a name of its own.")
    if names[:1] != ["onset"] or "duration" not in names or not columns:
        raise StimulusError(
            f"The feature table {path} has the columns {', '.join(names) or 'none'}; expected the tab-separated "
            "columns onset, duration and at least one feature."
        )
    described, description_bytes = _descriptions(folder, path)
    numbers = {name: [_number(path, i, name, row[name]) for i, row in enumerate(rows, 2)] for name in names}
    return {
        "path": str(path),
        "sha256": hashlib.sha256(path.read_bytes() + description_bytes).hexdigest(),
        "columns": columns,
        "aggregation": [_aggregation(path, name, described) for name in columns],
        "onset": numbers["onset"],
        "duration": numbers["duration"],
        "values": [list(values) for values in zip(*(numbers[name] for name in columns), strict=True)],
    }


def _read_text(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t")
            return list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StimulusError(
            f"The feature table {path} cannot be read as text ({error}); write it as tab-separated UTF-8."
        ) from error


def _descriptions(folder: Path, path: Path) -> tuple[dict[str, Any], bytes]:
    for candidate in (path.with_suffix(".json"), folder / "features.json"):
        if candidate.is_file():
            content = candidate.read_bytes()
            try:
                described = json.loads(content)
            except ValueError as error:
                raise StimulusError(f"{candidate} cannot be read as JSON ({error}); correct it.") from error
            if not isinstance(described, dict):
                raise StimulusError(f"{candidate} must hold a JSON object, one entry a column; correct it.")
            return described, content
    return {}, b""


def _aggregation(path: Path, column: str, described: dict[str, Any]) -> str:
    entry = described.get(column, {})
    value = entry.get("Aggregation", "mean") if isinstance(entry, dict) else None
    if value not in AGGREGATIONS:
        raise StimulusError(
            f"The column {column} of {path} is described with the Aggregation {value!r}; expected mean or sum."
        )
    return str(value)


def _number(path: Path, line: int, column: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise StimulusError(
            f"{path}, line {line}: {column} is {text!r}, but a feature table holds finite numbers only; fill or "
            "remove the row."
        )
    return value
