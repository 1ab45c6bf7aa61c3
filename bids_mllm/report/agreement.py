"""The agreement with a published study as blocks of a page."""

from dataclasses import dataclass

from bids_mllm.report.content import Block, Bullets, Cell, Paragraph, Table

COLUMNS = ("Figure", "Published", "Found", "Found less published", "Agreement", "Participants", "Note", "Source")


@dataclass(frozen=True)
class AgreementRow:
    """One published figure beside what was found; `within` is None where nothing was found, and `note` says why."""

    what: str
    published: str
    source: str
    found: float | None = None
    difference: float | None = None
    within: bool | None = None
    n_participants: int | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """The agreement in a few words."""
        return {None: "not run", True: "within the tolerance", False: "differs"}[self.within]


def agreement_content(
    title: str, tables: tuple[tuple[str, tuple[AgreementRow, ...]], ...], *, unlike: tuple[str, ...]
) -> tuple[Block, ...]:
    """Return what a page says of the agreement with a study.

    Parameters
    ----------
    title
        The study.
    tables
        A caption and rows for each space and atlas.
    unlike
        Sentences on what is not as in the study; with any, differences tell nothing of the study.
    """
    blocks: list[Block] = [
        Paragraph(
            f"Figures that {title} publishes beside those found here. The tolerance is how exactly the published "
            "value is known, such as to what a bar can be read off a chart. It is no interval of confidence: a "
            "difference beyond it may be chance or a choice that the paper does not state."
        )
    ]
    if unlike:
        blocks.append(
            Paragraph(
                "What was analysed here is not what the study analysed, so a difference below is no failure to "
                "replicate it, and an agreement no success:"
            )
        )
        blocks.append(Bullets(unlike, "warning"))
    blocks += [Table(f"{caption}. {_counted(rows)}", COLUMNS, tuple(map(_cells, rows))) for caption, rows in tables]
    return tuple(blocks)


def _counted(rows: tuple[AgreementRow, ...]) -> str:
    within = sum(row.within is True for row in rows)
    run = sum(row.within is not None for row in rows)
    return (
        f"{within} of {run} compared figures lie within the tolerance; {len(rows) - run} of {len(rows)} were not run."
    )


def _cells(row: AgreementRow) -> tuple[Cell, ...]:
    return (
        row.what, row.published, row.found, row.difference, row.verdict, row.n_participants, row.note, row.source,
    )  # fmt: skip
