"""A loaded encoder without instructions: batches of clips in, pooled states of every layer out.

The states are pooled in hooks while the model runs, so that the memory does not grow with the number of layers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bids_mllm.exceptions import StimulusError
from bids_mllm.features.extractor import Extracted
from bids_mllm.features.models.encoders import STIMULUS, Found, Layout
from bids_mllm.features.models.loading import DTYPES, load_model, random_model
from bids_mllm.features.models.memory import free_model
from bids_mllm.features.models.pixel_settings import PixelSettings
from bids_mllm.features.models.pixels import prepare_frames
from bids_mllm.records import ClipMedia, MediaRequest


@dataclass(frozen=True)
class Batch:
    """Clips as a model takes them.

    Attributes
    ----------
    arguments
        Of the model's forward; tensors are moved to its device, and those of floating point to its dtype.
    pool
        From the states (n_rows, n_tokens, width) of a layer, and the layer's number, to one float32 row a
        clip (n_clips, width). A family whose layers differ in width brings them to one here.
    """

    arguments: Mapping[str, Any]
    pool: Callable[[torch.Tensor, int], torch.Tensor]


def _call(model: Any, arguments: Mapping[str, Any]) -> None:
    """Run the whole model."""
    model(**arguments)


@dataclass(frozen=True)
class Tower:
    """What a family adds to the shared extractor.

    Attributes
    ----------
    model_class, config_class
        Of transformers.
    batch
        From clips whose media have one shape to a `Batch`; nothing needs padding to the longest clip.
    layers
        From the model to its blocks in order. Layer 0 is what enters the first one.
    final_norm
        From the model to the norm that the last block's output goes through, or None where it has none.
    norm_after_pooling
        Whether that norm belongs behind the mean over tokens.
    options
        Further arguments of the model's class.
    reading
        Further arguments of its ``from_pretrained`` alone.
    run
        How the model is run; only its hooked blocks matter.
    """

    model_class: Any
    config_class: Any
    batch: Callable[[Sequence[ClipMedia]], Batch]
    layers: Callable[[Any], Sequence[torch.nn.Module]]
    final_norm: Callable[[Any], Callable[[torch.Tensor], torch.Tensor] | None]
    norm_after_pooling: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)
    run: Callable[[Any, Mapping[str, Any]], None] = _call


def pool_tokens(n_clips: int, n_prefix: int = 0) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Return the pooling of a model whose tokens all count but the first `n_prefix` of each row.

    Where a clip has several rows, one a frame, they are averaged too.
    """

    def pool(states: torch.Tensor, _: int) -> torch.Tensor:
        means = states[:, n_prefix:].mean(dim=1, dtype=torch.float32)
        return means.reshape(n_clips, -1, means.shape[-1]).mean(dim=1)

    return pool


def video_batch(
    clips: Sequence[ClipMedia], settings: PixelSettings, *, name: str = "pixel_values", n_prefix: int = 0
) -> Batch:
    """Return clips as (n_clips, n_frames, 3, height, width), for a model that sees their frames together."""
    pixels = torch.stack([prepare_frames(np.asarray(clip.frames), settings) for clip in clips])
    return Batch({name: pixels}, pool_tokens(len(clips), n_prefix))


def image_batch(clips: Sequence[ClipMedia], settings: PixelSettings, *, n_prefix: int = 1) -> Batch:
    """Return clips as (n_clips * n_frames, 3, height, width), for a model that sees single images."""
    pixels = torch.cat([prepare_frames(np.asarray(clip.frames), settings) for clip in clips])
    return Batch({"pixel_values": pixels}, pool_tokens(len(clips), n_prefix))


def check_media(clip: ClipMedia, request: MediaRequest) -> None:
    """Raise a StimulusError when a clip lacks the frames or the sound that were asked for."""
    found = 0 if clip.frames is None else len(clip.frames)
    if request.media != "audio" and found != request.n_frames:
        raise StimulusError(
            f"Clip {clip.clip.index} of {clip.clip.stim_file} has {found} of the {request.n_frames} frames that "
            "the model reads; check that the file has a video stream."
        )
    if request.media == "video":
        return
    if clip.audio is None or not len(clip.audio) or clip.sampling_rate != request.sampling_rate:
        raise StimulusError(
            f"Clip {clip.clip.index} of {clip.clip.stim_file} has no sound at {request.sampling_rate} Hz, which the "
            "model reads; check that the file has an audio stream."
        )


