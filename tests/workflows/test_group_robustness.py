"""The group level with participants whose outputs are damaged, few, other, or new."""

import gzip
import shutil
from dataclasses import replace

import numpy as np
import pytest
from group_outputs import EMPTY, VOXELS, change_sidecar, result_of, write_outputs

from bids_mllm.config import Settings
from bids_mllm.exceptions import InputDataError
from bids_mllm.io.derivatives import sidecar_path, write_map
from bids_mllm.io.files import read_tsv, write_tsv
from bids_mllm.io.maps import load_map
from bids_mllm.io.results import find_results
from bids_mllm.workflows.group import missing_participants, usable_results


@pytest.fixture
def group(call, tmp_path):
    """Call the group level on `out` of the test's folder."""
    (tmp_path / "bids").mkdir()

    def run(*words):
        return call(tmp_path / "bids", tmp_path / "out", "group", "-w", tmp_path / "work", "--nprocs", "1", *words)

    return run


def mean_of(out, model="a"):
    name = result_of(out, "01", model).name.of_group()
    return load_map(name.path(out, model=model, stat="r", desc="best"))[0]


def page_of(out):
    return (out / "group.html").read_text(encoding="utf-8")


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    """Change one voxel of a compressed volume and keep its check sum, as a fault on the disk may do."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    whole = gzip.compress(bytes(content), compresslevel=0)
    content[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(content), compresslevel=0)[:-8] + whole[-8:])


DAMAGE = {
    "map cut short": (lambda result: cut(result.path("r", "best")), "stat-r_desc-best"),
    "map of a condition cut short": (lambda result: cut(result.path("cvr2", "stimulus")), "stat-cvr2_desc-stimulus"),
    "voxel changed": (lambda result: flip(result.path("r", "stimulus")), "stat-r_desc-stimulus"),
    "map gone": (lambda result: result.path("bestlayer", None).unlink(), "stat-bestlayer"),
    "empty map": (lambda result: result.path("p", "best").write_bytes(b""), "stat-p_desc-best"),
    "sidecar cut short": (lambda result: cut(sidecar_path(result.path("r", "best"))), "stat-r_desc-best_statmap.json"),
    "sidecar gone": (lambda result: sidecar_path(result.path("r", "best")).unlink(), "stat-r_desc-best_statmap.json"),
    "sidecar of a list": (
        lambda result: sidecar_path(result.path("r", "best")).write_text("[1]"),
        "stat-r_desc-best_statmap.json lacks Conditions",
    ),
    "map without its runs": (
        lambda result: write_map(
            result.path("rbyrun", "best"), np.zeros(6, np.float32), np.ones(6, bool), VOXELS, {"Units": "arbitrary"}
        ),
        "stat-rbyrun_desc-best_statmap.json lacks Runs",
    ),
    "table cut short": (lambda result: cut(result.path("scores", None, extension=".tsv", atlas="toy")), "stat-scores"),
}  # fmt: skip


#: Kinds of tables with one good row each, and a column of numbers.
TABLES = {
    "scores": (
        {"condition": "best", "layer": "best", "roi": "V1", "kind": "area", "coverage": 1, "r": 0.1}, "coverage",
    ),
    "choicecounts": (
        {"roi": "V1", "kind": "area", "choice": "layer", "value": 4, "count": 7, "n_voxels": 7, "share": 1.0}, "count",
    ),
    "layers": ({"condition": "stimulus", "roi": "V1", "kind": "area", "depth": 0.5}, "depth"),
    "partition": (
        {"condition_a": "x", "condition_b": "y", "roi": "all", "kind": "all", "measure": "R2", "unique_a": 0.1,
         "unique_b": 0.1, "shared": 0.1, "joint": 0.3}, "shared",
    ),
    "modelcomparison": (
        {"model_a": "a", "model_b": "b", "roi": "all", "kind": "all", "coverage": 1, "mean_difference": 0.1},
        "mean_difference",
    ),
}  # fmt: skip


def write_kind(out, participant, stat, **changed):
    """Write the table of a kind of one participant; returns its path."""
    result = result_of(out, participant, "b", VOXELS)
    shared = stat == "modelcomparison"
    atlas = None if stat in ("partition", "modelcomparison") else "toy"
    path = replace(result, model="" if shared else "b").path(stat, None, extension=".tsv", atlas=atlas)
    heads = {"participant": participant} | ({} if shared else {"model": "b"})
    write_tsv(path, [{**heads, **TABLES[stat][0], **changed}])
    return path


def left_out(out, stat, **changed):
    """Return the sentence on participant 02, whose table of a kind is changed; the path of that table."""
    for participant in ("01", "02"):
        write_outputs(out, participant, grid=VOXELS)
        write_kind(out, participant, stat)
    path = write_kind(out, "02", stat, **changed)
    usable, sentences = usable_results(find_results(out))
    assert {result.name.participant for result in usable} == ({"01", "02"} if not sentences else {"01"})
    return sentences, path


@pytest.mark.parametrize("stat", TABLES)
def test_numbers_of_tables_are_read_before_the_group_is_made(tmp_path, stat):
    column = TABLES[stat][1]
    assert left_out(tmp_path / "good", stat)[0] == ()
    (sentence,), path = left_out(tmp_path, stat, **{column: "0.9x"})
    assert sentence == (
        f"sub-02 is left out of the group: {path} has '0.9x' in line 2 of the column {column}, where a number is "
        "expected; run the participant level of sub-02 again."
    )


@pytest.mark.parametrize("stat", TABLES)
def test_tables_without_a_column_or_cut_short_are_damaged(tmp_path, stat):
    sentences, path = left_out(tmp_path, stat)
    assert sentences == ()
    whole = path.read_text()
    for n_bytes in (1, 2, 12):
        path.write_text(whole[:-n_bytes])
        (sentence,) = usable_results(find_results(tmp_path))[1]
        assert str(path) in sentence, n_bytes
    path.write_text(whole.replace("roi", "region", 1))
    (sentence,) = usable_results(find_results(tmp_path))[1]
    assert f"{path} lacks the column roi; run" in sentence
    path.write_text("")
    assert "lacks the column participant" in usable_results(find_results(tmp_path))[1][0]


def test_cells_that_the_group_can_do_without_may_be_unknown(tmp_path):
    assert left_out(tmp_path / "r", "scores", r=None)[0] == ()
    (sentence,), _ = left_out(tmp_path / "coverage", "scores", coverage=None)
    assert "has 'n/a' in line 2 of the column coverage" in sentence


@pytest.mark.parametrize("damage", DAMAGE)
def test_whose_outputs_are_damaged_is_named_and_left_out(tmp_path, damage):
    for participant in ("01", "02"):
        write_outputs(tmp_path, participant, grid=VOXELS)
    harm, words = DAMAGE[damage]
    harm(result_of(tmp_path, "02", "b", VOXELS))
    usable, (sentence,) = usable_results(find_results(tmp_path))
    assert [(result.name.participant, result.model) for result in usable] == [("01", "a"), ("01", "b")]
    assert sentence.startswith("sub-02 is left out of the group: ")
    assert words in sentence
    assert "run" in sentence


def test_a_map_with_fewer_places_than_the_rest_is_damaged(tmp_path):
    for participant in ("01", "02"):
        write_outputs(tmp_path, participant)
    path = result_of(tmp_path, "02", "a").path("cvr2", "best")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    _, (sentence,) = usable_results(find_results(tmp_path))
    assert f"{path} has 4 parcels and " in sentence
    assert "has 6, but maps of one participant have the same" in sentence


def test_nothing_is_left_out_of_what_can_be_read(tmp_path):
    for participant in ("01", "02"):
        write_outputs(tmp_path, participant, grid=VOXELS)
    results = find_results(tmp_path)
    assert usable_results(results) == (results, ())


def test_maps_of_one_condition_that_the_group_does_not_read_may_be_damaged(tmp_path):
    write_outputs(tmp_path, "01", grid=VOXELS)
    result_of(tmp_path, "01", "a", VOXELS).path("alpha", "stimulus").write_bytes(b"")
    assert usable_results(find_results(tmp_path))[1] == ()


def test_without_anybody_who_can_be_read_there_is_no_group(tmp_path):
    write_outputs(tmp_path, "01")
    cut(result_of(tmp_path, "01", "a").path("r", "best"))
    with pytest.raises(InputDataError, match=r"No participant's results can be read. sub-01 .*stat-r_desc-best"):
        usable_results(find_results(tmp_path))


def test_the_group_goes_on_without_the_damaged_and_says_so(group, tmp_path):
    out = tmp_path / "out"
    for participant, r in (("01", 0.1), ("02", 0.3), ("03", 0.9)):
        write_outputs(out, participant, r=r)
    cut(result_of(out, "03", "b").path("r", "best"))
    ended = group()
    assert ended.status == 1, ended.err
    assert "sub-03 is left out of the group: " in ended.err
    np.testing.assert_allclose(mean_of(out).mean(), 0.2, rtol=1e-6)
    page = page_of(out)
    assert "sub-03 is left out of the group: " in page.partition('id="errors"')[2].partition("</section>")[0]
    assert group("--dry-run").status == group("--reports-only").status == 1


def test_a_group_of_one(group, tmp_path):
    out = tmp_path / "out"
    write_outputs(out, "01", r=0.3, rows=[("empty", EMPTY)])
    ended = group()
    assert ended.status == 0, ended.err
    np.testing.assert_allclose(mean_of(out).mean(), 0.3, rtol=1e-6)
    sem = result_of(out, "01", "a").name.of_group().path(out, model="a", stat="sem", desc="best")
    assert np.isnan(load_map(sem)[0]).all()
    assert "cannot reach a two-sided p below 1." in page_of(out)


def test_a_region_without_voxels_is_in_the_table_without_a_score(group, tmp_path):
    out = tmp_path / "out"
    for participant in ("01", "02"):
        write_outputs(out, participant, rows=[("nothing", EMPTY)])
    assert group().status == 0
    table = next((out / "group/func").glob("*atlas-toy*_stat-scores_statmap.tsv"))
    rows = [row for row in read_tsv(table) if row["roi"] == "nothing"]
    assert [(row["n_voxels"], row["r"]) for row in rows] == [("0", "n/a")] * 4
    assert "nothing" in page_of(out)


def test_participants_may_lack_a_model_which_is_told(group, tmp_path):
    out = tmp_path / "out"
    write_outputs(out, "01", r=0.1)
    write_outputs(out, "02", ("a",), r=0.3)
    assert group().status == 0
    np.testing.assert_allclose([mean_of(out).mean(), mean_of(out, "b").mean()], [0.2, 0.1], rtol=1e-6)
    assert "sub-02 has no results of b." in page_of(out)


def test_a_further_participant_changes_the_group(group, tmp_path):
    out = tmp_path / "out"
    write_outputs(out, "01", r=0.1)
    assert group().status == 0
    write_outputs(out, "02", r=0.5)
    assert group().status == 0
    np.testing.assert_allclose(mean_of(out).mean(), 0.3, rtol=1e-6)
    table = read_tsv(next((out / "group/func").glob("*atlas-toy*_stat-scores_statmap.tsv")))
    assert {row["participant"] for row in table} == {"01", "02"}
    write_outputs(out, "02", r=0.3)
    assert group().status == 0
    np.testing.assert_allclose(mean_of(out).mean(), 0.2, rtol=1e-6)


def test_outputs_of_two_versions_are_told(group, tmp_path):
    out = tmp_path / "out"
    for participant in ("01", "02"):
        write_outputs(out, participant)
    assert group().status == 0
    assert "several versions of the app" not in page_of(out)
    for model in "ab":
        change_sidecar(result_of(out, "02", model), AppVersion="0.9")
    assert group().status == 0
    assert "come from several versions of the app: 0.9, 1.0." in page_of(out)


def test_participants_of_the_data_set_without_results_are_told(group, tmp_path):
    out = tmp_path / "out"
    write_outputs(out, "01")
    for label in ("01", "03", "02"):
        (tmp_path / "bids" / f"sub-{label}").mkdir()
    (tmp_path / "bids/sub-notes.txt").write_text("no participant")
    ended = group()
    assert ended.status == 0, ended.err
    told = "The group is without sub-02, sub-03: the output folder has no results of the participant level of them;"
    assert told in ended.err
    assert told in page_of(out).partition('id="warnings"')[2].partition("</section>")[0]
    write_outputs(out, "02")
    write_outputs(out, "03")
    assert "The group is without" not in group().err + page_of(out)


def test_participants_asked_for_without_results_are_told_unless_none_has_any(group, tmp_path):
    out = tmp_path / "out"
    for participant, r in (("01", 0.1), ("02", 0.3), ("04", 0.9)):
        write_outputs(out, participant, r=r)
    (tmp_path / "bids/sub-05").mkdir()
    ended = group("--participant-label", "01", "02", "03")
    assert ended.status == 0, ended.err
    assert "The group is without sub-03: " in ended.err
    assert "The group is without sub-03: " in page_of(out)
    np.testing.assert_allclose(mean_of(out).mean(), 0.2, rtol=1e-6)
    ended = group("--participant-label", "03", "sub-06")
    assert ended.status == 2
    assert "has no results of 03, 06; run the participant level for them first." in ended.err


def test_a_data_set_that_cannot_be_read_says_nothing_of_missing_participants(tmp_path):
    write_outputs(tmp_path / "out", "01")
    settings = Settings(tmp_path / "gone", tmp_path / "out", "group")
    assert missing_participants(settings) == []
    assert len(missing_participants(replace(settings, participant_label=("01", "02")))) == 1


def test_reports_of_other_participants_than_the_maps_are_told(group, tmp_path):
    out = tmp_path / "out"
    for participant in ("01", "02"):
        write_outputs(out, participant)
    assert group().status == 0
    told = "The group maps of a, b were made of other participants than this page: "
    assert group("--reports-only").status == 0
    assert told not in page_of(out)
    write_outputs(out, "03")
    shutil.rmtree(out / "sub-02")
    assert group("--reports-only").status == 0
    words = (
        "sub-03 is not in them; sub-02 is in them, but no longer among the results used. Run the group level without"
    )
    assert told + words in page_of(out)
    assert group().status == 0
    assert told not in page_of(out)
