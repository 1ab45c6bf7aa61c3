"""Maps show the planted numbers where they are."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.image import imread
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from bids_mllm.report.maps import category_map, cut_coordinates, layer_map, score_map
from bids_mllm.report.style import PALETTE

from .samples import blob_image, head_grid, world_coordinates

# The colour bar and the legend are to the right of this part of the picture.
MAPS = 0.82


@dataclass(frozen=True)
class Picture:
    pixels: NDArray[np.float32]

    @property
    def maps(self) -> NDArray[np.float32]:
        return self.pixels[:, : int(MAPS * self.pixels.shape[1]), :3]

    def axial_cuts(self) -> list[NDArray[np.float32]]:
        """The seven cuts of the first row, from inferior to superior."""
        row = self.maps[: int(0.38 * self.maps.shape[0])]
        return np.array_split(row, 7, axis=1)


def decoded(png: bytes) -> Picture:
    return Picture(imread(io.BytesIO(png), format="png"))


def coloured(pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a picture is not grey; the background is."""
    return np.asarray(np.ptp(pixels, axis=-1) > 0.2, dtype=bool)


def near(pixels: NDArray[np.float32], colour: tuple[float, ...]) -> NDArray[np.bool_]:
    return np.asarray(np.abs(pixels - np.array(colour)).max(axis=-1) < 0.02, dtype=bool)


@pytest.mark.parametrize(("x", "left"), [(-40.0, True), (40.0, False)])
def test_a_blob_appears_on_its_own_side(x: float, left: bool) -> None:
    picture = decoded(score_map(blob_image((x, -20.0, 12.0)), threshold=0.1))
    columns = [np.flatnonzero(coloured(cut).any(axis=0)) for cut in picture.axial_cuts()]
    with_blob = [(cut, c) for cut, c in zip(picture.axial_cuts(), columns, strict=True) if c.size > 5]
    assert with_blob
    for cut, shown in with_blob:
        assert (shown.mean() < cut.shape[1] / 2) == left


def test_the_side_of_low_x_is_marked_left_also_in_a_radiological_image() -> None:
    """An image stored from right to left is the same map."""
    image = blob_image((-40.0, -20.0, 12.0))
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = image.shape[0] - 1
    mirrored = Nifti1Image(image.get_fdata()[::-1].copy(), image.affine @ flip)
    ours, theirs = (decoded(score_map(i, threshold=0.1)).maps for i in (image, mirrored))
    np.testing.assert_array_equal(coloured(ours), coloured(theirs))


def test_cuts_are_marked_l_on_the_left_and_r_on_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    from nilearn.plotting.displays import CutAxes

    marks: list[tuple[str, bool]] = []
    draw = CutAxes.draw_left_right

    def recorded(self: CutAxes, *args: object, **settings: object) -> None:
        before = len(self.ax.texts)
        draw(self, *args, **settings)
        marks.extend((t.get_text(), t.get_position()[0] < 0.5) for t in self.ax.texts[before:])

    monkeypatch.setattr(CutAxes, "draw_left_right", recorded)
    score_map(blob_image((-40.0, -20.0, 12.0)))
    assert marks.count(("L", True)) == 14
    assert set(marks) == {("L", True), ("R", False)}


def test_voxels_below_the_threshold_and_nan_are_transparent() -> None:
    values, affine = head_grid()
    picture = decoded(score_map(Nifti1Image(values, affine)))
    assert not coloured(picture.maps).any()


def test_a_diverging_map_shows_negative_scores_in_the_other_colour() -> None:
    values, affine = head_grid()
    x = world_coordinates(values, affine)[..., 0]
    signed = Nifti1Image(np.where(np.isfinite(values), np.where(x < 0, -0.3, 0.3), np.nan), affine)
    cut = decoded(score_map(signed, diverging=True)).axial_cuts()[3]
    half = cut.shape[1] // 2
    red, blue = (coloured(cut) & (cut[..., a] > cut[..., b]) for a, b in ((0, 2), (2, 0)))
    assert blue[:, : half - 8].sum() > 100
    assert red[:, : half - 8].sum() == 0
    assert red[:, half + 8 :].sum() > 100
    assert blue[:, half + 8 :].sum() == 0
    one_sided = decoded(score_map(signed)).axial_cuts()[3]
    assert not coloured(one_sided)[:, : half - 8].any()


