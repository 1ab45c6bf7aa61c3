"""The charts show what was planted in the tables, flag nothing in noise, and are none where there are no tables."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chart_samples import MODELS, PEOPLE, REGIONS, Outputs
from scipy.stats import false_discovery_control, ttest_1samp

from bids_mllm.io.files import read_tsv, write_tsv
from bids_mllm.io.results import ModelResult
from bids_mllm.report.figures import DRAWERS, FigureData
from bids_mllm.workflows.chart_figures import chart_figures, choice_figures, score_figures
from bids_mllm.workflows.figure_tables import labels_of, participants_words
from bids_mllm.workflows.figures import read_figure, write_figures

BEST = {
    "videollm": 0.30, "audiollm": 0.22, "tvlt": 0.20, "clip": 0.15, "vjepa": 0.18, "wav2vec": 0.12, "motion": 0.05,
}  # fmt: skip


def _kind(figures: list[FigureData], kind: str) -> dict[str, FigureData]:
    return {figure.name: figure for figure in figures if figure.kind == kind}


def _bars(figures: list[FigureData], region: str) -> FigureData:
    return next(figure for figure in figures if figure.kind == "model-bars" and f"_desc-{region}_" in figure.name)


def _means(figure: FigureData, measure: str = "r") -> dict[str, dict]:
    return {
        row["model"]: dict(row) for row in figure.rows if row["participant"] is None and row["measure"] == measure
    }  # fmt: skip


def _flagged(figure: FigureData, flag: str) -> set[str]:
    return {model for model, row in _means(figure).items() if row[f"better_than_{flag}"]}


def _planted(person: str, roi: str, a: str, b: str) -> tuple[float, float]:
    return BEST[a] - BEST[b], 0.01


def test_bars_hold_mean_and_standard_error_over_participants(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.scores(BEST)
    outputs.comparisons(_planted)
    figures = score_figures(outputs.results)
    assert [figure.title for figure in figures] == [
        "Models in whole brain (planted)", "Models in visual (planted)", "Models in EVC (planted)",
    ]  # fmt: skip
    mean = _means(_bars(figures, "visual"))["videollm"]
    assert mean["value"] == pytest.approx(0.31)
    assert mean["sem"] == pytest.approx(0.01 / np.sqrt(3))
    assert (mean["class"], mean["n_participants"]) == ("instruction-tuned", 3)
    dots = [row for row in _bars(figures, "visual").rows if row["model"] == "videollm" and row["participant"]]
    assert [(row["participant"], row["value"]) for row in dots if row["measure"] == "r"] == [
        ("01", pytest.approx(0.30)), ("02", pytest.approx(0.31)), ("03", pytest.approx(0.32)),
    ]  # fmt: skip
    assert _means(_bars(figures, "visual"), "r_normalized")["videollm"]["value"] == pytest.approx(0.62)


def test_models_stand_by_class_and_from_high_to_low(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.scores(BEST)
    order = list(_means(_bars(score_figures(outputs.results), "visual")))
    assert order == ["videollm", "audiollm", "tvlt", "clip", "vjepa", "wav2vec", "motion"]


def test_flags_stand_where_a_model_beats_each_of_a_class_in_every_participant(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.scores(BEST)
    outputs.comparisons(_planted)
    figure = _bars(score_figures(outputs.results), "visual")
    assert _flagged(figure, "multimodal") == {"videollm", "audiollm"}
    assert _flagged(figure, "unimodal") == {"videollm", "audiollm", "tvlt"}
    means = _means(figure)
    assert means["tvlt"]["better_than_multimodal"] is None
    assert means["motion"]["better_than_unimodal"] == 0
    assert "within every participant" in figure.caption
    assert "tvlt, clip" in figure.caption


@pytest.mark.parametrize(
    ("person", "roi", "other", "change"),
    [
        ("02", "visual", "clip", (0.1, 0.06)),
        ("02", "visual", "clip", (-0.1, 0.01)),
        ("03", "visual", "clip", (float("nan"), float("nan"))),
    ],
)
def test_one_participant_or_model_less_takes_the_flag_away(tmp_path: Path, person, roi, other, change) -> None:
    outputs = Outputs(tmp_path)
    outputs.scores(BEST)

    def decide(own: str, region: str, a: str, b: str) -> tuple[float, float]:
        return change if (own, region, a, b) == (person, roi, "videollm", other) else _planted(own, region, a, b)

    outputs.comparisons(decide)
    figures = score_figures(outputs.results)
    assert _flagged(_bars(figures, "visual"), "multimodal") == {"audiollm"}
    assert "videollm" in _flagged(_bars(figures, "visual"), "unimodal")
    assert _flagged(_bars(figures, "EVC"), "multimodal") == {"videollm", "audiollm"}


def test_flags_need_comparisons_and_a_class(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, models={"videollm": "instruction-tuned video", "vjepa": "unimodal video"})
    outputs.scores(BEST)
    figure = _bars(score_figures(outputs.results), "visual")
    assert _flagged(figure, "unimodal") == set()
    assert _means(figure)["videollm"]["better_than_multimodal"] is None
    assert "No multimodal model was scored" in figure.caption


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_flagged_in_noise(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    outputs = Outputs(tmp_path)
    outputs.scores(dict.fromkeys(MODELS, 0.0))
    pairs = [(a, b) for a in MODELS for b in MODELS if list(MODELS).index(a) < list(MODELS).index(b)]
    keys = [(roi, a, b) for a, b in pairs for roi in REGIONS]
    found = {}
    for person in PEOPLE:
        blocks = rng.standard_normal((len(keys), 24))
        q = false_discovery_control(ttest_1samp(blocks, 0, axis=1).pvalue)
        for key, block, one in zip(keys, blocks, q, strict=True):
            found[person, *key] = float(block.mean()), float(one)
    outputs.comparisons(lambda *key: found[key])
    figures = [figure for figure in score_figures(outputs.results) if figure.kind == "model-bars"]
    assert len(figures) == 3
    for figure in figures:
        assert _flagged(figure, "multimodal") == _flagged(figure, "unimodal") == set()


def test_participants_whose_mask_misses_a_region_take_no_part(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.scores(BEST, missing=[("03", "visual")])
    outputs.comparisons(lambda person, *rest: (-1.0, 0.01) if person == "03" else _planted(person, *rest))
    figures = score_figures(outputs.results)
    mean = _means(_bars(figures, "visual"))["videollm"]
    assert (mean["value"], mean["n_participants"]) == (pytest.approx(0.305), 2)
    assert "videollm" in _flagged(_bars(figures, "visual"), "multimodal")
    assert _flagged(_bars(figures, "EVC"), "multimodal") == set()


def test_flags_find_regions_that_are_named_after_one_of_several_atlases(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.scores(BEST)
    outputs.comparisons(_planted)
    paths = list(tmp_path.rglob("*_stat-modelcomparison*.tsv"))
    assert len(paths) == len(PEOPLE)
    for path in paths:
        rows = read_tsv(path)
        write_tsv(
            path,
            [{**row, "roi": f"planted:{row['roi']}"} for row in rows]
            + [{**row, "roi": f"other:{row['roi']}", "q": 0.9} for row in rows],
        )
    figure = _bars(score_figures(outputs.results), "visual")
    assert _flagged(figure, "multimodal") == {"videollm", "audiollm"}
    assert _flagged(figure, "unimodal") == {"videollm", "audiollm", "tvlt"}


def _without(outputs: Outputs, kept: Callable[[ModelResult], bool]) -> list[ModelResult]:
    return [result for result in outputs.results if kept(result)]


def test_a_model_of_some_participants_has_no_flag_and_the_caption_says_how_many(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.scores(BEST)
    outputs.comparisons(_planted)
    results = _without(outputs, lambda one: one.model != "videollm" or one.name.participant == "01")
    figure = _bars(score_figures(results), "visual")
    assert _means(figure)["videollm"]["n_participants"] == 1
    assert _flagged(figure, "multimodal") == {"audiollm"}
    assert "mean over 1 to 3 participants" in figure.caption
    of_one = _bars(score_figures(results, participant="01"), "visual")
    assert _flagged(of_one, "multimodal") == {"videollm", "audiollm"}
    assert "within this participant" in of_one.caption


def test_models_of_one_participant_each_are_said_to_be_so(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, models={"videollm": "instruction-tuned video", "vjepa": "unimodal video"})
    outputs.scores(BEST)
    results = _without(outputs, lambda one: one.name.participant == {"videollm": "01", "vjepa": "02"}[one.model])
    caption = _bars(score_figures(results), "visual").caption
    assert "one participant a model, not always the same" in caption
    assert "within every participant" in caption


def test_words_for_participants() -> None:
    assert [participants_words(counts) for counts in ((4, 4, 0), (1, 4, None), (1, 1), ())] == [
        "4 participants", "1 to 4 participants", "one participant", "one participant",
    ]  # fmt: skip


def test_layers_and_choices_of_regions_say_how_many_participants_they_have(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, models={"videollm": "instruction-tuned video"})
    outputs.scores(BEST, by_layer=lambda *key: 0.01 * key[-1], layers=2, missing=[("01", "EVC"), ("02", "EVC")])
    curves = next(figure for figure in score_figures(outputs.results) if figure.kind == "layer-curves")
    assert "mean over 1 to 3 participants" in curves.caption
    shares = [("01", "visual", "AR", 0.5), ("01", "visual", "NU", 0.5), ("02", "visual", "AR", 1.0)]
    outputs.choices(
        [
            _choice(person, roi, "condition", value, share)
            for person, roi, value, share in [*shares, ("01", "EVC", "AR", 1.0)]
        ]
    )
    (choices,) = choice_figures(outputs.results)
    assert "mean over 1 to 2 participants" in choices.caption


def test_charts_of_one_participant_hold_its_numbers_alone(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.scores(BEST)
    figure = _bars(score_figures(outputs.results, participant="02"), "visual")
    assert figure.name.startswith("sub-02_task-film_space-fsLR_")
    assert _means(figure)["videollm"]["value"] == pytest.approx(0.31)
    assert all(row["participant"] is None for row in figure.rows)


def _peaked(person: str, model: str, condition: str, roi: str, layer: int) -> float:
    height = {"generatedAR": 0.1, "generatedNU": 0.3}[condition]
    peak = 3 if roi == "visual" else 1
    return height - 0.02 * abs(layer - peak) + 0.01 * PEOPLE.index(person)


def test_layers_show_the_planted_peak_of_the_condition_that_training_prefers(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, models={"videollm": "instruction-tuned video"})
    outputs.scores(BEST, by_layer=_peaked, layers=5, conditions=("generatedAR", "generatedNU"))
    figures = [figure for figure in score_figures(outputs.results) if figure.kind.startswith("layer-")]
    assert [figure.kind for figure in figures] == ["layer-curves", "layer-heat-map"]
    assert {row["condition"] for row in figures[0].rows} == {"generatedNU"}
    visual = {row["layer"]: row for row in figures[0].rows if row["roi"] == "visual"}
    assert max(visual, key=lambda layer: visual[layer]["r"]) == 3
    assert visual[3]["r"] == pytest.approx(0.31)
    assert visual[3]["r_sem"] == pytest.approx(0.01 / np.sqrt(3))
    assert {row["roi"] for row in figures[0].rows} == {"whole brain", "visual", "EVC"}
    assert "visual layer 3 (0.310)" in figures[1].alt
    assert "Condition generatedNU, the one with the highest training-internal R2" in figures[0].caption
    assert figures[0].rows == figures[1].rows


def test_models_of_one_layer_have_no_charts_of_layers(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.scores(BEST, by_layer=lambda *_: 0.1, layers=1)
    assert {figure.kind for figure in score_figures(outputs.results)} == {"model-bars"}


def test_many_areas_without_groups_give_the_highest_rows_and_no_bars_each(tmp_path: Path) -> None:
    areas = {f"area{number}": "area" for number in range(60)}
    outputs = Outputs(tmp_path, models={"videollm": "instruction-tuned video"}, regions={"all": "all", **areas})
    outputs.scores(BEST, by_layer=lambda *key: 0.01 * int(key[3].removeprefix("area").replace("all", "0")), layers=2)
    figures = score_figures(outputs.results)
    assert [figure.title for figure in figures if figure.kind == "model-bars"] == [
        "Models in all places with a score (planted)"
    ]
    rows = next(figure for figure in figures if figure.kind == "layer-heat-map").rows
    assert list(dict.fromkeys(row["roi"] for row in rows)) == [f"area{number}" for number in range(20, 60)]


def _choice(person: str, roi: str, choice: str, value: str, share: float) -> dict[str, object]:
    return {
        "participant": person, "model": "videollm", "roi": roi, "kind": REGIONS[roi], "choice": choice,
        "value": value, "n_voxels": 10, "share": share,
    }  # fmt: skip


def test_choices_hold_mean_shares_and_layers_in_their_order(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.choices(
        [
            _choice("01", "visual", "condition", "generatedAR", 0.75),
            _choice("01", "visual", "condition", "generatedNU", 0.25),
            _choice("02", "visual", "condition", "generatedAR", 1.0),
            _choice("01", "L_V1", "condition", "generatedNU", 1.0),
            _choice("01", "visual", "layer", "10", 0.5),
            _choice("01", "visual", "layer", "2", 0.5),
        ]
    )
    conditions, layers = choice_figures(outputs.results)
    assert [(row["roi"], row["value"], row["share"]) for row in conditions.rows] == [
        ("visual", "generatedAR", pytest.approx(0.875)), ("visual", "generatedNU", pytest.approx(0.125)),
    ]  # fmt: skip
    assert [row["value"] for row in layers.rows] == ["2", "10"]
    assert "generatedAR 88 %" in conditions.alt
    # The page of a participant needs no group.
    outputs.results[0].name.of_group().path(tmp_path, extension=".tsv", stat="choicecounts", atlas="planted").unlink()
    assert choice_figures(outputs.results) == []
    (of_one,) = (figure for figure in choice_figures(outputs.results, participant="01") if "condition" in figure.name)
    assert of_one.rows[0]["share"] == pytest.approx(0.75)


def test_without_tables_there_are_no_charts(tmp_path: Path) -> None:
    assert chart_figures(Outputs(tmp_path).results) == []
    assert chart_figures([]) == []


def test_every_chart_is_written_read_and_has_a_drawer_and_a_name_of_its_own(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.scores(BEST, by_layer=lambda *key: 0.01 * key[-1], layers=3)
    outputs.comparisons(_planted)
    figures = score_figures(outputs.results)
    assert {figure.kind for figure in figures} <= set(DRAWERS)
    assert len({figure.name for figure in figures}) == len(figures)
    one = _bars(figures, "visual")
    write_figures(tmp_path / "group" / "figures", [one], output_dir=tmp_path)
    assert _flagged(read_figure(tmp_path / "group" / "figures" / f"{one.name}.tsv"), "multimodal") == {
        "videollm", "audiollm",
    }  # fmt: skip


def test_labels_of_regions_are_letters_and_digits_and_differ() -> None:
    assert labels_of(["whole brain", "a9-46v", "A946v", "L_V1"]) == {
        "whole brain": "wholebrain", "a9-46v": "a946v", "A946v": "A946v2", "L_V1": "LV1",
    }  # fmt: skip
