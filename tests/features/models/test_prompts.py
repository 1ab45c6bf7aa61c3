"""Prompts: where media and instruction are in the ids, told apart from the same words of the template."""

from collections.abc import Callable
from typing import Any

import pytest

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.models.prompts import SINK_TOKENS, Prompt, PromptBuilder, find_instruction
from bids_mllm.features.models.tiny import tiny_llama_tokenizer, tiny_tokenizer

PAD = "<|video_pad|>"


def encoder(tokenizer: Any) -> Callable[[str], tuple[list[int], list[tuple[int, int]]]]:
    def encode(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = tokenizer(text, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    return encode


def template(text: str | None) -> str:
    return f"user\n{PAD} user: {text or ''}\nassistant user\n"


class Builder:
    """A builder with a real tokenizer and a template written out here."""

    def __init__(self, render: Callable[[str | None], str] = template, order: Any = "media-first") -> None:
        self.tokenizer = tiny_tokenizer()
        media_ids = [self.tokenizer.convert_tokens_to_ids(PAD)]
        self.prompts = PromptBuilder(encoder(self.tokenizer), render, media_ids=media_ids, order=order)

    def build(self, text: str | None, n_media: int = 3, shape: int | None = None) -> Prompt:
        def expand(rendered: str) -> str:
            return rendered.replace(PAD, PAD * n_media)

        return self.prompts.build(text, expand, n_media=n_media, shape=n_media if shape is None else shape)


@pytest.mark.parametrize(
    ("rendered", "without", "text", "expected"),
    [
        ("user\nVuser\n", "user\nV\n", "user", (6, 10)),
        ("a user, a user", "a user, a ", "user", (10, 14)),
        ("Look.", "", "Look.", (0, 5)),
        # Overlaps of an instruction with itself: either place leaves the same prompt.
        ("aaa", "a", "aa", (0, 2)),
    ],
)
def test_the_instruction_is_found_behind_the_same_word_of_the_template(
    rendered: str, without: str, text: str, expected: tuple[int, int]
) -> None:
    assert find_instruction(rendered, without, text) == expected


@pytest.mark.parametrize(
    ("rendered", "without"),
    [("user\n\n", "user\n\n"), ("user\nLOOK.\n", "user\n\n"), ("Look. twice: Look.", " twice: "), ("xLook.", "")],
)
def test_an_instruction_that_is_dropped_rewritten_or_doubled(rendered: str, without: str) -> None:
    with pytest.raises(CheckpointError, match=r"does not keep the instruction 'Look\.' as it is") as caught:
        find_instruction(rendered, without, "Look.")
    assert "\n" not in str(caught.value)


def test_spans_of_a_prompt() -> None:
    builder = Builder()
    prompt = builder.build("user")
    words = builder.tokenizer.convert_ids_to_tokens(prompt.ids)
    assert [words[i] for i in prompt.media] == [PAD] * 3
    assert "".join(words[i] for i in prompt.instruction).replace("Ġ", " ").strip() == "user"
    before = builder.tokenizer.decode(prompt.ids[: prompt.instruction[0]])
    assert before.strip() == f"user\n{PAD * 3} user:"
    assert prompt.text == "user"
    assert builder.tokenizer.decode(prompt.ids) == f"user\n{PAD * 3} user: user\nassistant user\n"


def test_a_tokenizer_that_joins_the_space_to_the_word() -> None:
    tokenizer = tiny_llama_tokenizer(("<video>", "<pad>"), None)
    prompts = PromptBuilder(
        encoder(tokenizer),
        lambda text: f"USER: <video>\n{text or ''} ASSISTANT:",
        media_ids=[tokenizer.convert_tokens_to_ids("<video>")],
        order="media-first",
    )
    prompt = prompts.build("video in ASSISTANT", lambda rendered: rendered, n_media=1, shape=0)
    assert prompt.ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode([prompt.ids[i] for i in prompt.instruction]).strip() == "video in ASSISTANT"
    assert prompt.instruction[-1] < len(prompt.ids) - 2


def test_the_first_tokens_are_left_out_of_means_unless_there_are_no_others() -> None:
    assert SINK_TOKENS == 4
    prompt = Prompt(tuple(range(9)), (0, 1, 2, 3, 4, 5), (3, 4, 8))
    assert prompt.media_span == (4, 5)
    assert prompt.instruction_span == (4, 8)
    assert Prompt(tuple(range(6)), (1, 2), (3,)).media_span == (1, 2)
    assert Prompt(tuple(range(6)), (1, 2), (3,)).instruction_span == (3,)


@pytest.mark.parametrize("text", [None, ""])
def test_no_instruction_and_an_empty_one_have_no_span(text: str | None) -> None:
    prompt = Builder().build(text)
    assert (prompt.instruction, prompt.instruction_span, len(prompt.media)) == ((), (), 3)
    assert prompt.text == text


def test_the_media_of_the_clip_are_the_last() -> None:
    builder = Builder(lambda text: f"{PAD * 2} shown {PAD * 2} user: {text or ''}\n")
    prompt = builder.build("Look.", n_media=2)
    assert len(prompt.media) == 2
    assert prompt.ids.count(builder.tokenizer.convert_tokens_to_ids(PAD)) == 8
    assert builder.tokenizer.decode(prompt.ids[: prompt.media[0]]).endswith(f" shown {PAD * 2}")


@pytest.mark.parametrize("n_media", [3, 0])
def test_a_template_without_a_place_for_the_media(n_media: int) -> None:
    with pytest.raises(CheckpointError, match=rf"makes 0 media tokens of a clip that has {n_media}"):
        Builder(lambda text: f"hello {text or ''}").build("text", n_media)


@pytest.mark.parametrize(
    ("asked", "found", "render"),
    [
        ("instruction-first", "media-first", template),
        ("media-first", "instruction-first", lambda text: f"user\n{text or ''}{PAD}\n"),
    ],
)
def test_a_template_of_the_other_order(asked: str, found: str, render: Callable[[str | None], str]) -> None:
    with pytest.raises(CheckpointError, match=f"order {asked} is asked for, but .* {found}"):
        Builder(render, asked).build("Look.")
    assert Builder(render, found).build("Look.").instruction


def test_a_prompt_is_made_once_for_each_shape() -> None:
    builder = Builder()
    assert builder.build("text") is builder.build("text")
    assert builder.build("text", 4) is not builder.build("text", 3)
    assert builder.build("text", 4).ids != builder.build("text", 3).ids
    assert builder.build("", 4) is not builder.build(None, 4)
