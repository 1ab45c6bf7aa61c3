"""Tables of model against model for the pages."""

from collections.abc import Sequence
from pathlib import Path

from bids_mllm.io.derivatives import MapName
from bids_mllm.io.files import read_tsv
from bids_mllm.io.results import ModelResult
from bids_mllm.report.content import Table


def comparison_tables(results: Sequence[ModelResult]) -> tuple[Table, ...]:
    """Return the comparisons within one participant, one table a set of films and space."""
    names = dict.fromkeys(result.name for result in results)
    return tuple(table for name in names for table in within_participants(results[0].output_dir, name))


def within_participants(output_dir: Path, name: MapName) -> list[Table]:
    """Model against model in each participant, over all voxels."""
    path = name.path(output_dir, extension=".tsv", stat="modelcomparison")
    rows = [row for row in (read_tsv(path) if path.is_file() else []) if row.get("roi") == "all"]
    if not rows:
        return []
    numbers = ("mean_difference", "p", "q")
    cells = tuple(
        (
            f"sub-{row['participant']}", row["model_a"], row["model_b"], *(number_cell(row[key]) for key in numbers),
            *(int(row[key]) for key in ("n_a_higher", "n_b_higher", "n_voxels")),
        )
        for row in rows
    )  # fmt: skip
    units = name.units.capitalize()
    columns = (
        "Participant", "Model A", "Model B", "Mean r of A less B", "p", "q", f"{units} A higher", f"{units} B higher",
        units,
    )  # fmt: skip
    caption = (
        f"Model against model within each participant ({name.place}): sign flips of parts of the correlation on the "
        f"same held-out volumes; smallest attainable p {float(rows[0]['smallest_p']):.2g}. {units} count where the "
        "false discovery rate is at most .05; q goes over all pairs and, with an atlas, over its regions too."
    )
    return [Table(caption, columns, cells)]


def number_cell(text: str) -> float | None:
    """Return the number of a cell, None where it is missing."""
    return None if text == "n/a" else float(text)
