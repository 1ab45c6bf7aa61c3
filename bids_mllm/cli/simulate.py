"""The command ``bids-mllm-simulate``: a data set with known answers, to try and to check the app with."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bids_mllm import __version__
from bids_mllm.cli.environment import settle_home
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
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="RESULTS",
        help="write nothing; compare the results that bids-mllm wrote to RESULTS with the causes in OUT, print a "
        "table and end with status 1 where something that must hold does not",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of all random numbers (0)")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 a finding that does not hold, 2 usage, 70 unusable
    films or results.
    """
    options = build_parser().parse_args(argv)
    try:
        settle_home()
        if options.compare is not None:
            return _compare(options.out, options.compare)
        from bids_mllm.simulate.dataset import simulate_dataset

        simulate_dataset(options.out, participants=options.participants, films=options.films, seed=options.seed)
    except BidsMllmError as error:
        sys.stderr.write(f"bids-mllm-simulate: {error}\n")
        return error.exit_status
    return 0


def _compare(dataset: Path, results: Path) -> int:
    """Print what was found against what was planted."""
    from bids_mllm.simulate.compare import compare_with_truth, conditioning_words, format_findings

    findings = compare_with_truth(dataset, results)
    sys.stdout.write(format_findings(findings) + "\n" + conditioning_words(dataset) + "\n")
    return 0 if all(finding.holds for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
