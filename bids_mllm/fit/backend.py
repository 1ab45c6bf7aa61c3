"""himalaya's backend is one global of the process: enter it here, and it is put back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from bids_mllm.exceptions import UsageError
from bids_mllm.validation import check_in_allowed

BACKENDS = {"cpu": "torch", "cuda": "torch_cuda"}


def check_device(device: str) -> str:
    """Return the kind of a device, ``cpu`` or ``cuda``, when it is there."""
    import torch

    kind, _, number = device.partition(":")
    check_in_allowed(kind, BACKENDS, "device")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "The device is cuda, but PyTorch finds no CUDA device here; choose the device cpu or run where "
            "an NVIDIA GPU and its driver are present."
        )
    if number and int(number) >= torch.cuda.device_count():
        raise UsageError(
            f"The device is {device}, but PyTorch finds {torch.cuda.device_count()} CUDA devices, numbered from 0."
        )
    return kind


@contextmanager
def current_device(device: str) -> Iterator[str]:
    """Make a device PyTorch's current one where it is CUDA's, and give its kind; put the former one back."""
    import torch

    kind = check_device(device)
    with torch.cuda.device(device) if kind == "cuda" else nullcontext():
        yield kind


@contextmanager
def himalaya_backend(device: str) -> Iterator[Any]:
    """Set himalaya's backend for a device and restore the former one, also after an exception.

    Its CUDA backend puts what it makes on the current device, which is the given one meanwhile.

    Parameters
    ----------
    device
        ``cpu``, ``cuda`` or ``cuda:N``.

    Yields
    ------
    backend
        himalaya's backend module.
    """
    from himalaya.backend import get_backend, set_backend

    with current_device(device) as kind:
        former = get_backend().name
        try:
            yield set_backend(BACKENDS[kind])
        finally:
            set_backend(former)
