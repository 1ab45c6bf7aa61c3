"""Names, maps and descriptions of the output data set, read back through nibabel and PyBIDS."""

import json
import logging
import multiprocessing
import re
import warnings

import nibabel as nib
import numpy as np
import pytest
from volumes import AFFINE, SHAPE

from bids_mllm.exceptions import BidsMllmError, InputDataError, StoreError
from bids_mllm.io.derivatives import (
    MapName,
    film_label,
    outputs,
    pybids_config,
    sidecar_path,
    write_dataset_files,
    write_map,
    write_mask,
    write_table,
)
from bids_mllm.io.files import read_tsv
from bids_mllm.io.grids import VolumeGrid, same_grid
from bids_mllm.io.maps import load_map
from bids_mllm.io.results import find_results, stack_maps, table_paths

MASK = (np.random.default_rng(0).random(SHAPE) > 0.4).ravel()
GRID = VolumeGrid(SHAPE, AFFINE)


@pytest.mark.parametrize(
    ("tasks", "label"),
    [
        (["life01", "life02", "life02"], "life"),
        (["wolf01", "bourne10", "life03"], "bourne+life+wolf"),
        (["rest"], "rest"),
        (["2001", "2002"], "2001+2002"),
        ([f"film{letter}{letter}{letter}1" for letter in "abcdefgh"], "8films"),
    ],
)
def test_films_name_their_tasks(tasks, label):
    assert film_label(tasks) == label
    assert re.fullmatch("[0-9a-zA-Z+]{1,40}", film_label(tasks))


def test_names_and_the_order_of_entities(tmp_path):
    name = MapName("01", "life", "T1w", "2")
    path = name.path(tmp_path, model="qwen25vl7b", stat="r", desc="best")
    assert (
        path
        == tmp_path / "sub-01/func/sub-01_task-life_space-T1w_res-2_model-qwen25vl7b_stat-r_desc-best_statmap.nii.gz"
    )
    table = name.path(tmp_path, model="m", stat="scores", atlas="AAL", extension=".tsv")
    assert table.name == "sub-01_task-life_space-T1w_atlas-AAL_res-2_model-m_stat-scores_statmap.tsv"
    mask = MapName("01", "life", "T1w").path(tmp_path, suffix="mask", desc="encoding")
    assert mask.name == "sub-01_task-life_space-T1w_desc-encoding_mask.nii.gz"
    group = MapName(None, "life", "T1w").path(tmp_path, model="m", stat="r")
    assert group == tmp_path / "group/func/task-life_space-T1w_model-m_stat-r_statmap.nii.gz"
    assert sidecar_path(path).name == path.name.replace(".nii.gz", ".json")


@pytest.mark.parametrize("n_maps", [None, 1, 3])
def test_maps_come_back_with_nan_outside_the_mask(tmp_path, n_maps):
    shape = (int(MASK.sum()),) if n_maps is None else (n_maps, int(MASK.sum()))
    values = np.random.default_rng(0).standard_normal(shape)
    path = tmp_path / "sub-01" / "func" / "sub-01_stat-r_statmap.nii.gz"
    write_map(path, values, MASK, GRID, {"Units": "arbitrary"})
    image = nib.load(path)
    volume = np.asarray(image.dataobj)
    assert volume.dtype == np.float32
    assert volume.shape == (SHAPE if n_maps is None else (*SHAPE, n_maps))
    np.testing.assert_array_equal(volume[MASK.reshape(SHAPE)], values.astype(np.float32).T)
    assert np.isnan(volume[~MASK.reshape(SHAPE)]).all()
    np.testing.assert_array_equal(image.affine, AFFINE)
    again, grid = load_map(path)
    np.testing.assert_array_equal(again[..., MASK], values.astype(np.float32))
    assert same_grid(grid, GRID)
    assert json.loads(sidecar_path(path).read_text()) == {"Units": "arbitrary"}
    assert sorted(p.name for p in path.parent.iterdir()) == ["sub-01_stat-r_statmap.json", path.name]


