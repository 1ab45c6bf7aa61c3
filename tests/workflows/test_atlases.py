"""Atlases of the places of a study, checked before anything runs."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from nilearn.image import new_img_like

from bids_mllm.config import Settings
from bids_mllm.exceptions import UsageError
from bids_mllm.io.atlas import AtlasFiles
from bids_mllm.io.series import series_grid
from bids_mllm.records import ParticipantDesign, Run
from bids_mllm.workflows.atlases import atlas_words, plan_atlases

MNI = "MNI152NLin2009cAsym"


def nifti(path, values):
    import nibabel as nib

    image = nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4))
    new_img_like(image, values, image.affine).to_filename(path)
    return path


def design(run):
    return ParticipantDesign(run.participant, run.space, (run,), (), (), None)


@pytest.fixture
def volume(tmp_path):
    bold = nifti(tmp_path / "bold.nii.gz", np.zeros((2, 2, 2, 3), dtype=np.float32))
    return design(Run("01", None, "a", 1, MNI, bold, None, None, 2.0, 0.0, 3))


@pytest.fixture
def parcels(tmp_path):
    table = tmp_path / "sub-01_timeseries.tsv"
    table.write_text("LH_V1\tRH_V1\tLH_MT\n" + "0\t0\t0\n" * 3)
    run = Run(
        "01", None, "a", 1, MNI, table, None, None, 2.0, 0.0, 3, form="parcels", segmentation="4S456Parcels"
    )  # fmt: skip
    return design(run)


@pytest.fixture
def atlas(tmp_path):
    path = nifti(tmp_path / "atlas-Own_dseg.nii.gz", np.arange(8, dtype=np.int16).reshape(2, 2, 2) % 3)
    path.with_name("atlas-Own_dseg.tsv").write_text("index\tname\n1\tL_V1\n2\tL_MT\n")
    return path


def settings(tmp_path, **options):
    return Settings(tmp_path, tmp_path / "out", "participant", **options)


def test_every_place_has_its_atlases_and_parcels_their_own(tmp_path, volume, parcels, atlas):
    found = plan_atlases(settings(tmp_path, atlas=(str(atlas),)), [volume, parcels])
    assert [files.name for files in found["01", volume.place]] == ["Own"]
    assert [files.name for files in found["01", parcels.place]] == ["4S456Parcels"]
    assert found["01", parcels.place][0].groups
    assert plan_atlases(settings(tmp_path), [volume]) == {("01", volume.place): ()}


def test_an_atlas_that_serves_no_place_stops_the_run(tmp_path, volume, atlas):
    elsewhere = atlas.rename(tmp_path / "tpl-MNI152NLin6Asym_atlas-Own_dseg.nii.gz")
    with pytest.raises(UsageError, match="is in the space MNI152NLin6Asym"):
        plan_atlases(settings(tmp_path, atlas=(str(elsewhere),)), [volume])


def test_an_atlas_that_serves_some_places_only_is_told(tmp_path, volume, atlas, caplog):
    surface = design(Run("01", None, "a", 1, "fsaverage6", None, None, None, 2.0, 0.0, 3, form="surface"))
    with caplog.at_level(logging.WARNING, "bids_mllm"):
        found = plan_atlases(settings(tmp_path, atlas=(str(atlas),)), [volume, surface], only_find=True)
    assert [len(found["01", one.place]) for one in (volume, surface)] == [1, 0]
    assert "No tables of Own are written for fsaverage6: The atlas" in caplog.text


@pytest.fixture
def native(tmp_path):
    """Two participants in T1w, on grids of their own."""
    runs = []
    for label, shape in (("01", (2, 2, 2)), ("02", (2, 2, 4))):
        bold = nifti(tmp_path / f"sub-{label}_bold.nii.gz", np.zeros((*shape, 3), dtype=np.float32))
        runs.append(Run(label, None, "a", 1, "T1w", bold, None, None, 2.0, 0.0, 3))
    return [design(run) for run in runs]


def own_atlas(tmp_path, label):
    path = nifti(tmp_path / f"{label}space-T1w_atlas-own_dseg.nii.gz", np.ones((2, 2, 2), dtype=np.int16))
    path.with_name(path.name.replace(".nii.gz", ".tsv")).write_text("index\tname\n1\tL_V1\n")
    return path


def test_individual_atlases_go_to_their_participants(tmp_path, native):
    paths = [own_atlas(tmp_path, label) for label in ("sub-01_", "sub-02_")]
    found = plan_atlases(settings(tmp_path, atlas=tuple(map(str, paths))), native)
    assert {spot: files[0].paths for spot, files in found.items()} == {
        ("01", "T1w"): (paths[0],), ("02", "T1w"): (paths[1],)
    }  # fmt: skip
    assert {files.name for own in found.values() for files in own} == {"own"}


def test_an_individual_atlas_serves_nobody_else(tmp_path, native, caplog):
    path = own_atlas(tmp_path, "sub-01_")
    with caplog.at_level(logging.WARNING, "bids_mllm"):
        found = plan_atlases(settings(tmp_path, atlas=(str(path),)), native)
    assert [len(found[label, "T1w"]) for label in ("01", "02")] == [1, 0]
    assert "No tables of own are written for T1w of sub-02: The atlas" in caplog.text
    with pytest.raises(UsageError, match="is that of sub-01 and serves no other participant"):
        plan_atlases(settings(tmp_path, atlas=(str(path),)), native[1:])


def test_an_atlas_of_nobody_is_refused_for_native_spaces_of_several(tmp_path, native):
    options = settings(tmp_path, atlas=(str(own_atlas(tmp_path, "")),))
    with pytest.raises(
        UsageError, match=r"does not tell whose it is.*each of the 2 participants; give one file a part"
    ):
        plan_atlases(options, native)
    assert plan_atlases(options, native[:1])["01", "T1w"]


def test_individual_atlases_are_checked_in_templates_too(tmp_path, volume, atlas):
    other = design(replace(volume.runs[0], participant="02"))
    own = nifti(tmp_path / "sub-02_atlas-Own_dseg.nii.gz", np.ones((2, 2, 2), dtype=np.int16))
    with pytest.raises(UsageError, match=r"sub-02_atlas-Own_dseg.nii.gz has no table"):
        plan_atlases(settings(tmp_path, atlas=(str(atlas), str(own))), [volume, other])


def test_a_fault_of_all_participants_is_told_once(tmp_path, volume, atlas, caplog):
    surface = Run("01", None, "a", 1, "fsaverage6", None, None, None, 2.0, 0.0, 3, form="surface")
    designs = [volume, design(surface), design(replace(surface, participant="02"))]
    with caplog.at_level(logging.WARNING, "bids_mllm"):
        plan_atlases(settings(tmp_path, atlas=(str(atlas),)), designs, only_find=True)
    assert caplog.text.count("No tables of Own are written for fsaverage6: The atlas") == 1


def test_a_table_that_does_not_match_is_known_at_once(tmp_path, volume, atlas):
    atlas.with_name("atlas-Own_dseg.tsv").write_text("index\tname\n7\tV7\n8\tV8\n")
    with pytest.raises(UsageError, match="No label of the table"):
        plan_atlases(settings(tmp_path, atlas=(str(atlas),)), [volume])


def test_groups_of_the_users_are_checked_against_every_atlas(tmp_path, volume, parcels, atlas):
    rois = tmp_path / "rois.toml"
    rois.write_text('[groups.A]\nareas = ["V1", "MTT"]\n')
    with pytest.raises(UsageError, match=r"A names the area MTT, which is no region of 4S456Parcels; .*LH_MT"):
        plan_atlases(settings(tmp_path, rois=rois), [parcels])
    with pytest.raises(UsageError, match="needs regions to group; give an atlas with --atlas"):
        plan_atlases(settings(tmp_path, rois=rois), [volume])
    rois.write_text('[groups.A]\nareas = ["R_V1", "MT"]\n')
    options = settings(tmp_path, rois=rois, atlas=(str(atlas),))
    assert plan_atlases(options, [volume, parcels])  # the right V1 is in one of them only


def test_terms_are_told_once_and_stand_in_the_methods(tmp_path, caplog):
    from nibabel import Cifti2Image
    from nibabel.cifti2 import BrainModelAxis, SeriesAxis

    axis = BrainModelAxis.from_surface(range(32492), 32492, "CIFTI_STRUCTURE_CORTEX_LEFT")
    axis += BrainModelAxis.from_surface(range(32492), 32492, "CIFTI_STRUCTURE_CORTEX_RIGHT")
    bold = tmp_path / "bold.dtseries.nii"
    Cifti2Image(np.zeros((2, len(axis)), dtype=np.float32), header=(SeriesAxis(0, 2, 2), axis)).to_filename(bold)
    run = Run(
        "01", None, "a", 1, "fsLR", bold, None, None, 2.0, 0.0, 2, form="grayordinates", density="91k"
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "bids_mllm"):
        found = plan_atlases(settings(tmp_path, atlas=("Glasser",)), [design(run), design(run)])
    assert caplog.text.count("Open Access Data Use Terms") == 1
    words = atlas_words(found["01", "fsLR_den-91k"])
    assert words.startswith("Scores were averaged over the regions of Glasser")
    assert "Data were provided [in part] by the Human Connectome Project" in words
    assert series_grid(run).n_places == 2 * 32492


def test_methods_say_nothing_of_regions_without_an_atlas():
    assert atlas_words([]) == ""
    assert "terms" not in atlas_words([AtlasFiles("Own")])