def test_a_category_map_paints_each_name_in_its_legend_colour() -> None:
    values, affine = head_grid()
    y = world_coordinates(values, affine)[..., 1]
    indices = np.where(np.isfinite(values), np.where(y > -17, 0, 2), -1)
    picture = decoded(category_map(Nifti1Image(indices.astype(np.int16), affine), ["AR", "NU", "SU"]))
    colours = [tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in PALETTE[:3]]
    counts = [int(near(picture.maps, colour).sum()) for colour in colours]
    assert counts[0] > 1000
    assert counts[2] > 1000
    assert counts[1] == 0
    cut = picture.axial_cuts()[3]
    front = np.flatnonzero(near(cut, colours[0]).any(axis=1)).mean()
    assert front < np.flatnonzero(near(cut, colours[2]).any(axis=1)).mean()
    legend = picture.pixels[:, int(0.83 * picture.pixels.shape[1]) :, :3]
    assert all(near(legend, colour).any() for colour in colours)


def test_a_layer_map_orders_its_colours_and_keeps_layer_zero() -> None:
    values, affine = head_grid()
    first = Nifti1Image(np.where(np.isfinite(values), 0.0, np.nan), affine)
    last = Nifti1Image(np.where(np.isfinite(values), 28.0, np.nan), affine)
    means = []
    for image in (first, last):
        maps = decoded(layer_map(image, range(29))).maps
        assert coloured(maps).sum() > 5000
        means.append(float(maps[coloured(maps)].mean()))
    assert means[0] < means[1]


def test_an_index_beyond_the_names_is_refused() -> None:
    values, affine = head_grid()
    with pytest.raises(ValueError, match="holds 3, but there are only 3 names"):
        category_map(Nifti1Image(np.where(np.isfinite(values), 3.0, np.nan), affine), ["a", "b", "c"])


def test_a_given_background_takes_the_place_of_the_template() -> None:
    values, affine = head_grid()
    empty = Nifti1Image(values, affine)
    flat = Nifti1Image(np.where(np.isfinite(values), 100.0, 0.0), affine)
    own, template = (decoded(score_map(empty, background=b)).maps for b in (flat, None))
    assert own.shape != template.shape or not np.array_equal(own, template)


def test_maps_leave_no_open_figure() -> None:
    before = plt.get_fignums()
    score_map(blob_image((0.0, 0.0, 12.0)))
    assert plt.get_fignums() == before


def test_cut_coordinates_lie_inside_what_is_shown() -> None:
    shown = np.zeros((11, 11, 11), dtype=bool)
    shown[2:9, 3:8, 4:7] = True
    cuts = cut_coordinates(shown, np.diag([2.0, 2.0, 2.0, 1.0]), n_cuts=3)
    assert cuts["x"] == pytest.approx([5.2, 10.0, 14.8])
    assert cuts["z"] == pytest.approx([8.4, 10.0, 11.6])
    assert len(cut_coordinates(np.zeros((4, 4, 4), dtype=bool), np.eye(4))["y"]) == 7


def test_an_oblique_image_with_its_own_background_keeps_its_side() -> None:
    """Maps in the participant's own space have rotated grids; the template does not fit them."""
    image = blob_image((-40.0, -20.0, 12.0))
    angle = np.deg2rad(12.0)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    values = image.get_fdata()
    anatomy = Nifti1Image(np.where(np.isfinite(values), 100.0, 0.0), turn @ image.affine)
    oblique = Nifti1Image(values, turn @ image.affine)
    picture = decoded(score_map(oblique, threshold=0.1, background=anatomy))
    columns = [np.flatnonzero(coloured(cut).any(axis=0)) for cut in picture.axial_cuts()]
    means = [
        shown.mean() / cut.shape[1] for cut, shown in zip(picture.axial_cuts(), columns, strict=True) if shown.size
    ]
    assert means
    assert max(means) < 0.5


def test_a_map_of_nan_alone_is_still_a_picture() -> None:
    values, affine = head_grid()
    assert score_map(Nifti1Image(np.full_like(values, np.nan), affine)).startswith(b"\x89PNG")
