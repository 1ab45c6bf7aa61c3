"""What a run took: time, memory and GPU memory, written beside its settings and read again for the pages.

Workers are children of a server process that forks them, of which the system tells the main process nothing; so each
worker tells what it has used with every node that it ends.
"""

import os
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bids_mllm import __version__
from bids_mllm.exceptions import BidsMllmError
from bids_mllm.io.files import read_json, write_json
from bids_mllm.report.content import Cell, Table

FILE = "resources.json"
#: ru_maxrss is in KiB on Linux and in bytes on macOS.
MAXRSS_PER_MB = 1024**2 if sys.platform == "darwin" else 1024
COLUMNS = (
    "Run", "Started", "Level", "Wall time (min)", "CPU time (min)", "Processes", "Main process (MB)",
    "Largest other process (MB)", "GPU memory (MB)", "Nodes", "Failed",
)  # fmt: skip


@dataclass(frozen=True)
class Usage:
    """What one process has used since it started.

    Attributes
    ----------
    pid
    cpu_seconds
        User and system time, of the programs that it started and that have ended too.
    peak_mb, child_peak_mb
        Highest resident memory of the process, and of the largest of these programs.
    gpu_peak_mb
        Highest memory that PyTorch reserved on one GPU; None where it has used none.
    """

    pid: int
    cpu_seconds: float
    peak_mb: float
    child_peak_mb: float
    gpu_peak_mb: float | None = None


def usage_of_process() -> Usage:
    """Return what this process has used."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return Usage(
        pid=os.getpid(),
        cpu_seconds=own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        peak_mb=own.ru_maxrss / MAXRSS_PER_MB,
        child_peak_mb=children.ru_maxrss / MAXRSS_PER_MB,
        gpu_peak_mb=_gpu_peak_mb(),
    )


def _gpu_peak_mb() -> float | None:
    """Ask PyTorch only where this process has loaded it and set up CUDA: asking must set up neither."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    peaks = [torch.cuda.max_memory_reserved(device) for device in range(torch.cuda.device_count())]
    return max(peaks, default=0) / 1024**2


@dataclass(frozen=True)
class Begun:
    """When a run began, and what its process had used by then."""

    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)
    usage: Usage = field(default_factory=usage_of_process)


def record_of(
    begun: Begun, workers: Iterable[Usage], *, level: str, plugin: str, n_nodes: int, n_failed: int
) -> dict[str, Any]:
    """Return what a run has taken until now.

    Parameters
    ----------
    begun
    workers
        What the worker processes used, one each.
    level
        Level of analysis.
    plugin
        Name of nipype's plugin; what ran as jobs of a scheduler is not seen here.
    n_nodes, n_failed
        Nodes of the graph, and those that failed.
    """
    main, others = usage_of_process(), list(workers)
    gpus = [usage.gpu_peak_mb for usage in (main, *others) if usage.gpu_peak_mb is not None]
    largest = max([main.child_peak_mb, *(peak for one in others for peak in (one.peak_mb, one.child_peak_mb))])
    cpu = main.cpu_seconds - begun.usage.cpu_seconds + sum(one.cpu_seconds for one in others)
    return {
        "AnalysisLevel": level,
        "AppVersion": __version__,
        "Started": begun.started.strftime("%Y-%m-%d %H:%M:%S UTC"),
        "WallSeconds": round(time.monotonic() - begun.clock, 2),
        "CPUSeconds": round(cpu, 2),
        "Plugin": plugin,
        "Processes": 1 + len(others),
        "PeakMemoryMB": round(main.peak_mb, 1),
        "LargestOtherProcessMB": round(largest, 1),
        "PeakGPUMemoryMB": round(max(gpus), 1) if gpus else None,
        "Nodes": n_nodes,
        "FailedNodes": n_failed,
    }


def write_resources(folders: Iterable[Path], record: Mapping[str, Any]) -> None:
    """Write what a run took into its folders of logs."""
    for folder in folders:
        write_json(folder / FILE, record)


def resources_table(output_dir: Path, participant: str | None = None) -> Table:
    """Return what the runs in an output folder took, the first run first.

    Parameters
    ----------
    output_dir
    participant
        Label; only the runs that this participant took part in. None for all runs of both levels.
    """
    logs = output_dir / "logs" if participant is None else output_dir / f"sub-{participant}" / "log"
    found = [(path.parent.name, _record(path)) for path in logs.glob(f"*/{FILE}")]
    runs = sorted(((run, record) for run, record in found if record), key=lambda one: (str(one[1]["Started"]), one[0]))
    whose = "" if participant is None else f" that sub-{participant} took part in"
    caption = (
        f"What each run{whose} took, all its participants together and without the writing of pages. Memory is the "
        "highest of single processes. Nodes that an earlier run had finished count but took no time."
    )
    return Table(caption, COLUMNS, tuple(_cells(run, record) for run, record in runs))


def _record(path: Path) -> Mapping[str, Any]:
    """Return a record; nothing where it is damaged, since no page should fail for it."""
    try:
        content = read_json(path)
    except BidsMllmError:
        return {}
    return content if isinstance(content, dict) and "Started" in content else {}


def _cells(run: str, record: Mapping[str, Any]) -> tuple[Cell, ...]:
    def whole(key: str) -> Cell:
        value = record.get(key)
        return None if value is None else round(value)

    return (
        run, str(record["Started"]), record.get("AnalysisLevel"), _minutes(record.get("WallSeconds")),
        _minutes(record.get("CPUSeconds")), whole("Processes"), whole("PeakMemoryMB"), whole("LargestOtherProcessMB"),
        whole("PeakGPUMemoryMB"), whole("Nodes"), whole("FailedNodes"),
    )  # fmt: skip


def _minutes(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds / 60:.1f}"
