"""Encoders without instructions against their own classes, parametrised over the families."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bids_mllm.exceptions import CheckpointError, StimulusError, UsageError
from bids_mllm.features.extractor import Family, ReadOut
from bids_mllm.records import ClipMedia, Condition, ModelSpec
from tests.features.models.encoder_checkpoints import ENCODERS, TinyEncoder

STIMULUS = Condition("stimulus")
READOUT = ReadOut(window=1.49, poolings=(), instructions=())
needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="the real processors need torchvision")


@pytest.fixture(scope="module", params=ENCODERS, ids=lambda encoder: encoder.name)
def encoder(request: pytest.FixtureRequest) -> TinyEncoder:
    pytest.importorskip(request.param.needs)
    return request.param


@pytest.fixture
def clips_for(make_clips: Any) -> Callable[..., list[ClipMedia]]:
    """Clips as a model asks for them: with sound for one that hears."""

    def make(encoder: TinyEncoder, n_clips: int, **values: Any) -> list[ClipMedia]:
        clips = make_clips(n_clips, **{"n_frames": encoder.n_frames, **values})
        if not encoder.sound:
            return clips
        rng, rate = np.random.default_rng(values.get("seed", 0)), encoder.sound["sampling_rate"]
        sounds = rng.uniform(-1, 1, (n_clips, round(READOUT.window * rate))).astype(np.float32)
        return [replace(clip, audio=sound, sampling_rate=rate) for clip, sound in zip(clips, sounds, strict=True)]

    return make


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TinyEncoder], Path]:
    made: dict[str, Path] = {}

    def folder(encoder: TinyEncoder) -> Path:
        if encoder.name not in made:
            made[encoder.name] = encoder.save(tmp_path_factory.mktemp("encoders") / encoder.name)
        return made[encoder.name]

    return folder


@pytest.fixture(scope="module")
def folder(encoder: TinyEncoder, folders: Callable[[TinyEncoder], Path]) -> Path:
    return folders(encoder)


def family_of(encoder: TinyEncoder) -> Family:
    return import_module(f"bids_mllm.features.models.{encoder.family}").FAMILY


def spec_of(encoder: TinyEncoder, folder: Path, **values: Any) -> ModelSpec:
    values = {"parameters": encoder.parameters, **values}
    return ModelSpec(encoder.family, encoder.family, "video", source=str(folder), kind="unimodal video", **values)


def features_of(encoder: TinyEncoder, folder: Path, clips: Any, *, seed: int = 0, **values: Any) -> np.ndarray:
    readout = replace(READOUT, seed=seed)
    extractor = family_of(encoder).load(spec_of(encoder, folder, **values), readout, "cpu")
    extracted = extractor.extract(clips)
    extractor.close()
    assert extracted.texts == {}
    assert list(extracted.features) == [STIMULUS]
    return extracted.features[STIMULUS]


@needs_torchvision
def test_every_layer_is_what_the_real_class_gives(encoder: TinyEncoder, folder: Path, clips_for: Any) -> None:
    clips = clips_for(encoder, 2, size=(45, 71)) + clips_for(encoder, 1, seed=1)
    features = features_of(encoder, folder, clips)
    plan = family_of(encoder).plan(spec_of(encoder, folder), READOUT)
    assert features.shape == (3, plan.n_layers, plan.width)
    assert features.dtype == np.float32
    for clip, rows in zip(clips, features, strict=True):
        expected = encoder.expected(folder, encoder.inputs(folder, clip))
        assert len(expected) == plan.n_layers
        for row, layer in zip(rows, expected, strict=True):
            np.testing.assert_allclose(row, layer.numpy(), rtol=0, atol=1e-5 * float(layer.abs().max()))


def test_a_batch_is_its_clips_one_by_one_in_their_order(encoder: TinyEncoder, folder: Path, clips_for: Any) -> None:
    wide = clips_for(encoder, 3, size=(40, 66))
    tall = clips_for(encoder, 2, size=(66, 40), seed=1)
    clips = [wide[0], tall[0], wide[1], tall[1], wide[2]]
    together = features_of(encoder, folder, clips)
    alone = np.concatenate([features_of(encoder, folder, [clip]) for clip in clips])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5 * np.abs(alone).max())
    assert len({row.tobytes() for row in together.reshape(len(clips), -1)}) == len(clips)


def test_layers_and_clips_differ(encoder: TinyEncoder, folder: Path, clips_for: Any) -> None:
    features = features_of(encoder, folder, clips_for(encoder, 2))
    assert np.isfinite(features).all()
    assert (np.abs(features[0] - features[1]).max(axis=-1) > 1e-4).all()
    assert (np.abs(np.diff(features, axis=1)).max(axis=-1) > 1e-4).all()


def test_the_plan_says_what_comes(encoder: TinyEncoder, folder: Path) -> None:
    plan = family_of(encoder).plan(spec_of(encoder, folder), READOUT)
    assert plan.conditions == (STIMULUS,)
    assert plan.request.media == ("both" if encoder.sound else "video")
    assert plan.request.sampling_rate == encoder.sound.get("sampling_rate", 0)
    assert plan.request.n_frames == encoder.n_frames
    assert json.loads(json.dumps(plan.identity)) == plan.identity
    assert plan.identity["frames"]["n_frames"] == encoder.n_frames
    assert plan.batch_size >= 1
    extra = family_of(encoder).plan(replace(spec_of(encoder, folder), dtype="bfloat16"), READOUT).cost
    assert plan.cost is not None
    assert extra is not None
    assert plan.cost.weight_bytes == 2 * extra.weight_bytes
    assert plan.cost.clip_bytes == 2 * extra.clip_bytes > 0
    assert plan.cost.flops == extra.flops > 0


def test_the_costs_count_the_tower_that_runs(encoder: TinyEncoder, folder: Path, clips_for: Any) -> None:
    """Operations by torch's own counter: two for each weight and token, more or less."""
    from torch.utils.flop_counter import FlopCounterMode

    family = family_of(encoder)
    plan = family.plan(spec_of(encoder, folder), READOUT)
    extractor = family.load(spec_of(encoder, folder), READOUT, "cpu")
    with FlopCounterMode(display=False) as counter:
        extractor.extract(clips_for(encoder, 1))
    assert plan.cost is not None
    assert 0.5 < plan.cost.flops / counter.get_total_flops() < 2


