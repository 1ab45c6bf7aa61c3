"""Heat maps and Venn diagrams hold the planted parts."""

from pathlib import Path

import pytest
from chart_samples import PEOPLE, Outputs

from bids_mllm.interfaces.group_tables import write_partition
from bids_mllm.io.files import read_tsv
from bids_mllm.report.figures import FigureData
from bids_mllm.workflows.pair_figures import partition_figures

CONDITIONS = ("generatedAR", "generatedVU", "generatedNU", "lastAR", "lastVU")


def _parts(person: str, roi: str, a: str, b: str) -> tuple[float, float, float]:
    if {a, b} == {"generatedAR", "generatedNU"}:
        return 0.03, 0.01, 0.01 + 0.001 * PEOPLE.index(person)
    return (0.01, 0.08, 0.01) if {a, b} == {"generatedVU", "generatedNU"} else (-0.01, 0.03, 0.01)


def _of(figures: list[FigureData], kind: str, label: str) -> FigureData:
    return next(figure for figure in figures if figure.kind == kind and f"_desc-{label}_" in figure.name)


def test_pairs_hold_means_and_per_cent_of_the_joint(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.partition("videollm", CONDITIONS, _parts)
    figures = partition_figures(outputs.results)
    figure = _of(figures, "shared-heat-map", "generatedvisual")
    found = {(row["condition_a"], row["condition_b"]): row for row in figure.rows}
    assert found["generatedAR", "generatedNU"]["unique_b"] == pytest.approx(0.011)
    assert found["generatedAR", "generatedNU"]["shared_percent"] == pytest.approx(100 * 0.01 / 0.051)
    assert found["generatedAR", "generatedVU"]["unique_a"] == pytest.approx(-0.01)
    assert found["generatedAR", "generatedVU"]["shared_percent"] == pytest.approx(100.0)
    assert found["generatedVU", "generatedNU"]["shared_percent"] == pytest.approx(80.0)
    assert len(found) == 3
    assert "lowest 20 % (AR, NU), median 80 %, highest 100 % (AR, VU)" in figure.alt
    assert "in per cent of the joint R2. A part below 0, as noise gives, stays so" in figure.caption


def test_heat_maps_show_the_percent_of_the_table(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    negative = {"generatedAR": (-0.01, 0.02, 0.01), "generatedVU": (0.03, -0.01, 0.01)}
    outputs.partition("videollm", CONDITIONS[:3], lambda _person, _roi, a, _b: negative[a])
    (path,) = write_partition(outputs.results, outputs.results[0].name.of_group())
    told = {
        (row["condition_a"], row["condition_b"]): float(row["shared_percent"])
        for row in read_tsv(path)
        if row["roi"] == "visual"
    }
    assert sorted(told.values()) == pytest.approx([-100 / 3, 100, 100], rel=1e-4)
    figures = partition_figures(outputs.results)
    figure = _of(figures, "shared-heat-map", "generatedvisual")
    shown = {(row["condition_a"], row["condition_b"]): row["shared_percent"] for row in figure.rows}
    assert shown == pytest.approx(told, rel=1e-4)
    venn = _of(figures, "venn", "generated")
    found = {(row["condition_a"], row["condition_b"]): row for row in venn.rows if row["roi"] == "visual"}
    columns = ("shared_percent", "circles_shared_percent")
    assert [found["generatedVU", "generatedNU"][one] for one in columns] == pytest.approx([-100 / 3, 0])
    assert [found["generatedAR", "generatedVU"][one] for one in columns] == pytest.approx([100, 200 / 3])


def test_captions_say_where_pairs_differ_in_participants(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)

    def parts(person: str, roi: str, a: str, b: str) -> tuple[float, float, float]:
        missing = person != "01" and "generatedVU" in (a, b)
        return (float("nan"),) * 3 if missing else _parts(person, roi, a, b)

    outputs.partition("videollm", CONDITIONS[:3], parts)
    for figure in partition_figures(outputs.results):
        assert "Mean over 1 to 3 participants." in figure.caption


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
        ("whole brain", "median", "generatedVU", "generatedNU"),
        ("whole brain", "most shared", "generatedAR", "generatedVU"),
    ]
    assert [pair[1:] for pair in pairs[3:]] == [pair[1:] for pair in pairs[:3]]
    assert [row["circles_shared_percent"] for row in figure.rows[1:3]] == pytest.approx([80.0, 75.0])
    assert "AR and VU: 75 % shared" in figure.alt
    assert "parts below 0 are drawn as 0" in figure.caption


def test_without_tables_there_are_no_pairs(tmp_path: Path) -> None:
    assert partition_figures(Outputs(tmp_path).results) == []
