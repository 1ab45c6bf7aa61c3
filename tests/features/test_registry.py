"""The registry of models and the requests that name them."""

import json
import re
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from bids_mllm.exceptions import UsageError
from bids_mllm.features.catalogue import KINDS, family_of_config
from bids_mllm.features.extractor import Family
from bids_mllm.features.registry import (
    load_families,
    load_family,
    load_records,
    load_registry,
    load_unavailable,
    resolve_models,
)

HUB_ID = "Qwen/Qwen2.5-VL-7B-Instruct"
REGISTRY = load_registry()
FAMILIES = load_families()
# The models of arXiv 2506.08277 with the layers that it counts (embedding and blocks) and the hub ids.
STUDY = {
    "instructblipvideo7b": ("Salesforce/instructblip-vicuna-7b", 33),
    "videollava7b": ("LanguageBind/Video-LLaVA-7B-hf", 33),
    "llavanextvideo7b": ("llava-hf/LLaVA-NeXT-Video-7B-hf", 33),
    "llavaonevision7b": ("llava-hf/llava-onevision-qwen2-7b-ov-hf", 29),
    "qwen25vl7b": ("Qwen/Qwen2.5-VL-7B-Instruct", 29),
    "videochatr1": ("OpenGVLab/VideoChat-R1_7B", 29),
    "qwen2audio7b": ("Qwen/Qwen2-Audio-7B-Instruct", 33),
    "kimiaudio7b": ("moonshotai/Kimi-Audio-7B-Instruct", 29),
    "qwen25omni7b": ("Qwen/Qwen2.5-Omni-7B", 29),
}


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


def module_of(family: str) -> str:
    """Name of a family's module; skips the test where the installation has none."""
    module = FAMILIES[family].target.partition(":")[0]
    if find_spec(module) is None:
        pytest.skip(f"{module} is not there yet")
    return module


@pytest.mark.parametrize("key", REGISTRY)
def test_every_record_can_be_used(key: str) -> None:
    spec = REGISTRY[key]
    assert spec.key == key
    assert key.isalnum()
    assert key.islower()
    assert spec.kind in KINDS
    assert spec.dtype in ("float32", "bfloat16", "float16")
    assert spec.weights == "pretrained"
    assert spec.family in FAMILIES
    assert resolve_models([key]) == (spec,)
    assert ("audio" in spec.kind, "video" in spec.kind).count(True) < 2
    if "audio" in spec.kind:
        assert spec.media == "audio"
    if "video" in spec.kind or "image" in spec.kind:
        assert spec.media == "video"


@pytest.mark.parametrize("key", [key for key, spec in REGISTRY.items() if spec.source])
def test_every_checkpoint_says_what_is_known_and_nothing_more(key: str) -> None:
    spec = REGISTRY[key]
    assert re.fullmatch(r"[\w-]+/[\w.-]+", spec.source)
    assert spec.revision is None or re.fullmatch("[0-9a-f]{40}", spec.revision)
    assert isinstance(spec.licence, str)
    assert spec.commercial in (True, False, None)
    if spec.commercial is not None:
        assert spec.licence, "who says whether commercial use is allowed names the licence"
    assert (spec.layers is None) == (spec.width is None)
    assert spec.layers is None or spec.layers >= 2
    if spec.memory_gb is not None:
        assert 0 < spec.memory_gb < 25


@pytest.mark.parametrize("key", REGISTRY)
def test_every_family_can_be_loaded_and_knows_its_parameters(key: str) -> None:
    spec = REGISTRY[key]
    module = import_module(module_of(spec.family))
    family = load_family(spec.family)
    assert isinstance(family, Family)
    assert family.name == spec.family
    architecture = getattr(module, "ARCHITECTURE", None)
    if architecture is not None:
        assert set(spec.parameters) | set(load_records()[key].sloppy) <= {*architecture.parameters, "order"}
        assert set(FAMILIES[spec.family].model_types) == set(architecture.model_types)
    for encoder in getattr(family.plan, "args", ()):
        assert set(spec.parameters) | set(load_records()[key].sloppy) <= set(encoder.parameters)
        assert set(FAMILIES[spec.family].model_types) == set(encoder.model_types)


