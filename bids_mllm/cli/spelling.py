"""A parser that takes every long option with underscores too."""

import argparse
from typing import Any


class Parser(argparse.ArgumentParser):
    """Accepts every long option with underscores too."""

    def add_option(self, group: Any, *names: str, **options: Any) -> None:
        """Add an option to a group under its names, with hyphens and with underscores."""
        spellings = [s for name in names for s in dict.fromkeys((name, _underscored(name)))]
        group.add_argument(*spellings, **options)


def _underscored(name: str) -> str:
    return "--" + name[2:].replace("-", "_") if name.startswith("--") else name
