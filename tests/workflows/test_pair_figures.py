"""Heat maps and Venn diagrams hold the planted parts."""

from pathlib import Path

import pytest
from chart_samples import PEOPLE, Outputs

from bids_mllm.report.figures import FigureData
from bids_mllm.workflows.pair_figures import partition_figures

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


def test_without_tables_there_are_no_pairs(tmp_path: Path) -> None:
    assert partition_figures(Outputs(tmp_path).results) == []
