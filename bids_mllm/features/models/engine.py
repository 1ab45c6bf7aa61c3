"""All instructions of a batch of clips, in one pass where their prompts begin alike.

Two paths give the same numbers. The shared path runs what all prompts have in common once, then their branches in
one packed row, then generates all answers together, one token a branch in every step: one copy of the keys and
values serves all instructions. Prompts that do not begin alike are run one after the other and share the towers of
picture and sound; their answers are still generated together. The plain path generates them one after the other
too, and is what the others are compared with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from bids_mllm.features.models.packing import (
    PackedRow,
    common_prefix,
    decoded_together,
    pack,
    row_mask,
    step_mask,
)
from bids_mllm.features.models.prompts import Prompt
from bids_mllm.features.models.tap import Passage, memoised, tapped
from bids_mllm.records import Pooling


@dataclass(frozen=True)
class Decoding:
    """How many tokens are generated at most, and the tokens that end an answer."""

    max_new_tokens: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Loaded:
    """A model as the engine drives it.

    Attributes
    ----------
    decoder
        The text model: ``layers``, ``norm``, ``embed_tokens``.
    head
        From the decoder's last state to logits.
    prefill
        ``prefill(ids, cache, prompt)`` runs token ids (n_clips, n_tokens) from the beginning of a prompt with
        the batch's media through the model's own code, which merges the media and settles the positions; keys
        and values go into the cache.
    towers
        Modules that depend on the media alone.
    """

    decoder: Any
    head: Callable[[torch.Tensor], torch.Tensor]
    prefill: Callable[[torch.Tensor, DynamicCache, Prompt], None]
    towers: tuple[Any, ...]

    @property
    def device(self) -> torch.device:
        """Where the decoder's weights are."""
        device: torch.device = self.decoder.norm.weight.device
        return device


@dataclass(frozen=True)
class Answers:
    """Pooled states and generated tokens of several prompts.

    Attributes
    ----------
    pooled
        For each pooling a float32 tensor (n_clips, n_prompts, n_layers, width); for ``media`` there is one prompt.
    tokens : (n_clips, n_prompts, n_generated) int tensor
        Generated token ids; behind an answer's end they are -1.
    """

    pooled: Mapping[Pooling, torch.Tensor]
    tokens: torch.Tensor


@torch.inference_mode()
def run(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    n_clips: int,
    *,
    poolings: Sequence[Pooling],
    decoding: Decoding,
    media_prompt: Prompt | None = None,
    shares: bool = True,
    plain: bool = False,
) -> Answers:
    """Return the pooled states of every prompt for every clip of one shape.

    Parameters
    ----------
    loaded
        The model with the batch's media.
    prompts
        Token ids and spans, one prompt an instruction; none is padded.
    n_clips
        Clips of the batch.
    poolings
        Which means to take: over the generated tokens, the last token, the instruction's tokens.
    decoding
        Of effect for ``generated`` alone.
    media_prompt
        The prompt without an instruction, of which the mean over the media's tokens is asked for.
    shares
        Whether equal tokens at the beginning of prompts have equal states: not where the media's states depend on
        the instruction.
    plain
        One prompt after the other, also where they begin alike.
    """
    prefix = common_prefix(prompts) if prompts and shares and not plain else 0
    if prefix and (media_prompt is None or _media_alike(media_prompt, prompts[0])):
        return _shared(loaded, prompts, prefix, n_clips, poolings, decoding, media_prompt)
    with memoised(loaded.towers):
        groups = [[prompt] for prompt in prompts] if plain else decoded_together(prompts)
        each = [_apart(loaded, group, n_clips, poolings, decoding) for group in groups]
        media = None if media_prompt is None else _media(loaded, media_prompt, n_clips)
    kinds = dict.fromkeys(kind for answer in each for kind in answer.pooled)
    pooled = {kind: _in_order(kind, each) for kind in kinds}
    if media is not None:
        pooled["media"] = media
    return Answers(pooled, _side_by_side([answer.tokens for answer in each]))


def _media_alike(alone: Prompt, prompt: Prompt) -> bool:
    """Tell whether a prompt without an instruction is the same as one with it up to the end of the media."""
    end = alone.media[-1] + 1
    return alone.ids[:end] == prompt.ids[:end]


def _media(loaded: Loaded, prompt: Prompt, n_clips: int) -> torch.Tensor:
    """Return the mean over the media's tokens under a prompt, float32 (n_clips, 1, n_layers, width)."""
    cache = DynamicCache(config=loaded.decoder.config)
    with tapped(loaded.decoder, [prompt.media_span]) as passage:
        loaded.prefill(_ids(prompt.ids, n_clips, loaded.device), cache, prompt)
    return passage.pooled()