@pytest.mark.parametrize("key", STUDY)
def test_every_model_of_the_study_is_there(key: str) -> None:
    source, layers = STUDY[key]
    assert (REGISTRY[key].source, REGISTRY[key].layers) == (source, layers)
    assert REGISTRY[key].instructed


def test_the_classes_of_models_that_are_compared_are_there() -> None:
    kinds = {spec.kind for spec in REGISTRY.values()}
    assert kinds == set(KINDS)
    omni = [spec for spec in REGISTRY.values() if spec.source == "Qwen/Qwen2.5-Omni-7B"]
    assert [(spec.key, spec.media) for spec in omni] == [
        ("qwen25omni7b", "both"),
        ("qwen25omni7bvideo", "video"),
        ("qwen25omni7baudio", "audio"),
        ("qwen25omni7bicl", "video"),
    ]
    assert [key for key, spec in REGISTRY.items() if spec.kind == "in-context"] == ["qwen25omni7bicl", "internvl38bicl"]
    assert all(spec.instructed for spec in REGISTRY.values() if spec.kind == "in-context")


def test_what_a_record_changes_about_a_checkpoint() -> None:
    """Text came before video in VideoChat-R1's training; OneVision's float16 is too narrow for its decoder."""
    assert REGISTRY["videochatr1"].family == "qwen25vl"
    assert REGISTRY["videochatr1"].parameters["order"] == "instruction-first"
    assert REGISTRY["qwen25vl7b"].parameters["order"] == "media-first"
    assert REGISTRY["llavaonevision7b"].dtype == "bfloat16"


def test_no_two_families_claim_a_checkpoint() -> None:
    names = [name for family in FAMILIES.values() for name in (*family.model_types, *family.architectures)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "instructblip"}, "instructblipvideo"),
        ({"model_type": "qwen2_5_omni"}, "qwen25omni"),
        ({"model_type": "qwen2_5_omni_thinker"}, "qwen25omni"),
        ({"model_type": "audio-spectrogram-transformer"}, "audiospectrogram"),
        ({"model_type": "qwen2", "architectures": ["MoonshotKimiaForCausalLM"]}, "kimiaudio"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, None),
        ({}, None),
    ],
)
def test_the_family_of_a_config(config: dict[str, object], family: str | None) -> None:
    assert family_of_config(config) == family


@pytest.mark.parametrize("model", load_unavailable(), ids=lambda model: model.key)
def test_models_that_cannot_be_had_say_why_and_what_to_use(model) -> None:
    assert model.key not in REGISTRY
    assert any(key in model.reason for key in REGISTRY), "names a model to use instead"
    for request in (model.key, model.key.upper(), *([model.source, f"mine={model.source}"] if model.source else [])):
        with pytest.raises(UsageError, match=f"{model.key} cannot be had: .*use"):
            resolve_models([request])


def test_the_instructed_model_is_pinned() -> None:
    spec = load_registry()["qwen25vl7b"]
    assert spec.instructed
    assert (spec.source, spec.licence, spec.dtype) == (HUB_ID, "apache-2.0", "bfloat16")
    assert spec.revision is not None
    assert len(spec.revision) == 40
    assert spec.parameters["max_fps"] == 4
    assert spec.parameters["max_pixels"] <= 100352
    assert [key for key, other in REGISTRY.items() if other.revision is not None] == ["qwen25vl7b"]


