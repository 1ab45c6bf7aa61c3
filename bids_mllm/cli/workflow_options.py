"""Options of `bids-mllm` about resources, settings and what to do in one call."""

from pathlib import Path
from typing import Any

from bids_mllm.cli.presets import PrintPreset, preset_names
from bids_mllm.cli.spelling import Parser
from bids_mllm.config import NO_VIEWS
from bids_mllm.records import MAP_VIEWS


def add_workflow_options(parser: Parser) -> None:
    """Resources and the way the workflow runs."""
    group = parser.add_argument_group("resources and workflow")
    add = parser.add_option
    add(
        group,
        "-w",
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="folder for intermediate results, with a folder of its own in it for a call of one participant "
        "(default ./work)",
    )
    add(
        group,
        "--nprocs",
        "--nthreads",
        "--n-cpus",
        type=int,
        metavar="N",
        dest="nprocs",
        help="processes at most (default: what Slurm, the CPU affinity or the control group allows)",
    )
    add(group, "--omp-nthreads", type=int, metavar="N", help="threads of one process at most (default 1)")
    add(
        group,
        "--mem",
        metavar="SIZE",
        help="memory at most, with suffix K, M, G or T (MB without; default: nine tenths of "
        "what Slurm, the control group or the machine allows)",
    )
    _add_gpu_options(parser, group)
    add(
        group,
        "--use-plugin",
        "--nipype-plugin-file",
        type=Path,
        metavar="FILE",
        dest="use_plugin",
        help="YAML {plugin, plugin_args} for nipype",
    )
    add(
        group,
        "--random-seed",
        type=int,
        metavar="N",
        help="seed of libraries that draw random numbers (default 0)",
    )
    add(group, "--stop-on-first-crash", action="store_true", help="end at the first node that fails")
    add(group, "--clean-workdir", action="store_true", help="remove the work folder after success")
    add(group, "--resource-monitor", action="store_true", help="record memory and processor use of every node")
    _add_map_views(parser, group)
    add(
        group,
        "--sloppy",
        action="store_true",
        help="coarse low-level features: for trying out and tests only",
    )


def _add_gpu_options(parser: Parser, group: Any) -> None:
    add = parser.add_option
    add(
        group,
        "--device",
        metavar="{auto,cpu,cuda,cuda:N}",
        help="where models and fits run: auto takes the visible GPUs where PyTorch can use them, else the CPU; cuda:N "
        "is the N-th of the visible ones, from 0 (default auto)",
    )
    add(
        group,
        "--n-gpu-procs",
        type=int,
        metavar="N",
        help="processes on GPUs at once (default one for each); more than there are GPUs share them, and the least "
        "loaded comes first",
    )


def _add_map_views(parser: Parser, group: Any) -> None:
    parser.add_option(
        group,
        "--map-views",
        nargs="+",
        choices=(*MAP_VIEWS, NO_VIEWS),
        help="how the brain maps of the reports are drawn: glass (significant scores only), slices, inflated, flat, or "
        "none, which saves most of the time that reports take; a view that a space does not have is left out (default "
        "all)",
    )


def add_settings_options(parser: Parser) -> None:
    """Settings by name or from a file."""
    group = parser.add_argument_group("settings from a file")
    add = parser.add_option
    add(
        group,
        "--preset",
        metavar="NAME|FILE",
        help=f"settings of a study ({', '.join(preset_names())}) or of a TOML file, which --config-file and the "
        "command line override",
    )
    add(
        group,
        "--print-preset",
        action=PrintPreset,
        metavar="NAME",
        help="write a preset to standard output, to be copied and changed, and exit",
    )
    add(
        group,
        "--config-file",
        type=Path,
        metavar="FILE",
        help="TOML of a former run; the command line overrides it",
    )


def add_output_options(parser: Parser) -> None:
    """What to do in this call."""
    group = parser.add_argument_group("this call")
    add = parser.add_option
    add(
        group,
        "--stages",
        nargs="+",
        metavar="STAGE",
        help="features: extract and check features, and stop; fit: take them from the store and run no model, which "
        "ends with one sentence where the store lacks any (default: features fit)",
    )
    add(
        group,
        "--dry-run",
        action="store_true",
        help="print the table of runs and the estimates; write nothing",
    )
    add(
        group,
        "--reports-only",
        action="store_true",
        help="write the reports again from results that are there",
    )
    add(group, "--boilerplate-only", action="store_true", help="write the methods text only")
    add(
        group,
        "--md-only-boilerplate",
        action="store_true",
        help="methods text as Markdown and BibTeX only; all else runs",
    )
    add(group, "--notrack", action="store_true", help="accepted for compatibility; nothing is ever tracked")
    add(group, "-v", "--verbose", action="count", help="more messages; repeat for more")
