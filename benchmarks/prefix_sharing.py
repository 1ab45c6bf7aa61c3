"""The features of one clip under many instructions: the app against the script that one would write first.

The app is asked through the door that an extraction uses, media in and pooled states out. The script calls the real
top-level model of transformers once an instruction, with all hidden states, and pools them. Both prepare the media
with the app's own code, which needs no torchvision, and both begin with decoded frames or samples.
"""

import gc
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from clocks import Watched, timed

from bids_mllm.features.extractor import Extracted, ReadOut
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models.architecture import Architecture
from bids_mllm.features.models.instructed import prepare
from bids_mllm.features.models.progress import no_progress_bars
from bids_mllm.features.models.tiny import TINY_CHECKPOINTS
from bids_mllm.records import Clip, ClipMedia, Condition, ModelSpec, Pooling

N_NEW = 8
READ_OUTS: dict[str, tuple[Pooling, ...]] = {"last": ("last", "instruction"), "generated": ("generated",)}
#: Frames (height, width), as a film in 5:3.
FRAME = (420, 700)
VIDEO_WINDOW = 2.0
#: The language model of all cases, 23 to 25 million parameters.
TEXT = {"hidden_size": 512, "n_layers": 8, "intermediate_size": 1376, "n_heads": 8}
QUICK_TEXT = {"hidden_size": 256, "n_layers": 3, "intermediate_size": 688, "n_heads": 4}


@dataclass(frozen=True)
class Case:
    """One family at the sizes that are measured.

    Attributes
    ----------
    family
        Its name; also of its module.
    sizes, quick_sizes
        Of the towers, as the family's small checkpoint takes them. The full ones keep the towers' share of the
        operations near that of the trained model, with the trained model's number of media tokens.
    window, quick_window
        Seconds of the clip.
    parameters
        Of the model's record.
    frame, quick_frame
        Height and width of the decoded frames.
    """

    family: str
    sizes: Mapping[str, Any]
    quick_sizes: Mapping[str, Any]
    window: float = VIDEO_WINDOW
    quick_window: float = VIDEO_WINDOW
    parameters: Mapping[str, Any] = field(default_factory=dict)
    frame: tuple[int, int] = FRAME
    quick_frame: tuple[int, int] = FRAME

    @property
    def architecture(self) -> Architecture:
        """What the app knows about the family."""
        found: Architecture = import_module(f"bids_mllm.features.models.{self.family}").ARCHITECTURE
        return found


CASES = {
    case.family: case
    for case in (
        # 8 frames at 420 x 700: 4 x 15 x 25 tokens.
        Case(
            "qwen25vl",
            {"vision_size": 192, "vision_layers": 5, "frame_tokens": (4, 375)},
            {"vision_size": 64, "vision_layers": 2, "frame_tokens": (4, 375)},
            parameters={"max_fps": 4.0, "max_pixels": 375 * 28 * 28},
            quick_frame=(224, 280),
        ),
        # 8 frames at 384 x 384: 8 x 14 x 14 + 1 tokens.
        Case(
            "llavaonevision",
            {"vision_size": 128, "vision_layers": 5, "image_size": 384},
            {"vision_size": 64, "vision_layers": 2, "image_size": 168},
        ),
        # 8 frames at 336 x 336: 8 x 12 x 12 tokens.
        Case(
            "llavanextvideo",
            {"vision_size": 128, "vision_layers": 5, "image_size": 336},
            {"vision_size": 64, "vision_layers": 2, "image_size": 168},
        ),
        # 8 frames at 224 x 224: 8 x (16 x 16 + 1) tokens.
        Case(
            "videollava",
            {"vision_size": 128, "vision_layers": 6, "image_size": 224},
            {"vision_size": 64, "vision_layers": 2, "image_size": 84},
        ),
        # 30 s, which the encoder reads whatever the clip's length: 750 tokens.
        Case(
            "qwen2audio",
            {"audio_size": 192, "audio_layers": 3},
            {"audio_size": 64, "audio_layers": 2, "seconds": 12},
            window=30.0,
            quick_window=12.0,
        ),
        # 4 frames at 224 x 224: 4 x 32 query tokens of 4 x 257 patches.
        Case(
            "instructblipvideo",
            {
                "vision_size": 256,
                "vision_layers": 6,
                "image_size": 224,
                "n_query_tokens": 32,
                "qformer_size": 64,
                "qformer_layers": 4,
            },
            {
                "vision_size": 128,
                "vision_layers": 5,
                "image_size": 224,
                "n_query_tokens": 32,
                "qformer_size": 64,
                "qformer_layers": 2,
            },
        ),
    )
}


