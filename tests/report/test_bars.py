"""Charts that stand for maps hold the planted numbers."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from bids_mllm.report import bars
from bids_mllm.report.bars import count_bars, histogram, ranked_bars


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the charts that are drawn."""
    axes = []
    real = bars.png_bytes

    def kept(figure, **options):
        axes.extend(figure.axes)
        return real(figure, **options)

    monkeypatch.setattr(bars, "png_bytes", kept)
    return axes


def names_of(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def widths_of(axes):
    return [bar.get_width() for bar in axes.patches]


def test_the_highest_parcels_come_first_and_nan_has_no_bar(drawn):
    png = ranked_bars(np.array([0.1, np.nan, 0.3, -0.2]), ["a", "b", "c", "d"], label="held-out r", vmax=0.4)
    assert png.startswith(b"\x89PNG")
    (axes,) = drawn
    assert names_of(axes) == ["c", "a", "d"]
    assert widths_of(axes) == pytest.approx([0.3, 0.1, -0.2])
    assert axes.get_xlim() == pytest.approx((-0.21, 0.42))
    assert axes.get_xlabel() == "held-out r"
    assert axes.get_title("left") == ""
    top, *_, bottom = [bar.get_y() for bar in axes.patches]
    assert axes.transData.transform((0, top))[1] > axes.transData.transform((0, bottom))[1]


def test_only_thirty_parcels_are_drawn_and_the_chart_says_so(drawn):
    values = np.random.default_rng(0).permutation(456) / 1000
    ranked_bars(values, [f"parcel {round(1000 * value)}" for value in values], label="r")
    (axes,) = drawn
    assert names_of(axes) == [f"parcel {number}" for number in range(455, 425, -1)]
    assert axes.get_title("left") == "The 30 highest of 456 parcels"


def test_the_title_counts_the_parcels_that_have_a_score(drawn):
    values = np.full(60, np.nan)
    values[:40] = np.arange(40) / 100
    ranked_bars(values, list(map(str, range(60))), label="r")
    assert drawn[0].get_title("left") == "The 30 highest of 40 parcels with a score"


def test_the_longest_bar_ends_before_the_frame_and_pale_bars_have_a_dark_edge(drawn):
    ranked_bars(np.array([0.1, 0.3, -0.3]), ["a", "b", "c"], label="r")
    count_bars(np.array([0, 1, 1]), ["a", "b"], label="layer", what="parcels", ordered=True)
    for axes in drawn:
        low, high = axes.get_xlim()
        assert high > 1.02 * max(widths_of(axes))
        assert low <= 1.02 * min(0, *widths_of(axes))
        assert all(bar.get_linewidth() > 0 and max(bar.get_edgecolor()[:3]) < 0.3 for bar in axes.patches)


@pytest.mark.parametrize("ordered", [True, False])
def test_counts_are_those_of_each_name(drawn, ordered):
    positions = np.array([0, 2, 2, np.nan, -1, 2, 0])
    count_bars(positions, ["AR", "NU", "SU"], label="condition", what="parcels", ordered=ordered)
    (axes,) = drawn
    assert names_of(axes) == ["AR", "NU", "SU"]
    assert widths_of(axes) == [2, 0, 3]
    assert axes.get_xlabel() == "number of parcels"


def test_a_position_beyond_the_names_is_refused():
    with pytest.raises(ValueError, match="only 2 names"):
        count_bars(np.array([0.0, 2.0]), ["AR", "NU"], label="condition", what="parcels")


def test_a_histogram_counts_every_score_once_and_no_nan(drawn):
    values = np.array([0.05, 0.05, 0.31, -0.1, np.nan])
    histogram(values, label="held-out r", what="vertices", vmax=0.2)
    (axes,) = drawn
    assert sum(bar.get_height() for bar in axes.patches) == 4
    assert axes.get_xlim() == pytest.approx((-0.1, 0.31))
    assert axes.get_ylabel() == "number of vertices"


@pytest.mark.parametrize("name", ["$a_b$", "a" * 80])
def test_names_are_not_read_as_formulas_and_long_ones_are_cut(drawn, name):
    ranked_bars(np.array([0.2]), [name], label="r")
    (text,) = names_of(drawn[0])
    assert text == r"\$a_b\$" or (len(text) == 48 and text.endswith("..."))


def test_maps_of_nan_alone_are_still_pictures_and_leave_no_open_figure():
    before = plt.get_fignums()
    nothing = np.full(3, np.nan)
    for png in (
        ranked_bars(nothing, ["a", "b", "c"], label="r"),
        count_bars(nothing, ["AR"], label="condition", what="parcels"),
        histogram(nothing, label="r", what="vertices"),
    ):
        assert png.startswith(b"\x89PNG")
    assert plt.get_fignums() == before
