"""Published figures beside found ones, by hand-made tables."""

from dataclasses import replace

import pytest

from bids_mllm.exceptions import InputDataError
from bids_mllm.group.agreement import (
    Found,
    Published,
    Study,
    compare,
    found_ceiling,
    found_coupling,
    found_depth_order,
    found_percent,
    found_score,
    study_of,
    unlike,
)
from bids_mllm.group.tables import roi_summary

SCORE = Published(
    id="a", what="A", measure="r_normalized", value=0.6, tolerance=0.01, source="chart",
    models=("modela",), stand_ins=("other",), roi="whole brain",
)  # fmt: skip
PERCENT = Published(
    id="p", what="P", measure="percent", value=20.0, tolerance=1.0, source="abstract", class_a="instruction-tuned",
    class_b="unimodal", roi="whole brain",
)  # fmt: skip
DEPTH = Published(
    id="d", what="D", measure="depth_order", value=0.0, source="maps", class_a="instruction-tuned", roi="MT",
    roi_b="EVC", relation="above",
)  # fmt: skip
STUDY = Study("preset", "A study", "movie10", ("bourne", "wolf"), ("life",), ("01", "02"), (SCORE,))
ALIKE = {
    "data_set": "cneuromod Movie10",
    "participants": ["02", "01"],
    "train": ["bourne", "wolf"],
    "test": ["life"],
    "presets": ["preset"],
}


def row(participant, value, *, model="modela", roi="whole brain", coverage="1"):
    return {"participant": participant, "model": model, "roi": roi, "coverage": coverage, "r_normalized": value}


def one(figure, found):
    (compared,) = compare([figure], {figure.id: found})
    return compared


def test_equal_values_agree_exactly():
    found = found_score(SCORE, [row("01", 0.5), row("02", 0.7)])
    compared = one(SCORE, found)
    assert (compared.found, compared.difference, compared.within) == (pytest.approx(0.6), pytest.approx(0), True)
    assert (compared.n_participants, compared.note) == (2, "")


@pytest.mark.parametrize(("value", "within"), [(0.61, True), (0.59, True), (0.611, False), (0.4, False)])
def test_the_difference_is_found_less_published_and_held_against_the_tolerance(value, within):
    compared = one(SCORE, found_score(SCORE, [row("01", value)]))
    assert compared.difference == pytest.approx(value - 0.6)
    assert compared.within is within


def test_a_model_that_is_missing_is_named():
    compared = one(SCORE, found_score(SCORE, [row("01", 0.6, model="third")]))
    assert (compared.found, compared.difference, compared.within) == (None, None, None)
    assert compared.note == "none of modela, other was run"
    alone = replace(SCORE, stand_ins=())
    assert found_score(alone, []) == "modela was not run"


def test_a_model_in_place_of_another_is_named():
    found = found_score(SCORE, [row("01", 0.6, model="other")])
    assert found == Found(0.6, 1, "other in its place")


def test_the_model_itself_comes_before_its_stand_in():
    assert found_score(SCORE, [row("01", 0.1, model="other"), row("01", 0.6)]) == Found(0.6, 1, "")


def test_all_voxels_stand_for_the_whole_brain_and_this_is_said():
    assert found_score(SCORE, [row("01", 0.6, roi="all")]) == Found(0.6, 1, "region all")
    both = [row("01", 0.1, roi="all"), row("01", 0.6)]
    assert found_score(SCORE, both) == Found(0.6, 1, "")
    assert found_score(SCORE, [row("01", 0.6, roi="V1")]) == "no row of the region whole brain"


def test_without_a_ceiling_there_is_no_normalised_score():
    assert "needs a noise ceiling" in found_score(SCORE, [row("01", float("nan"))])


def test_means_are_those_of_the_tables_of_the_group():
    rows = [row("01", 0.5), row("02", 0.9), row("03", 0.2, coverage="0.4"), row("04", float("nan"))]
    full = [{**r, **dict.fromkeys(("condition", "pooling", "instruction", "layer", "kind"), "best"),
             "roi_index": "n/a", "r": 0.1, "r2": None, "cv_r2": None} for r in rows]  # fmt: skip
    found = found_score(SCORE, rows)
    assert found.value == pytest.approx(roi_summary(full)[0]["r_normalized"])
    assert found.n_participants == 2


def classes(**changes):
    base = {"unit": "participant", "roi": "whole brain", "class_a": "instruction-tuned", "class_b": "unimodal"}
    return [base | {"percent_difference": 25.0, "n_percent": "4"} | changes]


