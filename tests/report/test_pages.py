"""The pages are whole, self-contained, escaped and readable without sight."""

import base64
import re
from dataclasses import dataclass, field, replace
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest

from bids_mllm.report.content import Picture, Table, cell_text
from bids_mllm.report.maps import score_map
from bids_mllm.report.methods import methods_text
from bids_mllm.report.pages import (
    CrossValidation,
    GroupPage,
    ModelPictures,
    ParticipantPage,
    ReportedError,
    render_group,
    render_participant,
)
from bids_mllm.report.style import new_figure, svg_bytes
from bids_mllm.report.tables import ModelCard, alignment_table, comparison_table, roi_table

from .samples import (
    DROPPED,
    INSTRUCTIONS,
    MOTION,
    QWEN,
    blob_image,
    make_facts,
    make_folds,
    make_run,
    make_windows,
)

BIBLIOGRAPHY = files("bids_mllm").joinpath("data", "boilerplate.bib").read_text(encoding="utf-8")
VOID = {"img", "meta", "link", "br", "hr", "input"}
HOSTILE = '"><script>alert(1)</script>'


def script_keys(page: "Parsed", text: str) -> list[bool]:
    """Tell of every script whether it is whole in the page and named by the policy, which allows nothing else."""
    policy = next(tag["content"] for tag in page.attributes("meta") if "content" in tag and "http-equiv" in tag) or ""
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src ")
    allowed = policy.split("script-src ")[1].split()
    assert all(one == "'none'" or one.startswith("'sha256-") for one in allowed)
    contents = re.findall(r"<script[^>]*>(.*?)</script>", text, flags=re.DOTALL)
    assert len(contents) == len(page.attributes("script"))
    digests = [base64.b64encode(sha256(content.encode()).digest()).decode() for content in contents]
    return [f"'sha256-{digest}'" in allowed for digest in digests]


