"""Measure the ridge of many feature spaces against one Y: the app, himalaya, scikit-learn and a bootstrap ridge.

usage: python benchmarks/ridge.py [--quick] [--threads N] [--device cpu|cuda] [--cases NAME ...] [--rivals NAME ...]
                                  [--spaces N] [--seconds S]

All contenders have the same splits, penalties, float32 data and threads, and take turns with the app, feature space by
feature space; a ratio is the median over these pairs. The app's seconds run from undelayed features to predictions and
include one space's share of preparing Y. The others are handed delayed columns; building these is printed, and counted
for nobody. A rival is timed on all `--spaces` (10), or on fewer once `--seconds` are over. Ratios are of CPU seconds
with one thread on a CPU, else of wall seconds; both are in the last line, which is one JSON object with an entry for
each case. Cases whose name ends in `_realistic` have ill-conditioned features. The bootstrap ridge and scikit-learn's
RidgeCV choose by other held-out rows, so their penalties differ.
"""

import argparse
import gc
import importlib
import json
import os
from collections.abc import Mapping
from typing import Any

SHAPE_NAMES = ("parcel5", "parcel27", "voxel5", "primal")
CASES = tuple(f"{shape}{suffix}" for suffix in ("", "_realistic") for shape in SHAPE_NAMES)
#: The rival of the keys without a rival's name, and those that minimise the same loss as the app.
FIRST = "kernelridgecv"
EXACT = (FIRST, "kernelridgecv_float64", "ridgecv", "sklearn")
RIVAL_NAMES = (*EXACT, "bootstrap", "sklearn_loo")
#: Rivals that get more pairs than one, however long they take.
LEAST_PAIRS = {FIRST: 10, "ridgecv": 2}
LEFT_OUT = {"parcel27": {"ridgecv": "an SVD of the columns in each of 27 splits"}}
N_SPACES, QUICK_SPACES = 10, 3
SECONDS, QUICK_SECONDS = 120.0, 0.3
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ROW = "{:19} {:34} {:>5} {:>9} {:>9} {:>19} {:>7} {:>7} {:>6} {:>6} {:>8} {:>8}"
HEADER = ROW.format(
    "case", "rival", "pairs", "app", "rival", "ratio", "by wall", "delays", "same", "ties", "max dr", "all dr"
)


def rivals_of(case: str, options: argparse.Namespace) -> list[str]:
    """Names of the rivals of a case: no float64 on well-conditioned features, no CPU-only ones beside a GPU."""
    shape, realistic = case.removesuffix("_realistic"), case.endswith("_realistic")
    names = [name for name in options.rivals if name not in LEFT_OUT.get(shape, {})]
    if not realistic:
        names = [name for name in names if name != "kernelridgecv_float64"]
    if options.device != "cpu":
        names = [name for name in names if name not in ("bootstrap", "sklearn", "sklearn_loo")]
    return names


def summary(turns: Any, which: int) -> dict[str, Any]:
    """Return the figures of one rival for the last line."""
    same, dr, tie = (turns.over_targets(name) for name in ("same", "dr", "tie"))
    median, low, high = turns.ratio(which)
    return {
        "ratio": round(median, 2),
        "range": [round(low, 2), round(high, 2)],
        "ratio_wall": round(turns.ratio(0)[0], 2),
        "ratio_cpu": round(turns.ratio(1)[0], 2),
        "pairs": len(turns.app),
        "app_s": round(float(turns.app[:, which].mean()), 4),
        "rival_s": round(float(turns.rival[:, which].mean()), 4),
        "delays_s": round(float(turns.delays[:, which].mean()), 4),
        "same_alphas": round(float(same.mean()), 6),
        "other_alphas_tied": int(tie.sum()),
        "other_alphas_app_better": int(turns.over_targets("app_better").sum()),
        "other_alphas": int((~same).sum()),
        "max_dr": float(f"{dr[same].max(initial=0.0):.2e}"),
        "max_dr_all": float(f"{dr.max():.2e}"),
    }


def show(case: str, label: str, figures: Mapping[str, Any], *, looked_into: bool) -> None:
    """Print one row of the table."""
    low, high = figures["range"]
    cells = (
        figures["pairs"],
        f"{figures['app_s']:.3f} s",
        f"{figures['rival_s']:.3f} s",
        f"{figures['ratio']:.2f} [{low:.2f}-{high:.2f}]",
        f"{figures['ratio_wall']:.2f}",
        f"{figures['delays_s']:.3f}",
        f"{figures['same_alphas']:.4f}",
        f"{figures['other_alphas_tied']}/{figures['other_alphas']}" if looked_into else "-",
        f"{figures['max_dr']:.1e}",
        f"{figures['max_dr_all']:.1e}",
    )
    print(ROW.format(case, label, *cells), flush=True)


