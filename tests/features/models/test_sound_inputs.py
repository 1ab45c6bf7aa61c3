"""Sound of models that follow instructions: what the real processors make, and their token counts."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bids_mllm.exceptions import CheckpointError, StimulusError
from bids_mllm.features.models.sound_inputs import (
    SoundSettings,
    count_audio_tokens,
    load_sound_extractor,
    read_sound_settings,
    sound_inputs,
)
from bids_mllm.records import Clip, ClipMedia

RATE = 16000
SECONDS = 4
# On some processors the filters' product with more frames adds up in another order: the last of float32's seven digits.
LAST_DIGITS = {"rtol": 0.0, "atol": 1e-6}
# Lengths around the steps of frames (160) and tokens (640), the shortest, a usual window and the longest.
LENGTHS = (321, 480, 481, 640, 641, 960, 961, 11200, 16000, 16001, 23840, SECONDS * RATE)


@pytest.fixture(scope="module")
def qwen2audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bids_mllm.features.models.tiny import TINY_CHECKPOINTS

    return TINY_CHECKPOINTS["qwen2audio"](tmp_path_factory.mktemp("sound") / "qwen2audio", seconds=SECONDS)


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bids_mllm.features.models.tiny import TINY_CHECKPOINTS

    return TINY_CHECKPOINTS["qwen25omni"](tmp_path_factory.mktemp("sound") / "omni", seconds=300)


def clip(n_samples: int, seed: int = 0, rate: int = RATE) -> ClipMedia:
    samples = 0.1 * np.random.default_rng(seed).normal(size=n_samples).astype(np.float32)
    return ClipMedia(Clip("film.mp4", 0, 0.0, 1.49), audio=samples, sampling_rate=rate)


def test_qwen2_audio_is_prepared_as_by_its_real_processor(qwen2audio: Path) -> None:
    from transformers import Qwen2AudioProcessor

    processor = Qwen2AudioProcessor.from_pretrained(qwen2audio)
    settings, extractor = read_sound_settings(qwen2audio), load_sound_extractor(qwen2audio)
    assert settings == SoundSettings(RATE, 160, 400, SECONDS * RATE)
    for n_samples in LENGTHS:
        clips = [clip(n_samples, seed) for seed in range(2)]
        text = ["<|audio_bos|><|AUDIO|><|audio_eos|>"] * 2
        real = processor(
            text=text, audio=[one.audio for one in clips], sampling_rate=RATE, padding=True, return_tensors="pt"
        )
        ours = sound_inputs(extractor, clips, settings, whole_window=True)
        assert torch.equal(ours.input_features, real["input_features"])
        assert torch.equal(ours.feature_attention_mask, real["feature_attention_mask"])
        in_ids = (real["input_ids"] == processor.audio_token_id).sum(dim=1)
        assert in_ids.tolist() == [ours.n_tokens] * 2
        assert settings.n_tokens(n_samples) == ours.n_tokens >= 1


@pytest.mark.skipif(find_spec("torchvision") is None, reason="the real video processor needs torchvision")
def test_qwen_omni_is_prepared_as_by_its_real_processor(omni: Path) -> None:
    from transformers import Qwen2_5OmniProcessor

    processor = Qwen2_5OmniProcessor.from_pretrained(omni)
    settings, extractor = read_sound_settings(omni), load_sound_extractor(omni)
    assert settings.window == 300 * RATE
    for n_samples in (321, 641, 23840):
        one = clip(n_samples)
        real = processor(text=["<|AUDIO|>"], audio=[one.audio], sampling_rate=RATE, return_tensors="pt")
        mask = real["feature_attention_mask"].bool()
        ours = sound_inputs(extractor, [one], settings, whole_window=False)
        # What the model keeps of either.
        kept = ours.feature_attention_mask.bool()
        assert kept.all()
        expected = real["input_features"].permute(0, 2, 1)[mask]
        assert_close(ours.input_features.permute(0, 2, 1)[kept], expected, **LAST_DIGITS)
        assert int((real["input_ids"] == processor.audio_token_id).sum()) == ours.n_tokens


def test_a_cut_spectrogram_is_that_of_the_whole_window(qwen2audio: Path) -> None:
    settings, extractor = read_sound_settings(qwen2audio), load_sound_extractor(qwen2audio)
    for n_samples in LENGTHS:
        whole = sound_inputs(extractor, [clip(n_samples)], settings, whole_window=True)
        cut = sound_inputs(extractor, [clip(n_samples)], settings, whole_window=False)
        n_frames = int(whole.feature_attention_mask.sum())
        assert cut.input_features.shape[-1] == n_frames == settings.n_frames(n_samples)
        assert cut.feature_attention_mask.sum() == n_frames
        assert_close(cut.input_features, whole.input_features[..., :n_frames], **LAST_DIGITS)


def test_the_encoder_of_the_real_model_gives_as_many_tokens(qwen2audio: Path) -> None:
    from transformers import Qwen2AudioForConditionalGeneration

    from bids_mllm.features.models.progress import no_progress_bars

    with no_progress_bars():
        model = Qwen2AudioForConditionalGeneration.from_pretrained(qwen2audio).eval()
    lengths = torch.arange(3, 60)
    counts = model.model.audio_tower._get_feat_extract_output_lengths(lengths)[1]
    assert counts.tolist() == [count_audio_tokens(int(length)) for length in lengths]
    assert count_audio_tokens(3) == 1
    assert count_audio_tokens(2) == 0


def test_sounds_that_cannot_be_prepared_are_named(qwen2audio: Path) -> None:
    settings, extractor = read_sound_settings(qwen2audio), load_sound_extractor(qwen2audio)
    with pytest.raises(StimulusError, match="has 320 samples of sound, but the model needs at least 321"):
        sound_inputs(extractor, [clip(320)], settings, whole_window=True)
    with pytest.raises(StimulusError, match="takes at most 64000"):
        sound_inputs(extractor, [clip(SECONDS * RATE + 1)], settings, whole_window=True)
    with pytest.raises(StimulusError, match="48000 Hz"):
        sound_inputs(extractor, [clip(23840, rate=48000)], settings, whole_window=True)
    with pytest.raises(ValueError, match=r"one length are needed, but these have \[23840, 23841\] samples"):
        sound_inputs(extractor, [clip(23840), clip(23841)], settings, whole_window=True)


def test_silence_is_finite(qwen2audio: Path) -> None:
    settings, extractor = read_sound_settings(qwen2audio), load_sound_extractor(qwen2audio)
    silent = ClipMedia(Clip("film.mp4", 0, 0.0, 1.0), audio=np.zeros(RATE, np.float32), sampling_rate=RATE)
    assert torch.isfinite(sound_inputs(extractor, [silent], settings, whole_window=True).input_features).all()


def test_a_folder_without_settings_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        read_sound_settings(tmp_path)


def test_counting_tokens_imports_no_torch(qwen2audio: Any) -> None:
    code = (
        "import sys; from pathlib import Path; from bids_mllm.features.models.sound_inputs import read_sound_settings; "
        f"assert read_sound_settings(Path({str(qwen2audio)!r})).n_tokens(23840) == 37; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
