"""Atlases on the grid of the maps: each form of label file, from files made by hand."""

import json

import numpy as np
import pytest
from label_files import LEFT, annot, brain_axis, dlabel, gray_grid, label_gii
from nibabel.cifti2 import BrainModelAxis
from volumes import AFFINE, SHAPE, save

from bids_mllm.exceptions import UsageError
from bids_mllm.io.atlas import AtlasFiles, atlas_facts, atlas_from_json, load_atlas
from bids_mllm.io.atlas_labels import table_beside
from bids_mllm.io.grids import ParcelGrid, SurfaceGrid, VolumeGrid
from bids_mllm.io.rois import RoiGroup

VOLUME = VolumeGrid(SHAPE, AFFINE)
TABLE = "index\tname\n0\tbackground\n1\tV1\n2\tV2\n9\tabsent\n"


def loaded(paths, grid, *, kept=None, groups=(), table="beside"):
    paths = tuple(paths) if isinstance(paths, list | tuple) else (paths,)
    table = table_beside(paths[0]) if table == "beside" else table
    kept = np.ones(grid.n_places, dtype=bool) if kept is None else np.asarray(kept)
    return load_atlas(AtlasFiles("Two", paths, table, tuple(groups)), grid, kept)


def places(atlas):
    """Positions of every region among the places kept."""
    return {name: own.tolist() for name, own in zip(atlas.names, atlas.members, strict=True)}


def labelled(tmp_path, labels, table=TABLE, affine=AFFINE):
    path = save(tmp_path / "atlas-Two_dseg.nii.gz", labels, affine)
    if table is not None:
        (tmp_path / "atlas-Two_dseg.tsv").write_text(table)
    return path


def halves():
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[0], labels[2] = 1, 2
    return labels


def flat(labels, value):
    return np.flatnonzero(labels.ravel() == value).tolist()


# Volumes


def test_members_are_positions_in_the_mask_and_sizes_those_of_the_whole(tmp_path):
    mask = np.ones(SHAPE, dtype=bool)
    mask[0, 0] = False
    atlas = loaded(labelled(tmp_path, halves()), VOLUME, kept=mask.ravel())
    assert (atlas.name, atlas.indices, atlas.total_voxels) == ("Two", (1, 2), (8, 8))
    assert (atlas.kinds, atlas.n_voxels) == (("area", "area"), int(mask.sum()))
    assert places(atlas) == {"V1": flat(halves()[mask], 1), "V2": flat(halves()[mask], 2)}


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int32])
def test_types_of_label_images_and_a_fourth_axis_of_one(tmp_path, dtype):
    atlas = loaded(labelled(tmp_path, halves().astype(dtype)[..., None]), VOLUME)
    assert places(atlas)["V2"] == flat(halves(), 2)


def test_an_atlas_of_half_the_voxel_size_is_brought_to_the_grid_of_the_maps(tmp_path):
    fine = halves().repeat(2, 0).repeat(2, 1).repeat(2, 2)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -0.5  # the centres of eight small voxels are around the centre of a large one
    atlas = loaded(labelled(tmp_path, fine, affine=affine), VOLUME)
    assert places(atlas) == {"V1": flat(halves(), 1), "V2": flat(halves(), 2)}
    assert atlas.total_voxels == (8, 8)


def test_a_shifted_atlas_of_the_same_shape_is_resampled_and_what_is_lost_is_told(tmp_path):
    affine = AFFINE.copy()
    affine[0, 3] = 2.0  # one voxel along x
    atlas = loaded(labelled(tmp_path, halves(), affine=affine), VOLUME)
    assert places(atlas) == {"V1": flat(np.roll(halves(), 1, axis=0) * (np.arange(SHAPE[0]) == 1)[:, None, None], 1)}
    assert "lies in V2 of Two" in atlas.notes[0]


