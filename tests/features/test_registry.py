"""The registry of models and the requests that name them."""

import json
import sys
from pathlib import Path

import pytest

from bids_mllm.exceptions import UsageError
from bids_mllm.features.extractor import Family
from bids_mllm.features.registry import load_family, load_registry, resolve_models

HUB_ID = "Qwen/Qwen2.5-VL-7B-Instruct"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a checkpoint; its weights are never opened here."""
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    (path / "model.safetensors").write_bytes(b"")
    return path


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with one entry point, as a wheel leaves it."""
    site = tmp_path / "site"
    info = site / "rival-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bids_mllm.models]\nrival = rival_models:MODELS\n")
    (site / "rival_models.py").write_text(
        "from bids_mllm.features.extractor import Family\n"
        "FAMILY = Family(name='rival', plan=lambda spec, readout: None, load=lambda s, r, d: None)\n"
        "MODELS = {'rival1': {'family': 'rival_models:FAMILY', 'media': 'video',\n"
        "    'parameters': {'fps': 4}, 'sloppy': {'fps': 1}}}\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "rival_models", raising=False)
    return site / "rival_models.py"


def test_every_record_has_a_family_and_a_label() -> None:
    registry = load_registry()
    assert list(registry) == ["qwen25vl7b", "motionenergy", "melspectrogram"]
    for key, spec in registry.items():
        assert spec.key == key
        assert key.isalnum()
        family = load_family(spec.family)
        assert isinstance(family, Family)
        assert family.name == spec.family


def test_the_instructed_model_is_pinned() -> None:
    spec = load_registry()["qwen25vl7b"]
    assert spec.instructed
    assert (spec.source, spec.licence, spec.dtype) == (HUB_ID, "apache-2.0", "bfloat16")
    assert spec.revision is not None
    assert len(spec.revision) == 40
    assert spec.parameters["max_fps"] == 4
    assert spec.parameters["max_pixels"] <= 100352


def test_low_level_models_follow_no_instruction() -> None:
    motion, sound = resolve_models(["motionenergy", "melspectrogram"])
    assert (motion.media, sound.media) == ("video", "audio")
    assert not motion.instructed
    assert motion.parameters["frame_size"] == [72, 128]
    assert sound.parameters["sampling_rate"] == 16000


def test_sloppy_replaces_parameters_and_keeps_the_others() -> None:
    motion, sound = resolve_models(["motionenergy", "melspectrogram"], sloppy=True)
    assert motion.parameters["frame_size"] == [36, 64]
    assert sound.parameters["n_mels"] == 32
    assert sound.parameters["n_fft"] == 512
    assert load_registry()["motionenergy"].parameters["frame_size"] == [72, 128]


def test_a_key_and_its_hub_id_are_the_same_model() -> None:
    assert resolve_models(["qwen25vl7b"]) == resolve_models([HUB_ID])


def test_a_known_label_keeps_its_record_with_a_folder(folder: Path) -> None:
    (spec,) = resolve_models([f"qwen25vl7b={folder}"])
    built_in = load_registry()["qwen25vl7b"]
    assert spec.source == str(folder)
    assert spec.revision is None
    assert (spec.dtype, spec.parameters) == (built_in.dtype, built_in.parameters)


def test_a_new_label_takes_its_family_from_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (spec,) = resolve_models([f"tiny={folder.name}"])
    assert (spec.key, spec.family, spec.dtype, spec.media) == ("tiny", "qwen25vl", "float32", "video")
    assert spec.kind == "instruction-tuned video"
    assert spec.source == str(folder)


def test_hub_ids_with_labels() -> None:
    (other,) = resolve_models(["qwen25vl7b=owner/finetuned"])
    assert (other.key, other.source, other.revision) == ("qwen25vl7b", "owner/finetuned", None)
    (renamed,) = resolve_models([f"mine={HUB_ID}"])
    assert (renamed.key, renamed.source) == ("mine", HUB_ID)
    with pytest.raises(UsageError, match="needs a registered label that tells its family: qwen25vl7b"):
        resolve_models(["mine=owner/finetuned"])


def test_a_revision_reaches_hub_models_alone(folder: Path) -> None:
    hub, local, low = resolve_models(["qwen25vl7b", f"tiny={folder}", "motionenergy"], revision="abc")
    assert (hub.revision, local.revision, low.revision) == ("abc", None, None)


@pytest.mark.parametrize(
    ("request_text", "message"),
    [
        ("nothing", "no model 'nothing'; choose from qwen25vl7b, motionenergy, melspectrogram"),
        ("a-b=/tmp", "label 'a-b'"),
        ("tiny=", "no folder or hub id after '='"),
        ("tiny=/not/there", "/not/there does not exist"),
        ("motionenergy=/tmp", "motionenergy has no weights"),
    ],
)
def test_requests_that_cannot_be_used(request_text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_models([request_text])


def test_folders_that_are_no_checkpoint(folder: Path) -> None:
    request = [f"tiny={folder}"]
    (folder / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UsageError, match=r"model_type 'llava', which is not supported.*qwen2_5_vl"):
        resolve_models(request)
    (folder / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json cannot be read as JSON"):
        resolve_models(request)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="no weights as"):
        resolve_models(request)
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"has no config\.json"):
        resolve_models(request)


def test_a_label_that_comes_twice(folder: Path) -> None:
    with pytest.raises(UsageError, match="'qwen25vl7b' comes twice"):
        resolve_models(["qwen25vl7b", f"qwen25vl7b={folder}"])


def test_unknown_families_list_the_choices() -> None:
    with pytest.raises(UsageError, match="no family 'qwen'; choose from melspectrogram, motionenergy"):
        load_family("qwen")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_family("bids_mllm.absent:FAMILY")
    with pytest.raises(UsageError, match="is not a Family"):
        load_family("bids_mllm.features.registry:PLUGIN_GROUP")


def test_a_plugin_comes_through_the_same_door(plugin: Path) -> None:
    (spec,) = resolve_models(["rival1"], sloppy=True)
    assert spec.parameters == {"fps": 1}
    assert load_family(spec.family).name == "rival"


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("MODELS = {'motionenergy': {'family': 'a:b', 'media': 'video'}}", "registered twice"),
        ("MODELS = {'x': {'family': 'a:b'}}", "no field 'media'"),
        ("MODELS = {'x': {'family': 'a:b', 'media': 'video', 'weights': 1}}", "unknown field 'weights'"),
        ("MODELS = {'x_y': {'family': 'a:b', 'media': 'video'}}", "label 'x_y'"),
        ("MODELS = 3", "not a mapping"),
        ("OTHER = 3", "cannot be loaded"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named(plugin: Path, models: str, message: str) -> None:
    plugin.write_text(models + "\n")
    with pytest.raises(UsageError, match=message):
        load_registry()
