"""Outputs of participants made by hand, small enough for the group level to take a moment."""

import numpy as np

from bids_mllm.io.derivatives import MapName, sidecar_path, write_map
from bids_mllm.io.files import read_json, write_json, write_tsv
from bids_mllm.io.grids import ParcelGrid, VolumeGrid
from bids_mllm.io.results import ModelResult

PARCELS = ParcelGrid(tuple(f"p{number}" for number in range(6)))
VOXELS = VolumeGrid((2, 3, 1), np.diag([2.0, 2.0, 2.0, 1.0]))
#: Of every voxel of a region that has none.
EMPTY = {"n_voxels": 0, "coverage": 0.0, "r": float("nan"), "r2": float("nan")}


def result_of(folder, participant, model, grid=PARCELS):
    extension = ".tsv" if isinstance(grid, ParcelGrid) else ".nii.gz"
    segmentation = "toy" if isinstance(grid, ParcelGrid) else None
    return ModelResult(MapName(participant, "life", "MNI", None, None, segmentation, extension), model, folder)


def facts_of(model, **more):
    described = {
        "Key": model, "Family": "lowlevel", "Kind": "unimodal video", "Media": "video", "Source": "bids-mllm",
        "Licence": "", "DType": "float32", "Weights": "pretrained",
    }  # fmt: skip
    return {
        "Model": described, "Conditions": ["stimulus"], "Layers": [0], "NoiseCeiling": None, "Sloppy": False,
        "CrossValidation": "life is held out", "AppVersion": "1.0", **more,
    }  # fmt: skip


def write_outputs(folder, participant, models=("a", "b"), *, r=0.1, grid=PARCELS, rows=(), **more):
    """Write what the group level reads of one participant: r, cvr2 and p of each model, and rows of scores."""
    values = np.full(6, r) + np.linspace(-0.05, 0.05, 6)
    for model in models:
        result = result_of(folder, participant, model, grid)
        maps = {("p", "best"): np.full(6, 0.01), ("bestcondition", None): np.zeros(6), ("bestlayer", None): np.zeros(6)}
        maps |= {(stat, desc): values for stat in ("cvr2", "r") for desc in ("stimulus", "best")}
        for (stat, desc), own in maps.items():
            write_map(result.path(stat, desc), own.astype(np.float32), np.ones(6, bool), grid, facts_of(model, **more))
        heads = {"participant": participant, "model": model, "condition": "best", "pooling": "best",
                 "instruction": None, "layer": "best", "depth": None, "roi_index": 1, "kind": "area"}  # fmt: skip
        scores = {"n_voxels": 3, "coverage": 1.0, "r": r, "r2": r**2, "cv_r2": r, "alpha_edge_share": 0.0,
                  "r_normalized": float("nan")}  # fmt: skip
        table = [{**heads, "roi": "all", "kind": "all", **scores}, {**heads, "roi": "V1", **scores}]
        table += [{**heads, "roi": roi, **scores, **own} for roi, own in rows]
        write_tsv(result.path("scores", None, extension=".tsv", atlas="toy"), table)


def change_sidecar(result, **more):
    path = sidecar_path(result.path("r", "best"))
    write_json(path, read_json(path) | more)
