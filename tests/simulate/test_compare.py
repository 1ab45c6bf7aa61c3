"""The comparison with the truth, on maps made by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from bids_mllm.exceptions import InputDataError, UsageError
from bids_mllm.io.derivatives import MapName, write_map
from bids_mllm.io.grids import VolumeGrid
from bids_mllm.simulate.compare import compare_with_truth, conditioning_words, format_findings

MODELS = {"motionenergy": "motionenergy", "melspectrogram": "melspectrogram", "model": "tiny"}
N_EACH = 10


def write_truth(folder):
    truth = folder / "sourcedata" / "truth"
    truth.mkdir(parents=True)
    drivers = {
        name: {
            "model": model,
            "condition": "stimulus",
            "layer": 0,
            "instruction": None,
            "cka_with_other_conditions": {},
        }
        for name, model in MODELS.items()
    }
    planted = {
        "condition": "generatedAR",
        "layer": 1,
        "instruction": "AR",
        "cka_with_other_conditions": {"generatedVU": 0.5},
    }
    drivers["model"] |= planted
    (truth / "truth.json").write_text(json.dumps({"drivers": drivers}))
    names = [*MODELS, "none"]
    rows = [
        {"i": n, "j": k, "k": 0, "driver": name, "ceiling": "n/a" if name == "none" else 0.6}
        for k, name in enumerate(names)
        for n in range(N_EACH)
    ]
    pd.DataFrame(rows).to_csv(truth / "sub-01_voxels.tsv", sep="\t", index=False)


def write_results(folder, *, right=10, silent=0.0, planted=0.5, vain=1):
    """Each model scores 0.5 in `right` voxels of its own driver, and `silent` where nothing drives.

    Of the latter `vain` are declared predicted.
    """
    name = MapName("01", "life", "MNI")
    mask = np.ones((N_EACH, 4, 1), dtype=bool)
    place = (mask.ravel(), VolumeGrid(mask.shape, np.eye(4)))
    for number, model in enumerate(MODELS.values()):
        r = np.full(mask.shape, 0.1)
        r[:right, number] = 0.5
        r[right:, number] = -0.5
        r[:, 3] = silent
        instructed = model == "tiny"
        sidecar = {
            "Conditions": ["generatedAR", "generatedVU"] if instructed else ["stimulus"],
            "Layers": [0, 1] if instructed else [0],
        }
        write_map(name.path(folder, model=model, stat="r", desc="best"), r[mask], *place, sidecar)
        q = np.ones(mask.shape)
        q[:, number] = 0.01
        q[:vain, 3] = 0.05
        write_map(name.path(folder, model=model, stat="q", desc="best"), q[mask], *place, sidecar)
        for condition in sidecar["Conditions"] if instructed else ():
            layers = np.full((2, mask.sum()), 0.3)
            layers[1] = planted if condition == "generatedAR" else 0.4
            write_map(name.path(folder, model=model, stat="r", desc=condition), layers, *place, sidecar)


def found(tmp_path, **options):
    write_truth(tmp_path / "bids")
    write_results(tmp_path / "out", **options)
    return compare_with_truth(tmp_path / "bids", tmp_path / "out")


def test_everything_found(tmp_path):
    findings = found(tmp_path)
    assert len(findings) == 10
    assert all(finding.holds for finding in findings)
    text = format_findings(findings)
    assert "motionenergy best in 100% of 10 voxels, mean r 0.500" in text
    assert "motionenergy declared in 11 voxels, 9% of them in vain" in text
    assert "rank 1 of 4: mean r 0.500, best other generatedVU layer 1 0.400" in text
    assert conditioning_words(tmp_path / "bids") == (
        "Linear CKA of tiny layer 1 between generatedAR and generatedVU: 0.50 (1 = alike)"
    )


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"right": 7}, {0, 1, 2}),
        ({"planted": 0.35}, {3}),
        ({"silent": 0.03}, {4, 6, 8}),
        ({"silent": -0.03}, {4, 6, 8}),
        ({"vain": 2}, {5, 7, 9}),
    ],
)
def test_what_does_not_hold_is_said(tmp_path, options, wrong):
    findings = found(tmp_path, **options)
    assert {number for number, finding in enumerate(findings) if not finding.holds} == wrong


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(UsageError, match=r"truth\.json"):
        compare_with_truth(tmp_path, tmp_path)
    write_truth(tmp_path / "bids")
    with pytest.raises(InputDataError, match="no results"):
        compare_with_truth(tmp_path / "bids", tmp_path)