def test_a_mask_has_its_sidecar_with_the_resolution(tmp_path):
    path = MapName("01", "life", "T1w", "2").path(tmp_path, suffix="mask", desc="encoding")
    write_mask(path, MASK, GRID, {"Type": "Brain", "Resolution": "res-2 of the input"})
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj).ravel(), MASK)
    assert json.loads(sidecar_path(path).read_text())["Resolution"] == "res-2 of the input"


def test_a_table_describes_its_columns(tmp_path):
    path = tmp_path / "sub-01_statmap.tsv"
    write_table(path, [{"b": 2.5, "a": "x"}], {"a": "first", "b": "second"}, {"Atlas": "AAL"})
    assert read_tsv(path) == [{"a": "x", "b": "2.5"}]
    assert json.loads(sidecar_path(path).read_text()) == {
        "Atlas": "AAL",
        "a": {"Description": "first"},
        "b": {"Description": "second"},
    }


def test_the_declared_outputs_are_described():
    declared = outputs()
    assert all(entry["Description"] and entry["Units"] for entry in declared["maps"].values())
    assert all(table["Description"] and table["Columns"] for table in declared["tables"].values())
    assert all(re.fullmatch("[0-9a-zA-Z+]+", name) for part in declared.values() for name in part)


def describe(folder, version="1.0", descriptions=None, licence="CC0-1.0", container=None):
    write_dataset_files(
        folder,
        version=version,
        links={"raw": "../raw", "fmriprep": "../prep"},
        sources=[{"URL": "bids:raw:"}],
        licence=licence,
        descriptions=descriptions or {"best": "Chosen"},
        container=container,
    )
    return json.loads((folder / "dataset_description.json").read_text())


def test_the_description_of_the_data_set(tmp_path):
    content = describe(tmp_path / "new" / "out")
    assert content["DatasetType"] == "derivative"
    assert content["BIDSVersion"] == "1.11.1"
    assert content["GeneratedBy"][0]["Name"] == "bids-mllm"
    assert content["GeneratedBy"][0]["Version"] == "1.0"
    assert content["DatasetLinks"] == {"raw": "../raw", "fmriprep": "../prep"}
    assert content["SourceDatasets"] == [{"URL": "bids:raw:"}]
    assert content["License"] == "CC0-1.0"
    assert "License" not in describe(tmp_path / "other", licence=None)
    assert "Container" not in content["GeneratedBy"][0]
    container = {"Type": "docker", "Tag": "bids-mllm:1.0-cpu"}
    assert describe(tmp_path / "image", container=container)["GeneratedBy"][0]["Container"] == container
    lines = (tmp_path / "new" / "out" / ".bidsignore").read_text().split("\n")
    assert {"*.html", "**/figures", "**/log", "*_statmap.*", "*_features.*", "group"} <= set(lines)


def test_descriptions_of_several_calls_are_merged(tmp_path):
    describe(tmp_path, descriptions={"best": "Chosen", "mine": "First\nline\tand tab"})
    describe(tmp_path, descriptions={"best": "Chosen well", "other": "Second"})
    assert read_tsv(tmp_path / "descriptions.tsv") == [
        {"desc_id": "desc-best", "description": "Chosen well"},
        {"desc_id": "desc-mine", "description": "First line and tab"},
        {"desc_id": "desc-other", "description": "Second"},
    ]


def test_damaged_descriptions_are_one_sentence(tmp_path):
    (tmp_path / "descriptions.tsv").write_text("desc_id\tdescription\ndesc-a\n")
    with pytest.raises(BidsMllmError, match=r"descriptions.tsv cannot be read as a table"):
        describe(tmp_path)


