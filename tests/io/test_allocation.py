"""Processors and memory follow what a scheduler or a control group allots, of either version."""

import os
from types import SimpleNamespace

import psutil
import pytest

from bids_mllm.io.allocation import available_cpus, available_memory_mb

GIB = 2**30
TOTAL = 64 * GIB
SLURM = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 16 processors and 64 GiB, and no scheduler."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=TOTAL))
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)


def make(root, groups, files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_whole_machine(tmp_path):
    assert available_cpus(tmp_path) == 16
    assert available_memory_mb(tmp_path) == pytest.approx(0.9 * 64 * 1024)


def test_a_slurm_job(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "5000")
    assert available_cpus(tmp_path) == 3
    assert available_memory_mb(tmp_path) == pytest.approx(0.9 * 5000)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # the whole node
    assert available_memory_mb(tmp_path) == pytest.approx(0.9 * 64 * 1024)


def test_a_slurm_job_that_asked_for_no_processors(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    assert available_cpus(tmp_path) == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    assert available_cpus(tmp_path) == 16  # no more than it is bound to


def test_a_slurm_job_whose_memory_goes_by_processors(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "2000")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert available_memory_mb(tmp_path) == pytest.approx(0.9 * 8000)


@pytest.mark.parametrize(
    ("groups", "cpu", "memory"),
    [
        ("0::/\n", "cpu.max", "memory.max"),
        ("0::/slurm/job_7/step_0\n", "slurm/job_7/cpu.max", "slurm/job_7/memory.max"),  # by a group above
        ("0::/docker/abc\n", "cpu.max", "memory.max"),  # the tree is the container's own
    ],
)
def test_a_control_group_of_version_2(tmp_path, groups, cpu, memory):
    root = make(tmp_path, groups, {cpu: "250000 100000\n", memory: f"{GIB}\n"})
    assert available_cpus(root) == 2
    assert available_memory_mb(root) == pytest.approx(0.9 * 1024)


def test_a_control_group_of_version_2_without_limits(tmp_path):
    root = make(tmp_path, "0::/user\n", {"user/cpu.max": "max 100000\n", "user/memory.max": "max\n"})
    assert available_cpus(root) == 16
    assert available_memory_mb(root) == pytest.approx(0.9 * 64 * 1024)


def test_control_groups_of_version_1(tmp_path):
    groups = "4:memory:/slurm/job_7\n3:cpu,cpuacct:/slurm/job_7\n0::/\n"
    files = {
        "memory/slurm/job_7/memory.limit_in_bytes": f"{2 * GIB}\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",  # version 1's word for none
        "cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "500000\n",
        "cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    root = make(tmp_path, groups, files)
    assert available_cpus(root) == 5
    assert available_memory_mb(root) == pytest.approx(0.9 * 2048)


def test_the_smallest_of_several_bounds_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "8000")
    files = {"a/cpu.max": "400000 100000", "a/memory.max": str(6 * GIB), "a/b/memory.max": "max"}
    root = make(tmp_path, "0::/a/b\n", files)
    assert available_cpus(root) == 4
    assert available_memory_mb(root) == pytest.approx(0.9 * 6 * 1024)


def test_a_quota_below_one_processor_leaves_one(tmp_path):
    assert available_cpus(make(tmp_path, "0::/\n", {"cpu.max": "50000 100000"})) == 1
