"""Measure the extraction of features against the scripts that one would write first.

usage: python benchmarks/features.py [--quick] [--families NAME ...] [--turns N]
       python benchmarks/features.py --full-size qwen25vl [--device cuda] [--layers N] [--scale X]

The first form times, on one CPU thread, all 13 instructions of a clip in the app and in 13 calls of the real model,
for each family, and decoding a film once against seeking every clip. The second times the app on an architecture of
full size with random weights, made on the device. The last line of either is one JSON object.
"""

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any

FAMILIES = ("qwen25vl", "llavaonevision", "llavanextvideo", "videollava", "qwen2audio", "instructblipvideo")
#: What the ratios ought to be at the least, by read-out; prompts of InstructBLIPVideo share the vision tower alone.
TARGETS = {"last": 8.0, "generated": 6.0}
TOWER_TARGET = 1.5
DECODE_TARGET = 3.0
N_TURNS, QUICK_TURNS = 5, 3
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ROW = "{:18} {:9} {:>7} {:>6} {:>7} {:>8} {:>6} {:>6} {:>6} {:>8}"
HEADER = (
    ROW.format("family", "read-out", "weights", "media", "app", "script", "ratio", "by CPU", "target", "error")
    + "   seconds of the app: media, tower, beginning, branches, decoding, rest"
)


def target_of(family: str, kind: str) -> float:
    """Return the ratio that is asked for."""
    return TOWER_TARGET if family == "instructblipvideo" else TARGETS[kind]


def show(family: str, result: Any) -> None:
    """Print two rows of the table."""
    from clocks import STAGES

    for kind, turns in result.turns.items():
        (wall, cpu), (app, script) = turns.ratios, turns.seconds
        cells = (
            family,
            kind,
            f"{result.n_parameters / 1e6:.1f} M",
            result.n_tokens,
            f"{app:.2f} s",
            f"{script:.2f} s",
            f"{wall:.2f}",
            f"{cpu:.2f}",
            f"{target_of(family, kind):g}",
            f"{result.max_rel_err:.1e}",
        )
        stages = " ".join(f"{result.stages[kind][stage]:6.3f}" for stage in STAGES)
        print(ROW.format(*cells), " ", stages, flush=True)


def measure_prefix(families: list[str], *, quick: bool, n_turns: int) -> dict[str, Mapping[str, float]]:
    """Measure families one after the other, and return the figures of the last line."""
    import torch
    from prefix_sharing import CASES, measure

    torch.set_num_threads(1)
    print(HEADER, flush=True)
    figures: dict[str, Mapping[str, float]] = {}
    for family in families:
        result = measure(CASES[family], quick=quick, n_turns=QUICK_TURNS if quick else n_turns)
        show(family, result)
        ratios = {kind: round(float(turns.ratios[0]), 2) for kind, turns in result.turns.items()}
        figures[family] = {**ratios, "max_rel_err": result.max_rel_err}
    return figures


def measure_decoding(quick: bool) -> float:
    """Return how many times as fast decoding once is."""
    import decode_once

    ratio = round(float(decode_once.measure(quick)["ratio"]), 2)
    print(f"decoding a film once instead of seeking every clip: {ratio} times as fast (target {DECODE_TARGET:g})")
    return ratio


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, fewer turns; under 50 s on two cores")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="which to measure")
    parser.add_argument(
        "--turns", type=int, default=N_TURNS, help="extractions timed, with the script's calls between them"
    )
    parser.add_argument("--full-size", choices=("qwen25vl",), help="measure an architecture of full size instead")
    parser.add_argument("--device", default="cpu", help="of the architecture of full size: cpu, cuda")
    parser.add_argument("--layers", type=int, default=28, help="layers of the language model of full size")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full width")
    return parser


def main() -> None:
    options = build_parser().parse_args()
    if options.full_size:
        from full_size import measure_full_size

        figures = measure_full_size(options.device, n_layers=options.layers, scale=options.scale, quick=options.quick)
        print(json.dumps({"full_size": {options.full_size: figures}}))
        return
    # Read by the libraries of linear algebra when they are loaded.
    os.environ.update(dict.fromkeys(THREADS, "1"))
    prefix = measure_prefix(options.families, quick=options.quick, n_turns=options.turns)
    print(json.dumps({"prefix": prefix, "decode_once": measure_decoding(options.quick)}))


if __name__ == "__main__":
    main()
