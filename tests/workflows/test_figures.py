"""Figures on disk: what is written beside each, and that the files alone give the same drawing again."""

import gc
import gzip
import io
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bids_mllm.exceptions import InputDataError
from bids_mllm.report.figures import DRAWERS, ColumnRows, FigureData, columns_of, drawer
from bids_mllm.report.style import new_figure
from bids_mllm.workflows import figures as figures_module
from bids_mllm.workflows.figures import read_figure, redraw, remove_other_figures, write_figures

ROWS = (
    {"roi": "V1", "r": 0.25, "n": 3, "note": None},
    {"roi": "PPA", "r": None, "n": 4, "note": None},
    {"roi": "FFA", "r": 0.1, "n": None, "note": None},
)


def _bars(data: FigureData) -> Figure:
    figure = new_figure(3, 2)
    axes = figure.add_subplot()
    values = [row["r"] or 0.0 for row in data.rows]
    axes.bar(range(len(values)), values, color=data.options["colour"])
    axes.set_title(data.title)
    return figure


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setitem(DRAWERS, "test-bars", _bars)
    return FigureData("test-bars", "task-life_desc-bars", "Bars", "Three bars.", "A caption.", ROWS, {"colour": "red"})


def test_each_figure_has_its_table_its_options_and_both_drawings(tmp_path: Path, bars: FigureData) -> None:
    (picture,) = write_figures(tmp_path / "group" / "figures", [bars], output_dir=tmp_path)
    folder = tmp_path / "group" / "figures"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"task-life_desc-bars.{extension}" for extension in ("json", "png", "svg", "tsv")
    ]
    assert (folder / "task-life_desc-bars.tsv").read_text().split("\n")[:3] == [
        "roi\tr\tn\tnote", "V1\t0.25\t3\tn/a", "PPA\tn/a\t4\tn/a",
    ]  # fmt: skip
    assert ElementTree.parse(folder / "task-life_desc-bars.svg").getroot().tag.endswith("svg")
    assert (folder / "task-life_desc-bars.png").read_bytes().startswith(b"\x89PNG")
    assert (picture.alt, picture.caption) == ("Three bars.", "A caption.")
    assert picture.data == (folder / "task-life_desc-bars.svg").read_bytes()


def test_reading_gives_what_was_written(tmp_path: Path, bars: FigureData) -> None:
    write_figures(tmp_path, [bars], output_dir=tmp_path)
    found = read_figure(tmp_path / "task-life_desc-bars.svg")
    assert found == bars
    assert [type(row["n"]) for row in found.rows] == [int, int, type(None)]


@pytest.mark.parametrize("extension", ["tsv", "json", "svg", "png"])
def test_a_figure_is_drawn_again_from_its_files_to_the_byte(tmp_path: Path, bars: FigureData, extension: str) -> None:
    write_figures(tmp_path, [bars], output_dir=tmp_path)
    svg, png = tmp_path / "task-life_desc-bars.svg", tmp_path / "task-life_desc-bars.png"
    before = svg.read_bytes(), png.read_bytes()
    for path in (svg, png):
        path.write_bytes(b"lost")
    assert redraw(tmp_path / f"task-life_desc-bars.{extension}") == (svg, png)
    assert (svg.read_bytes(), png.read_bytes()) == before


def test_a_changed_table_changes_the_drawing(tmp_path: Path, bars: FigureData) -> None:
    write_figures(tmp_path, [bars], output_dir=tmp_path)
    table, svg = tmp_path / "task-life_desc-bars.tsv", tmp_path / "task-life_desc-bars.svg"
    before = svg.read_bytes()
    table.write_text(table.read_text().replace("0.25", "0.05"))
    redraw(table)
    assert svg.read_bytes() != before


def test_long_tables_are_compressed_without_a_time(
    tmp_path: Path, bars: FigureData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures_module, "PLAIN_ROWS", 2)
    write_figures(tmp_path, [bars], output_dir=tmp_path)
    table = tmp_path / "task-life_desc-bars.tsv.gz"
    content = table.read_bytes()
    assert gzip.decompress(content).decode().startswith("roi\tr\tn\tnote\nV1\t0.25")
    assert read_figure(table) == bars
    write_figures(tmp_path, [bars], output_dir=tmp_path)
    assert table.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(figures_module, "PLAIN_ROWS", 3)
    write_figures(tmp_path, [bars], output_dir=tmp_path)
    assert not table.exists()


def test_a_large_svg_is_shown_as_a_picture_of_the_width_of_a_page(
    tmp_path: Path, bars: FigureData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures_module, "LARGE_SVG", 10)
    monkeypatch.setattr(figures_module, "PAGE_WIDTH", 200)
    (picture,) = write_figures(tmp_path, [bars], output_dir=tmp_path)
    with Image.open(io.BytesIO(picture.data)) as shown, Image.open(tmp_path / "task-life_desc-bars.png") as drawn:
        assert (shown.format, shown.width) == ("WEBP", 200)
        assert shown.height == round(200 * drawn.height / drawn.width)
        small = np.asarray(drawn.convert("RGB").resize(shown.size, Image.Resampling.LANCZOS), dtype=float)
        assert np.abs(np.asarray(shown.convert("RGB"), dtype=float) - small).mean() < 8
    assert picture.data_uri.startswith("data:image/webp;base64,")


