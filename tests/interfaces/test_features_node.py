"""The node that extracts features: what it writes of every model, and models that learn in context."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from film_jobs import WINDOW, damage, grid_of, read_out, spec_of
from nipype.pipeline.engine import Node, Workflow

from bids_mllm.exceptions import CheckpointError, StoreError, UsageError
from bids_mllm.features.extractor import Demonstration
from bids_mllm.features.models.tiny import TINY_CHECKPOINTS
from bids_mllm.features.registry import load_family
from bids_mllm.interfaces import extraction
from bids_mllm.interfaces.encoding import lost_windows
from bids_mllm.interfaces.features import ExtractFeatures, readout_from_json, with_demonstrations
from bids_mllm.io import store as store_module
from bids_mllm.io.clips import probe_stimulus, read_clips
from bids_mllm.io.demonstrations import read_demonstrations
from bids_mllm.io.files import read_json, read_tsv
from bids_mllm.io.store import FeatureEntry
from bids_mllm.records import Clip
from bids_mllm.simulate.films import write_film
from bids_mllm.workflows.participant import _must_extract_again

N_WINDOWS = 12


@pytest.fixture(autouse=True, scope="module")
def _small_chunks() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "WINDOWS_PER_CHUNK", 8)
        yield


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    write_film(path, seconds=18.5, seed=1)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: TINY_CHECKPOINTS[family](folder / family) for family in ("qwen25vl", "internvl")}


Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def node(film: Path, tmp_path: Path) -> Callable[..., ExtractFeatures]:
    def make(requests: Sequence[str], *, stimulus: Path = film, memory: float = 0.0, **asked: Any) -> ExtractFeatures:
        models = []
        for request in requests:
            spec = spec_of(request)
            fields = asdict(spec) | {"parameters": dict(spec.parameters)}
            readout = asdict(read_out(spec, **asked))
            models.append({"spec": fields, "readout": readout, "grids": [asdict(grid_of(film))]})
        probed = probe_stimulus(stimulus, "films/film.mkv")
        return ExtractFeatures(
            stimulus=json.dumps(asdict(probed) | {"path": str(probed.path)}),
            models=json.dumps(models),
            checkpoints=[""] * len(models),
            features_dir=str(tmp_path / "store"),
            texts_dir=str(tmp_path / "texts"),
            memory_bytes=memory,
            app_version="1",
        )

    return make


def run(interface: ExtractFeatures, folder: Path) -> list[dict[str, Any]]:
    """The manifests, as the nodes behind this one read them."""
    folder.mkdir(parents=True)
    result = interface.run(cwd=str(folder))
    return [read_json(Path(path)) for path in result.outputs.manifests]


def entry_of(row: dict[str, Any]) -> FeatureEntry:
    return FeatureEntry(Path(row["path"]), row["n_windows"], row["n_layers"], row["width"])


def test_each_model_has_a_manifest_of_its_entries(
    node: Callable[..., ExtractFeatures], folders: dict[str, Path], film: Path, tmp_path: Path
) -> None:
    # The names of the second and the third differ in what a file name does not show.
    requests = ["motionenergy", f"a={folders['qwen25vl']}", f"a+random={folders['qwen25vl']}"]
    requests.append(f"aplusrandom={folders['qwen25vl']}")
    found = run(node(requests), tmp_path / "cwd")
    assert [manifest["model"] for manifest in found] == ["motionenergy", "a", "a+random", "aplusrandom"]
    grid = grid_of(film)
    assert grid.n_windows == N_WINDOWS
    for manifest in found:
        assert manifest["stim_file"] == "films/film.mkv"
        for row in manifest["entries"]:
            assert (row["origin"], row["step"], row["length"], row["n_windows"]) == (0.0, WINDOW, WINDOW, N_WINDOWS)
            assert row["masked"] == {}
            assert entry_of(row).read(0).shape == (N_WINDOWS, row["width"])
    labels = [f"{row['pooling']}{row['instruction'] or ''}" for row in found[1]["entries"]]
    assert labels == ["generatedAR", "generatedVU", "lastAR", "lastVU", "media"]
    paths = [{row["path"] for row in manifest["entries"]} for manifest in found]
    assert not paths[1] & paths[2]
    # The same checkpoint under another name is the same entries.
    assert paths[3] == paths[1]


def test_texts_are_tables_with_a_row_for_every_window(
    node: Callable[..., ExtractFeatures], folders: dict[str, Path], film: Path, tmp_path: Path
) -> None:
    broken, _, _ = damage(film, tmp_path / "film.mkv", "video", 8.0, 8.1)
    [manifest] = run(node([f"a={folders['qwen25vl']}"], stimulus=broken), tmp_path / "cwd")
    expected = tmp_path / "texts" / "model-a"
    names = [f"films-film.mkv_instruction-{key}_texts.tsv" for key in ("AR", "VU")]
    assert manifest["texts"] == [str(expected / name) for name in names]
    for row, path in zip(manifest["entries"], manifest["texts"], strict=False):
        said = entry_of(row).texts()
        assert said is not None
        table = read_tsv(Path(path))
        assert list(table[0]) == ["start", "end", "text"]
        assert [float(line["start"]) for line in table] == pytest.approx([WINDOW * k for k in range(N_WINDOWS)])
        assert [float(line["end"]) for line in table] == pytest.approx([WINDOW * (k + 1) for k in range(N_WINDOWS)])
        assert [line["text"] for line in table] == [" ".join(text.split("\n")) or "n/a" for text in said]
        assert 0 < len(row["masked"]) < N_WINDOWS
        assert all(said[int(window)] == "" for window in row["masked"])
        assert any(line["text"] != "n/a" for line in table)
    [(key, reasons)] = lost_windows([manifest]).items()
    assert key == ("films/film.mkv", 0.0, WINDOW, WINDOW)
    assert {str(window): reason for window, reason in reasons.items()} == manifest["entries"][0]["masked"]


def test_a_node_runs_again_when_a_table_or_a_chunk_is_gone(
    node: Callable[..., ExtractFeatures], folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    workflow = Workflow(name="flow", base_dir=str(tmp_path / "work"))
    made = Node(node([f"a={folders['qwen25vl']}"]), name="features")
    workflow.add_nodes([made])
    assert not _must_extract_again(workflow, made)
    workflow.run()
    [manifest] = [
        content for path in (tmp_path / "work/flow/features").glob("*.json")
        if isinstance(content := read_json(path), dict) and "entries" in content
    ]  # fmt: skip
    assert not _must_extract_again(workflow, made)
    for path in (Path(manifest["texts"][1]), entry_of(manifest["entries"][2]).address(1).path):
        before = path.read_bytes()
        path.unlink()
        assert _must_extract_again(workflow, made)
        made.overwrite = True
        workflow.run()
        assert path.read_bytes() == before
        assert not _must_extract_again(workflow, made)


def test_a_model_that_cannot_be_planned_does_not_keep_the_others(
    node: Callable[..., ExtractFeatures], folders: dict[str, Path], tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(folders["internvl"], tmp_path / "damaged"))
    interface = node([f"a={folders['qwen25vl']}", "melspectrogram"])
    models = json.loads(interface.inputs.models)
    weights = damaged / "model.safetensors"
    bad = spec_of(f"bad={damaged}")
    models.insert(0, {"spec": asdict(bad) | {"parameters": dict(bad.parameters)}, **{
        name: models[0][name] for name in ("readout", "grids")
    }})  # fmt: skip
    models[0]["spec"]["kind"] = "instruction-tuned video"
    weights.write_bytes(weights.read_bytes()[:-50])
    interface.inputs.models = json.dumps(models)
    interface.inputs.checkpoints = ["", "", ""]
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or damaged"):
        run(interface, tmp_path / "cwd")
    seen: list[str] = []
    models.pop(0)
    interface.inputs.models = json.dumps(models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "_run_group", lambda *given: seen.append("ran"))
        found = run(interface, tmp_path / "again")
    assert seen == []
    assert [manifest["model"] for manifest in found] == ["a", "melspectrogram"]


@pytest.mark.parametrize(("memory", "size"), [(0.0, 8), (1.0, 1)])
def test_batches_follow_the_memory_that_the_node_may_take(
    node: Callable[..., ExtractFeatures],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory: float,
    size: int,
) -> None:
    sizes: list[int] = []
    run_batch = extraction.BatchRunner.run

    def noted(self: Any, clips: Sequence[Any]) -> Any:
        sizes.append(len(clips))
        return run_batch(self, clips)

    monkeypatch.setattr(extraction.BatchRunner, "run", noted)
    run(node([f"a={folders['qwen25vl']}"], memory=memory, poolings=("last",)), tmp_path / "cwd")
    assert max(sizes) == size
    assert sum(sizes) == N_WINDOWS


# In context

TOML = """
[[demonstration]]
file = "shown.mkv"
start = 1.0
end = 2.5
instruction = "What moves?"
answer = "{answer}"

