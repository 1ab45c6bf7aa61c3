"""End at SIGTERM, which schedulers send before they take a machine away: soon, and in a state that resumes.

The main process and every worker turn the signal into `Terminated`, which unwinds what they do: claims on the feature
store are released and temporary files removed. Where a long computation keeps the interpreter from seeing the signal,
a thread ends the process once its time is over. Where the signal comes while Python runs a destructor or another call
that can raise nothing, the interpreter drops `Terminated`; it is raised again right after.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from types import FrameType
from typing import Any

from bids_mllm.exceptions import Terminated

#: Seconds that a worker has to unwind; then it ends as it stands.
WORKER_SECONDS = 8.0
#: Seconds that the main process has, its wait for the workers included. Slurm kills after 30 (its KillWait).
MAIN_SECONDS = 20.0
#: Seconds that workers have after the main process passed the signal on, before they are killed.
CHILDREN_SECONDS = WORKER_SECONDS + 2.0
#: Seconds between two looks at whether `Terminated` was dropped.
_LOOK_SECONDS = 0.05


_asked = threading.Event()


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the unwinding
    _asked.set()
    raise Terminated


def raise_if_terminated(*_: Any) -> None:
    """Raise `Terminated` again where it was swallowed: nipype makes a failed node of whatever ends an interface.

    Takes what nipype tells a ``status_callback``.
    """
    if _asked.is_set():
        raise Terminated


class _Guard:
    """Turns SIGTERM into `Terminated`, and ends the process `seconds` after it whatever the main thread does."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        _asked.clear()
        self._over = threading.Event()
        self._dropped = threading.Event()
        self._read, self._write = os.pipe()
        # The C handler writes here at once, even while the main thread is in a call that does not return.
        os.set_blocking(self._write, False)
        self._old_handler = signal.signal(signal.SIGTERM, _raise_terminated)
        self._old_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old_hook, sys.unraisablehook = sys.unraisablehook, self._note_dropped
        self._thread = threading.Thread(target=self._watch, name="sigterm", daemon=True)
        self._thread.start()

    def _note_dropped(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is Terminated:
            signal.signal(signal.SIGTERM, _raise_terminated)
            self._dropped.set()
        else:
            self._old_hook(unraisable)

    def _watch(self) -> None:
        while number := os.read(self._read, 1):
            if number[0] == signal.SIGTERM:
                self._see_to_the_end()

    def _see_to_the_end(self) -> None:
        until = time.monotonic() + self._seconds
        while not self._over.wait(_LOOK_SECONDS):
            if time.monotonic() >= until:
                os._exit(Terminated.exit_status)
            if self._dropped.is_set():
                self._dropped.clear()
                os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        """Put back what was there before."""
        signal.set_wakeup_fd(self._old_wakeup)
        self._over.set()
        os.close(self._write)
        self._thread.join()
        os.close(self._read)
        sys.unraisablehook = self._old_hook
        signal.signal(signal.SIGTERM, self._old_handler)


@contextmanager
def terminated_by_sigterm(seconds: float = MAIN_SECONDS) -> Iterator[None]:
    """Raise `Terminated` in the main thread at SIGTERM; a process that is not through `seconds` later is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    guard = _Guard(seconds)
    try:
        yield
    finally:
        guard.close()


def guard_worker() -> None:
    """Let the calling worker unwind at SIGTERM, and at the end of the process that started it, however that ended."""
    _Guard(WORKER_SECONDS)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="parent", daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def end_if_asked() -> None:
    """End a worker at once that was asked to end and has unwound; its pool would let it wait for more work."""
    if _asked.is_set():
        os._exit(Terminated.exit_status)


def end_processes(pids: Iterable[int] = (), *, seconds: float = CHILDREN_SECONDS) -> None:
    """End the processes that this one started, and those of `pids`: by SIGTERM, and by SIGKILL after `seconds`.

    Parameters
    ----------
    pids
        Further processes, whose parent may have ended before them.
    seconds
    """
    import psutil

    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found.setdefault(pid, psutil.Process(pid))
    waited = [process for process in found.values() if not _is_tracker(process)]
    for process in waited:
        _send(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(waited, timeout=seconds)
    for process in alive:
        _send(process, signal.SIGKILL)


def _is_tracker(process: Any) -> bool:
    """Whether it is Python's own watcher of shared resources, which ignores SIGTERM and ends with its last user."""
    import psutil

    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def _send(process: Any, number: signal.Signals) -> None:
    import psutil

    try:
        process.send_signal(number)
    except psutil.Error:
        return  # it has ended meanwhile
