"""Maps of the group, from maps of participants made by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import combine_pvalues, false_discovery_control

from bids_mllm.features.instructions import load_instructions
from bids_mllm.interfaces.group import write_group_ceiling, write_group_model
from bids_mllm.io.derivatives import MapName, sidecar_path, write_map
from bids_mllm.io.files import read_json
from bids_mllm.io.grids import ParcelGrid
from bids_mllm.io.maps import load_map
from bids_mllm.io.results import ModelResult

GRID = ParcelGrid(tuple(f"p{number}" for number in range(6)))
KEPT = np.ones(6, dtype=bool)
FACTS = {
    "Conditions": ["stimulus"], "Layers": [0], "NoiseCeiling": None, "CrossValidation": "", "Sloppy": False,
    "AppVersion": "1", "Model": {"Kind": "unimodal", "Media": "video"},
}  # fmt: skip
NAN = np.nan


def write_values(result, stat, desc, values, **sidecar):
    write_map(result.path(stat, desc), np.asarray(values, dtype=np.float32), KEPT, GRID, FACTS | sidecar)


def made(folder, participant, model="m", *, r=0.1, conditions=("stimulus",), **facts):
    """A result with all maps that the group needs."""
    result = ModelResult(MapName(participant, "life", "MNI", extension=".tsv"), model, folder)
    for condition in ("best", *conditions):
        write_values(result, "r", condition, np.full(6, r), Conditions=list(conditions), **facts)
        write_values(result, "cvr2", condition, np.zeros(6), **facts)
    return result


def group_map(folder, stat, desc=None, model="m"):
    path = MapName(None, "life", "MNI", extension=".tsv").path(folder, model=model, stat=stat, desc=desc)
    return load_map(path)[0], read_json(sidecar_path(path))


def names(paths):
    return {path.name.partition("_stat-")[2].removesuffix("_statmap.tsv") for path in paths}


P = np.array([[0.001, 0.01, 0.2, 0.9, 0.5, NAN], [0.002, 0.03, 0.1, 0.7, 1.0, 0.04]])


def test_fixed_effects_are_combined_corrected_and_applied_to_the_mean(tmp_path):
    results = [made(tmp_path, participant, r=r) for participant, r in (("01", 0.1), ("02", 0.3))]
    for result, own in zip(results, P, strict=True):
        write_values(result, "p", "best", own)
    write_group_model(results, results[0].name.of_group())
    expected = np.array([combine_pvalues(column[np.isfinite(column)]).pvalue for column in P.T])
    rate = false_discovery_control(expected)
    assert 0 < np.count_nonzero(rate <= 0.05) < 6
    np.testing.assert_allclose(group_map(tmp_path, "pfixed", "best")[0], expected, rtol=1e-5)
    np.testing.assert_allclose(group_map(tmp_path, "qfixed", "best")[0], rate, rtol=1e-5)
    values, sidecar = group_map(tmp_path, "rthresholded", "best")
    np.testing.assert_allclose(values, np.where(rate <= 0.05, 0.2, NAN), rtol=1e-6)
    assert sidecar["Test"]["Alpha"] == 0.05
    assert "fixed effects" in sidecar["Test"]["Inference"]


def test_maps_of_one_participant_are_its_own(tmp_path):
    result = made(tmp_path, "01", r=0.2)
    write_values(result, "p", "best", P[1])
    write_group_model([result], result.name.of_group())
    np.testing.assert_allclose(group_map(tmp_path, "pfixed", "best")[0], P[1], rtol=1e-5)
    np.testing.assert_allclose(group_map(tmp_path, "r", "best")[0], 0.2, rtol=1e-6)
    assert np.isnan(group_map(tmp_path, "sem", "best")[0]).all()
    np.testing.assert_array_equal(group_map(tmp_path, "n", "best")[0], 1)


def test_maps_that_a_further_participant_does_not_allow_are_removed(tmp_path):
    first = made(tmp_path, "01", r=0.2)
    write_values(first, "p", "best", P[1])
    assert "pfixed_desc-best" in names(write_group_model([first], first.name.of_group()))
    kept = first.name.of_group().path(tmp_path, model="other", stat="r", desc="best")
    kept.touch()
    second = made(tmp_path, "02", r=0.4)
    written = write_group_model([first, second], first.name.of_group())
    assert names(written) == names((tmp_path / "group/func").glob("*_model-m_*.tsv"))
    assert not list((tmp_path / "group/func").glob("*stat-pfixed*"))
    assert kept.exists()
    np.testing.assert_allclose(group_map(tmp_path, "r", "best")[0], 0.3, rtol=1e-6)


def ceiling(result, values, method="repeats"):
    own = {"NoiseCeiling": {"Method": method}}
    write_values(replace(result, model=""), "noiseceiling", None, values, **own)
    write_values(result, "r", "best", np.zeros(6), **own)


def test_noise_ceilings_are_averaged_over_those_who_have_one(tmp_path):
    results = [made(tmp_path, participant, model) for participant in ("01", "02", "03") for model in ("a", "m")]
    name = results[0].name.of_group()
    assert write_group_ceiling(results, name) == []
    for result, value in zip(results[:4], (0.2, 0.2, 0.6, 0.6), strict=True):
        ceiling(result, [value] * 5 + [NAN])
    (path,) = write_group_ceiling(results, name)
    assert path.name == "task-life_space-MNI_stat-noiseceiling_statmap.tsv"
    np.testing.assert_allclose(load_map(path)[0], [0.4] * 5 + [NAN], rtol=1e-6)
    assert read_json(sidecar_path(path))["Participants"] == ["01", "02"]
    ceiling(results[0], [0.5] * 6, "participants")
    ceiling(results[1], [0.5] * 6, "participants")
    assert write_group_ceiling(results, name) == []
    assert not path.exists()
    assert not sidecar_path(path).exists()


def test_differences_are_averaged_whichever_model_comes_first(tmp_path):
    a = [made(tmp_path, participant, "a") for participant in ("01", "02", "03")]
    b = [made(tmp_path, participant, "b") for participant in ("01", "02", "03")]
    write_values(a[0], "rdifference", "vsb", [0.1] * 5 + [NAN])
    write_values(b[1], "rdifference", "vsa", [-0.3] * 6)
    name = a[0].name.of_group()
    write_group_model(a, name)
    assert not any("rdifference" in one for one in names(write_group_model(b, name)))
    values, sidecar = group_map(tmp_path, "rdifference", "vsb", model="a")
    np.testing.assert_allclose(values, [0.2] * 5 + [0.3], rtol=1e-6)
    assert (sidecar["Other"], sidecar["Participants"]) == ("b", ["01", "02"])


@pytest.fixture
def instructed(tmp_path):
    """Two participants; AR, VQ, OSR are perceptual, VU is the only one of language, VR has another text than ours."""
    keys = ("AR", "VU", "VQ", "OSR", "CR", "VR")
    texts = {one.key: one.text for one in load_instructions() if one.key in keys} | {"VR": "Another question?"}
    conditions = [f"{pooling}{key}" for pooling in ("generated", "last") for key in keys] + ["media"]
    model = {"Kind": "instruction-tuned video", "Media": "video", "Instructions": texts}
    scores = np.random.default_rng(1).normal(size=(2, len(conditions), 6))
    results = []
    for participant, own in zip(("01", "02"), scores, strict=True):
        result = made(tmp_path, participant, conditions=conditions, Model=model)
        for condition, values in zip(conditions, own, strict=True):
            key = condition.removeprefix("generated").removeprefix("last")
            more = {"Instruction": key} if key in keys else {}
            write_values(result, "cvr2", condition, values, Model=model, **more)
        results.append(result)
    return results, conditions, scores


def test_the_best_condition_of_each_group_of_instructions_is_chosen_inside_training(tmp_path, instructed):
    results, conditions, scores = instructed
    written = write_group_model(results, results[0].name.of_group())
    chosen = {one for one in names(written) if one.startswith("bestcondition")}
    assert chosen == {"bestcondition", "bestcondition_desc-perceptual"}
    own = [conditions.index(f"{pooling}{key}") for pooling in ("generated", "last") for key in ("AR", "VQ", "OSR")]
    values, sidecar = group_map(tmp_path, "bestcondition", "perceptual")
    mean = scores.mean(axis=0)
    expected = [own[index] for index in mean[own].argmax(axis=0)]
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(group_map(tmp_path, "bestcondition")[0], mean.argmax(axis=0))
    assert sidecar["ChosenAmong"] == [conditions[index] for index in own]
    assert sidecar["InstructionGroup"] == "perceptual"
    assert json.dumps(sidecar["Conditions"]) == json.dumps(conditions)


def test_places_without_a_score_have_no_best_condition_of_a_group(tmp_path, instructed):
    results, conditions, _ = instructed
    for result in results:
        for condition in conditions:
            write_values(
                result, "cvr2", condition, [NAN] * 6, **read_json(sidecar_path(result.path("cvr2", condition)))
            )
    write_group_model(results, results[0].name.of_group())
    assert np.isnan(group_map(tmp_path, "bestcondition", "perceptual")[0]).all()
