"""Regions on the group page, from tables made by hand."""

from bids_mllm.io.derivatives import MapName
from bids_mllm.io.files import write_tsv
from bids_mllm.io.results import ModelResult
from bids_mllm.workflows.group_report import _rois
from bids_mllm.workflows.group_shown import choice_tables, class_tables, partition_blocks

SCORES = {"r2": 0.1, "cv_r2": 0.1, "r_normalized": 0.3}


def row(participant, roi, kind, r, coverage):
    heads = {"participant": participant, "model": "m", "condition": "best", "pooling": "best", "instruction": None}
    index = None if kind != "area" else 1
    own = {"layer": "best", "roi_index": index, "roi": roi, "kind": kind, "coverage": coverage, "r": r}
    return {**heads, **own, **SCORES}


def test_participants_that_miss_a_region_are_left_out_of_its_mean_and_named(tmp_path):
    name = MapName(None, "life", "fsaverage6", None)
    path = name.path(tmp_path, extension=".tsv", stat="scores", atlas="Glasser")
    rows = [row(p, *roi, r, 1.0) for p, r in (("01", 0.2), ("02", 0.4)) for roi in (("L_V1", "area"), ("EVC", "group"))]
    rows += [row("03", "L_V1", "area", 0.9, 0.1), row("03", "EVC", "group", 0.3, 0.9)]
    write_tsv(path, rows)
    (table, of_participants), warnings = _rois(tmp_path, [ModelResult(name, "m", tmp_path)])
    # Groups come first; the third participant counts for the group and not for the area.
    assert [(one[0], round(one[2], 3), one[6], one[7]) for one in table.rows] == [
        ("EVC", 0.3, 3, 0.9),
        ("L_V1", 0.3, 2, 0.1),
    ]
    assert warnings == (
        "Glasser, fsaverage6: sub-03 takes no part in the means of L_V1 (10%), of which its mask holds less than 50%.",
    )
    # Every participant has a row in each group; a table of an older version has no tests of regions.
    assert [(one[0], one[2], one[3], one[7], one[8]) for one in of_participants.rows] == [
        ("EVC", "sub-01", 0.2, None, None), ("EVC", "sub-02", 0.4, None, None), ("EVC", "sub-03", 0.3, None, None),
    ]  # fmt: skip


def test_tests_of_regions_stand_in_the_table_of_participants(tmp_path):
    name = MapName(None, "life", "fsaverage6", None)
    path = name.path(tmp_path, extension=".tsv", stat="scores", atlas="Glasser")
    tested = {"noise_ceiling": 0.5, "n_voxels": 12, "p": 0.001, "q": 0.01}
    write_tsv(path, [{**row("01", "EVC", "group", 0.2, 1.0), **tested}])
    (_, table), _ = _rois(tmp_path, [ModelResult(name, "m", tmp_path)])
    assert dict(zip(table.columns, table.rows[0], strict=True)) == {
        "ROI": "EVC", "Model": "m", "Participant": "sub-01", "r": 0.2, "r / ceiling": 0.3, "R2": 0.1, "Ceiling": 0.5,
        "p": 0.001, "q": 0.01, "Places": 12, "Coverage": 1.0,
    }  # fmt: skip


def test_native_spaces_show_the_tables_that_the_group_has(tmp_path):
    own = MapName("01", "life", "T1w", None)
    write_tsv(
        own.of_group().path(tmp_path, extension=".tsv", stat="scores", atlas="aparc"),
        [row("01", "V1", "area", 0.2, 1.0)],
    )
    counted = {"participant": "01", "model": "m", "roi": "all", "kind": "all", "choice": "layer"}
    counts = [{**counted, "value": value, "count": count} for value, count in (("3", 30), ("4", 10))]
    write_tsv(own.of_group().path(tmp_path, extension=".tsv", stat="choicecounts", atlas="aparc"), counts)
    results = [ModelResult(own, "m", tmp_path)]
    (table, _), _ = _rois(tmp_path, results)
    assert table.rows[0][:3] == ("V1", "m", 0.2)
    (choices,) = choice_tables(results)
    assert choices.rows == (("all", "m", "3", 30, 0.75), ("all", "m", "4", 10, 0.25))


def test_classes_are_shown_with_their_unit_and_what_p_can_reach(tmp_path):
    name = MapName(None, "life", "fsaverage6", None)
    numbers = {
        "percent_difference": 12.5, "percent_low": 10, "percent_high": 15, "mean_difference": 0.02, "low": 0.01,
        "high": 0.03, "p_sign_flip": 0.25, "p_wilcoxon": None, "smallest_p": 0.25,
    }  # fmt: skip
    heads = {"roi": "all", "class_a": "instruction-tuned", "class_b": "low-level", **numbers}
    over = {"unit": "participant", "participant": None, "n_participants": 3, "n_runs": None, **heads}
    within = {"unit": "run", "participant": "01", "n_participants": None, "n_runs": 4, **heads}
    write_tsv(name.path(tmp_path, extension=".tsv", stat="classcomparison"), [over, within])
    first, second = class_tables([ModelResult(name, "m", tmp_path)])
    tail = (12.5, 10.0, 15.0, 0.02, 0.01, 0.03, 0.25, None, 0.25)
    assert first.rows == (("all", "instruction-tuned", "low-level", 3, *tail),)
    assert second.rows == (("sub-01", "instruction-tuned", "low-level", 4, *tail),)
    assert first.columns[-1] == second.columns[-1] == "Smallest p"


def test_pairs_are_shown_for_sets_and_all_places_alone(tmp_path):
    name = MapName(None, "life", "fsaverage6", None)
    parts = {"unique_a": 0.02, "unique_b": 0.03, "shared": 0.05, "joint": 0.1, "shared_percent": 50}
    heads = {"model": "m", "condition_a": "a", "condition_b": "b", "measure": "R2", "n_participants": 2, **parts}
    regions = (("all", "all"), ("visual", "set"), ("V1", "area"))
    rows = [{"roi": roi, "kind": kind, **heads} for roi, kind in regions]
    write_tsv(name.path(tmp_path, extension=".tsv", stat="partition"), rows)
    (table,) = partition_blocks([ModelResult(name, "m", tmp_path)])
    assert table.rows == tuple((roi, "m", "a", "b", 0.02, 0.03, 0.05, 0.1, 50.0, 2) for roi in ("all", "visual"))
