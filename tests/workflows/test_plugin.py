"""A killed worker ends the run in seconds, and plugin files are checked."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits
from nipype.pipeline.engine import Node, Workflow

from bids_mllm.config import Settings
from bids_mllm.exceptions import BidsMllmError, UsageError
from bids_mllm.workflows.plugin import START_METHOD, ResilientMultiProcPlugin, _Pool, choose_plugin
from bids_mllm.workflows.run import read_crash, run_workflow


class _In(BaseInterfaceInputSpec):
    target = traits.Str()


class _Out(TraitedSpec):
    pid = traits.Str()


class DieOnce(SimpleInterface):
    """Kills its own process, as the system does when memory runs out."""

    input_spec = _In
    output_spec = _Out

    def _run_interface(self, runtime):
        os.kill(os.getpid(), signal.SIGKILL)
        return runtime


class Write(SimpleInterface):
    """Leaves a file that says it ran."""

    input_spec = _In
    output_spec = _Out

    def _run_interface(self, runtime):
        time.sleep(0.5)
        Path(self.inputs.target).write_text("ran")
        self._results["pid"] = str(os.getpid())
        return runtime


def settings(tmp_path, **more):
    return Settings(bids_dir=tmp_path, output_dir=tmp_path, analysis_level="participant", work_dir=tmp_path, **more)


@pytest.mark.timeout(120)
def test_killed_worker_ends_the_run_with_a_crash_file(tmp_path):
    workflow = Workflow(name="killed", base_dir=str(tmp_path))
    dying = Node(DieOnce(), name="fit_sub_01")
    after = Node(Write(), name="maps_sub_01")
    workflow.connect(dying, "pid", after, "target")
    begin = time.monotonic()
    failures = run_workflow(
        workflow,
        settings(tmp_path, nprocs=2),
        crash_dirs={"sub_01": tmp_path / "crash"},
        default_crash_dir=tmp_path / "logs",
    )
    assert time.monotonic() - begin < 60
    assert [failure.node for failure in failures] == ["fit_sub_01"]
    (killed,) = failures
    assert "ended by the system" in killed.sentence
    assert killed.crash_file.parent == tmp_path / "crash"
    assert killed.crash_file.suffix == ".txt"


@pytest.mark.timeout(300)
def test_the_end_of_a_worker_that_took_long_to_start_is_seen(monkeypatch):
    adjust = ProcessPoolExecutor._adjust_process_count

    def slowly(pool):
        time.sleep(1.0)  # meanwhile the thread that watches the workers waits for those that it knows
        adjust(pool)

    monkeypatch.setattr(ProcessPoolExecutor, "_adjust_process_count", slowly)
    with _Pool(max_workers=2, mp_context=multiprocessing.get_context(START_METHOD)) as pool:
        other = pool.submit(time.sleep, 200.0)
        killed = pool.submit(signal.raise_signal, signal.SIGKILL)
        assert isinstance(killed.exception(timeout=100.0), BrokenProcessPool)
        assert isinstance(other.exception(timeout=0.0), BrokenProcessPool)


def test_nodes_after_a_kill_still_run(tmp_path):
    workflow = Workflow(name="later", base_dir=str(tmp_path))
    workflow.add_nodes([Node(DieOnce(), name="a_dies", n_procs=2)])
    workflow.add_nodes([Node(Write(target=str(tmp_path / "ran")), name="b_writes", n_procs=2)])
    failures = run_workflow(workflow, settings(tmp_path, nprocs=2), crash_dirs={}, default_crash_dir=tmp_path / "logs")
    assert [failure.node for failure in failures] == ["a_dies"]
    assert (tmp_path / "ran").read_text() == "ran"


def test_plugin_file(tmp_path):
    path = tmp_path / "plugin.yml"
    path.write_text("plugin: Linear\n")
    assert choose_plugin(settings(tmp_path, use_plugin=path)) == ("Linear", {})
    path.write_text("plugin: MultiProc\nplugin_args: {n_procs: 2, memory_gb: 1}\n")
    plugin, arguments = choose_plugin(settings(tmp_path, use_plugin=path))
    assert isinstance(plugin, ResilientMultiProcPlugin)
    assert arguments["n_procs"] == 2
    plugin.pool.shutdown()
    path.write_text("plugin: Teleport\n")
    with pytest.raises(UsageError, match=r"Teleport.*known plugins are Linear"):
        choose_plugin(settings(tmp_path, use_plugin=path))
    path.write_text("- nothing\n")
    with pytest.raises(UsageError, match=r"must be YAML with plugin"):
        choose_plugin(settings(tmp_path, use_plugin=path))


def test_gpu_slots_are_never_left_to_nipype(tmp_path):
    plugin, arguments = choose_plugin(settings(tmp_path, nprocs=3, n_gpu_procs=2))
    assert arguments["n_gpu_procs"] == plugin.n_gpu_procs == 2
    plugin.pool.shutdown()


def test_sentence_of_a_crash_file(tmp_path):
    path = tmp_path / "crash-x.txt"
    path.write_text(
        "Node: wf.fit_sub_01\nWorking directory: /w\n\nTraceback (most recent call last):\n  File x\n"
        "nipype.pipeline.engine.nodes.NodeExecutionError: Exception raised while executing Node fit.\n\n"
        "Traceback:\n\tTraceback (most recent call last):\n\tbids_mllm.exceptions.StoreError: The disk is full.\n"
    )
    failure = read_crash(path)
    assert (failure.node, failure.sentence) == ("fit_sub_01", "The disk is full.")


def test_a_graph_that_stops_without_a_crash_file_is_one_sentence(tmp_path):
    workflow = Workflow(name="stops", base_dir=str(tmp_path / "file"))
    (tmp_path / "file").write_text("not a folder")
    workflow.add_nodes([Node(Write(target=str(tmp_path / "never")), name="a_writes")])
    with pytest.raises(BidsMllmError, match=r"The workflow stopped \(\w+Error: .*-vv for the traceback"):
        run_workflow(workflow, settings(tmp_path), crash_dirs={}, default_crash_dir=tmp_path / "logs")
    assert not (tmp_path / "never").exists()
