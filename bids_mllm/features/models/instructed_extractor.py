"""A loaded model that follows instructions: batches of clips in, pooled hidden states and answers out."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.extractor import Extracted, ReadOut
from bids_mllm.features.models import checkpoint
from bids_mllm.features.models.architecture import Architecture, MediaBatch, Setup
from bids_mllm.features.models.engine import Answers, Decoding, Loaded, run
from bids_mllm.features.models.loading import load_model, load_tokenizer, random_model
from bids_mllm.features.models.memory import free_model
from bids_mllm.features.models.prompts import Prompt, PromptBuilder
from bids_mllm.records import ClipMedia, Condition, Instruction, Pooling


def load_architecture(architecture: Architecture, setup: Setup, device: str, seed: int) -> Any:
    """Return the model of a family with its weights, or with weights drawn from a seed."""
    try:
        model_class = getattr(transformers, architecture.model_class)
    except (ImportError, RuntimeError) as error:
        # A torchvision built for another torch breaks the import of transformers' model classes.
        raise CheckpointError(
            f"The model code of transformers cannot be imported ({str(error).strip().splitlines()[-1]}); install a "
            "torchvision that matches torch, or none."
        ) from error
    if architecture.load is not None:
        return architecture.load(setup, device, seed)
    if setup.spec.weights == "random":
        config_class = getattr(transformers, architecture.config_class)
        return random_model(
            model_class, setup.folder, seed=seed, dtype=setup.spec.dtype, device=device, config_class=config_class
        )
    return load_model(model_class, setup.folder, dtype=setup.spec.dtype, device=device)


def end_tokens(model: Any) -> tuple[int, ...]:
    """Return the ids of the tokens that end an answer, from the checkpoint's generation settings."""
    ids = None if model.generation_config is None else model.generation_config.eos_token_id
    if ids is None:
        ids = model.config.get_text_config().eos_token_id
    return tuple(ids) if isinstance(ids, (list, tuple)) else (() if ids is None else (ids,))


def encode_text(tokenizer: Any, text: str, setup: Setup) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the token ids of a text and the characters that each covers."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def chat_renderer(architecture: Architecture, setup: Setup, tokenizer: Any) -> Callable[[str | None], str]:
    """Return the function that renders a prompt, by the checkpoint's chat template or the family's own rule."""
    if architecture.render is not None:
        return architecture.render
    template = checkpoint.read_chat_template(setup.folder)

    placeholders = ("audio",) if setup.spec.media == "audio" else architecture.placeholders

    def user(text: str | None) -> dict[str, Any]:
        parts: list[dict[str, str]] = [{"type": kind} for kind in placeholders]
        if text is not None:
            place = len(parts) if setup.order == "media-first" else 0
            parts.insert(place, {"type": "text", "text": text})
        return {"role": "user", "content": parts}

    shown: list[dict[str, Any]] = []
    for demonstration in setup.demonstrations:
        answer = [{"type": "text", "text": demonstration.answer}]
        shown += [user(demonstration.instruction), {"role": "assistant", "content": answer}]

    def render(text: str | None) -> str:
        rendered: str = tokenizer.apply_chat_template(
            [*shown, user(text)], chat_template=template, tokenize=False, add_generation_prompt=True
        )
        return rendered

    return render


def prompt_builder(architecture: Architecture, setup: Setup, tokenizer: Any, media_ids: Sequence[int]) -> PromptBuilder:
    """Return what builds the prompts of a checkpoint; `media_ids` stand for one position of media each."""
    encode = architecture.encode or encode_text
    return PromptBuilder(
        lambda text: encode(tokenizer, text, setup),
        chat_renderer(architecture, setup, tokenizer),
        media_ids=media_ids,
        order=setup.order,
    )


