"""Tiny checkpoints with random weights of every instruction-following architecture: for tests, demo, benchmark.

Each is written as a checkpoint of the hub is, and read back by the same code. torch and transformers are
loaded with the first checkpoint that is asked for.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

FAMILIES = (
    "qwen25vl",
    "llavaonevision",
    "llavanextvideo",
    "videollava",
    "instructblipvideo",
    "qwen2audio",
    "qwen25omni",
    "internvl",
)


def _save(family: str, folder: Path, **sizes: Any) -> Path:
    """Write the checkpoint of a family with its own function."""
    saved: Path = getattr(import_module(f"{__name__}.{family}"), f"save_tiny_{family}")(folder, **sizes)
    return saved


TINY_CHECKPOINTS: dict[str, Callable[..., Path]] = {family: partial(_save, family) for family in FAMILIES}


def __getattr__(name: str) -> Any:
    """Return ``save_tiny_<family>`` or a tokenizer, imported on first use."""
    family = name.removeprefix("save_tiny_")
    if family != name and family in FAMILIES:
        return getattr(import_module(f"{__name__}.{family}"), name)
    if name in ("tiny_tokenizer", "tiny_llama_tokenizer", "tiny_bert_tokenizer"):
        return getattr(import_module(f"{__name__}.tokenizer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
