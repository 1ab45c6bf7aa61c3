"""nipype plugins: MultiProc that survives a killed worker, and the choice among plugins."""

import logging
import multiprocessing
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import yaml
from nipype import config as nipype_config
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer

from bids_mllm.config import Settings
from bids_mllm.exceptions import UsageError, WorkerKilledError
from bids_mllm.workflows.gpus import visible_devices
from bids_mllm.workflows.resources import Usage, usage_of_process
from bids_mllm.workflows.stopping import end_if_asked, guard_worker, raise_if_terminated

logger = logging.getLogger("bids_mllm")

#: Those that run nodes on this machine; all others send them to a scheduler as jobs.
LOCAL_PLUGINS = ("Linear", "MultiProc", "LegacyMultiProc")
PLUGINS = (*LOCAL_PLUGINS, "SLURM", "PBS", "SGE", "LSF", "OAR", "Condor")
#: Those that return when all nodes are submitted; what became of them is never told.
UNTOLD_PLUGINS = ("SLURMGraph", "PBSGraph", "SGEGraph", "DAGMan")
#: A fork of a process that has used CUDA cannot use it.
START_METHOD = "forkserver"
#: Under which a worker tells what it has used, beside the result of a node.
USAGE = "usage"


class _Pool(ProcessPoolExecutor):
    """A pool whose workers end after the node during which they were asked to, and whose end is always seen."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(_run_and_end, fn, *args, **kwargs)
        # Python tells the thread that watches the workers of a new node before it starts a new worker for it; told
        # again, the thread watches that worker too. Else its death goes unseen until another node ends.
        with self._shutdown_lock:
            self._executor_manager_thread_wakeup.wakeup()
        return future


def _run_and_end(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    result = run(*args, **kwargs)
    if isinstance(result, dict):
        result[USAGE] = usage_of_process()
    end_if_asked()
    return result


class ResilientMultiProcPlugin(MultiProcPlugin):
    """MultiProc in which a killed worker is a failed node, and every GPU node has a device of its own.

    When the system kills a worker (out of memory, most often), nipype's own plugin never hears of its task again
    and polls for ever. Here the broken future becomes an error of the tasks that were running, each with a crash
    file, and a new pool takes the nodes that do not depend on them.

    A node whose interface says ``use_gpu`` is told its device in ``inputs.device`` when it is submitted: the one
    with the fewest nodes on it.

    Parameters
    ----------
    plugin_args
        Of nipype's MultiProc; ``n_gpu_procs`` is the number of GPU nodes at once.
    n_devices
        Devices to share out, numbered from 0; with none, nodes keep the device that they were made with.
    verbose, monitor
        Of the workers.
    """

    def __init__(
        self, plugin_args: dict[str, Any], *, n_devices: int = 0, verbose: int = 0, monitor: bool = False
    ) -> None:
        # MultiProcPlugin's own asks nvidia-smi without a limit of time, and starts a pool that is not wanted.
        super(MultiProcPlugin, self).__init__(plugin_args=plugin_args)
        self._taskresult: dict[int, Any] = {}
        self._task_obj: dict[int, Future[Any]] = {}
        self._taskid = 0
        self._stats = None
        self._cwd = str(Path.cwd())
        self.processors = plugin_args["n_procs"]
        self.memory_gb = plugin_args["memory_gb"]
        self.n_gpu_procs = plugin_args["n_gpu_procs"]
        self.raise_insufficient = plugin_args["raise_insufficient"]
        self._verbose = verbose
        self._monitor = monitor
        self._nodes_on = [0] * n_devices
        self._device_of: dict[int, int] = {}
        #: What each worker has used, by its number.
        self.usage: dict[int, Usage] = {}
        self.pool: ProcessPoolExecutor = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        return _Pool(
            max_workers=self.processors,
            initializer=_initialise_worker,
            initargs=(self._cwd, self._verbose, self._monitor),
            mp_context=multiprocessing.get_context(self.plugin_args.get("mp_context")),
        )

    @property
    def worker_pids(self) -> list[int]:
        """Numbers of the worker processes."""
        return list(self.pool._processes or ())

    def _async_callback(self, args: Any) -> None:
        if args.exception() is None:
            usage = args.result().pop(USAGE)
            self.usage[usage.pid] = usage
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
        device = self._least_loaded() if node.is_gpu_node() else None
        if device is not None:
            node.inputs.device = f"cuda:{device}"
        task = self._submit_to_a_pool(node, updatehash)
        if device is not None:
            self._nodes_on[device] += 1
            self._device_of[task] = device
        return task

    def _least_loaded(self) -> int | None:
        return min(range(len(self._nodes_on)), key=self._nodes_on.__getitem__, default=None)

    def _submit_to_a_pool(self, node: Any, updatehash: bool) -> int:
        try:
            task: int = super()._submit_job(node, updatehash=updatehash)
        except BrokenProcessPool:
            # The other workers of the pool are being ended; until they are gone they hold memory, on devices too.
            self.pool.shutdown(wait=True)
            self.pool = self._new_pool()
            task = super()._submit_job(node, updatehash=updatehash)
        return task

    def _clear_task(self, taskid: int) -> None:
        """Forget a task, which has ended in whatever way, and give its device back."""
        super()._clear_task(taskid)
        device = self._device_of.pop(taskid, None)
        if device is not None:
            self._nodes_on[device] -= 1


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
    given: dict[str, Any] = {}
    if settings.use_plugin is not None:
        name, given = read_plugin_file(settings.use_plugin)
        if name != "MultiProc":
            return name, given
    n_devices = _n_devices(settings)
    arguments = _resources(settings, n_devices) | given
    _tell_idle(n_devices, arguments)
    if settings.use_plugin is None and settings.nprocs == 1:
        return "Linear", arguments
    plugin = ResilientMultiProcPlugin(
        arguments, n_devices=n_devices, verbose=settings.verbose, monitor=settings.resource_monitor
    )
    return plugin, arguments


def _n_devices(settings: Settings) -> int:
    """Count the devices that nodes may use."""
    if settings.device == "cpu" or settings.analysis_level != "participant":
        return 0
    return len(visible_devices())


def _tell_idle(n_devices: int, arguments: Mapping[str, Any]) -> None:
    """Say where there are more devices than will be used at once."""
    n_used = min(arguments["n_procs"], arguments["n_gpu_procs"])
    if n_used < n_devices:
        logger.warning(
            "Only %d of %d GPUs will be used at once; --nprocs and --n-gpu-procs of %d or more use all.",
            n_used, n_devices, n_devices,
        )  # fmt: skip


def _resources(settings: Settings, n_devices: int) -> dict[str, Any]:
    """Arguments of MultiProc; the number of GPU slots is never left to nipype, which finds 0 without nvidia-smi."""
    return {
        "n_procs": settings.nprocs,
        "memory_gb": settings.mem_mb / 1024,
        "n_gpu_procs": settings.n_gpu_procs or max(1, n_devices),
        "raise_insufficient": False,
        "mp_context": START_METHOD,
        "status_callback": raise_if_terminated,
    }


def read_plugin_file(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of the plugin that a file describes."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        name, arguments = content["plugin"], dict(content.get("plugin_args") or {})
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"The plugin file {path} must be YAML with plugin and plugin_args, such as 'plugin: Linear' ({error})."
        ) from error
    if name in UNTOLD_PLUGINS:
        raise UsageError(
            f"The plugin file {path} names {name}, which returns before its nodes have run, so that failures would go "
            "untold and reports be written of nothing; take SLURM, PBS or SGE."
        )
    if name not in PLUGINS:
        raise UsageError(f"The plugin file {path} names {name!r}; known plugins are {', '.join(PLUGINS)}.")
    return name, arguments
