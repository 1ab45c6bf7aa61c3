"""When the volumes of a run were taken: repetition time and time of the first volume."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_mllm.discover.names import BidsName, FolderIndex
from bids_mllm.exceptions import InputDataError

#: Header and sidecar may differ by the float32 of the header.
TR_TOLERANCE = 1e-3
#: What a raw sidecar says that also holds for the series made of it; not StartTime, which preprocessing changes.
RAW_KEYS = ("RepetitionTime", "VolumeTiming", "SliceTiming", "DelayTime")
#: Either says which instant of a TR a volume stands for.
REFERENCE_KEYS = ("StartTime", "SliceTimingCorrected")


@dataclass(frozen=True)
class Clock:
    """Volume i is at ``start_time + i * repetition_time`` seconds on the run's clock."""

    repetition_time: float
    start_time: float


@dataclass(frozen=True)
class Clocks:
    """Where the timing of the runs of one derivative is read from; `main_dir` is the root of the derivative that it may
    have been made of.
    """

    bids_dir: Path
    derivative_dir: Path
    folders: FolderIndex
    main_dir: Path | None = None

    def clock(self, bold: BidsName, header_tr: float = 0.0, *, tolerant: bool = False) -> Clock:
        """Return the clock of a preprocessed series of any form.

        Parameters
        ----------
        bold
            Its name; for a series within an HDF5 file, the entities of the run and the path of that file.
        header_tr
            Seconds between volumes by the header of the file; 0 where it has none, as a TSV.
        tolerant
            Pass over sidecars that cannot be read, for a run that is only listed.

        Raises
        ------
        InputDataError
            When a sidecar cannot be read, when nothing says the RepetitionTime, when header and sidecar disagree, when
            volumes are not equally spaced, or when a time cannot be.
        """
        sidecar = self._sidecar(bold, header_tr, tolerant=tolerant)
        repetition_time = _repetition_time(bold.path, sidecar, header_tr)
        return Clock(repetition_time, _start_time(bold.path, sidecar, repetition_time))

    def _sidecar(self, bold: BidsName, header_tr: float, *, tolerant: bool) -> dict[str, Any]:
        """Return what is known of the timing of a series: the raw sidecars first, then its own.

        Where these do not say the RepetitionTime, or not which instant of a TR a volume stands for, a sidecar of the
        same run in another space does, since all spaces of a run are made from one series; at last one of the main
        derivative. Of these sidecars one that cannot be read stops a run only where no other says what is wanted.
        """
        merged: dict[str, Any] = {}
        for name in self._raw(bold):
            content = _read(name.path, tolerant=tolerant)
            merged |= {key: value for key, value in content.items() if key in RAW_KEYS}
        for name in self._own(bold):
            merged |= _read(name.path, tolerant=tolerant)
        wanted = [keys for keys in (("RepetitionTime",), REFERENCE_KEYS) if not set(keys) & set(merged)]
        if not wanted:
            return merged
        found, faults = self._siblings(bold, wanted)
        unsaid = [keys for keys in wanted if not set(keys) & set(found)]
        if faults and not tolerant and any(keys is REFERENCE_KEYS or header_tr <= 0 for keys in unsaid):
            raise faults[0]
        return merged | found

    def _raw(self, bold: BidsName) -> tuple[BidsName, ...]:
        folder = _func_folder(self.bids_dir, bold)
        return self.folders.inherited(self.bids_dir, folder, bold.entities, suffix="bold", extension=".json")

    def _own(self, bold: BidsName) -> tuple[BidsName, ...]:
        """Sidecars of the series; ``_bold.dtseries.nii`` may have ``_bold.json`` or ``_bold.dtseries.json``."""
        kind = bold.extension.removesuffix(".gz").rpartition(".")[0]
        found: tuple[BidsName, ...] = ()
        for extension in dict.fromkeys((f"{kind}.json", ".json")):
            found += self.folders.inherited(
                self.derivative_dir, bold.path.parent, bold.entities, suffix=bold.suffix, extension=extension
            )
        return found

    def _siblings(self, bold: BidsName, wanted: Sequence[Sequence[str]]) -> tuple[dict[str, Any], list[InputDataError]]:
        """Take each set of keys from the first sidecar of the run in the folder that has one of them; return them and
        the faults of those that cannot be read.
        """
        found: dict[str, Any] = {}
        faults: list[InputDataError] = []
        names = list(self.folders.names(bold.path.parent))
        if self.main_dir is not None and self.main_dir != self.derivative_dir:
            names += self.folders.names(_func_folder(self.main_dir, bold))
        for name in names:
            of_series = name.suffix in (bold.suffix, "bold") and name.extension.endswith(".json")
            if not of_series or name.run_key != bold.run_key or name.entities.get("desc") == "confounds":
                continue
            try:
                content = _read(name.path)
            except InputDataError as fault:
                faults.append(fault)
                continue
            for keys in wanted:
                if not set(keys) & set(found):
                    found |= {key: content[key] for key in keys if content.get(key) is not None}
        return found, faults


