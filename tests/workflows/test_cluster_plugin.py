"""nipype's SLURM plugin with stand-ins of sbatch, squeue and scancel, which run a job at once or lose it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits
from nipype.pipeline.engine import Node, Workflow

from bids_mllm.config import Settings
from bids_mllm.exceptions import BidsMllmError, UsageError
from bids_mllm.workflows.cluster import slurm_plugin
from bids_mllm.workflows.run import run_workflow

SBATCH = """#!/bin/bash
echo "$@" >>"$STAND_IN/calls"
script=${@: -1}
number=$(wc -l <"$STAND_IN/calls")
if ! grep -q "$(basename "$script" | grep -o '[a-z]*\\.sh')" "$STAND_IN/lost" 2>/dev/null; then
    bash "$script" >"$STAND_IN/out-$number" 2>&1
fi
echo "Submitted batch job $number"
"""


class _In(BaseInterfaceInputSpec):
    number = traits.Int()
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)


class _Out(TraitedSpec):
    number = traits.Int()


class AddOne(SimpleInterface):
    """Adds one."""

    input_spec = _In
    output_spec = _Out

    def _run_interface(self, runtime):
        self._results["number"] = self.inputs.number + 1
        return runtime


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put stand-ins on the PATH; return the folder of what they keep."""
    programs, kept = tmp_path / "bin", tmp_path / "kept"
    programs.mkdir()
    kept.mkdir()
    texts = {"sbatch": SBATCH, "squeue": "#!/bin/sh\n", "scancel": '#!/bin/sh\necho "$@" >>"$STAND_IN/cancelled"\n'}
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(kept))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.delenv("LOGNAME", raising=False)
    return kept


def settings(tmp_path, text):
    path = tmp_path / "plugin.yml"
    path.write_text(text)
    work = tmp_path / "work"
    return Settings(tmp_path, tmp_path, "participant", work_dir=work, use_plugin=path)


def graph(tmp_path, number=1):
    workflow = Workflow(name="graph", base_dir=str(tmp_path / "work"))
    first = Node(AddOne(number=number, use_gpu=True), name="features", n_procs=1)
    second = Node(AddOne(), name="fit", n_procs=3)
    workflow.connect(first, "number", second, "number")
    return workflow


def run(tmp_path, text, **more):
    return run_workflow(
        graph(tmp_path, **more), settings(tmp_path, text), crash_dirs={}, default_crash_dir=tmp_path / "logs"
    )


ARGUMENTS = "plugin: SLURM\nplugin_args: {sbatch_args: --partition=cpu --mem=2G, gpu_sbatch_args: --gres=gpu:1}\n"


QUICK = {"poll_sleep_duration": "0.1", "job_finished_timeout": "1"}


def test_every_node_is_a_job_that_asks_for_what_it_needs(stand_in, tmp_path):
    assert run(tmp_path, ARGUMENTS) == ()
    features, fit = (stand_in / "calls").read_text().splitlines()
    assert "--partition=cpu --mem=2G --cpus-per-task=1 --gres=gpu:1 /" in features
    assert "--partition=cpu --mem=2G --cpus-per-task=3 /" in fit
    assert "features" in features
    assert "-J fit.graph " in fit


def test_processors_of_the_file_hold_for_all_nodes(stand_in, tmp_path):
    assert run(tmp_path, "plugin: SLURM\nplugin_args: {sbatch_args: -c 2}\n") == ()
    assert "--cpus-per-task" not in (stand_in / "calls").read_text()


def test_a_job_that_is_lost_is_a_failed_node_also_where_an_earlier_run_left_a_result(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "bids_mllm.workflows.run.EXECUTION", {"poll_sleep_duration": "0.1", "job_finished_timeout": "1"}
    )
    assert run(tmp_path, ARGUMENTS) == ()
    (stand_in / "lost").write_text("fit.sh\n")
    (failure,) = run(tmp_path, ARGUMENTS, number=5)
    assert failure.node == "fit"
    assert failure.sentence.startswith("The Slurm job 4 of this node ended without a result")
    assert "sbatch_args" in failure.sentence


def answers(stand_in, name, *, first):
    """Let the stand-in of a program fail at its first call, with a status and a sentence."""
    program = Path(shutil.which(name))
    lines = program.read_text().splitlines()
    fail = f'if mkdir "$STAND_IN/{name}-failed" 2>/dev/null; then echo "{first}" >&2; exit 1; fi'
    program.write_text("\n".join([lines[0], fail, *lines[1:], ""]))


