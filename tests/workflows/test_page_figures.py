"""Which section of a page a figure stands in, what its heading says, and what does not fit on the page."""

from pathlib import Path

import pytest
from chart_samples import Outputs

from bids_mllm.io.derivatives import MapName
from bids_mllm.io.results import ModelResult
from bids_mllm.report.content import Bullets, ExplorerBlock, Heading, Paragraph, Picture
from bids_mllm.report.figures import DRAWERS, FigureData
from bids_mllm.workflows import page_figures
from bids_mllm.workflows.brain_drawing import PREFIX
from bids_mllm.workflows.page_figures import SECTIONS, explorer_blocks, figure_blocks

BEST = {"videollm": 0.3}
MODELS = {"videollm": "instruction-tuned video"}


def _score(person: str, *key: object) -> float:
    return 0.01 * int(str(key[-1])) + 0.3 * (person == "02")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outputs:
    """Tables of one model with three layers; its maps, which these tests do without, are not drawn."""
    monkeypatch.setattr(page_figures, "brain_figures", lambda *_, **__: [])
    made = Outputs(tmp_path, models=MODELS)
    made.scores(BEST, by_layer=_score, layers=3, missing=[("02", "EVC")])
    return made


def test_every_kind_that_can_be_drawn_has_a_section() -> None:
    drawn = {kind for kind in DRAWERS if not kind.startswith("test-")}
    assert {kind for kind in SECTIONS if not kind.startswith(PREFIX)} == drawn


def test_figures_are_written_and_stand_in_their_sections_with_headings(outputs: Outputs) -> None:
    blocks = figure_blocks(outputs.results)
    assert set(blocks) == {"rois", "layers"}
    heading, picture, *_ = blocks["rois"]
    assert isinstance(heading, Heading)
    assert heading.text.startswith("Models in ")
    assert isinstance(picture, Picture)
    written = {path.name.partition(".")[0] for path in (outputs.folder / "group" / "figures").iterdir()}
    assert len(written) == sum(len(own) for own in blocks.values()) / 2
    figure_blocks(outputs.results[:1], participant="01")
    assert any((outputs.folder / "sub-01" / "figures").iterdir())


def test_what_is_too_much_for_a_page_is_named(outputs: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_figures, "PAGE_BYTES", 10)
    sentence, names = figure_blocks(outputs.results)["layers"]
    assert sentence == Paragraph("The page would grow too large with these; they are in group/figures:")
    assert isinstance(names, Bullets)
    for line in names.items:
        assert (outputs.folder / "group" / "figures" / line.rpartition(": ")[2]).is_file()


def test_charts_are_shown_before_brain_maps_where_room_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_figures, "PAGE_BYTES", 25)
    found = [FigureData(kind, kind, "", "x", "", ()) for kind in ("map-scores", "map-layer", "venn", "model-bars")]
    pictures = [Picture(b"x" * size, "x") for size in (30, 10, 10, 5)]
    assert page_figures._fitting(found, pictures) == {"venn", "model-bars", "map-layer"}


def test_the_figures_of_an_earlier_group_go(outputs: Outputs) -> None:
    figure_blocks(outputs.results)
    folder = outputs.folder / "group" / "figures"
    before = {path.name for path in folder.iterdir()}
    fewer = Outputs(outputs.folder, models=MODELS, regions={"visual": "set"})
    fewer.scores(BEST)
    figure_blocks(fewer.results)
    after = {path.name for path in folder.iterdir()}
    assert after < before
    assert len(after) == 4


def test_headings_tell_places_apart_where_there_are_several() -> None:
    names = [MapName("01", "life", "fsLR", density=density) for density in ("91k", "170k")]
    results = [ModelResult(name, "m", Path()) for name in names]
    places = page_figures._places_by_entities(results, None)
    stem = "task-life_space-fsLR_atlas-x_den-170k_model-m_bars"
    assert page_figures._place_words(stem, places) == " (films life, space fsLR_den-170k)"
    assert page_figures._places_by_entities(results[:1], None) == {}


def test_the_explorer_shows_means_over_participants(outputs: Outputs) -> None:
    rows = list(page_figures._averaged([result.path("scores", None, extension=".tsv", atlas="planted")
                                        for result in outputs.results]))  # fmt: skip
    found = {(row["roi"], row["layer"]): float(row["r"]) for row in rows}
    assert {layer for _, layer in found} == {"0", "1", "2"}
    assert found["visual", "2"] == pytest.approx(0.02 + 0.1)
    # The second participant, whose mask misses it, does not count.
    assert found["EVC", "2"] == pytest.approx(0.02)
    (block,) = explorer_blocks(outputs.results)
    assert isinstance(block, ExplorerBlock)
