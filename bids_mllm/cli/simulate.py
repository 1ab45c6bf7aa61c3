"""The command ``bids-mllm-simulate``: a data set with known answers, to try and to check the app with."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bids_mllm import __version__
from bids_mllm.exceptions import BidsMllmError


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="bids-mllm-simulate",
        description="Write a BIDS data set with fMRIPrep-shaped derivatives in which every voxel has a known "
        "cause. The causes are listed in OUT/sourcedata/truth.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; it must be new or empty")
    parser.add_argument("--participants", type=int, default=3, metavar="N", help="number of participants (3)")
    parser.add_argument(
        "--films",
        type=Path,
        metavar="DIR",
        help="folder with your own films or sounds, each shown once as one run; without it films are made "
        "from random numbers",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of all random numbers (0)")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 2 usage, 70 a film that cannot be used."""
    options = build_parser().parse_args(argv)
    from bids_mllm.simulate.dataset import simulate_dataset

    try:
        simulate_dataset(
            options.out, participants=options.participants, films=options.films, seed=options.seed
        )
    except BidsMllmError as error:
        sys.stderr.write(f"bids-mllm-simulate: {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
