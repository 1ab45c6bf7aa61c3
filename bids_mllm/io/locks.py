"""Locks on folders that one process at a time may work in."""

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bids_mllm.exceptions import BidsMllmError, StoreError, UsageError

#: Seconds that a process which is ending has to give the lock of a work folder back.
WAIT_SECONDS = 5.0
#: What file systems answer that know no locks, such as some that are shared by the nodes of a cluster.
_UNKNOWN = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
_POLL_SECONDS = 0.05


@contextmanager
def locked(path: Path, *, wait: float, busy: BidsMllmError) -> Iterator[None]:
    """Hold the lock of a file, which is made and stays.

    The system gives it back when a process ends in whatever way. Where the file system knows no locks, nothing is
    held.

    Parameters
    ----------
    path
    wait
        Seconds to wait for another process.
    busy
        What is raised when the other has it still.

    Raises
    ------
    OSError
        When the file cannot be made.
    """
    with path.open("a") as file:
        until = time.monotonic() + wait
        while not _taken(file.fileno()):
            if time.monotonic() >= until:
                raise busy
            time.sleep(_POLL_SECONDS)
        yield  # closing the file gives the lock back


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    return True


@contextmanager
def alone_in(folder: Path, level: str) -> Iterator[None]:
    """Hold the work folder of a level while it runs; made where it is missing.

    Raises
    ------
    UsageError
        When another process works there.
    StoreError
        When the folder cannot be written.
    """
    busy = UsageError(
        f"The work folder {folder} is in use by another call of this level; wait until it has ended, or give this one "
        "a folder of its own with --work-dir."
    )
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / f".{level}.lock", wait=WAIT_SECONDS, busy=busy))
        except OSError as error:
            raise StoreError(
                f"The work folder {folder} cannot be written ({error.strerror or error}); check its permissions or "
                "choose another with --work-dir."
            ) from error
        yield
