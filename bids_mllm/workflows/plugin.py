"""nipype plugins: MultiProc that survives a killed worker, and the choice among plugins."""

import logging
import multiprocessing
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import yaml
from nipype import config as nipype_config
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer

from bids_mllm.config import Settings
from bids_mllm.exceptions import UsageError, WorkerKilledError
from bids_mllm.workflows.stopping import guard_worker

PLUGINS = (
    "Linear", "MultiProc", "LegacyMultiProc", "SLURM", "SLURMGraph", "PBS", "PBSGraph", "SGE", "SGEGraph", "LSF",
    "OAR", "Condor", "DAGMan",
)  # fmt: skip
#: A fork of a process that has used CUDA cannot use it.
START_METHOD = "forkserver"


class ResilientMultiProcPlugin(MultiProcPlugin):
    """MultiProc in which a killed worker is a failed node.

    When the system kills a worker (out of memory, most often), nipype's own plugin never hears of its task again
    and polls for ever. Here the broken future becomes an error of the tasks that were running, each with a crash
    file, and a new pool takes the nodes that do not depend on them.
    """

    def __init__(self, plugin_args: dict[str, Any], *, verbose: int = 0, monitor: bool = False) -> None:
        super().__init__(plugin_args=plugin_args)
        self._verbose = verbose
        self._monitor = monitor
        self.pool.shutdown()  # nipype's own: nothing was submitted yet
        self.pool: ProcessPoolExecutor = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=self.processors,
            initializer=_initialise_worker,
            initargs=(str(Path.cwd()), self._verbose, self._monitor),
            mp_context=multiprocessing.get_context(self.plugin_args.get("mp_context")),
        )

    @property
    def worker_pids(self) -> list[int]:
        """Numbers of the worker processes."""
        return list(self.pool._processes or ())

    def _async_callback(self, args: Any) -> None:
        if args.exception() is None:
            super()._async_callback(args)

    def _get_result(self, taskid: int) -> Any:
        future = self._task_obj[taskid]
        broken = future.exception() if future.done() else None
        if broken is None:
            return super()._get_result(taskid)
        error = WorkerKilledError(
            "A worker process was ended by the system while this node ran, most often for want of memory; run "
            "again with fewer --nprocs or more memory: what was finished is kept."
        )
        error.__cause__ = broken
        return {"result": None, "traceback": traceback.format_exception(error), "taskid": taskid}

    def _submit_job(self, node: Any, updatehash: bool = False) -> Any:
        try:
            return super()._submit_job(node, updatehash=updatehash)
        except BrokenProcessPool:
            self.pool.shutdown(wait=False)
            self.pool = self._new_pool()
            return super()._submit_job(node, updatehash=updatehash)


def _initialise_worker(cwd: str, verbose: int, monitor: bool) -> None:
    """Start a worker in the folder, at the log level and with the monitor of the main process."""
    process_initializer(cwd)
    guard_worker()
    if monitor:
        nipype_config.enable_resource_monitor()
    set_nipype_level(verbose)


def set_nipype_level(verbose: int) -> None:
    """Let nipype say what goes wrong; more with -v, everything with -vv."""
    level = ("CRITICAL", "INFO", "DEBUG")[min(verbose, 2)]
    for name in ("nipype.workflow", "nipype.interface", "nipype.utils"):
        logging.getLogger(name).setLevel(level)


def choose_plugin(settings: Settings) -> tuple[Any, dict[str, Any]]:
    """Return the plugin (an object or a name) and its arguments for `Workflow.run`."""
    if settings.use_plugin is not None:
        return _plugin_from_file(settings)
    arguments = _resources(settings)
    if settings.nprocs == 1:
        return "Linear", arguments
    return _resilient(arguments, settings), arguments


def _resources(settings: Settings) -> dict[str, Any]:
    """Arguments of MultiProc; the number of GPU slots is never left to nipype, which finds 0 without nvidia-smi."""
    return {
        "n_procs": settings.nprocs,
        "memory_gb": settings.mem_mb / 1024,
        "n_gpu_procs": settings.n_gpu_procs,
        "raise_insufficient": False,
        "mp_context": START_METHOD,
    }


def _resilient(arguments: dict[str, Any], settings: Settings) -> ResilientMultiProcPlugin:
    return ResilientMultiProcPlugin(arguments, verbose=settings.verbose, monitor=settings.resource_monitor)


def _plugin_from_file(settings: Settings) -> tuple[Any, dict[str, Any]]:
    path = settings.use_plugin or Path()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        name, arguments = content["plugin"], dict(content.get("plugin_args") or {})
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"The plugin file {path} must be YAML with plugin and plugin_args, such as 'plugin: Linear' ({error})."
        ) from error
    if name not in PLUGINS:
        raise UsageError(f"The plugin file {path} names {name!r}; known plugins are {', '.join(PLUGINS)}.")
    if name == "MultiProc":
        arguments = _resources(settings) | arguments
        return _resilient(arguments, settings), arguments
    return name, arguments
