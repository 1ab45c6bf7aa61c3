"""Which colour a place of a brain map has, and what the key says of it."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from bids_mllm.report import brain_colours
from bids_mllm.report.style import score_colours

NAN = np.nan


def colours(paint):
    return [None if rank < 0 else tuple(np.round(paint.palette[int(rank)], 3)) for rank in paint.ranks]


def texts_of(paint):
    figure = Figure(figsize=(10, 5))
    paint.add_key(figure)
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()], figure


def rounded(colour):
    return tuple(np.round(to_rgb(colour), 3))


def test_scores_are_coloured_above_0_up_to_the_top():
    paint = brain_colours.score_paint(np.array([NAN, -0.2, 0.0, 0.5, 0.9]), top=0.5, label="r")
    highest = tuple(np.round(score_colours()(1.0)[:3], 3))
    assert colours(paint) == [None, None, None, highest, highest]


def test_significant_scores_are_coloured_and_others_grey():
    values, significant = np.array([NAN, -0.2, 0.2, 0.2, 0.5]), np.array([False, True, False, True, False])
    paint = brain_colours.thresholded_paint(values, significant, top=0.5, label="r")
    nothing, below, grey, coloured, dark = colours(paint)
    assert nothing is below is None
    assert max(np.ptp(grey), np.ptp(dark)) < 0.01
    assert dark[0] < grey[0]
    assert np.ptp(coloured) > 0.3
    # Of places behind each other in a glass brain, the significant one is seen.
    assert paint.ranks[3] > paint.ranks[4]


def test_noise_has_no_colour_where_nothing_is_significant():
    values = np.random.default_rng(0).normal(0, 0.1, 500)
    paint = brain_colours.thresholded_paint(values, np.zeros(500, dtype=bool), top=0.3, label="r")
    shown = paint.ranks[paint.ranks >= 0].astype(int)
    assert (paint.ranks >= 0).sum() == (values > 0).sum()
    assert np.ptp(paint.palette[shown], axis=1).max() < 0.01


def test_a_contrast_is_blue_orange_dark_or_pale():
    first, second = np.array([0.4, 0.0, 0.4, 1e-4, -0.1, NAN, 0.4]), np.array([-0.3, 0.4, 0.4, 1e-4, 0.0, 0.4, NAN])
    paint = brain_colours.contrast_paint(first, second, top=0.4, names=("one", "two"), label="r")
    pale, blue, orange, dark = map(rounded, brain_colours.CORNERS)
    assert colours(paint) == [blue, orange, dark, pale, None, orange, blue]


def test_the_key_of_a_contrast_has_the_first_model_to_the_right_and_the_second_upwards():
    paint = brain_colours.contrast_paint(np.array([0.4]), np.array([0.1]), top=0.4, names=("one", "two"), label="r")
    _, figure = texts_of(paint)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("r of\none", "r of\ntwo")
    square = axes.images[0].get_array()
    assert axes.images[0].origin == "lower"
    corners = [tuple(np.round(square[row, column], 3)) for row in (0, -1) for column in (0, -1)]
    assert corners == [rounded(corner) for corner in brain_colours.CORNERS]


def test_the_key_of_categories_counts_places():
    values = np.array([0.0, 0, 0, 2, NAN, -1])
    paint = brain_colours.category_paint(values, ["AR", "VU", "VC"], label="instruction")
    texts, _ = texts_of(paint)
    assert texts == ["AR: 3 (75 %)", "VU: 0 (0 %)", "VC: 1 (25 %)"]
    assert len({colour for colour in colours(paint) if colour}) == 2
    assert colours(paint)[4:] == [None, None]


@pytest.mark.parametrize("n", [2, 5, 13, 14, 15, 20, 26, 27])
def test_thirteen_instructions_in_two_ways_and_the_film_have_colours_of_their_own(n):
    paint = brain_colours.category_paint(np.arange(float(n)), [str(one) for one in range(n)], label="condition")
    assert len(set(colours(paint))) == n
    _, figure = texts_of(paint)
    in_key = [tuple(np.round(patch.get_facecolor()[:3], 3)) for patch in figure.legends[0].get_patches()]
    assert in_key == colours(paint)


def test_colours_that_would_repeat_are_half_white():
    paint = brain_colours.category_paint(np.arange(27.0), [str(one) for one in range(27)], label="condition")
    np.testing.assert_allclose(paint.palette[13:26], 0.5 + 0.5 * paint.palette[:13], atol=0.003)
    assert tuple(np.round(paint.palette[26], 3)) == rounded("#1A1A1A")


def test_a_position_without_a_name_is_refused():
    with pytest.raises(ValueError, match="The map holds 3, but there are only 2 names"):
        brain_colours.category_paint(np.array([0.0, 3.0]), ["a", "b"], label="x")


def test_layers_have_an_ordered_scale_with_their_numbers():
    paint = brain_colours.layer_paint(np.array([0.0, 2.0, NAN]), [0, 4, 8], label="layer")
    assert colours(paint)[2] is None
    assert np.mean(colours(paint)[0]) < np.mean(colours(paint)[1])
    _, figure = texts_of(paint)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "4", "8"]


def test_many_regions_have_no_list_but_are_counted():
    texts, figure = texts_of(brain_colours.label_paint(np.array([0.0, 1.0]), ["V1", "V2"], label="atlas"))
    assert texts == ["V1", "V2"]
    many = [str(number) for number in range(brain_colours.MAX_KEY_NAMES + 1)]
    texts, figure = texts_of(brain_colours.label_paint(np.array([0.0, 40.0]), many, label="atlas"))
    assert not texts
    assert "41 regions" in figure.texts[0].get_text()


def test_one_colour_and_no_places_can_be_drawn():
    colouring = brain_colours.category_paint(np.array([0.0]), ["only"], label="x").colouring
    assert colouring.ranks(np.array([0.0])).tolist() == [0]
    assert brain_colours.places_in_palette(np.array([]), np.array([0, -1])).tolist() == [-1, -1]
