"""The prompt of a clip and an instruction as token ids, with the spans that poolings read."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from bids_mllm.exceptions import CheckpointError

Order = Literal["media-first", "instruction-first"]
ORDERS: tuple[Order, ...] = ("media-first", "instruction-first")
#: A model attends to the first tokens of a row whatever they say, so that their states are of an extreme size
#: (Xiao et al. 2024, Efficient streaming language models with attention sinks); means leave them out.
SINK_TOKENS = 4
#: Prompts that do not begin alike are kept together, for their answers, up to so many tokens.
JOINED_TOKENS = 4096


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt, and the positions of its media tokens and of the instruction's own.

    `text` is the instruction, None where there is none.
    """

    ids: tuple[int, ...]
    media: tuple[int, ...]
    instruction: tuple[int, ...]
    text: str | None = None

    @property
    def media_span(self) -> tuple[int, ...]:
        """Media tokens over which a mean is taken."""
        return without_sinks(self.media)

    @property
    def instruction_span(self) -> tuple[int, ...]:
        """Instruction tokens over which a mean is taken."""
        return without_sinks(self.instruction)


def without_sinks(positions: Sequence[int]) -> tuple[int, ...]:
    """Return the positions of a mean without the first of the prompt, unless there are no others."""
    kept = tuple(position for position in positions if position >= SINK_TOKENS)
    return kept or tuple(positions)


def find_instruction(rendered: str, without: str, text: str) -> tuple[int, int]:
    """Return the characters (start, end) at which a template put an instruction.

    Cutting them out of the rendered prompt leaves the prompt with an empty instruction, which tells the
    instruction from the same words elsewhere in the template.
    """
    start = rendered.find(text)
    while start >= 0:
        end = start + len(text)
        if rendered[:start] + rendered[end:] == without:
            return start, end
        start = rendered.find(text, start + 1)
    raise CheckpointError(
        f"The checkpoint's chat template does not keep the instruction {text!r} as it is; its tokens cannot be located."
    )


class PromptBuilder:
    """Builds prompts with a checkpoint's tokenizer, each kept for the next batch.

    Parameters
    ----------
    encode
        From a text to its token ids and the characters (start, end) that each covers.
    render
        From an instruction (None = no instruction, "" = an empty one) to the prompt's text, in which each piece
        of media stands as a placeholder.
    media_ids
        Ids of the tokens that stand for one position of media each.
    order
        Whether the media or the instruction comes first.
    """

    def __init__(
        self,
        encode: Callable[[str], tuple[Sequence[int], Sequence[tuple[int, int]]]],
        render: Callable[[str | None], str],
        *,
        media_ids: Sequence[int],
        order: Order,
    ) -> None:
        self._encode = encode
        self._render = render
        self._media_ids = frozenset(media_ids)
        self._order = order
        self._made: dict[tuple[str | None, Hashable], Prompt] = {}

    def build(self, text: str | None, expand: Callable[[str], str], *, n_media: int, shape: Hashable) -> Prompt:
        """Return the prompt with an instruction (None = the media alone).

        Parameters
        ----------
        text
            The instruction.
        expand
            Gives each placeholder of a rendered prompt as many tokens as its media have.
        n_media
            Media tokens of the clip; media of demonstrations come before them.
        shape
            What `expand` depends on, so that equal prompts are made once.
        """
        key = (text, shape)
        if key not in self._made:
            self._made[key] = self._build(text, expand, n_media)
        return self._made[key]

    def _build(self, text: str | None, expand: Callable[[str], str], n_media: int) -> Prompt:
        rendered = expand(self._render(text))
        encoded, offsets = self._encode(rendered)
        ids = tuple(encoded)
        media = tuple(i for i, token in enumerate(ids) if token in self._media_ids)
        if len(media) < n_media or not n_media:
            raise CheckpointError(
                f"The checkpoint's chat template makes {len(media)} media tokens of a clip that has {n_media}; copy "
                "the checkpoint again or check its family."
            )
        media = media[-n_media:]
        if not text:
            return Prompt(ids, media, (), text)
        start, end = find_instruction(rendered, expand(self._render("")), text)
        instruction = tuple(i for i, (left, right) in enumerate(offsets) if left < end and right > start)
        self._check_order(media, instruction)
        return Prompt(ids, media, instruction, text)

    def _check_order(self, media: Sequence[int], instruction: Sequence[int]) -> None:
        found: Order = "media-first" if media[0] < instruction[0] else "instruction-first"
        if found != self._order:
            raise CheckpointError(
                f"The order {self._order} is asked for, but the checkpoint's chat template puts the parts of a message "
                f"{found}; ask for that order."
            )
