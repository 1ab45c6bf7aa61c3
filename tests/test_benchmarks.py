"""The benchmarks: each has a quick form, and what they compare and count is right. None is run in full here."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bids_mllm.features.extractor import Extracted
from bids_mllm.features.instructions import load_instructions
from bids_mllm.records import Clip, ClipMedia, Condition

FOLDER = Path(__file__).parents[1] / "benchmarks"
#: What the last line of output names.
FAMILIES = {"qwen25vl", "llavaonevision", "llavanextvideo", "videollava", "qwen2audio", "instructblipvideo"}


def is_script(path: Path) -> bool:
    tests = (node.test for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.If))
    return any("__main__" in ast.unparse(test) for test in tests)


SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if is_script(path)]


@pytest.fixture(scope="module")
def prefix_sharing() -> Any:
    return load("prefix_sharing")


def load(name: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module(name)


def test_there_are_scripts() -> None:
    assert {path.stem for path in SCRIPTS} >= {"demo_stages", "features"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_has_a_quick_form(script: Path) -> None:
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert "--quick" in done.stdout


def test_all_families_are_measured(prefix_sharing: Any) -> None:
    features = load("features")
    assert set(features.FAMILIES) == set(prefix_sharing.CASES) == FAMILIES
    assert {family: features.target_of(family, "last") for family in FAMILIES} == {
        family: 1.5 if family == "instructblipvideo" else 8.0 for family in FAMILIES
    }
    assert features.target_of("qwen25vl", "generated") == 6.0


def test_app_and_script_take_turns(prefix_sharing: Any) -> None:
    called: list[str] = []
    extractor = SimpleNamespace(extract=lambda clips: called.append("app"))

    def script(clip: ClipMedia, text: str) -> str:
        called.append(text)
        return text.upper()

    clip = ClipMedia(Clip("film.mp4", 0, 0.0, 2.0))
    turns = prefix_sharing.take_turns(extractor, script, clip, n_turns=5, device="cpu")
    texts = [instruction.text for instruction in load_instructions()]
    assert [i for i, what in enumerate(called) if what == "app"] == [0, 4, 8, 12, 15]
    assert sorted(text for text in called if text != "app") == sorted(texts)
    assert turns.by_instruction == {one.key: one.text.upper() for one in load_instructions()}
    assert turns.app.shape == turns.script.shape == (5, 2)


def test_a_ratio_is_the_median_over_turns(prefix_sharing: Any) -> None:
    app, script = np.array([[1.0, 2.0], [2.0, 2.0], [1.0, 1.0]]), np.array([[9.0, 9.0], [10.0, 8.0], [7.0, 5.0]])
    turns = prefix_sharing.Turns(Extracted({}), {}, app, script)
    np.testing.assert_allclose(turns.ratios, [7.0, 4.5])
    assert turns.seconds == (1.0, 9.0)


def test_errors_are_relative_to_each_layer(prefix_sharing: Any) -> None:
    expected = np.array([[3.0, -4.0], [600.0, 800.0]])
    found = expected + np.array([[0.3, 0.4], [0.0, -30.0]])
    assert prefix_sharing.relative_error(found, expected) == pytest.approx(0.1)


@pytest.mark.parametrize("broken", [[[np.nan, 1.0]], [[0.0, 0.0]], [[np.inf, 1.0]]])
def test_states_that_are_no_states_are_an_error(prefix_sharing: Any, broken: list[list[float]]) -> None:
    with pytest.raises(RuntimeError, match="not finite, or holds zeros only"):
        prefix_sharing.relative_error(np.array([[1.0, 1.0]]), np.array(broken))


def test_another_answer_is_an_error(prefix_sharing: Any) -> None:
    states = np.ones((1, 3, 2), np.float32)
    condition = Condition("generated", "AR")
    extracted = {
        "last": Extracted({Condition("last", "AR"): states}),
        "generated": Extracted({condition: states}, {condition: ("a cat",)}),
    }
    short = Extracted({condition: states + 0.5})
    given: dict[str, Any] = {"last": {"AR": {"last": states[0]}}, "generated": {"AR": ("a cat", states[0])}}
    assert prefix_sharing.compare(extracted, short, given) == pytest.approx(0.5)
    given["generated"]["AR"] = ("a dog", states[0])
    with pytest.raises(RuntimeError, match="'a cat' of the app, 'a dog' of the script"):
        prefix_sharing.compare(extracted, short, given)


@pytest.mark.parametrize("family", ["qwen2audio", "instructblipvideo"])
def test_the_script_finds_what_the_app_finds(prefix_sharing: Any, family: str) -> None:
    result = prefix_sharing.measure(prefix_sharing.CASES[family], quick=True, n_turns=1)
    assert result.max_rel_err < 1e-5
    assert all(sum(stages.values()) > 0 for stages in result.stages.values())
    assert result.stages["generated"]["decoding"] > 0


def test_a_full_size_is_that_of_the_trained_model(tmp_path: Path) -> None:
    full_size = load("full_size")
    full_size.write_small_files(tmp_path, full_size.Sizes(n_layers=28, scale=1.0))
    model = full_size.draw_weights(SimpleNamespace(folder=tmp_path), "meta", 0)
    text, vision = model.config.text_config, model.config.vision_config
    assert (text.num_hidden_layers, text.hidden_size, text.num_attention_heads) == (28, 3584, 28)
    assert (text.num_key_value_heads, text.intermediate_size, text.vocab_size) == (4, 18944, 152064)
    assert (vision.depth, vision.hidden_size, vision.intermediate_size) == (32, 1280, 3420)
    assert vision.fullatt_block_indexes == [7, 15, 23, 31]
    # Queries and output, keys and values, feed-forward, biases, two norms; then the last norm, table and head.
    layer = 2 * 3584**2 + 2 * 512 * 3584 + 3 * 3584 * 18944 + (3584 + 2 * 512) + 2 * 3584
    language = 28 * layer + 3584 + 2 * 152064 * 3584
    seen = sum(p.numel() for name, p in model.named_parameters() if "visual" not in name)
    assert seen == language
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    # 13 instructions of about 30 tokens behind 1500 of video, 8 tokens generated.
    assert full_size.operations(model, 1516, 13 * 28, 13 * 8) == pytest.approx(34e12, rel=0.05)


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the script of loading, which has the name of a module of Python, on a small grid."""
    spec = importlib.util.spec_from_file_location("benchmark_io", FOLDER / "io.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SHAPE", (12, 14, 13))
    return module


