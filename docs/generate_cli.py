"""Write docs/reference/cli.md from the parsers of all commands. usage: python docs/generate_cli.py"""

import argparse
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from bids_mllm.cli import features, models, parser, selftest, simulate, templates

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "cli.md"
HEAD = """# Command line

This page is made from the parsers by `python docs/generate_cli.py`; a test fails when it is stale.

Every long option of `bids-mllm` may be written with underscores instead of hyphens. Options given on the
command line override those of `--config-file`. [bids-mllm.boutiques.json](bids-mllm.boutiques.json) describes the
command line for [Boutiques](https://boutiques.github.io).
"""
SCRIPT = "It is the file `bin/{}` of a clone, which needs Python 3.8 or newer and nothing else.\n"
CALLED = "`bin/{}` of a clone makes an environment for the app and calls this.\n"
#: Commands that a script in bin/ calls.
CALLERS = {
    "bids-mllm-models prefetch": "prefetch-models",
    "bids-mllm-templates prefetch": "prefetch-templates",
}


def cli_page() -> str:
    """Return the whole page as Markdown."""
    lines = [HEAD]
    for command in commands():
        lines += _command(command)
    return "\n".join(lines)


def commands() -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of every command, and of every command within one."""
    for build in builders().values():
        command = build()
        yield command
        for action in command._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()


def builders() -> dict[str, Callable[[], argparse.ArgumentParser]]:
    """Return what builds the parser of each command, by the command's name."""
    modules = (parser, models, templates, features, simulate, selftest, *map(load_script, standalone_scripts()))
    return {module.build_parser().prog: module.build_parser for module in modules}


def standalone_scripts() -> list[Path]:
    """Return the scripts in bin/ that are written in Python."""
    files = sorted(path for path in (ROOT / "bin").iterdir() if path.is_file())
    return [path for path in files if path.read_bytes().startswith(b"#!/usr/bin/env python3\n")]


def load_script(path: Path) -> ModuleType:
    """Import a script, whose name is no module's, without leaving byte code in bin/."""
    name = path.name.replace("-", "_")
    spec = spec_from_loader(name, SourceFileLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def help_text(action: argparse.Action) -> str:
    """Return what the help says of an argument, with its default in place."""
    return argparse.HelpFormatter("")._expand_help(action) if action.help else ""


def _command(command: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## {command.prog}\n"
    yield f"{command.description}\n" if command.description else ""
    if any(path.name == command.prog for path in standalone_scripts()):
        yield SCRIPT.format(command.prog)
    if command.prog in CALLERS:
        yield CALLED.format(CALLERS[command.prog])
    if command.usage:
        yield f"Usage: `{command.usage}`\n"
    for group in command._action_groups:
        if group._group_actions:
            yield f"### {group.title}\n"
            if group.description:
                yield f"{group.description}\n"
            yield from (_entry(action) for action in group._group_actions)
            yield ""
    if command.epilog:
        yield _epilog(command)


def _epilog(command: argparse.ArgumentParser) -> str:
    if issubclass(command.formatter_class, argparse.RawDescriptionHelpFormatter):
        return f"```text\n{command.epilog}\n```\n"
    return f"{command.epilog}\n"


def _entry(action: argparse.Action) -> str:
    spellings = [name for name in action.option_strings if "_" not in name] or [positional(action)]
    first, *others = sorted(spellings, key=lambda name: not name.startswith("--"))
    # argparse hides the value of positional arguments in their name.
    value = _value(action) if action.option_strings else _choices(action)
    also = f" (also {', '.join(f'`{name}`' for name in others)})" if others else ""
    text = help_text(action)
    return f"- `{f'{first} {value}'.strip()}`{also}{f': {text}' if text else ''}"


def positional(action: argparse.Action) -> str:
    """Return what the help calls an argument without an option; commands within a command go by what they are."""
    return action.dest if action.choices else str(action.metavar or action.dest)


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
