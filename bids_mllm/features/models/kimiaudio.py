"""The Kimi-Audio family: an instruction, then sound as discrete tokens and continuous features at once.

The architecture is not part of transformers. Its code comes with the checkpoint and is run only where the user says
so; it needs CUDA, flash attention, the package ``kimia_infer`` of its authors' repository, and the tokenizer of
speech of GLM-4-Voice (Kimi Team 2025, Kimi-Audio technical report). Planning needs none of these. The instruction comes
first, so that nothing is shared between instructions but what is made of the sound alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bids_mllm.exceptions import CheckpointError, UsageError
from bids_mllm.features.extractor import Cost, ExtractionPlan, Extractor, Family, ReadOut
from bids_mllm.features.models import checkpoint
from bids_mllm.features.models.architecture import DTYPES
from bids_mllm.features.models.instructed import read_out_conditions, text_size
from bids_mllm.features.models.prompts import SINK_TOKENS
from bids_mllm.records import MediaRequest, ModelSpec

ARCHITECTURE_NAME = "MoonshotKimiaForCausalLM"
PARAMETERS = ("speech_tokenizer", "trust_remote_code", "order")
ORDER = "instruction-first"
SAMPLING_RATE = 16000
#: Discrete tokens of speech in a second, each with one continuous feature.
TOKENS_PER_SECOND = 12.5
#: Within the checkpoint; the second is not part of it and has to be put there, or named by its parameter.
WHISPER_FOLDER, SPEECH_FOLDER = "whisper-large-v3", "glm-4-voice-tokenizer"
PACKAGES = ("kimia_infer", "flash_attn")


@dataclass(frozen=True)
class KimiSetup:
    """What the record and the checkpoint's small files say; `speech_tokenizer` is a folder, there or not."""

    spec: ModelSpec
    folder: Path
    speech_tokenizer: Path
    n_layers: int
    width: int


def prepare(spec: ModelSpec) -> KimiSetup:
    """Find and check the checkpoint of a record; no code of it is run."""
    unknown = sorted(set(spec.parameters) - set(PARAMETERS))
    if unknown:
        raise UsageError(
            f"The model {spec.key} has the unknown parameter {unknown[0]!r}; choose from {', '.join(PARAMETERS)}."
        )
    if spec.dtype not in DTYPES:
        raise UsageError(f"The model {spec.key} has dtype {spec.dtype!r}; choose from {', '.join(DTYPES)}.")
    if spec.parameters.get("order", ORDER) != ORDER:
        raise UsageError(f"The model {spec.key} has order {spec.parameters['order']!r}, but its family takes {ORDER}.")
    if spec.weights == "random":
        raise UsageError(f"The model {spec.key} runs its repository's own code, which gives no random weights.")
    folder = checkpoint.find_folder(spec.source, revision=spec.revision)
    config = checkpoint.read_config(folder)
    if ARCHITECTURE_NAME not in config.get("architectures", ()):
        raise CheckpointError(
            f"{folder / 'config.json'} names the architectures {config.get('architectures')}, but this family of "
            f"models needs {ARCHITECTURE_NAME}; check the label and the folder."
        )
    checkpoint.check_weights(folder)
    n_layers, width = text_size(folder, config)
    speech = Path(spec.parameters.get("speech_tokenizer", folder / SPEECH_FOLDER)).expanduser()
    return KimiSetup(spec, folder, speech, n_layers, width)


