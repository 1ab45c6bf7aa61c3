"""The instruction lists: the built-in one, a user's, and the choice."""

import hashlib
from pathlib import Path

import pytest

from bids_mllm.exceptions import UsageError
from bids_mllm.features.instructions import GROUPS, choose_instructions, load_instructions

KEYS = ("AR", "VU", "VQ", "VC", "OSR", "CR", "SU", "TO", "VR", "NU", "ESA", "GA", "LE")
ENTRY = '[[instruction]]\nkey = "{key}"\nname = "n"\ntext = "{text}"\ngroup = "language"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "instructions.toml"
    path.write_text(text)
    return path


def test_the_thirteen_built_in_instructions() -> None:
    instructions = load_instructions()
    assert tuple(instruction.key for instruction in instructions) == KEYS
    assert {instruction.group for instruction in instructions} == set(GROUPS)
    assert load_instructions(media="both") == load_instructions(media="video") == instructions
    by_key = {instruction.key: instruction.text for instruction in instructions}
    assert by_key["AR"] == "What are the main events captured in the video?"
    assert by_key["SU"] == "Where is this video taken from? What place/landmark is shown in the video?"
    assert by_key["GA"].startswith("Describe changes in characters' appearances throughout the video, ")


def test_the_five_built_in_audio_instructions() -> None:
    instructions = load_instructions(media="audio")
    assert [(i.key, i.name, i.text) for i in instructions] == [
        ("AU", "Audio Understanding", "Can you describe the audio content in detail?"),
        ("AC", "Audio Comprehension", "What are people doing in the audio?"),
        ("ACap", "Audio Captioning", "Caption the audio in a short sentence."),
        ("SED", "Sound Event Detection", "Identify and label the sound events occurring in the audio."),
        ("SI", "Speaker Identification", "Who is speaking in the audio?"),
    ]
    both = (*instructions, *load_instructions())
    assert len({i.key.lower() for i in both}) == 18, "a key says which list it is of"
    assert {i.group for i in both} == set(GROUPS)


def test_there_is_no_built_in_list_for_other_media() -> None:
    with pytest.raises(ValueError, match="media is 'table', but must be one of 'audio', 'both', 'video'"):
        load_instructions(media="table")


def test_a_changed_text_needs_a_changed_test() -> None:
    """A changed text changes every feature, so the texts as a whole are pinned."""
    texts = "\n".join(instruction.text for instruction in load_instructions())
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "e58db4f128434829"


def test_a_users_file_in_its_own_order(tmp_path: Path) -> None:
    path = write(tmp_path, ENTRY.format(key="B1", text="b") + ENTRY.format(key="A1", text=" a "))
    found = load_instructions(path)
    assert [(instruction.key, instruction.text) for instruction in found] == [("B1", "b"), ("A1", "a")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[instruction]\n", "not valid TOML"),
        ("", r"holds no \[\[instruction\]\]"),
        ('[instruction]\nkey = "A"\n', r"holds no \[\[instruction\]\]"),
        ('[[instruction]]\nkey = "A"\nname = "n"\ngroup = "language"\n', "Instruction 1 .* field 'text'"),
        (ENTRY.format(key="A", text=" "), "field 'text'"),
        (ENTRY.format(key="A-1", text="a"), "key 'A-1'"),
        (ENTRY.format(key="A", text="a").replace("language", "musical"), "group 'musical'"),
        (ENTRY.format(key="A", text="a") + "order = 1\n", "unknown field 'order'"),
        (ENTRY.format(key="A", text="a") + ENTRY.format(key="a", text="b"), "same key"),
        (ENTRY.format(key="A", text="a") + ENTRY.format(key="B", text="a"), "same text"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_instructions(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.toml cannot be read"):
        load_instructions(tmp_path / "absent.toml")


def test_choosing_in_the_order_asked_for_whatever_the_case() -> None:
    chosen = choose_instructions(load_instructions(), ["le", "AR", "LE"])
    assert [instruction.key for instruction in chosen] == ["LE", "AR"]


def test_none_chooses_all() -> None:
    assert choose_instructions(load_instructions(), None) == load_instructions()


def test_an_unknown_key_lists_the_choices() -> None:
    with pytest.raises(UsageError, match="no instruction 'XX'; choose from AR, VU"):
        choose_instructions(load_instructions(), ["AR", "XX"])


def test_the_keys_of_models_of_other_media_are_passed_over() -> None:
    video, audio = load_instructions(), load_instructions(media="audio")
    keys = ["AR", "si"]
    assert [i.key for i in choose_instructions(video, keys, elsewhere=audio)] == ["AR"]
    assert [i.key for i in choose_instructions(audio, keys, elsewhere=video)] == ["SI"]
    with pytest.raises(UsageError, match=r"'XX'; choose from AU, AC, ACap, SED, SI, AR, .*, LE"):
        choose_instructions(audio, ["SI", "XX"], elsewhere=video)
    with pytest.raises(UsageError, match="The instructions si are for models of other media; add at least one of AR"):
        choose_instructions(video, ["si"], elsewhere=audio)
