"""Locks on folders that one process at a time may work in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bids_mllm.exceptions import StoreError, UsageError

#: Seconds that a process which is ending has to give its lock back.
WAIT_SECONDS = 5.0


@contextmanager
def alone_in(folder: Path, level: str) -> Iterator[None]:
    """Hold the work folder of a level while it runs; made where it is missing.

    The system gives the lock back when a process ends in whatever way. Where a file system knows no locks, the folder
    is not guarded.

    Raises
    ------
    UsageError
        When another process works there.
    StoreError
        When the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{level}.lock", timeout=WAIT_SECONDS)
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"The work folder {folder} is in use by another call of this level; wait until it has ended, or give this "
            "one a folder of its own with --work-dir."
        ) from None
    except NotImplementedError:
        yield
        return
    except OSError as error:
        raise StoreError(
            f"The work folder {folder} cannot be written ({error.strerror or error}); check its permissions or choose "
            "another with --work-dir."
        ) from error
    try:
        yield
    finally:
        lock.release()
