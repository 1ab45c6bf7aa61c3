"""One prompt over a batch of clips: prefill, greedy decoding, and the pooled hidden states of all layers.

This is the seam at which another engine can take over: `run` takes the clips' inputs and the prompts and
returns pooled states.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from bids_mllm.features.models.prompts import Prompt
from bids_mllm.records import Pooling

VIDEO_TOKEN_TYPE = 2


@dataclass(frozen=True)
class ClipInputs:
    """Clips of one geometry, ready for the language model.

    Attributes
    ----------
    video_features
        The vision tower's output, one (n_media_tokens, width) tensor a clip.
    grid : (n_clips, 3) int tensor
        Patches in time, rows and columns.
    second_per_grid : (n_clips,) float32 tensor
        Seconds that one temporal step of the grid covers.
    """

    video_features: Any
    grid: torch.Tensor
    second_per_grid: torch.Tensor

    @property
    def n_clips(self) -> int:
        """Number of clips."""
        return len(self.grid)


@dataclass(frozen=True)
class Decoding:
    """How many tokens are generated at most, and the tokens that end an answer."""

    max_new_tokens: int
    eos_token_ids: tuple[int, ...]


def _prefill(model: Any, clips: ClipInputs, prompt: Prompt, cache: DynamicCache | None) -> Any:
    """Run the whole prompt; the model's own code merges the video and computes the 3-D positions."""
    device = clips.grid.device
    ids = torch.tensor(prompt.ids, device=device).repeat(clips.n_clips, 1)
    token_types = torch.zeros_like(ids, dtype=torch.int32)
    token_types[:, list(prompt.media)] = VIDEO_TOKEN_TYPE
    return model.model(
        input_ids=ids,
        mm_token_type_ids=token_types,
        mm_encoder_outputs={"video": clips.video_features},
        video_grid_thw=clips.grid,
        second_per_grid_ts=clips.second_per_grid,
        past_key_values=cache,
        use_cache=cache is not None,
        output_hidden_states=True,
    )


def _pool(hidden_states: Sequence[torch.Tensor], positions: Sequence[int]) -> torch.Tensor:
    """Return the float32 mean over token positions, shape (n_clips, n_layers, width)."""
    index = list(positions)
    return torch.stack([state[:, index].float().mean(dim=1) for state in hidden_states], dim=1)


def _decode(model: Any, prefill: Any, decoding: Decoding) -> torch.Tensor:
    """Return the mean state of the generated tokens, shape (n_clips, n_layers, width).

    The state of a token comes when the token is fed back, so K tokens take K steps after the prefill. An
    answer ends at its first end token, which is left out unless it is the whole answer. The model adds its
    own rotary offset to the cached length, so no positions are given here.
    """
    eos = torch.tensor(decoding.eos_token_ids, device=prefill.last_hidden_state.device)
    tokens = model.lm_head(prefill.last_hidden_state[:, -1]).argmax(dim=-1)
    alive = torch.ones_like(tokens, dtype=torch.bool)
    total: torch.Tensor | None = None
    count = torch.zeros_like(tokens, dtype=torch.float32)
    for step in range(decoding.max_new_tokens):
        counted = alive if step == 0 else alive & ~torch.isin(tokens, eos)
        alive = alive & ~torch.isin(tokens, eos)
        if not counted.any():
            break
        output = model.model(
            input_ids=tokens[:, None],
            past_key_values=prefill.past_key_values,
            use_cache=True,
            output_hidden_states=True,
        )
        states = torch.stack([state[:, -1].float() for state in output.hidden_states], dim=1)
        # A finished clip still runs in the batch; its states are set to zero rather than multiplied, so
        # that nothing of them can reach the sum.
        states = states.masked_fill(~counted[:, None, None], 0.0)
        total = states if total is None else total + states
        count += counted
        tokens = model.lm_head(output.last_hidden_state[:, -1]).argmax(dim=-1)
    if total is None:
        raise ValueError(f"max_new_tokens is {decoding.max_new_tokens}, but must be at least 1.")
    return total / count[:, None, None]


@torch.no_grad()
def run(
    model: Any, clips: ClipInputs, prompt: Prompt, *, poolings: Collection[Pooling], decoding: Decoding
) -> Mapping[Pooling, torch.Tensor]:
    """Return the pooled states of one prompt for every clip.

    Parameters
    ----------
    model
        A Qwen2.5-VL model for conditional generation, in eval mode.
    clips
        Clips of one geometry, so that the prompt has one length and nothing is padded.
    prompt
        Token ids and spans.
    poolings
        Which means to take: over the generated tokens, the last token, the instruction's or the media's.
    decoding
        Of effect for ``generated`` alone.

    Returns
    -------
    Mapping
        For each pooling a float32 tensor (n_clips, n_layers, width); layer 0 is the embedding, the last
        one the state after the final norm.
    """
    cache = DynamicCache(config=model.config) if "generated" in poolings else None
    prefill = _prefill(model, clips, prompt, cache)
    spans = {"last": (len(prompt.ids) - 1,), "instruction": prompt.instruction, "media": prompt.media}
    pooled: dict[Pooling, torch.Tensor] = {
        pooling: _pool(prefill.hidden_states, spans[pooling]) for pooling in poolings if pooling in spans
    }
    if "generated" in poolings:
        pooled["generated"] = _decode(model, prefill, decoding)
    return pooled
