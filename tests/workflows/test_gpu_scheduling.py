"""GPU nodes have a device each: with an nvidia-smi of our own, and nodes that record where and when they ran."""

import importlib
import inspect
import os
import pkgutil
import time

import pytest
from gpu_nodes import Occupy, records
from nipype.pipeline.engine import Node, Workflow

import bids_mllm.interfaces
from bids_mllm.cli.parser import parse_settings
from bids_mllm.config import Settings
from bids_mllm.workflows import gpus, participant, plugin
from bids_mllm.workflows.plan import plan_study
from bids_mllm.workflows.plugin import choose_plugin
from bids_mllm.workflows.run import run_workflow


@pytest.fixture(autouse=True)
def _quiet_machine(tmp_path, monkeypatch):
    """No GPU of the machine itself shows."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "DRIVER_FOLDER", tmp_path / "proc")
    monkeypatch.setattr(gpus, "DEVICE_FOLDER", tmp_path / "dev")


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Put an nvidia-smi before all others that lists some GPUs."""

    def install(n_gpus, then="exit 0"):
        programs = tmp_path / "programs"
        programs.mkdir(exist_ok=True)
        said = "".join(f"echo 'GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-{i}aaaaaaa-0000)'\n" for i in range(n_gpus))
        (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{said}{then}\n")
        (programs / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")

    return install


def settings(tmp_path, **more):
    given = {"nprocs": 4, "device": "cuda", "mem_mb": 2**14} | more
    return Settings(bids_dir=tmp_path, output_dir=tmp_path, analysis_level="participant", work_dir=tmp_path, **given)


def run(tmp_path, nodes, **more):
    """Run nodes of (name, what it does, seconds) that do not depend on one another; return records and failures."""
    folder = tmp_path / "records"
    folder.mkdir()
    workflow = Workflow(name="gpu", base_dir=str(tmp_path))
    for name, does, seconds in nodes:
        interface = Occupy(folder=str(folder), name=name, does=does, seconds=seconds)
        workflow.add_nodes([Node(interface, name=name, n_procs=1, mem_gb=0.1)])
    failures = run_workflow(workflow, settings(tmp_path, **more), crash_dirs={}, default_crash_dir=tmp_path / "logs")
    return records(folder), sorted(failure.node for failure in failures)


def most_at_once(rows):
    """Largest number of the nodes that ran at one time."""
    return max(sum(other["begin"] <= row["begin"] < other["end"] for other in rows) for row in rows)


def by_device(rows):
    found = {}
    for row in rows.values():
        if "end" in row:
            found.setdefault(row["device"], []).append(row)
    return found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("n_gpus", [1, 3])
def test_never_two_nodes_on_one_device(smi, tmp_path, n_gpus):
    smi(n_gpus)
    rows, failures = run(tmp_path, [(f"n{i}", "sleep", 0.5) for i in range(6)])
    assert failures == []
    assert len(rows) == 6
    found = by_device(rows)
    assert sorted(found) == [f"cuda:{i}" for i in range(n_gpus)]
    assert [most_at_once(those) for those in found.values()] == [1] * n_gpus


@pytest.mark.timeout(120)
def test_visible_devices_are_numbered_from_0(smi, tmp_path, monkeypatch):
    smi(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    rows, failures = run(tmp_path, [(f"n{i}", "sleep", 0.3) for i in range(4)])
    assert failures == []
    assert sorted(by_device(rows)) == ["cuda:0", "cuda:1"]


@pytest.mark.timeout(120)
def test_devices_are_shared_where_more_nodes_than_devices_are_asked_for(smi, tmp_path):
    smi(2)
    rows, _ = run(tmp_path, [(f"n{i}", "sleep", 3.0) for i in range(4)], n_gpu_procs=4)
    assert [len(those) for those in by_device(rows).values()] == [2, 2]
    assert most_at_once(list(rows.values())) > 2


@pytest.mark.timeout(120)
def test_no_more_gpu_nodes_at_once_than_asked_for(smi, tmp_path):
    smi(3)
    rows, _ = run(tmp_path, [(f"n{i}", "sleep", 0.4) for i in range(4)], n_gpu_procs=1)
    assert most_at_once(list(rows.values())) == 1


@pytest.mark.timeout(120)
def test_a_failing_node_gives_its_device_back(smi, tmp_path):
    smi(2)
    nodes = [("a", "wait", 5), ("b", "fail", 0.1), ("c", "fail", 0.1), *((f"d{i}", "sleep", 0.2) for i in range(3))]
    rows, failures = run(tmp_path, nodes)
    assert failures == ["b", "c"]
    found = by_device(rows)
    assert [most_at_once(those) for those in found.values()] == [1, 1]
    assert sorted(len(those) for those in found.values()) == [1, 5]


@pytest.mark.timeout(300)
def test_a_killed_worker_gives_its_device_back(smi, tmp_path):
    smi(2)
    nodes = [("a", "linger", 200.0), ("b", "die", 1.0), *((f"c{i}", "sleep", 1.0) for i in range(4))]
    begin = time.monotonic()
    rows, failures = run(tmp_path, nodes, nprocs=2)
    assert time.monotonic() - begin < 150  # nobody waits for what the killed worker's pool was at
    assert failures == ["a", "b"]
    assert {name: row["beside"] for name, row in rows.items() if row["beside"]} == {}
    found = by_device(rows)
    assert sorted(name for name, row in rows.items() if "end" in row) == ["c0", "c1", "c2", "c3"]
    assert sorted(found) == ["cuda:0", "cuda:1"]
    assert [most_at_once(those) for those in found.values()] == [1, 1]


@pytest.mark.timeout(120)
def test_one_node_after_the_other_has_the_first_visible_device(smi, tmp_path):
    smi(2)
    rows, _ = run(tmp_path, [("n0", "sleep", 0.0)], nprocs=1)
    assert rows["n0"]["device"] == "cuda"


@pytest.mark.parametrize(
    ("n_gpus", "given", "expected"),
    [
        (0, {}, 1),
        (1, {}, 1),
        (3, {}, 3),
        (3, {"n_gpu_procs": 2}, 2),
        (1, {"n_gpu_procs": 2}, 2),
        (3, {"device": "cpu"}, 1),
    ],
)
def test_gpu_nodes_at_once(smi, tmp_path, n_gpus, given, expected):
    smi(n_gpus)
    chosen, arguments = choose_plugin(settings(tmp_path, **given))
    chosen.pool.shutdown()
    assert chosen.n_gpu_procs == arguments["n_gpu_procs"] == expected


@pytest.mark.timeout(30)
def test_an_nvidia_smi_that_hangs_holds_nothing_up(smi, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "SMI_SECONDS", 0.5)
    smi(2, then="exec sleep 100")
    chosen, arguments = choose_plugin(settings(tmp_path))
    chosen.pool.shutdown()
    assert arguments["n_gpu_procs"] == 1


@pytest.mark.parametrize(
    ("n_gpus", "given", "idle"),
    [(3, {}, False), (3, {"nprocs": 1}, True), (3, {"nprocs": 2}, True), (3, {"n_gpu_procs": 2}, True), (1, {}, False)],
)
def test_idle_devices_are_told(smi, tmp_path, monkeypatch, n_gpus, given, idle):
    smi(n_gpus)
    told = []
    monkeypatch.setattr(plugin.logger, "warning", lambda text, *values: told.append(text % values))
    chosen, _ = choose_plugin(settings(tmp_path, **given))
    if chosen != "Linear":
        chosen.pool.shutdown()
    assert bool(told) == idle
    assert not idle or "of 3 GPUs" in told[0]


def test_a_cluster_job_has_devices_of_its_own(smi, tmp_path):
    smi(3)
    path = tmp_path / "plugin.yml"
    path.write_text("plugin: SLURM\nplugin_args: {sbatch_args: --gres=gpu:1}\n")
    assert choose_plugin(settings(tmp_path, use_plugin=path)) == ("SLURM", {"sbatch_args": "--gres=gpu:1"})


def interfaces_on_gpus():
    found = set()
    for module in pkgutil.iter_modules(bids_mllm.interfaces.__path__):
        members = inspect.getmembers(importlib.import_module(f"bids_mllm.interfaces.{module.name}"), inspect.isclass)
        found |= {one for _, one in members if "use_gpu" in getattr(getattr(one, "input_spec", None), "__dict__", {})
                  or "use_gpu" in getattr(getattr(one, "input_spec", None), "__base_traits__", {})}  # fmt: skip
    return sorted(found, key=lambda one: one.__name__)


def test_what_runs_on_gpus():
    assert [one.__name__ for one in interfaces_on_gpus()] == [
        "EstimateCeiling", "ExtractFeatures", "FitJointly", "FitScores",
    ]  # fmt: skip


@pytest.mark.parametrize("interface", interfaces_on_gpus(), ids=lambda one: one.__name__)
def test_the_device_is_no_part_of_a_nodes_hash(interface):
    hashes = set()
    for device in ("cpu", "cuda", "cuda:0", "cuda:2"):
        node = Node(interface(), name="node")
        node.inputs.device, node.inputs.use_gpu = device, device != "cpu"
        assert node.is_gpu_node() == (device != "cpu")
        hashes.add(node.inputs.get_hashval(hash_method="content")[1])
    assert len(hashes) == 1


@pytest.fixture(scope="module")
def make_graph(study, tmp_path_factory):
    """Build the graph of a study on GPUs with a ceiling by the method given."""
    return lambda ceiling: graph_of(study, tmp_path_factory, ceiling)


@pytest.fixture(scope="module")
def graph(make_graph):
    return make_graph("participants")


def graph_of(study, tmp_path_factory, ceiling):
    folder = tmp_path_factory.mktemp("graph")
    models = ["motionenergy", f"tiny={study / 'models/qwen25vltiny'}"]
    words = [
        study, folder / "out", "participant", "-w", folder / "w", "--nprocs", "3", "--omp-nthreads", "2",
        "--instructions", "AR", "ESA", "--bands", "tiny", "motionenergy",
        "--models", *models,
    ]  # fmt: skip
    plan = plan_study(parse_settings([str(word) for word in words]))
    with pytest.MonkeyPatch.context() as patch:
        # Two participants are too few for a ceiling of one's own, which would be asked for above.
        patch.setattr(participant, "ceiling_method", lambda *_: ceiling)
        return participant.init_participant_wf(plan, device="cuda")


@pytest.mark.parametrize("kind", ["features_gpu", "fit", "joint", "ceiling"])
def test_nodes_that_run_on_gpus_take_one_place_there(graph, kind):
    nodes = [graph.get_node(name) for name in graph.list_node_names() if name.startswith(kind)]
    assert nodes
    for node in nodes:
        assert node.is_gpu_node()
        assert (node.n_procs, node.inputs.device) == (1, "cuda")


def test_a_ceiling_from_repeats_leaves_gpus_alone(make_graph):
    graph = make_graph("repeats")
    nodes = [graph.get_node(name) for name in graph.list_node_names() if name.startswith("ceiling")]
    assert nodes
    assert [(node.is_gpu_node(), node.n_procs, node.inputs.device) for node in nodes] == [(False, 2, "cpu")] * len(
        nodes
    )


def test_models_without_weights_leave_gpus_alone(graph):
    nodes = [graph.get_node(name) for name in graph.list_node_names() if name.startswith("features_cpu")]
    assert nodes
    for node in nodes:
        assert not node.is_gpu_node()
        assert (node.n_procs, node.inputs.device) == (2, "cpu")