def test_a_region_of_which_no_voxel_is_kept_is_empty_but_stays(tmp_path):
    atlas = loaded(labelled(tmp_path, halves()), VOLUME, kept=(halves() != 1).ravel())
    assert places(atlas)["V1"] == []
    assert atlas.total_voxels[0] == 8


def test_ranks_come_from_the_table(tmp_path):
    atlas = loaded(labelled(tmp_path, halves(), "index\tname\thierarchy\n1\tV1\t1.5\n2\tV2\tn/a\n"), VOLUME)
    np.testing.assert_array_equal(atlas.hierarchy, [1.5, np.nan])


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
        ("index\tname\n1\tV1\n7\tV7\n8\tV8\n", "does not match .* 1 of its 3 rows occur there"),
        ("index\tname\thierarchy\n1\tV1\tlow\n", "must hold numbers, or n/a"),
    ],
)
def test_faults_of_a_table(tmp_path, table, words):
    with pytest.raises(UsageError, match=words):
        loaded(labelled(tmp_path, halves(), table), VOLUME)


def test_a_table_of_another_version_leaves_most_labels_without_a_name(tmp_path):
    labels = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    with pytest.raises(UsageError, match=r"atlas-Two_dseg.tsv does not match .* have no row"):
        loaded(labelled(tmp_path, labels, "index\tname\n1\tV1\n2\tV2\n"), VOLUME)


def test_a_label_without_a_row_is_left_out_and_told(tmp_path):
    labels = halves()
    labels[1, 0, 0] = 5
    atlas = loaded(labelled(tmp_path, labels, "index\tname\n1\tV1\n2\tV2\n"), VOLUME)
    assert atlas.names == ("V1", "V2")
    assert "1 labels of atlas-Two_dseg.nii.gz have no row in atlas-Two_dseg.tsv (5)" in atlas.notes[0]


def test_a_table_that_is_no_text(tmp_path):
    path = labelled(tmp_path, halves())
    (tmp_path / "atlas-Two_dseg.tsv").write_bytes(b"\xff\xfeindex\tname")
    with pytest.raises(UsageError, match=r"cannot be read as text"):
        loaded(path, VOLUME)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((*SHAPE, 3), dtype=np.float32), "expected a 3-D label image"),
        (np.full(SHAPE, 0.4, dtype=np.float32), "holds fractions"),
    ],
)
def test_an_atlas_of_probabilities(tmp_path, labels, words):
    with pytest.raises(UsageError, match=words):
        loaded(labelled(tmp_path, labels), VOLUME)


def test_an_atlas_that_is_no_image(tmp_path):
    path = labelled(tmp_path, halves())
    path.write_bytes(b"none")
    with pytest.raises(UsageError, match=r"cannot be read as a label image"):
        loaded(path, VOLUME)


def test_an_atlas_far_from_the_maps_has_no_region_there(tmp_path):
    affine = AFFINE.copy()
    affine[0, 3] = 500.0
    with pytest.raises(UsageError, match=r"No region of the atlas .* lies on the grid of the maps"):
        loaded(labelled(tmp_path, halves(), affine=affine), VOLUME)


# Surfaces


def gii_pair(tmp_path, *, left_first=True, prefix=("L_", "R_"), stem="atlas-Two_hemi-{}_dseg.label.gii"):
    """Two areas in each hemisphere of six vertices; the labels of the hemispheres follow one another."""
    start = {"L": 1, "R": 3} if left_first else {"L": 3, "R": 1}
    pair = []
    for side, own in zip("LR", prefix, strict=True):
        first = start[side]
        labels = [0, first, first, first + 1, 0, first + 1]
        names = {0: "???", first: f"{own}V1_ROI", first + 1: f"{own}MT_ROI"}
        pair.append(label_gii(tmp_path / stem.format(side), labels, names))
    return tuple(pair)


