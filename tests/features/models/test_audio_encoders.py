"""Encoders of sound: every layer against separate calls of the real class, cut by hand to the clip's own tokens."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import audio_checkpoints as tiny
import numpy as np
import pytest
import torch
import transformers
from audio_checkpoints import CASES, LONG, SHORT, TinyAudio

from bids_mllm.exceptions import CheckpointError, StimulusError, UsageError
from bids_mllm.features.extractor import ReadOut
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models.audio_tower import load_feature_extractor, pool_groups
from bids_mllm.features.models.encoders import Found
from bids_mllm.records import Clip, ClipMedia, Condition, ModelSpec

STIMULUS = Condition("stimulus")
NAMES = [case.name for case in CASES]
BY_NAME = {case.name: case for case in CASES}
# One of each family where the variants do not matter.
FAMILIES = ["wav2vec2-large", "hubert-base", "wavlm-large", "ast", "whisper", "clap-fused-pad"]
FIXED = ["ast", "whisper", "clap-unfused-repeatpad", "clap-fused-pad"]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TinyAudio], Path]:
    made: dict[str, Path] = {}

    def get(case: TinyAudio) -> Path:
        if case.name not in made:
            made[case.name] = case.save(tmp_path_factory.mktemp("audio") / case.name)
        return made[case.name]

    return get


def family(case: TinyAudio) -> Any:
    return import_module(f"bids_mllm.features.models.{case.family}").FAMILY


def spec_of(case: TinyAudio, source: Path, **changes: Any) -> ModelSpec:
    return replace(ModelSpec("tiny", case.family, "audio", source=str(source), kind="unimodal audio"), **changes)


def readout(window: float = LONG, seed: int = 0) -> ReadOut:
    return ReadOut(window, ("last", "stimulus"), load_instructions()[:2], seed=seed)


def sound(case: TinyAudio, seconds: float, seed: int) -> np.ndarray:
    """Tones and noise of changing loudness."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * case.sampling_rate)) / case.sampling_rate
    tones = sum(np.sin(2 * np.pi * (pitch * times + rng.random())) for pitch in rng.uniform(80, 6000, 6))
    swell = 0.02 + 0.08 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * times + rng.random()) ** 2
    return (swell * (tones + rng.normal(size=times.size))).astype(np.float32)


def clip_of(case: TinyAudio, samples: np.ndarray, index: int = 0) -> ClipMedia:
    return ClipMedia(Clip("film.mp4", index, 0.0, LONG), audio=samples, sampling_rate=case.sampling_rate)


def loaded(case: TinyAudio, folder: Path, window: float = LONG, seed: int = 0, **changes: Any) -> Any:
    return family(case).load(spec_of(case, folder, **changes), readout(window, seed), "cpu")


def features(extractor: Any, clips: list[ClipMedia]) -> np.ndarray:
    return extractor.extract(clips).features[STIMULUS]


def assert_close(found: np.ndarray, expected: Any) -> None:
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    for layer, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert error < 1e-5, (layer, error)


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_equals_separate_calls_of_the_real_class(name: str, folder_of: Any) -> None:
    case = BY_NAME[name]
    folder, extractor = folder_of(case), loaded(case, folder_of(case))
    for i, seconds in enumerate((LONG, SHORT)):
        samples = sound(case, seconds, i)
        found = features(extractor, [clip_of(case, samples)])
        assert found.dtype == np.float32
        assert found.shape == (1, case.n_layers, case.width)
        assert_close(found[0], case.expected(folder, samples, seconds))


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_mixed_lengths_equal_single_clips(name: str, folder_of: Any) -> None:
    case = BY_NAME[name]
    extractor = loaded(case, folder_of(case))
    clips = [clip_of(case, sound(case, seconds, i), i) for i, seconds in enumerate((LONG, SHORT, LONG))]
    together = features(extractor, clips)
    for clip, found in zip(clips, together, strict=True):
        assert_close(found, features(extractor, [clip])[0])
    assert np.abs(together[0] - together[2]).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_is_what_the_extractor_gives(name: str, folder_of: Any) -> None:
    case = BY_NAME[name]
    plan = family(case).plan(spec_of(case, folder_of(case)), readout())
    assert plan.conditions == (STIMULUS,)
    assert (plan.n_layers, plan.width) == (case.n_layers, case.width)
    assert (plan.request.media, plan.request.sampling_rate) == ("audio", case.sampling_rate)
    assert json.loads(json.dumps(plan.identity)) == plan.identity
    assert plan.cost is not None
    assert min(plan.cost.flops, plan.cost.weight_bytes, plan.cost.clip_bytes) > 0