class InstructedExtractor:
    """The extractor of one checkpoint and one read-out.

    Parameters
    ----------
    architecture
        The family.
    setup
        What the checkpoint's small files say.
    readout
        Window, poolings, instructions and generated tokens.
    conditions
        The read-outs, in the order of the results.
    device
        Where the model runs; media are prepared on the CPU so that every device sees the same numbers.
    """

    def __init__(
        self,
        architecture: Architecture,
        setup: Setup,
        readout: ReadOut,
        conditions: Sequence[Condition],
        *,
        device: str,
    ) -> None:
        self._architecture = architecture
        self._setup = setup
        self._readout = readout
        self._conditions = tuple(conditions)
        self._device = torch.device(device)
        torch.manual_seed(readout.seed)
        self._tokenizer = load_tokenizer(setup.folder)
        self._model: Any = load_architecture(architecture, setup, device, readout.seed)
        config = self._model.config
        media_ids = [getattr(config, name) for name in architecture.media_tokens]
        self._prompts = prompt_builder(architecture, setup, self._tokenizer, media_ids)
        self._decoding = Decoding(readout.max_new_tokens, end_tokens(self._model))

    def extract(self, clips: Sequence[ClipMedia]) -> Extracted:
        """Return the pooled states and the answers of every clip under every condition.

        Clips of one shape run together, so nothing is ever padded.
        """
        by_shape: dict[tuple[Any, ...], list[int]] = {}
        for i, clip in enumerate(clips):
            by_shape.setdefault(_shape(clip), []).append(i)
        parts = [self._extract_alike([clips[i] for i in members]) for members in by_shape.values()]
        back = np.argsort([i for members in by_shape.values() for i in members])
        features = {c: np.concatenate([part.features[c] for part in parts])[back] for c in self._conditions}
        said = {c: [text for part in parts for text in part.texts[c]] for c in parts[0].texts}
        return Extracted(features, {c: tuple(texts[i] for i in back) for c, texts in said.items()})

    def close(self) -> None:
        """Free the weights and the device's memory."""
        model, self._model = self._model, None
        free_model(model, self._device)

    def _loaded(self, batch: MediaBatch) -> Loaded:
        """Return the model with the media of a batch, as the engine drives it."""
        model, architecture = self._model, self._architecture
        tensors = {name: value.to(self._device) for name, value in batch.tensors.items()}

        def prefill(ids: torch.Tensor, cache: Any, prompt: Prompt) -> None:
            architecture.forward(model, ids, prompt.text, tensors, self._setup, cache)

        towers = tuple(attrgetter(name)(model) for name in architecture.towers)
        return Loaded(_decoder(model), model.get_output_embeddings(), prefill, towers)

    def _extract_alike(self, clips: Sequence[ClipMedia]) -> Extracted:
        """Return the pooled states and answers of clips of one shape."""
        batch = self._architecture.prepare(clips, self._setup)

        def build(text: str | None) -> Prompt:
            return self._prompts.build(text, batch.expand, n_media=batch.n_tokens, shape=batch.shape)

        poolings = [pooling for pooling in self._readout.poolings if pooling != "media"]
        instructions = self._readout.instructions if poolings else ()
        answers = run(
            self._loaded(batch),
            [build(instruction.text) for instruction in instructions],
            len(clips),
            poolings=poolings,
            decoding=self._decoding,
            media_prompt=build(None) if "media" in self._readout.poolings else None,
            shares=self._architecture.shares,
            plain=self._readout.plain,
        )
        return Extracted(self._features(answers, instructions), self._texts(answers, instructions))

    def _features(
        self, answers: Answers, instructions: Sequence[Instruction]
    ) -> Mapping[Condition, NDArray[np.float32]]:
        """Sort the pooled states by condition."""
        number = {instruction.key: i for i, instruction in enumerate(instructions)}
        pooled: dict[Pooling, NDArray[np.float32]] = {k: v.cpu().numpy() for k, v in answers.pooled.items()}
        return {c: pooled[c.pooling][:, number.get(c.instruction or "", 0)] for c in self._conditions}

    def _texts(self, answers: Answers, instructions: Sequence[Instruction]) -> Mapping[Condition, tuple[str, ...]]:
        """Decode what was generated; special tokens are left out."""
        if "generated" not in answers.pooled:
            return {}
        tokens = answers.tokens.cpu().tolist()
        return {
            Condition("generated", instruction.key): tuple(self._decode(clip[i]) for clip in tokens)
            for i, instruction in enumerate(instructions)
        }

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode([token for token in tokens if token >= 0], skip_special_tokens=True)
        return text.strip()


def _shape(clip: ClipMedia) -> tuple[Any, ...]:
    frames = None if clip.frames is None else clip.frames.shape
    return frames, None if clip.audio is None else clip.audio.shape


def _decoder(model: Any) -> Any:
    """Return the text model with its layers, without a head."""
    decoder = model.get_decoder()
    while not hasattr(decoder, "layers"):
        decoder = decoder.get_decoder()
    return decoder
