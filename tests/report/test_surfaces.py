"""Pictures of surfaces show the planted numbers where they are."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from bids_mllm.io.meshes import Mesh, find_meshes
from bids_mllm.report.colouring import MAP_WIDTH, score_colouring
from bids_mllm.report.style import PALETTE
from bids_mllm.report.surfaces import Deep, category_surface, layer_surface, score_surface, view_of, view_pixels

N = 10242
BRAIN = find_meshes("fsaverage5", N, N)
assert BRAIN is not None
NONE = np.full(N, np.nan)
SIDES = ("left", "right")


@dataclass(frozen=True)
class Views:
    """The four parts of a picture without its key: left and right, each lateral above medial."""

    pixels: NDArray[np.float32]

    def __getitem__(self, place):
        side, name = place
        maps = self.pixels[:, : int(MAP_WIDTH * self.pixels.shape[1]), :3]
        middle = maps.shape[1] // 2
        half = maps[:, :middle] if side == "left" else maps[:, middle:]
        # The title is 0.25 inches high, a view 2.9.
        edge = round(half.shape[0] * (0.25 + 2.9) / (0.25 + 2 * 2.9))
        return half[:edge] if name == "lateral" else half[edge:]


def decoded(png: bytes) -> Views:
    return Views(imread(io.BytesIO(png), format="png"))


def coloured(pixels):
    """Where a picture is not grey; the bare surface and the page are."""
    return np.ptp(pixels, axis=-1) > 0.2


def patch(side, axis, sign, radius=25.0):
    """Scores around the vertex that lies farthest in a direction."""
    points = np.asarray(getattr(BRAIN, side).points)
    centre = points[np.argmax(sign * points[:, axis])]
    near = np.linalg.norm(points - centre, axis=1) < radius
    return np.where(near, 0.5, np.nan)


def picture_of(side, values):
    both = (values, NONE) if side == "left" else (NONE, values)
    return decoded(score_surface(BRAIN, *both))


def centre_of(shown):
    """Column and row of the middle of what is shown, as shares."""
    rows, columns = np.nonzero(shown)
    return columns.mean() / shown.shape[1], rows.mean() / shown.shape[0]


@pytest.mark.parametrize("side", SIDES)
def test_the_back_of_a_hemisphere_lies_on_its_own_side_and_at_the_back(side):
    """The left hemisphere looks to the left from outside and to the right from the middle; the right one mirrored."""
    picture = picture_of(side, patch(side, axis=1, sign=-1.0))
    other = SIDES[1 - SIDES.index(side)]
    for name in ("lateral", "medial"):
        assert not coloured(picture[other, name]).any()
        shown = coloured(picture[side, name])
        assert shown.sum() > 500
        at_the_right = centre_of(shown)[0] > 0.75
        at_the_left = centre_of(shown)[0] < 0.25
        assert at_the_right if (side == "left") == (name == "lateral") else at_the_left


@pytest.mark.parametrize("side", SIDES)
def test_the_outer_face_is_lateral_and_the_inner_face_medial(side):
    outwards = -1.0 if side == "left" else 1.0
    for sign, name, empty in ((outwards, "lateral", "medial"), (-outwards, "medial", "lateral")):
        picture = picture_of(side, patch(side, axis=0, sign=sign, radius=15.0))
        assert coloured(picture[side, name]).sum() > 500
        assert not coloured(picture[side, empty]).any()


@pytest.mark.parametrize("side", SIDES)
def test_the_top_is_above(side):
    picture = picture_of(side, patch(side, axis=2, sign=1.0))
    for name in ("lateral", "medial"):
        assert centre_of(coloured(picture[side, name]))[1] < 0.35


def test_nan_and_scores_that_are_not_above_the_threshold_are_grey():
    picture = decoded(score_surface(BRAIN, NONE, np.full(N, -0.2)))
    for side in SIDES:
        for name in ("lateral", "medial"):
            view = picture[side, name]
            assert not coloured(view).any()
            assert (view.max(axis=-1) < 0.95).mean() > 0.4


def sphere(n=4000):
    """A sphere of radius 50 mm with its points spread evenly."""
    at = np.arange(n) + 0.5
    polar, turn = np.arccos(1 - 2 * at / n), np.pi * (1 + 5**0.5) * at
    points = 50 * np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], axis=1)
    return Mesh(points, ConvexHull(points).simplices)


@pytest.mark.parametrize(("side", "name"), [(side, name) for side in SIDES for name in ("lateral", "medial")])
def test_every_pixel_of_a_sphere_shows_the_vertex_that_geometry_says(side, name):
    mesh = sphere()
    from_right = (side, name) in (("right", "lateral"), ("left", "medial"))
    sign = 1.0 if from_right else -1.0
    view = view_of(mesh, side, name, n_pixels=201)
    height, width = view.vertex.shape
    assert abs(height - 201) <= 1
    assert abs(width - 201) <= 1
    rows, columns = np.mgrid[10:height:17, 10:width:17].reshape(2, -1)
    up, across = 50 - rows / 200 * 100, columns / 200 * 100 - 50
    beside = up**2 + across**2
    seen = view.vertex[rows, columns]
    assert (seen[beside > 51**2] == -1).all()
    inside = beside < 45**2
    true = np.stack([sign * np.sqrt(2500 - beside[inside]), sign * across[inside], up[inside]], axis=1)
    distances = np.linalg.norm(mesh.points[None] - true[:, None], axis=2)
    shown = distances[np.arange(len(true)), seen[inside]]
    # 4000 vertices lie 3 mm apart; near the rim a pixel reaches farther along the surface.
    assert shown.max() < 3.5
    assert (shown - distances.min(axis=1)).mean() < 0.2


def test_what_is_nearer_hides_what_is_behind():
    square = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], dtype=float)
    points = np.concatenate([np.insert(square, 0, depth, axis=1) for depth in (-5.0, 5.0)])
    faces = np.array([[0, 1, 2], [1, 3, 2], [4, 5, 6], [5, 7, 6]])
    for order in (faces, faces[::-1]):
        mesh = Mesh(points, order)
        assert set(np.unique(view_of(mesh, "right", "lateral", n_pixels=21).vertex)) == {4, 5, 6, 7}
        assert set(np.unique(view_of(mesh, "right", "medial", n_pixels=21).vertex)) == {0, 1, 2, 3}


def test_pixels_have_exactly_the_colours_of_the_key():
    mesh = sphere(500)
    values = np.linspace(0.1, 1.0, 500)
    colouring = score_colouring(values, label="r", vmax=1.0)
    view = view_of(mesh, "left", "lateral", n_pixels=61)
    pixels = view_pixels(view, values, colouring)
    row, column = 30, 30
    expected = colouring.cmap(values[view.vertex[row, column]], bytes=True)
    assert np.abs(pixels[row, column].astype(int) - np.array(expected, dtype=int)).max() <= 2
    assert pixels[0, 0, 3] == 0


def test_a_finer_fsaverage_is_drawn_by_its_first_vertices():
    """The finer icosahedra of FreeSurfer begin with the vertices of the coarser ones."""
    coarse = patch("left", axis=1, sign=-1.0)
    fine = np.concatenate([coarse, np.full(40962 - N, 0.9)])
    assert score_surface(BRAIN, fine, np.full(40962, np.nan), vmax=1.0) == score_surface(BRAIN, coarse, NONE, vmax=1.0)


def test_categories_have_the_colours_of_their_legend_and_layers_an_order():
    y = np.asarray(BRAIN.left.points)[:, 1]
    thirds = np.digitize(y, np.quantile(y, [1 / 3, 2 / 3])).astype(float)
    view = decoded(category_surface(BRAIN, thirds, NONE, ["AR", "NU", "SU"]))["left", "lateral"]
    columns = [
        np.nonzero(np.abs(view - np.array(to_rgb(colour))).max(axis=-1) < 0.02)[1].mean() for colour in PALETTE[:3]
    ]
    # From the back at the right to the front at the left.
    assert columns == sorted(columns, reverse=True)
    view = decoded(layer_surface(BRAIN, thirds, NONE, [0, 7, 14]))["left", "lateral"]
    shown = coloured(view)
    light = np.where(shown, view.mean(axis=-1), np.nan)
    middle = shown.shape[1] // 2
    assert np.nanmean(light[:, :middle]) > np.nanmean(light[:, middle:])


def test_an_index_beyond_the_names_is_refused():
    with pytest.raises(ValueError, match="only 2 names"):
        category_surface(BRAIN, np.full(N, 2.0), NONE, ["AR", "NU"])


def test_what_lies_deep_is_drawn_as_cuts_below_the_surfaces():
    affine = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    volume = np.full((91, 109, 91), np.nan, dtype=np.float32)
    volume[36:42, 50:62, 36:44] = 0.4
    plain = imread(io.BytesIO(score_surface(BRAIN, NONE, NONE)), format="png")
    with_cuts = imread(io.BytesIO(score_surface(BRAIN, NONE, NONE, deep=Deep(Nifti1Image(volume, affine)))), "png")
    below = with_cuts[plain.shape[0] :, : int(MAP_WIDTH * plain.shape[1]), :3]
    assert not coloured(with_cuts[: plain.shape[0], : below.shape[1], :3]).any()
    cuts = [np.nonzero(coloured(cut))[1] for cut in np.array_split(below, 7, axis=1)]
    # The box lies at x -18 to -8 mm, so left of the middle of each cut.
    assert all(columns.size > 20 and columns.mean() < below.shape[1] / 14 for columns in cuts)


def test_surfaces_leave_no_open_figure():
    before = plt.get_fignums()
    score_surface(BRAIN, NONE, NONE)
    assert plt.get_fignums() == before
