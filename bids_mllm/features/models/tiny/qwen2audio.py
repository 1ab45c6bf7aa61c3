"""Qwen2-Audio with random weights: a Whisper-shaped encoder padded to a fixed window, Qwen2.

Of m valid frames of 10 ms the model keeps (((m - 1) // 2 + 1) - 2) // 2 + 1 tokens, about 25 in a second.
"""

from pathlib import Path
from typing import Any

from transformers import Qwen2AudioConfig, Qwen2AudioEncoderConfig, Qwen2AudioForConditionalGeneration

from bids_mllm.features.models.tiny.files import whisper_settings, write_checkpoint
from bids_mllm.features.models.tiny.language import chatml_ends, qwen2_config
from bids_mllm.features.models.tiny.tokenizer import CHATML, SYSTEM_PROMPT, tiny_tokenizer
from bids_mllm.features.models.tiny.weights import random_model

CHAT_TEMPLATE = (
    "{% set audio_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if 'audio' in content or 'audio_url' in content or content['type'] == 'audio' %}"
    "{% set audio_count.value = audio_count.value + 1 %}"
    "Audio {{ audio_count.value }}: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _processor_config(seconds: int) -> dict[str, Any]:
    """Return the content of processor_config.json, as transformers 5 nests it."""
    return {
        "processor_class": "Qwen2AudioProcessor",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
        "audio_token": "<|AUDIO|>",
        "feature_extractor": whisper_settings(seconds),
    }


def save_tiny_qwen2audio(
    folder: Path,
    *,
    seed: int = 0,
    hidden_size: int = 48,
    n_layers: int = 4,
    intermediate_size: int | None = None,
    n_heads: int = 4,
    audio_size: int = 32,
    audio_layers: int = 2,
    seconds: int = 30,
) -> Path:
    """Write a tiny random checkpoint and return its folder.

    Parameters
    ----------
    folder
        Made where it does not exist.
    seed
        Of all weights.
    hidden_size, n_layers, intermediate_size, n_heads
        Sizes of the language model; its heads are of an even width.
    audio_size, audio_layers
        Width (a multiple of 2) and depth of the audio encoder.
    seconds
        Of the window to which the encoder pads; 30 in the trained model.
    """
    tokenizer = tiny_tokenizer((*CHATML, "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"), CHAT_TEMPLATE)
    config = Qwen2AudioConfig(
        text_config=qwen2_config(
            tokenizer,
            hidden_size=hidden_size,
            n_layers=n_layers,
            intermediate_size=intermediate_size,
            n_heads=n_heads,
        ),
        audio_config=Qwen2AudioEncoderConfig(
            num_mel_bins=128,
            d_model=audio_size,
            encoder_layers=audio_layers,
            encoder_attention_heads=2,
            encoder_ffn_dim=2 * audio_size,
            max_source_positions=50 * seconds,
        ),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        dtype="float32",
    )
    model = random_model(Qwen2AudioForConditionalGeneration, config, seed=seed)
    ends = chatml_ends(tokenizer)
    return write_checkpoint(folder, model, tokenizer, _processor_config(seconds), ends=ends, padding=ends[1])
