"""When the volumes of a run were taken: repetition time and time of the first volume."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_mllm.discover.names import BidsName, FolderIndex, read_json
from bids_mllm.exceptions import InputDataError

#: Header and sidecar may differ by the float32 of the header.
TR_TOLERANCE = 1e-3
#: What a raw sidecar says that also holds for the series made of it.
RAW_KEYS = ("RepetitionTime", "VolumeTiming", "SliceTiming", "DelayTime")


@dataclass(frozen=True)
class Clock:
    """Volume i is at ``start_time + i * repetition_time`` seconds on the run's clock."""

    repetition_time: float
    start_time: float


@dataclass(frozen=True)
class Clocks:
    """Where the timing of the runs of one derivative is read from."""

    bids_dir: Path
    derivative_dir: Path
    folders: FolderIndex

    def clock(self, bold: BidsName, header_tr: float = 0.0) -> Clock:
        """Return the clock of a preprocessed series of any form.

        Parameters
        ----------
        bold
            Its name; for a series within an HDF5 file, the entities of the run and the path of that file.
        header_tr
            Seconds between volumes by the header of the file; 0 where it has none, as a TSV.

        Raises
        ------
        InputDataError
            When nothing says the RepetitionTime, when header and sidecar disagree, or when a time cannot be.
        """
        sidecar = self.sidecar(bold)
        repetition_time = _repetition_time(bold.path, sidecar, header_tr)
        return Clock(repetition_time, _start_time(bold.path, sidecar, repetition_time))

    def sidecar(self, bold: BidsName) -> dict[str, Any]:
        """Metadata of a derivative BOLD: the raw sidecars first, then its own; a derivative sidecar of
        the same run in another space gives the TR where none of these does.
        """
        raw_folder = self.bids_dir / bold.path.parent.relative_to(self.derivative_dir)
        entities = {k: v for k, v in bold.entities.items() if k not in ("space", "desc", "res", "den")}
        raw = self.folders.inherited(self.bids_dir, raw_folder, entities, suffix="bold", extension=".json")
        own = self.folders.inherited(
            self.derivative_dir, bold.path.parent, bold.entities, suffix="bold", extension=".json"
        )
        merged: dict[str, Any] = {}
        for name in raw:
            merged |= {k: v for k, v in read_json(name.path).items() if k == "RepetitionTime"}
        for name in own:
            merged |= read_json(name.path)
        if "RepetitionTime" not in merged:
            merged |= self._sibling(bold)
        return merged

    def _sibling(self, bold: BidsName) -> dict[str, Any]:
        for name in self.folders.names(bold.path.parent):
            if name.suffix == "bold" and name.extension == ".json" and name.run_key == bold.run_key:
                repetition_time = read_json(name.path).get("RepetitionTime")
                if repetition_time is not None:
                    return {"RepetitionTime": repetition_time}
        return {}


def _repetition_time(bold: Path, sidecar: Mapping[str, Any], header_tr: float) -> float:
    stated = _seconds(bold, sidecar, "RepetitionTime")
    if stated is None:
        if header_tr <= 0:
            raise InputDataError(
                f"Neither a sidecar nor the header gives the RepetitionTime of {bold}; write it into "
                f"{bold.name.partition('.')[0]}.json."
            )
        return header_tr
    if header_tr > 0 and abs(stated - header_tr) > TR_TOLERANCE:
        raise InputDataError(
            f"RepetitionTime is {stated:g} s in the sidecar of {bold} but {header_tr:g} s in its "
            "header; correct the wrong one."
        )
    return stated


def _seconds(bold: Path, sidecar: Mapping[str, Any], key: str) -> float | None:
    value = sidecar.get(key)
    if value is None:
        return None
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not usable or (key == "RepetitionTime" and value <= 0):
        raise InputDataError(
            f"{key} is {value!r} in the sidecar of {bold}, but must be a number of seconds; correct the sidecar."
        )
    return float(value)


def _start_time(bold: Path, sidecar: Mapping[str, Any], repetition_time: float) -> float:
    """StartTime, else the middle of the TR where slice timing was corrected, else 0."""
    stated = _seconds(bold, sidecar, "StartTime")
    if stated is not None:
        return stated
    return 0.5 * repetition_time if sidecar.get("SliceTimingCorrected") is True else 0.0
