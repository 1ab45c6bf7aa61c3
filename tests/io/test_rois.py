"""Groups of regions: the app's own against the areas of the atlas they are of, and the user's."""

import tomllib
from importlib.resources import files
from itertools import chain

import numpy as np
import pytest

from bids_mllm.exceptions import UsageError
from bids_mllm.io.atlas import load_atlas
from bids_mllm.io.atlas_find import AtlasItem, find_atlas
from bids_mllm.io.grids import SurfaceGrid
from bids_mllm.io.rois import RoiGroup, check_own_groups, find_groups, load_groups
from bids_mllm.records import Run

#: As the study lists them.
STUDY = {
    "EVC": "V1 V2 V3 V3B V4",
    "LOC": "LO1 LO2",
    "MT": "MT MST LO3 FST V3CD",
    "AG": "PFm PGs PGi TPOJ2 TPOJ3",
    "ATL": "STGa TGd TE1a TE2a TGv STSda STSva",
    "PTL": "STSdp A5 TPOJ1 PSL STV A4 STSvp",
    "LTC": "STSda STSva STGa TE1a TE2a TGv TGd A5 STSdp STSvp PSL STV TPOJ1",
    "IFG": "44 45 IFJa IFSp",
    "IFGOrb": "a47r p47r a9-46v",
    "MFG": "55b",
    "PCC": "31pd 31a PCV 7m 23d v23ab d23ab RSC",
    "dmPFC": "9m 10d d32",
    "AC": "A1 LBelt MBelt PBelt RI",
}


def run_in(space, form, density=None):
    return Run("01", None, "a", 1, space, None, None, None, 2.0, 0.0, 10, form=form, density=density)


@pytest.fixture(scope="module")
def glasser():
    found = find_atlas(AtlasItem("Glasser"), run_in("fsLR", "surface", "32k"), None)
    grid = SurfaceGrid(32492, 32492)
    from dataclasses import replace

    return load_atlas(replace(found, groups=load_groups()), grid, np.ones(grid.n_places, dtype=bool))


def test_the_groups_are_those_of_the_study():
    groups = {group.name: group for group in load_groups()}
    assert {name: set(areas.split()) for name, areas in STUDY.items()} == {
        name: set(groups[name].areas) for name in STUDY
    }
    assert all(group.source not in ("", "n/a") for group in groups.values())
    assert {name for name, group in groups.items() if group.kind == "set"} == {
        "whole brain", "visual", "language", "auditory"
    }  # fmt: skip


def test_every_group_is_whole_in_the_atlas_it_is_of(glasser):
    areas = [name for name, kind in zip(glasser.names, glasser.kinds, strict=True) if kind == "area"]
    assert len(areas) == 360
    assert not any("lacks" in note for note in glasser.notes)
    content = tomllib.loads((files("bids_mllm") / "data" / "rois.toml").read_text(encoding="utf-8"))
    for name, entry in content["groups"].items():
        own = [areas.index(f"{side}_{area}") for side in "LR" for area in entry["areas"]]
        expected = np.sort(np.concatenate([glasser.members[place] for place in own]))
        np.testing.assert_array_equal(glasser.members[glasser.names.index(name)], expected)
        assert len(own) == 2 * len(entry["areas"])


def test_sets_are_unions_of_their_groups(glasser):
    own = dict(zip(glasser.names, glasser.members, strict=True))
    union = np.unique(np.concatenate([own[name] for name in ("EVC", "LOC", "MT")]))
    np.testing.assert_array_equal(own["visual"], union)
    areas = chain.from_iterable(m for m, k in zip(glasser.members, glasser.kinds, strict=True) if k == "area")
    np.testing.assert_array_equal(own["whole brain"], sorted(areas))


def test_areas_of_the_left_lie_in_the_left_hemisphere(glasser):
    for name, own, kind in zip(glasser.names, glasser.members, glasser.kinds, strict=True):
        if kind == "area":
            assert ((own < 32492) == name.startswith("L_")).all()


def found(groups, names):
    return {one.group.name: one for one in find_groups(groups, names)}


def test_a_group_of_which_less_than_half_is_there_is_left_out_unless_it_is_the_users():
    evc = ("V1", "V2", "V3")
    names = ("L_V1", "R_V1")
    assert found([RoiGroup("EVC", "group", evc, "s")], names) == {}
    own = found([RoiGroup("EVC", "group", evc, "s", own=True)], names)["EVC"]
    assert own.missing == ("L_V2", "R_V2", "L_V3", "R_V3")


def test_a_group_may_name_one_hemisphere_and_an_atlas_may_know_none():
    left = [RoiGroup("left", "group", ("L_V1",), "s")]
    assert found(left, ("R_V1", "V1_L"))["left"].regions == (1,)
    assert found([RoiGroup("both", "group", ("V1",), "s")], ("V2", "V1"))["both"].regions == (1,)


def test_the_whole_brain_is_a_row_only_beside_groups():
    groups = load_groups()
    assert found(groups, ("visual", "auditory", "none")) == {}
    assert found(groups, ("L_V1", "R_V1", "L_LO1", "R_LO1", "L_LO2", "R_LO2"))["whole brain"].regions == tuple(range(6))


OWN = """
[groups.STS]
areas = ["STSda", "STSdp"]
source = "my paper"
[groups.EVC]
areas = ["V1"]
[sets.mine]
groups = ["STS", "AG"]
"""


def test_groups_of_the_users_come_beside_or_instead_of_the_apps(tmp_path):
    path = tmp_path / "rois.toml"
    path.write_text(OWN)
    groups = {group.name: group for group in load_groups(path)}
    assert groups["STS"] == RoiGroup("STS", "group", ("STSda", "STSdp"), "my paper", own=True)
    assert groups["EVC"].areas == ("V1",)
    assert groups["mine"].areas == ("STSda", "STSdp", "PFm", "PGs", "PGi", "TPOJ2", "TPOJ3")
    assert groups["LOC"] == {group.name: group for group in load_groups()}["LOC"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("groups = [", "cannot be read as TOML"),
        ("[areas]\n", "not of the form expected"),
        ("", "not of the form expected"),
        ("[groups.A]\nareas = 'V1'\n", "areas of A must be a list of names"),
        ("[groups.A]\nareas = []\n", "areas of A must be a list of names"),
        ("[groups]\nA = 3\n", "not of the form expected"),
        ("[sets.A]\ngroups = ['none']\n", "the set A names none, which is no group"),
        ("[sets.A]\nareas = ['V1']\n", "not of the form expected"),
    ],
)
def test_faults_of_a_file_of_groups(tmp_path, text, words):
    path = tmp_path / "rois.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        load_groups(path)


def test_an_unknown_area_is_named_with_its_neighbours(tmp_path):
    groups = [RoiGroup("A", "group", ("V1", "TPOJ4"), "s", own=True), RoiGroup("B", "group", ("nowhere",), "s")]
    with pytest.raises(UsageError) as caught:
        check_own_groups(groups, {"Glasser": ("L_V1", "L_TPOJ1")}, tmp_path / "r.toml")
    assert "A names the area TPOJ4, which is no region of Glasser; the nearest names are L_TPOJ1" in str(caught.value)
    check_own_groups(groups[1:], {"Glasser": ("L_V1",)}, tmp_path / "r.toml")
    check_own_groups(groups, {"Glasser": ("L_V1",), "other": ("R_TPOJ4",)}, tmp_path / "r.toml")
