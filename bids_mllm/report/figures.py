"""Figures as data: what a figure shows is a table and a few options, from which it is drawn again at any time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from matplotlib.figure import Figure

from bids_mllm.records import FloatArray, IntArray
from bids_mllm.report.content import Cell


class ColumnRows(Sequence[Mapping[str, Cell]]):
    """Rows of a long table of numbers, kept as one array a column, since a map has hundreds of thousands of rows.

    Parameters
    ----------
    columns
        Arrays (n_rows,) of whole numbers, or of floats with NaN where there is no number, in the order of the table.
    """

    def __init__(self, columns: Mapping[str, IntArray | FloatArray]) -> None:
        self.columns = dict(columns)
        lengths = {len(values) for values in self.columns.values()}
        if len(lengths) != 1:
            raise ValueError(f"Columns of one table have one length, but these have {sorted(lengths)}.")
        (self._length,) = lengths

    def __len__(self) -> int:
        """Return how many rows there are."""
        return self._length

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Cell]: ...

    @overload
    def __getitem__(self, index: slice) -> "ColumnRows": ...

    def __getitem__(self, index: int | slice) -> "Mapping[str, Cell] | ColumnRows":
        """Return a row, None where it has no number."""
        if isinstance(index, slice):
            return ColumnRows({name: values[index] for name, values in self.columns.items()})
        numbers = {name: values[index].item() for name, values in self.columns.items()}
        return {name: None if number != number else number for name, number in numbers.items()}

    def __eq__(self, other: object) -> bool:
        """Whether the other holds the same numbers in the same columns."""
        if not isinstance(other, ColumnRows) or list(self.columns) != list(other.columns):
            return False
        pairs = ((values, other.columns[name]) for name, values in self.columns.items())
        return all(np.array_equal(one, two, equal_nan=True) for one, two in pairs)

    __hash__ = None  # type: ignore[assignment]


def columns_of(rows: Sequence[Mapping[str, Cell]]) -> dict[str, FloatArray]:
    """Return the columns of rows of numbers, NaN where a row has none; none without rows that are no `ColumnRows`."""
    if isinstance(rows, ColumnRows):
        return {name: np.asarray(values, dtype=float) for name, values in rows.columns.items()}
    names = rows[0] if rows else ()
    return {name: np.array([row[name] for row in rows], dtype=float) for name in names}


@dataclass(frozen=True)
class FigureData:
    """One figure without its drawing.

    Attributes
    ----------
    kind
        Which drawer draws it; a key of `DRAWERS`.
    name
        Stem of its files: letters, digits and hyphens, with entities as in file names.
    title, alt, caption
        Heading, text alternative and caption, plain text.
    rows
        The numbers that are drawn, each row with the same keys in the same order; written as a table beside the figure.
        Those of maps are `ColumnRows`.
    options
        What else the drawer needs, as JSON holds it.
    """

    kind: str
    name: str
    title: str
    alt: str
    caption: str
    rows: Sequence[Mapping[str, Cell]]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a figure without a text alternative and rows of different columns."""
        if not self.alt.strip():
            raise ValueError(f"The figure {self.name} has an empty text alternative; say in a sentence what it shows.")
        if not isinstance(self.rows, ColumnRows) and any(tuple(row) != tuple(self.rows[0]) for row in self.rows):
            raise ValueError(f"The rows of the figure {self.name} have different columns; give all the same ones.")


Drawer = Callable[[FigureData], Figure]
#: Which function draws which kind; modules of drawers add theirs with `drawer`.
DRAWERS: dict[str, Drawer] = {}


def drawer(kind: str) -> Callable[[Drawer], Drawer]:
    """Register a function as the one that draws figures of a kind."""

    def register(function: Drawer) -> Drawer:
        if kind in DRAWERS:
            raise ValueError(f"Figures of the kind {kind!r} have a drawer already; choose another name.")
        DRAWERS[kind] = function
        return function

    return register