def _states(value: Any) -> torch.Tensor:
    """Return the hidden states of what a block takes or gives, which may come first in a tuple."""
    states: torch.Tensor = value[0] if isinstance(value, tuple) else value
    return states


@contextmanager
def pooled_layers(model: Any, tower: Tower, batch: Batch) -> Iterator[list[torch.Tensor]]:
    """Fill a list with the pooled states (n_clips, width) of each layer in the one run inside the context."""
    blocks, norm = list(tower.layers(model)), tower.final_norm(model)
    pooled: list[torch.Tensor] = []

    def before_first(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        pooled.append(batch.pool(arguments[0] if arguments else named["hidden_states"], 0))

    def behind(_: Any, __: Any, output: Any) -> None:
        states, layer = _states(output), len(pooled)
        if norm is None or layer < len(blocks):
            pooled.append(batch.pool(states, layer))
        elif tower.norm_after_pooling:
            pooled.append(norm(batch.pool(states, layer).to(states.dtype)).float())
        else:
            pooled.append(batch.pool(norm(states), layer))

    with ExitStack() as stack:
        hooks = [blocks[0].register_forward_pre_hook(before_first, with_kwargs=True)]
        hooks += [block.register_forward_hook(behind) for block in blocks]
        for hook in hooks:
            stack.callback(hook.remove)
        yield pooled


class EncoderExtractor:
    """A model in evaluation mode on its device."""

    def __init__(self, found: Found, layout: Layout, tower: Tower, *, attention: str, seed: int, device: str) -> None:
        self._layout = layout
        self._tower = tower
        self._device = torch.device(device)
        self._dtype = DTYPES[found.spec.dtype]
        options = {"attn_implementation": attention, **tower.options}
        if found.spec.weights == "random":
            self._model = random_model(
                tower.model_class,
                found.folder,
                seed=seed,
                dtype=found.spec.dtype,
                device=device,
                config_class=tower.config_class,
                options=options,
            )
        else:
            self._model = load_model(
                tower.model_class,
                found.folder,
                dtype=found.spec.dtype,
                device=device,
                options={**options, **tower.reading},
            )
        self._model.requires_grad_(False)

    def extract(self, clips: Sequence[ClipMedia]) -> Extracted:
        """Return the features of every clip, (n_clips, n_layers, width) of float32.

        Clips whose media have one shape run together, so no clip is padded for the sake of another.
        """
        features = np.zeros((len(clips), self._layout.n_layers, self._layout.width), np.float32)
        by_shape: dict[tuple[Any, ...], list[int]] = {}
        for i, clip in enumerate(clips):
            check_media(clip, self._layout.request)
            shapes = tuple(None if media is None else media.shape for media in (clip.frames, clip.audio))
            by_shape.setdefault(shapes, []).append(i)
        for members in by_shape.values():
            features[members] = self._extract_alike([clips[i] for i in members])
        return Extracted({STIMULUS: features})

    def close(self) -> None:
        """Free the weights and the device's memory."""
        model, self._model = self._model, None
        free_model(model, self._device)

    @torch.no_grad()
    def _extract_alike(self, clips: Sequence[ClipMedia]) -> NDArray[np.float32]:
        """Return the features of clips whose media have one shape."""
        batch = self._tower.batch(clips)
        with pooled_layers(self._model, self._tower, batch) as pooled:
            self._tower.run(self._model, {name: self._placed(value) for name, value in batch.arguments.items()})
        values: NDArray[np.float32] = torch.stack(pooled, dim=1).cpu().numpy()
        return values

    def _placed(self, value: Any) -> Any:
        """Return an argument on the model's device, in its dtype where it is a tensor of floating point."""
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(self._device, self._dtype if value.is_floating_point() else value.dtype)
