"""The viewer and the explorer show the numbers of the maps and tables on disk."""

import base64
import gzip
import re

import nibabel as nib
import numpy as np
import pytest

from bids_mllm.io.derivatives import MapName, write_map
from bids_mllm.io.grids import GrayordinateGrid, ParcelGrid, SurfaceGrid, VolumeGrid
from bids_mllm.io.results import ModelResult
from bids_mllm.report.viewer import N_CODES
from bids_mllm.workflows.viewer import explorer_block, viewer_block

VOLUME = VolumeGrid((4, 5, 6), np.diag([3.0, 3, 3, 1]))
CONDITIONS, LAYERS = ["generatedAR", "generatedNU"], [0, 4, 8]


def written(folder, name, grid, models=("tiny", "plain")):
    """Write maps of a model with two conditions and three layers and of one with a single table; return both."""
    rng = np.random.default_rng(3)
    kept = np.ones(grid.n_places, dtype=bool)
    kept[0] = False
    n, results = int(kept.sum()), []
    for model in models:
        result = ModelResult(name, model, folder)
        many = model == "tiny"
        sidecar = {"Conditions": CONDITIONS if many else ["stimulus"], "Layers": LAYERS if many else [0]}
        maps = {("r", "best"): rng.uniform(-0.1, 0.4, n), ("q", "best"): rng.uniform(0, 0.1, n)}
        if many:
            maps |= {("bestlayer", None): rng.choice(LAYERS, n), ("bestcondition", None): rng.integers(0, 2, n)}
            maps |= {("r", condition): rng.uniform(-0.1, 0.4, (3, n)) for condition in CONDITIONS}
        result.path("r", "best").parent.mkdir(parents=True, exist_ok=True)
        for (stat, desc), values in maps.items():
            write_map(result.path(stat, desc), values, kept, grid, sidecar)
        results.append(result)
    ceiling = name.path(folder, stat="noiseceiling")
    write_map(ceiling, rng.uniform(0, 1, n), kept, grid, {})
    return results


def codes_of(block, model, name):
    (found,) = [one for one in block.content["maps"] if (one["model"], one["name"]) == (model, name)]
    codes = np.frombuffer(gzip.decompress(base64.b64decode(found["codes"])), dtype=np.uint8)
    return codes, block.content["scales"][found["scale"]]


def expected(values, scale):
    with np.errstate(invalid="ignore"):
        return np.where(values > 0, np.minimum(values, scale["high"]), 0)


def close(block, model, name, values):
    codes, scale = codes_of(block, model, name)
    assert np.abs(codes / N_CODES * scale["high"] - expected(values, scale)).max() <= scale["high"] / N_CODES


@pytest.mark.parametrize("participant", ["01", None])
def test_the_viewer_holds_the_maps_of_a_volume(tmp_path, participant):
    results = written(tmp_path, MapName(participant, "life", "MNI152NLin2009cAsym"), VOLUME)
    block = viewer_block(results)
    tiny, plain = results
    names = [(one["model"], one["name"]) for one in block.content["maps"]]
    assert names == [
        ("tiny", "held-out r"), ("tiny", "held-out r where q <= .05"), ("tiny", "best layer"),
        ("tiny", "best condition"), ("plain", "held-out r"), ("plain", "held-out r where q <= .05"),
        ("all models", "noise ceiling"), ("tiny", "r of generatedAR"), ("tiny", "r of generatedNU"),
    ]  # fmt: skip

    def fortran(values):
        return np.asarray(values).reshape(VOLUME.shape).T.reshape(-1)

    best, layers = tiny.map("r", "best")[0], tiny.map("bestlayer", None)[0]
    close(block, "tiny", "held-out r", fortran(best))
    close(block, "plain", "held-out r", fortran(plain.map("r", "best")[0]))
    with np.errstate(invalid="ignore"):
        significant = np.where(tiny.map("q", "best")[0] <= 0.05, best, np.nan)
    close(block, "tiny", "held-out r where q <= .05", fortran(significant))
    of_layers = tiny.map("r", "generatedNU")[0]
    at_best = [
        row[LAYERS.index(layer)] if layer in LAYERS else np.nan for row, layer in zip(of_layers.T, layers, strict=True)
    ]
    close(block, "tiny", "r of generatedNU", fortran(at_best))
    codes, scale = codes_of(block, "tiny", "best layer")
    wanted = [LAYERS.index(layer) + 1 if value > 0 else 0 for layer, value in zip(layers, best, strict=True)]
    assert codes.tolist() == fortran(wanted).tolist()
    assert scale["names"] == ["layer 0", "layer 4", "layer 8"]
    assert ("group" if participant is None else "sub-01") in block.caption
    assert "highest" in block.picture.alt


