"""The door through which every family of models comes: a plan without weights, then an extractor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bids_mllm.records import Clip, ClipMedia, Condition, Instruction, MediaRequest, ModelSpec, Pooling


@dataclass(frozen=True)
class Demonstration:
    """A clip with an instruction and the answer wanted, shown to a model before the clip that it is asked about.

    `sha256` is of the file that the clip is cut from; `media` is decoded before the model is loaded.
    """

    clip: Clip
    sha256: str
    instruction: str
    answer: str
    media: ClipMedia | None = None


@dataclass(frozen=True)
class ReadOut:
    """What is asked of a model: window length in seconds, poolings, instructions, generated tokens.

    `plain` runs one forward an instruction instead of sharing what the instructions have in common: slower,
    and what the shared path is compared with. `demonstrations` stand in the prompt of every clip.
    """

    window: float
    poolings: tuple[Pooling, ...]
    instructions: tuple[Instruction, ...]
    max_new_tokens: int = 8
    seed: int = 0
    plain: bool = False
    demonstrations: tuple[Demonstration, ...] = ()


@dataclass(frozen=True)
class Cost:
    """Rough needs of an extraction, known before any weight is loaded.

    Attributes
    ----------
    flops
        Floating-point operations for one clip with all its conditions.
    weight_bytes
        Memory of the weights on the device.
    clip_bytes
        Further memory on the device for each clip of a batch.
    """

    flops: float
    weight_bytes: int
    clip_bytes: int


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
        Clips that the extractor takes in one call at the most; fewer where memory is short.
    cost
        None for a model whose needs are negligible.
    """

    identity: Mapping[str, Any]
    request: MediaRequest
    conditions: tuple[Condition, ...]
    n_layers: int
    width: int
    batch_size: int = 1
    cost: Cost | None = None


@dataclass(frozen=True)
class Extracted:
    """What a model gave for a batch of clips.

    Attributes
    ----------
    features
        For each condition an array (n_clips, n_layers, width) of float32.
    texts
        For each condition whose tokens were generated, the text of every clip.
    """

    features: Mapping[Condition, NDArray[np.float32]]
    texts: Mapping[Condition, tuple[str, ...]] = field(default_factory=dict)


class Extractor(Protocol):
    """A loaded model."""

    def extract(self, clips: Sequence[ClipMedia]) -> Extracted:
        """Return the features of every clip under every condition."""
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
