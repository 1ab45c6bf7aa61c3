"""The pages in a browser: tables sort, maps turn, curves follow choices, and nothing is asked of the network."""

import sys
from pathlib import Path

import numpy as np
import pytest

from bids_mllm.io.meshes import find_meshes
from bids_mllm.report.content import Picture, Section, Table
from bids_mllm.report.explorer import LayerScores, explorer_block
from bids_mllm.report.pages import _rendered
from bids_mllm.report.style import new_figure, svg_bytes
from bids_mllm.report.viewer import (
    ViewerMap,
    VolumePlace,
    name_codes,
    name_scale,
    score_codes,
    score_scale,
    viewer_block,
)

from .browser import PROGRAM, browser

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")

NAMES = ("action", "narrative")
STILL = Picture(svg_bytes(new_figure(2, 1)), "Bars of r", "Held-out r.")
#: Voxels of 4 mm from -80, -112 and -60 mm.
AFFINE, SHAPE = np.array([[4.0, 0, 0, -80], [0, 4, 0, -112], [0, 0, 4, -60], [0, 0, 0, 1]]), (41, 49, 39)
RNG = np.random.default_rng(7)
SCORES = {
    "tiny": RNG.uniform(-0.1, 0.4, (3, 2, 5)).round(4),
    "other": RNG.uniform(-0.1, 0.4, (3, 1, 3)).round(4),
}
SCORES["tiny"][2, 1] = np.nan


def surface_viewer():
    meshes = find_meshes("fsaverage5", 10242, 10242)
    left, right = meshes.left.points[:, 1], meshes.right.points[:, 1]
    front = np.where(left > 20, 0.0, np.nan)
    back = np.where(right < -40, 1.0, np.nan)
    r = np.concatenate([np.where(left > 20, left / 400, np.nan), np.where(right < -40, 0.05, np.nan)])
    scales = (score_scale("held-out r", 0.3), name_scale("condition", NAMES))
    maps = (
        ViewerMap("tiny", "best condition", "chosen", 1, name_codes(np.concatenate([front, back]))),
        ViewerMap("tiny", "held-out r", "chosen", 0, score_codes(r, scales[0])),
        ViewerMap("other", "held-out r", "chosen", 0, score_codes(r / 2, scales[0])),
    )
    return viewer_block(meshes, scales, maps, picture=STILL, caption="Maps on surfaces.")


def volume_viewer():
    voxels = np.indices(SHAPE).reshape(3, -1).T @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    inside = np.abs(voxels - [40, 20, 40]).max(axis=1) < 11
    scales = (score_scale("held-out r", 0.3),)
    codes = score_codes(np.where(inside, 0.3, np.nan), scales[0])
    maps = (ViewerMap("tiny", "held-out r", "chosen", 0, codes),)
    return viewer_block(VolumePlace(SHAPE, AFFINE), scales, maps, picture=STILL, caption="Maps in slices.")


def explorer():
    scores = (
        LayerScores("tiny", (0, 1, 2, 3, 4), NAMES, {"r": SCORES["tiny"], "share": SCORES["tiny"] / 2}),
        LayerScores("other", (0, 6, 12), ("stimulus",), {"r": SCORES["other"], "share": SCORES["other"] / 2}),
    )
    return explorer_block({"set": ["EVC"], "area": ["L_V1", "R_V1"]}, scores, caption="Regions.")


def tables():
    rows = (
        ("A10", "x", 10.0), ("A9", "y", None), ("A2", "x", 2.5), ("A1", "y", -0.3), ("A3", "x", float("nan")),
        ("A30", "y", 2.5), ("A4", "x", 1e-5),
    )  # fmt: skip
    return Table("Scores", ("ROI", "Kind", "Mean r"), rows), Table("Others", ("Name", "N"), (("a", 2), ("b", 1)))


