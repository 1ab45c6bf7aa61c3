"""Scores of regions over layers are stored by model, region, condition and layer, to a ten thousandth."""

import base64
import gzip

import numpy as np
import pytest

from bids_mllm.report.explorer import PARTS, LayerScores, explorer_block


def test_values_are_found_where_the_model_begins():
    rng = np.random.default_rng(1)
    first, second = rng.uniform(-1, 1, (3, 2, 4)), rng.uniform(-1, 1, (3, 1, 5))
    first[1, 1, 2] = np.nan
    scores = [
        LayerScores("a", (0, 1, 2, 3), ("x", "y"), {"r": first}),
        LayerScores("b", (0, 2, 4, 6, 8), ("x",), {"r": second}),
    ]
    content = explorer_block({"set": ["EVC"], "area": ["V1", "V2"]}, scores, caption="C").content
    stored = np.frombuffer(gzip.decompress(base64.b64decode(content["measures"][0]["values"])), dtype="<i2")
    assert [model["start"] for model in content["models"]] == [0, 24]
    assert stored[(1 * 2 + 1) * 4 + 2] == -32768
    assert stored[(2 * 2 + 1) * 4 + 3] / PARTS == pytest.approx(first[2, 1, 3], abs=0.5 / PARTS)
    assert stored[24 + 2 * 5 + 4] / PARTS == pytest.approx(second[2, 0, 4], abs=0.5 / PARTS)
    assert content["models"][1]["depths"] == [0, 0.25, 0.5, 0.75, 1]


def test_values_of_another_shape_are_refused():
    scores = [LayerScores("a", (0, 1), ("x",), {"r": np.zeros((2, 1, 3))})]
    with pytest.raises(ValueError, match=r"'r' of a have the shape \(2, 1, 3\), but \(2, 1, 2\) was expected"):
        explorer_block({"area": ["V1", "V2"]}, scores, caption="C")


def test_eight_models_of_thirty_layers_are_small():
    values = {"r": np.random.default_rng(2).normal(0, 0.1, (60, 13, 30))}
    scores = [LayerScores(f"m{n}", tuple(range(30)), tuple(map(str, range(13))), values) for n in range(8)]
    made = explorer_block({"area": [f"V{n}" for n in range(60)]}, scores, caption="C")
    assert len(made.markup) < 600_000
