"""What the sections of a page are made of: ready values, each of one kind that the template knows."""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup

Cell = str | int | float | None
#: Media types of pictures by how their files begin.
_MEDIA_TYPES = {b"\x89PNG": "image/png", b"RIFF": "image/webp"}


@dataclass(frozen=True)
class Picture:
    """A PNG, WebP or SVG with its text alternative (what it shows, for readers who do not see it)."""

    data: bytes
    alt: str
    caption: str = ""
    kind: ClassVar[str] = "picture"

    def __post_init__(self) -> None:
        """Refuse a picture without a text alternative."""
        if not self.alt.strip():
            raise ValueError("A picture has an empty text alternative; say in a sentence what it shows.")

    @property
    def data_uri(self) -> str:
        """The picture as a data URI."""
        media_type = next(
            (kind for start, kind in _MEDIA_TYPES.items() if self.data.startswith(start)), "image/svg+xml"
        )
        return f"data:{media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows; `rows` hold one cell a column."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        """Refuse rows of another length than the header."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"A row of the table {self.caption!r} has {len(row)} cells, but {len(self.columns)} "
                    "columns are named; pass one cell a column."
                )

    @property
    def filtered(self) -> bool:
        """Whether the page offers to show only rows that hold some text: tables of regions are long."""
        return "ROI" in self.columns


@dataclass(frozen=True)
class Paragraph:
    """One paragraph of plain text."""

    text: str
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Bullets:
    """A list of sentences; `tone` colours it ('plain', 'warning' or 'error')."""

    items: tuple[str, ...]
    tone: str = "plain"
    kind: ClassVar[str] = "bullets"


@dataclass(frozen=True)
class Links:
    """A list of pages in the same folder: what is on each, and its file name."""

    items: tuple[tuple[str, str], ...]
    kind: ClassVar[str] = "links"

    def __post_init__(self) -> None:
        """Refuse what is no page beside this one."""
        for _, name in self.items:
            if not re.fullmatch(r"[\w.+-]+\.html", name):
                raise ValueError(f"A link goes to {name!r}; name an HTML file in the folder of the page.")


@dataclass(frozen=True)
class Facts:
    """Names and their values, e.g. the settings of the run."""

    items: Mapping[str, Cell]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Article:
    """Markdown with citations, shown with its list of references."""

    markdown: str
    bibliography: str = ""
    kind: ClassVar[str] = "article"


@dataclass(frozen=True)
class ViewerBlock:
    """Maps to turn and to choose from; made by `viewer.viewer_block`.

    `content` is what the script of the page reads, `picture` what is seen without it, and `notes` are sentences about
    what the viewer leaves out.
    """

    content: Mapping[str, Any]
    picture: Picture
    caption: str
    notes: tuple[str, ...] = ()
    kind: ClassVar[str] = "viewer"

    @property
    def markup(self) -> Markup:
        """The content as JSON that cannot end the element it stands in."""
        return _json_markup(self.content)


@dataclass(frozen=True)
class ExplorerBlock:
    """Curves of the scores of regions over layers to choose from; made by `explorer.explorer_block`."""

    content: Mapping[str, Any]
    caption: str
    kind: ClassVar[str] = "explorer"

    @property
    def markup(self) -> Markup:
        """The content as JSON that cannot end the element it stands in."""
        return _json_markup(self.content)


def _json_markup(content: Mapping[str, Any]) -> Markup:
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


Block = Picture | Table | Paragraph | Heading | Bullets | Links | Facts | Article | ViewerBlock | ExplorerBlock


@dataclass(frozen=True)
class Section:
    """A part of a page; where it has no blocks, the page shows the sentence `empty`."""

    identifier: str
    title: str
    empty: str
    blocks: tuple[Block, ...] = field(default=())


def cell_text(value: Cell) -> str:
    """Return a cell as text: integers whole, floats to three digits after the point, nothing as n/a."""
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return "n/a" if value != value else f"{value:.3f}"
    return str(value)