def test_the_page_of_models_is_not_stale() -> None:
    docs = Path(__file__).parents[2] / "docs"
    location = spec_from_file_location("generate_models", docs / "generate_models.py")
    assert location is not None
    assert location.loader is not None
    generator = module_from_spec(location)
    location.loader.exec_module(generator)
    page = (docs / "reference" / "models.md").read_text("utf-8")
    assert generator.models_page(page) == page, "run python docs/generate_models.py"
    for key, spec in REGISTRY.items():
        assert f"| `{key}` |" in page
        assert re.search(rf"^## {spec.family}$", page, flags=re.MULTILINE)
        if spec.parameters:
            assert f"<!-- table: parameters {spec.family} -->" in page
    assert all(f"| `{model.key}` |" in page for model in load_unavailable())


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
    assert spec.parameters == {}
    (quick,) = resolve_models([f"tiny={folder.name}"], sloppy=True)
    assert quick.parameters == {"max_frames": 4}


def test_a_folder_without_a_label_is_called_by_its_name(folder: Path) -> None:
    path = folder.rename(folder.with_name("my-model.v2"))
    (spec,) = resolve_models([str(path)])
    assert (spec.key, spec.source, spec.family) == ("mymodelv2", str(path), "qwen25vl")


def test_media_and_kind_of_a_folder_come_from_its_family(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "wav2vec2"}')
    (spec,) = resolve_models([f"mine={folder}"])
    assert (spec.family, spec.media, spec.kind) == ("wav2vec2", "audio", "unimodal audio")
    assert not spec.instructed


def test_hub_ids_with_labels() -> None:
    (other,) = resolve_models(["qwen25vl7b=owner/finetuned"])
    assert (other.key, other.source, other.revision) == ("qwen25vl7b", "owner/finetuned", None)
    (renamed,) = resolve_models([f"mine={HUB_ID}"])
    assert (renamed.key, renamed.source) == ("mine", HUB_ID)
    with pytest.raises(UsageError, match=r"family is not known; give --family with one of .*qwen25vl"):
        resolve_models(["mine=owner/finetuned"])


def test_a_hub_id_without_a_record_needs_a_family() -> None:
    with pytest.raises(UsageError, match=r"owner/finetuned is neither .*give --family"):
        resolve_models(["owner/finetuned"])
    bare, labelled = resolve_models(["owner/fine-tuned_7B.v2", "mine=owner/other"], family="llavaonevision")
    assert (bare.key, bare.source, bare.family) == ("finetuned7Bv2", "owner/fine-tuned_7B.v2", "llavaonevision")
    assert (bare.media, bare.kind, bare.dtype) == ("video", "instruction-tuned video", "float32")
    assert (labelled.key, labelled.family) == ("mine", "llavaonevision")
    (known,) = resolve_models(["qwen25vl7b"], family="llavaonevision")
    assert known == REGISTRY["qwen25vl7b"]
    with pytest.raises(UsageError, match=r"no family 'llava'; choose from .*llavaonevision"):
        resolve_models(["qwen25vl7b"], family="llava")


def test_a_family_that_the_folder_contradicts(folder: Path) -> None:
    (spec,) = resolve_models([f"mine={folder}"], family="qwen25vl")
    assert spec.family == "qwen25vl"
    with pytest.raises(UsageError, match=r"of the family qwen25vl \(model_type 'qwen2_5_vl'\), but --family says vit"):
        resolve_models([f"mine={folder}"], family="vit")
    with pytest.raises(UsageError, match="of the family qwen25vl, but vivitbase is of the family vivit"):
        resolve_models([f"vivitbase={folder}"])


