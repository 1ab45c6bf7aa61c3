"""The command ``bids-mllm-models``: what the registry holds, whether a checkpoint fits, and fetching one."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_mllm import __version__
from bids_mllm.cli.environment import settle_home
from bids_mllm.exceptions import BidsMllmError, UsageError

if TYPE_CHECKING:
    from bids_mllm.features.models.check import Finding
    from bids_mllm.records import ModelSpec

COLUMNS = ("key", "kind", "hub id", "layers x width", "licence", "commercial", "memory")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="bids-mllm-models",
        description="List the models of the registry, check a checkpoint against its record, or fetch one from the "
        "hub. Only prefetch uses a network.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_list(commands)
    _add_show(commands)
    _add_check(commands)
    _add_prefetch(commands)
    return parser


def _add_list(commands: Any) -> None:
    parser = commands.add_parser("list", help="table of all models", description="Print a table of all models.")
    parser.add_argument("--kind", metavar="KIND", help="models whose kind begins with this, such as in-context")
    parser.add_argument("--json", action="store_true", help="all fields of every record, as JSON")


def _add_show(commands: Any) -> None:
    parser = commands.add_parser("show", help="every field of a record", description="Print every field of a record.")
    parser.add_argument("key", metavar="KEY", help="key of the registry or hub id")


def _add_check(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="compare a checkpoint with its record",
        description="Load what a checkpoint has besides its weights, look at the headers of these, compare both with "
        "the record, and print a line for each finding: ok, note or wrong.",
        epilog="Exit status: 0 nothing is wrong; 1 something is; 2 wrong usage.",
    )
    parser.add_argument("key", metavar="KEY", help="key of the registry, LABEL, hub id or folder")
    parser.add_argument("path", nargs="?", metavar="PATH", help="folder of the checkpoint (default: the hub's cache)")
    _add_source_options(parser)


def _add_prefetch(commands: Any) -> None:
    parser = commands.add_parser(
        "prefetch",
        help="fetch checkpoints from the hub",
        description="Fetch checkpoints from the hub into DIR/KEY and check them. Settings, tokenizers and weights as "
        "safetensors are fetched; pickled weights never are.",
        epilog="Exit status: 0 done; 1 a finding is wrong; 2 wrong usage; 70 a checkpoint cannot be fetched.",
    )
    parser.add_argument("keys", nargs="+", metavar="KEY", help="keys of the registry or hub ids")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder that gets a folder a model")
    _add_source_options(parser)
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="also fetch the Python files of a model that runs code from its own repository; read them first",
    )


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", metavar="REV", help="commit, tag or branch (default: the record's)")
    parser.add_argument("--family", metavar="NAME", help="family of a hub id or folder that does not tell it")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 a finding is wrong, 2 usage, 70 unusable checkpoint."""
    options = build_parser().parse_args(argv)
    commands = {"list": _list, "show": _show, "check": _check, "prefetch": _prefetch}
    try:
        settle_home()
        return commands[options.command](options)
    except BidsMllmError as error:
        sys.stderr.write(f"bids-mllm-models: {error}\n")
        return error.exit_status


def _list(options: argparse.Namespace) -> int:
    """Print the table of models, or their records as JSON."""
    from bids_mllm.features.registry import load_records, load_unavailable

    records = [r for r in load_records().values() if r.spec.kind.startswith(options.kind or "")]
    if not records:
        kinds = sorted({record.spec.kind for record in load_records().values()})
        raise UsageError(f"No model is of the kind {options.kind!r}; choose from {', '.join(kinds)}.")
    if options.json:
        values = [{**asdict(record.spec), "sloppy": dict(record.sloppy)} for record in records]
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return 0
    sys.stdout.writelines(_table([COLUMNS, *(_row(record.spec) for record in records)]))
    if options.kind is None:
        sys.stdout.writelines(f"{model.key} cannot be had: {model.reason}\n" for model in load_unavailable())
    return 0


def _row(spec: "ModelSpec") -> tuple[str, ...]:
    """Return the cells of a model's row in the order of `COLUMNS`."""
    size = f"{spec.layers or '?'} x {spec.width or '?'}" if spec.source else ""
    commercial = {True: "yes", False: "no", None: "?"}[spec.commercial] if spec.source else ""
    memory = f"{spec.memory_gb} GB {spec.dtype}" if spec.memory_gb is not None else "?" if spec.source else ""
    return spec.key, spec.kind, spec.source, size, spec.licence or ("?" if spec.source else ""), commercial, memory


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip() + "\n"


