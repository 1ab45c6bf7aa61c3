"""What runs take, as it is measured, written and listed."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits
from nipype.pipeline.engine import Node, Workflow

from bids_mllm.config import Settings
from bids_mllm.workflows import resources as resources_module
from bids_mllm.workflows.resources import Begun, Usage, record_of, resources_table, usage_of_process, write_resources
from bids_mllm.workflows.run import run_workflow

#: MB that a node takes, more than this process and its imports do.
TAKEN_MB = 900
CPU_SECONDS = 1.0


class _In(BaseInterfaceInputSpec):
    number = traits.Int()


class _Out(TraitedSpec):
    number = traits.Int()


class Take(SimpleInterface):
    """Holds memory and keeps a processor busy."""

    input_spec = _In
    output_spec = _Out

    def _run_interface(self, runtime):
        held = np.ones(TAKEN_MB * 1024**2 // 8)
        until = time.process_time() + CPU_SECONDS
        while time.process_time() < until:
            held[:10].sum()
        self._results["number"] = 1
        return runtime


class Fail(SimpleInterface):
    input_spec = _In
    output_spec = _Out

    def _run_interface(self, runtime):
        raise ValueError("On purpose.")


def record_of_run(tmp_path, nodes, **more):
    workflow = Workflow(name="taking", base_dir=str(tmp_path))
    workflow.add_nodes(nodes)
    settings = Settings(bids_dir=tmp_path, output_dir=tmp_path, analysis_level="participant", work_dir=tmp_path, **more)
    folders = {"sub_01": tmp_path / "sub-01" / "log" / "aaaabbbbcccc"}
    shared = tmp_path / "logs" / "aaaabbbbcccc"
    run_workflow(workflow, settings, crash_dirs=folders, default_crash_dir=shared)
    record = json.loads((shared / "resources.json").read_text())
    assert json.loads((folders["sub_01"] / "resources.json").read_text()) == record
    assert not list(shared.glob(".tmp-*"))
    return record


@pytest.mark.timeout(120)
def test_workers_tell_what_they_took(tmp_path):
    record = record_of_run(tmp_path, [Node(Take(number=1), name="takes"), Node(Fail(number=1), name="fails")], nprocs=2)
    assert record["LargestOtherProcessMB"] > TAKEN_MB
    assert record["CPUSeconds"] >= CPU_SECONDS
    assert record["WallSeconds"] > 0
    assert record["Processes"] in (2, 3)
    assert (record["Nodes"], record["FailedNodes"], record["Plugin"]) == (2, 1, "MultiProc")
    assert (record["AnalysisLevel"], record["PeakGPUMemoryMB"]) == ("participant", None)


def test_one_process_counts_itself(tmp_path):
    record = record_of_run(tmp_path, [Node(Take(number=1), name="takes")], nprocs=1)
    assert record["PeakMemoryMB"] > TAKEN_MB
    assert record["CPUSeconds"] >= CPU_SECONDS
    assert (record["Plugin"], record["Processes"], record["Nodes"], record["FailedNodes"]) == ("Linear", 1, 1, 0)


def test_programs_that_a_process_started_count():
    before = usage_of_process()
    burn = "import time\nheld = bytearray(1500 * 2**20)\nwhile time.process_time() < 1: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    after = usage_of_process()
    assert after.cpu_seconds - before.cpu_seconds >= 1
    assert after.child_peak_mb > 1500


def fake_torch(monkeypatch, *, initialised):
    cuda = SimpleNamespace(
        is_initialized=lambda: initialised,
        device_count=lambda: 2,
        max_memory_reserved=lambda device: (3 + device) * 1024**2,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))


def test_gpu_memory_is_the_peak_of_the_fullest_gpu(monkeypatch):
    fake_torch(monkeypatch, initialised=True)
    assert usage_of_process().gpu_peak_mb == 4
    fake_torch(monkeypatch, initialised=False)
    assert usage_of_process().gpu_peak_mb is None
    monkeypatch.delitem(sys.modules, "torch")
    assert usage_of_process().gpu_peak_mb is None
    assert "torch" not in sys.modules


def test_processes_are_added_up_or_compared(monkeypatch):
    begun = Begun(clock=time.monotonic(), usage=Usage(1, 10.0, 50.0, 0.0))
    monkeypatch.setattr(resources_module, "usage_of_process", lambda: Usage(1, 14.0, 60.0, 70.0))
    workers = [Usage(2, 3.0, 200.0, 10.0, 5.0), Usage(3, 2.0, 90.0, 300.0, 8.0)]
    record = record_of(begun, workers, level="group", plugin="MultiProc", n_nodes=4, n_failed=1)
    own = {key: record[key] for key in ("CPUSeconds", "PeakMemoryMB", "LargestOtherProcessMB", "PeakGPUMemoryMB")}
    assert own == {"CPUSeconds": 9.0, "PeakMemoryMB": 60.0, "LargestOtherProcessMB": 300.0, "PeakGPUMemoryMB": 8.0}
    assert record["Processes"] == 3


RECORD = {
    "AnalysisLevel": "participant", "AppVersion": "1", "Started": "2026-01-02 03:04:05 UTC", "WallSeconds": 90.0,
    "CPUSeconds": 150.0, "Plugin": "MultiProc", "Processes": 3, "PeakMemoryMB": 500.4, "LargestOtherProcessMB": 900.6,
    "PeakGPUMemoryMB": None, "Nodes": 12, "FailedNodes": 1,
}  # fmt: skip


def test_runs_are_listed_in_their_order(tmp_path):
    earlier = RECORD | {"Started": "2026-01-01 03:04:05 UTC", "PeakGPUMemoryMB": 41.2}
    write_resources([tmp_path / "logs" / "aaaa", tmp_path / "sub-01" / "log" / "aaaa"], RECORD)
    write_resources([tmp_path / "logs" / "bbbb"], earlier)
    (tmp_path / "logs" / "old").mkdir()
    (tmp_path / "logs" / "cccc").mkdir()
    (tmp_path / "logs" / "cccc" / "resources.json").write_text("{")
    table = resources_table(tmp_path)
    assert [row[0] for row in table.rows] == ["bbbb", "aaaa"]
    assert dict(zip(table.columns, table.rows[1], strict=True)) == {
        "Run": "aaaa", "Started": "2026-01-02 03:04:05 UTC", "Level": "participant", "Wall time (min)": "1.5",
        "CPU time (min)": "2.5", "Processes": 3, "Main process (MB)": 500, "Largest other process (MB)": 901,
        "GPU memory (MB)": None, "Nodes": 12, "Failed": 1,
    }  # fmt: skip
    assert table.rows[0][8] == 41
    own = resources_table(tmp_path, "01")
    assert [row[0] for row in own.rows] == ["aaaa"]
    assert "that sub-01 took part in" in own.caption


def test_without_records_there_are_no_rows(tmp_path):
    assert resources_table(tmp_path).rows == ()
    assert resources_table(tmp_path, "01").rows == ()
