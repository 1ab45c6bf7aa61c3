"""Nodes as jobs of Slurm, submitted from a node where that is allowed: nipype's plugin, made safe to resume.

nipype 1.11 takes whatever its calls of Slurm's programs print for an answer, also when they fail. Here a controller
that does not answer is asked again: a job counts as ended only where Slurm says so.
"""

import logging
import re
import shlex
import shutil
import subprocess
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Workflow
from nipype.pipeline.plugins.slurm import SLURMPlugin

from bids_mllm.exceptions import BidsMllmError, UsageError, WorkerKilledError

logger = logging.getLogger("bids_mllm")

#: Arguments of sbatch for nodes that need a GPU, beside sbatch_args; nipype does not know this key.
GPU_ARGUMENTS = "gpu_sbatch_args"
#: nipype's settings: seconds between two looks at the queue, which ask the controller about every job, and seconds
#: that the result of a job may take to show up on a shared file system.
EXECUTION = {"poll_sleep_duration": "2", "job_finished_timeout": "30"}
#: Seconds that a controller may fail to answer before the run ends.
SILENT_SECONDS = 600.0
#: Tries to submit a job, and seconds between them.
SUBMISSIONS, SUBMISSION_SECONDS = 5, 10.0
_HAS_CPUS = re.compile(r"(^|\s)(-c|--cpus-per-task)")
_JOB = re.compile(r"Submitted batch job (\d+)")


class ResilientSlurmPlugin(SLURMPlugin):
    """nipype's SLURM plugin in which a job that was killed is a failed node, whatever an earlier run has left."""

    def __init__(self, plugin_args: dict[str, Any]) -> None:
        super().__init__(plugin_args=plugin_args)
        self._silent_since: float | None = None

    def _submit_job(self, node: Any, updatehash: bool = False) -> Any:
        # Once a job has ended, nipype takes the first result that it finds, also that of an earlier run.
        for stale in Path(node.output_dir()).glob("result_*.pklz"):
            stale.unlink()
        return super()._submit_job(node, updatehash=updatehash)

    def _submit_batchtask(self, scriptfile: str, node: Any) -> int:
        out = str(Path(scriptfile).parent / "slurm-%j.out")
        name = f"{node._id}.{node._hierarchy}"
        asked = shlex.split(f"{self._sbatch_args or ''} {node.plugin_args.get('sbatch_args', '')}")
        words = ["sbatch", "-o", out, "-e", out, "-J", name, *asked, scriptfile]
        for number in range(SUBMISSIONS):
            done = _asked(words)
            match = _JOB.search(done.stdout)
            if done.returncode == 0 and match:
                self._pending[int(match[1])] = node.output_dir()
                return int(match[1])
            logger.warning("sbatch did not take %s (%s).", name, _told(done))
            time.sleep(SUBMISSION_SECONDS if number + 1 < SUBMISSIONS else 0)
        raise BidsMllmError(
            f"Slurm did not take the step {name} ({_told(done)}); look at sbatch_args, and run again: what was "
            "finished is kept."
        )

    def _is_pending(self, taskid: int) -> bool:
        done = _asked(["squeue", "-h", "-o", "%i", "-j", str(taskid)])
        if done.returncode == 0 or "Invalid job id" in done.stderr:
            self._silent_since = None
            return str(taskid) in done.stdout.split()
        self._silent_since = self._silent_since or time.monotonic()
        if time.monotonic() - self._silent_since > SILENT_SECONDS:
            raise BidsMllmError(f"Slurm has not answered for {SILENT_SECONDS:.0f} s ({_told(done)}); run again later.")
        return True

    def _get_result(self, taskid: int) -> Any:
        result = super()._get_result(taskid)
        if not result or "results file does not exist" not in "".join(result["traceback"] or ()):
            return result
        error = WorkerKilledError(
            f"The Slurm job {taskid} of this node ended without a result, as one does that is cancelled or uses up its "
            f"memory or time; look into batch/slurm-{taskid}.out of the work folder, ask for more in sbatch_args, and "
            "run again: what was finished is kept."
        )
        return result | {"traceback": traceback.format_exception(error)}

    def cancel(self) -> None:
        """Cancel the jobs that have not ended."""
        if self._pending:
            with suppress(OSError):
                _asked(["scancel", *map(str, self._pending)])


def _asked(words: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, check=False)


def _told(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the last line of what a program said, or its status."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"status {done.returncode}"


def slurm_plugin(arguments: dict[str, Any]) -> ResilientSlurmPlugin:
    """Return the plugin for the arguments of a plugin file.

    Raises
    ------
    UsageError
        Where jobs cannot be submitted from.
    """
    missing = [program for program in ("sbatch", "squeue") if shutil.which(program) is None]
    if missing:
        raise UsageError(
            f"The plugin SLURM needs {' and '.join(missing)}, which this machine or container does not have; run where "
            "jobs are submitted from, or submit whole participants with slurm-array."
        )
    return ResilientSlurmPlugin(plugin_args={k: v for k, v in arguments.items() if k != GPU_ARGUMENTS})


def tell_nodes(workflow: Workflow, arguments: dict[str, Any]) -> None:
    """Tell every node what its job asks for beside sbatch_args: processors, and what nodes on GPUs need."""
    has_cpus = _HAS_CPUS.search(str(arguments.get("sbatch_args", ""))) is not None
    for name in workflow.list_node_names():
        node = workflow.get_node(name)
        asked = [] if has_cpus else [f"--cpus-per-task={node.n_procs}"]
        if node.is_gpu_node() and arguments.get(GPU_ARGUMENTS):
            asked.append(str(arguments[GPU_ARGUMENTS]))
        node.plugin_args = {"sbatch_args": " ".join(asked)}