def _read(path: Path, *, tolerant: bool = False) -> dict[str, Any]:
    """Read a sidecar; one that cannot be read is not an empty one, since the times it has would be lost unseen."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(content, dict):
            return content
        fault = "is JSON but no object; correct it"
    except FileNotFoundError:
        fault = f"is a link to content that was not fetched; run: datalad get {path}"
    except (OSError, ValueError) as error:
        fault = f"cannot be read ({error}); correct it"
    if tolerant:
        return {}
    raise InputDataError(f"The sidecar {path}, which may say when volumes were taken, {fault}.")


def _func_folder(root: Path, bold: BidsName) -> Path:
    session = [f"ses-{bold.entities['ses']}"] if "ses" in bold.entities else []
    return root.joinpath(f"sub-{bold.entities['sub']}", *session, "func")


def _repetition_time(bold: Path, sidecar: Mapping[str, Any], header_tr: float) -> float:
    stated = _seconds(bold, sidecar, "RepetitionTime")
    if stated is None:
        if sidecar.get("VolumeTiming") is not None:
            raise InputDataError(
                f"The sidecars of {bold} give VolumeTiming and no RepetitionTime, but volumes that are not equally "
                "spaced (sparse sampling) are not supported; leave the run out with --task-id or --run-id."
            )
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
    if not _is_number(value) or (key == "RepetitionTime" and value <= 0):
        raise InputDataError(
            f"{key} is {value!r} in the sidecar of {bold}, but must be a number of seconds; correct the sidecar."
        )
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _start_time(bold: Path, sidecar: Mapping[str, Any], repetition_time: float) -> float:
    """StartTime, else the instant to which slice timing was corrected, else 0."""
    stated = _seconds(bold, sidecar, "StartTime")
    if stated is not None:
        return _within(bold, "StartTime", stated, repetition_time)
    if sidecar.get("SliceTimingCorrected") is not True:
        return 0.0
    slices = sidecar.get("SliceTiming")
    if slices is not None:
        return _middle(bold, slices, repetition_time)
    delay = _within(bold, "DelayTime", _seconds(bold, sidecar, "DelayTime") or 0.0, repetition_time)
    return 0.5 * (repetition_time - delay)


def _middle(bold: Path, slices: Any, repetition_time: float) -> float:
    """Midpoint of the first and the last slice."""
    if not isinstance(slices, list) or not slices or not all(_is_number(value) for value in slices):
        raise InputDataError(
            f"SliceTiming in the sidecar of {bold} must be a list of numbers of seconds; correct the sidecar."
        )
    first, last = (_within(bold, "SliceTiming", float(edge(slices)), repetition_time) for edge in (min, max))
    return 0.5 * (first + last)


def _within(bold: Path, key: str, seconds: float, repetition_time: float) -> float:
    if not 0 <= seconds <= repetition_time:
        raise InputDataError(
            f"{key} is {seconds:g} s in the sidecar of {bold}, but must lie between 0 and the RepetitionTime of "
            f"{repetition_time:g} s; correct the sidecar."
        )
    return seconds
