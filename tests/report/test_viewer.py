"""Maps become codes that tell their values, in as many bytes as a page may have."""

import base64
import gzip

import numpy as np
import pytest

from bids_mllm.io.meshes import find_meshes
from bids_mllm.report import viewer
from bids_mllm.report.content import Picture
from bids_mllm.report.viewer import (
    N_CODES,
    ViewerMap,
    VolumePlace,
    name_codes,
    name_scale,
    score_codes,
    score_scale,
    viewer_block,
)

STILL = Picture(b"\x89PNG", "A map")
SHAPE = (5, 6, 7)
AFFINE = np.array([[-3.0, 0, 0, 10], [0, 3, 0, -20], [0, 0, 3, -30], [0, 0, 0, 1]])


def unpacked(text, dtype=np.uint8):
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype=dtype)


def block(place, maps, scales=None):
    return viewer_block(place, scales or (score_scale("r", 0.5),), maps, picture=STILL, caption="Maps.")


def test_codes_of_scores_are_off_by_at_most_half_a_part():
    scale = score_scale("r", 0.4)
    values = np.linspace(0.4 / N_CODES, 0.4, 1000)
    codes = score_codes(values, scale)
    assert np.abs(codes / N_CODES * 0.4 - values).max() <= 0.5 * 0.4 / N_CODES + 1e-12
    assert score_codes(np.array([np.nan, -0.1, 0.0, -np.inf, 1e-9, 0.9, np.inf]), scale).tolist() == [
        0, 0, 0, 0, 1, N_CODES, 0,
    ]  # fmt: skip
    assert len(scale.colours) == N_CODES


def test_codes_of_names_count_from_one():
    assert name_codes(np.array([np.nan, -1.0, 0.0, 2.0, np.inf])).tolist() == [0, 0, 1, 3, 0]
    assert len(set(name_scale("condition", [f"c{number}" for number in range(18)]).colours)) == 18
    ordered = name_scale("layer", ["1", "2", "3"], ordered=True).colours
    assert (ordered[0], ordered[-1]) == ("#440154", "#fde725")


def test_voxels_are_stored_with_the_first_axis_fastest():
    codes = np.arange(210, dtype=np.uint8)
    content = block(VolumePlace(SHAPE, AFFINE), [ViewerMap("m", "r", "g", 0, codes)]).content
    stored = unpacked(content["maps"][0]["codes"])
    x, y, z = 3, 1, 6
    assert stored[x + SHAPE[0] * (y + SHAPE[1] * z)] == codes.reshape(SHAPE)[x, y, z]
    assert content["place"]["affine"] == AFFINE.reshape(-1).tolist()
    peak = AFFINE @ [4, 5, 6, 1]
    assert content["place"]["start"] == peak[:3].tolist()


def test_hemispheres_are_apart_and_keep_their_faces():
    meshes = find_meshes("fsaverage5", 10242, 10242)
    content = block(meshes, [ViewerMap("m", "r", "g", 0, np.ones(20484, dtype=np.uint8))]).content["place"]
    left, right = (
        unpacked(content[side]["points"], "<i2").reshape(-1, 3) * content["unit"] for side in ("left", "right")
    )
    assert left[:, 0].max() == pytest.approx(-2, abs=0.01)
    assert right[:, 0].min() == pytest.approx(2, abs=0.01)
    assert np.abs(left[:, 1:] - meshes.left.points[:, 1:]).max() < 0.006
    assert np.array_equal(unpacked(content["right"]["faces"], "<u2").reshape(-1, 3), meshes.right.faces)
    assert np.array_equal(unpacked(content["left"]["folds"]) < 180, meshes.left.sulci)


def test_large_volumes_are_thinned_and_then_maps_left_out(monkeypatch):
    rng = np.random.default_rng(0)
    shape = (20, 20, 20)
    maps = [ViewerMap("m", f"map {n}", "g", 0, rng.integers(0, 255, 8000).astype(np.uint8)) for n in range(4)]
    place = VolumePlace(shape, AFFINE)
    whole = block(place, maps)
    assert whole.notes == ()
    monkeypatch.setattr(viewer, "BUDGET", 20_000)
    thin = block(place, maps)
    assert thin.notes == ("To keep the page small the viewer shows every second voxel along each axis.",)
    assert thin.content["place"]["shape"] == [10, 10, 10]
    stored = unpacked(thin.content["maps"][1]["codes"]).reshape(10, 10, 10)
    assert stored[3, 2, 1] == maps[1].codes.reshape(shape)[2, 4, 6]
    affine = np.array(thin.content["place"]["affine"]).reshape(4, 4)
    assert np.allclose(affine @ [1, 2, 3, 1], AFFINE @ [2, 4, 6, 1])
    monkeypatch.setattr(viewer, "BUDGET", 3_000)
    short = block(place, maps)
    assert [one["name"] for one in short.content["maps"]] == ["map 0", "map 1"]
    assert short.notes[1] == "To keep the page small 2 of 4 maps are left out of the viewer."


def test_content_cannot_end_its_element():
    name = "</script><script>alert(1)</script>"
    made = block(VolumePlace(SHAPE, AFFINE), [ViewerMap(name, "r", "g", 0, np.zeros(210, dtype=np.uint8))])
    assert "<" not in made.markup
    assert "&" not in made.markup


@pytest.mark.parametrize("n_names", [13, 14, 26, 27])
def test_every_name_of_a_scale_has_a_colour_of_its_own(n_names):
    assert len(set(name_scale("condition", [f"name{number}" for number in range(n_names)]).colours)) == n_names