def _show(options: argparse.Namespace) -> int:
    """Print every field of a record, one a line; what is not known is a question mark."""
    from bids_mllm.features.registry import load_families, load_records, resolve_models

    (spec,) = resolve_models([options.key])
    record = load_records().get(spec.key)
    family = load_families().get(spec.family)
    values = {name: value for name, value in asdict(spec).items() if name not in ("weights", "parameters")}
    sloppy = dict(record.sloppy) if record is not None else {}
    values |= {"parameters": _words(dict(spec.parameters)), "with --sloppy": _words(sloppy)}
    if family is not None:
        values |= {"code": family.target, "remote code": "yes" if family.remote_code else "no"}
    sys.stdout.writelines(f"{name}: {_word(value)}\n" for name, value in values.items())
    return 0


def _words(values: dict[str, Any]) -> str:
    """Return parameters as ``name = value, ...``."""
    return ", ".join(f"{name} = {value}" for name, value in values.items()) or "none"


def _word(value: Any) -> str:
    """Return a value as it is shown."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "?" if value in (None, "") else str(value)


def _check(options: argparse.Namespace) -> int:
    """Compare a checkpoint with its record and print the findings."""
    from bids_mllm.features.registry import resolve_models

    request = options.key if options.path is None else f"{options.key}={options.path}"
    (spec,) = resolve_models([request], revision=options.revision, family=options.family)
    if not spec.source:
        raise UsageError(f"The model {spec.key} has no checkpoint, so there is nothing to check.")
    return _report(spec)


def _report(spec: "ModelSpec") -> int:
    """Check a model, print a line a finding, and return 1 where one is wrong."""
    from bids_mllm.features.models.check import check_model

    findings = check_model(spec)
    sys.stdout.writelines(_line(finding) for finding in findings)
    n_wrong = sum(finding.verdict == "wrong" for finding in findings)
    sys.stdout.write(f"{spec.key}: {n_wrong} of {len(findings)} findings are wrong\n")
    return 1 if n_wrong else 0


def _line(finding: "Finding") -> str:
    return f"{finding.verdict.ljust(5)}  {finding.topic}: {finding.text}\n"


def _prefetch(options: argparse.Namespace) -> int:
    """Fetch checkpoints, check each, and say how to name them."""
    from bids_mllm.features.models.fetch import fetch_checkpoint
    from bids_mllm.features.registry import RANDOM, resolve_models

    specs = [
        replace(spec, key=spec.key.removesuffix(RANDOM), weights="pretrained")
        for spec in resolve_models(options.keys, revision=options.revision, family=options.family)
    ]
    for spec in specs:
        check_fetchable(spec, options.trust_remote_code)
    status = 0
    for spec in specs:
        folder = options.to / spec.key
        commit = fetch_checkpoint(spec, folder, remote_code=options.trust_remote_code)
        sys.stdout.write(f"{spec.key}: {spec.source} at commit {commit} is in {folder}\n")
        status = max(status, _report(replace(spec, source=str(folder.absolute()), revision=None)))
    named = " ".join(f"{spec.key}={options.to / spec.key}" for spec in specs)
    sys.stdout.write(f"Ask for them with: --models {named}\n")
    return status


def check_fetchable(spec: "ModelSpec", trust_remote_code: bool) -> None:
    """Raise a UsageError for a model that is not on the hub, or runs code that is not asked for."""
    from bids_mllm.features.registry import is_hub_id, load_families

    if not spec.source:
        raise UsageError(f"The model {spec.key} has no weights, so there is nothing to fetch.")
    if not is_hub_id(spec.source):
        raise UsageError(f"{spec.source} is a folder, so there is nothing to fetch; give a key or a hub id.")
    family = load_families().get(spec.family)
    if family is not None and family.remote_code and not trust_remote_code:
        raise UsageError(
            f"The model {spec.key} runs code from the repository {spec.source}; read it there, and add "
            "--trust-remote-code to fetch it."
        )


if __name__ == "__main__":
    sys.exit(main())
