"""Tables of the group, from maps and tables of participants made by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from bids_mllm.interfaces.group_tables import (
    whole_row,
    with_rates,
    write_choice_counts,
    write_class_comparison,
    write_comparison,
    write_group_tables,
    write_partition,
    write_roi_tables,
)
from bids_mllm.io.derivatives import MapName, sidecar_path, write_map
from bids_mllm.io.files import read_json, read_tsv, write_tsv
from bids_mllm.io.grids import ParcelGrid
from bids_mllm.io.results import ModelResult

GRID = ParcelGrid(tuple(f"p{number}" for number in range(6)))
KEPT = np.ones(6, dtype=bool)
OLD_COLUMNS = ["participant", "model", "condition", "layer", "roi", "kind", "coverage", "n_voxels", "r"]


def result_of(folder, participant, model):
    return ModelResult(MapName(participant, "life", "MNI", extension=".tsv"), model, folder)


def write_values(result, stat, values, desc="best", **sidecar):
    write_map(result.path(stat, desc), np.asarray(values, dtype=np.float32), KEPT, GRID, sidecar)


def score_row(result, roi, r=0.1, *, kind="area", coverage=1.0, **more):
    heads = {"participant": result.name.participant, "model": result.model, "condition": "best", "layer": "best"}
    return {**heads, "roi": roi, "kind": kind, "coverage": coverage, "n_voxels": 3, "r": r, **more}


def write_scores(result, rows, atlas="toy"):
    columns = OLD_COLUMNS + [name for name in rows[0] if name not in OLD_COLUMNS]
    write_tsv(result.path("scores", None, extension=".tsv", atlas=atlas), rows, columns)


def group_table(folder, stat, atlas=None):
    path = MapName(None, "life", "MNI", extension=".tsv").path(folder, extension=".tsv", stat=stat, atlas=atlas)
    return read_tsv(path), read_json(sidecar_path(path))


def test_rates_go_over_regions_and_models_of_one_participant():
    p = {("01", "a"): [0.01, 0.04], ("01", "b"): [0.03, np.nan], ("02", "a"): [0.2, 0.5]}
    rows = [{"participant": who, "model": m, "p": value} for (who, m), own in p.items() for value in own]
    found = with_rates(rows)
    first = [row["q"] for row in found if row["participant"] == "01"]
    np.testing.assert_allclose(np.array(first)[:3], false_discovery_control([0.01, 0.04, 0.03]))
    assert np.isnan(first[3])
    np.testing.assert_allclose([row["q"] for row in found[4:]], [0.4, 0.5])


def test_rates_of_noise_find_something_no_more_often_than_by_chance():
    rng = np.random.default_rng(0)
    rows = [{"participant": f"{who}", "p": value} for who in range(600) for value in rng.uniform(size=12)]
    found = {row["participant"] for row in with_rates(rows) if row["q"] <= 0.05}
    assert len(found) / 600 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)


def test_all_voxels_come_from_the_maps_where_the_tables_lack_them(tmp_path):
    new, old = result_of(tmp_path, "01", "new"), result_of(tmp_path, "01", "old")
    write_scores(new, [score_row(new, "all", 0.2, kind="all", p=0.01), score_row(new, "V1", p=0.04)])
    write_scores(old, [score_row(old, "V1")])
    write_values(old, "r", [0.1, 0.2, 0.3, np.nan, 0.0, -0.1])
    write_values(old, "p", [0.02, 0.03, 0.9, np.nan, 0.9, 0.9])
    write_values(old, "q", [0.04, 0.2, 0.9, np.nan, 0.9, 0.9])
    (path,) = write_roi_tables([new, old], new.name.of_group())
    rows, sidecar = group_table(tmp_path, "scores", "toy")
    assert path.name == "task-life_space-MNI_atlas-toy_stat-scores_statmap.tsv"
    assert [(row["model"], row["roi"], row["kind"]) for row in rows] == [
        ("new", "all", "all"), ("new", "V1", "area"), ("old", "all", "all"), ("old", "V1", "area"),
    ]  # fmt: skip
    filled = rows[2]
    assert (filled["r"], filled["n_voxels"], filled["significant_share"]) == ("0.1", "5", "0.2")
    assert float(filled["p"]) == pytest.approx(0.075)  # 5 * 0.03 / 2
    assert rows[3]["p"] == rows[3]["q"] == "n/a"
    expected = false_discovery_control([0.01, 0.04, 0.075])
    np.testing.assert_allclose([float(row["q"]) for row in rows[:3]], expected)
    assert "models of the participant" in sidecar["q"]["Description"]


def test_the_row_of_all_voxels_does_without_maps_that_are_not_there(tmp_path):
    result = result_of(tmp_path, "01", "m")
    write_values(result, "r", [np.nan] * 6)
    row = whole_row(result)
    assert row["n_voxels"] == 0
    assert all(np.isnan(row[name]) for name in ("r", "r2", "r_normalized", "p", "significant_share"))


def test_a_table_without_rows_is_removed(tmp_path):
    result = result_of(tmp_path, "01", "m")
    path = result.name.of_group().path(tmp_path, extension=".tsv", stat="grouptest")
    write_tsv(path, [{"model_a": "gone"}])
    assert write_comparison([result], result.name.of_group()) == []
    assert not path.exists()


def facts(kind, weights="pretrained"):
    return {"Model": {"Kind": kind, "Weights": weights}}


def class_results(folder, *, runs=("x", "y", "z")):
    """Two participants and three models, the first better by 0.1 in every voxel and run."""
    results = []
    for who, participant in enumerate(("01", "02")):
        for model, kind, r in (("it", "instruction-tuned video", 0.3), ("u1", "unimodal video", 0.2),
                               ("u2", "unimodal audio", 0.2)):  # fmt: skip
            result = result_of(folder, participant, model)
            values = r + 0.1 * who + np.linspace(-0.05, 0.05, 6)
            write_values(result, "r", values, **facts(kind))
            by_run = np.stack([values + shift for shift in np.linspace(-0.02, 0.02, len(runs))])
            write_values(result, "rbyrun", by_run[0] if len(runs) == 1 else by_run, Runs=list(runs))
            results.append(result)
    return results


def test_classes_are_compared_without_an_atlas(tmp_path):
    results = class_results(tmp_path)
    (path,) = write_class_comparison(results, results[0].name.of_group())
    rows, sidecar = group_table(tmp_path, "classcomparison")
    assert path.name == "task-life_space-MNI_stat-classcomparison_statmap.tsv"
    assert [(row["unit"], row["participant"], row["roi"]) for row in rows] == [
        ("participant", "n/a", "all"), ("run", "01", "all"), ("run", "02", "all"),
    ]  # fmt: skip
    group, first, _ = rows
    assert (group["class_a"], group["class_b"], group["models_b"]) == ("instruction-tuned", "unimodal", "u1, u2")
    assert float(group["mean_difference"]) == pytest.approx(0.1)
    # 50 % in the first participant, a third in the second.
    assert float(group["percent_difference"]) == pytest.approx((50 + 100 / 3) / 2, rel=1e-5)
    assert (group["n_participants"], group["smallest_p"], group["n_runs"]) == ("2", "0.5", "n/a")
    assert float(first["mean_difference"]) == pytest.approx(0.1)
    assert [float(first[name]) for name in ("low", "high")] == pytest.approx([0.1, 0.1], rel=1e-5)
    assert (first["n_runs"], first["p_sign_flip"], first["smallest_p"], first["p_wilcoxon"]) == (
        "3", "0.25", "0.25", "n/a",
    )  # fmt: skip
    assert "mean over its models" in sidecar["Description"]


def test_classes_are_compared_in_groups_or_else_in_areas(tmp_path):
    results = class_results(tmp_path, runs=("x",))
    for result in results:
        r = 0.4 if result.model == "it" else 0.3
        write_scores(result, [score_row(result, "V1", r), score_row(result, "EVC", r, kind="group")])
        write_scores(result, [score_row(result, "A1", "n/a")], atlas="other")
    write_class_comparison(results, results[0].name.of_group())
    rows, _ = group_table(tmp_path, "classcomparison")
    over = {row["roi"]: row for row in rows if row["unit"] == "participant"}
    # Without a value nobody can be compared; the areas of the atlas that has a group are left out.
    assert list(over) == ["all", "toy:EVC"]
    assert float(over["toy:EVC"]["percent_difference"]) == pytest.approx(100 / 3, rel=1e-5)
    assert {row["smallest_p"] for row in rows if row["unit"] == "run"} == {"1"}
    for result in results:
        write_scores(result, [score_row(result, "A1", 0.1, kind="area")], atlas="other")
    write_class_comparison(results, results[0].name.of_group())
    rows, _ = group_table(tmp_path, "classcomparison")
    assert "other:A1" in {row["roi"] for row in rows}


def test_one_class_has_nothing_to_be_compared_with(tmp_path):
    results = [result for result in class_results(tmp_path) if result.model != "it"]
    assert write_class_comparison(results, results[0].name.of_group()) == []


def test_pairs_of_thirteen_instructions_are_gathered(tmp_path):
    keys = [f"generatedI{number}" for number in range(13)]
    pairs = [(a, b) for number, a in enumerate(keys) for b in keys[number + 1 :]]
    regions = [("all", "all"), ("visual", "set"), ("language", "set"), ("V1", "area")]
    results = [result_of(tmp_path, participant, "m") for participant in ("01", "02")]
    for shift, result in zip((0.0, 0.02), results, strict=True):
        parts = {"unique_a": 0.1 + shift, "unique_b": 0.1, "shared": 0.2, "joint": 0.4 + shift, "n_voxels": 6}
        rows = [
            {"participant": result.name.participant, "model": "m", "condition_a": a, "condition_b": b, "roi": roi,
             "kind": kind, "measure": "R2", **parts}
            for roi, kind in regions for a, b in pairs
        ]  # fmt: skip
        write_tsv(result.path("partition", None, extension=".tsv"), rows)
    (path,) = write_partition(results, results[0].name.of_group())
    rows, _ = group_table(tmp_path, "partition")
    assert path.name == "task-life_space-MNI_stat-partition_statmap.tsv"
    assert len(rows) == 3 * 78
    assert {row["roi"] for row in rows} == {"all", "visual", "language"}
    assert (rows[0]["unique_a"], rows[0]["unique_a_sem"], rows[0]["n_participants"]) == ("0.11", "0.01", "2")
    assert float(rows[0]["shared_percent"]) == pytest.approx(100 * 0.2 / 0.41, rel=1e-5)
    assert not {"participant", "n_voxels"} & set(rows[0])
    without = [result_of(tmp_path, "03", "m")]
    assert write_partition(without, results[0].name.of_group()) == []
    assert not path.exists()


def write_choices(result):
    facts = {"Conditions": ["gAR", "gVU"], "Layers": [4, 8, 12]}
    write_values(result, "bestcondition", [0, 1, 1, np.nan, 0, 1], desc=None)
    write_values(result, "bestlayer", [4, 12, 12, np.nan, 8, 12], desc=None)
    write_values(result, "r", [0.1, 0.2, 0.3, 0.4, -0.1, np.nan], **facts)


def test_choices_are_counted_from_the_maps_without_an_atlas(tmp_path):
    result = result_of(tmp_path, "01", "m")
    write_choices(result)
    (path,) = write_choice_counts([result], result.name.of_group())
    rows, _ = group_table(tmp_path, "choicecounts")
    assert path.name == "task-life_space-MNI_stat-choicecounts_statmap.tsv"
    assert [(row["choice"], row["value"], row["count"], row["n_voxels"]) for row in rows] == [
        ("condition", "gAR", "1", "3"), ("condition", "gVU", "2", "3"),
        ("layer", "4", "1", "3"), ("layer", "8", "0", "3"), ("layer", "12", "2", "3"),
    ]  # fmt: skip
    assert {(row["participant"], row["roi"], row["kind"]) for row in rows} == {("01", "all", "all")}


def test_choices_of_participants_are_gathered_by_atlas(tmp_path):
    new, old = result_of(tmp_path, "01", "m"), result_of(tmp_path, "02", "m")
    for result in (new, old):
        write_choices(result)
    write_choice_counts([new, old], new.name.of_group())  # from before there was an atlas
    for result in (new, old):
        write_scores(result, [score_row(result, "V1")])
    row = {"participant": "01", "model": "m", "roi_index": 1, "roi": "V1", "kind": "area", "choice": "layer",
           "value": 4, "count": 7, "n_voxels": 7, "share": 1.0}  # fmt: skip
    write_tsv(new.path("choicecounts", None, extension=".tsv", atlas="toy"), [row])
    (path,) = write_choice_counts([new, old], new.name.of_group())
    assert [path] == list(path.parent.glob("*.tsv"))
    rows, _ = group_table(tmp_path, "choicecounts", "toy")
    assert rows[0] == {key: str(value) for key, value in row.items()} | {"share": "1"}
    assert {(one["participant"], one["roi"]) for one in rows[1:]} == {("02", "all")}


def test_tables_of_atlases_that_nobody_has_any_more_are_removed(tmp_path):
    results = [result_of(tmp_path, participant, "m") for participant in ("01", "02")]
    for result in results:
        write_choices(result)
        described = facts("unimodal video") | {"Conditions": ["gAR", "gVU"], "Layers": [4, 8, 12]}
        write_values(result, "r", np.full(6, 0.1), **described)
        for atlas in ("toy", "old"):
            write_scores(result, [score_row(result, "V1")], atlas)
    name = results[0].name.of_group()
    finer = replace(name, resolution="2").path(tmp_path, extension=".tsv", stat="scores", atlas="old")
    write_tsv(finer, [{"roi": "V1"}])
    gone = [name.path(tmp_path, extension=".tsv", stat=stat, atlas="old") for stat in ("scores", "choicecounts")]
    assert set(gone) <= set(write_group_tables(results, name))
    for result in results:
        result.path("scores", None, extension=".tsv", atlas="old").unlink()
    written = write_group_tables(results, name)
    assert set(finer.parent.glob("*.tsv")) == {*written, finer}
    assert set(finer.parent.glob("*.json")) == {sidecar_path(path) for path in written}
    for result in results:
        result.path("scores", None, extension=".tsv", atlas="toy").unlink()
    write_group_tables(results, name)
    assert [path for path in finer.parent.glob("*_atlas-*") if path != finer] == []
