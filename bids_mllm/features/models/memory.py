"""How much memory a device has left, and whether an error says that it had too little."""

import gc

import psutil
import torch

#: What PyTorch's allocator of the CPU says where it cannot allocate; it has no class of its own.
CPU_MESSAGES = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on a device or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in CPU_MESSAGES)


def free_model(model: torch.nn.Module | None, device: torch.device | None = None) -> None:
    """Free the weights of a model that is run no more, whoever refers to it still, and what PyTorch cached.

    After a failure the traceback refers to the functions that were called, and these to the model.
    """
    if model is not None:
        model.to("meta")
    release_cached(device)


def release_cached(device: torch.device | None = None) -> None:
    """Give memory back that PyTorch keeps for later.

    PyTorch sets up the current device for that, so `device` is made the current one meanwhile where it is CUDA's.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with torch.cuda.device(device if device is not None and device.type == "cuda" else None):
            torch.cuda.empty_cache()


def free_bytes(device: str, limit: float | None = None) -> float:
    """Return the free memory of a device in bytes; on the CPU at most `limit` less what this process holds."""
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(torch.device(device))[0])
    available = float(psutil.virtual_memory().available)
    if limit is None:
        return available
    return max(0.0, min(available, limit - float(psutil.Process().memory_info().rss)))