def test_percent_of_classes():
    assert found_percent(PERCENT, classes()) == Found(25.0, 4, "")
    assert one(PERCENT, found_percent(PERCENT, classes())).within is False
    assert one(PERCENT, found_percent(PERCENT, classes(percent_difference=20.5))).within is True
    assert found_percent(PERCENT, classes(roi="all"), note="of r").note == "region all; of r"
    by_run = classes(unit="run", percent_difference=1.0)
    assert found_percent(PERCENT, [*by_run, *classes()]) == Found(25.0, 4, "")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "classes instruction-tuned and unimodal were not both run"),
        (classes(class_b="in-context"), "classes instruction-tuned and unimodal were not both run"),
        (classes(unit="run"), "classes instruction-tuned and unimodal were not both run"),
        (classes(roi="V1"), "no row of the region whole brain"),
        (classes(percent_difference=float("nan")), "not defined"),
    ],
)
def test_percent_that_is_missing_has_a_reason(rows, reason):
    assert reason in found_percent(PERCENT, rows)


def test_coupling_is_a_mean_over_models_of_means_over_layers():
    figure = replace(PERCENT, measure="coupling")
    found = found_coupling(figure, {"m": [0.1, 0.3, float("nan")], "n": [0.6], "o": []})
    assert found.value == pytest.approx((0.2 + 0.6) / 2)
    assert found.note == "mean over layers of m, n"
    assert found_coupling(figure, {"o": []}) == "no instruction-tuned model was run with several instructions"


def depth(participant, roi, value, condition="AR"):
    return {"participant": participant, "model": "m", "condition": condition, "roi": roi, "depth": value}


def test_an_order_of_depths_agrees_where_it_is_above():
    rows = [depth("01", "EVC", 0.2), depth("01", "MT", 0.6), depth("02", "EVC", 0.3), depth("02", "MT", 0.5),
            depth("02", "EVC", 0.5, "VU"), depth("02", "MT", 0.5, "VU"), depth("03", "MT", 0.5)]  # fmt: skip
    found = found_depth_order(DEPTH, rows)
    assert found.value == pytest.approx((0.4 + 0.1) / 2)
    assert found.n_participants == 2
    assert one(DEPTH, found).within is True
    assert one(DEPTH, Found(0.0)).within is False
    assert found_depth_order(DEPTH, rows[:1]) == "no depths of both MT and EVC"
    assert found_depth_order(DEPTH, []) == "there are no layers of regions of instruction-tuned models"


def test_the_ceiling_is_a_mean_over_participants():
    assert found_ceiling({"01": 0.5, "02": 0.3}) == Found(0.4, 2)
    assert found_ceiling({"01": float("-inf")}) == "there is no noise ceiling"


def test_what_is_as_in_the_study_needs_no_words():
    assert unlike(STUDY, **ALIKE) == ()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data_set": "Narratives"}, "The data set is 'Narratives', not movie10."),
        ({"participants": ["01"]}, "Participants are 01; those of the study are 01, 02."),
        ({"train": ["bourne"]}, "Training films are bourne; those of the study are bourne, wolf."),
        ({"test": []}, "Held-out films are not told; those of the study are life."),
        ({"presets": ["preset", ""]}, "The results were made with the preset preset, none, not with preset."),
    ],
)
def test_what_is_not_as_in_the_study_is_named(change, sentence):
    assert unlike(STUDY, **ALIKE | change) == (sentence,)


CONTENT = {
    "preset": "preset", "title": "A study", "data_set": "movie10", "train_films": ["bourne", "wolf"],
    "test_films": ["life"], "participants": ["01", "02"],
    "figures": [
        {"id": "a", "what": "A", "measure": "r_normalized", "value": 0.6, "tolerance": 0.01, "source": "chart",
         "models": ["modela"], "stand_ins": ["other"], "roi": "whole brain"},
    ],
}  # fmt: skip


def test_a_study_is_read_from_its_table():
    assert study_of(CONTENT) == STUDY
    assert STUDY.models == {"modela", "other"}


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ([{**CONTENT["figures"][0], "colour": "red"}], "unknown keys \\['colour'\\]"),
        ([{"id": "a", "what": "A", "measure": "percent", "value": 1.0}], "lacks \\['source'\\]"),
        ([{**CONTENT["figures"][0], "measure": "r"}], "is of the measure 'r'; measures are r_normalized"),
        (CONTENT["figures"] * 2, "figures a come twice"),
    ],
)
def test_a_figure_that_cannot_be_used_is_refused(figures, words):
    with pytest.raises(InputDataError, match=words):
        study_of({**CONTENT, "figures": figures})
