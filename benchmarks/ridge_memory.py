"""Peak of memory of one contender on one feature space, each in a process of its own.

A process is forked from a server that has loaded the libraries and computed nothing. It fits a tiny problem, notes
what it holds, loads the design and Y from files and fits them: what it holds at most, less what it noted, counts.
"""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from ridge_cases import Problem, Shape, delayed_columns, make_problem
from ridge_rivals import RIVALS, fit_app

from bids_mllm.fit.targets import prepare_targets

MB = 2.0**20
#: What the server loads; installed packages only, since it does not know the folder of this module.
LIBRARIES = ["torch", "scipy.ndimage", "sklearn.kernel_ridge", "sklearn.linear_model", "himalaya.kernel_ridge"]
LIBRARIES += ["himalaya.ridge", "bids_mllm.fit.ridge"]
TINY = Shape("tiny", n_train=60, n_features=20, n_targets=30, n_runs=6, n_folds=3)


def resident(which: str) -> float:
    """MB of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    line = Path("/proc/self/status").read_text().split(f"{which}:")[1]
    return int(line.split()[0]) * 1024 / MB


def save(problem: Problem, folder: Path) -> None:
    """Write what the processes load."""
    X = problem.space(0)
    np.save(folder / "X.npy", X)
    np.save(folder / "delayed.npy", delayed_columns(X, problem.shape))
    np.save(folder / "Y.npy", problem.Y)


def load_and_fit(contender: str, shape: Shape, folder: Path, device: str) -> None:
    """Load what a contender needs of `folder` and fit one feature space; the app prepares Y here."""
    Y, fold = np.load(folder / "Y.npy"), shape.fold()
    if contender == "app":
        targets = prepare_targets(Y, (fold,), device=device)
        del Y
        fit_app(np.load(folder / "X.npy"), targets, shape, device)
        return
    rival = RIVALS[contender]
    data = rival.ready(np.load(folder / "delayed.npy"), Y, fold, device)
    del Y
    rival.fit(data)


def peak_here(contender: str, shape: Shape, folder: Path, device: str, threads: int) -> float:
    """MB that data and fit take at most in this process; on a GPU, of its memory."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="bids-mllm-benchmark-") as tiny:
        save(make_problem(TINY, "random"), Path(tiny))
        load_and_fit(contender, TINY, Path(tiny), device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        load_and_fit(contender, shape, folder, device)
        return torch.cuda.max_memory_allocated() / MB
    # The kernel forgets the highest value so far.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    load_and_fit(contender, shape, folder, device)
    return resident("VmHWM") - before


def peaks(problem: Problem, contenders: list[str], device: str, threads: int) -> dict[str, float]:
    """Peak of memory in MB for each contender."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    with tempfile.TemporaryDirectory(prefix="bids-mllm-benchmark-") as name:
        folder = Path(name)
        save(problem, folder)
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
            arguments = (problem.shape, folder, device, threads)
            return {one: pool.submit(peak_here, one, *arguments).result() for one in contenders}
