"""What pages say of checks of the clocks."""

from dataclasses import replace

import numpy as np
import pytest

from bids_mllm.outcomes import ClockCheck
from bids_mllm.report.clock_charts import NOT_CLEAR, clock_blocks, clock_warnings
from bids_mllm.report.content import Paragraph, Picture, Table
from bids_mllm.report.pages import ParticipantPage, render_participant

LAGS = np.linspace(-6, 12, 73)
CHECK = ClockCheck(
    ("sound", "pictures"),
    LAGS,
    np.stack([0.4 * np.exp(-((LAGS - 5.1) ** 2) / 8), 0.01 * np.sin(LAGS)]),
    np.array([5.1, np.nan]),
    np.array([12.0, 2.0]),
    {},
)


def test_a_good_clock_is_drawn_with_its_numbers_and_no_warning():
    blocks = clock_blocks(CHECK)
    (picture,) = (block for block in blocks if isinstance(block, Picture))
    assert "sound is highest at 5.1 s (r = 0.400)" in picture.alt
    assert "pictures does not stand out (r up to 0.010)" in picture.alt
    assert "between 3 and 8 s" in picture.alt
    text = picture.data.decode()
    assert "5.1 s" in text
    assert "peak of a haemodynamic response" in text
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows] == ["sound", "pictures"]
    assert table.columns == ("Feature", "Peak (s)", "Highest r", "Times its spread by chance")
    assert table.caption == "Peaks of the lag curves."
    assert clock_warnings(CHECK) == ()
    assert Paragraph(NOT_CLEAR.format(units="voxels")) not in blocks


def test_a_late_clock_is_warned_about_with_what_to_check():
    (sentence,) = clock_warnings(replace(CHECK, peaks=np.array([10.9, np.nan])))
    for words in ("sound", "10.9 s", "3 to 8 s", "StartTime", "onsets", "paired", "volumes were removed"):
        assert words in sentence
    assert "12.0 s or more" in clock_warnings(replace(CHECK, peaks=np.array([12.0, np.nan])))[0]
    assert "-6.0 s or less" in clock_warnings(replace(CHECK, peaks=np.array([5.0, -6.0])))[0]


def test_nothing_clear_is_said_and_not_warned_about():
    check = replace(CHECK, peaks=np.full(2, np.nan))
    assert Paragraph(NOT_CLEAR.format(units="voxels")) in clock_blocks(check)
    assert clock_warnings(check) == ()


@pytest.mark.parametrize("units", ["voxels", "vertices", "grayordinates", "parcels"])
def test_places_are_called_by_their_name_in_all_texts(units):
    blocks = clock_blocks(replace(CHECK, peaks=np.full(2, np.nan)), units=units)
    (picture,) = (block for block in blocks if isinstance(block, Picture))
    texts = [block.text for block in blocks if isinstance(block, Paragraph)]
    assert len(texts) == 2
    for text in (*texts, picture.alt, picture.caption, picture.data.decode()):
        assert units in text
        assert units == "voxels" or "voxel" not in text


def test_playbacks_that_are_too_short_are_said():
    check = ClockCheck((), LAGS, np.zeros((0, 73)), np.zeros(0), np.zeros(0), {})
    (block,) = clock_blocks(check)
    assert "cannot be checked" in block.text


def test_the_page_has_a_section_of_it():
    page = ParticipantPage("01", "1.0", "today", clock=clock_blocks(CHECK))
    html = render_participant(page)
    assert "highest at 5.1 s" in html
    assert "were not checked" in render_participant(ParticipantPage("01", "1.0", "today"))
