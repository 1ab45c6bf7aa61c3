"""Nodes as jobs of Slurm, submitted from a node where that is allowed: nipype's plugin, made safe to resume."""

import getpass
import os
import re
import shutil
import subprocess
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Workflow
from nipype.pipeline.plugins.slurm import SLURMPlugin

from bids_mllm.exceptions import UsageError, WorkerKilledError

#: Arguments of sbatch for nodes that need a GPU, beside sbatch_args; nipype does not know this key.
GPU_ARGUMENTS = "gpu_sbatch_args"
#: nipype's settings: seconds between two looks at the queue, which ask the controller about every job, and seconds
#: that the result of a job may take to show up on a shared file system.
EXECUTION = {"poll_sleep_duration": "2", "job_finished_timeout": "30"}
_HAS_CPUS = re.compile(r"(^|\s)(-c|--cpus-per-task)")


class ResilientSlurmPlugin(SLURMPlugin):
    """nipype's SLURM plugin in which a job that was killed is a failed node, whatever an earlier run has left."""

    def _submit_job(self, node: Any, updatehash: bool = False) -> Any:
        # Once a job has ended, nipype takes the first result that it finds, also that of an earlier run.
        for stale in Path(node.output_dir()).glob("result_*.pklz"):
            stale.unlink()
        return super()._submit_job(node, updatehash=updatehash)

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
                subprocess.run(["scancel", *map(str, self._pending)], capture_output=True, check=False)


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
    os.environ.setdefault("LOGNAME", getpass.getuser())  # nipype names the jobs by it
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
