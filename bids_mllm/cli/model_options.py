"""Options of models, instructions and features."""

from pathlib import Path
from typing import Any

from bids_mllm.cli.spelling import Parser
from bids_mllm.config import NULL_INSTRUCTIONS, POOLINGS


def add_features_options(parser: Parser) -> None:
    """Models and what is read out of them."""
    group = parser.add_argument_group("models and features")
    add = parser.add_option
    add(
        group,
        "--models",
        nargs="*",
        metavar="KEY[=PATH]",
        help="keys of the registry, LABEL=FOLDER for a checkpoint on disk, or a hub id that was prefetched; each with "
        "+random behind it for the same model with random weights (default motionenergy melspectrogram; none with "
        "--feature-table); `bids-mllm-models list` shows the keys",
    )
    add(group, "--model-revision", metavar="REV", help="revision of hub checkpoints")
    add(group, "--family", metavar="NAME", help="family of hub ids and folders that do not tell it themselves")
    add(
        group,
        "--trust-remote-code",
        action="store_true",
        help="run the Python code that comes with a checkpoint (Kimi-Audio needs it)",
    )
    add(
        group,
        "--allow-download",
        action="store_true",
        help="use the network before the start, and never after it: fetch hub checkpoints of --models that are missing "
        "into the hub's cache (HF_HOME), and templates for figures and atlases that are missing into TEMPLATEFLOW_HOME "
        "(default: the network is never used)",
    )
    _add_instructions(parser, group)
    add(
        group,
        "--poolings",
        nargs="+",
        choices=POOLINGS,
        help="what is averaged: generated tokens, last prompt token, instruction tokens, media tokens without an "
        "instruction (default generated media)",
    )
    add(group, "--max-new-tokens", type=int, metavar="N", help="generated tokens at most (default 8)")
    add(
        group,
        "--layers",
        nargs="+",
        type=int,
        metavar="N",
        help="layers to fit, 0 = embedding (default: all)",
    )
    add(
        group,
        "--feature-table",
        nargs="+",
        metavar="NAME=DIR",
        help="your own features: for a stimulus a/b.mkv the table DIR/a/b.tsv with onset, duration and one column each",
    )
    add(
        group,
        "--features-dir",
        type=Path,
        metavar="DIR",
        help="feature store, shared by participants and data sets (default OUTPUT_DIR/sourcedata/features)",
    )


def _add_instructions(parser: Parser, group: Any) -> None:
    """What models are asked."""
    add = parser.add_option
    add(
        group,
        "--instructions",
        nargs="+",
        metavar="KEY",
        help="keys of instructions (default: all 13 for video, all 5 for sound)",
    )
    add(group, "--instructions-file", type=Path, metavar="FILE", help="TOML with instructions of your own")
    add(
        group,
        "--null-instructions",
        nargs="+",
        choices=NULL_INSTRUCTIONS,
        help="controls beside the instructions: an empty one, each one's words scrambled, each replaced by an "
        "unrelated one of the same length",
    )
    add(
        group,
        "--demonstrations",
        type=Path,
        metavar="FILE",
        help="TOML with clips, instructions and answers that models of the kind in-context see before each clip",
    )
