"""Tiny checkpoints of the real encoders of sound, laid out as the hub's are, and what their own classes give.

Each is saved by the class whose weights the hub has, beside its real feature extractor's file. The expected
features come from separate calls of the real class on one clip, cut by hand to the tokens that hold sound; the
numbers of such tokens are worked out by hand for two windows. Nothing here goes through the code under test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from bids_mllm.features.models.progress import no_progress_bars

LONG, SHORT = 1.49, 0.7
SPEECH: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 12,
}
# The two variants: group norm and norms behind each block (base), layer norm and a final norm (large).
BASE: dict[str, Any] = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
LARGE: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
AST_FRAMES, AST_BANDS = 300, 36
WHISPER_SECONDS = 6


@dataclass(frozen=True)
class TinyAudio:
    """A checkpoint and its oracle.

    Attributes
    ----------
    name, family
        What tests are called by, and the module of the family.
    save
        Writes the checkpoint to a folder with weights of a seed.
    expected
        From the folder, the samples and the seconds of a window to (n_layers, width).
    n_layers, width, sampling_rate
        Of the model.
    longest
        Seconds of the fixed window, None where there is none.
    shortest
        Samples that the model takes at the least.
    """

    name: str
    family: str
    save: Callable[..., Path]
    expected: Callable[[Path, np.ndarray, float], torch.Tensor]
    n_layers: int
    width: int
    sampling_rate: int = 16000
    longest: float | None = None
    shortest: int = 400


def seeded(make: Callable[[], Any], seed: int) -> Any:
    """Return a model whose norms, positions and biases are not at their start, which would hide a mistake."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def saved(model: Any, extractor: Any, folder: Path) -> Path:
    """Write a model and its feature extractor."""
    with no_progress_bars():
        model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def opened(model_class: Any, folder: Path, **arguments: Any) -> Any:
    """Return the real model."""
    with no_progress_bars():
        return model_class.from_pretrained(folder, dtype=torch.float32, **arguments).eval()


def rename_weights(folder: Path, rename: Callable[[str], str | None]) -> None:
    """Give the weights other names; None leaves one out."""
    path = folder / "model.safetensors"
    weights = {name: value for old, value in load_file(path).items() if (name := rename(old)) is not None}
    save_file(weights, path, metadata={"format": "pt"})


def all_layers(output: Any) -> list[torch.Tensor]:
    """Hidden states that end with what the model makes of the last block."""
    return [*output.hidden_states[:-1], output.last_hidden_state]


# wav2vec 2.0, HuBERT, WavLM


def speech_saver(model_class: Any, config_class: Any, options: dict[str, Any], **extractor: Any) -> Any:
    def save(folder: Path, seed: int = 0) -> Path:
        model = seeded(lambda: model_class(config_class(**SPEECH, **options)), seed)
        saved(model, Wav2Vec2FeatureExtractor(**extractor), folder)
        if model_class is Wav2Vec2ForCTC:
            # Fine-tuned checkpoints of the hub lack the vector for masked spans.
            rename_weights(folder, lambda name: None if "masked_spec_embed" in name else name)
        return folder

    return save


def speech_expected(model_class: Any, **arguments: Any) -> Any:
    @torch.no_grad()
    def expected(folder: Path, sound: np.ndarray, seconds: float) -> torch.Tensor:
        model = opened(model_class, folder, **arguments)
        inputs = Wav2Vec2FeatureExtractor.from_pretrained(folder)(sound, sampling_rate=16000, return_tensors="pt")
        output = model(inputs["input_values"], output_hidden_states=True)
        assert output.hidden_states[0].shape[1] == {LONG: 74, SHORT: 34}[seconds]
        layers = all_layers(output)
        if model.config.model_type == "wav2vec2" and model.config.add_adapter:
            layers[-1] = model.encoder.layer_norm(output.hidden_states[-1])
        return torch.stack([states[0].mean(0) for states in layers])

    return expected


# AST


def save_ast(folder: Path, seed: int = 0) -> Path:
    config = ASTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_length=AST_FRAMES,
        num_mel_bins=AST_BANDS,
    )
    extractor = ASTFeatureExtractor(max_length=AST_FRAMES, num_mel_bins=AST_BANDS)
    return saved(seeded(lambda: ASTForAudioClassification(config), seed), extractor, folder)


