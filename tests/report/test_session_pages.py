"""Participants with many sessions have a page for each, and one of the whole that leads to them."""

import re
from dataclasses import replace

import pytest

from bids_mllm.report.content import Links
from bids_mllm.report.pages import ParticipantPage, render_participant, render_session
from bids_mllm.report.sessions import sessions_of, split_page
from tests.report.samples import make_run, make_windows


def page_of(n_sessions, *, aligned=True):
    runs = [make_run(f"life{number:02d}", session=f"{1 + number % n_sessions:03d}") for number in range(2 * n_sessions)]
    windows = tuple(map(make_windows, runs)) if aligned else ()
    warnings = ("A warning of all.", f"{runs[1].label}: a warning of one run.")
    return ParticipantPage(
        "01", "1", "now", place="T1w", warnings=warnings, summary={"Runs used": len(runs)}, runs=tuple(runs),
        windows=windows,
    )  # fmt: skip


def split(page):
    return split_page(page, {session: f"sub-01_ses-{session}.html" for session in sessions_of(page)})


def section(html, name):
    return re.search(rf'<section id="{name}".*?</section>', html, re.DOTALL).group()


def test_four_sessions_stay_on_one_page():
    page = page_of(4)
    assert sessions_of(page) == ()
    main, pages = split(page)
    assert main == page
    assert pages == {}


def test_five_sessions_have_a_page_each():
    page = page_of(5)
    assert sessions_of(page) == ("001", "002", "003", "004", "005")
    main, pages = split(page)
    assert (main.runs, main.windows) == ((), ())
    second = pages["002"]
    assert [run.task for run in second.runs] == ["life01", "life06"]
    assert [window.run_label for window in second.windows] == [run.label for run in second.runs]
    assert second.warnings == (page.warnings[1],)
    assert pages["001"].warnings == ()
    assert main.warnings == page.warnings
    assert sum(len(own.runs) for own in pages.values()) == len(page.runs)


def test_the_page_of_the_whole_lists_and_counts_the_sessions():
    main, _ = split(page_of(5))
    html = render_participant(main)
    links = re.findall(r'<li><a href="(sub-01_ses-\d+\.html)">(ses-\d+)</a></li>', section(html, "inputs"))
    assert links == [(f"sub-01_ses-00{n}.html", f"ses-00{n}") for n in range(1, 6)]
    alignment = section(html, "alignment")
    assert "No run was aligned." not in alignment
    row = re.search(r"ses-003</th>(.*?)</tr>", alignment, re.DOTALL).group(1)
    # two runs of 60 volumes, of which 3 before and 4 after the film have no window
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row) == ["2", "120", "106"]
    assert "life01" not in section(html, "inputs")


def test_the_page_of_a_session_shows_its_runs_and_leads_back():
    _, pages = split(page_of(5))
    html = render_session(pages["002"], "002", main="sub-01.html")
    assert "<h1>sub-01, ses-002, T1w</h1>" in html
    assert '<a href="sub-01.html">All of sub-01</a>' in section(html, "participant")
    assert "106 of 120" in section(html, "inputs")
    for task in ("life01", "life06"):
        assert f"task-{task}" in section(html, "inputs")
        assert f"task-{task}" in section(html, "alignment")
    assert "life02" not in html
    assert "<img" in section(html, "alignment")
    assert "a warning of one run" in section(html, "warnings")


def test_runs_without_a_session_stay():
    page = page_of(5)
    run = replace(make_run("wolf01"), session=None)
    page = replace(page, runs=(*page.runs, run), windows=(*page.windows, make_windows(run)))
    main, _ = split(page)
    assert main.runs == (run,)
    alignment = section(render_participant(main), "alignment")
    assert "task-wolf01" in alignment
    assert "ses-005" in alignment


def test_runs_that_were_not_aligned_have_no_count():
    main, pages = split(page_of(5, aligned=False))
    assert {one.n_used for one in main.sessions} == {None}
    assert "No run was aligned." in render_session(pages["001"], "001", main="sub-01.html")
    assert "n/a" in section(render_participant(main), "alignment")


@pytest.mark.parametrize("name", ["https://example.org/a.html", "../a.html", "a b.html", "javascript:x"])
def test_links_go_to_pages_beside_only(name):
    with pytest.raises(ValueError, match="name an HTML file in the folder"):
        Links((("A page", name),))
