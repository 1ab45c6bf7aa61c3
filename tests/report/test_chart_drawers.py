"""What the drawers of the charts draw: one artist for each number, and areas in proportion."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle

from bids_mllm.report.bar_figures import CLASS_STYLES, FLAGS, draw_choice_bars, draw_model_bars
from bids_mllm.report.content import Cell
from bids_mllm.report.coupling_figures import draw_coupling
from bids_mllm.report.figures import DRAWERS, FigureData
from bids_mllm.report.layer_figures import draw_layer_curves, draw_layer_heat_map
from bids_mllm.report.partition_figures import draw_shared_heat_map, draw_venn, overlap, venn_circles
from bids_mllm.report.style import CHART_STYLE

LONG = "a model with a name that is longer than any line has room for"
MODELS = {LONG: "instruction-tuned", "tvlt": "multimodal", "vjepa": "unimodal", "$motion$": "low-level"}


def _figure(kind: str, rows: Sequence[dict[str, Cell]], **options: object) -> FigureData:
    return FigureData(kind, "name", "A title", "Words.", "", tuple(rows), options)


def _bars(*, starred: bool = True, measures: Sequence[str] = ("r",)) -> FigureData:
    rows: list[dict[str, Cell]] = []
    for measure in measures:
        for number, (model, name) in enumerate(MODELS.items()):
            value, first = 0.4 - 0.1 * number, starred and measure == "r" and number == 0
            facts: dict[str, Cell] = {"measure": measure, "model": model, "class": name}
            flags: dict[str, Cell] = {f"better_than_{flag}": int(first) for flag in FLAGS}
            rows.append({**facts, "participant": None, "value": value, "sem": 0.02, "n_participants": 3, **flags})
            for person in ("01", "02", "03"):
                dot: dict[str, Cell] = {"participant": person, "value": value + 0.01 * int(person), "sem": None}
                rows.append({**facts, **dot, "n_participants": None, **dict.fromkeys(flags)})
    return _figure("model-bars", rows, labels={measure: f"label of {measure}" for measure in measures})


def _boxes(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def _marked(axes: Axes, gid: str) -> list[Line2D]:
    return [line for line in axes.lines if line.get_gid() == gid]


def _inside(figure: Figure) -> None:
    """Every text lies within the figure, and no two tick labels of an axis overlap."""
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.texts]
    for axes in (own for own in figure.axes if own.get_visible()):
        boxes += [text.get_window_extent() for text in (*axes.texts, axes.title) if text.get_text()]
        for place, axis in enumerate((axes.xaxis, axes.yaxis) if axes.axison else ()):
            low, high = sorted(axis.get_view_interval())
            ticks = [label for label in axis.get_ticklabels() if low <= label.get_position()[place] <= high]
            labels = [label.get_window_extent() for label in ticks if label.get_text() and label.get_visible()]
            assert not any(one.overlaps(other) for one, other in pairwise(labels))
            boxes += labels
    whole = figure.bbox
    for box in boxes:
        assert whole.x0 - 1 <= box.x0
        assert whole.y0 - 1 <= box.y0
        assert box.x1 <= whole.x1 + 1
        assert box.y1 <= whole.y1 + 1


@pytest.fixture(autouse=True)
def _style():
    with rc_context(dict(CHART_STYLE)):
        yield


def test_one_bar_a_model_with_its_dots_and_flags() -> None:
    (axes,) = draw_model_bars(_bars()).axes
    assert [round(box.get_width(), 6) for box in _boxes(axes)] == [0.4, 0.3, 0.2, 0.1]
    assert len(_marked(axes, "participants")[0].get_xdata()) == 12
    for flag, (marker, _) in FLAGS.items():
        (line,) = _marked(axes, f"flag-{flag}")
        assert (list(line.get_ydata()), line.get_marker()) == ([0], marker)
        assert min(line.get_xdata()) > 0.43
    assert len(axes.containers) == 8


def test_without_flags_no_symbol_is_drawn_nor_named() -> None:
    figure = draw_model_bars(_bars(starred=False))
    assert not [line for line in figure.axes[0].lines if str(line.get_gid()).startswith("flag")]
    names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert names == [*MODELS.values(), "participant", "SEM over participants"]


def test_classes_differ_in_colour_and_hatch() -> None:
    (axes,) = draw_model_bars(_bars()).axes
    styles = {(box.get_facecolor(), box.get_hatch()) for box in _boxes(axes)}
    assert len(styles) == 4
    assert len(set(CLASS_STYLES.values())) == len({hatch for _, hatch in CLASS_STYLES.values()}) == len(CLASS_STYLES)


def test_measures_stand_side_by_side_and_names_stay_inside() -> None:
    figure = draw_model_bars(_bars(measures=("r", "r_normalized")))
    assert [axes.get_xlabel() for axes in figure.axes] == ["label of r", "label of r_normalized"]
    assert figure.axes[0].get_yticklabels()[0].get_text().replace("\n", " ") == LONG
    _inside(figure)


def _choices(n: int, *, ordered: bool) -> FigureData:
    rows: list[dict[str, Cell]] = [
        {"roi": roi, "kind": "set", "value": str(value), "share": 1 / n, "n_participants": 2}
        for roi in ("visual", "language")
        for value in range(n)
    ]
    return _figure("choice-bars", rows, ordered=ordered, what="layer", label="share", labels={"0": "first"})


@pytest.mark.parametrize("n", [3, 14, 31])
def test_choices_fill_each_bar_to_the_end(n: int) -> None:
    figure = draw_choice_bars(_choices(n, ordered=n == 31))
    boxes = _boxes(figure.axes[0])
    assert len(boxes) == 2 * n
    assert boxes[n - 1].get_x() + boxes[n - 1].get_width() == pytest.approx(1.0)
    assert len({(box.get_facecolor(), box.get_hatch()) for box in boxes}) == n
    assert len(figure.legends[0].get_texts()) <= 16
    _inside(figure)


def test_choices_name_the_parts_that_are_wide_enough() -> None:
    assert [text.get_text() for text in draw_choice_bars(_choices(3, ordered=True)).axes[0].texts] == [
        "first", "1", "2", "first", "1", "2",
    ]  # fmt: skip
    assert not draw_choice_bars(_choices(100, ordered=True)).axes[0].texts


def _layers(n_rois: int, n_layers: int) -> FigureData:
    rows: list[dict[str, Cell]] = [
        {"roi": f"region number {roi}", "layer": layer, "r": -0.1 if layer == 0 else 0.3 - 0.01 * abs(layer - 2),
         "r_sem": 0.01}
        for roi in range(n_rois) for layer in range(n_layers)
    ]  # fmt: skip
    return _figure("layer-curves", rows, label="mean r")


@pytest.mark.parametrize(("n_rois", "n_layers"), [(1, 4), (19, 30)])
def test_each_region_has_a_curve_with_its_highest_layer(n_rois: int, n_layers: int) -> None:
    figure = draw_layer_curves(_layers(n_rois, n_layers))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == n_rois
    for axes in panels:
        (curve,), (highest,) = _marked(axes, "curve"), _marked(axes, "highest")
        assert len(curve.get_xdata()) == n_layers
        assert list(highest.get_xdata()) == [2]
    _inside(figure)


@pytest.mark.parametrize(("n_rois", "n_layers"), [(1, 4), (40, 31)])
def test_the_heat_map_has_a_cell_and_a_ring_for_each(n_rois: int, n_layers: int) -> None:
    figure = draw_layer_heat_map(_layers(n_rois, n_layers))
    axes = figure.axes[0]
    (mesh,) = (item for item in axes.collections if isinstance(item, QuadMesh))
    assert np.shape(mesh.get_array()) == (n_rois, n_layers)
    (rings,) = _marked(axes, "highest")
    assert (list(rings.get_xdata()), list(rings.get_ydata())) == ([2] * n_rois, list(range(n_rois)))
    _inside(figure)


def _pair(a: str, b: str, parts: tuple[float, float, float], *, roi: str = "visual") -> dict[str, Cell]:
    drawn = [max(part, 0.0) for part in parts]
    percent = 100 * drawn[1] / sum(drawn) if sum(drawn) else None
    return {
        "roi": roi, "measure": "R2", "condition_a": a, "condition_b": b, "unique_a": parts[0], "unique_b": parts[2],
        "shared": parts[1], "joint": sum(parts), "shared_percent": percent, "pair": "median",
    }  # fmt: skip


def test_the_triangle_has_one_number_a_pair() -> None:
    names = [f"generated{key}" for key in "ABCDEFGHIJKLM"]
    rows = [_pair(a, b, (0.02, 0.02, 0.04)) for i, a in enumerate(names) for b in names[i + 1 :]]
    labels = {name: f"key {name[-1]}" for name in names}
    figure = draw_shared_heat_map(_figure("shared-heat-map", rows, conditions=names, labels=labels, label="%"))
    assert [text.get_text() for text in figure.axes[0].texts] == ["25"] * 78
    _inside(figure)


def test_colours_of_percents_beyond_0_and_100_are_said_to_end() -> None:
    names, labels = ["a", "b", "c"], {"a": "AR", "b": "VU", "c": "NU"}
    rows = [
        {**_pair("a", "b", (0.02, 0.02, 0.04)), "shared_percent": -33.3},
        {**_pair("a", "c", (0.02, 0.02, 0.04)), "shared_percent": 120.4},
    ]
    for own, extend in ((rows, "both"), (rows[:1], "min"), (rows[1:], "max"), ([], "neither")):
        figure = draw_shared_heat_map(_figure("shared-heat-map", own, conditions=names, labels=labels, label="%"))
        assert figure.axes[0].collections[0].colorbar.extend == extend
        assert [text.get_text() for text in figure.axes[0].texts] == [f"{row['shared_percent']:.0f}" for row in own]
        _inside(figure)


def test_venn_panels_tell_the_percent_of_the_joint() -> None:
    row = {**_pair("a", "b", (-0.01, 0.03, 0.01)), "shared_percent": 100.0}
    figure = draw_venn(_figure("venn", [row], labels={"a": "AR", "b": "VU"}))
    assert figure.axes[0].get_title(loc="left").endswith("joint R2 0.0300, 100 % shared")
    assert figure.axes[0].texts[-1].get_text() == "both 75 %"
    _inside(figure)


@pytest.mark.parametrize(
    "parts", [(0.2, 0.5, 0.3), (0.7, 0.05, 0.25), (0.0, 0.4, 0.6), (0.5, 0.0, 0.5), (0.0, 1.0, 0.0)]
)
def test_venn_areas_are_the_parts(parts: tuple[float, float, float]) -> None:
    radius_a, radius_b, distance = venn_circles(*parts)
    x, y = np.meshgrid(np.linspace(-2, 3, 2501), np.linspace(-2, 2, 2001))
    in_a, in_b = np.hypot(x, y) < radius_a, np.hypot(x - distance, y) < radius_b
    pixel = (5 / 2500) * (4 / 2000)
    found = [pixel * np.count_nonzero(area) for area in (in_a & ~in_b, in_a & in_b, in_b & ~in_a)]
    assert found == pytest.approx(list(parts), abs=2e-3)


def test_overlap_against_the_closed_form_of_equal_circles() -> None:
    assert overlap(1.0, 1.0, 1.0) == pytest.approx(2 * math.pi / 3 - math.sqrt(3) / 2)
    assert (overlap(1.0, 2.0, 3.0), overlap(1.0, 2.0, 1.0)) == (0.0, pytest.approx(math.pi))


def test_venn_circles_are_drawn_in_proportion_and_parts_below_0_as_0() -> None:
    rows = [
        _pair("a", "b", (0.02, 0.02, 0.06)), _pair("a", "c", (-0.01, 0.03, 0.01)), _pair("b", "c", (-0.1, -0.1, -0.1)),
    ]  # fmt: skip
    figure = draw_venn(_figure("venn", rows, labels={"a": "AR", "b": "VU", "c": "NU"}))
    areas = []
    for axes in figure.axes[:2]:
        first, second = (patch for patch in axes.patches if isinstance(patch, Circle))
        areas.append((second.get_radius() / first.get_radius()) ** 2)
    assert areas == pytest.approx([2.0, 4 / 3])
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert texts == [
        ["AR\nalone 20 %", "VU\nalone 60 %", "both 20 %"],
        ["AR\nalone 0 %", "NU\nalone 25 %", "both 75 %"],
        ["nothing explained"],
    ]
    assert not [patch for patch in figure.axes[2].patches if isinstance(patch, Circle)]
    _inside(figure)


def test_a_scatter_has_its_points_and_the_line_of_its_options() -> None:
    rows: list[dict[str, Cell]] = [{"panel": "one", "point": str(i), "x": float(i), "y": 2.0 * i} for i in range(5)]
    panel = {
        "name": "one", "title": "r = 1", "x_label": "x", "y_label": "y", "slope": 2.0, "intercept": 0.0, "r": 1.0,
    }  # fmt: skip
    figure = draw_coupling(_figure("coupling-scatter", rows, panels=[panel]))
    (points,), (line,) = _marked(figure.axes[0], "points"), _marked(figure.axes[0], "line")
    assert list(points.get_ydata()) == [0, 2, 4, 6, 8]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0, 4], [0, 8])
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "1", "2", "3", "4"]


def test_each_kind_has_its_drawer() -> None:
    assert {
        "model-bars", "choice-bars", "layer-curves", "layer-heat-map", "shared-heat-map", "venn", "coupling-scatter",
    } <= set(DRAWERS)  # fmt: skip
