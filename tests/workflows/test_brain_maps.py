"""Brain maps of the figures: gathered from maps on disk, left where they should be, and drawn again from their rows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.atlas import AtlasFiles
from bids_mllm.io.cortex import cortex_of
from bids_mllm.io.derivatives import MapName, write_map
from bids_mllm.io.files import read_tsv, write_tsv
from bids_mllm.io.grids import ParcelGrid
from bids_mllm.io.maps import map_extension
from bids_mllm.io.results import ModelResult
from bids_mllm.report.brain_colours import score_paint
from bids_mllm.report.brain_figures import Brain, draw_brain_map
from bids_mllm.report.style import png_bytes
from bids_mllm.workflows.brain_drawing import draw_brain, views_of
from bids_mllm.workflows.brain_figures import brain_figures, label_figures
from bids_mllm.workflows.figures import redraw, write_figures
from tests.brain_samples import (
    AFFINE,
    FLIPPED,
    coloured_in,
    middle_of,
    planted_grayordinates,
    planted_surface,
    planted_volume,
    points_of_voxels,
)

SIDECAR = {"Layers": [0, 2, 4], "Conditions": ["AR", "VU", "media"], "Model": {"Kind": "low-level"}}
SPACES = {
    "MNI152NLin6Asym": planted_volume,
    "fsaverage5": planted_surface,
    "fsLR": planted_grayordinates,
}


def write(result, stat, desc, values, grid, **sidecar):
    path = result.path(stat, desc)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_map(path, values, np.ones(grid.n_places, dtype=bool), grid, {**SIDECAR, **sidecar})


def result_of(folder, space, grid, values, *, participant="01", model="one", **sidecar):
    name = MapName(participant, "life", space, extension=map_extension(grid))
    result = ModelResult(name, model, Path(folder))
    write(result, "r", "best", values, grid, **sidecar)
    return result


def figure_of(figures, kind):
    (found,) = [one for one in figures if one.kind == kind]
    return found


def left_end(axes):
    return axes.get_position().x0


def drawn_in(data, folder, view):
    return draw_brain(replace(data, options={**data.options, "Views": [view]}), folder)


@pytest.fixture(params=SPACES)
def planted(request, tmp_path):
    grid, values = SPACES[request.param]()
    result = result_of(tmp_path, request.param, grid, values)
    return tmp_path, figure_of(brain_figures(tmp_path, [result]), "map-scores"), grid, values


def test_left_posterior_is_left_and_at_the_back_on_inflated_surfaces(planted):
    folder, data, _, _ = planted
    figure = drawn_in(data, folder, "inflated")
    assert [text.get_text() for text in figure.texts] == ["L lateral", "L medial", "R medial", "R lateral"]
    panels = [coloured_in(figure, axes) for axes in figure.axes[:4]]
    assert min(panels[0].sum(), panels[1].sum()) > 100
    assert not panels[2].any() | panels[3].any()
    # From the left, the back is at the right; from the middle, at the left.
    assert middle_of(panels[0])[0] > 0.7
    assert middle_of(panels[1])[0] < 0.3
    assert not panels[0][:, : panels[0].shape[1] // 2].any()


def test_left_posterior_is_left_and_towards_the_middle_on_flat_surfaces(planted):
    folder, data, _, _ = planted
    figure = drawn_in(data, folder, "flat")
    assert [text.get_text() for text in figure.texts] == ["L flat", "R flat"]
    left, right = (coloured_in(figure, axes) for axes in figure.axes[:2])
    assert left.sum() > 300
    assert not right.any()
    assert middle_of(left)[0] > 0.7


@pytest.mark.parametrize("affine", [AFFINE, FLIPPED])
def test_left_posterior_is_left_and_at_the_back_in_glass_and_slices(tmp_path, affine):
    grid, values = planted_volume(affine)
    result = result_of(tmp_path, "MNI152NLin6Asym", grid, values)
    data = figure_of(brain_figures(tmp_path, [result]), "map-scores")
    glass = drawn_in(data, tmp_path, "glass")
    panels = sorted((axes for axes in glass.axes if 0.1 < axes.get_position().width < 0.5), key=left_end)
    left, coronal, right, axial = (coloured_in(glass, axes) for axes in panels)
    assert left.sum() > 100
    assert not right.any()
    assert middle_of(left)[0] > 0.7
    assert middle_of(coronal)[0] < 0.45
    assert middle_of(axial)[0] < 0.45
    assert middle_of(axial)[1] > 0.6
    marks = [text.get_text() for axes in panels for text in axes.texts]
    assert marks.count("L") == marks.count("R") == 2
    slices = drawn_in(data, tmp_path, "slices")
    cuts = [coloured_in(slices, axes) for axes in slices.axes if axes.get_position().x1 < 0.84]
    seen = [middle_of(cut) for cut in cuts if cut.sum() > 4 and cut.shape[1] < 120]
    assert len(seen) >= 3
    assert all(x < 0.5 and y > 0.5 for x, y in seen)


def test_rows_are_the_finite_places_of_the_map(planted):
    _, data, _, values = planted
    finite = np.flatnonzero(np.isfinite(values))
    assert [row["place"] for row in data.rows] == finite.tolist()
    np.testing.assert_allclose([row["value"] for row in data.rows], values[finite], rtol=1e-5)
    assert data.options["Sources"] == [f"sub-01/func/{Path(data.options['Sources'][0]).name}"]


def through_files(folder, data):
    """Return a figure as it is after its table and its options were written and read."""
    write_tsv(folder / "rows.tsv", [dict(row) for row in data.rows])
    rows = tuple(
        {name: None if text == "n/a" else float(text) if name != "place" else int(text) for name, text in row.items()}
        for row in read_tsv(folder / "rows.tsv")
    )
    return replace(data, rows=rows, options=json.loads(json.dumps(data.options)))


def test_rows_and_options_draw_what_the_map_draws_to_the_byte(tmp_path):
    grid, values = planted_surface()
    values = values + np.random.default_rng(1).normal(0, 0.1, values.shape)
    values[7] = np.nan
    result = result_of(tmp_path, "fsaverage5", grid, values.astype(np.float32))
    data = figure_of(brain_figures(tmp_path, [result]), "map-scores")
    cortex = cortex_of("fsaverage5", grid, np.isfinite(values))
    brain = Brain(cortex.inflated, cortex.flat, cortex.left, cortex.right)
    paint = score_paint(result.map("r", "best")[0].astype(float), top=data.options["Top"], label="held-out r")
    direct = png_bytes(draw_brain_map(brain, paint, ["inflated", "flat"]))
    assert png_bytes(draw_brain(data, tmp_path)) == direct
    assert png_bytes(draw_brain(through_files(tmp_path, data), tmp_path)) == direct
    changed = replace(data, rows=tuple({**row, "value": 0.0} for row in data.rows))
    assert png_bytes(draw_brain(changed, tmp_path)) != direct


def several(folder, *, participant="01"):
    """Two models with every map of the figures in a small volume."""
    grid, values = planted_volume()
    finite = np.isfinite(values)
    left, right = np.where(finite, values, np.nan), np.where(finite, values[::-1], np.nan)
    one = result_of(folder, "MNI152NLin6Asym", grid, left, participant=participant)
    two = result_of(folder, "MNI152NLin6Asym", grid, right, participant=participant, model="two")
    significant = np.where(finite, np.where(left > 0, 0.01, 0.5), np.nan)
    if participant is None:
        write(one, "rthresholded", "best", np.where(left > 0, left, np.nan), grid)
    else:
        write(one, "q", "best", significant, grid)
        write(two, "q", "best", np.where(finite, 0.9, np.nan), grid)
    for result in (one, two):
        write(result, "bestlayer", None, np.where(finite, 4.0, np.nan), grid)
        write(result, "bestcondition", None, np.where(finite, np.arange(grid.n_places) % 3, np.nan), grid)
    write(one, "bestcondition", "social", np.where(finite, 2.0, np.nan), grid, ChosenAmong=["AR", "media"])
    path = one.name.path(folder, stat="noiseceiling")
    write_map(path, np.where(finite, 0.6, np.nan), np.ones(grid.n_places, dtype=bool), grid, {})
    return one, two, grid, left


@pytest.mark.parametrize("participant", ["01", None])
def test_every_map_on_disk_is_gathered_and_drawn(tmp_path, participant):
    one, two, *_ = several(tmp_path, participant=participant)
    figures = brain_figures(tmp_path, [one, two])
    kinds = [data.kind for data in figures]
    thresholded = 2 if participant else 1
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "map-scores": 2, "map-thresholded": thresholded, "map-layer": 2, "map-category": 3, "map-contrast": 1,
        "map-ceiling": 1,
    }  # fmt: skip
    assert len({data.name for data in figures}) == len(figures)
    for data in figures:
        glass = ["glass"] if data.kind == "map-thresholded" else []
        assert data.options["Views"] == [*glass, "slices", "inflated", "flat"]
        assert draw_brain(through_files(tmp_path, data), tmp_path).axes
    who = "sub-01" if participant else "the group"
    assert all(who in data.alt for data in figures)


def test_only_the_views_that_are_asked_for_are_drawn(tmp_path):
    one, two, grid, left = several(tmp_path)
    atlas, _ = atlas_of_two(tmp_path, grid, left)

    def views(*asked):
        return {(data.kind, *data.options["Views"])
                for data in brain_figures(tmp_path, [one, two], atlases=[atlas], views=asked)}  # fmt: skip

    kinds = {data.kind for data in brain_figures(tmp_path, [one, two], atlases=[atlas])}
    assert "map-labels" in kinds
    assert views("slices", "flat") == {(kind, "slices", "flat") for kind in kinds}
    assert views("glass") == {("map-thresholded", "glass")}
    assert views("none") == set()


def test_the_surfaces_are_named_where_one_is_drawn(tmp_path):
    one, two, *_ = several(tmp_path)
    for views, named in ((("inflated",), True), (("slices",), False)):
        captions = [data.caption for data in brain_figures(tmp_path, [one, two], views=views)]
        assert captions
        assert {"fsaverage5" in caption for caption in captions} == {named}


def test_models_of_one_place_share_the_top_of_their_scale(tmp_path):
    one, two, *_ = several(tmp_path)
    tops = {data.options["Top"] for data in brain_figures(tmp_path, [one, two])
            if data.kind in ("map-scores", "map-thresholded", "map-contrast")}  # fmt: skip
    assert len(tops) == 1


def test_choices_are_shown_where_scores_are_significant_and_without_any_where_they_are_above_0(tmp_path):
    one, two, _, values = several(tmp_path)
    figures = brain_figures(tmp_path, [one, two])
    planted = np.flatnonzero(np.nan_to_num(values) > 0).tolist()
    first, second = (data for data in figures if data.kind == "map-layer")
    assert [row["place"] for row in first.rows] == planted
    assert {row["value"] for row in first.rows} == {4.0}
    assert "is significant (q of at most 0.05)" in first.caption
    assert [row["place"] for row in second.rows] == np.flatnonzero(two.map("r", "best")[0] > 0).tolist()
    assert "held-out r is above 0" in second.caption
    social = next(data for data in figures if data.name.endswith("desc-social_mapcategory"))
    assert social.options["Names"] == ["AR", "media"]
    assert {row["value"] for row in social.rows} == {1.0}
    assert len(social.rows) == len(planted)


def test_nothing_of_noise_is_coloured_in_a_thresholded_map(tmp_path):
    grid, values = planted_volume()
    noise = np.where(np.isfinite(values), np.random.default_rng(0).normal(0, 0.1, values.shape), np.nan)
    result = result_of(tmp_path, "MNI152NLin6Asym", grid, noise)
    write(result, "q", "best", np.where(np.isfinite(values), 0.8, np.nan), grid)
    data = figure_of(brain_figures(tmp_path, [result]), "map-thresholded")
    figure = draw_brain(data, tmp_path)
    panels = [axes for axes in figure.axes if axes.get_position().x1 < 0.84]
    assert len(panels) > 10
    assert not any(coloured_in(figure, axes).any() for axes in panels)
    assert "coloured in the 0 of " in data.alt
    write(result, "q", "best", np.where(noise > 0.1, 0.01, 0.8), grid)
    data = figure_of(brain_figures(tmp_path, [result]), "map-thresholded")
    figure = draw_brain(data, tmp_path)
    assert any(coloured_in(figure, axes).any() for axes in figure.axes if axes.get_position().x1 < 0.84)
    assert sum(row["significant"] for row in data.rows) == (noise > 0.1).sum()


def test_a_contrast_names_both_maps_and_has_both_values(tmp_path):
    one, two, _, values = several(tmp_path)
    data = figure_of(brain_figures(tmp_path, [one, two]), "map-contrast")
    assert [Path(path).name for path in data.options["Sources"]] == [
        result.path("r", "best").name for result in (one, two)
    ]
    assert data.options["Names"] == ["one", "two"]
    places = [row["place"] for row in data.rows]
    other = two.map("r", "best")[0]
    finite = np.flatnonzero(np.isfinite(values) | np.isfinite(other))
    assert places == finite.tolist()
    assert [row["value"] for row in data.rows] == [None if np.isnan(v) else v for v in values[finite]]
    assert [row["value_b"] for row in data.rows] == [None if np.isnan(v) else v for v in other[finite]]


def contrasts_of(folder, models, *, participant="01"):
    """Return the contrasts of models, which are (name, kind, level of the scores, further facts)."""
    grid, _ = planted_surface()
    results = [
        result_of(folder, "fsaverage5", grid, np.full(grid.n_places, level, dtype=np.float32), participant=participant,
                  model=model, Model={"Kind": kind}, **facts)
        for model, kind, level, facts in models
    ]  # fmt: skip
    return [data for data in brain_figures(folder, results) if data.kind == "map-contrast"]


def test_of_many_models_the_best_of_each_class_are_contrasted_and_captions_tell_it(tmp_path):
    models = [
        ("a1", "low-level", 0.10, {}), ("a2", "low-level", 0.11, {}), ("b1", "unimodal video", 0.2, {}),
        ("b2", "unimodal image", 0.3, {}), ("c1", "multimodal", 0.32, {}), ("c2", "multimodal", 0.31, {}),
        ("d1", "in-context", 0.1, {}), ("e1", "instruction-tuned video", 0.4, {}),
        ("e2", "instruction-tuned audio", 0.5, {}),
    ]  # fmt: skip
    figures = contrasts_of(tmp_path, models)
    # Names are in the order of the results, pairs in that of the classes: the multimodal and unimodal ones first.
    assert [tuple(data.options["Names"]) for data in figures] == [
        ("c1", "e2"), ("b2", "e2"), ("c1", "d1"), ("b2", "d1"), ("b2", "c1"), ("a2", "c1"),
    ]  # fmt: skip
    assert all("Only 6 of the 36 pairs of models are drawn" in data.caption for data in figures)


def test_all_pairs_of_few_models_are_contrasted_in_the_order_of_the_models(tmp_path):
    models = [
        ("melspectrogram", "low-level", 0.1, {}), ("motionenergy", "low-level", 0.2, {}),
        ("qwen", "instruction-tuned video", 0.15, {}),
    ]  # fmt: skip
    figures = contrasts_of(tmp_path, models)
    assert {tuple(data.options["Names"]) for data in figures} == {
        ("melspectrogram", "motionenergy"), ("melspectrogram", "qwen"), ("motionenergy", "qwen"),
    }  # fmt: skip
    assert any(data.name.endswith("_model-melspectrogram_desc-vsmotionenergy_mapcontrast") for data in figures)
    assert not any("pairs of models" in data.caption for data in figures)


def test_a_contrast_of_means_over_other_participants_says_so(tmp_path):
    models = [
        ("one", "low-level", 0.1, {"Participants": ["01", "02"]}),
        ("three", "low-level", 0.2, {"Participants": ["02", "01"]}),
        ("two", "low-level", 0.2, {"Participants": ["01", "03", "04"]}),
    ]
    figures = contrasts_of(tmp_path, models, participant=None)
    told = {tuple(data.options["Names"]): data.caption for data in figures}
    words = "not over the same participants: only one has sub-02 and only two has sub-03, sub-04."
    assert words in told["one", "two"]
    assert "same participants" not in told["one", "three"]


def atlas_of_two(folder, grid, values):
    """Write an atlas of the planted region and of one at the front on the right; return it and its labels."""
    import nibabel as nib

    points = points_of_voxels(grid)
    labels = np.where(np.nan_to_num(values) > 0, 1, 0)
    labels[np.isfinite(values) & (points[:, 0] > 8) & (points[:, 1] > 30)] = 2
    path = folder / "atlas-two_dseg.nii.gz"
    nib.Nifti1Image(labels.reshape(grid.shape).astype(np.int16), grid.affine).to_filename(path)
    table = path.with_name("atlas-two_dseg.tsv")
    table.write_text("index\tname\n1\tBack\n2\tFront\n")
    return AtlasFiles("two", (path,), table), labels


def test_regions_of_an_atlas_are_named_where_they_lie(tmp_path):
    grid, values = planted_volume()
    atlas, labels = atlas_of_two(tmp_path, grid, values)
    result = result_of(tmp_path, "MNI152NLin6Asym", grid, values)
    (data,) = label_figures(tmp_path, result, [atlas])
    assert data in brain_figures(tmp_path, [result], atlases=[atlas])
    assert data.options["Names"] == ["Back", "Front"]
    assert [row["value"] for row in data.rows if row["value"] == 0.0] == [0.0] * int((labels == 1).sum())
    assert len(data.rows) == int((labels > 0).sum())
    figure = drawn_in(data, tmp_path, "flat")
    left, right = ([text.get_text() for text in axes.texts] for axes in figure.axes[:2])
    assert (left, right) == (["Back"], ["Front"])


def test_an_atlas_that_does_not_serve_the_grid_has_no_map(tmp_path):
    grid, values = planted_volume()
    result = result_of(tmp_path, "MNI152NLin6Asym", grid, values)
    assert label_figures(tmp_path, result, [AtlasFiles("lost", (tmp_path / "atlas-lost_dseg.nii.gz",))]) == []


def test_the_group_shows_the_regions_that_were_drawn_for_participants_on_its_grid(tmp_path):
    grid, values = planted_volume()
    atlas, _ = atlas_of_two(tmp_path, grid, values)
    group = result_of(tmp_path, "MNI152NLin6Asym", grid, values, participant=None, Participants=["01", "02"])
    assert [data.kind for data in brain_figures(tmp_path, [group])] == ["map-scores"]
    for label, own in (("01", planted_volume(FLIPPED)[0]), ("02", grid)):
        participant = result_of(tmp_path, "MNI152NLin6Asym", own, values, participant=label)
        (drawn,) = label_figures(tmp_path, participant, [atlas])
        write_figures(tmp_path / f"sub-{label}" / "figures", [drawn], output_dir=tmp_path)
    data = figure_of(brain_figures(tmp_path, [group]), "map-labels")
    assert data.rows == drawn.rows
    assert data.name == "task-life_space-MNI152NLin6Asym_atlas-two_maplabels"
    assert data.options["Sources"][0].startswith("group/func/")


def test_the_group_passes_over_regions_of_others_and_of_what_cannot_be_read(tmp_path):
    grid, values = planted_volume()
    atlas, _ = atlas_of_two(tmp_path, grid, values)
    people = ["02", "03", "04", "05"]
    group = result_of(tmp_path, "MNI152NLin6Asym", grid, values, participant=None, Participants=people)
    drawn = {}
    for label in ("01", *people):
        result = result_of(tmp_path, "MNI152NLin6Asym", grid, values, participant=label)
        (data,) = label_figures(tmp_path, result, [atlas])
        drawn[label] = replace(data, options={**data.options, "Names": [f"Back of {label}", "Front"]})
        write_figures(tmp_path / f"sub-{label}" / "figures", [drawn[label]], output_dir=tmp_path)
    damaged = replace(group, name=replace(group.name, participant="02")).path("r", "best")
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    (described,) = (tmp_path / "sub-03" / "figures").glob("*_maplabels.json")
    described.write_text("{")
    for table in (tmp_path / "sub-04" / "figures").glob("*_maplabels.tsv*"):
        table.unlink()
    data = figure_of(brain_figures(tmp_path, [group]), "map-labels")
    assert data.options["Names"] == ["Back of 05", "Front"]
    result_of(tmp_path, "MNI152NLin6Asym", grid, values, participant=None, Participants=["02"])
    assert "map-labels" not in [one.kind for one in brain_figures(tmp_path, [group])]


def test_a_written_map_is_drawn_again_to_the_byte(tmp_path):
    grid, values = planted_volume()
    result = result_of(tmp_path, "MNI152NLin6Asym", grid, values)
    folder = tmp_path / "sub-01" / "figures"
    write_figures(folder, brain_figures(tmp_path, [result]), output_dir=tmp_path)
    (png,) = folder.glob("*_mapscores.png")
    before = png.read_bytes()
    png.write_bytes(b"lost")
    redraw(png)
    assert png.read_bytes() == before


def test_maps_of_the_group_are_named_without_a_participant(tmp_path):
    grid, values = planted_surface()
    (data,) = brain_figures(tmp_path, [result_of(tmp_path, "fsaverage5", grid, values, participant=None)])
    assert data.options["Sources"][0].startswith("group/func/")
    assert data.name.startswith("task-life")
    assert data.caption.startswith("Mean over participants of the held-out r")


def test_places_without_a_surface_have_no_maps_and_own_volumes_slices_alone(tmp_path):
    grid, values = planted_volume()
    assert views_of("T1w", grid) == ("slices",)
    assert views_of("fsnative", planted_surface()[0]) == ("inflated", "flat")[:0]
    parcels = ParcelGrid(("one", "two"))
    result = result_of(tmp_path, "MNI152NLin6Asym", parcels, np.array([0.1, 0.2]))
    assert brain_figures(tmp_path, [result]) == []
    own = result_of(tmp_path, "T1w", grid, values)
    data = figure_of(brain_figures(tmp_path, [own]), "map-scores")
    assert "The anatomy is the MNI152 template, since that of T1w is not at hand." in data.caption
    assert draw_brain(data, tmp_path).axes


def test_a_missing_or_another_map_is_named(tmp_path):
    grid, values = planted_surface()
    result = result_of(tmp_path, "fsaverage5", grid, values)
    data = figure_of(brain_figures(tmp_path, [result]), "map-scores")
    beyond = replace(data, rows=({"place": grid.n_places, "value": 1.0},))
    with pytest.raises(InputDataError, match=r"has the place 20484, but sub-01/func/.* has 10242 \+ 10242 vertices"):
        draw_brain(beyond, tmp_path)
    with pytest.raises(InputDataError, match="of the kind 'map-unknown'; known are map-scores"):
        draw_brain(replace(data, kind="map-unknown"), tmp_path)
    result.path("r", "best").unlink()
    with pytest.raises(InputDataError, match=r"lies on the grid of .*_statmap\.func\.gii, which cannot be read"):
        draw_brain(data, tmp_path)
