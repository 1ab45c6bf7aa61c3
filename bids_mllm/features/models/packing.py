"""Which tokens several prompts share, and how what they do not share stands in one row.

Prompts that differ in their instruction alone begin alike: with the media first, all media tokens are part of
that beginning. It is run once; the rest of every prompt, its branch, stands behind it in one packed row, in which
a token sees the shared beginning and what precedes it in its own branch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bids_mllm.features.models.prompts import JOINED_TOKENS, Prompt


def common_prefix(prompts: Sequence[Prompt]) -> int:
    """Return how many tokens can be run once for all prompts; 0 where they do not share all media tokens.

    The longest common beginning of the token ids, cut so that no instruction's token is in it and every prompt
    keeps a token of its own.
    """
    length = min(len(prompt.ids) - 1 for prompt in prompts)
    first = prompts[0].ids
    for prompt in prompts:
        length = min([length, *prompt.instruction[:1]])
        differs = (i for i in range(length) if prompt.ids[i] != first[i])
        length = next(differs, length)
    shared_media = all(position < length for prompt in prompts for position in prompt.media)
    return length if shared_media and length > 0 else 0


def decoded_together(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Divide whole prompts, in their order, into groups whose answers are generated together.

    A group has no more than `JOINED_TOKENS` tokens, unless a single prompt has: the keys and values of all its
    tokens are kept at a time.
    """
    groups: list[list[Prompt]] = []
    room = 0
    for prompt in prompts:
        if len(prompt.ids) > room:
            groups.append([])
            room = JOINED_TOKENS
        groups[-1].append(prompt)
        room -= len(prompt.ids)
    return groups


@dataclass(frozen=True)
class PackedRow:
    """The branches of several prompts in one row.

    Attributes
    ----------
    ids : (n_tokens,) int tensor
        Token ids of all branches, one behind the other.
    branch : (n_tokens,) int tensor
        Number of the prompt that a token belongs to.
    offset : (n_tokens,) int tensor
        Position of a token in its branch.
    starts : tuple of int
        Where each branch begins in the row.
    """

    ids: torch.Tensor
    branch: torch.Tensor
    offset: torch.Tensor
    starts: tuple[int, ...]

    @property
    def lengths(self) -> torch.Tensor:
        """Number of tokens of each branch, shape (n_branches,)."""
        return torch.bincount(self.branch, minlength=len(self.starts))

    @property
    def ends(self) -> list[int]:
        """Position in the row of each branch's last token."""
        return [start + int(n) - 1 for start, n in zip(self.starts, self.lengths, strict=True)]


def pack(prompts: Sequence[Prompt], prefix: int, device: torch.device | str) -> PackedRow:
    """Return the branches of the prompts behind their common first `prefix` tokens."""
    branches = [prompt.ids[prefix:] for prompt in prompts]
    ends = torch.tensor([len(ids) for ids in branches]).cumsum(0).tolist()
    return PackedRow(
        ids=torch.tensor([token for ids in branches for token in ids], device=device),
        branch=torch.tensor([number for number, ids in enumerate(branches) for _ in ids], device=device),
        offset=torch.tensor([place for ids in branches for place in range(len(ids))], device=device),
        starts=(0, *ends[:-1]),
    )


def row_mask(row: PackedRow, prefix: int) -> torch.Tensor:
    """Return which keys each token of the row sees, bool of shape (1, 1, n_tokens, prefix + n_tokens)."""
    same = row.branch[:, None] == row.branch[None, :]
    own = same & (row.offset[:, None] >= row.offset[None, :])
    shared = torch.ones((len(row.ids), prefix), dtype=torch.bool, device=row.ids.device)
    return torch.cat((shared, own), dim=1)[None, None]


def step_mask(row: PackedRow, prefix: int, step: int) -> torch.Tensor:
    """Return which keys the newest token of each branch sees after `step` earlier steps of decoding.

    Every step adds one token a branch, in the order of the branches; shape
    (1, 1, n_branches, prefix + n_tokens + (step + 1) * n_branches).
    """
    numbers = torch.arange(len(row.starts), device=row.ids.device)
    shared = torch.ones((len(numbers), prefix), dtype=torch.bool, device=row.ids.device)
    branch = numbers[:, None] == row.branch[None, :]
    generated = (numbers[:, None] == numbers[None, :]).repeat(1, step + 1)
    return torch.cat((shared, branch, generated), dim=1)[None, None]
