"""What the shared code has to know about a family that follows instructions.

A family is one module with one `Architecture`; everything else (planning, prompts, the engine, generation,
pooling) is shared. Nothing here loads torch.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

from bids_mllm.features.extractor import Demonstration
from bids_mllm.features.models.prompts import Order
from bids_mllm.records import ClipMedia, MediaRequest, ModelSpec

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class MediaSettings:
    """How a checkpoint and a record take the media of a window, settled before any weight is loaded.

    Attributes
    ----------
    request
        What to decode.
    identity
        JSON-ready values of everything that changes a number on the way from decoded media to the model.
    n_tokens
        About how many tokens the media of a clip take.
    values
        What `Architecture.prepare` needs.
    """

    request: MediaRequest
    identity: Mapping[str, Any]
    n_tokens: int
    values: Any


@dataclass(frozen=True)
class Setup:
    """What a record and its checkpoint's small files say, before any weight is loaded."""

    spec: ModelSpec
    folder: Path
    config: Mapping[str, Any]
    media: MediaSettings
    order: Order
    window: float
    demonstrations: tuple[Demonstration, ...] = ()

    def with_demonstrations(self, clip: ClipMedia) -> list[ClipMedia]:
        """Return the media of a prompt in their order: of every demonstration, then of the clip."""
        shown = [demonstration.media for demonstration in self.demonstrations]
        if any(media is None for media in shown):
            raise ValueError("The media of the demonstrations must be decoded before the model is used.")
        return [*(media for media in shown if media is not None), clip]


@dataclass(frozen=True)
class MediaBatch:
    """The media of clips of one shape as a model takes them.

    Attributes
    ----------
    tensors
        Arguments of the model's forward call, on the CPU.
    expand
        Gives each placeholder of a rendered prompt as many tokens as its media have.
    n_tokens
        Media tokens of one clip.
    shape
        What `expand` depends on.
    """

    tensors: Mapping[str, Any]
    expand: Callable[[str], str]
    n_tokens: int
    shape: Hashable


class Forward(Protocol):
    """Runs the beginning of a prompt with a batch's media through a model's own code."""

    def __call__(
        self, model: Any, ids: Any, text: str | None, tensors: Mapping[str, Any], setup: Setup, cache: Any, /
    ) -> None:
        """Run token ids (n_clips, n_tokens) of a prompt with the instruction `text`; keys and values go to `cache`."""
        ...


def through_core(core: str = "model", arguments: Callable[[Any, Any], Mapping[str, Any]] | None = None) -> Forward:
    """Return the forward pass of a model whose `core` takes token ids and media and runs the decoder without a head.

    Parameters
    ----------
    core
        Dotted name of the module.
    arguments
        ``arguments(ids, model)`` gives further arguments that follow from the token ids.
    """

    def forward(
        model: Any, ids: Any, text: str | None, tensors: Mapping[str, Any], setup: Setup, cache: Any, /
    ) -> None:
        further = {} if arguments is None else arguments(ids, model)
        attrgetter(core)(model)(input_ids=ids, **tensors, **further, past_key_values=cache, use_cache=True)

    return forward


#: Of models whose inner model is called ``model`` and takes all it needs as tensors.
THROUGH_MODEL = through_core()


@dataclass(frozen=True)
class Architecture:
    """One family of models that follow instructions.

    Attributes
    ----------
    name
        The family's name in the registry.
    model_types
        Values of ``model_type`` in config.json that this family loads.
    model_class, config_class
        Classes of transformers.
    media_tokens
        Names in the model's configuration of the ids that stand for one position of media each.
    placeholders
        Types of the parts of a user's message that stand for the media, such as ``("video",)``.
    parameters
        Names of the parameters that a record may set, besides `order`.
    settle
        ``settle(spec, folder, config, window)`` reads the small files and returns the media's settings.
    prepare
        ``prepare(clips, setup)`` gives the media of clips of one shape as the model takes them.
    towers
        Dotted names of the modules that depend on the media alone and are called once in a forward call.
    forward
        Runs the beginning of a prompt with the media through the model's own code.
    shares
        Whether prompts that begin with the media share them: not where the media's tokens depend on the
        instruction.
    render
        Makes the prompt's text where the checkpoint has no chat template; None = the checkpoint's own.
    encode
        ``encode(tokenizer, text, setup)`` gives token ids and character offsets where the tokenizer alone does
        not.
    demonstrations
        Whether `prepare` puts the media of demonstrations before those of each clip.
    load
        Loads the model where ``from_pretrained`` of `model_class` alone does not.
    """

    name: str
    model_types: tuple[str, ...]
    model_class: str
    media_tokens: tuple[str, ...]
    placeholders: tuple[str, ...]
    parameters: tuple[str, ...]
    settle: Callable[[ModelSpec, Path, Mapping[str, Any], float], MediaSettings]
    prepare: Callable[[Sequence[ClipMedia], Setup], MediaBatch]
    towers: tuple[str, ...]
    forward: Forward = THROUGH_MODEL
    config_class: str = "AutoConfig"
    shares: bool = True
    render: Callable[[str | None], str] | None = None
    encode: Callable[[Any, str, Setup], tuple[list[int], list[tuple[int, int]]]] | None = None
    demonstrations: bool = False
    load: Callable[[Setup, str, int], Any] | None = None
