"""Run a graph, and say in sentences what failed."""

import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nipype import config as nipype_config
from nipype.pipeline.engine import Workflow

from bids_mllm.config import Settings
from bids_mllm.exceptions import BidsMllmError, Terminated
from bids_mllm.io.files import write_text
from bids_mllm.workflows.cluster import EXECUTION, ResilientSlurmPlugin, slurm_plugin, tell_nodes
from bids_mllm.workflows.plugin import LOCAL_PLUGINS, choose_plugin, read_plugin_file, set_nipype_level
from bids_mllm.workflows.resources import Begun, record_of, write_resources
from bids_mllm.workflows.stopping import end_processes, raise_if_terminated

logger = logging.getLogger("bids_mllm")

_ERROR_LINE = re.compile(r"^\s*(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt|Killed\w*)): (.*)$")


@dataclass(frozen=True)
class Failure:
    """A node that failed: its name, one sentence, the crash file."""

    node: str
    sentence: str
    crash_file: Path


def run_workflow(
    workflow: Workflow, settings: Settings, *, crash_dirs: Mapping[str, Path], default_crash_dir: Path
) -> tuple[Failure, ...]:
    """Run a graph to its end, whatever fails, and return the failures.

    Parameters
    ----------
    workflow
    settings
    crash_dirs
        Folder of the crash files by a part of the node's name, such as ``sub_01``.
    default_crash_dir
        Folder of all others.
    """
    begun = Begun()
    _configure(workflow, settings, default_crash_dir)
    folders = {*crash_dirs.values(), default_crash_dir}
    for name in workflow.list_node_names():
        node = workflow.get_node(name)
        folder = next((f for part, f in crash_dirs.items() if _concerns(name, part)), default_crash_dir)
        node.config = {"execution": _execution(settings, folder)}
    before = {path for folder in folders for path in folder.glob("crash-*")}
    stopped: Exception | None = None
    settings.graph_dir.mkdir(parents=True, exist_ok=True)
    plugin: Any = None
    try:
        # nipype's resource monitor leaves its files where a process was started.
        with chdir(settings.graph_dir):
            plugin, arguments = choose_plugin(settings)
            if plugin == "SLURM":
                tell_nodes(workflow, arguments)
                plugin = slurm_plugin(arguments)
            workflow.run(plugin=plugin, plugin_args=arguments | {"status_callback": raise_if_terminated})
    except BidsMllmError:
        raise
    except Terminated:
        end_processes(getattr(plugin, "worker_pids", ()))
        _remove_crashes({path for folder in folders for path in folder.glob("crash-*")} - before)
        raise
    except Exception as error:  # noqa: BLE001  nipype raises what the node raised; the crash files tell which
        stopped = error
    finally:
        # However the run ended, no job may go on in a folder that the next call works in.
        if isinstance(plugin, ResilientSlurmPlugin):
            plugin.cancel()
    _keep_resource_record(workflow, default_crash_dir)
    made = sorted({path for folder in folders for path in folder.glob("crash-*")} - before)
    failures = tuple(read_crash(path) for path in made)
    _keep_usage(begun, workflow, settings, plugin=plugin, n_failed=len(failures), folders=folders)
    if stopped is not None and not failures:
        logger.debug("The graph stopped.", exc_info=stopped)
        raise BidsMllmError(
            f"The workflow stopped ({type(stopped).__name__}: {stopped}); run again with -vv for the traceback."
        ) from stopped
    return failures


def _remove_crashes(paths: Iterable[Path]) -> None:
    """Remove crash files of nodes that did not fail but were ended."""
    for path in paths:
        if Terminated.__name__ in path.read_text(encoding="utf-8", errors="replace"):
            path.unlink()


def _concerns(node: str, part: str) -> bool:
    return re.search(rf"(^|_){re.escape(part)}(_|$)", node) is not None


def _execution(settings: Settings, crash_dir: Path) -> dict[str, str]:
    """Settings of nipype's execution."""
    on_cluster = settings.use_plugin is not None and read_plugin_file(settings.use_plugin)[0] not in LOCAL_PLUGINS
    return {
        "crashdump_dir": str(crash_dir),
        "crashfile_format": "txt",
        "hash_method": "content",
        "poll_sleep_duration": "0.1",
        "check_version": "false",
        "stop_on_first_crash": str(settings.stop_on_first_crash).lower(),
        "remove_unnecessary_outputs": "false",
        "keep_inputs": "true",
        "parameterize_dirs": "false",
    } | (EXECUTION if on_cluster else {})


def _configure(workflow: Workflow, settings: Settings, default_crash_dir: Path) -> None:
    """Set up nipype for this graph; a graph keeps the settings that were in force when it was built."""
    default_crash_dir.mkdir(parents=True, exist_ok=True)
    nipype_config.update_config(
        {
            "execution": _execution(settings, default_crash_dir),
            "monitoring": {"enabled": str(settings.resource_monitor).lower(), "sample_frequency": "1"},
            "logging": {"log_to_file": "false"},
        }
    )
    if settings.resource_monitor:
        nipype_config.enable_resource_monitor()
    workflow.config["execution"].update(_execution(settings, default_crash_dir))
    set_nipype_level(settings.verbose)


def _keep_resource_record(workflow: Workflow, folder: Path) -> None:
    """Copy what the resource monitor recorded out of the work folder, where there is a record."""
    record = Path(workflow.base_dir) / workflow.name / "resource_monitor.json"
    if record.is_file():
        write_text(folder / record.name, record.read_text(encoding="utf-8"))


def _keep_usage(
    begun: Begun, workflow: Workflow, settings: Settings, *, plugin: Any, n_failed: int, folders: Iterable[Path]
) -> None:
    """Write what the run took beside its settings."""
    workers = getattr(plugin, "usage", {}).values()
    ours = "SLURM" if isinstance(plugin, ResilientSlurmPlugin) else "MultiProc"
    record = record_of(
        begun, workers, level=settings.analysis_level, plugin=plugin if isinstance(plugin, str) else ours,
        n_nodes=len(workflow.list_node_names()), n_failed=n_failed,
    )  # fmt: skip
    write_resources(folders, record)


def read_crash(path: Path) -> Failure:
    """Read the node and the last error of a crash file."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    node = next((line.removeprefix("Node: ").strip() for line in lines if line.startswith("Node: ")), path.stem)
    sentence = "The node failed; see its crash file."
    for line in lines:
        match = _ERROR_LINE.match(line)
        if match and match.group(1) != "NodeExecutionError":
            kind, text = match.groups()
            sentence = text if _is_ours(kind) else f"{kind}: {text}"
    return Failure(node.rpartition(".")[2], sentence, path)


def _is_ours(kind: str) -> bool:
    from bids_mllm import exceptions

    return hasattr(exceptions, kind)


def failures_of(failures: tuple[Failure, ...], participant: str) -> tuple[Failure, ...]:
    """Return the failures that concern a participant: its own nodes and the features that all share."""
    return tuple(
        failure for failure in failures if _concerns(failure.node, f"sub_{participant}") or "_sub_" not in failure.node
    )


def describe(failures: tuple[Failure, ...]) -> list[str]:
    """Return one line a failure."""
    return [f"{failure.node}: {failure.sentence} (crash file: {failure.crash_file})" for failure in failures]
