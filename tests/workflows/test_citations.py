"""The methods text counts the participants of all calls that were made with the same settings."""

import re

import pytest

from bids_mllm.cli.parser import parse_settings
from bids_mllm.workflows.citations import write_citations
from bids_mllm.workflows.plan import plan_study


@pytest.fixture
def write(study, tmp_path):
    """Write the text of a call for participants and say that they are done; return what it says of the data."""

    def written(*labels, done=True, options=()):
        words = [study, tmp_path, "participant", "--participant-label", *labels, "-w", tmp_path / "w", *options]
        write_citations(plan_study(parse_settings([str(word) for word in words])))
        for label in labels if done else ():
            (tmp_path / f"sub-{label}/func").mkdir(parents=True, exist_ok=True)
        text = " ".join((tmp_path / "logs/CITATION.md").read_text("utf-8").split())
        return re.search(r"to (\d+) functional runs of (\d+) participants? \((.*?)\)", text).groups()

    return written


# The simulated study has five runs a participant: one film is shown twice.
ONE, BOTH = ("5", "1", "sub-02"), ("10", "2", "sub-01 and sub-02")


def test_one_call_for_both_and_a_call_for_each_say_the_same(write, tmp_path):
    assert write("01", "02") == BOTH
    for path in tmp_path.glob("logs/*"):
        path.unlink()
    write("01")
    assert write("02") == BOTH
    assert write("02") == BOTH  # again, and nobody is counted twice
    assert "sub-01 and sub-02" in " ".join((tmp_path / "logs/CITATION.tex").read_text("utf-8").split())


def test_participants_without_results_do_not_count(write):
    write("01", done=False)
    assert write("02") == ONE


def test_participants_of_other_settings_do_not_count(write):
    write("01", options=("--delays", "2", "3"))
    assert write("02") == ONE


def test_a_text_alone_leaves_no_record(write, tmp_path):
    write("01", options=("--boilerplate-only",))
    assert not (tmp_path / "logs/methods.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"01": 3}', '{"01": {"settings": "x"}}'])
def test_a_damaged_record_is_no_hindrance(write, tmp_path, content):
    write("01")
    (tmp_path / "logs/methods.json").write_text(content)
    assert write("02") == ONE
