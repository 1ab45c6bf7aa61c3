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


def release_cached() -> None:
    """Give memory back that PyTorch keeps for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_bytes(device: str, limit: float | None = None) -> float:
    """Return the free memory of a device in bytes; on the CPU at most `limit` less what this process holds."""
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(torch.device(device))[0])
    available = float(psutil.virtual_memory().available)
    if limit is None:
        return available
    return max(0.0, min(available, limit - float(psutil.Process().memory_info().rss)))
