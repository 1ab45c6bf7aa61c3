"""A loaded Kimi-Audio: sounds in, pooled hidden states of its text decoder and answers out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bids_mllm.exceptions import CheckpointError, StimulusError
from bids_mllm.features.extractor import Extracted, ReadOut
from bids_mllm.features.models.kimiaudio import SAMPLING_RATE, WHISPER_FOLDER, KimiSetup, Streams, build_streams
from bids_mllm.features.models.loading import DTYPES, LOADING_ERRORS
from bids_mllm.features.models.memory import free_model
from bids_mllm.features.models.prompts import without_sinks
from bids_mllm.features.models.tap import mean_over
from bids_mllm.records import ClipMedia, Condition, Pooling

#: Whisper's features are joined by four to one of the discrete tokens' rate.
JOINED_FEATURES = 4

#: From the sound of a clip to its discrete tokens and continuous features, (1, n_tokens, width).
Voice = Callable[[ClipMedia], tuple[list[int], torch.Tensor]]


def load_kimi(setup: KimiSetup, readout: ReadOut, conditions: Sequence[Condition], device: str) -> "KimiExtractor":
    """Load the checkpoint by its own code, which the caller was told to trust, with its authors' package."""
    from kimia_infer.utils.special_tokens import instantiate_extra_tokens  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(
            setup.folder,
            dtype=DTYPES[setup.spec.dtype],
            trust_remote_code=True,
            use_safetensors=True,
            local_files_only=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(setup.folder, trust_remote_code=True, local_files_only=True)
    except LOADING_ERRORS as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"The checkpoint {setup.folder} cannot be loaded ({reason[0]}); copy it again or check its family."
        ) from error
    voice = _voice(setup, model.config.kimia_token_offset, device)
    tokens = instantiate_extra_tokens(tokenizer)
    return KimiExtractor(model.to(device).eval(), tokenizer, tokens, voice, readout, conditions)


def _voice(setup: KimiSetup, offset: int, device: str) -> Voice:
    """Return what makes tokens and features of a sound, by the package of the model's authors."""
    from kimia_infer.models.tokenizer.glm4_tokenizer import Glm4Tokenizer  # type: ignore[import-not-found]
    from kimia_infer.models.tokenizer.whisper_Lv3.whisper import WhisperEncoder  # type: ignore[import-not-found]

    speech = Glm4Tokenizer(str(setup.speech_tokenizer)).to(device)
    whisper = WhisperEncoder(str(setup.folder / WHISPER_FOLDER), mel_batch_size=20).to(device).bfloat16().eval()

    def voice(clip: ClipMedia) -> tuple[list[int], torch.Tensor]:
        from scipy.io import wavfile

        sound = sound_of(clip)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "clip.wav"
            wavfile.write(path, SAMPLING_RATE, sound)
            ids = speech.tokenize(audio_path=str(path)).flatten().tolist()
        features = whisper.tokenize_waveform(torch.from_numpy(sound)[None])
        n_joined = features.shape[1] // JOINED_FEATURES
        joined = features[:, : n_joined * JOINED_FEATURES].reshape(1, n_joined, -1)
        return [int(token) + offset for token in ids], joined.to(device)

    return voice


def sound_of(clip: ClipMedia) -> NDArray[np.float32]:
    """Return the samples of a clip, checked."""
    if clip.audio is None or clip.sampling_rate != SAMPLING_RATE:
        found = "no sound" if clip.audio is None else f"sound at {clip.sampling_rate} Hz"
        raise StimulusError(
            f"Clip {clip.clip.index} of {clip.clip.stim_file} has {found}, but the model needs {SAMPLING_RATE} Hz; "
            "check that the file has an audio stream."
        )
    return clip.audio


