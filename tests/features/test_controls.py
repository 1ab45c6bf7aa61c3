"""Null instructions: what they are made of, and that they are the same each time."""

from collections import Counter

import pytest

from bids_mllm.exceptions import UsageError
from bids_mllm.features.controls import NULL_GROUP, NULL_KINDS, null_instructions, null_kind
from bids_mllm.features.instructions import GROUPS, load_instructions
from bids_mllm.records import Instruction

VIDEO, AUDIO = load_instructions(), load_instructions(media="audio")


def of_kind(kind: str, instructions: tuple[Instruction, ...] = VIDEO, seed: int = 0) -> tuple[Instruction, ...]:
    return null_instructions(instructions, [kind], seed)


def test_the_empty_instruction_is_one_without_text() -> None:
    (empty,) = of_kind("empty")
    assert (empty.key, empty.text, empty.group) == ("NULLempty", "", NULL_GROUP)


@pytest.mark.parametrize("instructions", [VIDEO, AUDIO], ids=["video", "audio"])
@pytest.mark.parametrize("seed", range(5))
def test_scrambled_words_are_the_same_words_in_another_order(instructions: tuple[Instruction, ...], seed: int) -> None:
    made = of_kind("scrambled", instructions, seed)
    assert [null.key for null in made] == [f"{real.key}scrambled" for real in instructions]
    for real, null in zip(instructions, made, strict=True):
        assert Counter(null.text.split()) == Counter(real.text.split())
        assert null.text.split() != real.text.split()


def test_two_words_have_one_other_order() -> None:
    for seed in range(20):
        (null,) = of_kind("scrambled", (Instruction("A", "n", "look here", "language"),), seed)
        assert null.text == "here look"


@pytest.mark.parametrize("instructions", [VIDEO, AUDIO], ids=["video", "audio"])
def test_unrelated_instructions_have_as_many_words_and_share_none_that_matters(
    instructions: tuple[Instruction, ...],
) -> None:
    made = of_kind("unrelated", instructions)
    assert [null.key for null in made] == [f"{real.key}unrelated" for real in instructions]
    assert [len(null.text.split()) for null in made] == [len(real.text.split()) for real in instructions]
    assert len({null.text for null in made}) == len(made)
    shown = {"video", "audio", "movie", "people", "person", "scene", "character", "characters", "sound", "speaking"}
    for real, null in zip(instructions, made, strict=True):
        words = {word.strip(",.?").lower() for word in null.text.split()}
        assert not words & shown
        assert not words & {w.strip(",.?").lower() for w in real.text.split()} - {"the", "in", "of", "after", "and"}


@pytest.mark.parametrize("n_words", [1, 2, 3, 4, 12, 40])
def test_an_unrelated_instruction_of_any_length(n_words: int) -> None:
    instructions = tuple(Instruction(f"K{i}", "n", f"t{i} " + "w " * (n_words - 1), "language") for i in range(16))
    made = of_kind("unrelated", instructions)
    assert {len(null.text.split()) for null in made} == {n_words}
    assert len({null.text for null in made}) == 16
    assert all(null.text.endswith(".") and not null.text.endswith(",.") for null in made)


def test_the_same_seed_gives_the_same_texts_and_another_seed_others() -> None:
    assert null_instructions(VIDEO, NULL_KINDS, 3) == null_instructions(VIDEO, NULL_KINDS, 3)
    for kind in ("scrambled", "unrelated"):
        assert of_kind(kind, seed=0) != of_kind(kind, seed=1)


def test_the_order_of_words_does_not_depend_on_the_other_instructions() -> None:
    """Else every feature of a null instruction would be extracted again when one more instruction is chosen."""
    assert of_kind("scrambled", VIDEO[4:6]) == of_kind("scrambled", VIDEO)[4:6]


def test_kinds_come_in_their_order_each_once_and_are_known_again() -> None:
    made = null_instructions(VIDEO[:2], ["scrambled", "empty", "scrambled"], 0)
    assert [null.key for null in made] == ["ARscrambled", "VUscrambled", "NULLempty"]
    assert [null_kind(null) for null in made] == ["scrambled", "scrambled", "empty"]
    assert {null.group for null in made} == {NULL_GROUP}
    assert NULL_GROUP not in GROUPS
    assert [null_kind(real) for real in VIDEO[:2]] == [None, None]
    assert all(null.key.isalnum() for null in null_instructions(VIDEO, NULL_KINDS, 0))


@pytest.mark.parametrize(
    ("instructions", "kind", "message"),
    [
        (VIDEO, "shuffled", "kind 'shuffled'; choose from empty, scrambled, unrelated"),
        ((Instruction("A", "n", "Describe", "language"),), "scrambled", "A .* has no other order of its words"),
        ((Instruction("A", "n", "more more", "language"),), "scrambled", "has no other order of its words"),
        ((Instruction("NullEmpty", "n", "a b", "language"),), "empty", "key 'NULLempty' is needed"),
        (tuple(Instruction(f"K{i}", "n", f"a b {i}", "language") for i in range(17)), "unrelated", "16 neutral texts"),
    ],
)
def test_what_cannot_be_made(instructions: tuple[Instruction, ...], kind: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        of_kind(kind, instructions)
