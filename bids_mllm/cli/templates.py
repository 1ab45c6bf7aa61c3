"""The command ``bids-mllm-templates``: what TemplateFlow's folder holds of what the app reads, and fetching it."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_mllm import __version__
from bids_mllm.cli.environment import settle_home
from bids_mllm.exceptions import BidsMllmError, UsageError

if TYPE_CHECKING:
    from bids_mllm.io.templates import Template

PROGRAM = "bids-mllm-templates"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Say which of TemplateFlow's files that bids-mllm reads are there, or fetch them. Only prefetch "
        "uses a network.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", help="one of:")
    listing = commands.add_parser(
        "list",
        help="what is there and what is missing",
        description="Print a table of what bids-mllm reads from TemplateFlow's folder: here or missing, what it is, "
        "and a file of it.",
    )
    listing.add_argument("--home", type=Path, metavar="DIR", help="the folder (default TEMPLATEFLOW_HOME)")
    fetching = commands.add_parser(
        "prefetch",
        help="fetch files",
        description="Fetch into DIR with TemplateFlow's client what is missing there. A file is whole or not there.",
        epilog="Exit status: 0 done; 2 wrong usage; 70 a file cannot be fetched. BIDS_MLLM_TEMPLATEFLOW_URL names "
        "another address than TemplateFlow's with the same files.",
    )
    fetching.add_argument("--to", type=Path, required=True, metavar="DIR", help="TemplateFlow's folder, or a new one")
    for command in (listing, fetching):
        _add_what(command)
    return parser


def _add_what(parser: Any) -> None:
    parser.add_argument(
        "--space",
        nargs="+",
        metavar="SPACE",
        help="spaces as in bids-mllm, such as MNI152NLin6Asym or fsLR (default: those for which there is most)",
    )
    parser.add_argument(
        "--atlas",
        nargs="*",
        metavar="NAME",
        help="Schaefer's atlases, such as Schaefer400 or Schaefer400x17 (default: all; none without a name)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 2 usage, 70 a file cannot be fetched."""
    options = build_parser().parse_args(argv)
    try:
        settle_home()
        wanted = wanted_templates(options.space, options.atlas)
        return _list(options, wanted) if options.command == "list" else _prefetch(options, wanted)
    except BidsMllmError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return error.exit_status


def wanted_templates(spaces: Sequence[str] | None, atlases: Sequence[str] | None) -> "tuple[Template, ...]":
    """Return what is asked for, each once.

    Parameters
    ----------
    spaces
        In the syntax of ``--space`` of bids-mllm; None for those for which there is most.
    atlases
        Names of Schaefer's atlases; None for all that there are.

    Raises
    ------
    UsageError
        For a space or an atlas that TemplateFlow does not have.
    """
    from bids_mllm.discover.spaces import parse_space
    from bids_mllm.io.template_fetch import held_choice
    from bids_mllm.io.templates import SCHAEFER_NETWORKS, SCHAEFER_SCALES, SPACES, schaefer, templates_of

    named = tuple(dict.fromkeys(parse_space(text).space for text in spaces)) if spaces else SPACES
    sizes = [_size(name) for name in atlases] if atlases is not None else None
    found: dict[Template, None] = {}
    for space in named:
        figures = templates_of(space)
        found |= dict.fromkeys(figures)
        every = sizes if sizes is not None else [(n, k) for n in SCHAEFER_SCALES for k in SCHAEFER_NETWORKS]
        parcels = [template for n, k in every if (template := schaefer(space, n, k)) is not None]
        held = [template for template in parcels if held_choice(template)]
        found |= dict.fromkeys(held)
        if spaces and not any(map(held_choice, figures)) and not held:
            raise UsageError(f"TemplateFlow has nothing for {space} that bids-mllm reads; check --space.")
    if sizes and not any("Schaefer" in template.purpose for template in found):
        raise UsageError(f"TemplateFlow has none of {', '.join(atlases or ())} in {', '.join(named)}; check --atlas.")
    return tuple(template for template in found if held_choice(template))


def _size(name: str) -> tuple[str, str]:
    """Return the numbers of parcels and networks of a name."""
    from bids_mllm.io.atlas_find import SCHAEFER

    match = SCHAEFER.fullmatch(name)
    if match is None:
        raise UsageError(
            f"--atlas {name} does not come from TemplateFlow; give Schaefer100 to Schaefer1000, with x17 for 17 "
            "networks."
        )
    return match["n"], match["k"] or "7"


def _list(options: argparse.Namespace, wanted: "Sequence[Template]") -> int:
    """Print a line for each template."""
    from bids_mllm.io.template_fetch import held_choice
    from bids_mllm.io.templates import find_template, templates_folder

    home = options.home or templates_folder()
    if home is None:
        raise UsageError("TEMPLATEFLOW_HOME is not set and there is no home folder; set it, or give --home.")
    n_missing = 0
    for template in wanted:
        paths = find_template(template, home)
        n_missing += paths is None
        word, name = ("here   ", paths[0]) if paths else ("missing", home / held_choice(template)[0])
        sys.stdout.write(f"{word}  {template.purpose.ljust(42)}  {name}\n")
    sys.stdout.write(f"{len(wanted) - n_missing} of {len(wanted)} are in {home}\n")
    if n_missing:
        sys.stdout.write(f"Fetch the others on a connected machine with: {PROGRAM} prefetch --to DIR\n")
    return 0


def _prefetch(options: argparse.Namespace, wanted: "Sequence[Template]") -> int:
    """Fetch what is missing, and say how to name the folder."""
    from bids_mllm.io.template_fetch import fetch_templates

    for path in fetch_templates(wanted, options.to):
        sys.stdout.write(f"{path} ({path.stat().st_size / 1e6:.1f} MB)\n")
        sys.stdout.flush()
    home = shlex.quote(str(options.to.absolute()))
    sys.stdout.write(f"All {len(wanted)} are there. Point to them with: export TEMPLATEFLOW_HOME={home}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