def test_a_family_for_a_folder_that_does_not_tell_it(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qwen25vl_of_my_own"}')
    with pytest.raises(UsageError, match="tells no family; give --family"):
        resolve_models([f"mine={folder}"])
    (spec,) = resolve_models([f"mine={folder}"], family="qwen25vl")
    assert spec.family == "qwen25vl"


@pytest.mark.parametrize("request_text", ["qwen25vl7b+random", f"{HUB_ID}+random"])
def test_random_weights_keep_the_record(request_text: str) -> None:
    (control,) = resolve_models([request_text])
    real = REGISTRY["qwen25vl7b"]
    assert (control.key, control.weights) == ("qwen25vl7b+random", "random")
    assert (control.source, control.revision, control.parameters) == (real.source, real.revision, real.parameters)
    assert len(resolve_models(["qwen25vl7b", request_text])) == 2
    with pytest.raises(UsageError, match=r"'qwen25vl7b\+random' comes twice"):
        resolve_models([request_text, "qwen25vl7b+random"])


@pytest.mark.parametrize("request_text", ["tiny+random={}", "tiny={}+random"])
def test_random_weights_need_no_weights(folder: Path, request_text: str) -> None:
    (folder / "model.safetensors").unlink()
    (control,) = resolve_models([request_text.format(folder)])
    assert (control.key, control.weights, control.source) == ("tiny+random", "random", str(folder))
    with pytest.raises(UsageError, match="no weights as"):
        resolve_models([f"tiny={folder}"])


def test_a_model_without_weights_has_none_to_draw() -> None:
    with pytest.raises(UsageError, match="motionenergy has no weights to draw at random"):
        resolve_models(["motionenergy+random"])


def test_a_revision_reaches_hub_models_alone(folder: Path) -> None:
    hub, local, low = resolve_models(["qwen25vl7b", f"tiny={folder}", "motionenergy"], revision="abc")
    assert (hub.revision, local.revision, low.revision) == ("abc", None, None)


@pytest.mark.parametrize(
    ("request_text", "message"),
    [
        ("nothing", "no model 'nothing'; choose from qwen25vl7b, .*motionenergy, melspectrogram"),
        ("nothing+random", "no model 'nothing'"),
        ("x+y=/tmp", r"label 'x\+y'"),
        ("/tmp/----", "no model '/tmp/----'"),
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
    with pytest.raises(UsageError, match=r"model_type 'llava', which tells no family.*qwen2_5_vl"):
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
    with pytest.raises(UsageError, match=r"no family 'qwen'; choose from .*melspectrogram, motionenergy"):
        load_family("qwen")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_family("bids_mllm.absent:FAMILY")
    with pytest.raises(UsageError, match="is not a Family"):
        load_family("bids_mllm.features.catalogue:PLUGIN_GROUP")


def test_a_plugin_comes_through_the_same_door(plugin: Path) -> None:
    (spec,) = resolve_models(["rival1"], sloppy=True)
    assert spec.parameters == {"fps": 1}
    assert load_family(spec.family).name == "rival"


def test_a_hub_id_of_a_plugins_family(plugin: Path) -> None:
    (spec,) = resolve_models(["owner/name"], family="rival_models:FAMILY")
    assert (spec.family, spec.media, spec.kind) == ("rival_models:FAMILY", "video", "low-level")


def test_a_folder_for_a_plugins_key(plugin: Path, folder: Path) -> None:
    plugin.write_text(plugin.read_text().replace("'media': 'video',", "'media': 'video', 'source': 'owner/rival',"))
    (folder / "config.json").write_text('{"model_type": "rival"}')
    (spec,) = resolve_models([f"rival1={folder}"])
    assert (spec.family, spec.source) == ("rival_models:FAMILY", str(folder))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("MODELS = {'motionenergy': {'family': 'a:b', 'media': 'video'}}", "registered twice"),
        ("MODELS = {'x': {'family': 'a:b'}}", "no field 'media'"),
        ("MODELS = {'x': {'family': 'a:b', 'media': 'video', 'weights': 1}}", "unknown field 'weights'"),
        ("MODELS = {'x': {'family': 'a:b', 'media': 'film'}}", "media 'film', which is none of video, audio, both"),
        ("MODELS = {'x': {'family': 'a:b', 'media': 'video', 'dtype': 'int8'}}", "dtype 'int8', which is none of"),
        ("MODELS = {'x_y': {'family': 'a:b', 'media': 'video'}}", "label 'x_y'"),
        ("MODELS = 3", "not a mapping"),
        ("OTHER = 3", "cannot be loaded"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named(plugin: Path, models: str, message: str) -> None:
    plugin.write_text(models + "\n")
    with pytest.raises(UsageError, match=message):
        load_registry()