SURFACE = SurfaceGrid(6, 6)
AREAS = {"L_V1_ROI": [1, 2], "L_MT_ROI": [3, 5], "R_V1_ROI": [7, 8], "R_MT_ROI": [9, 11]}


@pytest.mark.parametrize("left_first", [True, False])
def test_regions_of_both_hemispheres_come_by_name_whichever_labels_come_first(tmp_path, left_first):
    atlas = loaded(gii_pair(tmp_path, left_first=left_first), SURFACE)
    assert places(atlas) == AREAS
    group = RoiGroup("EVC", "group", ("V1",), "here")
    grouped = loaded(gii_pair(tmp_path, left_first=left_first), SURFACE, groups=[group])
    assert places(grouped) == AREAS | {"EVC": [1, 2, 7, 8]}
    assert (grouped.kinds[-1], grouped.indices[-1], grouped.total_voxels[-1]) == ("group", None, 4)


def test_names_without_a_hemisphere_get_that_of_their_file(tmp_path):
    assert set(places(loaded(gii_pair(tmp_path, prefix=("", "")), SURFACE))) == set(AREAS)


def test_positions_count_only_vertices_that_are_kept(tmp_path):
    kept = np.ones(12, dtype=bool)
    kept[[0, 1, 9]] = False
    atlas = loaded(gii_pair(tmp_path), SURFACE, kept=kept)
    assert places(atlas) == {"L_V1_ROI": [0], "L_MT_ROI": [1, 3], "R_V1_ROI": [5, 6], "R_MT_ROI": [8]}
    assert atlas.total_voxels == (2, 2, 2, 2)


def test_annotations_of_freesurfer(tmp_path):
    names = ["???", "L_V1_ROI", "L_MT_ROI"]
    pair = [
        annot(tmp_path / "lh.Two.annot", [0, 1, 1, 2, -1, 2], names),
        annot(tmp_path / "rh.Two.annot", [0, 1, 1, 2, -1, 2], [n.replace("L_", "R_") for n in names]),
    ]
    atlas = loaded(pair, SURFACE)
    assert places(atlas) == AREAS
    assert atlas.indices == (1, 2, 1, 2)


def test_an_annotation_whose_first_entry_is_a_region(tmp_path):
    pair = [annot(tmp_path / f"{side}.Two.annot", [0, 0, 1, 1, -1, -1], ["V1", "MT"]) for side in ("lh", "rh")]
    assert places(loaded(pair, SURFACE)) == {"L_V1": [0, 1], "L_MT": [2, 3], "R_V1": [6, 7], "R_MT": [8, 9]}


def test_another_number_of_vertices_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"has 6 vertices in the L hemisphere, but the maps have 10"):
        loaded(gii_pair(tmp_path), SurfaceGrid(10, 10))


def test_a_finer_fsaverage_serves_a_coarser_one_by_its_first_vertices(tmp_path):
    pair = []
    for side in "LR":
        labels = np.ones(2562, dtype=int)
        labels[640:] = 2
        pair.append(label_gii(tmp_path / f"atlas-Two_hemi-{side}.label.gii", labels, {1: "V1", 2: "MT"}))
    atlas = loaded(pair, SurfaceGrid(642, 642))
    assert places(atlas)["R_MT"] == [642 + 640, 642 + 641]
    assert atlas.total_voxels == (640, 2, 640, 2)
    assert atlas.notes == ("Of the 2562 vertices of Two the first 642, those of the maps, are taken.",)


def test_files_that_are_no_labels(tmp_path):
    left, right = gii_pair(tmp_path)
    left.write_text("<GIFTI")
    with pytest.raises(UsageError, match=r"hemi-L_dseg.label.gii cannot be read as GIFTI labels"):
        loaded((left, right), SURFACE)
    bad = tmp_path / "lh.Two.annot"
    bad.write_bytes(b"")
    with pytest.raises(UsageError, match=r"lh.Two.annot cannot be read as a FreeSurfer annotation"):
        loaded((bad, bad), SURFACE)


