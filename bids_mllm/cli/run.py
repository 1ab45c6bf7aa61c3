"""`bids-mllm`: from the command line to an exit status."""

import logging
import os
import shutil
import sys
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bids_mllm.cli.devices import device_of_run
from bids_mllm.cli.downloads import fetch_missing
from bids_mllm.cli.environment import settle_home
from bids_mllm.cli.parser import parse_settings
from bids_mllm.config import Settings, settings_to_toml
from bids_mllm.exceptions import BidsMllmError, InputDataError, Terminated
from bids_mllm.io.locks import alone_in
from bids_mllm.workflows.stopping import terminated_by_sigterm

if TYPE_CHECKING:
    from bids_mllm.io.results import ModelResult
    from bids_mllm.workflows.plan import StudyPlan
    from bids_mllm.workflows.run import Failure

logger = logging.getLogger("bids_mllm")

OK, CRASH = 0, 1
T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app; return its exit status.

    0 done, 1 crash, 2 usage, 70 data do not allow what was asked, 143 ended by SIGTERM.
    """
    try:
        settings = parse_settings(argv)
        _set_up_logging(settings.verbose)
        _set_up_environment(settings)
        with terminated_by_sigterm():
            fetch_missing(settings)
            return _participant(settings) if settings.analysis_level == "participant" else _group(settings)
    except Terminated as ended:
        sys.stderr.write(
            "bids-mllm: Ended by SIGTERM; what was finished is kept, and the same command goes on from there.\n"
        )
        return ended.exit_status
    except BidsMllmError as error:
        sys.stderr.write(f"bids-mllm: {error}\n")
        return error.exit_status


def _set_up_logging(verbose: int) -> None:
    level = (logging.INFO, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    if not verbose:
        warnings.simplefilter("ignore")  # third-party deprecations; ours go through the log


def _set_up_environment(settings: Settings) -> None:
    """Bound the threads of every worker and keep libraries off the network and homes that cannot be written."""
    from threadpoolctl import threadpool_limits

    settle_home()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(settings.omp_nthreads)
    # This process has numpy already, whose library read the variables when it was loaded.
    threadpool_limits(settings.omp_nthreads)
    os.environ.setdefault("NO_ET", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not settings.verbose:
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"


def _participant(settings: Settings) -> int:
    from bids_mllm.workflows.plan import plan_study

    if settings.dry_run:
        from bids_mllm.cli.dry_run import estimates, run_table

        plan = _built(partial(plan_study, settings, only_list=True))
        _tell_dropped(plan)
        sys.stdout.write(run_table(plan) + "\n")
        sys.stderr.write(estimates(plan) + "\n")
        return OK
    device = device_of_run(settings)
    logger.info(
        "%d processes of %d threads, %.1f GB of memory, device %s",
        settings.nprocs, settings.omp_nthreads, settings.mem_mb / 1024, device,
    )  # fmt: skip
    plan = _built(partial(plan_study, settings))
    _tell_dropped(plan)
    from bids_mllm.io.derivatives import write_dataset_files
    from bids_mllm.workflows.citations import write_citations
    from bids_mllm.workflows.facts import dataset_facts

    write_dataset_files(settings.output_dir, **dataset_facts(plan))
    write_citations(plan)
    if settings.boilerplate_only:
        return OK
    return _run_participants(settings, plan, device)


def _tell_dropped(plan: "StudyPlan") -> None:
    for drop in plan.dropped:
        logger.warning("sub-%s %s is left out: %s", drop.participant, drop.label, drop.reason)


def _built(make: Callable[[], T]) -> T:
    """Return what is built before anything runs; a fault that no one foresaw becomes one sentence."""
    try:
        return make()
    except BidsMllmError:
        raise
    except Exception as error:
        logger.debug("Building failed.", exc_info=True)
        raise InputDataError(
            f"The workflow could not be built ({type(error).__name__}: {error}); run again with -vv for the traceback."
        ) from error


def _run_participants(settings: Settings, plan: "StudyPlan", device: str) -> int:
    """Run the graph, write the reports, and clean up where that is asked for; the work folder is held all the time."""
    if settings.reports_only:
        return _end_of_participants(settings, plan, ())
    with alone_in(settings.graph_dir, "participant"):
        failures = _run_graph(settings, plan, device)
        end = _end_of_participants if "fit" in settings.stages else _end_of_features
        status = end(settings, plan, failures)
        if settings.clean_workdir and status == OK:
            _clean_up(settings)
    return status


def _end_of_participants(settings: Settings, plan: "StudyPlan", failures: "tuple[Failure, ...]") -> int:
    """Write the reports, and tell what failed and who is left out."""
    from bids_mllm.workflows.run import describe

    participants = {design.participant for design in plan.designs}
    reported = _write_reports(plan, failures)
    for line in describe(failures):
        logger.error("%s", line)
    left_out = [label for label in plan.participants if label not in participants]
    for label in left_out:
        logger.error("sub-%s has no run that can be used; the reasons are above.", label)
    return CRASH if failures or left_out or not reported else OK


def _clean_up(settings: Settings) -> None:
    """Remove what this level has made in the work folder, and the folder where nothing else is in it."""
    own = settings.graph_dir
    if own != settings.work_dir:
        shutil.rmtree(own, ignore_errors=True)
    of_level = {"participant": ("designs", "fits"), "group": ()}[settings.analysis_level]
    names = (f"bids_mllm_{settings.analysis_level}", f".{settings.analysis_level}.lock", ".proc-*", *of_level)
    for path in [path for name in names for path in settings.work_dir.glob(name)] if own == settings.work_dir else []:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    remembered = settings.work_dir / "stimuli.json"  # what all calls know of the stimuli
    if list(settings.work_dir.glob("*")) == [remembered]:
        remembered.unlink()
    with suppress(OSError):  # the work of other calls is there
        settings.work_dir.rmdir()


def _end_of_features(settings: Settings, plan: "StudyPlan", failures: "tuple[Failure, ...]") -> int:
    """Tell what became of the features, where nothing is to be fitted."""
    from bids_mllm.workflows.run import describe

    for line in describe(failures):
        logger.error("%s", line)
    if failures:
        return CRASH
    logger.info("All features are in %s; run the same command with --stages fit to go on.", settings.store_dir)
    return OK


def _write_reports(plan: "StudyPlan", failures: "tuple[Failure, ...]") -> bool:
    """Write every participant's pages; one that fails does not keep the others from being written."""
    from bids_mllm.workflows.reports import model_cards, write_participant_report
    from bids_mllm.workflows.run import failures_of

    cards = _or_none(partial(model_cards, plan))
    if cards is None:
        return False
    written = True
    for design in plan.designs:
        own = failures_of(failures, design.participant)
        path = _or_none(partial(write_participant_report, plan, design, cards, failures=own))
        written = written and path is not None
        if path is not None:
            logger.info("Report: %s", path)
    return written