def written(path: Path, **sections) -> Path:
    made = tuple(Section(name, name.capitalize(), "Nothing.", blocks) for name, blocks in sections.items())
    path.write_text(_rendered("Tests", made, "0.1.0", "2026-01-02"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return written(
        folder / "page.html", tables=tables(), curves=(explorer(),), surface=(surface_viewer(),),
        volume=(volume_viewer(),), pictures=(STILL,),
    )  # fmt: skip


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture
def opened(chromium, page):
    chromium.open(page)
    yield chromium
    assert chromium.faults() == []


def shown(chromium, root):
    chromium.run(f"document.querySelector({root!r}).scrollIntoView()")
    chromium.wait(f"document.querySelector({root!r}).dataset.shown")
    return chromium.run(f"document.querySelector({root!r}).dataset.shown")


def column(chromium, number=1, table=0):
    rows = f"[...document.querySelectorAll('table')[{table}].tBodies[0].rows].filter((row) => !row.hidden)"
    return chromium.run(f"{rows}.map((row) => row.cells[{number - 1}].textContent)")


def press(chromium, number, table=0):
    chromium.run(f"document.querySelectorAll('table')[{table}].tHead.rows[0].cells[{number - 1}].firstChild.click()")


def sorting(chromium):
    headers = "[...document.querySelectorAll('table')[0].tHead.rows[0].cells]"
    return chromium.run(f"{headers}.map((header) => header.getAttribute('aria-sort'))")


def test_numbers_sort_as_numbers_and_what_is_missing_comes_last(opened):
    press(opened, 3)
    assert column(opened) == ["A1", "A4", "A2", "A30", "A10", "A9", "A3"]
    assert sorting(opened) == [None, None, "ascending"]
    press(opened, 3)
    assert column(opened) == ["A10", "A2", "A30", "A4", "A1", "A9", "A3"]
    assert sorting(opened) == [None, None, "descending"]
    press(opened, 2, table=1)
    assert column(opened, table=1) == ["b", "a"]


def test_text_sorts_with_the_numbers_in_it_and_equal_rows_keep_their_order(opened):
    press(opened, 1)
    assert column(opened) == ["A1", "A2", "A3", "A4", "A9", "A10", "A30"]
    press(opened, 2)
    assert column(opened) == ["A2", "A3", "A4", "A10", "A1", "A9", "A30"]
    press(opened, 2)
    assert column(opened) == ["A1", "A9", "A30", "A2", "A3", "A4", "A10"]


def test_keys_sort_a_table_and_the_focus_is_seen(opened):
    opened.key("Tab", 9)
    assert opened.run("document.activeElement.className") == "skip"
    assert opened.run("document.activeElement.getBoundingClientRect().left") > 0
    while opened.run("document.activeElement.className") != "sort":
        opened.key("Tab", 9)
    outline = opened.run("[getComputedStyle(document.activeElement).outlineStyle, document.activeElement.textContent]")
    assert outline == ["solid", "ROI"]
    opened.key("Enter", 13, "\r")
    assert column(opened) == ["A1", "A2", "A3", "A4", "A9", "A10", "A30"]
    assert sorting(opened) == ["ascending", None, None]


def test_tables_of_regions_have_a_filter(opened):
    assert opened.run("document.querySelectorAll('input[type=search]').length") == 1
    opened.choose("#tables", "Show rows with", "a3")
    assert column(opened) == ["A3", "A30"]
    assert opened.run("document.querySelector('#tables output').textContent") == "2 of 7 rows"
    opened.choose("#tables", "Show rows with", "")
    assert len(column(opened)) == 7


def coloured(pixels, colour, tolerance=6):
    """Return rows and columns of the pixels of a colour such as #0072b2, as shares of the picture."""
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    hits = np.argwhere(np.abs(pixels - wanted).max(axis=2) <= tolerance)
    return hits / np.array(pixels.shape[:2])


def lies(pixels, colour, places):
    """Tell whether a colour is seen in named halves of the picture, such as ``left top``; None = it is not seen."""
    found = coloured(pixels, colour)
    n_pixels = pixels[..., 0].size
    if places is None:
        return len(found) < 0.002 * n_pixels
    if len(found) < 0.005 * n_pixels:
        return False
    row, across = found.mean(axis=0)
    halves = {"left": across < 0.5, "right": across > 0.5, "top": row < 0.5, "bottom": row > 0.5}
    return all(halves[place] for place in places.split())


def n_vivid(pixels):
    return int((np.ptp(pixels, axis=2) > 30).sum())


FRONT, BACK = name_scale("condition", NAMES).colours


@pytest.mark.parametrize(
    ("view", "front", "back"),
    [
        ("left, from outside", "left", None), ("left, from the middle", "right", None),
        ("right, from outside", None, "left"), ("right, from the middle", None, "right"),
        ("both, from above", "left top", "right bottom"), ("both, from below", "right top", "left bottom"),
        ("both, from behind", None, "right"), ("both, from the front", "right", None),
    ],
)  # fmt: skip
def test_surfaces_are_seen_from_the_side_that_the_view_names(opened, view, front, back):
    """Coloured are the front of the left hemisphere and the back of the right one."""
    assert shown(opened, "#surface .viewer") == "tiny: best condition: 0"
    opened.choose("#surface", "View", view)
    opened.pixels_with("#surface canvas", lambda seen: lies(seen, FRONT, front) and lies(seen, BACK, back))
    words = opened.run("document.querySelector('#surface output').textContent")
    assert "hemisphere" in words


def test_choices_change_the_map_the_legend_and_the_name_of_the_picture(opened):
    shown(opened, "#surface .viewer")
    opened.choose("#surface", "View", "left, from outside")
    opened.pixels_with("#surface canvas", lambda seen: len(coloured(seen, FRONT)) > 1000)
    assert opened.run("document.querySelector('#surface .legend').textContent") == "".join(NAMES)
    opened.choose("#surface", "Map", "held-out r")
    opened.wait("document.querySelector('#surface .viewer').dataset.shown === 'tiny: held-out r: 0'")
    second = opened.pixels_with(
        "#surface canvas", lambda seen: len(coloured(seen, FRONT)) == 0 and n_vivid(seen) > 1000
    )
    assert opened.run("document.querySelector('#surface .legend').textContent") == "held-out r0.0000.300"
    assert opened.run("document.querySelector('#surface canvas').getAttribute('aria-label')") == "held-out r of tiny"
    opened.choose("#surface", "Model", "other")
    opened.wait("document.querySelector('#surface .viewer').dataset.shown === 'other: held-out r: 0'")
    opened.pixels_with("#surface canvas", lambda seen: (np.abs(seen - second).max(axis=2) > 20).mean() > 0.005)


def test_low_values_can_be_hidden(opened):
    """The scores rise from the middle to the front of the left hemisphere."""
    shown(opened, "#surface .viewer")
    opened.choose("#surface", "Map", "held-out r")
    opened.wait("document.querySelector('#surface .viewer').dataset.shown === 'tiny: held-out r: 0'")
    pixels = opened.pixels_with(
        "#surface canvas", lambda seen: len(coloured(seen, FRONT)) == 0 and n_vivid(seen) > 1000
    )
    opened.choose("#surface", "Hide below", "100")
    opened.wait("document.querySelector('#surface .viewer').dataset.shown === 'tiny: held-out r: 100'")
    opened.pixels_with("#surface canvas", lambda seen: 0 < n_vivid(seen) < 0.9 * n_vivid(pixels))
    assert "hidden up to 0.118" in opened.run("document.querySelector('#surface .legend').textContent")


def test_slices_show_left_on_the_left_and_name_the_value_at_the_cross(opened):
    assert shown(opened, "#volume .viewer") == "tiny: held-out r: 0"
    for name, value in (("x (left to right)", 40), ("y (back to front)", 20), ("z (bottom to top)", 40)):
        opened.choose("#volume", name, str(value))
    words = opened.run("document.querySelector('#volume output').textContent")
    assert words == "Left is on the left. At 40, 20, 40 mm: 0.300."
    colour = score_scale("r", 0.3).colours[-1]
    colour = score_scale("r", 0.3).colours[-1]

    def panels(seen):
        return [coloured(part, colour, 12) for part in np.array_split(seen, 3, axis=1)]

    seen = opened.pixels_with("#volume canvas", lambda seen: min(map(len, panels(seen))) > 500)
    row, across = panels(seen)[0].mean(axis=0)
    assert row < 0.5
    assert across > 0.55
    opened.choose("#volume", "x (left to right)", "-40")
    assert opened.run("document.querySelector('#volume output').textContent").endswith("nothing.")
    opened.pixels_with("#volume canvas", lambda seen: len(panels(seen)[0]) > 500 and len(panels(seen)[2]) == 0)


def words_of_curves(chromium):
    return chromium.run("document.querySelector('#curves output').textContent")


def test_curves_follow_the_choices(opened):
    shown(opened, "#curves .explorer")
    opened.choose("#curves", "Region", "L_V1")
    at = np.unravel_index(SCORES["tiny"][1].argmax(), (2, 5))
    peak = SCORES["tiny"][1][at]
    assert words_of_curves(opened) == f"Highest: r {peak:.3f} at layer {at[1]}, {NAMES[at[0]]}."
    lines = "[...document.querySelectorAll('#curves polyline')]"
    assert opened.run(f"{lines}.map((one) => one.getAttribute('points').split(' ').length)") == [5, 5]
    opened.choose("#curves", "Condition", NAMES[1])
    own = SCORES["tiny"][1, 1]
    assert words_of_curves(opened) == f"Highest: r {own.max():.3f} at layer {own.argmax()}, {NAMES[1]}."
    opened.choose("#curves", "Score", "share")
    assert words_of_curves(opened).startswith(f"Highest: share {own.max() / 2:.3f} at layer {own.argmax()}")
    opened.choose("#curves", "Region", "R_V1")
    assert words_of_curves(opened) == "This region has no scores."
    opened.choose("#curves", "Model", "other")
    own = SCORES["other"][2, 0] / 2
    assert f"at layer {(0, 6, 12)[own.argmax()]}, stimulus." in words_of_curves(opened)


def test_all_models_are_compared_over_depth_with_their_numbers(opened):
    shown(opened, "#curves .explorer")
    opened.choose("#curves", "Model", "all models")
    means = {"tiny": SCORES["tiny"][0].mean(axis=0), "other": SCORES["other"][0].mean(axis=0)}
    cells = "[...document.querySelectorAll('#curves tbody tr')].map((row) => [...row.cells].map((c) => c.textContent))"
    rows = {row[0]: row[1:] for row in opened.run(cells)}
    assert list(rows) == ["0", "0.25", "0.5", "0.75", "1"]
    assert rows["0.5"] == [f"{means['tiny'][2]:.3f}", f"{means['other'][1]:.3f}"]
    assert rows["0.25"] == [f"{means['tiny'][1]:.3f}", "n/a"]


def test_curves_of_the_same_colour_differ_in_their_dashes(chromium, tmp_path):
    conditions = tuple(f"generated{number}" for number in range(14))
    scores = [LayerScores("tiny", (0, 1, 2), conditions, {"r": RNG.uniform(0, 1, (1, 14, 3))})]
    curves = explorer_block({"area": ["V1"]}, scores, caption="Regions.")
    chromium.open(written(tmp_path / "many.html", curves=(curves,)))
    shown(chromium, "#curves .explorer")
    pens = "[...document.querySelectorAll('polyline')].map((one) => [one.getAttribute('stroke')"
    looks = chromium.run(f"{pens}, one.getAttribute('stroke-dasharray')])")
    assert len({colour for colour, _ in looks}) == 13
    assert len({(colour, dashes) for colour, dashes in looks}) == 14
    swatches = chromium.run("[...document.querySelectorAll('.swatch')].map((one) => one.style.background)")
    assert len(set(swatches)) == 14
    assert chromium.faults() == []


def test_keys_change_a_choice(opened):
    before = shown(opened, "#curves .explorer")
    opened.run("document.querySelector('#curves select').focus()")
    opened.key("ArrowDown", 40)
    opened.wait(f"document.querySelector('#curves .explorer').dataset.shown !== {before!r}")
    assert shown(opened, "#curves .explorer").startswith("L_V1")


def test_every_picture_is_there_and_every_control_has_a_name(opened):
    for root in ("#curves .explorer", "#surface .viewer", "#volume .viewer"):
        shown(opened, root)
    images = opened.run("[...document.images].map((one) => one.complete && one.naturalWidth > 0 && one.alt !== '')")
    assert len(images) == 3
    assert all(images)
    controls = "[...document.querySelectorAll('select, input')]"
    named = opened.run(f"{controls}.map((one) => one.labels.length === 1 && one.labels[0].textContent !== '')")
    assert len(named) >= 12
    assert all(named)
    unnamed = opened.run(
        "[...document.querySelectorAll('[role=img], [role=group]')].filter((one) => !one.ariaLabel).length"
    )
    assert unnamed == 0


CONTRAST = """
(() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((value) => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const below = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const found = parts(getComputedStyle(one).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const low = [];
  let count = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const style = getComputedStyle(element);
    if (!walker.currentNode.textContent.trim() || !element.getClientRects().length) continue;
    const ink = element.closest("svg") ? style.fill : style.color;
    const [one, other] = [light(parts(ink).slice(0, 3)), light(below(element))].sort((a, b) => b - a);
    count += 1;
    if ((one + 0.05) / (other + 0.05) < 4.5) low.push(element.textContent);
  }
  return { count, low };
})()
"""


def test_text_stands_out_from_what_lies_behind_it(opened):
    for root in ("#curves .explorer", "#surface .viewer", "#volume .viewer"):
        shown(opened, root)
    contrast = opened.run(CONTRAST)
    assert contrast["count"] > 60
    assert contrast["low"] == []


def test_neither_the_network_nor_other_scripts_are_reached(chromium, page):
    chromium.open(page)
    added = (
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.strange = 1' }))"
    )
    chromium.run(added)
    assert chromium.run("window.strange") is None
    assert chromium.run("fetch('https://example.org/').then(() => 'reached', () => 'refused')") == "refused"
    assert any("Content Security Policy" in fault for fault in chromium.faults())


def test_without_webgl_the_still_picture_stays_with_a_sentence(page, tmp_path):
    with browser(tmp_path, webgl=False) as one:
        one.open(page)
        shown(one, "#curves .explorer")
        one.wait("document.querySelectorAll('.viewer > p').length >= 4")
        assert "shown as a still picture" in one.run("document.querySelector('#surface .viewer').textContent")
        assert one.run("document.querySelector('#surface img').getBoundingClientRect().height") > 20
        assert one.run("document.querySelectorAll('canvas').length") == 0
        assert one.faults() == []


def test_a_page_of_eight_models_thirteen_instructions_and_thirty_layers_opens(chromium, tmp_path):
    rng = np.random.default_rng(0)
    models, conditions = [f"model{number}" for number in range(8)], tuple(f"generated{n}" for n in range(13))
    meshes = find_meshes("fsaverage5", 10242, 10242)
    scale = score_scale("held-out r", 0.3)
    maps = [
        ViewerMap(model, f"r of {name}", "one condition", 0, score_codes(rng.normal(0.05, 0.1, 20484), scale))
        for model in models
        for name in ("best", "ceiling", "significant", *conditions)
    ]
    values = {name: rng.normal(0.1, 0.05, (60, 13, 30)) for name in ("r", "r / noise ceiling")}
    scores = [LayerScores(model, tuple(range(30)), conditions, values) for model in models]
    rois = [f"area{number}" for number in range(60)]
    rows = tuple((roi, model, float(rng.normal())) for roi in rois for model in models)
    path = written(
        tmp_path / "big.html", tables=(Table("Regions", ("ROI", "Model", "r"), rows),),
        curves=(explorer_block({"area": rois}, scores, caption="Regions."),),
        surface=(viewer_block(meshes, (scale,), maps, picture=STILL, caption="Maps."),),
    )  # fmt: skip
    seconds = chromium.open(path)
    shown(chromium, "#curves .explorer")
    assert shown(chromium, "#surface .viewer") == "model0: r of best: 0"
    chromium.choose("#surface", "Model", "model7")
    chromium.wait("document.querySelector('#surface .viewer').dataset.shown === 'model7: r of best: 0'")
    assert chromium.faults() == []
    size = path.stat().st_size
    sys.stdout.write(f"The page of {size / 1e6:.1f} MB opened in {seconds:.2f} s.\n")
    assert size < 15e6