def test_a_table_that_matches_gives_names_and_ranks_to_both_hemispheres(tmp_path):
    pair = gii_pair(tmp_path)
    rows = "1\tV1_L\t1\n2\tMT_L\t2\n3\tV1_R\t1\n4\tMT_R\t2\n"
    (tmp_path / "atlas-Two_dseg.tsv").write_text(f"index\tname\thierarchy\n{rows}")
    atlas = loaded(pair, SURFACE)
    assert places(atlas) == {"V1_L": [1, 2], "MT_L": [3, 5], "V1_R": [7, 8], "MT_R": [9, 11]}
    assert atlas.hierarchy == (1, 2, 1, 2)


def test_a_table_with_the_hemispheres_the_other_way_round_does_not_match(tmp_path):
    pair = gii_pair(tmp_path)
    (tmp_path / "atlas-Two_dseg.tsv").write_text("index\tname\n1\tR_V1\n2\tR_MT\n3\tL_V1\n4\tL_MT\n")
    with pytest.raises(UsageError, match=r"calls the region 1 'R_V1', but .*hemi-L.* itself calls it 'L_V1_ROI'"):
        loaded(pair, SURFACE)


def test_a_table_with_a_column_of_hemispheres(tmp_path):
    pair = [
        label_gii(tmp_path / f"tpl-x_hemi-{side}_den-1k_atlas-Two_dseg.label.gii", [1, 1, 2, 2, 7, 7], {7: "wall"})
        for side in "LR"
    ]
    rows = "".join(f"1\t{side}\tV1\n2\t{side}\tMT\n7\t{side}\tBackground+Medial_Wall\n" for side in "LR")
    (tmp_path / "tpl-x_atlas-Two_dseg.tsv").write_text(f"index\themi\tname\n{rows}")
    with pytest.raises(UsageError, match=r"calls the region 7 'Background\+Medial_Wall'"):
        loaded(pair, SURFACE)
    for side, path in zip("LR", pair, strict=True):
        label_gii(path, [1, 1, 2, 2, 7, 7], {1: f"{side}_V1", 7: "Background"})
    assert places(loaded(pair, SURFACE))["R_MT"] == [8, 9]


SIDED = "index\themi\tname\thierarchy\n1\t{}\tV1\t1\n2\t{}\tV1\t2\n9\t{}\tunknown\tn/a\n"


@pytest.mark.parametrize("sides", [("L", "R"), ("lh", "rh"), ("left", "Right")])
def test_a_column_of_hemispheres_beside_a_volume(tmp_path, sides):
    atlas = loaded(labelled(tmp_path, halves(), SIDED.format(*sides, sides[0])), VOLUME)
    assert places(atlas) == {"L_V1": flat(halves(), 1), "R_V1": flat(halves(), 2)}
    assert atlas.hierarchy == (1, 2)


def test_a_label_of_both_hemispheres_of_the_table_in_a_volume(tmp_path):
    rows = "1\tL\tV1\n1\tR\tV1\n2\tL\tUnknown\n2\tR\tUnknown\n"
    path = labelled(tmp_path, halves(), f"index\themi\tname\n{rows}")
    with pytest.raises(
        UsageError, match=r"a row of each hemisphere for the label 1, but .*Two_dseg.nii.gz does not tell"
    ):
        loaded(path, VOLUME)
    (tmp_path / "atlas-Two_dseg.tsv").write_text(f"index\themi\tname\n{rows}1\t\tV1\n")
    assert places(loaded(path, VOLUME)) == {"V1": flat(halves(), 1)}


# Grayordinates


NAMES = {1: "L_V1_ROI", 2: "L_MT_ROI", 3: "R_V1_ROI", 4: "R_MT_ROI", 5: "Left-Thalamus"}
#: Of the vertices 0, 1, 2, 4 and 5 of both hemispheres, and two voxels.
DENSE = [0, 1, 1, 0, 2, 0, 3, 3, 0, 4, 0, 5]


