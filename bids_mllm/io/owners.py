"""Which process made a file: temporary files and claims say so, and what a dead process left can be told.

A process is known by its machine, its number and the time it started, so that a number used again is not
mistaken for it. A machine is a boot of a host as seen from one process namespace: two containers on one host
do not see each other's processes, so that neither may call the other's dead.
"""

import contextlib
import errno
import hashlib
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bids_mllm.exceptions import StoreError

#: The machine where neither boot nor namespace can be told: never equal to any other.
UNKNOWN_MACHINE = "0" * 12
#: Seconds after which a temporary file of another machine counts as left behind. Writing one takes seconds; a
#: day also covers clocks of hosts that differ.
ORPHAN_SECONDS = 86400.0
_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{12})-(\d+)-(\d+)-[0-9a-f]{8}~.+")


@dataclass(frozen=True)
class Owner:
    """A process: machine, number, and start in clock ticks since boot (0 where it cannot be told)."""

    machine: str
    pid: int
    started: int


def this_process() -> Owner:
    """Return the process that calls."""
    pid = os.getpid()
    state = _process_state(pid)
    return Owner(_this_machine(), pid, state[1] if state else 0)


def is_gone(owner: Owner) -> bool:
    """Whether the process is known to have ended; False where that cannot be told from here."""
    if owner.machine == UNKNOWN_MACHINE or owner.machine != _this_machine() or owner.pid < 1:
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # a process of another user is there
    state = _process_state(owner.pid)
    # A zombie (Z) has ended and only waits for its parent to ask how.
    return state is not None and (state[0] in "ZX" or state[1] != owner.started)


@cache
def _this_machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return UNKNOWN_MACHINE
    return hashlib.sha256(f"{socket.gethostname()}|{boot}|{namespace}".encode()).hexdigest()[:12]


def _process_state(pid: int) -> tuple[str, int] | None:
    """State letter and start of a process from fields 3 and 22 of /proc/PID/stat (proc(5)), None without."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def temporary_path(path: Path) -> Path:
    """Return a new name beside `path` that says which process uses it."""
    owner = this_process()
    return path.with_name(f".tmp-{owner.machine}-{owner.pid}-{owner.started}-{uuid.uuid4().hex[:8]}~{path.name}")


def orphans(folder: Path) -> Iterator[Path]:
    """Give the temporary files of a folder whose process is dead, or that are a day old and of another machine."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError:
        return
    for name in sorted(names):
        match = _TEMPORARY.fullmatch(name)
        if match is None:
            continue
        owner = Owner(match[1], int(match[2]), int(match[3]))
        elsewhere = owner.machine == UNKNOWN_MACHINE or owner.machine != _this_machine()
        if is_gone(owner) or (elsewhere and _age(folder / name) > ORPHAN_SECONDS):
            yield folder / name


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def remove_orphans(folder: Path) -> None:
    """Remove the temporary files that dead processes left in a folder, where that is allowed."""
    for path in orphans(folder):
        with contextlib.suppress(OSError):
            path.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears under its name complete and on the disk, or not at all.

    Raises
    ------
    StoreError
        In one sentence when the disk is full or the folder cannot be written; nothing is left then.
    """
    scratch = temporary_path(path)
    try:
        with scratch.open("xb") as file:
            file.write(data)
            file.flush()
            # Without this a crash of the machine may leave the new name with no content behind it.
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> StoreError:
    """Return the one sentence for a file of the store that cannot be written."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"The disk that holds {path} is full ({reason}); free space there or choose another --features-dir, and "
            "run again: what was finished is kept."
        )
    if error.errno == errno.EROFS:
        return StoreError(
            f"The feature store cannot be written: {path} is on a read-only file system; choose another "
            "--features-dir, or make the store where it can be written."
        )
    return StoreError(
        f"{path} cannot be written ({reason}); check the permissions of the feature store or choose another "
        "--features-dir, and run again."
    )
