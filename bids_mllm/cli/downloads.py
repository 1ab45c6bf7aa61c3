"""What ``--allow-download`` does: before anything starts, a process of its own fetches what is missing.

Only that process may use the network; the app itself and its workers stay off it.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from bids_mllm.config import Settings
from bids_mllm.discover.spaces import parse_space
from bids_mllm.exceptions import BidsMllmError, InputDataError, UsageError
from bids_mllm.workflows.stopping import terminated_by_sigterm

logger = logging.getLogger("bids_mllm")

#: Variables that keep libraries off the network.
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
#: Seconds that a process which fetches has at SIGTERM to remove what is half there; then it is ended as it stands.
UNWIND_SECONDS = 5.0


def fetch_missing(settings: Settings) -> None:
    """Fetch checkpoints of ``--models`` into the hub's cache and templates into TemplateFlow's folder.

    Nothing is fetched, and no process started, unless downloads are allowed and something is to be run.

    Raises
    ------
    UsageError, InputDataError
        In one sentence, when something is missing and cannot be fetched.
    """
    if not settings.allow_download or settings.dry_run:
        return
    runs_models = settings.analysis_level == "participant" and not (settings.reports_only or settings.boilerplate_only)
    order = {
        "models": settings.models if runs_models else (),
        "revision": settings.model_revision,
        "family": settings.family,
        "remote_code": settings.trust_remote_code,
        "spaces": _spaces(settings),
        "atlases": settings.atlas,
    }
    status, told = _carried_out(order)
    for line in told.get("fetched", ()):
        logger.info("%s", line)
    if status:
        error = UsageError if status == UsageError.exit_status else InputDataError
        died = f"The download ended with status {status}; call the same command again, or without --allow-download."
        raise error(told.get("error", [died])[-1])


def _carried_out(order: Mapping[str, Any]) -> tuple[int, dict[str, list[str]]]:
    """Fetch in a process of its own; return its exit status and its sentences by kind, ``fetched`` and ``error``."""
    environment = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    words = [sys.executable, "-P", "-m", "bids_mllm.cli.downloads"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, env=environment, text=True) as process:
        try:
            out, _ = process.communicate(json.dumps(order))
        except BaseException:
            _end(process)
            raise
    told: dict[str, list[str]] = {}
    for line in out.splitlines():
        kind, _, sentence = line.partition(": ")
        told.setdefault(kind, []).append(sentence)
    return process.returncode, told


def _end(process: "subprocess.Popen[str]") -> None:
    """Let a process unwind that is not to go on; it is ended where that takes too long."""
    process.terminate()
    try:
        process.wait(UNWIND_SECONDS + 1)
    except subprocess.TimeoutExpired:
        process.kill()


def _spaces(settings: Settings) -> list[str]:
    """Return the spaces of the maps: those asked for, at the group level those of the results."""
    if settings.analysis_level == "participant":
        queries = map(parse_space, settings.space)
        return list(dict.fromkeys(query.space for query in queries if query.segmentation is None))
    from bids_mllm.workflows.group import group_results

    return list(dict.fromkeys(result.name.space for result in group_results(settings)))


def main() -> int:
    """Fetch what the order on standard input names; write a line for each thing, or one on what is wrong."""
    try:
        with terminated_by_sigterm(UNWIND_SECONDS):
            order = json.load(sys.stdin)
            for line in chain(_fetched_models(order), _fetched_templates(order)):
                sys.stdout.write(f"fetched: {line}\n")
                sys.stdout.flush()
    except BidsMllmError as error:
        sys.stdout.write(f"error: {error}\n")
        return error.exit_status
    return 0


def _fetched_models(order: dict[str, Any]) -> Iterator[str]:
    from bids_mllm.cli.models import check_fetchable
    from bids_mllm.features.models.fetch import fetch_checkpoint, is_cached
    from bids_mllm.features.registry import is_hub_id, resolve_models

    specs = resolve_models(order["models"], revision=order["revision"], family=order["family"])
    missing = [
        spec
        for spec in specs
        if spec.source and is_hub_id(spec.source) and not is_cached(spec, remote_code=order["remote_code"])
    ]
    for spec in missing:
        check_fetchable(spec, order["remote_code"])
    for source, revision in dict.fromkeys((spec.source, spec.revision) for spec in missing):
        spec = next(spec for spec in missing if (spec.source, spec.revision) == (source, revision))
        commit = fetch_checkpoint(spec, None, remote_code=order["remote_code"], option="--model-revision")
        yield f"Fetched {source} at commit {commit} into the hub's cache."


def _fetched_templates(order: dict[str, Any]) -> Iterator[str]:
    from bids_mllm.io.atlas_find import SCHAEFER
    from bids_mllm.io.template_fetch import fetch_templates
    from bids_mllm.io.templates import schaefer, templates_folder, templates_of

    sizes = [match for name in order["atlases"] if (match := SCHAEFER.fullmatch(name))]
    wanted = [template for space in order["spaces"] for template in templates_of(space)]
    for space in order["spaces"]:
        parcels = (schaefer(space, match["n"], match["k"] or "7") for match in sizes)
        wanted += [template for template in parcels if template is not None]
    home = templates_folder()
    if home is None:
        raise UsageError("There is no folder for templates; set TEMPLATEFLOW_HOME to one.")
    for path in fetch_templates(wanted, home):
        yield f"Fetched {path}."


if __name__ == "__main__":
    sys.exit(main())
