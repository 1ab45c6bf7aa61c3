"""The door through which every family of models comes: a plan without weights, then an extractor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bids_mllm.records import ClipMedia, Condition, Instruction, MediaRequest, ModelSpec, Pooling


@dataclass(frozen=True)
class ReadOut:
    """What is asked of a model: window length in seconds, poolings, instructions, generated tokens."""

    window: float
    poolings: tuple[Pooling, ...]
    instructions: tuple[Instruction, ...]
    max_new_tokens: int = 8
    seed: int = 0


@dataclass(frozen=True)
class ExtractionPlan:
    """What an extractor will do, known from settings and small files before any weight is loaded.

    Attributes
    ----------
    identity
        JSON-ready values that hold everything about the model that changes a number (weights' digest,
        processor settings, template, frames, dtype, library versions) and nothing that does not
        (device, batch size). Media, windows and instruction are added by the store.
    request
        What to decode for each clip.
    conditions
        The read-outs, in the order of the results.
    n_layers, width
        Layers (embedding included) and features of each.
    batch_size
        Clips that the extractor takes in one call at a good speed.
    """

    identity: Mapping[str, Any]
    request: MediaRequest
    conditions: tuple[Condition, ...]
    n_layers: int
    width: int
    batch_size: int = 1


class Extractor(Protocol):
    """A loaded model."""

    def extract(self, clips: Sequence[ClipMedia]) -> Mapping[Condition, NDArray[np.float32]]:
        """Return for each condition an array (n_clips, n_layers, width)."""
        ...

    def close(self) -> None:
        """Free the weights and the device's memory."""
        ...


@dataclass(frozen=True)
class Family:
    """One architecture: how to plan an extraction and how to load the model."""

    name: str
    plan: Callable[[ModelSpec, ReadOut], ExtractionPlan]
    load: Callable[[ModelSpec, ReadOut, str], Extractor]
