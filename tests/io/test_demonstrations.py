"""The user's file of demonstrations: what it must hold, and one sentence for whatever is wrong in it."""

import hashlib
from pathlib import Path

import pytest

from bids_mllm.exceptions import StimulusError, UsageError
from bids_mllm.io.demonstrations import read_demonstrations
from bids_mllm.simulate.films import write_film

GOOD = {"file": '"films/a.mkv"', "start": "1.5", "end": "4", "instruction": '"What happens?"', "answer": '"A dance."'}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a film of six seconds."""
    folder = tmp_path_factory.mktemp("shown")
    (folder / "films").mkdir()
    write_film(folder / "films/a.mkv", seconds=6.0, seed=1)
    return folder


def write(folder: Path, *tables: dict[str, str]) -> Path:
    path = folder / "demonstrations.toml"
    lines = [f"{name} = {value}" for table in tables for name, value in [("[[demonstration]]", ""), *table.items()]]
    path.write_text("\n".join(line.removesuffix(" = ") for line in lines), encoding="utf-8")
    return path


def test_the_demonstrations_come_in_the_order_of_the_file(folder: Path) -> None:
    other = GOOD | {"start": "0", "end": "6.0", "answer": '"Zwölf Männer."'}
    first, second = read_demonstrations(write(folder, GOOD, other))
    assert first.stimulus.path == folder / "films/a.mkv"
    assert first.stimulus.sha256 == hashlib.sha256((folder / "films/a.mkv").read_bytes()).hexdigest()
    clip = first.clip
    assert (clip.stim_file, clip.start, clip.end) == ("films/a.mkv", 1.5, 4.0)
    assert first.stimulus.stim_file == clip.stim_file
    assert (first.instruction, first.answer) == ("What happens?", "A dance.")
    assert (second.clip.start, second.clip.end, second.answer) == (0.0, 6.0, "Zwölf Männer.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[({name: None}, r"must have the fields file, instruction, answer, start, end and no others") for name in GOOD],
        ({"question": '"x"'}, r"must have the fields .* and no others"),
        ({"file": "3"}, r"has no text in the field 'file'"),
        ({"instruction": '" "'}, r"has no text in the field 'instruction'"),
        ({"answer": '""'}, r"has no text in the field 'answer'"),
        ({"start": '"1"'}, r"has start '1' and end 4, but 0 <= start < end in seconds is needed"),
        ({"start": "true"}, r"has start True and end 4"),
        ({"start": "-1"}, r"has start -1 and end 4"),
        ({"start": "4"}, r"has start 4 and end 4"),
        ({"end": "1"}, r"has start 1\.5 and end 1"),
        ({"end": "nan"}, r"has start 1\.5 and end nan"),
        ({"end": "inf"}, r"ends at inf s, but films/a\.mkv lasts 6\.0. s; give an earlier end"),
        ({"end": "6.5"}, r"ends at 6\.5 s, but films/a\.mkv lasts 6\.0. s; give an earlier end"),
    ],
)
def test_whatever_is_wrong_in_a_table_is_said_with_its_number(
    folder: Path, change: dict[str, str | None], message: str
) -> None:
    wrong = {name: value for name, value in (GOOD | change).items() if value is not None}
    path = write(folder, GOOD, wrong)
    with pytest.raises(UsageError, match=rf"^Demonstration 2 of {path} {message}") as caught:
        read_demonstrations(path)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"holds no \[\[demonstration\]\] table; add at least one"),
        ("demonstration = []", r"holds no \[\[demonstration\]\] table"),
        ("[demonstration]\nfile = 'a'", r"holds no \[\[demonstration\]\] table"),
        ("demonstration = ['a']", r"must have the fields"),
        ("[[demonstration]\n", r"cannot be read as TOML"),
    ],
)
def test_a_file_without_tables_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "demonstrations.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read_demonstrations(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "latin"])
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "demonstrations.toml"
    if kind == "folder":
        path.mkdir()
    elif kind == "latin":
        path.write_bytes("answer = 'ü'".encode("latin-1"))
    with pytest.raises(UsageError, match=rf"^The demonstrations file {path} cannot be read as TOML"):
        read_demonstrations(path)


def test_a_film_that_is_missing_or_none_is_named(folder: Path) -> None:
    with pytest.raises(StimulusError, match=r"films/b\.mkv"):
        read_demonstrations(write(folder, GOOD | {"file": '"films/b.mkv"'}))
    (folder / "text.mkv").write_text("no film")
    with pytest.raises(StimulusError, match=r"text\.mkv"):
        read_demonstrations(write(folder, GOOD | {"file": '"text.mkv"'}))