def _ids(ids: Sequence[int], n_clips: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(list(ids), device=device).repeat(n_clips, 1)


def _in_order(kind: Pooling, each: Sequence[Answers]) -> torch.Tensor:
    """Join the means of answers; an answer without this pooling has NaN in its place."""
    like = next(answer.pooled[kind] for answer in each if kind in answer.pooled)[:, :1]
    absent = torch.full_like(like, float("nan"))
    parts = [answer.pooled.get(kind, absent.expand(-1, answer.tokens.shape[1], -1, -1)) for answer in each]
    return torch.cat(parts, dim=1)


def _side_by_side(tokens: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join token ids (n_clips, n_prompts, n_generated) of answers of unlike length."""
    if not tokens:
        return torch.empty((0, 0, 0), dtype=torch.long)
    longest = max(ids.shape[-1] for ids in tokens)
    return torch.cat([torch.nn.functional.pad(ids, (0, longest - ids.shape[-1]), value=-1) for ids in tokens], dim=1)


def _shared(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    prefix: int,
    n_clips: int,
    poolings: Sequence[Pooling],
    decoding: Decoding,
    media_prompt: Prompt | None,
) -> Answers:
    """Run the common beginning, then all branches in one packed row.

    No token sees what comes behind it, so the media's states of the beginning are those of every prompt that
    begins so, with an instruction or without.
    """
    cache = DynamicCache(config=loaded.decoder.config)
    with tapped(loaded.decoder, [] if media_prompt is None else [prompts[0].media_span]) as beginning:
        loaded.prefill(_ids(prompts[0].ids[:prefix], n_clips, loaded.device), cache, prompts[0])
    base = beginning.next_position(n_clips, loaded.device)
    row = pack(prompts, prefix, loaded.device)
    spans = _row_spans(prompts, row, prefix, poolings)
    with tapped(loaded.decoder, [span for _, _, span in spans]) as passage:
        output = loaded.decoder(
            inputs_embeds=loaded.decoder.embed_tokens(row.ids).expand(n_clips, -1, -1),
            position_ids=beginning.positions(base, row.offset),
            attention_mask=row_mask(row, prefix),
            past_key_values=cache,
            use_cache=True,
        )
    pooled = _by_pooling(spans, passage.layers, poolings, len(prompts))
    if media_prompt is not None:
        pooled["media"] = beginning.pooled()
    tokens = torch.empty((n_clips, len(prompts), 0), dtype=torch.long, device=loaded.device)
    if "generated" in poolings:
        state = _Decoding(loaded, cache, row, prefix, beginning.positions, base, decoding)
        pooled["generated"], tokens = state.decode(output.last_hidden_state[:, row.ends])
    return Answers(pooled, tokens)


def _apart(
    loaded: Loaded, prompts: Sequence[Prompt], n_clips: int, poolings: Sequence[Pooling], decoding: Decoding
) -> Answers:
    """Run each whole prompt through the model's own code, then generate the answers together."""
    caches: list[DynamicCache] = []
    passages: list[Passage] = []
    spans: list[tuple[Pooling, int, list[int]]] = []
    for number, prompt in enumerate(prompts):
        cache = DynamicCache(config=loaded.decoder.config)
        own = _row_spans([prompt], pack([prompt], 0, loaded.device), 0, poolings)
        with tapped(loaded.decoder, [span for _, _, span in own]) as passage:
            loaded.prefill(_ids(prompt.ids, n_clips, loaded.device), cache, prompt)
        spans += [(pooling, number, span) for pooling, _, span in own]
        passages.append(passage)
        if "generated" in poolings:
            caches.append(cache)
    by_layer = zip(*(passage.layers for passage in passages if passage.layers), strict=True)
    pooled = _by_pooling(spans, [torch.cat(parts, dim=1) for parts in by_layer], poolings, len(prompts))
    tokens = torch.empty((n_clips, len(prompts), 0), dtype=torch.long, device=loaded.device)
    if caches:
        row = pack(prompts, 0, loaded.device)
        # The next positions follow what the model's own code gave, less the tokens that are counted as offsets.
        following = [passage.next_position(n_clips, loaded.device) for passage in passages]
        base = torch.stack(following, dim=1) - row.lengths
        cache = _joined(caches, loaded.decoder)
        state = _Decoding(loaded, cache, row, 0, passages[0].positions, base, decoding)
        pooled["generated"], tokens = state.decode(torch.stack([passage.last for passage in passages], dim=1))
    return Answers(pooled, tokens)


def _joined(caches: Sequence[DynamicCache], decoder: Any) -> DynamicCache:
    """Put the keys and values of several prompts into one row, one prompt behind the other; theirs are given up."""
    if len(caches) == 1:
        return caches[0]
    joined = DynamicCache(config=decoder.config)
    for number, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        keys = torch.cat([layer.keys for layer in layers], dim=-2)
        values = torch.cat([layer.values for layer in layers], dim=-2)
        joined.update(keys, values, number)
        for layer in layers:
            layer.keys = layer.values = None
    return joined


def _row_spans(
    prompts: Sequence[Prompt], row: PackedRow, prefix: int, poolings: Sequence[Pooling]
) -> list[tuple[Pooling, int, list[int]]]:
    """Return (pooling, number of the prompt, positions in the row) of every mean over tokens of a prompt."""
    spans: list[tuple[Pooling, int, list[int]]] = []
    for number, prompt in enumerate(prompts):
        shift = row.starts[number] - prefix
        if "last" in poolings:
            spans.append(("last", number, [len(prompt.ids) - 1 + shift]))
        if "instruction" in poolings and prompt.instruction:
            spans.append(("instruction", number, [position + shift for position in prompt.instruction_span]))
    return spans


def _by_pooling(
    spans: Sequence[tuple[Pooling, int, list[int]]],
    layers: Sequence[torch.Tensor],
    poolings: Sequence[Pooling],
    n_prompts: int,
) -> dict[Pooling, torch.Tensor]:
    """Sort the means by pooling; a prompt without an instruction's tokens has NaN in their place."""
    if not spans:
        return {}
    states = torch.stack(list(layers), dim=2)
    pooled: dict[Pooling, torch.Tensor] = {}
    for pooling in poolings:
        columns = {number: column for column, (kind, number, _) in enumerate(spans) if kind == pooling}
        if columns:
            absent = torch.full_like(states[:, 0], float("nan"))
            parts = [states[:, columns[n]] if n in columns else absent for n in range(n_prompts)]
            pooled[pooling] = torch.stack(parts, dim=1)
    return pooled


@dataclass(frozen=True)
class _Decoding:
    """Greedy generation of all branches together, behind a row whose keys and values are in the cache."""

    loaded: Loaded
    cache: DynamicCache
    row: PackedRow
    prefix: int
    positions: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    base: torch.Tensor
    decoding: Decoding

    def decode(self, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean state of the generated tokens, (n_clips, n_branches, n_layers, width), and the tokens.

        `last` holds the final state of every branch, (n_clips, n_branches, width). The state of a token comes
        when the token is fed back, so K tokens take K steps. An answer ends at its first end token, which is
        left out unless it is the whole answer.
        """
        ends = torch.tensor(self.decoding.eos_token_ids, device=last.device, dtype=torch.long)
        tokens = self.loaded.head(last).argmax(dim=-1)
        alive = torch.ones_like(tokens, dtype=torch.bool)
        count = torch.zeros_like(tokens)
        total: torch.Tensor | None = None
        said: list[torch.Tensor] = []
        for step in range(self.decoding.max_new_tokens):
            goes_on = alive & ~torch.isin(tokens, ends)
            counted = alive if step == 0 else goes_on
            if not counted.any():
                break
            said.append(tokens.masked_fill(~counted, -1))
            states, last = self._step(tokens, step)
            # A finished branch still runs; its states are set to zero, so that nothing of them reaches the sum.
            states = states.masked_fill(~counted[..., None, None], 0.0)
            total = states if total is None else total + states
            count = count + counted
            alive = goes_on
            if step + 1 < self.decoding.max_new_tokens:
                tokens = self.loaded.head(last).argmax(dim=-1)
        if total is None:
            raise ValueError(f"max_new_tokens is {self.decoding.max_new_tokens}, but must be at least 1.")
        return total / count[..., None, None], torch.stack(said, dim=-1)

    def _step(self, tokens: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed one token a branch; return its pooled states and its state behind the final norm."""
        decoder = self.loaded.decoder
        with tapped(decoder, [[branch] for branch in range(tokens.shape[1])]) as passage:
            output = decoder(
                inputs_embeds=decoder.embed_tokens(tokens),
                position_ids=self.positions(self.base, self.row.lengths + step),
                attention_mask=step_mask(self.row, self.prefix, step),
                past_key_values=self.cache,
                use_cache=True,
            )
        return passage.pooled(), output.last_hidden_state