def _or_none(make: Callable[[], T]) -> T | None:
    """Return what `make` gives; None, with the reason in the log, when it fails."""
    try:
        return make()
    except BidsMllmError as error:
        logger.error("A report could not be written: %s", error)
    except Exception:
        logger.exception("A report could not be written; the maps and tables are there.")
    return None


def _run_graph(settings: Settings, plan: "StudyPlan", device: str) -> "tuple[Failure, ...]":
    from bids_mllm.workflows.participant import init_participant_wf
    from bids_mllm.workflows.run import run_workflow

    run_id = uuid.uuid4().hex[:12]
    participants = dict.fromkeys(design.participant for design in plan.designs)
    crash_dirs = {f"sub_{label}": settings.output_dir / f"sub-{label}" / "log" / run_id for label in participants}
    shared = settings.output_dir / "logs" / run_id
    for folder in (shared, *crash_dirs.values()):
        _record_settings(settings, folder)
    workflow = _built(partial(init_participant_wf, plan, device=device))
    return run_workflow(workflow, settings, crash_dirs=crash_dirs, default_crash_dir=shared)


def _record_settings(settings: Settings, folder: Path) -> None:
    from bids_mllm.io.files import write_text

    write_text(folder / "bids-mllm.toml", settings_to_toml(settings))


def _group(settings: Settings) -> int:
    from bids_mllm.workflows.group import (
        check_comparable,
        check_grids,
        differing_places,
        group_results,
        init_group_wf,
        missing_participants,
        usable_results,
    )
    from bids_mllm.workflows.run import run_workflow

    results, left_out = usable_results(group_results(settings))
    _built(partial(check_comparable, results))
    _built(partial(check_grids, results))
    for sentence in (*missing_participants(settings), *differing_places(results)):
        logger.warning("%s", sentence)
    if settings.dry_run:
        for result in results:
            sys.stdout.write(f"{result.name.participant}\t{result.name.space}\t{result.model}\n")
        return _told(left_out)
    if settings.reports_only:
        return _end_of_group(settings, results, (), left_out)
    with alone_in(settings.graph_dir, "group"):
        shared = settings.output_dir / "logs" / uuid.uuid4().hex[:12]
        _record_settings(settings, shared)
        workflow = _built(partial(init_group_wf, settings, results))
        failures = run_workflow(workflow, settings, crash_dirs={}, default_crash_dir=shared)
        status = _end_of_group(settings, results, failures, left_out)
        if settings.clean_workdir and status == OK:
            _clean_up(settings)
    return status


def _end_of_group(
    settings: Settings,
    results: "Sequence[ModelResult]",
    failures: "tuple[Failure, ...]",
    left_out: tuple[str, ...],
) -> int:
    """Write the report, and tell what failed and who is left out."""
    from bids_mllm.workflows.group_report import write_group_report
    from bids_mllm.workflows.run import describe

    path = _or_none(partial(write_group_report, settings, results, failures=failures, left_out=left_out))
    if path is not None:
        logger.info("Report: %s", path)
    status = _told((*describe(failures), *left_out))
    return CRASH if path is None else status


def _told(errors: Sequence[str]) -> int:
    """Log what went wrong; returns the exit status."""
    for line in errors:
        logger.error("%s", line)
    return CRASH if errors else OK


if __name__ == "__main__":
    sys.exit(main())
