"""Write docs/reference/api.md from the public names of the rooms. usage: python docs/generate_api.py"""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parent / "reference" / "api.md"
ROOMS = ("fit", "score", "group")
HEAD = """# Functions of arrays

This page is made from the docstrings by `python docs/generate_api.py`; a test fails when it is stale. Everything here
works on NumPy arrays, without BIDS or nipype; `help(name)` gives shapes, units, errors and sources.
[How to use them](../howto/arrays.md).
"""


def api_page() -> str:
    """Return the whole page as Markdown."""
    return "\n".join([HEAD, *(line for room in ROOMS for line in _room(room))])


def _room(name: str) -> Iterator[str]:
    module = importlib.import_module(f"bids_mllm.{name}")
    yield f"## bids_mllm.{name}\n"
    yield f"{(module.__doc__ or '').splitlines()[0]}\n"
    yield "| Name | What it is |"
    yield "|---|---|"
    for public in module.__all__:
        thing = getattr(module, public)
        first = inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        yield f"| `{public}` | {first.replace('|', '/')} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(api_page(), encoding="utf-8")
