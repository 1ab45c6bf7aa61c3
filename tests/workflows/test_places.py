"""Participants whose results lie in other resolutions or densities of one space are groups apart, which is told."""

from pathlib import Path

from bids_mllm.io.derivatives import MapName
from bids_mllm.io.results import ModelResult
from bids_mllm.workflows.group import differing_places


def results(*places):
    """One result for each (participant, task, space, resolution, density, segmentation)."""
    return [ModelResult(MapName(*place), model, Path()) for place in places for model in "ab"]


def test_other_densities_and_resolutions_are_told_with_participants_and_places():
    found = results(
        ("01", "life", "fsLR", None, "91k"), ("02", "life", "fsLR", None, "170k"), ("03", "life", "fsLR", None, "91k"),
        ("01", "life", "MNI152NLin6Asym", "2"), ("02", "life", "MNI152NLin6Asym"),
    )  # fmt: skip
    cifti, volume = differing_places(found)
    assert "of fsLR (films life)" in cifti
    assert "(fsLR_den-91k: 01, 03; fsLR_den-170k: 02)" in cifti
    assert "(MNI152NLin6Asym_res-2: 01; MNI152NLin6Asym: 02)" in volume


def test_one_who_has_more_resolutions_than_another_is_told():
    (sentence,) = differing_places(results(*(("01", "life", "T", res) for res in "12"), ("02", "life", "T", "2")))
    assert "(T_res-1: 01; T_res-2: 01, 02)" in sentence


def test_what_all_participants_have_is_no_warning():
    """Two resolutions of all, other parcels, and participants who were held out on other films, which is told apart."""
    places = (("T", "1"), ("T", "2"))
    assert differing_places(results(*((sub, "life", *place) for sub in ("01", "02") for place in places))) == []
    assert differing_places(results(("01", "life", "T", "2"), ("02", "life", "T", "2", None, "Parcels"))) == []
    assert differing_places(results(("01", "life", "T", "2"), ("02", "wolf", "T", "1"))) == []
