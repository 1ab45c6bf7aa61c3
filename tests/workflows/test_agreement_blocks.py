"""The agreement with a published study on the group page, from tables made by hand."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bids_mllm.cli.presets import preset_names, read_preset
from bids_mllm.group.classes import CLASSES
from bids_mllm.io.derivatives import MapName
from bids_mllm.io.files import write_json, write_tsv
from bids_mllm.io.results import ModelResult
from bids_mllm.report.content import Bullets, Paragraph, Table
from bids_mllm.workflows import agreement as agreement_module
from bids_mllm.workflows.agreement import agreement_blocks, studies

NAME = MapName("01", "life", "fsLR", None, "91k", None, ".dscalar.nii")
KINDS = {
    "qwen25vl7b": "instruction-tuned video",
    "peavlarge": "multimodal",
    "videomaelarge": "unimodal video",
    "mine": "low-level",
}
PARTICIPANTS = ("01", "02", "03", "05")


def sidecar(model, **changes):
    runs = {"TrainRuns": ["ses-001_task-bourne01", "ses-002_task-wolf17"], "TestRuns": ["ses-003_task-life01_run-1"]}
    facts = {"Preset": "oota2025", "Sloppy": False, "Model": {"Kind": KINDS[model], "Weights": "pretrained"}}
    return {**facts, **runs, **changes}


@pytest.fixture
def study(tmp_path):
    """Results of a repetition of the study as far as the page reads them."""
    raw = tmp_path / "movie10"
    write_json(raw / "dataset_description.json", {"Name": "Courtois NeuroMod"})
    return SimpleNamespace(bids_dir=raw, output_dir=tmp_path / "out")


def results_of(study, models, **changes):
    results = []
    for participant in PARTICIPANTS:
        for model in models:
            result = ModelResult(replace(NAME, participant=participant), model, study.output_dir)
            best = result.path("r", "best")
            write_json(best.with_name(best.name.replace(".dscalar.nii", ".json")), sidecar(model, **changes))
            results.append(result)
    return results


def write_scores(study, values, roi="whole brain"):
    """Write the group's table; values are normalised scores of the first participant, the next have 0.02 more each."""
    heads = {"condition": "best", "layer": "best", "roi": roi, "kind": "set", "coverage": 1.0, "r": 0.1}
    rows = [
        {"participant": who, "model": model, **heads, "r_normalized": value + 0.02 * number}
        for number, who in enumerate(PARTICIPANTS)
        for model, value in values.items()
    ]
    write_tsv(NAME.of_group().path(study.output_dir, extension=".tsv", stat="scores", atlas="Glasser"), rows)


def rows_of(blocks):
    (table,) = [block for block in blocks if isinstance(block, Table)]
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}, table.caption


def test_values_of_the_study_agree_with_it(study):
    results = results_of(study, ["qwen25vl7b", "peavlarge", "videomaelarge"])
    write_scores(study, {"qwen25vl7b": 0.712, "peavlarge": 0.501, "videomaelarge": 0.507})
    blocks = agreement_blocks(study, results)
    assert not [block for block in blocks if isinstance(block, Bullets)]
    rows, caption = rows_of(blocks)
    assert "fsLR_den-91k, Glasser" in caption
    own = rows["Qwen-2.5-VL, normalised alignment"]
    assert own["Found"] == pytest.approx(0.742)
    assert own["Found less published"] == pytest.approx(0)
    assert (own["Published"], own["Agreement"], own["Participants"]) == ("0.742 ± 0.01", "within the tolerance", 4)
    instead = rows["TVLT, normalised alignment"]
    assert (instead["Agreement"], instead["Note"]) == ("differs", "peavlarge in its place")
    assert instead["Found less published"] == pytest.approx(-0.05)
    missing = rows["Video-LLaVA, normalised alignment"]
    assert (missing["Found"], missing["Agreement"]) == (None, "not run")
    assert missing["Note"] == "videollava7b was not run"