def first_layer(name: str, folder: Path, change: Callable[[torch.Tensor], None], samples: np.ndarray) -> torch.Tensor:
    """States (n_rows, n_times, width) of the real model's embedding, its time in order, on changed inputs."""
    with torch.no_grad():
        if name == "ast":
            model = tiny.opened(tiny.ASTForAudioClassification, folder).audio_spectrogram_transformer
            extractor = tiny.ASTFeatureExtractor.from_pretrained(folder)
            values = extractor(samples, sampling_rate=16000, return_tensors="pt")["input_values"]
            change(values[0])
            return model(values, output_hidden_states=True).hidden_states[0][0, 2:].reshape(3, 29, -1)
        if name == "whisper":
            model = tiny.opened(tiny.WhisperForConditionalGeneration, folder).model.encoder
            extractor = tiny.WhisperFeatureExtractor.from_pretrained(folder)
            values = extractor(samples, sampling_rate=16000, return_tensors="pt")["input_features"]
            change(values[0].T)
            return model(values, output_hidden_states=True).hidden_states[0]
        inputs = tiny.clap_inputs(folder, samples)
        for mel in inputs["input_features"][0]:
            change(mel)
        layers = tiny.clap_layers(tiny.opened(tiny.ClapModel, folder).audio_model, inputs)
        return layers[0][1].reshape(4, 16, 64, -1).transpose(0, 1).flatten(1, 2)


@pytest.mark.parametrize(
    ("name", "n_frames", "n_columns", "slack"),
    [
        ("ast", 147, 14, 0),
        # The last token's convolutions reach one frame into the padding.
        ("whisper", 149, 75, -1),
        # Bicubic interpolation reaches into the next column where a position lies between frames.
        ("clap-unfused-repeatpad", 894, 228, 1),
        ("clap-fused-pad", 149, 37, 1),
    ],
)
def test_what_the_padding_holds_cannot_reach_the_tokens_that_count(
    name: str, n_frames: int, n_columns: int, slack: int, folder_of: Any
) -> None:
    case = BY_NAME[name]
    samples = sound(case, LONG, 3)

    def noise(frames: torch.Tensor) -> None:
        frames[n_frames:] += torch.randn(frames[n_frames:].shape, generator=torch.Generator().manual_seed(0))

    plain = first_layer(name, folder_of(case), lambda frames: None, samples)
    noisy = first_layer(name, folder_of(case), noise, samples)
    changed = ((plain - noisy).abs().amax(dim=(0, 2)) > 1e-6).numpy()
    clear = n_columns + min(slack, 0)
    assert not changed[:clear].any()
    assert changed[n_columns + max(slack, 0) :].all()


@pytest.mark.parametrize("name", FIXED)
def test_tokens_of_the_padding_have_no_part_in_the_mean(name: str, folder_of: Any) -> None:
    case = BY_NAME[name]
    extractor, samples = loaded(case, folder_of(case)), sound(case, LONG, 4)
    plain = features(extractor, [clip_of(case, samples)])
    n_tokens = {"ast": 89, "whisper": 300}.get(name, 64)
    counted = np.zeros(n_tokens, dtype=bool)
    if name == "ast":
        counted[2:].reshape(3, 29)[:, :14] = True
    elif name == "whisper":
        counted[:75] = True
    else:
        columns = tiny.CLAP_COLUMNS[name.split("-")[-1], LONG][3]
        time = np.arange(32).reshape(4, 1, 8).repeat(2, axis=1)
        counted = (time < columns).reshape(-1)

    def poison(_: Any, __: Any, output: Any) -> Any:
        states = (output[0] if isinstance(output, tuple) else output).clone()
        states[:, ~torch.from_numpy(counted)] = float("nan")
        return (states,) if isinstance(output, tuple) else states

    model = extractor._model
    blocks = model.audio_encoder.layers[-1].blocks if case.family == "clap" else model.layers
    handle = blocks[-1].register_forward_hook(poison)
    again = features(extractor, [clip_of(case, samples)])
    handle.remove()
    np.testing.assert_array_equal(again, plain)