def measure_rivals(case: str, problem: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the rivals of one case in turn."""
    from ridge_measure import Budget, take_turns
    from ridge_rivals import RIVALS

    found: dict[str, Any] = {}
    for name in rivals_of(case, options):
        budget = Budget(options.spaces, options.seconds, min(LEAST_PAIRS.get(name, 1), options.spaces))
        turns = take_turns(problem, RIVALS[name], budget, options.device, exact=name in EXACT)
        found[name] = summary(turns, options.which)
        show(case, RIVALS[name].label, found[name], looked_into=name in EXACT)
    return found


def measure_memory(problem: Any, rivals: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Peaks of the app and of himalaya, and the ratio of the app's."""
    from ridge_memory import peaks

    wanted = [name for name in (FIRST, "ridgecv") if name in rivals and (name == FIRST or not options.quick)]
    found = peaks(problem, ["app", *wanted], options.device, options.threads)
    figures = {"peak_memory_mb": {name: round(peak, 1) for name, peak in found.items()}}
    if FIRST in found:
        figures["peak_memory_ratio"] = round(found["app"] / found[FIRST], 3)
    print(f"{'':19} peak memory in MB:", ", ".join(f"{name} {peak:.0f}" for name, peak in found.items()))
    return figures


def measure_case(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the entry of one case."""
    from ridge_cases import QUICK_SHAPES, SHAPES, make_problem
    from ridge_measure import gemm_rate, stages, useful_flops

    name = case.removesuffix("_realistic")
    shape = (QUICK_SHAPES if options.quick else SHAPES)[name]
    problem = make_problem(shape, "realistic" if case.endswith("_realistic") else "random")
    of_app = stages(problem, options.device)
    rate = gemm_rate(options.device, options.which)
    rivals = measure_rivals(case, problem, options)
    entry: dict[str, Any] = {f"vs_{rival}": figures["ratio"] for rival, figures in rivals.items()}
    if FIRST in rivals:
        entry |= {key: rivals[FIRST][key] for key in ("same_alphas", "max_dr", "max_dr_all", "range")}
    entry |= measure_memory(problem, list(rivals), options)
    if rivals:
        # Of the rival beside which the machine was quietest.
        app_s = min(figures["app_s"] for figures in rivals.values())
        reached = 1e-9 * useful_flops(shape) / app_s
        entry |= {"app_s": app_s, "app_gflops": round(reached, 1), "gemm_share": round(reached / rate, 3)}
        print(f"{'':19} app {reached:.0f} of {rate:.0f} GFLOP/s; float64 in {of_app['float64_alphas']} of 10 penalties")
    sizes = {"T": shape.n_train, "D": shape.n_features, "V": shape.n_targets, "folds": shape.n_folds}
    left_out = LEFT_OUT.get(name, {})
    return entry | of_app | {"gemm_gflops": round(rate, 1), "sizes": sizes, "rivals": rivals, "left_out": left_out}


def measure_growth(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Print and return how the cost of the app grows."""
    from ridge_measure import growth

    found = growth(options.device, options.which, quick=options.quick)
    for what, row in found.items():
        print(f"app over {what:7}", "  ".join(f"{size:>6}: {seconds:7.3f} s" for size, seconds in row.items()))
    return {what: {size: round(seconds, 4) for size, seconds in row.items()} for what, row in found.items()}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, fewer spaces; under 50 s on two cores")
    parser.add_argument("--threads", type=int, default=1, help="of all linear algebra")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the app and of himalaya")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="which to measure")
    parser.add_argument("--rivals", nargs="+", choices=RIVAL_NAMES, default=list(RIVAL_NAMES), help="against whom")
    parser.add_argument("--spaces", type=int, help=f"feature spaces against one Y; {N_SPACES}, quick {QUICK_SPACES}")
    parser.add_argument("--seconds", type=float, help=f"after which a rival gets no further space; {SECONDS:g}")
    return parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options, with those that depend on others."""
    options = build_parser().parse_args(arguments)
    options.spaces = options.spaces or (QUICK_SPACES if options.quick else N_SPACES)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    options.which = 1 if options.device == "cpu" and options.threads == 1 else 0
    return options


def main() -> None:
    options = parse()
    # Read by the libraries of linear algebra when they are loaded.
    os.environ.update(dict.fromkeys(THREADS, str(options.threads)))
    import torch

    torch.set_num_threads(options.threads)
    importlib.import_module("ridge_measure")
    # Collections between turns then look at what the turns leave, not at the libraries.
    gc.freeze()
    print(HEADER, flush=True)
    figures: dict[str, Any] = {case: measure_case(case, options) for case in options.cases}
    figures["growth"] = measure_growth(options)
    settings = {name: getattr(options, name) for name in ("quick", "threads", "device", "spaces")}
    print(json.dumps(figures | settings | {"clock": ("wall", "cpu")[options.which]}))


if __name__ == "__main__":
    main()