[[demonstration]]
file = "shown.mkv"
start = 4.0
end = 5.5
instruction = "What moves?"
answer = "A square."
"""


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    write_film(tmp_path / "shown.mkv", seconds=6.0, seed=5)
    path = tmp_path / "shown.toml"
    path.write_text(TOML.format(answer="A circle."), encoding="utf-8")
    return path


def test_demonstrations_are_decoded_as_the_model_takes_its_clips(folders: dict[str, Path], shown: Path) -> None:
    spec = spec_of(f"b={folders['internvl']}")
    family, readout = load_family(spec.family), read_out(spec)
    rows = read_demonstrations(shown)
    found = with_demonstrations(spec, readout, family, rows)
    assert [(d.instruction, d.answer) for d in found.demonstrations] == [
        ("What moves?", "A circle."), ("What moves?", "A square."),
    ]  # fmt: skip
    planned = tuple(Demonstration(row.clip, row.stimulus.sha256, row.instruction, row.answer) for row in rows)
    plan = family.plan(spec, replace(readout, demonstrations=planned))
    # The media themselves are in the key by the hash of their film and the seconds.
    assert family.plan(spec, found) == plan
    film = probe_stimulus(shown.parent / "shown.mkv", "shown.mkv")
    for demonstration, (start, end) in zip(found.demonstrations, ((1.0, 2.5), (4.0, 5.5)), strict=True):
        [expected] = read_clips(film, [Clip("shown.mkv", 0, start, end)], plan.request)
        assert demonstration.media is not None
        assert demonstration.sha256 == film.sha256
        np.testing.assert_array_equal(demonstration.media.frames, expected.frames)
        np.testing.assert_array_equal(demonstration.media.frame_times, expected.frame_times)


def test_a_read_out_comes_back_from_json_without_its_demonstrations(folders: dict[str, Path], shown: Path) -> None:
    readout = read_out(spec_of(f"a={folders['qwen25vl']}"))
    rows = tuple(Demonstration(r.clip, r.stimulus.sha256, r.instruction, r.answer) for r in read_demonstrations(shown))
    text = json.dumps(asdict(replace(readout, demonstrations=rows)))
    assert readout_from_json(json.loads(text)) == readout


def test_a_model_in_context_runs_through_the_node(
    node: Callable[..., ExtractFeatures], folders: dict[str, Path], film: Path, shown: Path, tmp_path: Path
) -> None:
    request = f"b={folders['internvl']}"
    interface = node([request, f"a={folders['qwen25vl']}"], poolings=("last", "generated"))
    interface.inputs.demonstrations = str(shown)
    [manifest, _] = run(interface, tmp_path / "cwd")
    # The model itself, given a clip and what stands before it.
    spec = spec_of(request)
    family = load_family(spec.family)
    readout = read_out(spec, poolings=("last", "generated"))
    readout = with_demonstrations(spec, readout, family, read_demonstrations(shown))
    plan = family.plan(spec, readout)
    clips = [Clip("film.mkv", k, k * WINDOW, (k + 1) * WINDOW) for k in (0, 1, 2)]
    media = list(read_clips(probe_stimulus(film, "film.mkv"), clips, plan.request))
    alone = family.load(spec, readout, "cpu").extract(media[2:])
    for row, (condition, values) in zip(manifest["entries"], alone.features.items(), strict=True):
        assert (row["pooling"], row["instruction"]) == (condition.pooling, condition.instruction)
        np.testing.assert_allclose(entry_of(row).read()[2], values[0], rtol=2e-3, atol=1e-3)
        if condition in alone.texts:
            said = entry_of(row).texts()
            assert said is not None
            assert said[2] == alone.texts[condition][0]
    # Another answer is another entry, with other features.
    shown.write_text(TOML.format(answer="Many circles dance."), encoding="utf-8")
    [other, _] = run(interface, tmp_path / "other")
    for one, two in zip(manifest["entries"], other["entries"], strict=True):
        assert one["path"] != two["path"]
        assert not np.allclose(entry_of(one).read()[:, 1:], entry_of(two).read()[:, 1:], rtol=1e-2)


def test_a_model_in_context_without_demonstrations_is_one_sentence(
    node: Callable[..., ExtractFeatures], folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"^The model b learns from demonstrations in its context; give them with"):
        run(node([f"b={folders['internvl']}"]), tmp_path / "cwd")


def test_a_step_that_only_finds_makes_nothing(node: Callable[..., ExtractFeatures], tmp_path: Path) -> None:
    interface = node(["motionenergy"])
    interface.inputs.only_find = True
    assert interface.lacking() == {("motionenergy", "films/film.mkv"): (N_WINDOWS, N_WINDOWS)}
    with pytest.raises(StoreError, match=r"lacks 12 of 12 clips of motionenergy from films/film\.mkv"):
        interface.run(cwd=str(tmp_path))
    assert not (tmp_path / "store").exists()