def test_no_instruction_or_pooling_changes_the_plan(encoder: TinyEncoder, folder: Path, make_readout: Any) -> None:
    family = family_of(encoder)
    asked = family.plan(spec_of(encoder, folder), make_readout("generated", "last", "media"))
    assert asked == family.plan(spec_of(encoder, folder), READOUT)


def test_the_identity_changes_with_what_changes_a_number(
    encoder: TinyEncoder, folder: Path, tmp_path: Path, clips_for: Any
) -> None:
    family = family_of(encoder)

    def identity(folder: Path = folder, seed: int = 0, **values: Any) -> str:
        plan = family.plan(spec_of(encoder, folder, **values), replace(READOUT, seed=seed))
        return json.dumps(plan.identity, sort_keys=True)

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert identity(copy) == identity()
    # The seed draws only random weights.
    assert identity(seed=1) == identity()
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    encoder.write(changed, {**encoder.file, "image_std": [0.3, 0.3, 0.3]})
    weights = load_file(copy / "model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] + 1}, copy / "model.safetensors", metadata={"format": "pt"})
    identities = {
        identity(),
        identity(copy),
        identity(changed),
        identity(dtype="bfloat16"),
        identity(weights="random"),
        identity(weights="random", seed=1),
    }
    assert len(identities) == 6


def test_random_weights_are_a_control(encoder: TinyEncoder, folder: Path, clips_for: Any) -> None:
    clips = clips_for(encoder, 2)
    state = torch.random.get_rng_state()
    control = features_of(encoder, folder, clips, weights="random")
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(control, features_of(encoder, folder, clips, weights="random"))
    other = features_of(encoder, folder, clips, weights="random", seed=1)
    trained = features_of(encoder, folder, clips)
    assert control.shape == trained.shape
    for values in (other, trained):
        assert (np.abs(control - values).max(axis=(0, 2)) > 1e-3).all()


def test_half_precision_is_close(encoder: TinyEncoder, folder: Path, clips_for: Any) -> None:
    clips = clips_for(encoder, 1)
    full, half = features_of(encoder, folder, clips), features_of(encoder, folder, clips, dtype="bfloat16")
    assert half.dtype == np.float32
    difference = np.linalg.norm(half - full, axis=-1) / np.linalg.norm(full, axis=-1)
    assert (difference < 0.05).all()
    assert (difference > 0).any()


def test_a_checkpoint_of_another_family(encoder: TinyEncoder, folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    message = r"config\.json has model_type 'gpt2', but this family of models needs '"
    for call in (family_of(encoder).plan, lambda spec, readout: family_of(encoder).load(spec, readout, "cpu")):
        with pytest.raises(CheckpointError, match=message):
            call(spec_of(encoder, copy), READOUT)


def test_a_missing_weight_is_named_and_a_further_one_is_let_through(
    encoder: TinyEncoder, folder: Path, tmp_path: Path, clips_for: Any
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    further = {**weights, "another_head.weight": torch.zeros(2, 2)}
    save_file(further, copy / "model.safetensors", metadata={"format": "pt"})
    clips = clips_for(encoder, 1)
    np.testing.assert_array_equal(features_of(encoder, copy, clips), features_of(encoder, folder, clips))
    tower = [name for name in weights if "text_model" not in name and "decoder" not in name]
    missing = next(name for name in tower if "patch_embed" in name and name.endswith(("weight", "bias")))
    save_file({k: v for k, v in weights.items() if k != missing}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights \(first: .*patch_embed"):
        features_of(encoder, copy, clips)


def test_frames_that_are_missing(encoder: TinyEncoder, folder: Path, clips_for: Any) -> None:
    clips = clips_for(encoder, 1, n_frames=encoder.n_frames + 1)
    with pytest.raises(StimulusError, match=rf"has {encoder.n_frames + 1} of the {encoder.n_frames} frames"):
        features_of(encoder, folder, clips)
    with pytest.raises(StimulusError, match=r"Clip 0 of film\.mp4 has 0 of the"):
        features_of(encoder, folder, [replace(clips[0], frames=None)])


def test_what_a_record_may_not_say(encoder: TinyEncoder, folder: Path) -> None:
    plan = family_of(encoder).plan
    with pytest.raises(UsageError, match="unknown parameter 'max_fps'"):
        plan(spec_of(encoder, folder, parameters={"max_fps": 4}), READOUT)
    with pytest.raises(UsageError, match="has dtype 'int8'; choose from"):
        plan(spec_of(encoder, folder, dtype="int8"), READOUT)
    if "n_frames" not in encoder.parameters and encoder.family not in ("vit", "clip", "vjepa2"):
        with pytest.raises(UsageError, match="unknown parameter 'n_frames'"):
            plan(spec_of(encoder, folder, parameters={"n_frames": 2}), READOUT)
        return
    for wrong in (0, -2, 2.0, "4", True):
        with pytest.raises(UsageError, match="has n_frames"):
            plan(spec_of(encoder, folder, parameters={"n_frames": wrong}), READOUT)


def test_a_config_with_a_broken_size(encoder: TinyEncoder, folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    sizes = config.get("audio_video_config", config.get("vision_config", config))
    for wrong in (0, "three", None, True):
        sizes["num_hidden_layers"] = wrong
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"config\.json has .* as .*num_hidden_layers"):
            family_of(encoder).plan(spec_of(encoder, copy), READOUT)


def test_planning_loads_no_weights(encoder: TinyEncoder, folder: Path) -> None:
    code = (
        f"import sys; from bids_mllm.features.models.{encoder.family} import FAMILY; "
        "from bids_mllm.features.extractor import ReadOut; from bids_mllm.records import ModelSpec; "
        f"spec = ModelSpec('m', 'm', 'video', source={str(folder)!r}, parameters={encoder.parameters!r}); "
        "FAMILY.plan(spec, ReadOut(1.0, (), ())); sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def copy_of(folders: Callable[[TinyEncoder], Path], tmp_path: Path) -> Callable[[str], tuple[TinyEncoder, Path]]:
    def copy(name: str) -> tuple[TinyEncoder, Path]:
        encoder = next(encoder for encoder in ENCODERS if encoder.name == name)
        return encoder, Path(shutil.copytree(folders(encoder), tmp_path / name))

    return copy


Copy = Callable[[str], tuple[TinyEncoder, Path]]


def test_an_odd_number_of_frames_for_tokens_of_two(copy_of: Copy) -> None:
    encoder, folder = copy_of("vjepa2")
    with pytest.raises(UsageError, match="has n_frames 5, but a whole number above 0 that 2 divides"):
        family_of(encoder).plan(spec_of(encoder, folder, parameters={"n_frames": 5}), READOUT)


@pytest.mark.parametrize("name", ["videomae-tuned", "vivit", "timesformer", "vjepa2", "vit", "clip", "xclip"])
def test_frames_of_another_side_than_the_model_takes(copy_of: Copy, name: str) -> None:
    encoder, folder = copy_of(name)
    file = {**encoder.file, "size": 64, "crop_size": 64}
    (folder / "preprocessor_config.json").write_text(json.dumps(file))
    with pytest.raises(CheckpointError, match=r"makes frames of 64 x 64 pixels, but .* takes 32 x 32"):
        family_of(encoder).plan(spec_of(encoder, folder), READOUT)


def test_the_processor_that_a_file_names(copy_of: Copy) -> None:
    """A DINOv2 whose file names the processor of ViT, with that one's defaults."""
    encoder, folder = copy_of("dinov2")
    file = {"image_processor_type": "ViTImageProcessorFast", "size": 42}
    (folder / "preprocessor_config.json").write_text(json.dumps(file))
    frames = family_of(encoder).plan(spec_of(encoder, folder), READOUT).identity["frames"]
    assert (frames["size"], frames["crop"], frames["resample"]) == ([42, 42], None, "bilinear")


@pytest.mark.parametrize(
    ("name", "section"), [("vjepa2", "video_processor"), ("clip", "image_processor"), ("xclip", "image_processor")]
)
def test_settings_nested_in_the_file_of_the_whole_processor(copy_of: Copy, name: str, section: str) -> None:
    encoder, folder = copy_of(name)
    before = family_of(encoder).plan(spec_of(encoder, folder), READOUT).identity["frames"]
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({section: encoder.file}))
    assert family_of(encoder).plan(spec_of(encoder, folder), READOUT).identity["frames"] == before
    (folder / "processor_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"has none of processor_config.json with {section}, and .*json"):
        family_of(encoder).plan(spec_of(encoder, folder), READOUT)


def test_a_video_file_of_its_own_comes_first(copy_of: Copy) -> None:
    encoder, folder = copy_of("vjepa2")
    file = {"crop_size": 32, "image_mean": [0.1, 0.2, 0.3]}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(file))
    frames = family_of(encoder).plan(spec_of(encoder, folder), READOUT).identity["frames"]
    assert frames["mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("wrong", [3, [2, 16], [2, 16, 0], ["a", 16, 16]])
def test_a_broken_tubelet(copy_of: Copy, wrong: Any) -> None:
    encoder, folder = copy_of("vivit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tubelet_size": wrong}))
    with pytest.raises(CheckpointError, match="as tubelet_size, but frames, rows and columns are needed"):
        family_of(encoder).plan(spec_of(encoder, folder), READOUT)


def test_sizes_that_a_file_leaves_out_are_those_of_the_class(copy_of: Copy) -> None:
    """A newer save of CLIP writes of its vision tower only what differs from the class."""
    encoder, folder = copy_of("clip")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vision_config": {"image_size": 32}}))
    plan = family_of(encoder).plan(spec_of(encoder, folder), READOUT)
    assert (plan.n_layers, plan.width) == (13, 768)


def test_a_torchvision_that_does_not_fit_torch(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, folder = copy_of("vit")
    monkeypatch.setitem(sys.modules, "bids_mllm.features.models.encoders_extractor", None)
    with pytest.raises(CheckpointError, match=r"cannot be imported .*install a torchvision that matches torch"):
        family_of(encoder).load(spec_of(encoder, folder), READOUT, "cpu")


@pytest.fixture
def peav(folders: Callable[[TinyEncoder], Path], copy_of: Copy) -> tuple[TinyEncoder, Path]:
    pytest.importorskip("timm")
    return copy_of("peav")


def test_a_window_of_whole_hops_and_one_of_less_than_a_hop(peav: tuple[TinyEncoder, Path], clips_for: Any) -> None:
    from bids_mllm.features.models.peav import whole_hops

    samples = np.arange(5, dtype=np.float32)
    assert whole_hops(samples, 5) is samples
    assert whole_hops(samples, 4).tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    encoder, folder = peav
    clip = clips_for(encoder, 1)[0]
    assert np.isfinite(features_of(encoder, folder, [replace(clip, audio=clip.audio[:9])])).all()


def test_both_media_count(peav: tuple[TinyEncoder, Path], clips_for: Any) -> None:
    encoder, folder = peav
    first, second = clips_for(encoder, 2)
    mixed = [first, replace(first, audio=second.audio), replace(first, frames=second.frames)]
    features = features_of(encoder, folder, mixed)
    assert (np.abs(features[1] - features[0]).max(axis=-1) > 1e-4).all()
    assert (np.abs(features[2] - features[0]).max(axis=-1) > 1e-4).all()


def test_a_feature_extractor_of_another_hop(peav: tuple[TinyEncoder, Path]) -> None:
    encoder, folder = peav
    replace(encoder, sound={**encoder.sound, "hop_length": 32}).write(folder, encoder.file)
    with pytest.raises(CheckpointError, match="a hop of 32 samples, but its model makes one token of 16"):
        family_of(encoder).plan(spec_of(encoder, folder), READOUT)


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bids_mllm.features.models import encoders
    from bids_mllm.features.models.peav import FAMILY

    monkeypatch.setattr(encoders, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match="The model m needs the package timm, which is not installed"):
        FAMILY.plan(ModelSpec("m", "peav", "both", source=str(tmp_path)), READOUT)


def test_random_weights_need_no_weights(copy_of: Copy, clips_for: Any) -> None:
    encoder, folder = copy_of("vit")
    before = features_of(encoder, folder, clips_for(encoder, 1), weights="random")
    (folder / "model.safetensors").unlink()
    np.testing.assert_array_equal(features_of(encoder, folder, clips_for(encoder, 1), weights="random"), before)
    plan = family_of(encoder).plan(spec_of(encoder, folder, weights="random"), READOUT)
    assert plan.cost is not None
    assert plan.cost.flops > 0
    assert plan.cost.weight_bytes == 4 * 12 * 3 * 24**2
    with pytest.raises(CheckpointError, match="has no weights as"):
        family_of(encoder).plan(spec_of(encoder, folder), READOUT)


def test_a_clip_without_sound() -> None:
    from bids_mllm.features.models.encoders_extractor import check_media
    from bids_mllm.records import Clip, ClipMedia, MediaRequest

    request = MediaRequest("both", n_frames=1, sampling_rate=16000)
    clip = ClipMedia(Clip("film.mp4", 7, 0.0, 1.0), frames=np.zeros((1, 2, 2, 3), np.uint8))
    sound = np.zeros(3, np.float32)
    for silent in (clip, replace(clip, audio=sound[:0], sampling_rate=16000), replace(clip, audio=sound)):
        with pytest.raises(StimulusError, match=r"Clip 7 of film\.mp4 has no sound at 16000 Hz"):
            check_media(silent, request)
    check_media(replace(clip, audio=sound, sampling_rate=16000), request)
