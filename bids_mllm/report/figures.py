"""Figures as data: what a figure shows is a table and a few options, from which it is drawn again at any time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from bids_mllm.report.content import Cell


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
    options
        What else the drawer needs, as JSON holds it.
    """

    kind: str
    name: str
    title: str
    alt: str
    caption: str
    rows: tuple[Mapping[str, Cell], ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a figure without a text alternative and rows of different columns."""
        if not self.alt.strip():
            raise ValueError(f"The figure {self.name} has an empty text alternative; say in a sentence what it shows.")
        if any(tuple(row) != tuple(self.rows[0]) for row in self.rows):
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
