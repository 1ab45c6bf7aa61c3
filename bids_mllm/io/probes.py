"""Probes of stimuli, remembered by the size and time of the file so that a film is hashed once."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bids_mllm.io.clips import probe_stimulus
from bids_mllm.io.files import write_text
from bids_mllm.records import Stimulus

logger = logging.getLogger("bids_mllm")


class ProbeCache:
    """Probes stimuli; with a path, remembers what it found between calls.

    With `quick` what was found before serves, files that are new are neither hashed nor read in full, and nothing is
    written.
    """

    def __init__(self, path: Path | None, *, quick: bool = False) -> None:
        self._path = path
        self._quick = quick
        self._known: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                content = None  # a damaged cache costs time, nothing else
            self._known = content if isinstance(content, dict) else {}

    def probe(self, stim_file: str, folder: Path) -> Stimulus:
        """Return what is known of ``folder / stim_file``; reads the file when it is new or has changed."""
        path = folder / stim_file
        signature = _signature(path)
        known = self._known.get(str(path))
        if known is not None and known["signature"] == signature:
            return Stimulus(**(known["stimulus"] | {"path": path, "stim_file": stim_file}))
        if path.exists():
            logger.info("Reading %s", path)
        stimulus = probe_stimulus(path, stim_file, quick=self._quick)
        plain = {key: value for key, value in asdict(stimulus).items() if key != "path"}
        self._known[str(path)] = {"signature": signature, "stimulus": plain}
        if self._path is not None and not self._quick:
            write_text(self._path, json.dumps(self._known, indent=1))
        return stimulus


def _signature(path: Path) -> list[int]:
    if not path.exists():
        return []
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
