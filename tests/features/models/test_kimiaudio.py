"""Kimi-Audio as far as it can be tested without CUDA and its authors' code: planning, needs, prompts, reading out.

The checkpoint's own code cannot be had here. Where the code that comes with a checkpoint, or a model that takes two
rows of tokens, is needed, a small stand-in written below takes its place.
"""

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bids_mllm.exceptions import CheckpointError, StimulusError, UsageError
from bids_mllm.features.extractor import ReadOut
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models import kimiaudio, kimiaudio_extractor
from bids_mllm.features.models.kimiaudio import FAMILY, build_streams
from bids_mllm.features.models.kimiaudio_extractor import KimiExtractor
from bids_mllm.features.registry import resolve_models
from bids_mllm.records import Clip, ClipMedia, Condition, ModelSpec

TOKENS = SimpleNamespace(
    kimia_user_msg_start=40, kimia_assistant_msg_start=41, kimia_text_blank=42, kimia_speech_ct_id=43, media_begin=44,
    media_end=45, msg_end=46, kimia_text_eos=47,
)  # fmt: skip
WIDTH, N_LAYERS, VOCABULARY = 8, 3, 60
READOUT = ReadOut(1.49, ("generated", "last", "instruction", "media"), load_instructions(media="audio")[:2], 4)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The files of a checkpoint, with code that leaves a mark when it is run."""
    path = tmp_path / "kimi"
    (path / "whisper-large-v3").mkdir(parents=True)
    (path / "whisper-large-v3/config.json").write_text("{}")
    mark = tmp_path / "ran"
    (path / "modeling_moonshot_kimia.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    config = {
        "architectures": ["MoonshotKimiaForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_moonshot_kimia.MoonshotKimiaForCausalLM"},
        "hidden_size": WIDTH, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2, "model_type": "qwen2",
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    save_file({"model.embed_tokens.weight": torch.zeros(VOCABULARY, WIDTH)}, path / "model.safetensors")
    return path


def spec_of(folder: Path, **parameters: object) -> ModelSpec:
    return ModelSpec("kimi", "kimiaudio", "audio", str(folder), kind="instruction-tuned audio", parameters=parameters)


def test_the_plan_runs_no_code_and_needs_nothing(folder, tmp_path):
    plan = FAMILY.plan(spec_of(folder), READOUT)
    assert (plan.n_layers, plan.width) == (N_LAYERS + 1, WIDTH)
    assert plan.request.sampling_rate == 16000
    assert len(plan.conditions) == 7
    assert json.loads(json.dumps(dict(plan.identity))) == plan.identity
    assert not (tmp_path / "ran").exists()


def test_the_identity_changes_with_what_changes_a_number(folder, tmp_path):
    base = FAMILY.plan(spec_of(folder), READOUT).identity
    assert FAMILY.plan(spec_of(folder, trust_remote_code=True), READOUT).identity == base
    assert FAMILY.plan(replace(spec_of(folder), dtype="bfloat16"), READOUT).identity != base
    for name in ("modeling_moonshot_kimia.py", "config.json", "whisper-large-v3/config.json"):
        other = Path(shutil.copytree(folder, tmp_path / name.replace("/", "-")))
        content = (other / name).read_text()
        (other / name).write_text(content.replace("{", "{ ", 1) if name.endswith("json") else content + "# more\n")
        assert FAMILY.plan(spec_of(other), READOUT).identity != base
    speech = folder / "glm-4-voice-tokenizer"
    speech.mkdir()
    assert FAMILY.plan(spec_of(folder), READOUT).identity != base


def test_everything_that_is_missing_is_named_in_one_sentence(folder, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError) as raised:
        FAMILY.load(spec_of(folder), READOUT, "cpu")
    sentence = str(raised.value)
    for need in ("--trust-remote-code", "a CUDA device", "kimia_infer", "flash_attn", "THUDM/glm-4-voice-tokenizer"):
        assert need in sentence
    assert sentence.count(".") - sentence.count("--") <= 3
    assert "whisper" not in sentence
    with pytest.raises(CheckpointError) as raised:
        FAMILY.load(spec_of(folder, trust_remote_code=True), READOUT, "cuda")
    assert "--trust-remote-code" not in str(raised.value)
    assert "CUDA device" not in str(raised.value)
    assert not (tmp_path / "ran").exists()
    shutil.rmtree(folder / "whisper-large-v3")
    with pytest.raises(CheckpointError, match="the folder whisper-large-v3 of the checkpoint"):
        FAMILY.load(spec_of(folder), READOUT, "cpu")


def test_code_is_never_run_without_trust(folder, tmp_path, monkeypatch):
    """With all packages there, the code of the checkpoint runs with the flag and not without."""
    (folder / "glm-4-voice-tokenizer").mkdir()
    monkeypatch.setattr(kimiaudio, "PACKAGES", ())
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    reached = []
    monkeypatch.setattr(kimiaudio_extractor, "load_kimi", lambda *given: reached.append(given) or "extractor")
    with pytest.raises(CheckpointError, match="needs --trust-remote-code"):
        FAMILY.load(spec_of(folder), READOUT, "cuda")
    assert not reached
    assert not (tmp_path / "ran").exists()
    assert FAMILY.load(spec_of(folder, trust_remote_code=True), READOUT, "cuda") == "extractor"
    assert len(reached) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"parameters": {"frames": 3}}, "unknown parameter 'frames'"),
        ({"parameters": {"order": "media-first"}}, "takes instruction-first"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"weights": "random"}, "gives no random weights"),
    ],
)
def test_records_that_cannot_be_used(folder, changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        FAMILY.plan(replace(spec_of(folder), **changes), READOUT)


def test_another_architecture_is_named(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForCausalLM"]}))
    with pytest.raises(CheckpointError, match="needs MoonshotKimiaForCausalLM"):
        FAMILY.plan(spec_of(folder), READOUT)


def test_a_folder_tells_its_family(folder):
    (spec,) = resolve_models([f"kimi={folder}"])
    assert (spec.family, spec.media, spec.instructed) == ("kimiaudio", "audio", True)


def test_the_prompt_is_two_rows_of_equal_length():
    streams = build_streams(TOKENS, [7, 8], [50, 51, 52])
    assert streams.audio == (40, 42, 42, 44, 50, 51, 52, 45, 43, 46, 41)
    assert streams.text == (42, 7, 8, 42, 42, 42, 42, 42, 42, 42, 42)
    assert [n for n, on in enumerate(streams.continuous) if on] == [4, 5, 6]
    assert (streams.instruction, streams.media) == ((1, 2), (4, 5, 6))
    silent = build_streams(TOKENS, [], [50])
    assert silent.audio == (40, 44, 50, 45, 43, 46, 41)
    assert silent.instruction == ()


class Layer(nn.Module):
    """A causal mean over what came before, so that order and past matter, with the past as its cache."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden, past):
        seen = hidden if past is None else torch.cat((past, hidden), dim=1)
        means = seen.cumsum(1) / torch.arange(1, seen.shape[1] + 1)[:, None]
        return (hidden + torch.tanh(self.linear(means[:, -hidden.shape[1] :])), seen)