def test_percent_of_classes_is_of_normalised_scores(study):
    results = results_of(study, ["qwen25vl7b", "videomaelarge"])
    write_scores(study, {"qwen25vl7b": 0.75, "videomaelarge": 0.5})
    rows, _ = rows_of(agreement_blocks(study, results))
    own = rows["Instruction-tuned over unimodal models, percent"]
    a, b = 0.75 + 0.02 * np.arange(4), 0.5 + 0.02 * np.arange(4)
    assert own["Found"] == pytest.approx(np.mean(100 * (a - b) / b))
    assert (own["Participants"], own["Note"]) == (4, "")
    in_context = rows["Instruction-tuned over in-context models, percent"]
    assert in_context["Note"] == "the classes instruction-tuned and in-context were not both run"


def test_percent_of_the_table_stands_in_where_nothing_is_normalised(study):
    results = results_of(study, ["qwen25vl7b", "videomaelarge"])
    row = {"unit": "participant", "roi": "all", "class_a": "instruction-tuned", "class_b": "unimodal"}
    path = NAME.of_group().path(study.output_dir, extension=".tsv", stat="classcomparison")
    write_tsv(path, [{**row, "percent_difference": 20.5, "n_percent": 3}])
    rows, caption = rows_of(agreement_blocks(study, results))
    assert "no atlas" in caption
    own = rows["Instruction-tuned over unimodal models, percent"]
    assert (own["Found"], own["Agreement"], own["Participants"]) == (20.5, "within the tolerance", 3)
    assert own["Note"] == "region all; of r, which is not normalised"
    assert rows["Qwen-2.5-VL, normalised alignment"]["Note"] == "there is no table of scores, which needs an atlas"


def test_percent_of_the_table_is_found_where_regions_are_named_after_their_atlas(study):
    results = results_of(study, ["qwen25vl7b", "videomaelarge"])
    write_scores(study, {"qwen25vl7b": float("nan"), "videomaelarge": float("nan")})
    row = {"unit": "participant", "class_a": "instruction-tuned", "class_b": "unimodal", "n_percent": 3}
    percents = {"all": 1.0, "Other:whole brain": 2.0, "Glasser:whole brain": 20.5}
    path = NAME.of_group().path(study.output_dir, extension=".tsv", stat="classcomparison")
    write_tsv(path, [{**row, "roi": roi, "percent_difference": value} for roi, value in percents.items()])
    rows, _ = rows_of(agreement_blocks(study, results))
    own = rows["Instruction-tuned over unimodal models, percent"]
    assert (own["Found"], own["Note"]) == (20.5, "of r, which is not normalised")


def test_depths_couplings_and_ceilings_are_read(study, monkeypatch):
    results = results_of(study, ["qwen25vl7b"])
    for result in results:
        depths = {"EVC": 0.2, "MT": 0.5, "language": 0.1}
        rows = [
            {"participant": result.name.participant, "model": result.model, "condition": "generatedAR", "roi": roi,
             "depth": depth}
            for roi, depth in depths.items()
        ]  # fmt: skip
        write_tsv(result.path("layers", None, extension=".tsv", atlas="Glasser"), rows)
        ceiling = result.name.path(study.output_dir, stat="noiseceiling")
        ceiling.touch()
    write_scores(study, {"qwen25vl7b": 0.7})
    monkeypatch.setattr(agreement_module, "load_map", lambda path: (np.array([0.41, np.nan, 0.2]), None))
    keys = {"pooling": "generated", "text_similarity": "embedding", "representation_similarity": "cka"}
    coupling = [{**keys, "layer": str(layer), "r": r} for layer, r in enumerate(("0.9", "0.1", "0.18", "n/a"))]
    coupling.append({**keys, "text_similarity": "tfidf", "layer": "1", "r": "0.9"})
    checks = SimpleNamespace(coupling=coupling)
    monkeypatch.setattr(agreement_module, "read_checks", lambda folder, model: checks)
    rows, _ = rows_of(agreement_blocks(study, results))
    visual = rows["Higher visual (MT) deeper than early visual cortex (EVC), instruction-tuned models"]
    assert (visual["Published"], visual["Agreement"]) == ("above 0", "within the tolerance")
    assert visual["Found"] == pytest.approx(0.3)
    language = rows["Language set deeper than early visual cortex (EVC), instruction-tuned models"]
    assert language["Agreement"] == "differs"
    tuned = rows["Coupling of instructions' texts with features, instruction-tuned models, r"]
    assert tuned["Found"] == pytest.approx(0.14)
    assert rows["Highest noise ceiling"]["Found"] == pytest.approx(0.41)


