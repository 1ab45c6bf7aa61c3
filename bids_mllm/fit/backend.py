"""himalaya's backend is one global of the process: enter it here, and it is put back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bids_mllm.exceptions import UsageError
from bids_mllm.validation import check_in_allowed

BACKENDS = {"cpu": "torch", "cuda": "torch_cuda"}


@contextmanager
def himalaya_backend(device: str) -> Iterator[Any]:
    """Set himalaya's backend for a device and restore the former one, also after an exception.

    Parameters
    ----------
    device
        ``"cpu"`` or ``"cuda"``.

    Yields
    ------
    backend
        himalaya's backend module.
    """
    import torch
    from himalaya.backend import get_backend, set_backend

    name = BACKENDS[check_in_allowed(device, BACKENDS, "device")]
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "The device is cuda, but PyTorch finds no CUDA device here; choose the device cpu or run where "
            "an NVIDIA GPU and its driver are present."
        )
    former = get_backend().name
    try:
        yield set_backend(name)
    finally:
        set_backend(former)