def test_the_mean_leaves_tokens_outside_its_groups_untouched() -> None:
    states = torch.full((2, 5, 3), float("nan"))
    states[:, [0, 2, 3]] = torch.arange(18.0).reshape(2, 3, 3)
    groups = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 1, 0]], dtype=bool)
    found = pool_groups([groups])(states, 0)
    np.testing.assert_array_equal(found[0], [1.5, 2.5, 3.5, 6, 7, 8])
    np.testing.assert_array_equal(found[1], [10.5, 11.5, 12.5, 15, 16, 17])
    with pytest.raises(CheckpointError, match="Layer 0 of the model has 5 tokens, but its configuration says 4"):
        pool_groups([groups[:, :4]])(states, 0)


@pytest.mark.parametrize("name", NAMES)
def test_silence_gives_finite_features(name: str, folder_of: Any) -> None:
    case = BY_NAME[name]
    extractor = loaded(case, folder_of(case))
    silent = np.zeros(round(LONG * case.sampling_rate), dtype=np.float32)
    constant = np.full_like(silent, 0.25)
    found = features(extractor, [clip_of(case, silent), clip_of(case, constant), clip_of(case, sound(case, LONG, 1))])
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[2]).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_windows_of_a_length_that_the_model_cannot_take_are_named(name: str, folder_of: Any) -> None:
    case = BY_NAME[name]
    folder = folder_of(case)
    extractor, least = loaded(case, folder), case.shortest
    shortest = features(extractor, [clip_of(case, sound(case, least / case.sampling_rate, 5))])
    assert np.isfinite(shortest).all()
    with pytest.raises(StimulusError, match=rf"Clip 7 of film.mp4 has {least - 1} samples .* at least {least} \("):
        extractor.extract([clip_of(case, sound(case, (least - 1) / case.sampling_rate, 5), 7)])
    with pytest.raises(UsageError, match=r"A window of 0\.01 s is too short for tiny, which needs at least"):
        family(case).plan(spec_of(case, folder), readout(0.01))
    if case.longest is None:
        return
    whole = sound(case, case.longest, 6)
    assert np.isfinite(features(extractor, [clip_of(case, whole)])).all()
    with pytest.raises(StimulusError, match="at most"):
        extractor.extract([clip_of(case, np.append(whole, whole[:1]))])
    with pytest.raises(UsageError, match=r"A window of 31 s is too long for tiny, which takes at most"):
        family(case).plan(spec_of(case, folder), readout(31.0))


@pytest.mark.parametrize("name", ["ast", "whisper", "clap-fused-pad"])
def test_a_sound_that_fills_the_window_counts_all_tokens(name: str, folder_of: Any) -> None:
    case = BY_NAME[name]
    config = json.loads((folder_of(case) / "config.json").read_text())
    module = import_module(f"bids_mllm.features.models.{case.family}")
    layout = module._layout(Found(folder_of(case), config, spec_of(case, folder_of(case)), LONG))
    samples = round(case.longest * case.sampling_rate)
    for masks in layout.settings.groups(samples):
        assert masks.any(axis=0).sum() == masks.shape[1] - (2 if name == "ast" else 0)
        assert (masks.sum(axis=0) <= 1).all()


def test_clips_without_usable_sound_are_named(folder_of: Any) -> None:
    case = BY_NAME["wav2vec2-base"]
    extractor, samples = loaded(case, folder_of(case)), sound(case, LONG, 0)
    with pytest.raises(StimulusError, match=r"Clip 0 of film\.mp4 has no sound"):
        extractor.extract([replace(clip_of(case, samples), audio=None)])
    with pytest.raises(StimulusError, match="16000 Hz"):
        extractor.extract([replace(clip_of(case, samples), sampling_rate=44100)])
    samples[5] = np.nan
    with pytest.raises(StimulusError, match="not finite"):
        extractor.extract([clip_of(case, samples)])