def code_digest(folder: Path) -> str:
    """Return one sha256 of the names and bytes of the Python files that come with a checkpoint."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def plan(spec: ModelSpec, readout: ReadOut) -> ExtractionPlan:
    """Return what an extraction will do; neither weights nor the checkpoint's code are loaded."""
    conditions = read_out_conditions(spec, readout)
    setup = prepare(spec)
    speech = setup.speech_tokenizer
    n_parameters = checkpoint.count_parameters(setup.folder)
    n_media = round(TOKENS_PER_SECOND * readout.window) + 2
    texts = max(1, len(readout.instructions))
    return ExtractionPlan(
        identity={
            "family": "kimiaudio",
            "checkpoint": checkpoint.files_digest(setup.folder),
            "code": code_digest(setup.folder),
            "whisper": checkpoint.files_digest(setup.folder / WHISPER_FOLDER),
            "speech_tokenizer": checkpoint.files_digest(speech) if speech.is_dir() else None,
            "order": ORDER,
            "dtype": spec.dtype,
            "sink_tokens": SINK_TOKENS,
            "versions": {name: version(name).split("+")[0] for name in ("torch", "transformers")},
            "by_pooling": {"generated": {"max_new_tokens": readout.max_new_tokens, "decoding": "greedy"}},
        },
        request=MediaRequest(media="audio", sampling_rate=SAMPLING_RATE),
        conditions=conditions,
        n_layers=setup.n_layers,
        width=setup.width,
        batch_size=1,
        cost=Cost(
            flops=2.0 * n_parameters * texts * (n_media + 30 + readout.max_new_tokens),
            weight_bytes=n_parameters * (4 if spec.dtype == "float32" else 2),
            clip_bytes=2**28,
        ),
    )


def absent_needs(setup: KimiSetup, device: str) -> list[str]:
    """Return in words what is missing to run the checkpoint's code; importing nothing of it."""
    needs = []
    if not setup.spec.parameters.get("trust_remote_code"):
        needs.append("--trust-remote-code, since it runs Python code that comes with the checkpoint")
    if not device.startswith("cuda"):
        needs.append("a CUDA device (--device cuda)")
    needs += [f"the package {name}" for name in PACKAGES if find_spec(name) is None]
    if not (setup.folder / WHISPER_FOLDER / "config.json").is_file():
        needs.append(f"the folder {WHISPER_FOLDER} of the checkpoint")
    if not setup.speech_tokenizer.is_dir():
        needs.append(f"the tokenizer THUDM/glm-4-voice-tokenizer in {setup.speech_tokenizer}")
    return needs


def load(spec: ModelSpec, readout: ReadOut, device: str) -> Extractor:
    """Return the model with its weights, or name in one sentence all that is missing to run it."""
    conditions = read_out_conditions(spec, readout)
    setup = prepare(spec)
    needs = absent_needs(setup, device)
    if needs:
        raise CheckpointError(f"The model {spec.key} cannot be run here; it needs {_joined(needs)}.")
    from bids_mllm.features.models.kimiaudio_extractor import load_kimi

    return load_kimi(setup, readout, conditions, device)


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


@dataclass(frozen=True)
class Streams:
    """A prompt as the model takes it: two rows of tokens that are added up, position by position.

    Attributes
    ----------
    audio, text
        Token ids of the two rows; where one says nothing it holds the blank token.
    continuous
        True where continuous features of the sound are added too.
    media, instruction
        Positions of the sound's and of the instruction's tokens.
    """

    audio: tuple[int, ...]
    text: tuple[int, ...]
    continuous: tuple[bool, ...]
    media: tuple[int, ...]
    instruction: tuple[int, ...]


def build_streams(tokens: Any, instruction: Sequence[int], speech: Sequence[int]) -> Streams:
    """Return the prompt of an instruction, then a sound, to be answered in text.

    Parameters
    ----------
    tokens
        Ids of the special tokens by name: kimia_user_msg_start, kimia_assistant_msg_start, kimia_text_blank,
        kimia_speech_ct_id, media_begin, media_end, msg_end.
    instruction
        Token ids of the text; empty for no instruction.
    speech
        Discrete tokens of the sound, offset into the vocabulary.
    """
    blank = tokens.kimia_text_blank
    audio = [tokens.kimia_user_msg_start, *[blank] * len(instruction), tokens.media_begin, *speech, tokens.media_end]
    audio += [tokens.kimia_speech_ct_id, tokens.msg_end, tokens.kimia_assistant_msg_start]
    first_text, first_sound = 1, 2 + len(instruction)
    text = [blank] * len(audio)
    text[first_text : first_text + len(instruction)] = instruction
    media = tuple(range(first_sound, first_sound + len(speech)))
    return Streams(
        audio=tuple(audio),
        text=tuple(text),
        continuous=tuple(position in media for position in range(len(audio))),
        media=media,
        instruction=tuple(range(first_text, first_text + len(instruction))),
    )


FAMILY = Family(name="kimiaudio", plan=plan, load=load)
