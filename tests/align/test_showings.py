"""From rows to playbacks: the four readings of a stimulus file, by hand."""

from dataclasses import dataclass

import pytest

from bids_mllm.align.showings import showings_from_rows
from bids_mllm.exceptions import InputDataError
from bids_mllm.records import Showing


@dataclass(frozen=True)
class Row:
    stim_file: str
    onset: float
    duration: float | None
    media_onset: float | None = None


def showings(*rows: Row, **media: float | None):
    durations = {f"{name}.wav": seconds for name, seconds in media.items()}
    return showings_from_rows(rows, durations, source="task-x_events.tsv")


def test_no_rows():
    assert showings() == ((), "")


def test_one_row_plays_once_whatever_its_duration():
    assert showings(Row("a.wav", 3.0, 5.0), a=100.0) == ((Showing("a.wav", 3.0, 0.0, 5.0),), "one row")
    assert showings(Row("a.wav", -3.0, None)) == ((Showing("a.wav", -3.0, 0.0, None),), "one row")


def test_music_and_story_of_narratives_are_one_continuous_playback():
    made, rule = showings(Row("a.wav", 1.5, 13.0), Row("a.wav", 16.5, 422.0), a=437.0)
    assert made == (Showing("a.wav", 1.5, 0.0, 437.0),)
    assert rule == "one continuous playback"


def test_four_rows_with_gaps_are_one_playback_to_the_last_end():
    rows = [Row("a.wav", at, length) for at, length in ((0, 10), (12, 200), (215, 50), (270, 30))]
    assert showings(*rows, a=300.5)[0] == (Showing("a.wav", 0, 0.0, 300.0),)


def test_a_row_within_another_does_not_shorten_the_playback():
    made, _ = showings(Row("a.wav", 0.0, 100.0), Row("a.wav", 40.0, 5.0), a=100.0)
    assert made == (Showing("a.wav", 0.0, 0.0, 100.0),)


def test_rows_as_long_as_the_media_are_separate_showings():
    made, rule = showings(Row("a.wav", 5.0, 60.0), Row("a.wav", 70.0, 60.0), a=60.2)
    assert made == (Showing("a.wav", 5.0, 0.0, 60.0), Showing("a.wav", 70.0, 0.0, 60.0))
    assert rule == "separate showings"


@pytest.mark.parametrize("seconds", [0.3, 0.5, 1.0, 2.0])
def test_short_sounds_shown_back_to_back_stay_separate(seconds):
    made, rule = showings(Row("a.wav", 0.0, seconds), Row("a.wav", seconds, seconds), a=seconds)
    assert (len(made), rule) == (2, "separate showings")


def test_a_column_says_where_in_the_media_each_row_starts():
    made, rule = showings(Row("a.wav", 0.0, 10.0, 30.0), Row("a.wav", 12.0, 10.0, 0.0), a=10.0)
    assert made == (Showing("a.wav", 0.0, 30.0, 10.0), Showing("a.wav", 12.0, 0.0, 10.0))
    assert rule == "explicit column"


def test_ambiguous_rows_name_both_readings():
    with pytest.raises(InputDataError) as caught:
        showings(Row("a.wav", 0.0, 30.0), Row("a.wav", 50.0, 40.0), a=200.0)
    text = str(caught.value)
    expected = ["task-x_events.tsv", "a.wav", "2 rows", "stim_onset", "--stimulus-map"]
    expected += [
        "continuous playback it would last 90.00 s",
        "separate showings 30, 40 s",
        "media lasts 200.00 s",
    ]
    for words in expected:
        assert words in text


def test_rows_of_unknown_duration_are_ambiguous_though_their_onsets_fit():
    with pytest.raises(InputDataError, match=r"separate showings 100, n/a s"):
        showings(Row("a.wav", 0.0, 100.0), Row("a.wav", 100.0, None), a=100.0)


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [
        ([(1.5, 13.0), (16.5, None)], None),
        ([(1.5, None), (16.5, None)], None),
        ([(1.5, None), (16.5, 422.0)], 437.0),
        ([(1.5, None), (16.5, None), (200.0, 10.0), (438.0, 0.5)], 437.0),
        ([(1.5, 13.0), (16.5, 400.0), (420.0, None), (430.0, None)], None),
    ],
)
def test_music_and_story_whose_durations_are_not_all_given(rows, seconds):
    made, rule = showings(*[Row("a.wav", at, length) for at, length in rows], a=437.0)
    assert made == (Showing("a.wav", 1.5, 0.0, seconds),)
    assert rule == "one continuous playback"


@pytest.mark.parametrize(
    "rows", [[(0.0, None), (437.0, None)], [(0.0, 437.0), (450.0, None)], [(0.0, 500.0), (20.0, None)]]
)
def test_rows_that_lie_beyond_the_media_are_not_one_playback_of_unknown_duration(rows):
    with pytest.raises(InputDataError, match=r"names a.wav in 2 rows"):
        showings(*[Row("a.wav", at, length) for at, length in rows], a=437.0)


def test_a_media_of_unknown_duration_is_ambiguous():
    with pytest.raises(InputDataError, match=r"media lasts unknown"):
        showings(Row("a.wav", 0.0, 10.0), Row("a.wav", 10.0, 10.0), a=None)


def test_several_files_in_one_run_keep_their_order_and_rules():
    made, rule = showings(Row("b.wav", 0.0, 10.0), Row("a.wav", 20.0, 50.0), Row("b.wav", 80.0, 10.0), a=50.0, b=10.0)
    assert [(s.stim_file, s.run_onset) for s in made] == [("b.wav", 0.0), ("a.wav", 20.0), ("b.wav", 80.0)]
    assert rule == "one row and separate showings"