@contextmanager
def _tapped(decoder: Any, spans: Sequence[Sequence[int]]) -> Iterator[list[torch.Tensor]]:
    """Pool what enters the first layer, leaves each but the last, and leaves the final norm."""
    device = decoder.norm.weight.device
    indices = [torch.tensor(list(span), device=device) for span in spans]
    layers: list[torch.Tensor] = []

    def before(_: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        layers.append(mean_over(arguments[0] if arguments else named["hidden_states"], indices))

    def behind(_: Any, __: Any, output: Any) -> None:
        layers.append(mean_over(output[0] if isinstance(output, tuple) else output, indices))

    with ExitStack() as stack:
        hooks = [decoder.layers[0].register_forward_pre_hook(before, with_kwargs=True)]
        hooks += [layer.register_forward_hook(behind) for layer in decoder.layers[:-1]]
        hooks.append(decoder.norm.register_forward_hook(behind))
        for hook in hooks:
            stack.callback(hook.remove)
        yield layers


class KimiExtractor:
    """The extractor of one checkpoint and one read-out, one clip and one instruction at a time.

    Parameters
    ----------
    model
        With the forward call of the checkpoint's own code; its decoder is ``model.model``.
    tokenizer
        Encodes and decodes text.
    tokens
        Ids of the special tokens by name.
    voice
        Makes tokens and features of a sound.
    readout, conditions
        What is asked, and the order of the results.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tokens: Any,
        voice: Voice,
        readout: ReadOut,
        conditions: Sequence[Condition],
    ) -> None:
        self._model, self._tokenizer, self._tokens = model, tokenizer, tokens
        self._voice: Any = voice
        self._readout = readout
        self._conditions = tuple(conditions)

    def extract(self, clips: Sequence[ClipMedia]) -> Extracted:
        """Return the pooled states and the answers of every clip under every condition."""
        each = [self._one(clip) for clip in clips]
        features = {c: np.stack([pooled[c] for pooled, _ in each]) for c in self._conditions}
        said = [c for c in self._conditions if c.pooling == "generated"]
        return Extracted(features, {c: tuple(texts[c] for _, texts in each) for c in said})

    def close(self) -> None:
        """Free the weights and the device's memory."""
        model, self._model = self._model, None
        self._voice = None
        free_model(model)

    @torch.inference_mode()
    def _one(self, clip: ClipMedia) -> tuple[dict[Condition, NDArray[np.float32]], dict[Condition, str]]:
        speech, features = self._voice(clip)
        texts = {instruction.key: instruction.text for instruction in self._readout.instructions}
        pooled: dict[Condition, NDArray[np.float32]] = {}
        said: dict[Condition, str] = {}
        for key in dict.fromkeys(condition.instruction for condition in self._conditions):
            ids = [] if key is None else self._encode(texts[key])
            own = [condition for condition in self._conditions if condition.instruction == key]
            streams = build_streams(self._tokens, ids, speech)
            found, text = self._read(streams, features, [condition.pooling for condition in own])
            pooled |= {condition: found[condition.pooling].cpu().numpy() for condition in own}
            said |= {condition: text for condition in own if condition.pooling == "generated"}
        return pooled, said

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, bos=False, eos=False)) if text else []

    def _forward(self, audio: Sequence[int], text: Sequence[int], first: int, cache: Any, **sound: Any) -> Any:
        """Run both rows of tokens from a position on; returns the text's logits and the cache."""
        device = self._model.model.norm.weight.device
        positions = torch.arange(first, first + len(audio), device=device)[None]
        _, logits, cache = self._model(
            input_ids=torch.tensor([list(audio)], device=device),
            text_input_ids=torch.tensor([list(text)], device=device),
            position_ids=positions,
            past_key_values=cache,
            return_dict=False,
            **sound,
        )
        return logits[0, -1], cache

    def _read(
        self, streams: Streams, features: torch.Tensor, poolings: Sequence[Pooling]
    ) -> tuple[dict[Pooling, torch.Tensor], str]:
        """Return the states of one prompt for each pooling, (n_layers, width), and the answer."""
        spans: dict[Pooling, Sequence[int]] = {
            "last": [len(streams.audio) - 1],
            "instruction": without_sinks(streams.instruction),
            "media": without_sinks(streams.media),
        }
        asked = [pooling for pooling in poolings if pooling in spans]
        mask = torch.tensor([streams.continuous], device=self._model.model.norm.weight.device)
        with _tapped(self._model.model, [spans[pooling] for pooling in asked] or [spans["last"]]) as layers:
            logits, cache = self._forward(
                streams.audio,
                streams.text,
                0,
                None,
                whisper_input_feature=[features],
                is_continuous_mask=mask,
            )
        states = torch.stack(layers, dim=2)[0]
        found: dict[Pooling, torch.Tensor] = {pooling: states[n] for n, pooling in enumerate(asked)}
        if "generated" not in poolings:
            return found, ""
        found["generated"], tokens = self._generate(len(streams.audio), logits, cache)
        return found, str(self._tokenizer.decode(tokens)).strip()

    def _generate(self, first: int, logits: torch.Tensor, cache: Any) -> tuple[torch.Tensor, list[int]]:
        """Return the mean state of the generated text, (n_layers, width), and its tokens.

        The row of sound stays blank, as in an answer in text alone. An answer ends at its end token, which is left
        out unless it is the whole answer.
        """
        blank, end = self._tokens.kimia_text_blank, self._tokens.kimia_text_eos
        states: list[torch.Tensor] = []
        tokens: list[int] = []
        for step in range(self._readout.max_new_tokens):
            token = int(logits.argmax())
            if token == end and states:
                break
            with _tapped(self._model.model, [[0]]) as layers:
                logits, cache = self._forward([blank], [token], first + step, cache)
            states.append(torch.stack(layers, dim=2)[0, 0])
            if token == end:
                break
            tokens.append(token)
        return torch.stack(states).mean(dim=0), tokens