def cifti(tmp_path, labels=DENSE, axis=None):
    return dlabel(tmp_path / "atlas-Two.dlabel.nii", labels, NAMES, brain_axis() if axis is None else axis)


def test_grayordinates_are_matched_by_structure_and_place(tmp_path):
    atlas = loaded(cifti(tmp_path), gray_grid())
    expected = {
        "L_V1_ROI": [1, 2], "L_MT_ROI": [4], "R_V1_ROI": [6, 7], "R_MT_ROI": [9], "Left-Thalamus": [11]
    }  # fmt: skip
    assert places(atlas) == expected


def test_a_column_of_hemispheres_beside_grayordinates_with_deep_structures(tmp_path):
    path = cifti(tmp_path)
    rows = "1\tL\tV1\n2\tL\tMT\n3\tR\tV1\n4\tR\tMT\n5\tL\tThalamus\n"
    path.with_name("atlas-Two.tsv").write_text(f"index\themi\tname\n{rows}")
    assert places(loaded(path, gray_grid())) == {
        "L_V1": [1, 2], "L_MT": [4], "R_V1": [6, 7], "R_MT": [9], "L_Thalamus": [11]
    }  # fmt: skip


def test_structures_in_another_order_and_other_vertices_give_the_same_regions(tmp_path):
    full = brain_axis(gray=range(6))
    labels = np.zeros(len(full))
    labels[[1, 2, 3, 5]], labels[[7, 8, 9, 11]], labels[13] = [1, 1, 2, 2], [3, 3, 4, 4], 5
    order = np.concatenate([np.arange(12, 14), np.arange(6, 12), np.arange(6)])
    turned = full[12:14] + full[6:12] + full[0:6]
    atlas = loaded(cifti(tmp_path, labels[order], turned), gray_grid())
    same = loaded(cifti(tmp_path), gray_grid())
    assert places(atlas) == places(same)


def test_labels_of_the_cortex_alone_serve_maps_with_deep_structures(tmp_path):
    atlas = loaded(cifti(tmp_path, DENSE[:10], brain_axis(with_thalamus=False)), gray_grid())
    assert places(atlas)["R_MT_ROI"] == [9]
    assert "Left-Thalamus" not in atlas.names


def test_grayordinate_labels_and_surface_labels_serve_each_other(tmp_path):
    full = brain_axis(gray=range(6), with_thalamus=False)
    labels = [0, 1, 1, 2, 0, 2, 0, 3, 3, 4, 0, 4]
    assert places(loaded(cifti(tmp_path, labels, full), SURFACE)) == AREAS
    on_gray = places(loaded(gii_pair(tmp_path), gray_grid()))
    assert on_gray == {"L_V1_ROI": [1, 2], "L_MT_ROI": [4], "R_V1_ROI": [6, 7], "R_MT_ROI": [9]}


def test_one_label_in_both_hemispheres_stays_one_region(tmp_path):
    path = dlabel(tmp_path / "net.dlabel.nii", [0, 1, 1, 0, 2, 0, 1, 1, 0, 2], {1: "Visual", 2: "Limbic"},
                  brain_axis(with_thalamus=False))  # fmt: skip
    assert places(loaded(path, gray_grid())) == {"Visual": [1, 2, 6, 7], "Limbic": [4, 9]}


def test_another_density_is_one_sentence(tmp_path):
    axis = brain_axis(gray=range(6), n_vertices=10, with_thalamus=False)
    with pytest.raises(UsageError, match=r"has 10 vertices in the L hemisphere, but the maps have 6"):
        loaded(cifti(tmp_path, np.ones(12), axis), gray_grid())
    with pytest.raises(UsageError, match=r"has its voxels in another volume \(\(4, 4, 4\)\) than the maps"):
        loaded(cifti(tmp_path, axis=brain_axis(shape=(4, 4, 4))), gray_grid())


