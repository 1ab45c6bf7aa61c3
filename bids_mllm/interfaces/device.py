"""The device of a node: PyTorch's current one while it computes, and without anything of the node's at its end."""

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any


@contextmanager
def on_device(device: str) -> Iterator[None]:
    """Make a device the current one; at the end, also after a failure, free what was taken of it.

    A worker goes on with other nodes, on other devices. What it kept would be missing for the next node there.

    Parameters
    ----------
    device
        ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    UsageError
        When PyTorch finds no such device.
    """
    with _current(device):
        try:
            yield
        except BaseException as error:
            forget_locals(error)
            raise
        finally:
            _free(device)


def on_its_device(run: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Let an interface's ``_run_interface`` run on ``inputs.device``."""

    @wraps(run)
    def run_there(interface: Any, runtime: Any) -> Any:
        with on_device(interface.inputs.device):
            return run(interface, runtime)

    return run_there


def forget_locals(error: BaseException) -> None:
    """Drop the variables of the calls that an error ended: models and tensors live as long as they refer to them."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            waiting += [one.__cause__, one.__context__]


def _current(device: str) -> AbstractContextManager[Any]:
    if device == "cpu":
        return nullcontext()
    from bids_mllm.fit.backend import current_device

    return current_device(device)


def _free(device: str) -> None:
    if device == "cpu":
        gc.collect()
        return
    from bids_mllm.features.models.memory import release_cached

    release_cached()
