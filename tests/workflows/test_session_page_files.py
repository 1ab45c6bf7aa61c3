"""Names of the pages of sessions over several calls."""

from bids_mllm.report.pages import ParticipantPage
from bids_mllm.workflows.page_files import page_path, session_page_path
from bids_mllm.workflows.reports import _write_pages
from tests.report.samples import make_run


def write(folder, n_sessions, place="T1w", *, first=True):
    runs = tuple(make_run(f"life{number:02d}", session=f"{number:03d}") for number in range(1, n_sessions + 1))
    path = page_path(folder, "01", place, first=first)
    _write_pages(path, ParticipantPage("01", "1", "now", place=place, runs=runs))
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def sessions(n, rest=""):
    return [f"sub-01_ses-{number:03d}{rest}.html" for number in range(1, n + 1)]


def test_more_than_four_sessions_have_pages(tmp_path):
    path = write(tmp_path, 5)
    assert names(tmp_path) == sorted(["sub-01.html", *sessions(5)])
    main = path.read_text(encoding="utf-8")
    for name in sessions(5):
        assert f'href="{name}"' in main
        assert 'href="sub-01.html"' in (tmp_path / name).read_text(encoding="utf-8")


def test_four_sessions_have_none(tmp_path):
    write(tmp_path, 4)
    assert names(tmp_path) == ["sub-01.html"]


def test_pages_of_sessions_that_are_gone_are_removed_in_their_space_only(tmp_path):
    write(tmp_path, 6)
    write(tmp_path, 6, "fsaverage5", first=False)
    other = tmp_path / "sub-010_ses-001.html"
    other.touch()
    spaced = ["sub-01_space-fsaverage5.html", *sessions(6, "_space-fsaverage5"), other.name]
    assert names(tmp_path) == sorted(["sub-01.html", *sessions(6), *spaced])
    write(tmp_path, 5)
    assert names(tmp_path) == sorted(["sub-01.html", *sessions(5), *spaced])
    write(tmp_path, 4)
    assert names(tmp_path) == sorted(["sub-01.html", *spaced])
    # the place takes the plain name when it is free, and no page of its former name stays
    (tmp_path / "sub-01.html").unlink()
    write(tmp_path, 5, "fsaverage5")
    assert names(tmp_path) == sorted(["sub-01.html", *sessions(5), other.name])


def test_the_session_stands_after_the_participant(tmp_path):
    assert session_page_path(tmp_path / "sub-01.html", "003").name == "sub-01_ses-003.html"
    spaced = session_page_path(tmp_path / "sub-01_space-fsLR_den-91k.html", "003")
    assert spaced.name == "sub-01_ses-003_space-fsLR_den-91k.html"
