"""Heat maps, Venn diagrams and scatters hold the planted parts and lines."""

from pathlib import Path

import numpy as np
import pytest
from chart_samples import PEOPLE, Outputs
from scipy.stats import linregress

from bids_mllm.report.figures import FigureData
from bids_mllm.workflows.pair_figures import coupling_figures, partition_figures, regression

CONDITIONS = ("generatedAR", "generatedVU", "generatedNU", "lastAR", "lastVU")


def _parts(person: str, roi: str, a: str, b: str) -> tuple[float, float, float]:
    if {a, b} == {"generatedAR", "generatedNU"}:
        return 0.03, 0.01, 0.01 + 0.001 * PEOPLE.index(person)
    return (0.01, 0.08, 0.01) if {a, b} == {"generatedVU", "generatedNU"} else (-0.01, 0.03, 0.01)


def _of(figures: list[FigureData], kind: str, label: str) -> FigureData:
    return next(figure for figure in figures if figure.kind == kind and f"_desc-{label}_" in figure.name)


def test_pairs_hold_means_and_per_cent_with_parts_below_0_as_0(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.partition("videollm", CONDITIONS, _parts)
    figures = partition_figures(outputs.results)
    figure = _of(figures, "shared-heat-map", "generatedvisual")
    found = {(row["condition_a"], row["condition_b"]): row for row in figure.rows}
    assert found["generatedAR", "generatedNU"]["unique_b"] == pytest.approx(0.011)
    assert found["generatedAR", "generatedNU"]["shared_percent"] == pytest.approx(100 * 0.01 / 0.051)
    assert found["generatedAR", "generatedVU"]["unique_a"] == pytest.approx(-0.01)
    assert found["generatedAR", "generatedVU"]["shared_percent"] == pytest.approx(75.0)
    assert found["generatedVU", "generatedNU"]["shared_percent"] == pytest.approx(80.0)
    assert len(found) == 3
    assert "lowest 20 % (AR, NU), median 75 %, highest 80 % (VU, NU)" in figure.alt
    assert "parts below 0 are drawn as 0" in figure.caption


def test_regions_are_the_sets_and_each_pooling_stands_alone(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.partition("videollm", CONDITIONS, _parts)
    names = [figure.name.rpartition("_desc-")[2] for figure in partition_figures(outputs.results)]
    assert names == [
        "generatedwholebrain_sharedheatmap", "generatedvisual_sharedheatmap", "generated_venn",
        "lastwholebrain_sharedheatmap", "lastvisual_sharedheatmap", "last_venn",
    ]  # fmt: skip


def test_without_sets_all_places_are_drawn(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, regions={"L_V1": "area"})
    outputs.partition("videollm", CONDITIONS[:3], _parts)
    figures = partition_figures(outputs.results, participant="02")
    assert [figure.rows[0]["roi"] for figure in figures] == ["all", "all"]
    assert figures[0].name.startswith("sub-02_")


def test_venn_diagrams_show_the_pairs_that_share_least_and_most(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.partition("videollm", CONDITIONS, _parts)
    figure = _of(partition_figures(outputs.results), "venn", "generated")
    pairs = [(row["roi"], row["pair"], row["condition_a"], row["condition_b"]) for row in figure.rows]
    assert pairs[:3] == [
        ("whole brain", "least shared", "generatedAR", "generatedNU"),
        ("whole brain", "median", "generatedAR", "generatedVU"),
        ("whole brain", "most shared", "generatedVU", "generatedNU"),
    ]
    assert [pair[1:] for pair in pairs[3:]] == [pair[1:] for pair in pairs[:3]]


KEYS = ("AR", "VU", "NU", "SU")
SIMILARITY = [[1.0, 0.1, 0.2, 0.3], [0.1, 1.0, 0.4, 0.5], [0.2, 0.4, 1.0, 0.6], [0.3, 0.5, 0.6, 1.0]]


def _checked(layer: int, a: str, b: str) -> tuple[float, float]:
    return 0.1 * (layer + 1), 0.2 + 0.5 * SIMILARITY[KEYS.index(a)][KEYS.index(b)] + 0.01 * layer


def test_scatters_find_the_planted_lines(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.scores(
        dict.fromkeys(outputs.models, 0.2), by_layer=lambda *key: 0.3 - 0.02 * key[-1] + 0.01 * PEOPLE.index(key[0]),
        layers=4,
    )  # fmt: skip
    outputs.checks("videollm", {"embedding": SIMILARITY}, KEYS, _checked, layers=4)
    texts, brain = coupling_figures(outputs.results)
    (panel,) = texts.options["panels"]
    assert (panel["slope"], panel["intercept"], panel["r"]) == pytest.approx((0.5, 0.23, 1.0))
    assert panel["title"] == "generated, layer 3: r = 0.50, p = 0.25"
    assert sorted(row["point"] for row in texts.rows) == ["AR-NU", "AR-SU", "AR-VU", "NU-SU", "VU-NU", "VU-SU"]
    (panel,) = brain.options["panels"]
    assert (panel["slope"], panel["r"]) == pytest.approx((-0.2, -1.0))
    assert [(row["point"], row["x"], row["y"]) for row in brain.rows[:2]] == [
        ("0", pytest.approx(0.1), pytest.approx(0.31)), ("1", pytest.approx(0.2), pytest.approx(0.29)),
    ]  # fmt: skip
    assert "r = -1.00" in brain.caption
    assert "whole brain" in brain.caption


def test_a_line_is_that_of_the_least_squares() -> None:
    x, y = np.random.default_rng(3).standard_normal((2, 20))
    expected = linregress(x, y)
    found = regression([{"x": float(a), "y": float(b)} for a, b in zip(x, y, strict=True)])
    assert found == pytest.approx((expected.slope, expected.intercept, expected.rvalue))


@pytest.mark.parametrize("points", [[(0, 1), (1, 2)], [(1, 1), (1, 2), (1, 3)], [(1, 1), (2, 1), (3, 1)]])
def test_few_points_or_none_that_differ_have_no_line(points: list[tuple[int, int]]) -> None:
    assert regression([{"x": x, "y": y} for x, y in points]) is None


def test_without_tables_there_are_no_pairs_and_no_scatters(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    assert partition_figures(outputs.results) == coupling_figures(outputs.results) == []
    outputs.checks("videollm", {}, KEYS[:1], _checked, layers=2)
    assert coupling_figures(outputs.results) == []