def test_the_viewer_of_the_group_holds_thresholded_scores_and_choices_within_groups(tmp_path):
    name = MapName(None, "life", "fsaverage5", extension=".func.gii")
    grid = SurfaceGrid(10242, 10242)
    tiny, plain = written(tmp_path, name, grid)
    kept = np.ones(grid.n_places, dtype=bool)
    best = tiny.map("r", "best")[0]
    with np.errstate(invalid="ignore"):
        thresholded = np.where(best > 0.2, best, np.nan)
    write_map(tiny.path("rthresholded", "best"), thresholded, kept, grid, {})
    conditions, among = ["media", "generatedAR", "generatedNU", "generatedVU"], ["generatedAR", "generatedVU"]
    chosen = np.random.default_rng(4).choice([1.0, 3.0], grid.n_places)
    sidecar = {"Conditions": conditions, "ChosenAmong": among}
    write_map(tiny.path("bestcondition", "social"), chosen, kept, grid, sidecar)
    block = viewer_block([tiny, plain])
    names = [(one["model"], one["name"]) for one in block.content["maps"]]
    close(block, "tiny", "held-out r where the combined q <= .05", thresholded)
    codes, scale = codes_of(block, "tiny", "best condition of social")
    assert scale["names"] == among
    assert codes.tolist() == np.where(np.nan_to_num(best) > 0, np.where(chosen == 1, 1, 2), 0).tolist()
    assert names.index(("tiny", "best condition of social")) < names.index(("all models", "noise ceiling"))
    assert not [one for one in names if one[0] == "plain" and ("combined" in one[1] or "social" in one[1])]


def test_the_viewer_draws_the_vertices_of_both_hemispheres(tmp_path):
    results = written(tmp_path, MapName("01", "life", "fsaverage6", extension=".func.gii"), SurfaceGrid(40962, 40962))
    block = viewer_block(results)
    best = results[0].map("r", "best")[0]
    drawn = np.concatenate([best[:10242], best[40962 : 40962 + 10242]])
    close(block, "tiny", "held-out r", drawn)
    assert "the first 10242 vertices" in block.caption


def test_the_viewer_draws_the_cortex_of_grayordinates(tmp_path):
    model = nib.cifti2.BrainModelAxis
    axis = model.from_surface([2, 5], 32492, name="CIFTI_STRUCTURE_CORTEX_LEFT")
    axis += model.from_surface([1, 8], 32492, name="CIFTI_STRUCTURE_CORTEX_RIGHT")
    axis += model.from_mask(np.ones((2, 2, 2), dtype=bool), name="THALAMUS_LEFT", affine=np.eye(4))
    name = MapName("01", "life", "fsLR", density="91k", extension=".dscalar.nii")
    results = written(tmp_path, name, GrayordinateGrid(axis), models=("plain",))
    block = viewer_block(results)
    codes, _ = codes_of(block, "plain", "held-out r")
    assert len(codes) == 2 * 32492
    best = results[0].map("r", "best")[0]
    whole = np.full(2 * 32492, np.nan)
    whole[[2, 5, 32492 + 1, 32492 + 8]] = best[:4]
    close(block, "plain", "held-out r", whole)
    assert block.caption.endswith("What lies below the cortex is in the still pictures only.")


def test_parcels_and_unknown_surfaces_have_no_viewer(tmp_path):
    parcels = MapName("01", "life", "fsLR", segmentation="Glasser", extension=".tsv")
    assert viewer_block(written(tmp_path / "a", parcels, ParcelGrid(("V1", "V2", "V3")), models=("plain",))) is None
    other = MapName("01", "life", "onavg", extension=".func.gii")
    assert viewer_block(written(tmp_path / "b", other, SurfaceGrid(5, 5), models=("plain",))) is None
    assert viewer_block([]) is None


def row(participant, model, condition, layer, roi, r, **cells):
    kind = "set" if roi == "EVC" else "area"
    cells = {"r_normalized": "n/a"} | cells
    return {
        "participant": participant, "model": model, "condition": condition, "layer": layer, "roi": roi, "kind": kind,
        "r": r, **cells,
    }  # fmt: skip


def test_the_explorer_averages_participants():
    rows = [
        row(participant, "tiny", condition, layer, roi, f"{0.01 * int(participant) + 0.1 * int(layer):g}")
        for participant in ("1", "2")
        for condition in CONDITIONS
        for layer in ("0", "4")
        for roi in ("V1", "EVC")
    ]
    rows += [row("1", "tiny", "best", "best", "V1", "0.9"), row("1", "plain", "stimulus", "0", "V1", "0.3")]
    rows += [row("3", "tiny", "generatedNU", "4", "V1", "n/a", r_normalized="0.5")]
    block = explorer_block(rows, caption="Regions of Glasser.")
    assert block.content["regions"] == {"set": ["EVC"], "area": ["V1"]}
    assert [model["name"] for model in block.content["models"]] == ["tiny"]
    r, normalized = (
        np.frombuffer(gzip.decompress(base64.b64decode(one["values"])), dtype="<i2").reshape(2, 2, 2)
        for one in block.content["measures"]
    )
    assert r[1, 1].tolist() == [150, 4150]
    assert normalized[1, 1].tolist() == [-32768, 5000]
    assert block.caption == "Regions of Glasser."


def test_without_layers_there_is_no_explorer():
    assert explorer_block([row("1", "plain", "stimulus", "0", "V1", "0.3")]) is None
    assert explorer_block([]) is None


def test_the_names_of_scores_say_what_they_are(tmp_path):
    block = viewer_block(written(tmp_path, MapName("01", "life", "MNI152NLin2009cAsym"), VOLUME))
    groups = {one["name"]: one["group"] for one in block.content["maps"]}
    assert re.search("chosen inside training", groups["held-out r"])
    assert groups["r of generatedAR"] == "one condition, layer chosen inside training"