AST_COLUMNS = {LONG: 14, SHORT: 6}


@torch.no_grad()
def ast_expected(folder: Path, sound: np.ndarray, seconds: float) -> torch.Tensor:
    model = opened(ASTForAudioClassification, folder).audio_spectrogram_transformer
    inputs = ASTFeatureExtractor.from_pretrained(folder)(sound, sampling_rate=16000, return_tensors="pt")
    layers = all_layers(model(**inputs, output_hidden_states=True))
    # 3 patches of frequency x 29 of time; 147 or 68 frames hold 14 or 6 columns of 16 frames every 10.
    grids = [states[0, 2:].reshape(3, 29, -1) for states in layers]
    return torch.stack([grid[:, : AST_COLUMNS[seconds]].mean((0, 1)) for grid in grids])


# Whisper


def save_whisper(folder: Path, seed: int = 0) -> Path:
    config = WhisperConfig(
        d_model=16,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_mel_bins=20,
        max_source_positions=50 * WHISPER_SECONDS,
        vocab_size=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    extractor = WhisperFeatureExtractor(feature_size=20, chunk_length=WHISPER_SECONDS)
    return saved(seeded(lambda: WhisperForConditionalGeneration(config), seed), extractor, folder)


# 149 or 70 spectrogram frames, halved by the second convolution.
WHISPER_TOKENS = {LONG: 75, SHORT: 35}


@torch.no_grad()
def whisper_expected(folder: Path, sound: np.ndarray, seconds: float) -> torch.Tensor:
    model = opened(WhisperForConditionalGeneration, folder).model.encoder
    inputs = WhisperFeatureExtractor.from_pretrained(folder)(sound, sampling_rate=16000, return_tensors="pt")
    layers = all_layers(model(**inputs, output_hidden_states=True))
    return torch.stack([states[0, : WHISPER_TOKENS[seconds]].mean(0) for states in layers])


# CLAP

CLAP_DEPTHS = (2, 1, 3, 1)
# Columns of time that hold sound at each of four stages, of 256, 128, 64 and 32. Repeats of 1.49 s (6) or 0.7 s
# (14) give 894 or 980 spectrogram frames of 1001, the bare clip 149 or 70; a column of the first stage reads
# frames up to floor(1000 (4 c + 3) / 1023) + 2.
CLAP_COLUMNS = {
    ("repeatpad", LONG): (228, 114, 57, 28),
    ("repeatpad", SHORT): (250, 125, 62, 31),
    ("pad", LONG): (37, 18, 9, 4),
    ("pad", SHORT): (17, 8, 4, 2),
    ("repeat", LONG): (256, 128, 64, 32),
    ("repeat", SHORT): (256, 128, 64, 32),
}


def clap_saver(padding: str, *, fusion: bool) -> Any:
    def save(folder: Path, seed: int = 0) -> Path:
        config = ClapConfig(
            text_config={
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "vocab_size": 20,
            },
            audio_config={
                "patch_embeds_hidden_size": 4,
                "depths": list(CLAP_DEPTHS),
                "num_attention_heads": [1, 2, 2, 4],
                "hidden_size": 32,
                "enable_fusion": fusion,
                "fusion_type": "aff_2d" if fusion else None,
                "aff_block_r": 2,
            },
            projection_dim=8,
        )
        extractor = ClapFeatureExtractor(truncation="fusion" if fusion else "rand_trunc", padding=padding)
        model = seeded(lambda: ClapModel(config), seed)
        norm = model.audio_model.audio_encoder.batch_norm
        norm.running_mean.fill_(-40.0)
        norm.running_var.fill_(400.0)
        return saved(model, extractor, folder)

    return save


def clap_inputs(folder: Path, sound: np.ndarray) -> dict[str, torch.Tensor]:
    """The real extractor's inputs; a clip that fits the window is not longer than it."""
    inputs = ClapFeatureExtractor.from_pretrained(folder)(sound, sampling_rate=48000, return_tensors="pt")
    return {"input_features": inputs["input_features"].float(), "is_longer": torch.tensor([[False]])}


def clap_layers(tower: Any, inputs: dict[str, torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
    """Stage and states (rows, columns, channels) of the embedding and of every block, block by block."""
    output = tower(**inputs, output_hidden_states=True, output_hidden_states_before_downsampling=True)
    encoder = tower.audio_encoder
    stages = [states.permute(0, 2, 3, 1) for states in output.hidden_states]
    states, layers = stages[0].flatten(1, 2), [(0, stages[0][0])]
    for i, stage in enumerate(encoder.layers):
        side = 64 // 2**i
        for block in stage.blocks:
            states = block(states, (side, side))[0]
            layers.append((i, states.reshape(side, side, -1)))
        torch.testing.assert_close(layers[-1][1], stages[i + 1][0])
        if i < 3:
            states = stage.downsample(states, (side, side))
    last = encoder.norm(states)
    torch.testing.assert_close(last.mean(1), output.pooler_output)
    return [*layers[:-1], (3, last.reshape(8, 8, -1))]


def clap_expected(padding: str) -> Any:
    @torch.no_grad()
    def expected(folder: Path, sound: np.ndarray, seconds: float) -> torch.Tensor:
        tower = opened(ClapModel, folder).audio_model
        rows = []
        for stage, states in clap_layers(tower, clap_inputs(folder, sound)):
            # Four strips of time lie above one another: (strip, row, column) to (row, time).
            unfolded = states.reshape(4, 16 // 2**stage, 64 // 2**stage, -1).transpose(0, 1).flatten(1, 2)
            heard = unfolded[:, : CLAP_COLUMNS[padding, seconds][stage]]
            # Two rows of frequency a band: 8, 4, 2 and 1 bands of 4, 8, 16 and 32 channels.
            bands = [heard[2 * i : 2 * i + 2].mean((0, 1)) for i in range(8 // 2**stage)]
            rows.append(torch.cat(bands))
        return torch.stack(rows)

    return expected


def _speech(name: str, family: str, saver: Any, expected: Any) -> TinyAudio:
    return TinyAudio(name, family, saver, expected, 4, 16)


def _clap(padding: str, *, fusion: bool, shortest: int) -> TinyAudio:
    save = clap_saver(padding, fusion=fusion)
    name = f"clap-{'fused' if fusion else 'unfused'}-{padding}"
    return TinyAudio(name, "clap", save, clap_expected(padding), 8, 32, 48000, 10.0, shortest)


ADAPTER = {**LARGE, "add_adapter": True, "num_adapter_layers": 1, "adapter_stride": 2}
CASES: tuple[TinyAudio, ...] = (
    _speech(
        "wav2vec2-base",
        "wav2vec2",
        speech_saver(Wav2Vec2ForCTC, Wav2Vec2Config, BASE),
        speech_expected(Wav2Vec2Model, mask_time_prob=0.0),
    ),
    _speech(
        "wav2vec2-large",
        "wav2vec2",
        speech_saver(Wav2Vec2ForCTC, Wav2Vec2Config, LARGE, return_attention_mask=True),
        speech_expected(Wav2Vec2Model, mask_time_prob=0.0),
    ),
    _speech(
        "wav2vec2-adapter",
        "wav2vec2",
        speech_saver(Wav2Vec2Model, Wav2Vec2Config, ADAPTER, do_normalize=False),
        speech_expected(Wav2Vec2Model),
    ),
    _speech("hubert-base", "hubert", speech_saver(HubertForCTC, HubertConfig, BASE), speech_expected(HubertModel)),
    _speech(
        "hubert-large",
        "hubert",
        speech_saver(HubertModel, HubertConfig, LARGE, return_attention_mask=True),
        speech_expected(HubertModel),
    ),
    _speech("wavlm-base", "wavlm", speech_saver(WavLMModel, WavLMConfig, BASE), speech_expected(WavLMModel)),
    _speech(
        "wavlm-large",
        "wavlm",
        speech_saver(WavLMModel, WavLMConfig, LARGE, return_attention_mask=True),
        speech_expected(WavLMModel),
    ),
    TinyAudio(
        "ast",
        "audio_spectrogram",
        save_ast,
        ast_expected,
        4,
        16,
        longest=(AST_FRAMES * 160 + 399) / 16000,
        shortest=2800,
    ),
    TinyAudio("whisper", "whisper", save_whisper, whisper_expected, 4, 16, longest=WHISPER_SECONDS),
    _clap("repeatpad", fusion=False, shortest=1024),
    _clap("pad", fusion=True, shortest=32 * 480 + 1),
    _clap("repeat", fusion=False, shortest=1024),
)
