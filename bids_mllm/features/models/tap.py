"""Hooks on a decoder: what enters at its door, and pooled hidden states of every layer as they pass.

Nothing is kept but the means that were asked for, so the memory does not grow with the length of a prompt.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.utils import ModelOutput


@dataclass
class Passage:
    """What one pass through a decoder left behind.

    Attributes
    ----------
    position_ids
        As the model's own code gave them, or None where the decoder counts by itself.
    n_tokens
        Length of the row.
    last : (n_rows, width) tensor
        State of the last token behind the final norm.
    layers
        For each layer a float32 tensor (n_rows, n_spans, width); the first is the embedding, the last is
        behind the final norm.
    """

    position_ids: torch.Tensor | None = None
    n_tokens: int = 0
    last: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    layers: list[torch.Tensor] = field(default_factory=list)

    def pooled(self) -> torch.Tensor:
        """All layers as one float32 tensor (n_rows, n_spans, n_layers, width)."""
        return torch.stack(self.layers, dim=2)

    def next_position(self, n_rows: int, device: torch.device) -> torch.Tensor:
        """Position of the token behind the row, shape (n_rows,)."""
        if self.position_ids is None:
            return torch.full((n_rows,), self.n_tokens, device=device)
        last = self.position_ids.amax(dim=-1)
        if self.position_ids.dim() == 3:
            last = last.amax(dim=0)
        return last.expand(n_rows) + 1

    def positions(self, base: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Position ids of text tokens at ``base + offset`` in the form that this decoder takes.

        `base` is (n_rows,), or (n_rows, n_tokens) where tokens have bases of their own; `offset` is (n_tokens,).

        Multimodal rotary positions have an axis of three in front; on text tokens the three are equal.
        """
        ids = base.reshape(len(base), -1) + offset[None, :]
        if self.position_ids is not None and self.position_ids.dim() == 3:
            return ids.expand(3, *ids.shape)
        return ids


def mean_over(states: torch.Tensor, spans: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return float32 means (n_rows, n_spans, width) over token positions of states (n_rows, n_tokens, width)."""
    if all(len(span) == 1 for span in spans):
        # As in every step of decoding: one call in all instead of several a span.
        return states.index_select(1, torch.cat(list(spans))).to(torch.float32)
    means = [states.index_select(1, span).mean(dim=1, dtype=torch.float32) for span in spans]
    return torch.stack(means, dim=1)


@contextmanager
def tapped(decoder: Any, spans: Sequence[Sequence[int]]) -> Iterator[Passage]:
    """Pool the hidden states of the one pass through a decoder that happens inside the context.

    Parameters
    ----------
    decoder
        A text model of transformers with ``layers`` and ``norm``, called with ``inputs_embeds``.
    spans
        Token positions of each mean; none for only the positions.
    """
    passage = Passage()
    device = decoder.norm.weight.device
    indices = [torch.tensor(list(span), device=device) for span in spans]

    def keep(states: torch.Tensor) -> None:
        if indices:
            passage.layers.append(mean_over(states, indices))

    def at_door(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        embeddings = arguments["inputs_embeds"]
        passage.position_ids = arguments.get("position_ids")
        passage.n_tokens = embeddings.shape[1]
        keep(embeddings)

    def behind_layer(_: Any, __: Any, output: Any) -> None:
        keep(output[0] if isinstance(output, tuple) else output)

    def behind_norm(_: Any, __: Any, output: torch.Tensor) -> None:
        # A copy, since a view would keep the states of the whole row.
        passage.last = output[:, -1].clone()
        keep(output)

    # The last layer's own output is left out: hidden states end with what the final norm makes of it.
    with ExitStack() as stack:
        hooks = [decoder.register_forward_pre_hook(at_door, with_kwargs=True)]
        hooks += [layer.register_forward_hook(behind_layer) for layer in decoder.layers[:-1]]
        hooks.append(decoder.norm.register_forward_hook(behind_norm))
        for hook in hooks:
            stack.callback(hook.remove)
        yield passage


@contextmanager
def memoised(modules: Sequence[Any]) -> Iterator[None]:
    """Let each module compute once inside the context and give the same output to every later call.

    For the towers of a model that is called several times with the same media. A module that is called
    several times within one call of the model must not be among them.
    """
    with ExitStack() as stack:
        for module in modules:
            stack.callback(setattr, module, "forward", module.forward)
            module.forward = _once(module.forward)
        yield


def _once(forward: Any) -> Any:
    made: list[Any] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(forward(*args, **kwargs))
        output = made[0]
        # Callers may replace a field of what they get, so each has an output of its own around the same tensors.
        return type(output)(**output) if isinstance(output, ModelOutput) else output

    return call