@dataclass
class Parsed(HTMLParser):
    """Tags with their attributes, the text, and the balance of the tags."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    open_tags: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def parsed(page: str) -> Parsed:
    parser = Parsed()
    parser.feed(page)
    parser.close()
    assert parser.open_tags == []
    return parser


def participant_page(**changes: object) -> ParticipantPage:
    runs = (make_run("life01", run=1), make_run("life02"))
    folds, run_of_row = make_folds(2, 60)
    mean_r = np.array([[0.12, np.nan], [0.05, 0.01]])
    names = (QWEN.key, MOTION.key)
    values: dict[str, object] = {
        "participant": "01", "app_version": "0.1.0", "created": "2026-01-02",
        "warnings": ("28 % of the voxels chose the last alpha.",),
        "errors": (ReportedError("The features of life03 could not be computed.", "crash-life03.txt"),),
        "summary": {"Voxels": 1500}, "runs": runs, "windows": tuple(make_windows(run) for run in runs),
        "dropped": DROPPED,
        "models": (ModelCard(QWEN, 29, 3584, 16, ("generated",), INSTRUCTIONS), ModelCard(MOTION, 1, 2530)),
        "cross_validation": CrossValidation(
            folds, tuple(run_of_row), tuple(r.label for r in runs), "In turn."
        ),
        "maps": (ModelPictures(QWEN.key, (Picture(score_map(blob_image((-40, -60, 0))), "Map of r"),)),),
        "figures": {"rois": (Picture(svg_bytes(new_figure(2, 1)), "Bars of r"),)},
        "roi_tables": (roi_table(["EVC", "AC"], names, mean_r, n_voxels=[10, 20]),),
        "methods": methods_text(make_facts()), "bibliography": BIBLIOGRAPHY,
        "versions": {"torch": "2.13.0"}, "settings": {"delays": "1 2 3"},
    }  # fmt: skip
    return ParticipantPage(**(values | changes))  # type: ignore[arg-type]


def group_page(**changes: object) -> GroupPage:
    comparison = comparison_table(["01", "02"], [QWEN.key, MOTION.key], np.array([[0.1, 0.05], [0.2, 0.15]]))
    values: dict[str, object] = {
        "participants": ("01", "02"), "app_version": "0.1.0", "created": "2026-01-02",
        "comparisons": (comparison,),
        "methods": methods_text(make_facts()), "bibliography": BIBLIOGRAPHY, "dropped": DROPPED,
    }  # fmt: skip
    return GroupPage(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    empty = ParticipantPage("01", "0.1.0", "2026-01-02")
    return {
        "participant": render_participant(participant_page()),
        "group": render_group(group_page()),
        "empty": render_participant(empty),
        "empty group": render_group(GroupPage((), "0.1.0", "2026-01-02")),
    }


KINDS = ["participant", "group", "empty", "empty group"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_is_inline_and_has_an_alternative(pages: dict[str, str], kind: str) -> None:
    for image in parsed(pages[kind]).attributes("img"):
        assert (image["alt"] or "").strip()
        assert re.match(r"data:image/(png|svg\+xml);base64,[A-Za-z0-9+/=]+$", image["src"] or "")


def test_the_participant_page_has_its_four_pictures(pages: dict[str, str]) -> None:
    assert len(parsed(pages["participant"]).attributes("img")) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_loaded_from_elsewhere(pages: dict[str, str], kind: str) -> None:
    page = parsed(pages[kind])
    assert all(script_keys(page, pages[kind]))
    assert not page.attributes("iframe")
    for tag, attributes in page.tags:
        assert not (attributes.get("src") or "data:").startswith(("http", "//"))
        if tag == "link":
            assert (attributes["href"] or "").startswith("data:")
        if tag == "a":
            assert (attributes["href"] or "").startswith(("#", "https://doi.org/"))
    style = pages[kind].split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("kind", KINDS)
def test_sections_and_contents_agree(pages: dict[str, str], kind: str) -> None:
    page = parsed(pages[kind])
    sections = [attributes["id"] for attributes in page.attributes("section")]
    links = [a["href"] for a in page.attributes("a") if (a["href"] or "").startswith("#") and "class" not in a]
    assert links == [f"#{identifier}" for identifier in sections]
    assert sections[0] == "warnings"
    identifiers = [a["id"] for _tag, a in page.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("kind", KINDS)
def test_language_headers_and_headings(pages: dict[str, str], kind: str) -> None:
    page = parsed(pages[kind])
    assert page.attributes("html")[0]["lang"] == "en"
    assert all(header["scope"] in ("row", "col") for header in page.attributes("th"))
    assert len(page.attributes("caption")) == len(page.attributes("table"))
    levels = [int(tag[1]) for tag, _attributes in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize(
    "text",
    [
        "28 % of the voxels chose the last alpha.", "(crash file: crash-life03.txt)",
        "ses-001_task-life01_run-1",
        "sub-01 ses-002_task-wolf16", "wolf/wolf16.mkv is a dangling link", "one playback from the first row",
        "Qwen/Qwen2.5-VL-7B-Instruct", "cc594898", "apache-2.0", "29 x 3584", "bfloat16",
        "Summarize the main storyline of the movie.", "In turn.", "EVC", "n/a", "2.13.0", "1 2 3",
        "Dupré la Tour et al., 2022", "80.25", "89.40",
    ],
)  # fmt: skip
def test_the_participant_page_shows(pages: dict[str, str], text: str) -> None:
    assert text in parsed(pages["participant"]).text


def test_the_group_page_compares_models_for_each_participant(pages: dict[str, str]) -> None:
    text = " ".join(parsed(pages["group"]).text.split())
    assert "sub-02 0.200 0.150" in text
    assert "wolf/wolf16.mkv is a dangling link" in text


@pytest.mark.parametrize(
    "sentence",
    [
        "There are no warnings.", "No step failed.", "No run was used.", "No run was left out.",
        "No run was aligned.", "No model was run.", "No cross-validation was made.", "No map was made.",
        "so no region was averaged.", "No layer curve was made.", "No methods text was written.",
        "No versions were recorded.", "No settings were recorded.", "No table of scores was made.",
    ],
)  # fmt: skip
def test_an_empty_section_says_so(pages: dict[str, str], sentence: str) -> None:
    assert sentence in parsed(pages["empty"]).text


def test_an_empty_section_of_the_group_says_so(pages: dict[str, str]) -> None:
    text = parsed(pages["empty group"]).text
    for sentence in ("No participant has results.", "No two models were compared.", "No mean map was made."):
        assert sentence in text


def test_hostile_text_is_escaped_everywhere() -> None:
    run = make_run(HOSTILE)
    page = participant_page(
        participant=HOSTILE, warnings=(HOSTILE,), errors=(ReportedError(HOSTILE, HOSTILE),), runs=(run,),
        windows=(make_windows(run),), settings={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE},
        created=HOSTILE,
        methods=HOSTILE, maps=(ModelPictures(HOSTILE, (Picture(b"\x89PNG", HOSTILE, HOSTILE),)),),
    )  # fmt: skip
    text = render_participant(page)
    made = parsed(text)
    assert script_keys(made, text) == [True] * 2
    assert made.text.count("alert(1)") >= 12


def test_the_alternative_of_the_alignment_counts_the_masked_volumes(pages: dict[str, str]) -> None:
    alternatives = [image["alt"] or "" for image in parsed(pages["participant"]).attributes("img")]
    assert any("14 of 120 volumes are masked out" in alternative for alternative in alternatives)


def test_a_page_of_five_models_stays_below_five_megabytes() -> None:
    picture = Picture(score_map(blob_image((-40, -60, 0))), "Map of r")
    maps = tuple(ModelPictures(f"model{i}", (picture, picture, picture)) for i in range(5))
    assert len(render_participant(participant_page(maps=maps)).encode()) < 5e6


def test_alignment_counts_masked_rows_before_between_and_after() -> None:
    run = make_run("life01")
    windows = make_windows(run, before=3, after=4)
    windows.index[10:12] = -1
    (row,) = alignment_table([run], [windows]).rows
    assert row[2:6] == (3, 2, 4, 51)
    windows.index[:] = -1
    (row,) = alignment_table([run], [windows]).rows
    assert row[2:6] == (60, 0, 0, 0)


def test_alignment_shows_the_frame_clock_where_a_run_has_one() -> None:
    runs = [make_run("life01"), make_run("life02")]
    windows = [make_windows(run) for run in runs]
    assert len(alignment_table(runs, windows).columns) == 9
    drifting = dict(windows[1].report) | {
        "run_without_film_seconds": 4.5, "film_without_run_seconds": 0.0,
        "frame_clock_drift_seconds": -0.45, "frame_clock_residual_seconds": 0.0124,
    }  # fmt: skip
    table = alignment_table(runs, [windows[0], replace(windows[1], report=drifting)])
    assert table.columns[9:] == (
        "BOLD without stimulus (s)", "Stimulus without BOLD (s)", "Drift of the frame clock (s)",
        "Residual of the frame clock (s)",
    )  # fmt: skip
    assert [row[9:] for row in table.rows] == [(None, None, None, None), ("4.500", "0.000", "-0.450", "0.012")]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "n/a"), (float("nan"), "n/a"), (0.12345, "0.123"), (7, "7"), ("a", "a")]
)
def test_cells_as_text(value: float | str | None, text: str) -> None:
    assert cell_text(value) == text


def test_a_picture_without_alternative_and_a_ragged_table_are_refused() -> None:
    with pytest.raises(ValueError, match="empty text alternative"):
        Picture(b"\x89PNG", " ")
    with pytest.raises(ValueError, match="1 cells, but 2 columns"):
        Table("T", ("a", "b"), (("x",),))
