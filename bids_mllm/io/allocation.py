"""What a scheduler or a control group allots to this process: processors and memory."""

import os
from collections.abc import Iterator
from pathlib import Path

MIB = 1024.0**2
#: Share of the memory that steps are given; the rest is for the interpreter and its libraries.
MEMORY_SHARE = 0.9


def available_cpus(root: Path = Path("/")) -> int:
    """Processors that this process may use: by Slurm, CPU affinity and the control group's quota, whichever is least.

    Slurm tells them by task, or, where a task was not given a number of its own, by node.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are.
    """
    n_cpus = len(os.sched_getaffinity(0))
    n_cpus = min(n_cpus, _number("SLURM_CPUS_PER_TASK") or _number("SLURM_CPUS_ON_NODE") or n_cpus)
    for folder in _control_groups(root, "cpu"):
        quota = _words(folder / "cpu.max")
        quota += [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit():
            n_cpus = min(n_cpus, max(1, int(quota[0]) // int(quota[1])))
    return n_cpus


def available_memory_mb(root: Path = Path("/")) -> float:
    """Nine tenths of the memory that this process may use, in MiB: by Slurm, the control group and the machine.

    Slurm tells it by node, or by processor; its limit is also that of a control group where it makes one.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are.
    """
    import psutil

    bounds = [float(psutil.virtual_memory().total)]
    a_cpu, n_cpus = _number("SLURM_MEM_PER_CPU"), _number("SLURM_CPUS_ON_NODE") or _number("SLURM_CPUS_PER_TASK") or 1
    # Slurm's 0 is its word for the whole node.
    bounds += [MIB * allotted for allotted in (_number("SLURM_MEM_PER_NODE"), a_cpu * n_cpus) if allotted]
    for folder in _control_groups(root, "memory"):
        limit = [*_words(folder / "memory.max"), *_words(folder / "memory.limit_in_bytes")]
        bounds += [float(word) for word in limit if word.isdigit()]
    return MEMORY_SHARE * min(bounds) / MIB


def _number(variable: str) -> int:
    """Whole number of a variable of the environment, 0 without one."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else 0


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Give the folders of this process's control group and of those above it, of either version (cgroups(7)).

    A group is bound by what any of those above it is bound by. In a container the name may be that on the host while
    the tree is the container's own; then the top of the tree is what can be found.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            trees = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            trees = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        for tree in trees:
            group = tree / name.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder == tree or tree in folder.parents)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.count(":") >= 2]
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
