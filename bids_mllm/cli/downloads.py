"""What ``--allow-download`` does: before anything starts, a process of its own fetches what is missing.

Only that process may use the network; the app itself and its workers stay off it.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from bids_mllm.config import Settings
from bids_mllm.discover.spaces import parse_space
from bids_mllm.exceptions import BidsMllmError, InputDataError, UsageError

logger = logging.getLogger("bids_mllm")

#: Variables that keep libraries off the network.
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


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
    order = {
        "models": settings.models if settings.analysis_level == "participant" else (),
        "revision": settings.model_revision,
        "family": settings.family,
        "remote_code": settings.trust_remote_code,
        "spaces": _spaces(settings),
        "atlases": settings.atlas,
    }
    environment = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bids_mllm.cli.downloads"],
        input=json.dumps(order), stdout=subprocess.PIPE, env=environment, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if done.returncode == UsageError.exit_status:
        raise UsageError(lines[-1] if lines else "The download was refused.")
    if done.returncode:
        last = lines[-1] if lines else f"The download ended with status {done.returncode}; run again without it."
        raise InputDataError(last)
    for line in lines:
        logger.info("%s", line)


def _spaces(settings: Settings) -> list[str]:
    """Return the spaces of the maps: those asked for, at the group level those of the results."""
    if settings.analysis_level == "participant":
        queries = map(parse_space, settings.space)
        return list(dict.fromkeys(query.space for query in queries if query.segmentation is None))
    from bids_mllm.workflows.group import group_results

    return list(dict.fromkeys(result.name.space for result in group_results(settings)))


def main() -> int:
    """Fetch what the order on standard input names; write a line for each thing, or one sentence on what is wrong."""
    order = json.load(sys.stdin)
    try:
        for line in (*_fetched_models(order), *_fetched_templates(order)):
            sys.stdout.write(f"{line}\n")
    except BidsMllmError as error:
        sys.stdout.write(f"{error}\n")
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