@pytest.mark.parametrize("damage", ["json", "tsv", "field"])
def test_a_damaged_figure_is_named(tmp_path: Path, bars: FigureData, damage: str) -> None:
    write_figures(tmp_path, [bars], output_dir=tmp_path)
    described = tmp_path / "task-life_desc-bars.json"
    if damage == "field":
        described.write_text(json.dumps({"Kind": "test-bars"}))
    else:
        (tmp_path / f"task-life_desc-bars.{damage}").unlink()
    with pytest.raises(InputDataError, match=r"^The figure .*task-life_desc-bars cannot be read .*--reports-only\.$"):
        redraw(described)


def test_what_is_no_figure_and_what_nobody_draws_is_said(tmp_path: Path, bars: FigureData) -> None:
    with pytest.raises(InputDataError, match=r"notes\.txt is no file of a figure; give its \.tsv"):
        redraw(tmp_path / "notes.txt")
    unknown = FigureData("test-unknown", "x", "", "Nothing.", "", ())
    with pytest.raises(InputDataError, match="of the kind 'test-unknown', which this version cannot draw"):
        write_figures(tmp_path, [unknown], output_dir=tmp_path)


def test_a_kind_has_one_drawer(bars: FigureData) -> None:
    with pytest.raises(ValueError, match="'test-bars' have a drawer already"):
        drawer("test-bars")(_bars)


def test_rows_of_other_columns_and_figures_without_words_are_refused() -> None:
    with pytest.raises(ValueError, match="empty text alternative"):
        FigureData("k", "x", "", " ", "", ())
    with pytest.raises(ValueError, match="different columns"):
        FigureData("k", "x", "", "a", "", ({"a": 1}, {"b": 1}))


def test_figures_that_are_no_longer_made_go_and_files_of_others_stay(tmp_path: Path, bars: FigureData) -> None:
    other = FigureData("test-bars", "other", "Bars", "Three bars.", "A caption.", ROWS, {"colour": "red"})
    write_figures(tmp_path, [bars, other], output_dir=tmp_path)
    (tmp_path / "mine.pdf").write_bytes(b"")
    (tmp_path / "mine.json").write_text("{}")
    remove_other_figures(tmp_path, kept={bars.name})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.json", "mine.pdf", *(f"{bars.name}.{extension}" for extension in ("json", "png", "svg", "tsv")),
    ]  # fmt: skip


def test_only_what_changed_is_drawn_anew(tmp_path: Path, bars: FigureData, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setitem(DRAWERS, "test-bars", lambda data: drawn.append(data.title) or _bars(data))
    write_figures(tmp_path, [bars], output_dir=tmp_path)
    pictures = write_figures(tmp_path, [bars], output_dir=tmp_path)
    assert drawn == ["Bars"]
    assert pictures[0].data == (tmp_path / f"{bars.name}.svg").read_bytes()
    write_figures(tmp_path, [replace(bars, title="Others")], output_dir=tmp_path)
    assert drawn == ["Bars", "Others"]
    (tmp_path / f"{bars.name}.png").unlink()
    write_figures(tmp_path, [replace(bars, title="Others")], output_dir=tmp_path)
    monkeypatch.setattr(figures_module, "__version__", "99")
    write_figures(tmp_path, [replace(bars, title="Others")], output_dir=tmp_path)
    assert drawn == ["Bars", "Others", "Others", "Others"]


def test_rows_of_columns_are_rows() -> None:
    rows = ColumnRows({"place": np.array([3, 5, 8]), "value": np.array([0.5, np.nan, 2.0])})
    expected = [{"place": 3, "value": 0.5}, {"place": 5, "value": None}, {"place": 8, "value": 2.0}]
    assert list(rows) == expected
    assert [type(row["place"]) for row in rows] == [int, int, int]
    assert list(rows[1:]) == expected[1:]
    assert rows == ColumnRows({"place": np.array([3, 5, 8]), "value": np.array([0.5, np.nan, 2.0])})
    assert rows != ColumnRows({"place": np.array([3, 5, 9]), "value": np.array([0.5, np.nan, 2.0])})
    assert rows != ColumnRows({"value": np.array([0.5, np.nan, 2.0])})
    for given in (rows, tuple(expected)):
        columns = columns_of(given)
        assert list(columns) == ["place", "value"]
        np.testing.assert_array_equal(columns["value"], [0.5, np.nan, 2.0])
    assert columns_of(()) == {}
    with pytest.raises(ValueError, match=r"one length, but these have \[2, 3\]"):
        ColumnRows({"place": np.arange(3), "value": np.arange(2.0)})


def test_the_garbage_collector_runs_again_after_drawing(tmp_path: Path, bars: FigureData) -> None:
    assert gc.isenabled()
    write_figures(tmp_path, [bars], output_dir=tmp_path)
    assert gc.isenabled()
    with pytest.raises(InputDataError, match="which this version cannot draw"):
        write_figures(tmp_path, [replace(bars, kind="unknown")], output_dir=tmp_path)
    assert gc.isenabled()
    gc.disable()
    try:
        write_figures(tmp_path, [bars], output_dir=tmp_path)
        assert not gc.isenabled()
    finally:
        gc.enable()