def test_both_sides_load_the_same_values(loading: Any, tmp_path: Path) -> None:
    loading.write_run(tmp_path, 60)
    regressors = np.load(tmp_path / "regressors.npy")
    (app, app_s), (masker, masker_s) = (side(tmp_path, regressors) for side in (loading.by_app, loading.by_masker))
    assert app.shape == masker.shape
    assert app.shape[0] == 60
    assert loading.largest_difference(app, masker) < 1e-4
    assert min(app_s, masker_s) > 0


def test_a_difference_is_in_deviations_of_its_voxel(loading: Any) -> None:
    expected = np.random.default_rng(0).normal(size=(50, 6)) * [1, 10, 100, 1, 1, 1] + 8000
    found = expected.copy()
    found[3, 1] += 1.0
    # The mean is taken off on both sides, so a fiftieth of the step is everywhere.
    assert loading.largest_difference(found, expected) == pytest.approx(0.98 / expected[:, 1].std())
    with pytest.raises(RuntimeError, match="The app has"):
        loading.largest_difference(found[:, :5], expected)


def test_fits_in_parts_are_measured(loading: Any, tmp_path: Path) -> None:
    figures = loading.measure_blocks(tmp_path, 300, 250, 0.8)
    assert (figures["voxels"], figures["rows"]) == (300, 245)
    assert figures["median_r"] > 0.3
    assert figures["peak_own_mb"] > 0
