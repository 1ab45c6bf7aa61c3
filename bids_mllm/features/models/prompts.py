"""The prompt of a clip and an instruction as token ids, with the spans that poolings read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from bids_mllm.exceptions import CheckpointError

Order = Literal["media-first", "instruction-first"]
ORDERS: tuple[Order, ...] = ("media-first", "instruction-first")


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt, and the positions of its media tokens and of the instruction's own."""

    ids: tuple[int, ...]
    media: tuple[int, ...]
    instruction: tuple[int, ...]


def _message(text: str | None, order: Order) -> list[dict[str, Any]]:
    """Return the one user message of a video and, where given, an instruction."""
    content: list[dict[str, str]] = [{"type": "video"}]
    if text is not None:
        content.insert(1 if order == "media-first" else 0, {"type": "text", "text": text})
    return [{"role": "user", "content": content}]


def find_instruction(rendered: str, without: str, text: str) -> tuple[int, int]:
    """Return the characters (start, end) at which a template put an instruction.

    Cutting them out of the rendered prompt leaves the prompt without an instruction, which tells the
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
    """Builds prompts with a checkpoint's tokenizer and chat template, each kept for the next batch.

    Parameters
    ----------
    tokenizer
        A fast tokenizer of transformers.
    template
        The chat template, or None for the tokenizer's own.
    media_token
        The token that stands for one position of the video.
    order
        Whether the video or the instruction comes first in the user's message.
    """

    def __init__(self, tokenizer: Any, template: str | None, *, media_token: str, order: Order) -> None:
        self._tokenizer = tokenizer
        self._render: Callable[[list[dict[str, Any]]], str] = lambda messages: tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        self._media_token = media_token
        self._media_id = tokenizer.convert_tokens_to_ids(media_token)
        self._order = order
        self._made: dict[tuple[str | None, int], Prompt] = {}

    def build(self, text: str | None, n_media_tokens: int) -> Prompt:
        """Return the prompt with an instruction (None = the video alone) and so many media tokens."""
        key = (text, n_media_tokens)
        if key not in self._made:
            self._made[key] = self._build(text, n_media_tokens)
        return self._made[key]

    def _expand(self, rendered: str, n_media_tokens: int) -> str:
        """Return the rendered template with its one media token repeated."""
        if rendered.count(self._media_token) != 1:
            raise CheckpointError(
                f"The checkpoint's chat template gives {rendered.count(self._media_token)} tokens "
                f"{self._media_token} for one video, but must give one."
            )
        return rendered.replace(self._media_token, self._media_token * n_media_tokens)

    def _build(self, text: str | None, n_media_tokens: int) -> Prompt:
        rendered = self._expand(self._render(_message(text, self._order)), n_media_tokens)
        encoded = self._tokenizer(rendered, return_offsets_mapping=True)
        ids = tuple(encoded["input_ids"])
        media = tuple(i for i, token in enumerate(ids) if token == self._media_id)
        if text is None:
            return Prompt(ids, media, ())
        without = self._expand(self._render(_message(None, self._order)), n_media_tokens)
        start, end = find_instruction(rendered, without, text)
        instruction = tuple(
            i for i, (left, right) in enumerate(encoded["offset_mapping"]) if left < end and right > start
        )
        return Prompt(ids, media, instruction)