class StandIn(nn.Module):
    """Two rows of tokens added up, continuous features where they belong, a decoder with layers and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.model.layers = nn.ModuleList([Layer() for _ in range(N_LAYERS)])
        self.model.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(
        self, input_ids, text_input_ids, position_ids, past_key_values, return_dict, whisper_input_feature=None,
        is_continuous_mask=None,
    ):  # fmt: skip
        hidden = self.model.embed(input_ids) + self.model.embed(text_input_ids) + 0.1 * position_ids[..., None]
        if whisper_input_feature is not None:
            hidden = hidden.clone()
            hidden[is_continuous_mask] += whisper_input_feature[0][0]
        states, caches = [hidden], []
        for number, layer in enumerate(self.model.layers):
            hidden, cache = layer(hidden, None if past_key_values is None else past_key_values[number])
            states.append(hidden)
            caches.append(cache)
        states[-1] = self.model.norm(hidden)
        self.states = states
        logits = self.head(states[-1])
        return torch.zeros_like(logits), logits, caches


@pytest.fixture
def extractor():
    torch.manual_seed(3)
    model = StandIn().eval()
    tokenizer = SimpleNamespace(
        encode=lambda text, bos, eos: [ord(letter) % 30 for letter in text[:6]],
        decode=lambda tokens: " ".join(map(str, tokens)),
    )

    def voice(clip):
        sound = torch.from_numpy(kimiaudio_extractor.sound_of(clip)[: 3 * WIDTH])
        return [50, 51, 52], sound.reshape(1, 3, WIDTH)

    conditions = FAMILY_CONDITIONS
    return KimiExtractor(model, tokenizer, TOKENS, voice, READOUT, conditions)


FAMILY_CONDITIONS = (
    *(Condition(pooling, i.key) for pooling in ("generated", "last", "instruction") for i in READOUT.instructions),
    Condition("media"),
)


def clip_of(seed: int) -> ClipMedia:
    sound = np.random.default_rng(seed).normal(size=23840).astype(np.float32)
    return ClipMedia(Clip("a.wav", seed, 0.0, 1.49), audio=sound, sampling_rate=16000)


def test_closing_frees_the_model_and_those_that_read_the_sound():
    """The models that turn a sound into tokens are on the device too."""
    model, reader = StandIn(), nn.Linear(2, 2)
    readers = weakref.ref(reader)
    extractor = KimiExtractor(model, None, TOKENS, lambda clip, reader=reader: None, READOUT, FAMILY_CONDITIONS)
    del reader
    extractor.close()
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert readers() is None


def test_states_and_answers_equal_a_plain_run_of_the_whole_rows(extractor):
    """Without a cache: the whole rows run anew for every token, all states read from one call."""
    clips = [clip_of(0), clip_of(1)]
    given = extractor.extract(clips)
    model = extractor._model
    for row, clip in enumerate(clips):
        speech, features = extractor._voice(clip)
        for instruction in READOUT.instructions:
            streams = build_streams(TOKENS, extractor._encode(instruction.text), speech)
            audio, text = list(streams.audio), list(streams.text)
            states, tokens = [], []
            for _ in range(READOUT.max_new_tokens + 1):
                mask = torch.tensor([[n in streams.media for n in range(len(audio))]])
                with torch.no_grad():
                    _, logits, _ = model(
                        torch.tensor([audio]), torch.tensor([text]), torch.arange(len(audio))[None], None, False,
                        [features], mask,
                    )  # fmt: skip
                states = torch.stack(model.states, dim=2)[0]
                tokens.append(int(logits[0, -1].argmax()))
                audio.append(TOKENS.kimia_text_blank)
                text.append(tokens[-1])
            n = len(streams.audio)
            key = instruction.key
            expected = {
                "last": states[n - 1],
                "instruction": states[list(streams.instruction)[3:]].mean(0),
                "generated": states[n : n + READOUT.max_new_tokens].mean(0),
            }
            assert TOKENS.kimia_text_eos not in tokens
            for pooling, values in expected.items():
                found = given.features[Condition(pooling, key)][row]
                np.testing.assert_allclose(found, values.numpy(), rtol=1e-5, atol=1e-6)
            assert given.texts[Condition("generated", key)][row] == " ".join(map(str, tokens[: READOUT.max_new_tokens]))
        assert given.features[Condition("media")][row].shape == (N_LAYERS + 1, WIDTH)
    assert not np.allclose(given.features[Condition("media")][0], given.features[Condition("media")][1])


def test_an_answer_ends_at_its_end_token(extractor):
    with torch.no_grad():
        extractor._model.head.bias[TOKENS.kimia_text_eos] = 100.0
    given = extractor.extract([clip_of(0)])
    assert given.texts[FAMILY_CONDITIONS[0]] == ("",)
    assert np.isfinite(given.features[FAMILY_CONDITIONS[0]]).all()


def test_sound_of_another_rate_is_refused(extractor):
    with pytest.raises(StimulusError, match="needs 16000 Hz"):
        extractor.extract([replace(clip_of(0), sampling_rate=8000)])