@pytest.mark.parametrize("name", FAMILIES)
def test_random_weights_come_from_the_seed_alone(name: str, folder_of: Any, tmp_path: Path) -> None:
    case = BY_NAME[name]
    folder, other = folder_of(case), case.save(tmp_path / "other", seed=9)
    clips = [clip_of(case, sound(case, LONG, 0))]
    random = features(loaded(case, folder, weights="random"), clips)
    assert np.isfinite(random).all()
    np.testing.assert_array_equal(features(loaded(case, other, weights="random"), clips), random)
    assert not np.allclose(features(loaded(case, folder, seed=1, weights="random"), clips), random)
    assert not np.allclose(features(loaded(case, folder), clips), random)
    assert not np.allclose(features(loaded(case, other), clips), features(loaded(case, folder), clips))
    trained = family(case).plan(spec_of(case, folder), readout(seed=3))
    assert "weights" not in trained.identity
    (other / "model.safetensors").unlink()
    np.testing.assert_array_equal(features(loaded(case, other, weights="random"), clips), random)
    identity = family(case).plan(spec_of(case, folder, weights="random"), readout(seed=3)).identity
    assert (identity["weights"], identity["seed"]) == ("random", 3)
    assert family(case).plan(spec_of(case, other, weights="random"), readout(seed=3)).identity == identity


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_stays_near_float32(name: str, folder_of: Any) -> None:
    case = BY_NAME[name]
    clips = [clip_of(case, sound(case, LONG, 0))]
    full = features(loaded(case, folder_of(case)), clips)
    half = features(loaded(case, folder_of(case), dtype="bfloat16"), clips)
    assert half.dtype == np.float32
    assert not np.array_equal(half, full)
    assert np.abs(half - full).mean() < 0.05 * np.abs(full).mean()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_identity_changes_with_what_changes_a_number(name: str, folder_of: Any, tmp_path: Path) -> None:
    case = BY_NAME[name]

    def identity(folder: Path, **changes: Any) -> Any:
        return family(case).plan(spec_of(case, folder, **changes), readout()).identity

    base = identity(folder_of(case))
    same = case.save(tmp_path / "same")
    assert identity(same) == base
    assert identity(case.save(tmp_path / "other", seed=1)) != base
    assert identity(same, dtype="bfloat16") != base
    assert ("torchaudio" in base) == (name == "ast")
    path = same / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_value": 0.5}))
    assert identity(same) != base


@pytest.mark.parametrize("name", FAMILIES)
def test_bad_checkpoints_are_named_in_one_sentence(name: str, folder_of: Any, tmp_path: Path) -> None:
    case = BY_NAME[name]
    stranger = BY_NAME["whisper" if case.family != "whisper" else "ast"]
    with pytest.raises(CheckpointError, match="model_type"):
        family(case).plan(spec_of(case, folder_of(stranger)), readout())
    folder = case.save(tmp_path / "bad")
    path = folder / "preprocessor_config.json"
    text = path.read_text()
    path.write_text(text.replace(json.loads(text)["feature_extractor_type"], "EncodecFeatureExtractor"))
    with pytest.raises(CheckpointError, match="is EncodecFeatureExtractor, but this family of models needs"):
        family(case).plan(spec_of(case, folder), readout())
    path.unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        family(case).plan(spec_of(case, folder), readout())
    path.write_text(text)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        family(case).plan(spec_of(case, folder), readout())
    weights.write_bytes(content)
    tiny.rename_weights(folder, lambda key: None if "layer_norm" in key or "layernorm" in key else key)
    with pytest.raises(CheckpointError, match=r"lacks \d+ weights"):
        loaded(case, folder)


def test_settings_that_cannot_be_used_are_named(folder_of: Any, tmp_path: Path) -> None:
    case = BY_NAME["wav2vec2-base"]
    with pytest.raises(UsageError, match="unknown parameter 'layer'"):
        family(case).plan(spec_of(case, folder_of(case), parameters={"layer": 3}), readout())
    with pytest.raises(UsageError, match="dtype 'int8'"):
        family(case).plan(spec_of(case, folder_of(case), dtype="int8"), readout())


