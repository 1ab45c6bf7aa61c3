"""Reading ahead: a thread draws from an iterator while the caller works on what it has drawn before."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


def read_ahead(items: Iterator[T], *, max_bytes: int, size_of: Callable[[T], int]) -> Generator[T, None, None]:
    """Draw from an iterator in a thread of its own, as far ahead as memory allows.

    Decoding a film lets other threads run, so that a model computes meanwhile. The thread starts with the first item
    that is asked for and has ended when this iterator ends, fails or is closed; the iterator is closed in the thread
    that drew from it.

    Parameters
    ----------
    items
        What is drawn, in order.
    max_bytes
        The items that wait have at most so many bytes together; one larger item waits alone. One more is being made.
    size_of
        Bytes of an item.

    Yields
    ------
    T
        The items, in order. An error of `items` or `size_of` is raised where its item would have come.

    Raises
    ------
    ValueError
        `max_bytes` is below 1.
    """
    if max_bytes < 1:
        raise ValueError(f"Reading ahead needs at least 1 byte, not {max_bytes}.")
    return _drawn(_Worker(items, max_bytes, size_of))


def _drawn(worker: "_Worker[T]") -> Generator[T, None, None]:
    worker.start()
    try:
        while worker.ready():
            yield worker.take()
    finally:
        worker.stop()


class _Worker(Generic[T]):
    def __init__(self, items: Iterator[T], max_bytes: int, size_of: Callable[[T], int]) -> None:
        self._items = items
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._waiting: deque[tuple[int, T]] = deque()
        self._bytes = 0
        self._over = False
        self._stopped = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        # A daemon: an interpreter that ends must not wait for a caller that never came back.
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ready(self) -> bool:
        """Wait for an item; False at the end. Raises the error that ended the items."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over)
            if self._waiting:
                return True
        if self._error is not None:
            raise self._error
        return False

    def take(self) -> T:
        with self._changed:
            size, item = self._waiting.popleft()
            self._bytes -= size
            self._changed.notify_all()
        return item

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._draw()
        except BaseException as error:  # noqa: BLE001  the caller's thread raises it
            self._error = error
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _draw(self) -> None:
        try:
            for item in self._items:
                size = self._size_of(item)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or self._has_room(size))  # noqa: B023
                    if self._stopped:
                        return
                    self._waiting.append((size, item))
                    self._bytes += size
                    self._changed.notify_all()
                del item
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()

    def _has_room(self, size: int) -> bool:
        return not self._waiting or self._bytes + size <= self._max_bytes
