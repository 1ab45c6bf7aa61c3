"""Write the tables of docs/reference/models.md from the registry. usage: python docs/generate_models.py"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bids_mllm.features.registry import load_families, load_records, load_unavailable

PAGE = Path(__file__).parent / "reference" / "models.md"
BLOCK = re.compile(r"(<!-- table: ([\w ]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def models_page(text: str) -> str:
    """Return the page with every block between ``<!-- table: NAME -->`` and ``<!-- end -->`` made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{_block(block[2])}{block[3]}", text)


def _block(name: str) -> str:
    """Return the table of a name."""
    kind, _, family = name.partition(" ")
    makers = {"records": _records, "sizes": _sizes, "families": _families, "unavailable": _unavailable}
    rows = list(_parameters(family)) if kind == "parameters" else list(makers[kind]())
    return "".join(_table(rows))


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table; the first row is its head."""
    for i, row in enumerate(rows):
        yield (
            "| " + " | ".join(row) + " |\n" if all(row) else "|" + "|".join(f" {c} " if c else " " for c in row) + "|\n"
        )
        if i == 0:
            yield "|" + "---|" * len(row) + "\n"


def _code(value: Any) -> str:
    """Return a value as code, nothing for nothing."""
    return f"`{value}`" if value not in (None, "") else ""


def _records() -> Iterator[Sequence[str]]:
    yield "Key", "Family", "Kind", "Reads", "Source", "Revision", "Licence", "dtype"
    for record in load_records().values():
        s = record.spec
        dtype = s.dtype if s.source else ""
        yield _code(s.key), _code(s.family), s.kind, s.media, _code(s.source), _code(s.revision), s.licence, dtype


def _sizes() -> Iterator[Sequence[str]]:
    yield "Key", "Layers", "Features a layer", "Weights in GB", "Commercial use"
    for record in load_records().values():
        s = record.spec
        if s.source:
            numbers = (s.layers, s.width, s.memory_gb)
            commercial = {True: "yes", False: "no", None: "?"}[s.commercial]
            yield _code(s.key), *("?" if number is None else str(number) for number in numbers), commercial


def _families() -> Iterator[Sequence[str]]:
    yield "Family", "`model_type`", "Reads", "Kind", "With `--sloppy`"
    for family in load_families().values():
        if family.model_types:
            types = ", ".join(map(_code, family.model_types))
            sloppy = ", ".join(f"`{name}` {value}" for name, value in family.sloppy.items())
            yield _code(family.name), types, family.media, family.kind, sloppy


def _unavailable() -> Iterator[Sequence[str]]:
    yield "Asked for", "Source", "Why not, and what instead"
    for model in load_unavailable():
        yield _code(model.key), _code(model.source), model.reason


def _parameters(family: str) -> Iterator[Sequence[str]]:
    yield "Parameter", "Model", "Value", "With `--sloppy`"
    for record in load_records().values():
        if record.spec.family == family:
            for name, value in record.spec.parameters.items():
                yield _code(name), _code(record.spec.key), _value(value), _value(record.sloppy.get(name, ""))


def _value(value: Any) -> str:
    """Return a parameter's value as text."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return _code(value) if isinstance(value, str) else str(value)


if __name__ == "__main__":
    PAGE.write_text(models_page(PAGE.read_text("utf-8")), encoding="utf-8")
