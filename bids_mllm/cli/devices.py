"""From `--device` to the device of the run: what is there, and whether PyTorch can use it."""

import logging
import os
import sys

from bids_mllm.config import Settings
from bids_mllm.exceptions import UsageError
from bids_mllm.workflows.gpus import VISIBLE, VisibleDevices, answer_of, visible_devices

logger = logging.getLogger("bids_mllm")

#: Seconds that PyTorch has to look for devices: with a driver that hangs it never ends.
TORCH_SECONDS = 300.0


def device_of_run(settings: Settings) -> str:
    """Return the device of the graph's nodes: cpu, cuda, or, where jobs on other machines run them, what was given."""
    if settings.use_plugin is not None and settings.device.startswith("cuda"):
        from bids_mllm.workflows.plugin import LOCAL_PLUGINS, read_plugin_file

        if read_plugin_file(settings.use_plugin)[0] not in LOCAL_PLUGINS:
            return settings.device
    return resolve_device(settings.device)


def resolve_device(device: str) -> str:
    """Return cpu or cuda, and leave the environment such that CUDA numbers the devices of the run from 0.

    Parameters
    ----------
    device
        ``cpu``; ``cuda``, all visible devices; ``cuda:N``, the N-th of these, which becomes the only visible one;
        ``auto``, all of them where PyTorch can use them, else the CPU.

    Raises
    ------
    UsageError
        When a GPU is asked for that is not there, or that PyTorch cannot use.
    """
    if device == "cpu":
        return device
    devices = visible_devices()
    if not devices and device == "auto":
        if devices.source == VISIBLE:
            logger.info("%s is %r, which leaves no GPU visible; the CPU is used.", VISIBLE, os.environ[VISIBLE])
        return "cpu"
    if not devices:
        raise UsageError(f"--device is {device}, but {_absent(devices)}; pass --device cpu.")
    # Else CUDA numbers by speed, and number 1 may be another GPU than that of nvidia-smi.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if device.startswith("cuda:"):
        os.environ[VISIBLE] = _nth(device, devices)
    if _torch_sees_gpu():
        return "cuda"
    if device == "auto":
        logger.warning("There are GPUs (%s), but this PyTorch finds no CUDA device; the CPU is used.", devices.source)
        os.environ[VISIBLE] = ""
        return "cpu"
    raise UsageError(
        f"--device is {device}, but this PyTorch finds no CUDA device, though {devices.source} tells of GPUs; install "
        "a PyTorch built for the CUDA version of the driver, or pass --device cpu."
    )


def _absent(devices: VisibleDevices) -> str:
    if devices.source == VISIBLE:
        return f"{VISIBLE} is {os.environ[VISIBLE]!r}, which leaves no GPU visible"
    return "no NVIDIA driver shows a GPU here"


def _nth(device: str, devices: VisibleDevices) -> str:
    """Return how CUDA_VISIBLE_DEVICES names one of the devices."""
    number = int(device.removeprefix("cuda:"))
    if number >= len(devices):
        raise UsageError(
            f"--device is {device}, but the visible devices are {devices.described()}, by {devices.source}; choose one "
            "of these."
        )
    return devices.names[number]


def _torch_sees_gpu() -> bool:
    """Ask PyTorch in a process of its own: once CUDA is set up here, forked workers cannot use it."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return answer_of([sys.executable, "-c", code], TORCH_SECONDS) is not None
