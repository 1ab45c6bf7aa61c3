"""Items of --space: what they mean, what they match, and what is refused."""

from pathlib import Path

import pytest

from bids_mllm.discover.names import parse_name
from bids_mllm.discover.spaces import SpaceQuery, form_of, parse_space, spaces_by_form
from bids_mllm.exceptions import UsageError


def name_of(text):
    return parse_name(Path(f"sub-01_task-a_{text}"))


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("T1w", SpaceQuery("T1w")),
        ("anat", SpaceQuery("T1w")),
        ("fsnative", SpaceQuery("fsnative")),
        ("fsLR:den-91k", SpaceQuery("fsLR", density="91k")),
        ("MNI152NLin6Asym:res-02", SpaceQuery("MNI152NLin6Asym", resolution="02")),
        ("MNI152NLin2009cAsym:seg-4S456Parcels", SpaceQuery("MNI152NLin2009cAsym", segmentation="4S456Parcels")),
        ("MNI152NLin2009cAsym:atlas-Schaefer18", SpaceQuery("MNI152NLin2009cAsym", segmentation="Schaefer18")),
        ("fsLR:seg-Glasser:den-91k", SpaceQuery("fsLR", density="91k", segmentation="Glasser")),
    ],
)
def test_items_are_read(text, query):
    assert parse_space(text) == query


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no space"),
        ("MNI_152", "is no space"),
        ("../x", "is no space"),
        ("fsLR:91k", "'91k' behind a colon"),
        ("fsLR:den-", "'den-' behind a colon"),
        ("fsLR:den-91k:den-32k", "'den-32k' behind a colon"),
        ("MNI152NLin6Asym:seg-a:atlas-b", "'atlas-b' behind a colon"),
        ("MNI152NLin6Asym:cohort-2", "'cohort-2' behind a colon"),
        ("func", "another grid in every run"),
    ],
)
def test_nonsense_is_refused_with_what_is_expected(text, words):
    with pytest.raises(UsageError, match=words) as caught:
        parse_space(text)
    assert "--space" in str(caught.value)
    assert any(word in str(caught.value) for word in ("such as", "choose T1w"))


@pytest.mark.parametrize(
    ("asked", "name", "fits"),
    [
        ("MNI152NLin6Asym", "space-MNI152NLin6Asym_res-2_bold.nii.gz", True),
        ("MNI152NLin6Asym:res-02", "space-MNI152NLin6Asym_res-2_bold.nii.gz", True),
        ("MNI152NLin6Asym:res-2", "space-MNI152NLin6Asym_res-02_bold.nii.gz", True),
        ("MNI152NLin6Asym:res-1", "space-MNI152NLin6Asym_res-2_bold.nii.gz", False),
        ("MNI152NLin6Asym:res-2", "space-MNI152NLin6Asym_bold.nii.gz", False),
        ("MNI152NLin6Asym:res-native", "space-MNI152NLin6Asym_bold.nii.gz", True),
        ("MNI152NLin6Asym:res-native", "space-MNI152NLin6Asym_res-2_bold.nii.gz", False),
        ("MNI152NLin6Asym", "space-MNI152NLin2009cAsym_bold.nii.gz", False),
        ("MNI152NLin6Asym", "space-MNI152NLin6Asym_seg-4S456Parcels_stat-mean_timeseries.tsv", False),
        ("MNI152NLin6Asym:seg-4S456Parcels", "space-MNI152NLin6Asym_seg-4S456Parcels_timeseries.tsv", True),
        ("MNI152NLin6Asym:seg-Schaefer18", "space-MNI152NLin6Asym_atlas-Schaefer18_timeseries.tsv", True),
        ("MNI152NLin6Asym:seg-4S456Parcels", "space-MNI152NLin6Asym_seg-4S156Parcels_timeseries.tsv", False),
        ("MNI152NLin6Asym:seg-4S456Parcels", "space-MNI152NLin6Asym_bold.nii.gz", False),
        ("fsLR", "space-fsLR_den-91k_bold.dtseries.nii", True),
        ("fsLR:den-91k", "space-fsLR_den-91k_bold.dtseries.nii", True),
        ("fsLR:den-91k", "space-fsLR_bold.dtseries.nii", True),
        ("fsLR:den-32k", "space-fsLR_den-91k_bold.dtseries.nii", False),
        ("fsaverage:den-10k", "hemi-L_space-fsaverage5_bold.func.gii", True),
        ("fsaverage6", "hemi-L_space-fsaverage_den-41k_bold.func.gii", True),
        ("fsaverage", "hemi-L_space-fsaverage5_bold.func.gii", False),
        ("fsaverage", "hemi-L_space-fsaverage_den-164k_bold.func.gii", True),
    ],
)
def test_what_an_item_matches(asked, name, fits):
    assert parse_space(asked).fits(name_of(name).entities) is fits


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("space-T1w_desc-preproc_bold.nii.gz", "volume"),
        ("space-T1w_bold.nii", "volume"),
        ("space-T1w_desc-denoised_bold.nii.gz", "volume"),
        ("space-T1w_desc-smoothAROMAnonaggr_bold.nii.gz", None),
        ("space-T1w_boldref.nii.gz", None),
        ("desc-preproc_bold.nii.gz", None),
        ("space-T1w_echo-1_desc-preproc_bold.nii.gz", None),
        ("space-T1w_part-phase_bold.nii.gz", None),
        ("space-fsLR_den-91k_bold.dtseries.nii", "grayordinates"),
        ("space-fsLR_den-91k_desc-denoised_bold.dtseries.nii", "grayordinates"),
        ("space-fsLR_den-91k_bold.json", None),
        ("hemi-R_space-fsnative_bold.func.gii", "surface"),
        ("space-fsnative_bold.func.gii", None),
        ("space-fsLR_seg-4S456Parcels_stat-mean_timeseries.tsv", "parcels"),
        ("space-fsLR_seg-4S456Parcels_stat-coverage_bold.tsv", None),
        ("space-fsLR_seg-4S456Parcels_den-91k_stat-mean_timeseries.ptseries.nii", "parcels"),
        ("space-fsLR_atlas-Glasser_bold.ptseries.nii", "parcels"),
        ("space-fsLR_seg-Glasser_stat-reho_bold.ptseries.nii", None),
        ("desc-confounds_timeseries.tsv", None),
        ("space-MNI152NLin2009cAsym_atlas-Schaefer18_parcel-1000Par7Net_bold.h5", "parcels"),
        ("space-MNI152NLin2009cAsym_atlas-Schaefer18_parcel-1000Par7Net_desc-s123456_bold.h5", "parcels"),
        ("space-MNI152NLin2009cAsym_desc-s123456_bold.h5", None),
        ("space-MNI152NLin2009cAsym_atlas-Schaefer18_desc-s123456_timeseries.tsv", None),
    ],
)
def test_the_form_by_the_name(name, form):
    assert form_of(name_of(name)) == form


def test_what_there_is_by_form():
    names = ["space-T1w_desc-preproc_bold.nii.gz", "space-fsLR_den-91k_bold.dtseries.nii", "space-A_res-2_bold.nii.gz",
             "hemi-L_space-fsaverage6_bold.func.gii", "space-B_seg-C_timeseries.tsv"]  # fmt: skip
    assert spaces_by_form([name_of(name) for name in names]) == (
        "volumes in A:res-2, T1w; surfaces in fsaverage6; grayordinates in fsLR:den-91k; parcels in B:seg-C"
    )
    assert spaces_by_form([]) == "no preprocessed series in any space"