def test_one_hemisphere_alone_is_one_sentence(tmp_path):
    axis = BrainModelAxis.from_surface(range(6), 6, LEFT)
    with pytest.raises(UsageError, match=r"no labels of the R hemisphere"):
        loaded(cifti(tmp_path, [1, 1, 1, 2, 2, 2], axis), SURFACE)


def test_a_form_that_cannot_serve_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"cannot serve maps of 6 \+ 6 vertices"):
        loaded(labelled(tmp_path, halves()), SURFACE)
    with pytest.raises(UsageError, match=r"cannot serve maps of 3 x"):
        loaded(cifti(tmp_path), VOLUME)


def test_cifti_that_holds_no_labels(tmp_path):
    import nibabel as nib

    rows = nib.cifti2.ScalarAxis(["r"])
    path = tmp_path / "x.dlabel.nii"
    nib.Cifti2Image(np.zeros((1, len(brain_axis()))), header=(rows, brain_axis())).to_filename(path)
    with pytest.raises(UsageError, match=r"is CIFTI but no label file"):
        loaded(path, gray_grid())


# Parcels and groups


PARCELS = ParcelGrid(("LH_Vis_1", "L_V1_ROI", "R_V1_ROI", "L_MT_ROI"))


def test_parcels_are_regions_themselves_and_groups_come_by_name():
    groups = [RoiGroup("EVC", "group", ("V1",), "s"), RoiGroup("both", "set", ("V1", "MT"), "s")]
    atlas = loaded((), PARCELS, kept=[False, True, True, True], groups=groups, table=None)
    assert places(atlas) == {
        "LH_Vis_1": [], "L_V1_ROI": [0], "R_V1_ROI": [1], "L_MT_ROI": [2], "EVC": [0, 1], "both": [0, 1, 2]
    }  # fmt: skip


def test_areas_that_are_lacking_count_as_uncovered_and_are_named():
    atlas = loaded((), PARCELS, groups=[RoiGroup("both", "set", ("V1", "MT"), "s")], table=None)
    # Three of four areas, of one parcel each: the fourth counts as large as the others.
    assert (len(atlas.members[-1]), atlas.total_voxels[-1]) == (3, 4)
    assert atlas.notes == (
        "both: Two lacks R_MT; they count as uncovered in its coverage, as large as the others on average.",
    )


def test_overlapping_groups_share_their_places(tmp_path):
    groups = [RoiGroup("A", "group", ("V1", "MT"), "s"), RoiGroup("B", "group", ("MT",), "t")]
    atlas = loaded(gii_pair(tmp_path), SURFACE, groups=groups)
    assert places(atlas)["A"] == [1, 2, 3, 5, 7, 8, 9, 11]
    assert places(atlas)["B"] == [3, 5, 9, 11]
    assert atlas_facts(atlas) == {"Atlas": "Two", "Groups": {"A": "V1, MT: s", "B": "MT: t"}}


def test_a_group_of_the_name_of_an_area_is_told_from_it():
    grid = ParcelGrid(("V1", "MT"))
    atlas = loaded((), grid, groups=[RoiGroup("MT", "group", ("MT", "V1"), "s")], table=None)
    assert places(atlas) == {"V1": [0], "MT": [1], "MT (group)": [0, 1]}


def test_what_a_node_is_given_comes_back_the_same(tmp_path):
    groups = (RoiGroup("A", "group", ("V1", "MT"), "s", own=True),)
    files = AtlasFiles("Two", gii_pair(tmp_path), tmp_path / "x.tsv", groups, "terms", "abc")
    text = files.to_json()
    assert atlas_from_json(text) == files
    assert json.loads(text)["digest"] == "abc"
    assert atlas_from_json(AtlasFiles("parcels").to_json()) == AtlasFiles("parcels")