def make_tones(rng: np.random.Generator, n_samples: int, rate: int) -> np.ndarray:
    """Return tones of 100 to 4000 Hz that swell and fade, float32."""
    seconds = np.arange(n_samples) / rate
    pitches, swells = rng.uniform(100, 4000, 8), rng.uniform(0.2, 4, 8)
    tones = np.sin(2 * np.pi * np.outer(pitches, seconds)) * (1 + np.sin(2 * np.pi * np.outer(swells, seconds)))
    return (0.05 * tones.sum(axis=0) + 0.005 * rng.standard_normal(n_samples)).astype(np.float32)


def make_clip(case: Case, request: Any, *, quick: bool) -> ClipMedia:
    """Return a decoded clip as `request` wants it: coloured tiles, or tones that swell."""
    rng = np.random.default_rng(0)
    window = case.quick_window if quick else case.window
    clip = Clip("film.mp4", 0, 0.0, window)
    if request.media == "audio":
        sound = make_tones(rng, round(window * request.sampling_rate), request.sampling_rate)
        return ClipMedia(clip, audio=sound, sampling_rate=request.sampling_rate)
    height, width = case.quick_frame if quick else case.frame
    tiles = rng.integers(0, 256, (request.n_frames, height // 14, width // 14, 3), dtype=np.uint8)
    frames = tiles.repeat(14, axis=1).repeat(14, axis=2)
    return ClipMedia(clip, frames=frames, frame_times=np.linspace(0, window, request.n_frames, endpoint=False))


class Script:
    """One call of the real model an instruction, media and all.

    Parameters
    ----------
    architecture, setup
        By which the app prepares the media.
    model
        Of transformers, the class with a head.
    """

    def __init__(self, architecture: Architecture, setup: Any, model: Any) -> None:
        self._architecture, self._setup = architecture, setup
        self.model = model
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(setup.folder)
        self._question_tokenizer = None
        if architecture.name == "instructblipvideo":
            self._question_tokenizer = transformers.AutoTokenizer.from_pretrained(setup.folder / "qformer_tokenizer")

    def _prompt(self, batch: Any, text: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt and the positions of the instruction's own."""
        media: list[int] = []
        if self._question_tokenizer is not None:
            rendered, media = text, [self.model.config.video_token_id] * batch.n_tokens
        else:
            parts = [{"type": self._architecture.placeholders[0]}, {"type": "text", "text": text}]
            message = {"role": "user", "content": parts}
            rendered = batch.expand(
                self._tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
            )
        encoded = self._tokenizer(rendered, return_offsets_mapping=True)
        start = rendered.index(text)
        own = [
            len(media) + i
            for i, (left, right) in enumerate(encoded["offset_mapping"])
            if left < start + len(text) and right > start
        ]
        return media + encoded["input_ids"], own

    def _inputs(self, clip: ClipMedia, text: str) -> tuple[dict[str, Any], list[int]]:
        batch = self._architecture.prepare([clip], self._setup)
        ids, own = self._prompt(batch, text)
        input_ids = torch.tensor([ids])
        inputs = {**batch.tensors, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if self._architecture.name == "qwen25vl":
            inputs["mm_token_type_ids"] = 2 * (input_ids == self.model.config.video_token_id).int()
        if self._question_tokenizer is not None:
            question = self._question_tokenizer(text, return_tensors="pt")
            inputs["qformer_input_ids"] = question["input_ids"]
            inputs["qformer_attention_mask"] = question["attention_mask"]
        return {name: value.to(self.model.device) for name, value in inputs.items()}, own

    @torch.inference_mode()
    def last(self, clip: ClipMedia, text: str) -> dict[str, np.ndarray]:
        """Return the states (n_layers, width) of the last token, and their mean over the instruction."""
        inputs, own = self._inputs(clip, text)
        output = self.model(**inputs, output_hidden_states=True)
        # InstructBLIPVideo hands on what its language model gave.
        hidden = getattr(output, "language_model_outputs", output).hidden_states
        last = torch.stack([state[0, -1] for state in hidden])
        mean = torch.stack([state[0, own].float().mean(dim=0) for state in hidden])
        return {"last": last.float().cpu().numpy(), "instruction": mean.cpu().numpy()}

    @torch.inference_mode()
    def generated(self, clip: ClipMedia, text: str) -> tuple[str, np.ndarray]:
        """Return the answer and the mean state (n_layers, width) of all its tokens but the last.

        `generate` does not feed the last token back, so that there is no state of it.
        """
        inputs, _ = self._inputs(clip, text)
        output = self.model.generate(
            **inputs, max_new_tokens=N_NEW, do_sample=False, output_hidden_states=True, return_dict_in_generate=True
        )
        steps = [torch.stack([state[0, -1] for state in step]) for step in output.hidden_states[1:]]
        if len(steps) != N_NEW - 1:
            raise RuntimeError(f"An answer of {self._architecture.name} ended early; choose other random weights.")
        answer = self._tokenizer.decode(output.sequences[0, -N_NEW:], skip_special_tokens=True)
        return answer.strip(), torch.stack(steps).float().mean(dim=0).cpu().numpy()


def load_script(case: Case, setup: Any) -> Script:
    """Return the script around a checkpoint, read as transformers reads it."""
    model_class = getattr(transformers, case.architecture.model_class)
    with no_progress_bars():
        model = model_class.from_pretrained(setup.folder, dtype=torch.float32, attn_implementation="sdpa")
    return Script(case.architecture, setup, model.eval())


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest ``||found - expected|| / ||expected||`` of a layer, both (n_layers, width)."""
    if not np.isfinite(found).all() or not np.isfinite(expected).all() or not expected.any(axis=1).all():
        raise RuntimeError("A layer is not finite, or holds zeros only.")
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def compare(extracted: Mapping[str, Extracted], short: Extracted, script: Mapping[str, Any]) -> float:
    """Return the largest relative error of all poolings, layers and instructions.

    The lowest layer of the generated tokens is the mean of their embeddings, so tokens are compared with it.

    Parameters
    ----------
    extracted
        What the app gave for each read-out.
    short
        The same for one generated token less: the script has no state of the last token.
    script
        For each read-out and instruction what the script gave.

    Raises
    ------
    RuntimeError
        When an answer is another one.
    """
    errors = []
    for key, states in script["last"].items():
        for pooling, expected in states.items():
            errors.append(relative_error(extracted["last"].features[Condition(pooling, key)][0], expected))
    for key, (answer, expected) in script["generated"].items():
        condition = Condition("generated", key)
        ours = extracted["generated"].texts[condition][0]
        if ours != answer:
            raise RuntimeError(f"The answers to {key} differ: {ours!r} of the app, {answer!r} of the script.")
        errors.append(relative_error(short.features[condition][0], expected))
    return max(errors)


@dataclass(frozen=True)
class Turns:
    """The app and the script in turns.

    Attributes
    ----------
    extracted
        What the app gave.
    by_instruction
        What the script gave for each instruction.
    app, script : (n_turns, 2) float array
        Wall and CPU seconds of each turn, for all instructions.
    """

    extracted: Extracted
    by_instruction: Mapping[str, Any]
    app: np.ndarray
    script: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """Medians over turns of script over app, in wall and in CPU seconds."""
        return np.median(self.script / self.app, axis=0)

    @property
    def seconds(self) -> tuple[float, float]:
        """Median wall seconds of app and script."""
        return float(np.median(self.app[:, 0])), float(np.median(self.script[:, 0]))


def take_turns(extractor: Any, call: Any, clip: ClipMedia, *, n_turns: int, device: str) -> Turns:
    """Time an extraction of all instructions, then a share of the script's calls, and so on.

    In all turns together the script is called once an instruction; the mean second of a call in a turn, times the
    number of instructions, is what the script takes in that turn.
    """
    instructions = load_instructions()
    given: dict[str, Any] = {}
    app, script = [], []
    for turn in range(n_turns):
        extracted, seconds = timed(lambda: extractor.extract([clip]), device)
        app.append(seconds)
        calls = []
        for instruction in instructions[turn::n_turns]:
            given[instruction.key], seconds = timed(lambda text=instruction.text: call(clip, text), device)
            calls.append(seconds)
        script.append(np.mean(calls, axis=0) * len(instructions))
    return Turns(extracted, given, np.array(app), np.array(script))


@dataclass(frozen=True)
class Result:
    """What was measured of one family.

    Attributes
    ----------
    n_parameters, n_tokens
        Of the model, and tokens of the clip's media.
    turns
        For each read-out.
    max_rel_err
        Largest relative error of pooled states.
    stages
        Wall seconds of the app by stage for each read-out.
    """

    n_parameters: int
    n_tokens: int
    turns: Mapping[str, Turns]
    max_rel_err: float
    stages: Mapping[str, Mapping[str, float]]


def readout(window: float, kind: str, n_new: int = N_NEW) -> ReadOut:
    """Return a read-out of all built-in instructions about videos; models of sound are asked them too."""
    return ReadOut(
        window=window, poolings=READ_OUTS[kind], instructions=load_instructions(media="video"), max_new_tokens=n_new
    )


def _measure(case: Case, folder: Path, *, quick: bool, n_turns: int) -> Result:
    architecture, device = case.architecture, "cpu"
    window = case.quick_window if quick else case.window
    TINY_CHECKPOINTS[case.family](folder, **(QUICK_TEXT | case.quick_sizes if quick else TEXT | case.sizes))
    media = "audio" if case.family == "qwen2audio" else "video"
    spec = ModelSpec("measured", case.family, media, source=str(folder), parameters=case.parameters)
    setup = prepare(architecture, spec, readout(window, "last"))
    clip = make_clip(case, setup.media.request, quick=quick)
    family = import_module(f"bids_mllm.features.models.{case.family}").FAMILY
    script = load_script(case, setup)
    turns: dict[str, Turns] = {}
    for kind in READ_OUTS:
        extractor, call = family.load(spec, readout(window, kind), device), getattr(script, kind)
        extractor.extract([clip])
        call(clip, load_instructions()[0].text)
        turns[kind] = take_turns(extractor, call, clip, n_turns=n_turns, device=device)
    short = family.load(spec, readout(window, "generated", N_NEW - 1), device).extract([clip])
    return Result(
        n_parameters=sum(parameter.numel() for parameter in script.model.parameters()),
        n_tokens=architecture.prepare([clip], setup).n_tokens,
        turns=turns,
        max_rel_err=compare(
            {kind: turn.extracted for kind, turn in turns.items()},
            short,
            {kind: turn.by_instruction for kind, turn in turns.items()},
        ),
        stages={kind: Watched(architecture, spec, readout(window, kind), device).stages([clip]) for kind in READ_OUTS},
    )


def measure(case: Case, *, quick: bool, n_turns: int) -> Result:
    """Return what was measured of one family on the CPU.

    Parameters
    ----------
    case
        One of `CASES`.
    quick
        Whether the small sizes serve.
    n_turns
        How often the app is timed; the script's calls are spread between.
    """
    with tempfile.TemporaryDirectory(prefix="bids-mllm-benchmark-") as folder:
        result = _measure(case, Path(folder), quick=quick, n_turns=n_turns)
    gc.collect()
    return result
