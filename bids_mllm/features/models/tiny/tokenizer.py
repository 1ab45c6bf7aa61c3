"""Small tokenizers of the hub's classes: byte-level BPE of Qwen, byte-fallback BPE of Llama, WordPiece of BERT.

The vocabulary of each follows from the words of the built-in instructions alone, so the same words give the
same ids wherever it is built.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from transformers import BertTokenizer, LlamaTokenizer, Qwen2Tokenizer

from bids_mllm.features.instructions import load_instructions

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHATML = SPECIAL_TOKENS[:3]
SYSTEM_PROMPT = "You are a helpful assistant."
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The marks before the words in a Llama vocabulary: unknown, beginning and end of sequence.
LLAMA_MARKS = ("<unk>", "<s>", "</s>")
BERT_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _byte_alphabet() -> list[str]:
    """Return the 256 printable characters by which byte-level tokenizers write bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _words(space: str) -> list[str]:
    """Return the words of the template and of the built-in instructions, with their leading space as written."""
    texts = [SYSTEM_PROMPT, "system", "user", "assistant"]
    texts += [instruction.text for instruction in load_instructions()]
    words = (word.replace(" ", space) for text in texts for word in re.findall(r" ?[A-Za-z]+", text))
    return list(dict.fromkeys(words))


def _join(vocabulary: dict[str, int], words: Iterable[str]) -> list[tuple[str, str]]:
    """Add words to a vocabulary and return the merges that join each from left to right."""
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary and word[: end - 1] in vocabulary and word[end - 1] in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    return merges


def tiny_tokenizer(
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    template: str = CHAT_TEMPLATE,
    named: Mapping[str, str] | None = None,
) -> Qwen2Tokenizer:
    """Return a byte-level BPE tokenizer in which the words of the built-in instructions are short.

    Parameters
    ----------
    special_tokens
        Added behind the vocabulary in this order, as far as they are not there yet; ``<|im_end|>`` is the
        end of sequence and ``<|endoftext|>`` the padding.
    template
        The chat template.
    named
        Attributes by which a processor asks for its tokens, such as ``video_token``.
    """
    vocabulary = {character: i for i, character in enumerate(_byte_alphabet())}
    merges = _join(vocabulary, _words("Ġ"))
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        eos_token="<|im_end|>",
        additional_special_tokens=list(special_tokens),
        **({} if named is None else {"extra_special_tokens": dict(named)}),
    )
    if named is not None:
        # The named ones stand in for the list of special tokens, so the others are added here.
        tokenizer.add_tokens(list(special_tokens), special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def tiny_llama_tokenizer(special_tokens: Sequence[str], template: str | None) -> LlamaTokenizer:
    """Return a BPE tokenizer with byte fallback, as Llama's: a space is written ``▁`` and ``<s>`` comes first.

    Parameters
    ----------
    special_tokens
        Added behind the vocabulary in this order; ``<pad>`` is among them and pads.
    template
        The chat template; None for a model that is given the plain instruction.
    """
    tokens = [*LLAMA_MARKS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    tokens += [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = _join(vocabulary, ["▁USER", "▁ASSISTANT", *_words("▁")])
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)
    tokenizer.add_tokens(list(special_tokens), special_tokens=True)
    tokenizer.pad_token = "<pad>"
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def tiny_bert_tokenizer() -> BertTokenizer:
    """Return a WordPiece tokenizer in lower case, with characters for the words it does not know."""
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    words = [word.strip("▁").lower() for word in _words("▁")]
    tokens = [*BERT_MARKS, *characters, *(f"##{character}" for character in characters), *words]
    return BertTokenizer(vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))})
