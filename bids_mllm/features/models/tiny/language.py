"""Configurations of the language models that the architectures are built on: Qwen2 and Llama."""

from typing import Any

from transformers import LlamaConfig, Qwen2Config


def _sizes(hidden_size: int, n_layers: int, intermediate_size: int | None, n_heads: int) -> dict[str, Any]:
    """Return the sizes as transformers names them."""
    return {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size or 2 * hidden_size,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "max_position_embeddings": 4096,
    }


def qwen2_sizes(
    tokenizer: Any, *, hidden_size: int, n_layers: int, intermediate_size: int | None, n_heads: int
) -> dict[str, Any]:
    """Return the settings of a Qwen2 text model with two heads of queries to each of keys and values.

    Parameters
    ----------
    tokenizer
        Gives the vocabulary's size and the ids of ``<|im_end|>`` and ``<|endoftext|>``.
    hidden_size, n_layers, intermediate_size, n_heads
        Sizes; None for a feed-forward width of twice the hidden size.
    """
    end, padding = chatml_ends(tokenizer)
    return {
        **_sizes(hidden_size, n_layers, intermediate_size, n_heads),
        "num_key_value_heads": n_heads // 2,
        "vocab_size": len(tokenizer),
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "bos_token_id": padding,
        "eos_token_id": end,
        "pad_token_id": padding,
    }


def multimodal_rope(head_size: int) -> dict[str, Any]:
    """Return the rotary settings by which time, height and width share the pairs of a head of so many features."""
    half = head_size // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    return {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": sections}


def qwen2_config(
    tokenizer: Any, *, hidden_size: int, n_layers: int, intermediate_size: int | None, n_heads: int
) -> Qwen2Config:
    """Return the configuration of a Qwen2 text model; the parameters are those of `qwen2_sizes`."""
    sizes = qwen2_sizes(
        tokenizer, hidden_size=hidden_size, n_layers=n_layers, intermediate_size=intermediate_size, n_heads=n_heads
    )
    return Qwen2Config(**sizes, tie_word_embeddings=False)


def llama_config(
    tokenizer: Any, *, hidden_size: int, n_layers: int, intermediate_size: int | None, n_heads: int
) -> LlamaConfig:
    """Return a configuration of Llama as Vicuna 7B has it: as many heads of keys and values as of queries.

    Parameters
    ----------
    tokenizer
        Gives the vocabulary's size and the ids of the first, the last and the padding token.
    hidden_size, n_layers, intermediate_size, n_heads
        Sizes; None for a feed-forward width of twice the hidden size.
    """
    return LlamaConfig(
        **_sizes(hidden_size, n_layers, intermediate_size, n_heads),
        num_key_value_heads=n_heads,
        vocab_size=len(tokenizer),
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )


def chatml_ends(tokenizer: Any) -> tuple[int, int]:
    """Return the ids of ``<|im_end|>`` and ``<|endoftext|>``: Qwen's answers end with either, the second pads."""
    end, padding = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return end, padding
