"""Which GPUs there are for this process and its workers; PyTorch is not asked, since that would set up CUDA here."""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

#: What CUDA reads: devices by number or by the beginning of a UUID, in the order in which it is to number them.
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Seconds that nvidia-smi has: with a driver that hangs it never ends.
SMI_SECONDS = 20.0
#: Where the driver shows its devices when there is no nvidia-smi: a folder each, or a file each.
DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
DEVICE_FOLDER = Path("/dev")

_SMI_LINE = re.compile(r"^\s*(GPU (?P<index>\d+)|MIG .*):.*\(UUID: (?P<uuid>[\w/-]+)\)")
_NUMBER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Gpu:
    """A GPU of the machine: its UUID, "" where it is not told, and the UUIDs of its MIG devices."""

    uuid: str
    mig: tuple[str, ...] = ()


@dataclass(frozen=True)
class VisibleDevices:
    """The devices that CUDA numbers from 0 in this process.

    Attributes
    ----------
    names
        One for each, as CUDA_VISIBLE_DEVICES would name it: a number, or a UUID.
    source
        What told of them: CUDA_VISIBLE_DEVICES, nvidia-smi or the driver.
    """

    names: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.names)

    def described(self) -> str:
        """Return the devices as ``--device`` takes them, with the name of each, for messages."""
        return ", ".join(f"cuda:{number} ({name})" for number, name in enumerate(self.names))


def visible_devices() -> VisibleDevices:
    """Return the devices that CUDA will number here.

    CUDA_VISIBLE_DEVICES says which where it is set; else all that nvidia-smi lists, or that the driver shows where
    nvidia-smi is absent, fails or hangs.
    """
    gpus, source = _gpus_of_smi(), "nvidia-smi"
    if gpus is None:
        gpus, source = _gpus_of_driver(), "the driver"
    variable = os.environ.get(VISIBLE)
    if variable is not None:
        return VisibleDevices(_chosen(variable, gpus), VISIBLE)
    partitions = [name for gpu in gpus for name in gpu.mig]
    # CUDA shows one MIG device to a process, and no whole GPU beside it.
    return VisibleDevices(tuple(partitions[:1] or map(str, range(len(gpus)))), source)


def answer_of(command: Sequence[str], seconds: float) -> str | None:
    """Return what a command writes; None where it cannot be run, fails, or has not ended in time.

    Its output goes to a file: one that hangs in the driver cannot be killed, and a pipe to it would be waited for.
    """
    with TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL, start_new_session=True
            )
        except OSError:
            return None
        try:
            failed = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)
        output.seek(0)
        return None if failed else output.read().decode(errors="replace")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what still runs of a process and its children, and wait a moment for its end."""
    if process.poll() is None:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(1)


def _gpus_of_smi() -> list[Gpu] | None:
    """Return the GPUs that nvidia-smi lists; None where it does not answer."""
    listed = answer_of(["nvidia-smi", "--list-gpus"], SMI_SECONDS)
    if listed is None:
        return None
    gpus: list[Gpu] = []
    for match in filter(None, map(_SMI_LINE.match, listed.splitlines())):
        if match["index"] is not None:
            gpus.append(Gpu(match["uuid"]))
        elif gpus:
            gpus[-1] = Gpu(gpus[-1].uuid, (*gpus[-1].mig, match["uuid"]))
    return gpus or None


def _gpus_of_driver() -> list[Gpu]:
    """Return the GPUs that the driver shows; their UUIDs are not known."""
    folders = [path for path in DRIVER_FOLDER.glob("*") if path.is_dir()]
    files = [path for path in DEVICE_FOLDER.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return [Gpu("")] * len(folders or files)


def _chosen(variable: str, gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """Return the entries of CUDA_VISIBLE_DEVICES that CUDA takes, which stops at the first that is no device.

    An entry that comes twice makes it take none. Where the GPUs are not known, all that are well-formed count.
    """
    taken: list[str] = []
    devices: list[str] = []
    for entry in (part.strip() for part in variable.split(",")):
        device = _device_of(entry, gpus)
        if device is None:
            break
        if device in devices:
            return ()
        taken.append(entry)
        devices.append(device)
    partitions = [name for name, device in zip(taken, devices, strict=True) if device.startswith("MIG-")]
    return tuple(partitions[:1] or taken)


def _device_of(entry: str, gpus: Sequence[Gpu]) -> str | None:
    """Return the UUID of the device that an entry means, or the entry where UUIDs are not known; None for no device."""
    number = _NUMBER.match(entry)
    if number:
        index = int(number.group())
        if index < 0 or (gpus and index >= len(gpus)):
            return None
        found = gpus[index] if gpus else Gpu("")
        return next(iter(found.mig), found.uuid or str(index))
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    known = [name for gpu in gpus for name in ((gpu.uuid, *gpu.mig) if gpu.uuid else ())]
    if not known or entry.startswith("MIG-GPU-"):
        return entry
    matches = [name for name in known if name.startswith(entry)]
    return matches[0] if len(matches) == 1 else None
