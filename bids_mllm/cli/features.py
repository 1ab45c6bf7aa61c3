"""The command ``bids-mllm-features``: what a feature store holds, whether it is whole, and what can go."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bids_mllm import __version__
from bids_mllm.exceptions import BidsMllmError

COLUMNS = (
    "entry", "model", "media", "pooling", "instruction", "windows", "layers", "features", "chunks", "masked",
    "float32_layers", "MB",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="bids-mllm-features",
        description="List, check and tidy a store of features, by default OUT/sourcedata/features of bids-mllm.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", help="one of:")
    listing = commands.add_parser(
        "ls",
        help="list the entries as a table",
        description="Print a table with one row an entry: a model under one read-out of one stimulus. The column "
        "chunks counts the chunks of 64 windows that are there and in all.",
    )
    verify = commands.add_parser(
        "verify",
        help="check every file",
        description="Read every file and check its shape and its checksums. Ends with status 1 when one is damaged.",
    )
    verify.add_argument(
        "--remove", action="store_true", help="remove the damaged files, which the next run of bids-mllm makes anew"
    )
    collect = commands.add_parser(
        "gc",
        help="remove what nobody needs",
        description="Remove entries of formats that are not read any more, what processes that died left behind, and "
        "claims of jobs that ended. What a living job has claimed is left alone.",
    )
    collect.add_argument(
        "--keep-days", type=_days, metavar="N", help="remove entries too that were not used for more than N days"
    )
    collect.add_argument("--incomplete", action="store_true", help="remove entries too that lack a part")
    collect.add_argument("--dry-run", action="store_true", help="remove nothing; tell what would be removed")
    for command in (listing, verify, collect):
        command.add_argument("store", type=Path, metavar="STORE", help="folder of the feature store")
    return parser


def _days(text: str) -> float:
    days = float(text)
    if not days >= 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of days; give 0 or more")
    return days


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 damage or a store that cannot be used, 2 usage."""
    options = build_parser().parse_args(argv)
    commands: dict[str, Callable[[argparse.Namespace], int]] = {"ls": _list, "verify": _verify, "gc": _collect}
    try:
        return commands[options.command](options)
    except BidsMllmError as error:
        sys.stderr.write(f"bids-mllm-features: {error}\n")
        return error.exit_status


def _list(options: argparse.Namespace) -> int:
    from bids_mllm.exceptions import StoreError
    from bids_mllm.io.chunks import Damage
    from bids_mllm.io.upkeep import entry_folders, summarise

    status = 0
    sys.stdout.write("\t".join(COLUMNS) + "\n")
    for folder in entry_folders(options.store):
        try:
            entry = summarise(folder)
        except Damage as damage:
            sys.stderr.write(f"bids-mllm-features: {folder} has a description that cannot be used: {damage}.\n")
            status = 1
            continue
        except StoreError as error:
            sys.stderr.write(f"bids-mllm-features: {error}\n")
            status = 1
            continue
        cells = (
            entry.digest[:12],
            entry.model,
            entry.media,
            entry.pooling,
            " ".join(entry.instruction.split()) or "n/a",
            entry.n_windows,
            entry.n_layers,
            entry.width,
            f"{entry.n_done}/{entry.n_chunks}",
            entry.n_masked,
            entry.n_float32,
            f"{entry.n_bytes / 1e6:.1f}",
        )
        sys.stdout.write("\t".join(map(str, cells)) + "\n")
    return status


def _verify(options: argparse.Namespace) -> int:
    from bids_mllm.io.upkeep import find_damaged_files, remove

    status = 0
    for finding in find_damaged_files(options.store):
        status = 1
        if options.remove:
            remove(finding.path)
        what = "removed" if options.remove else "damaged"
        sys.stdout.write(f"{what}\t{finding.path.relative_to(options.store)}\t{finding.reason}\n")
    return status


def _collect(options: argparse.Namespace) -> int:
    from bids_mllm.io.upkeep import find_garbage, remove

    freed = 0
    for finding in find_garbage(options.store, keep_days=options.keep_days, incomplete=options.incomplete):
        if not options.dry_run:
            remove(finding.path)
        freed += finding.n_bytes
        what = "would remove" if options.dry_run else "removed"
        path = finding.path.relative_to(options.store)
        sys.stdout.write(f"{what}\t{finding.n_bytes}\t{path}\t{finding.reason}\n")
    sys.stdout.write(f"{'would free' if options.dry_run else 'freed'} {freed} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