@pytest.mark.parametrize(
    ("description", "folder", "named"),
    [
        ({"Name": "Narratives"}, "raw", "'Narratives, raw'"),
        ({"Name": "Movie10", "GeneratedBy": [{"Name": "bids-mllm-simulate"}]}, "movie10", "'simulated'"),
    ],
)
def test_another_data_set_is_no_failure_to_replicate(study, description, folder, named):
    study.bids_dir = study.bids_dir.with_name(folder)
    write_json(study.bids_dir / "dataset_description.json", description)
    blocks = agreement_blocks(study, results_of(study, ["qwen25vl7b"]))
    (warning,) = [block for block in blocks if isinstance(block, Bullets)]
    assert warning.items == (f"The data set is {named}, not movie10.",)
    assert any("no failure to replicate" in block.text for block in blocks if isinstance(block, Paragraph))


def test_what_was_made_otherwise_is_named(study):
    model = {"Kind": "instruction-tuned video", "Weights": "random"}
    results = results_of(study, ["qwen25vl7b"], Model=model, Sloppy=True, Preset=None)
    (warning,) = [block for block in agreement_blocks(study, results) if isinstance(block, Bullets)]
    assert warning.items == (
        "The results were made with the preset none, not with oota2025.",
        "Weights are random, not those of the trained model: qwen25vl7b.",
        "Made with --sloppy, which is for trying out only.",
    )


def test_nothing_is_said_where_neither_the_preset_nor_a_model_is_the_study_s(study):
    assert agreement_blocks(study, results_of(study, ["mine"], Preset="other")) == ()
    assert agreement_blocks(study, results_of(study, ["mine"])) != ()
    assert agreement_blocks(study, results_of(study, ["qwen25vl7b"], Preset=None)) != ()
    assert agreement_blocks(study, []) == ()


def test_the_published_figures_are_of_models_classes_and_regions_of_the_app():
    for study in studies():
        assert study.preset in preset_names()
        models = set(read_preset(study.preset)["models"])
        for figure in study.figures:
            assert figure.source
            assert not figure.models or models & {*figure.models, *figure.stand_ins}
            assert {figure.class_a, figure.class_b} <= {*CLASSES, ""}


def test_the_whole_brain_values_of_the_study_are_all_there():
    (study,) = [study for study in studies() if study.preset == "oota2025"]
    values = {figure.id: figure.value for figure in study.figures if figure.measure == "r_normalized"}
    assert json.dumps(values) == json.dumps(
        {
            "instructblip": 0.665, "videollava": 0.646, "llavanext": 0.673, "qwenvl": 0.742, "qwenaudio": 0.469,
            "tvlt": 0.581, "videounimodal": 0.537, "audiounimodal": 0.471,
        }
    )  # fmt: skip
    percents = {figure.class_b: figure.value for figure in study.figures if figure.measure == "percent"}
    assert percents == {"in-context": 9.0, "multimodal": 15.0, "unimodal": 20.0}
    couplings = {figure.class_a: figure.value for figure in study.figures if figure.measure == "coupling"}
    assert couplings == {"instruction-tuned": 0.14, "in-context": 0.78}
