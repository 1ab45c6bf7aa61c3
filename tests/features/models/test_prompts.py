"""Prompts: where the instruction is, told apart from the same words of the template."""

import pytest

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.models.prompts import PromptBuilder, find_instruction
from bids_mllm.features.models.tiny import tiny_tokenizer


def builder(template: str | None = None) -> PromptBuilder:
    return PromptBuilder(tiny_tokenizer(), template, media_token="<|video_pad|>", order="media-first")


def test_the_instruction_is_found_behind_the_same_word_of_the_template() -> None:
    assert find_instruction("user\nVuser\n", "user\nV\n", "user") == (6, 10)


def test_spans_of_a_prompt() -> None:
    tokenizer = tiny_tokenizer()
    prompt = builder().build("user", 3)
    assert [tokenizer.convert_ids_to_tokens(prompt.ids[i]) for i in prompt.media] == ["<|video_pad|>"] * 3
    assert tokenizer.decode([prompt.ids[i] for i in prompt.instruction]) == "user"
    assert prompt.instruction[0] == prompt.media[-1] + 2


def test_the_video_alone_has_no_instruction() -> None:
    prompt = builder().build(None, 3)
    assert prompt.instruction == ()
    assert len(prompt.media) == 3


def test_a_template_without_a_place_for_the_video() -> None:
    with pytest.raises(CheckpointError, match=r"gives 0 tokens <\|video_pad\|>"):
        builder("{% for message in messages %}hello{% endfor %}").build("text", 3)


def test_a_prompt_is_made_once() -> None:
    made = builder()
    assert made.build("text", 3) is made.build("text", 3)
    assert made.build("text", 4) is not made.build("text", 3)
