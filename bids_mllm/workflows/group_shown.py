"""Tables of the group's page about classes of models, pairs of instructions and what voxels prefer."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from bids_mllm.io.results import ModelResult
from bids_mllm.report.content import Block, Cell, Table
from bids_mllm.workflows.figure_tables import atlas_tables, number_of

#: Regions of the long tables that pages show; all are in the files.
SHOWN_KINDS = ("all", "set")
#: Choices shown of a model in a region.
N_CHOICES = 3


def class_tables(results: Sequence[ModelResult]) -> tuple[Table, ...]:
    """Return classes of models against each other: over participants, and over the runs of each participant.

    Parameters
    ----------
    results
        What participants finished.
    """
    tables = []
    for name in dict.fromkeys(result.name.of_group() for result in results):
        for _, rows in atlas_tables(name, results[0].output_dir, "classcomparison"):
            over = [row for row in rows if row["unit"] == "participant"]
            within = [row for row in rows if row["unit"] != "participant"]
            if over:
                caption = (
                    f"Classes of models over participants ({name.place}): r of A less r of B in percent of B and as "
                    "difference, with 95 % intervals; the unit is the participant."
                )
                tables.append(Table(caption, ("ROI", *_CLASSES, "Participants", *_TESTED), _over(over)))
            if within:
                caption = (
                    f"Classes of models within each participant ({name.place}), all {name.units}: the unit is the run; "
                    "intervals by bootstrap over runs."
                )
                tables.append(Table(caption, ("Participant", *_CLASSES, "Runs", *_TESTED), _within(within)))
    return tuple(tables)


_CLASSES = ("Class A", "Class B")
_TESTED = ("Percent", "Percent from", "Percent to", "Difference of r", "From", "To", "p sign flip", "p Wilcoxon",
           "Smallest p")  # fmt: skip
_NUMBERS = (
    "percent_difference", "percent_low", "percent_high", "mean_difference", "low", "high", "p_sign_flip", "p_wilcoxon",
    "smallest_p",
)  # fmt: skip


def _over(rows: Sequence[Mapping[str, str]]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(
        (row["roi"], row["class_a"], row["class_b"], int(row["n_participants"]), *(number_of(row[k]) for k in _NUMBERS))
        for row in rows
    )


def _within(rows: Sequence[Mapping[str, str]]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(
        (
            f"sub-{row['participant']}", row["class_a"], row["class_b"], int(row["n_runs"]),
            *(number_of(row[k]) for k in _NUMBERS),
        )
        for row in rows
    )  # fmt: skip


def partition_blocks(results: Sequence[ModelResult]) -> tuple[Block, ...]:
    """Return what pairs of instructions explain alone and together, in all places and in sets of regions.

    Parameters
    ----------
    results
        What participants finished.
    """
    blocks: list[Block] = []
    parts = ("unique_a", "unique_b", "shared", "joint", "shared_percent")
    for name in dict.fromkeys(result.name.of_group() for result in results):
        for _, rows in atlas_tables(name, results[0].output_dir, "partition"):
            shown = [row for row in rows if row["kind"] in SHOWN_KINDS]
            for measure in dict.fromkeys(row["measure"] for row in shown):
                cells = tuple(
                    (
                        row["roi"], row["model"], row["condition_a"], row["condition_b"],
                        *(number_of(row[part]) for part in parts), int(row["n_participants"]),
                    )
                    for row in shown
                    if row["measure"] == measure
                )  # fmt: skip
                columns = (
                    "ROI", "Model", "Condition A", "Condition B", "Unique A", "Unique B", "Shared", "Joint",
                    "Shared in percent of joint", "Participants",
                )  # fmt: skip
                caption = f"Unique and shared parts of pairs of instructions in {measure}, mean over participants."
                blocks.append(Table(f"{caption} ({name.place})", columns, cells))
    return tuple(blocks)


def choice_tables(results: Sequence[ModelResult]) -> tuple[Table, ...]:
    """Return the conditions and layers that most voxels of a region prefer, counted over participants.

    Parameters
    ----------
    results
        What participants finished.
    """
    tables = []
    for name in dict.fromkeys(result.name.of_group() for result in results):
        for atlas, rows in atlas_tables(name, results[0].output_dir, "choicecounts"):
            for choice in ("condition", "layer"):
                cells = _most_chosen([row for row in rows if row["choice"] == choice and row["kind"] != "area"])
                if cells:
                    caption = (
                        f"Which {choice} the {name.units} of a region prefer by the training-internal score, counted "
                        f"over participants where held-out r is above 0; the first {N_CHOICES} "
                        f"({f'{atlas}, ' if atlas else ''}{name.place})."
                    )
                    columns = ("ROI", "Model", choice.capitalize(), name.units.capitalize(), "Share")
                    tables.append(Table(caption, columns, cells))
    return tuple(tables)


def _most_chosen(rows: Sequence[Mapping[str, str]]) -> tuple[tuple[Cell, ...], ...]:
    """Return region, model, value, count and share of the first choices of each model with more than one."""
    counts: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        counts[row["roi"], row["model"]][row["value"]] += int(float(row["count"]))
    cells: list[tuple[Cell, ...]] = []
    for (roi, model), by_value in counts.items():
        total = sum(by_value.values())
        if len(by_value) < 2 or not total:
            continue
        first = sorted(by_value.items(), key=lambda item: -item[1])[:N_CHOICES]
        cells += [(roi, model, value, count, count / total) for value, count in first if count]
    return tuple(cells)