def test_a_data_set_of_another_version_is_noticed(tmp_path, caplog):
    logging.getLogger("bids_mllm").propagate = True
    with caplog.at_level(logging.WARNING, logger="bids_mllm"):
        describe(tmp_path, version="0.9")
        describe(tmp_path, version="0.9")
        assert caplog.text == ""
        describe(tmp_path, version="1.0")
    assert "was written by bids-mllm 0.9, this is 1.0" in caplog.text
    (tmp_path / "dataset_description.json").write_text("{")
    describe(tmp_path)


def _describe_often(folder, label, barrier):
    barrier.wait()
    for number in range(15):
        describe(folder, descriptions={f"{label}{number}": f"from {label}"})


def test_parallel_jobs_lose_no_description(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    jobs = [context.Process(target=_describe_often, args=(tmp_path, label, barrier)) for label in "ab"]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    expected = {f"desc-{label}{number}" for label in "ab" for number in range(15)}
    assert {row["desc_id"] for row in read_tsv(tmp_path / "descriptions.tsv")} == expected
    assert json.loads((tmp_path / "dataset_description.json").read_text())["GeneratedBy"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file.* cannot be "):
        describe(tmp_path / "file" / "out")


# Results


def result(folder, sub, *, model="m", space="T1w", res=None, task="life", value=1.0, mask=MASK, grid=GRID):
    name = MapName(sub, task, space, res)
    write_map(
        name.path(folder, model=model, stat="r", desc="best"),
        np.full(int(mask.sum()), value),
        mask,
        grid,
        {"Layers": [0, 1]},
    )
    return name


def test_results_are_found_in_order(tmp_path):
    result(tmp_path, "02")
    result(tmp_path, "01", model="z")
    result(tmp_path, "01", model="a", res="2", task="bourne+wolf")
    write_map(
        MapName("03", "life", "T1w").path(tmp_path, model="m", stat="r", desc="media"),
        np.ones(int(MASK.sum())), MASK, GRID, {},
    )  # fmt: skip
    found = find_results(tmp_path)
    assert [(r.name.participant, r.name.task, r.name.resolution, r.model) for r in found] == [
        ("01", "bourne+wolf", "2", "a"),
        ("01", "life", None, "z"),
        ("02", "life", None, "m"),
    ]
    assert found[0].path("r", "best").is_file()
    assert found[0].sidecar() == {"Layers": [0, 1]}
    assert [r.name.participant for r in find_results(tmp_path, ("02",))] == ["02"]
    assert find_results(tmp_path / "none") == ()


def test_roi_tables_by_atlas(tmp_path):
    name = result(tmp_path, "01")
    for atlas in ("AAL", "Glasser"):
        write_table(
            name.path(tmp_path, model="m", stat="scores", atlas=atlas, extension=".tsv"),
            [{"roi": atlas}],
            {"roi": ""},
            {},
        )
    write_table(
        name.path(tmp_path, model="m2", stat="scores", atlas="Other", extension=".tsv"),
        [{"roi": 1}],
        {"roi": ""},
        {},
    )
    write_table(
        name.path(tmp_path, model="m", stat="layers", atlas="AAL", extension=".tsv"), [{"roi": 2}], {"roi": ""}, {}
    )
    found = table_paths(find_results(tmp_path)[0], "scores")
    assert {atlas: read_tsv(path) for atlas, path in found.items()} == {
        "AAL": [{"roi": "AAL"}], "Glasser": [{"roi": "Glasser"}],
    }  # fmt: skip
    assert list(table_paths(find_results(tmp_path)[0], "layers")) == ["AAL"]
    finer = MapName("01", name.task, name.space, "2").path(
        tmp_path, model="m", stat="layers", atlas="AAL", extension=".tsv"
    )
    write_table(finer, [{"roi": 3}], {"roi": ""}, {})
    assert finer not in table_paths(find_results(tmp_path)[0], "layers").values()


def test_maps_of_participants_are_stacked_over_the_voxels_of_any(tmp_path):
    first, second = np.zeros(24, dtype=bool), np.zeros(24, dtype=bool)
    first[:8], second[:2], second[8:16] = True, True, True
    result(tmp_path, "01", value=1.0, mask=first)
    result(tmp_path, "02", value=2.0, mask=second)
    values, mask, grid = stack_maps(find_results(tmp_path), "r", "best")
    np.testing.assert_array_equal(mask, first | second)
    np.testing.assert_array_equal(values[0], np.where(first, 1.0, np.nan)[mask])
    np.testing.assert_array_equal(values[1], np.where(second, 2.0, np.nan)[mask])
    assert same_grid(grid, GRID)


def test_stacks_of_layers(tmp_path):
    for sub in ("01", "02"):
        result(tmp_path, sub)
        path = MapName(sub, "life", "T1w").path(tmp_path, model="m", stat="r", desc="media")
        write_map(path, np.arange(3 * MASK.sum()).reshape(3, -1) + int(sub), MASK, GRID, {})
    values, mask, _ = stack_maps(find_results(tmp_path), "r", "media")
    assert values.shape == (2, 3, MASK.sum())
    np.testing.assert_array_equal(mask, MASK)
    np.testing.assert_array_equal(values[1], np.arange(3 * MASK.sum()).reshape(3, -1) + 2)


@pytest.mark.parametrize(
    "other",
    [
        {"mask": np.ones(36, dtype=bool), "grid": VolumeGrid((3, 4, 3), AFFINE)},
        {"grid": VolumeGrid(SHAPE, np.diag([3.0, 2, 2, 1]))},
    ],
)
def test_maps_on_different_grids_name_both(tmp_path, other):
    result(tmp_path, "01")
    result(tmp_path, "02", **other)
    found = find_results(tmp_path)
    with pytest.raises(InputDataError) as caught:
        stack_maps(found, "r", "best")
    assert all(str(r.path("r", "best")) in str(caught.value) for r in found)


def test_a_damaged_map_is_one_sentence(tmp_path):
    result(tmp_path, "01")
    (found,) = find_results(tmp_path)
    path = found.path("r", "best")
    for content in (path.read_bytes()[:-30], b"none"):
        path.write_bytes(content)
        with pytest.raises(InputDataError, match=r"run the participant level of sub-01 again"):
            found.map("r", "best")
    sidecar_path(path).unlink()
    with pytest.raises(BidsMllmError, match=r"cannot be read as JSON"):
        found.sidecar()


def test_pybids_tells_maps_apart_that_differ_by_stat_model_or_atlas(tmp_path):
    from bids import BIDSLayout

    describe(tmp_path)
    name = MapName("01", "life", "T1w")
    for model, stat in (("a", "r"), ("a", "r2"), ("b", "r")):
        write_map(name.path(tmp_path, model=model, stat=stat), np.ones(int(MASK.sum())), MASK, GRID, {})
    for atlas in ("AAL", "Glasser"):
        path = name.path(tmp_path, model="a", stat="scores", atlas=atlas, extension=".tsv")
        write_table(path, [{"roi": 1}], {"roi": ""}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layout = BIDSLayout(
            tmp_path, validate=False, is_derivative=True, config=["bids", "derivatives", str(pybids_config())]
        )
    maps = {"suffix": "statmap", "extension": ".nii.gz"}
    assert len(layout.get(**maps)) == 3
    (only,) = layout.get(model="a", stat="r2", **maps)
    assert only.path == str(name.path(tmp_path, model="a", stat="r2"))
    assert sorted(layout.get_stats()) == ["r", "r2", "scores"]
    (table,) = layout.get(atlas="AAL", extension=".tsv")
    assert "atlas-AAL" in table.filename
    entities = {
        "subject": "01",
        "task": "life",
        "space": "T1w",
        "model": "b",
        "stat": "r",
        "extension": ".nii.gz",
    }
    assert layout.build_path(entities, absolute_paths=False, validate=False).endswith(
        "sub-01_task-life_space-T1w_model-b_stat-r_statmap.nii.gz"
    )