@pytest.mark.parametrize(
    ("name", "file", "key", "value", "message"),
    [
        ("ast", "preprocessor_config.json", "max_length", 1024, "a model for 300 spectrogram frames and"),
        ("ast", "preprocessor_config.json", "num_mel_bins", 64, "a model for 36 mel bands and"),
        ("whisper", "preprocessor_config.json", "chunk_length", 30, "a model for 600 spectrogram frames and"),
        ("whisper", "preprocessor_config.json", "feature_size", 80, "a model for 20 mel bands and"),
        ("clap-fused-pad", "preprocessor_config.json", "feature_size", 32, "a model for 64 mel bands and"),
        ("clap-fused-pad", "preprocessor_config.json", "padding", "mirror", "has padding 'mirror'; expected one of"),
        ("clap-fused-pad", "config.json", "audio_config", {"patch_stride": [4, 2]}, "square patches are expected"),
        ("clap-fused-pad", "config.json", "audio_config", {"depths": [1] * 6}, "which 6 stages cannot halve"),
        ("hubert-base", "config.json", "hidden_size", "16", "has hidden_size = '16', but a value like 768"),
        ("hubert-base", "config.json", "num_attention_heads", True, "has num_attention_heads = True"),
    ],
)
def test_files_that_do_not_fit_are_named(
    name: str, file: str, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    case = BY_NAME[name]
    folder = case.save(tmp_path / "odd")
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, key: value}))
    with pytest.raises(CheckpointError, match=message):
        family(case).plan(spec_of(case, folder), readout())


def test_weights_under_the_older_names_of_weight_norm_are_read(folder_of: Any, tmp_path: Path) -> None:
    case = BY_NAME["hubert-large"]
    folder = case.save(tmp_path / "old")
    renamed: list[str] = []

    def old(name: str) -> str:
        for new, ancient in (
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        ):
            if new in name:
                renamed.append(name)
                return name.replace(new, ancient)
        if name.endswith(("weight_g", "weight_v")):
            renamed.append(name)
        return name

    tiny.rename_weights(folder, old)
    assert len(renamed) == 2
    clips = [clip_of(case, sound(case, LONG, 0))]
    np.testing.assert_array_equal(features(loaded(case, folder), clips), features(loaded(case, folder_of(case)), clips))


def test_a_tower_that_was_saved_alone_gives_the_same(folder_of: Any, tmp_path: Path) -> None:
    case = BY_NAME["clap-unfused-repeatpad"]
    model = tiny.opened(tiny.ClapModel, folder_of(case)).audio_model
    folder = tiny.saved(model, tiny.ClapFeatureExtractor.from_pretrained(folder_of(case)), tmp_path / "tower")
    clips = [clip_of(case, sound(case, LONG, 0))]
    np.testing.assert_array_equal(features(loaded(case, folder), clips), features(loaded(case, folder_of(case)), clips))
    plans = [family(case).plan(spec_of(case, place), readout()) for place in (folder, folder_of(case))]
    assert plans[0].cost == plans[1].cost


def test_settings_nested_in_a_processor_file_are_read(folder_of: Any, tmp_path: Path) -> None:
    case = BY_NAME["whisper"]
    folder = case.save(tmp_path / "nested")
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.unlink()
    nested = {"processor_class": "WhisperProcessor", "feature_extractor": settings}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    clips = [clip_of(case, sound(case, LONG, 0))]
    np.testing.assert_array_equal(features(loaded(case, folder), clips), features(loaded(case, folder_of(case)), clips))


def test_clips_do_not_depend_on_the_global_random_state(folder_of: Any) -> None:
    # CLAP's extractor draws which clip of a batch is called longer than the window.
    case = BY_NAME["clap-fused-pad"]
    extractor = loaded(case, folder_of(case))
    clips = [clip_of(case, sound(case, SHORT, i)) for i in range(3)]
    found = [features(extractor, clips) for _ in range(3)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_the_full_size_filter_bank_loads_without_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="At least one mel filter"):
        transformers.ASTFeatureExtractor().save_pretrained(tmp_path)
    extractor = load_feature_extractor(transformers.ASTFeatureExtractor, tmp_path)
    assert extractor.max_length == 1024
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_feature_extractor(transformers.ASTFeatureExtractor, tmp_path)


