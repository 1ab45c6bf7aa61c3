"""Names of pages over several calls."""

from bids_mllm.report.pages import ParticipantPage, render_participant
from bids_mllm.workflows.page_files import page_path


def write(folder, place, *, first=True):
    path = page_path(folder, "01", place, first=first)
    path.write_text(render_participant(ParticipantPage("01", "0", "now", place=place)), encoding="utf-8")
    return path.name


def test_the_first_place_of_the_first_call_keeps_the_plain_name(tmp_path):
    assert write(tmp_path, "MNI152NLin2009cAsym") == "sub-01.html"
    assert write(tmp_path, "fsLR_den-91k", first=False) == "sub-01_space-fsLR_den-91k.html"
    before = (tmp_path / "sub-01.html").read_text(encoding="utf-8")
    assert "<h1>sub-01, MNI152NLin2009cAsym</h1>" in before
    # Another call has another space alone, or both in another order.
    assert write(tmp_path, "fsLR_den-91k") == "sub-01_space-fsLR_den-91k.html"
    assert (tmp_path / "sub-01.html").read_text(encoding="utf-8") == before
    assert write(tmp_path, "MNI152NLin2009cAsym", first=False) == "sub-01.html"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_free_plain_name_is_taken_and_no_second_page_of_the_place_stays(tmp_path):
    write(tmp_path, "T1w")
    assert write(tmp_path, "fsaverage5", first=False) == "sub-01_space-fsaverage5.html"
    (tmp_path / "sub-01.html").unlink()
    assert write(tmp_path, "fsaverage5") == "sub-01.html"
    assert [path.name for path in tmp_path.iterdir()] == ["sub-01.html"]