def test_a_controller_that_does_not_answer_is_asked_again(stand_in, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("bids_mllm.workflows.cluster.SUBMISSION_SECONDS", 0.1)
    answers(stand_in, "sbatch", first="sbatch: error: Unable to contact slurm controller")
    answers(stand_in, "squeue", first="slurm_load_jobs error: Socket timed out on send/recv operation")
    assert run(tmp_path, ARGUMENTS) == ()
    assert (stand_in / "sbatch-failed").is_dir()
    assert (stand_in / "squeue-failed").is_dir()
    assert len((stand_in / "calls").read_text().splitlines()) == 2


def test_a_job_of_which_the_queue_tells_nothing_is_not_over(stand_in):
    plugin = slurm_plugin({})
    squeue = Path(shutil.which("squeue"))
    for text, pending in (
        ("echo 17", True),
        ("", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
        ("echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1", True),
    ):
        squeue.write_text(f"#!/bin/sh\n{text}\n")
        assert plugin._is_pending(17) == pending


def test_a_controller_that_stays_silent_ends_the_wait(stand_in, monkeypatch):
    monkeypatch.setattr("bids_mllm.workflows.cluster.SILENT_SECONDS", 0.0)
    Path(shutil.which("squeue")).write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    plugin = slurm_plugin({})
    with pytest.raises(BidsMllmError, match=r"Slurm has not answered for 0 s \(Unable to contact"):
        [plugin._is_pending(17) for _ in range(2)]


def test_a_job_that_is_not_taken_is_one_sentence_and_cancels_the_others(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr("bids_mllm.workflows.cluster.SUBMISSION_SECONDS", 0.0)
    sbatch = Path(shutil.which("sbatch"))
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: none' >&2\nexit 1\n")
    with pytest.raises(BidsMllmError, match=r"did not take the step features.* \(sbatch: error: invalid partition"):
        run(tmp_path, ARGUMENTS)


def test_no_job_goes_on_when_the_run_stops_at_the_first_crash(stand_in, tmp_path, monkeypatch):
    workflow = Workflow(name="graph", base_dir=str(tmp_path / "work"))
    workflow.add_nodes([Node(AddOne(number=1), name="lost"), Node(AddOne(number=2), name="running")])
    (stand_in / "lost").write_text("lost.sh\nrunning.sh\n")
    # The first job is gone, the second stays in the queue.
    Path(shutil.which("squeue")).write_text('#!/bin/sh\n[ "$5" = 2 ] && echo 2\nexit 0\n')
    monkeypatch.setattr(
        "bids_mllm.workflows.run.EXECUTION", {"poll_sleep_duration": "0.1", "job_finished_timeout": "1"}
    )
    stopping = replace(settings(tmp_path, ARGUMENTS), stop_on_first_crash=True)
    (failure,) = run_workflow(workflow, stopping, crash_dirs={}, default_crash_dir=tmp_path / "logs")
    assert failure.node == "lost"
    assert "2" in (stand_in / "cancelled").read_text().split()


def test_polling_spares_the_controller(stand_in, tmp_path):
    workflow = graph(tmp_path)
    run_workflow(workflow, settings(tmp_path, ARGUMENTS), crash_dirs={}, default_crash_dir=tmp_path / "logs")
    assert float(workflow.config["execution"]["poll_sleep_duration"]) >= 1


def test_no_sbatch_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"needs sbatch and squeue, which this machine .* slurm-array"):
        slurm_plugin({})


@pytest.mark.parametrize("name", ["SLURMGraph", "PBSGraph", "SGEGraph", "DAGMan"])
def test_plugins_that_do_not_tell_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match=f"names {name}, which returns before"):
        run(tmp_path, f"plugin: {name}\n")


WAITING = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from test_cluster_plugin import ARGUMENTS, run
from bids_mllm.workflows.stopping import terminated_by_sigterm
with terminated_by_sigterm():
    run(Path({folder!r}), ARGUMENTS)
"""


def test_jobs_are_cancelled_at_sigterm(stand_in, tmp_path):
    squeue = Path(shutil.which("squeue"))
    squeue.write_text('#!/bin/sh\necho "$5"\n')
    code = WAITING.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        until = time.monotonic() + 60
        while not (stand_in / "calls").is_file():
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(3)  # until nipype has asked for the job
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    assert (stand_in / "cancelled").read_text().split() == ["1"]
