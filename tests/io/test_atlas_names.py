"""Names of regions, hemispheres and label files as distributions spell them."""

from pathlib import Path

import pytest

from bids_mllm.io.atlas_labels import table_beside
from bids_mllm.io.atlas_names import (
    atlas_name,
    form_of,
    hemisphere_of,
    is_background,
    nearest_names,
    other_hemisphere,
    region_key,
    same_region,
    space_of,
    space_serves,
    with_side,
)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("tpl-X_atlas-Schaefer2018_dseg.nii.gz", "Schaefer2018"),
        ("atlas-AAL+3_dseg.nii", "AAL+3"),
        ("my_rois v2.nii.gz", "myroisv2"),
        ("HarvardOxford-cort-maxprob-thr25-2mm.nii.gz", "HarvardOxfordcortmaxprobthr252mm"),
        ("lh.HCPMMP1.annot", "HCPMMP1"),
        ("rh.HCPMMP1.annot", "HCPMMP1"),
        ("HCPMMP1.dlabel.nii", "HCPMMP1"),
        ("Own.L.label.gii", "Own"),
        ("tpl-fsaverage_hemi-R_atlas-Own_dseg.label.gii", "Own"),
        ("sub-01_space-T1w_atlas-Own_dseg.nii.gz", "Own"),
        ("sub-01_rois.nii.gz", "rois"),
        ("lh.sub-01_rois.annot", "rois"),
        ("sub-01.rh.rois.annot", "rois"),
    ],
)
def test_the_label_of_an_atlas(name, label):
    assert atlas_name(Path(name)) == label


@pytest.mark.parametrize(
    "name", ["L_V1_ROI", "V1_L", "lh_V1", "L_V1", "Left V1", "Left-V1", "V1 left", "lh.V1", "V1_L_ROI", "LH_v1"]
)
def test_spellings_of_one_region(name):
    assert region_key(name) == ("L", "v1")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("5L", ("", "5l")),
        ("L_5L_ROI", ("L", "5l")),
        ("R_9-46d_ROI", ("R", "9-46d")),
        ("L_H_ROI", ("L", "h")),
        ("V1", ("", "v1")),
        ("7Networks_RH_Default_PFC_1", ("R", "default_pfc_1")),
        ("RH_Default_PFC_1", ("R", "default_pfc_1")),
        ("ctx-lh-bankssts", ("L", "bankssts")),
    ],
)
def test_names_that_are_easily_misread(name, key):
    assert region_key(name) == key


def test_a_hemisphere_that_only_one_name_tells_parts_nothing():
    assert same_region("V1", "L_V1_ROI")
    assert not same_region("R_V1", "L_V1_ROI")
    assert not same_region("V2", "V1")


@pytest.mark.parametrize(
    "name",
    ["", "???", "unknown", "Unknown", "Background+FreeSurfer_Defined_Medial_Wall", "Medial_wall", "L_???", "none"],
)
def test_background(name):
    assert is_background(name)


def test_regions_are_no_background():
    assert not any(map(is_background, ["V1", "L_V1_ROI", "Nonexistent", "medial temporal", "H"]))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("lh.HCPMMP1.annot", "rh.HCPMMP1.annot"),
        ("tpl-fsLR_hemi-L_den-32k_x.label.gii", "tpl-fsLR_hemi-R_den-32k_x.label.gii"),
        ("Own.L.32k_fs_LR.label.gii", "Own.R.32k_fs_LR.label.gii"),
    ],
)
def test_files_of_both_hemispheres(left, right):
    assert (hemisphere_of(Path(left)), hemisphere_of(Path(right))) == ("L", "R")
    assert other_hemisphere(Path("a") / left) == Path("a") / right
    assert other_hemisphere(Path("a") / right) == Path("a") / left


def test_forms_by_ending():
    names = ["a.nii.gz", "a.nii", "a.dlabel.nii", "a.label.gii", "lh.a.annot", "a.txt"]
    assert [form_of(Path(name)) for name in names] == [
        "volume", "volume", "grayordinates", "surface", "surface", None
    ]  # fmt: skip


def test_spaces_that_serve():
    assert space_of(Path("tpl-fsaverage_den-41k_atlas-X.label.gii")) == "fsaverage6"
    assert space_of(Path("sub-01_space-T1w_x.nii.gz")) == "T1w"
    assert space_of(Path("lh.X.annot")) is None
    assert all(space_serves("fsaverage", maps) for maps in ("fsaverage", "fsaverage6", "fsaverage5"))
    assert not space_serves("fsaverage5", "fsaverage6")
    assert not space_serves("MNI152NLin6Asym", "MNI152NLin2009cAsym")
    assert space_serves(None, "T1w")


def test_the_hemisphere_is_told_once():
    assert [with_side("V1", "L"), with_side("L_V1", "L"), with_side("V1", "")] == ["L_V1", "L_V1", "V1"]


def test_near_names():
    assert nearest_names("TPOJ4", ["L_TPOJ1", "L_V1", "R_TPOJ1"])[0] in ("L_TPOJ1", "R_TPOJ1")
    assert nearest_names("quite else", ["L_V1"]) == []


@pytest.mark.parametrize(
    ("image", "table"),
    [
        ("atlas-X_dseg.nii.gz", "atlas-X_dseg.tsv"),
        ("tpl-Y_res-02_atlas-X_dseg.nii.gz", "tpl-Y_atlas-X_dseg.tsv"),
        ("tpl-Y_hemi-L_den-164k_atlas-X_dseg.label.gii", "tpl-Y_atlas-X_dseg.tsv"),
        ("atlas-X_hemi-R_dseg.label.gii", "atlas-X_dseg.tsv"),
        ("lh.X.annot", "X.tsv"),
        ("X.dlabel.nii", "X.tsv"),
        ("my.old.nii.gz", "my.tsv"),
    ],
)
def test_the_table_of_a_file(tmp_path, image, table):
    assert table_beside(tmp_path / image) is None
    (tmp_path / table).write_text("index\tname\n")
    assert table_beside(tmp_path / image) == tmp_path / table