@pytest.mark.parametrize(
    ("module", "config", "extractor"),
    [
        ("wav2vec2", "Wav2Vec2Config", "Wav2Vec2FeatureExtractor"),
        ("wav2vec2", "HubertConfig", "Wav2Vec2FeatureExtractor"),
        ("wav2vec2", "WavLMConfig", "Wav2Vec2FeatureExtractor"),
        ("audio_spectrogram", "ASTConfig", "ASTFeatureExtractor"),
        ("whisper", "WhisperConfig", "WhisperFeatureExtractor"),
        ("clap", "ClapAudioConfig", "ClapFeatureExtractor"),
    ],
)
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_values_that_a_file_leaves_out_are_those_of_the_real_classes(module: str, config: str, extractor: str) -> None:
    ours = import_module(f"bids_mllm.features.models.{module}")
    theirs = {**getattr(transformers, config)().to_dict()}
    for name, value in ours.CONFIG.items():
        found = theirs[name]
        assert (tuple(found) if isinstance(value, tuple) else found) == value, name
    settings = getattr(transformers, extractor)()
    for name, value in ours.SETTINGS.items():
        assert getattr(settings, name) == value, name


def full_size(tmp_path: Path, config: Any, extractor: Any) -> Path:
    """The small files of a full-size checkpoint beside a file of one weight."""
    config.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    tiny.save_file({"one": np.zeros(1, np.float32)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


LARGE_SPEECH = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm", "audio_spectrogram", "whisper", "clap"])
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_the_estimated_operations_are_those_of_the_full_size_model(name: str, tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    speech = {**LARGE_SPEECH, "do_stable_layer_norm": True, "feat_extract_norm": "layer"}
    makers: dict[str, Any] = {
        "wav2vec2": (transformers.Wav2Vec2Model, transformers.Wav2Vec2Config(**speech), (1, 23840)),
        "wavlm": (transformers.WavLMModel, transformers.WavLMConfig(**speech), (1, 23840)),
        "audio_spectrogram": (transformers.ASTModel, transformers.ASTConfig(), (1, 1024, 128)),
        "whisper": (
            WhisperEncoder,
            transformers.WhisperConfig(d_model=512, encoder_ffn_dim=2048, encoder_attention_heads=8),
            (1, 80, 3000),
        ),
        "clap": (transformers.ClapAudioModel, transformers.ClapAudioConfig(), (1, 1, 1001, 64)),
    }
    model_class, config, shape = makers[name]
    extractors = {
        "audio_spectrogram": transformers.ASTFeatureExtractor,
        "whisper": transformers.WhisperFeatureExtractor,
        "clap": transformers.ClapFeatureExtractor,
    }
    attention = "eager" if name in ("wavlm", "clap") else "sdpa"
    with torch.device("meta"), torch.no_grad():
        model = model_class._from_config(config, attn_implementation=attention).eval()
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.zeros(shape))
    saved_config = transformers.ClapConfig(audio_config=config) if name == "clap" else config
    extractor = extractors.get(name, transformers.Wav2Vec2FeatureExtractor)()
    folder = full_size(tmp_path, saved_config, extractor)
    spec = ModelSpec("tiny", name, "audio", source=str(folder))
    plan = import_module(f"bids_mllm.features.models.{name}").FAMILY.plan(spec, readout())
    assert plan.cost is not None
    assert plan.cost.flops == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_estimated_memory_of_the_weights_is_that_of_the_part_that_runs(name: str, folder_of: Any) -> None:
    case = BY_NAME[name]
    cost = family(case).plan(spec_of(case, folder_of(case)), readout()).cost
    model = loaded(case, folder_of(case))._model
    assert cost.weight_bytes == pytest.approx(sum(held.nbytes for held in model.state_dict().values()), rel=0.05)


def test_planning_imports_no_torch(folder_of: Any) -> None:
    cases = [BY_NAME[name] for name in FAMILIES]
    lines = [
        "import sys",
        "from importlib import import_module",
        "from bids_mllm.features.extractor import ReadOut",
        "from bids_mllm.records import ModelSpec",
    ]
    for case in cases:
        lines.append(
            f"import_module('bids_mllm.features.models.{case.family}').FAMILY.plan("
            f"ModelSpec('tiny', '{case.family}', 'audio', source={str(folder_of(case))!r}), ReadOut(1.49, (), ()))"
        )
    lines.append("assert not {'torch', 'transformers'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
