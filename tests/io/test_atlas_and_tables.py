"""Atlases on the grid of the maps, and feature tables of the user's."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from volumes import AFFINE, SHAPE, save

from bids_mllm.exceptions import StimulusError, UsageError
from bids_mllm.io.atlas import atlas_name, load_atlas, read_labels
from bids_mllm.io.tables import read_feature_table, table_path


def labelled(tmp_path, labels, table="index\tname\n0\tbackground\n1\tV1\n2\tV2\n9\tabsent\n", affine=AFFINE):
    path = save(tmp_path / "atlas-Two_dseg.nii.gz", labels, affine)
    if table is not None:
        (tmp_path / "atlas-Two_dseg.tsv").write_text(table)
    return path


def halves():
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[0], labels[2] = 1, 2
    return labels


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("tpl-X_atlas-Schaefer2018_dseg.nii.gz", "Schaefer2018"),
        ("atlas-AAL+3_dseg.nii", "AAL+3"),
        ("my_rois v2.nii.gz", "myroisv2"),
        ("HarvardOxford-cort-maxprob-thr25-2mm.nii.gz", "HarvardOxfordcortmaxprobthr252mm"),
    ],
)
def test_the_label_of_an_atlas(name, label):
    assert atlas_name(Path(name)) == label


def test_labels_of_the_mask_and_sizes_of_the_whole(tmp_path):
    mask = np.ones(SHAPE, dtype=bool)
    mask[0, 0] = False
    atlas = load_atlas(labelled(tmp_path, halves()), mask, AFFINE)
    assert (atlas.name, atlas.indices, atlas.names, atlas.total_voxels) == (
        "Two",
        (1, 2),
        ("V1", "V2"),
        (8, 8),
    )
    np.testing.assert_array_equal(atlas.labels, halves()[mask])


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int32])
def test_types_of_label_images_and_a_fourth_axis_of_one(tmp_path, dtype):
    atlas = load_atlas(labelled(tmp_path, halves().astype(dtype)[..., None]), np.ones(SHAPE, dtype=bool), AFFINE)
    np.testing.assert_array_equal(atlas.labels, halves().ravel())


def test_an_atlas_of_half_the_voxel_size_is_brought_to_the_grid_of_the_maps(tmp_path):
    fine = halves().repeat(2, 0).repeat(2, 1).repeat(2, 2)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -0.5  # the centres of eight small voxels are around the centre of a large one
    atlas = load_atlas(labelled(tmp_path, fine, affine=affine), np.ones(SHAPE, dtype=bool), AFFINE)
    np.testing.assert_array_equal(atlas.labels, halves().ravel())
    assert atlas.total_voxels == (8, 8)


def test_a_shifted_atlas_of_the_same_shape_is_resampled(tmp_path):
    affine = AFFINE.copy()
    affine[0, 3] = 2.0  # one voxel along x
    atlas = load_atlas(labelled(tmp_path, halves(), affine=affine), np.ones(SHAPE, dtype=bool), AFFINE)
    np.testing.assert_array_equal(atlas.labels.reshape(SHAPE)[:, 0, 0], [0, 1, 0])
    assert atlas.names == ("V1",)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (None, "no table atlas-Two_dseg.tsv beside it"),
        ("id\tname\n1\tV1\n", "must have the tab-separated columns index"),
        ("index\tlabel\n1\tV1\n", "must have the tab-separated columns index"),
        ("index\tname\none\tV1\n", r"index \(integers\)"),
        ("index\tname\n1\n", "must have the tab-separated columns index"),
        ("index,name\n1,V1\n", "must have the tab-separated columns index"),
        ("index\tname\n7\tV7\n", "No label of the table"),
    ],
)
def test_faults_of_a_table(tmp_path, table, words):
    path = labelled(tmp_path, halves(), table)
    with pytest.raises(UsageError, match=words):
        load_atlas(path, np.ones(SHAPE, dtype=bool), AFFINE)


def test_a_table_that_is_no_text(tmp_path):
    path = labelled(tmp_path, halves())
    (tmp_path / "atlas-Two_dseg.tsv").write_bytes(b"\xff\xfeindex\tname")
    with pytest.raises(UsageError, match=r"cannot be read as text"):
        read_labels(path)


def test_an_atlas_of_probabilities_or_none_at_all(tmp_path):
    path = labelled(tmp_path, np.zeros((*SHAPE, 3), dtype=np.float32))
    with pytest.raises(UsageError, match=r"expected a 3-D label image"):
        load_atlas(path, np.ones(SHAPE, dtype=bool), AFFINE)
    path.write_bytes(b"none")
    with pytest.raises(UsageError, match=r"cannot be read as a label image"):
        load_atlas(path, np.ones(SHAPE, dtype=bool), AFFINE)


# Feature tables

TABLE = "onset\tduration\tloud\twords\n0\t1.5\t0.25\t2\n1.5\t1.5\t-1e-3\t0\n"


def feature_table(tmp_path, text=TABLE):
    path = tmp_path / "life" / "life01.tsv"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read(tmp_path):
    return read_feature_table(tmp_path, "life/life01.mkv")


def test_the_table_of_a_stimulus_has_its_path():
    assert table_path(Path("f"), "a/b.c.mkv") == Path("f/a/b.c.tsv")


def test_a_table_is_read_with_means_where_nothing_is_said(tmp_path):
    path = feature_table(tmp_path)
    assert read(tmp_path) == {
        "path": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "columns": ["loud", "words"],
        "aggregation": ["mean", "mean"],
        "onset": [0.0, 1.5],
        "duration": [1.5, 1.5],
        "values": [[0.25, 2.0], [-0.001, 0.0]],
    }


@pytest.mark.parametrize("name", ["life/life01.json", "features.json"])
def test_descriptions_say_how_a_column_is_brought_to_windows_and_count_in_the_digest(tmp_path, name):
    feature_table(tmp_path)
    plain = read(tmp_path)["sha256"]
    (tmp_path / name).write_text(json.dumps({"words": {"Aggregation": "sum"}, "loud": {"Units": "dB"}}))
    content = read(tmp_path)
    assert content["aggregation"] == ["mean", "sum"]
    assert content["sha256"] != plain


def test_the_description_beside_the_table_comes_before_that_of_the_folder(tmp_path):
    feature_table(tmp_path)
    (tmp_path / "features.json").write_text('{"words": {"Aggregation": "sum"}}')
    (tmp_path / "life" / "life01.json").write_text('{"loud": {"Aggregation": "sum"}}')
    assert read(tmp_path)["aggregation"] == ["sum", "mean"]


@pytest.mark.parametrize("bad", ["n/a", "", "inf", "-inf", "nan", "1,5", "high"])
def test_gaps_text_and_infinity_name_line_and_column(tmp_path, bad):
    path = feature_table(tmp_path, TABLE + f"3\t1\t{bad}\t1\n")
    with pytest.raises(StimulusError) as caught:
        read(tmp_path)
    assert f"{path}, line 4: loud is {bad!r}" in str(caught.value)


def test_a_short_row_is_a_gap(tmp_path):
    feature_table(tmp_path, TABLE + "3\t1\t2\n")
    with pytest.raises(StimulusError, match=r"line 4: words is None"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["onset\tduration\n0\t1\n", "duration\tonset\ta\n", "onset,duration,a\n0,1,2\n", ""])
def test_columns_that_are_missing(tmp_path, text):
    feature_table(tmp_path, text)
    with pytest.raises(StimulusError, match=r"expected the tab-separated columns onset, duration"):
        read(tmp_path)


def test_a_table_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(StimulusError, match=r"life01.tsv does not exist"):
        read(tmp_path)
    feature_table(tmp_path).write_bytes(b"\xff\xfe")
    with pytest.raises(StimulusError, match=r"cannot be read as text"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"loud": {"Aggregation": "max"}}', "loud of .* Aggregation 'max'; expected mean or sum"),
        ('{"loud": "sum"}', "expected mean or sum"),
        ("[]", "must hold a JSON object"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_faults_of_descriptions(tmp_path, text, words):
    feature_table(tmp_path)
    (tmp_path / "features.json").write_text(text)
    with pytest.raises(StimulusError, match=words):
        read(tmp_path)
