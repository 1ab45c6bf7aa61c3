"""Write docs/reference/cli.md from the parsers of all commands. usage: python docs/generate_cli.py"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from bids_mllm.cli import features, models, parser, simulate

PAGE = Path(__file__).parent / "reference" / "cli.md"
HEAD = """# Command line

This page is made from the parsers by `python docs/generate_cli.py`; a test fails when it is stale.

Every long option of `bids-mllm` may be written with underscores instead of hyphens. Options given on the
command line override those of `--config-file`.
"""


def cli_page() -> str:
    """Return the whole page as Markdown."""
    lines = [HEAD]
    for command in commands():
        lines += _command(command)
    return "\n".join(lines)


def commands() -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of every command, and of every command within one."""
    for build in (parser, models, features, simulate):
        command = build.build_parser()
        yield command
        for action in command._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()


def _command(command: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## {command.prog}\n"
    yield f"{command.description}\n" if command.description else ""
    for group in command._action_groups:
        if group._group_actions:
            yield f"### {group.title}\n"
            yield from (_entry(action) for action in group._group_actions)
            yield ""
    if command.epilog:
        yield f"{command.epilog}\n"


def _entry(action: argparse.Action) -> str:
    spellings = [name for name in action.option_strings if "_" not in name] or [action.dest]
    first, *others = sorted(spellings, key=lambda name: not name.startswith("--"))
    # argparse hides the value of positional arguments in their name.
    value = _value(action) if action.option_strings else _choices(action)
    also = f" (also {', '.join(f'`{name}`' for name in others)})" if others else ""
    return f"- `{f'{first} {value}'.strip()}`{also}: {action.help}"


def _value(action: argparse.Action) -> str:
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    if action.nargs == 0:
        return ""
    name = action.metavar or _choices(action) or action.dest.upper()
    repeated = {"+": f"{name} [{name} ...]", "*": f"[{name} ...]"}
    return repeated.get(str(action.nargs), str(name))


def _choices(action: argparse.Action) -> str:
    return "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""


if __name__ == "__main__":
    PAGE.write_text(cli_page(), encoding="utf-8")
