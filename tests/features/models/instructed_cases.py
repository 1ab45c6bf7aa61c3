"""Every family that follows instructions: a tiny checkpoint, clips, and what its real model gives for one prompt.

The prompts are written out by hand, and each clip and instruction has a forward call and a `generate` of its own;
nothing of the code under test has a part in it but the pixel values, which have tests of their own against the real
processors.
"""

import importlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_mllm.features.extractor import Demonstration, Family, ReadOut
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models.engine import Answers, run
from bids_mllm.features.models.frames import FrameSettings
from bids_mllm.features.models.pixel_settings import settings_from_file
from bids_mllm.features.models.pixels import prepare_frames
from bids_mllm.features.models.preprocess import preprocess_frames
from bids_mllm.features.models.progress import no_progress_bars
from bids_mllm.records import Clip, ClipMedia, ModelSpec

WINDOW = 1.49
RATE = 16000
SIZES = ((56, 56), (72, 128), (56, 56))
N_SAMPLES = (23840, 20000, 23840)
N_NEW = 4
SINKS = 4
INSTRUCTIONS = load_instructions()[:3]
TEXTS = tuple(instruction.text for instruction in INSTRUCTIONS)
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
CHATML_END = "<|im_end|>\n<|im_start|>assistant\n"
VIDEO_KIND, AUDIO_KIND = "instruction-tuned video", "instruction-tuned audio"
Media = Sequence[ClipMedia]
Written = tuple[str, str]


def smooth_movie(rng: np.random.Generator, n_frames: int, height: int, width: int) -> np.ndarray:
    """Frames that drift slowly: a few coloured gratings with random weights."""
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    movie = np.zeros((n_frames, height, width, 3))
    for vertical, horizontal in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (1, 2)):
        start, drift = rng.normal(size=(2, 3))
        grating = np.cos(2 * np.pi * (vertical * rows + horizontal * columns))
        for i in range(n_frames):
            movie[i] += grating[..., None] * (start + 0.2 * drift * i / n_frames)
    return (255 / (1 + np.exp(-0.6 * movie))).astype(np.uint8)


def chord(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Some tones that swell, and a little noise."""
    seconds = np.arange(n_samples) / RATE
    tones = sum(np.sin(2 * np.pi * pitch * seconds) for pitch in rng.uniform(100, 4000, size=5))
    return (0.1 * tones * (0.5 + seconds / 3) + 0.01 * rng.normal(size=n_samples)).astype(np.float32)


def media_clip(
    seed: int,
    *,
    n_frames: int = 0,
    size: tuple[int, int] = SIZES[0],
    n_samples: int = 0,
    index: int = 0,
) -> ClipMedia:
    """One clip with frames, with sound, or with both."""
    rng = np.random.default_rng(seed)
    return ClipMedia(
        Clip("film.mp4", index, index * WINDOW, (index + 1) * WINDOW),
        frames=smooth_movie(rng, n_frames, *size) if n_frames else None,
        audio=chord(rng, n_samples) if n_samples else None,
        sampling_rate=RATE if n_samples else 0,
    )


@dataclass(frozen=True)
class Case:
    """One family, or one way of using it, and how its real model is called.

    Attributes
    ----------
    name
        What tests are called by.
    family
        Module and name of the family.
    model_class
        The real class.
    write
        ``write(piece, text)`` is the template by hand: the prompt before and behind the instruction.
    piece
        ``piece(clip)`` is what stands for the clip in a prompt.
    tensors
        ``tensors(folder, clips)`` are the media as the real model takes them, for one prompt with all the clips.
    media_tokens
        Tokens of which one stands for each position of media.
    media
        Of the record.
    n_frames, has_sound
        What a clip holds.
    saved
        Arguments of the tiny checkpoint.
    parameters
        Of the record.
    further
        ``further(ids, tokenizer)`` are arguments of the real model that follow from the token ids.
    tower
        Module that reads the pictures or the sound.
    shares
        Whether the prompts of one clip share its tokens.
    """

    name: str
    family: str
    model_class: str
    write: Callable[[str, str | None], Written]
    piece: Callable[[ClipMedia], str]
    tensors: Callable[[Path, Media], Mapping[str, Any]]
    media_tokens: tuple[str, ...]
    tower: str
    media: str = "video"
    n_frames: int = 4
    has_sound: bool = False
    saved: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    further: Callable[[torch.Tensor, Any], Mapping[str, Any]] = lambda ids, tokenizer: {}
    shares: bool = True

    def product(self) -> Family:
        """The family under test."""
        module = importlib.import_module(f"bids_mllm.features.models.{self.family}")
        return module.FAMILY

    def spec(self, folder: Path, **changes: Any) -> ModelSpec:
        """The record of a checkpoint."""
        made = ModelSpec(
            key="tiny",
            family=self.family,
            media=self.media,
            source=str(folder),
            kind=AUDIO_KIND if self.media == "audio" else VIDEO_KIND,
            parameters=dict(self.parameters),
        )
        return replace(made, **changes)

    def clips(self) -> list[ClipMedia]:
        """Three clips, of which the second is of another shape."""
        n_samples = N_SAMPLES if self.has_sound else (0, 0, 0)
        return [
            media_clip(seed, n_frames=self.n_frames, size=SIZES[seed], n_samples=n_samples[seed], index=seed)
            for seed in range(3)
        ]


def replaced_files(folder: Path, target: Path, **texts: str) -> Path:
    """A copy of a checkpoint in which some files are written anew; ``__`` in a name stands for its dot."""
    shutil.copytree(folder, target)
    for name, text in texts.items():
        (target / name.replace("__", ".")).write_text(text, "utf-8")
    return target


def make_readout(*poolings: Any, **changes: Any) -> ReadOut:
    """The poolings of three instructions."""
    made = ReadOut(window=WINDOW, poolings=poolings, instructions=INSTRUCTIONS, max_new_tokens=N_NEW)
    return replace(made, **changes)


def qwen_video(clip: ClipMedia) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of a clip and its grid."""
    patches, grid = preprocess_frames(clip.frames, FrameSettings(4 * 28 * 28, 8 * 28 * 28))
    return patches, torch.tensor([grid])


def qwen_count(clip: ClipMedia) -> int:
    """Tokens of a clip: four patches each."""
    return int(qwen_video(clip)[1].prod()) // 4


def sound_count(clip: ClipMedia) -> int:
    """Tokens of a sound: a convolution halves its frames of 10 ms, a mean halves them again."""
    return (((len(clip.audio) // 160 - 1) // 2 + 1) - 2) // 2 + 1


def qwen_videos(seconds_name: str) -> Callable[[Path, Media], dict[str, Any]]:
    """Patches of several clips, two frames a step in time."""

    def tensors(_: Path, clips: Media) -> dict[str, Any]:
        made = [qwen_video(clip) for clip in clips]
        return {
            "pixel_values_videos": torch.cat([patches for patches, _ in made]),
            "video_grid_thw": torch.cat([grid for _, grid in made]),
            seconds_name: torch.tensor([2 / (len(clip.frames) / WINDOW) for clip in clips]),
        }

    return tensors


@lru_cache(maxsize=64)
def spectrograms(folder: Path, audio: tuple[bytes, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Spectrograms and masks by the real feature extractor, padded to the whole window."""
    from transformers import WhisperFeatureExtractor

    made = WhisperFeatureExtractor.from_pretrained(folder)(
        [np.frombuffer(sound, np.float32) for sound in audio],
        sampling_rate=RATE,
        return_attention_mask=True,
        padding="max_length",
        return_tensors="pt",
    )
    return made["input_features"], made["attention_mask"]


def sounds(folder: Path, clips: Media) -> dict[str, Any]:
    """Spectrograms of several clips."""
    features, mask = spectrograms(folder, tuple(clip.audio.tobytes() for clip in clips))
    return {"input_features": features, "feature_attention_mask": mask}


def videos_with_sound(folder: Path, clips: Media) -> dict[str, Any]:
    """Both, and the word that they belong together."""
    made = qwen_videos("video_second_per_grid")(folder, clips)
    return {**made, **sounds(folder, clips), "use_audio_in_video": True}


def frames(processor: str, name: str = "pixel_values_videos") -> Callable[[Path, Media], dict[str, Any]]:
    """Pixel values (1, n_frames, 3, height, width)."""

    def tensors(folder: Path, clips: Media) -> dict[str, Any]:
        file = json.loads((folder / "processor_config.json").read_text("utf-8"))
        settings = settings_from_file(file["video_processor"], processor)
        return {name: torch.stack([prepare_frames(clip.frames, settings) for clip in clips])}

    return tensors


def images(folder: Path, clips: Media) -> dict[str, Any]:
    """Pixel values (n_frames, 3, height, width): each frame is an image."""
    values = frames("InternVLVideoProcessor", "pixel_values")(folder, clips)
    return {"pixel_values": values["pixel_values"].flatten(0, 1)}


def vicuna(piece: str, text: str | None) -> Written:
    """The template of LLaVA-NeXT-Video and Video-LLaVA."""
    return f"USER: {piece}\n", "ASSISTANT:" if text is None else " ASSISTANT:"


def chatml(before: str, behind: str) -> Callable[[str, str | None], Written]:
    """A template in which a user's media stand between two marks."""

    def write(piece: str, _: str | None) -> Written:
        return SYSTEM + "<|im_start|>user\n" + before + piece + behind, CHATML_END

    return write


def onevision(piece: str, text: str | None) -> Written:
    """The template of LLaVA-OneVision."""
    return f"<|im_start|>user {piece}" + ("" if text is None else "\n"), "<|im_end|><|im_start|>assistant\n"


def internvl(piece: str, _: str | None) -> Written:
    """The template of InternVL."""
    return f"<|im_start|>user\n{piece}\n", CHATML_END


def internvl_piece(clip: ClipMedia) -> str:
    """A line for each frame of 4 x 4 patches, four of them a token."""
    frame = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    return "\n".join(f"Frame{number + 1}: {frame}" for number in range(len(clip.frames)))


OMNI = "Qwen2_5OmniThinkerForConditionalGeneration"
VIDEO_LLAVA = "VideoLlavaForConditionalGeneration"
CASES = (
    Case(
        name="qwen25vl",
        family="qwen25vl",
        model_class="Qwen2_5_VLForConditionalGeneration",
        write=chatml("<|vision_start|>", "<|vision_end|>"),
        piece=lambda clip: "<|video_pad|>" * qwen_count(clip),
        tensors=qwen_videos("second_per_grid_ts"),
        media_tokens=("<|video_pad|>",),
        tower="model.visual",
        further=lambda ids, tokenizer: {
            "mm_token_type_ids": 2 * (ids == tokenizer.convert_tokens_to_ids("<|video_pad|>")).int()
        },
    ),
    Case(
        name="llavaonevision",
        family="llavaonevision",
        model_class="LlavaOnevisionForConditionalGeneration",
        write=onevision,
        # 5 x 5 patches of a frame become 3 x 3 tokens, and one ends the video.
        piece=lambda clip: "<video>" * (9 * len(clip.frames) + 1),
        tensors=frames("LlavaOnevisionVideoProcessor"),
        media_tokens=("<video>",),
        tower="model.vision_tower",
        parameters={"n_frames": 4},
    ),
    Case(
        name="llavanextvideo",
        family="llavanextvideo",
        model_class="LlavaNextVideoForConditionalGeneration",
        write=vicuna,
        piece=lambda clip: "<video>" * (4 * len(clip.frames)),
        tensors=frames("LlavaNextVideoVideoProcessor"),
        media_tokens=("<video>",),
        tower="model.vision_tower",
        parameters={"n_frames": 4},
    ),
    Case(
        name="videollava",
        family="videollava",
        model_class=VIDEO_LLAVA,
        write=vicuna,
        # 3 x 3 patches and the class token of each frame.
        piece=lambda clip: "<video>" * (10 * len(clip.frames)),
        tensors=frames("VideoLlavaVideoProcessor"),
        media_tokens=("<video>",),
        tower="model.video_tower",
        n_frames=8,
    ),
    Case(
        name="instructblipvideo",
        family="instructblipvideo",
        model_class="InstructBlipVideoForConditionalGeneration",
        write=lambda piece, text: ("", ""),
        piece=lambda clip: "",
        tensors=frames("InstructBlipVideoVideoProcessor", "pixel_values"),
        media_tokens=("<video>",),
        tower="vision_model",
        shares=False,
    ),
    Case(
        name="qwen2audio",
        family="qwen2audio",
        model_class="Qwen2AudioForConditionalGeneration",
        write=chatml("Audio 1: <|audio_bos|>", "<|audio_eos|>\n"),
        piece=lambda clip: "<|AUDIO|>" * sound_count(clip),
        tensors=sounds,
        media_tokens=("<|AUDIO|>",),
        tower="model.audio_tower",
        media="audio",
        n_frames=0,
        has_sound=True,
    ),
    Case(
        name="qwen25omni-video",
        family="qwen25omni",
        model_class=OMNI,
        write=chatml("<|vision_bos|>", "<|vision_eos|>"),
        piece=lambda clip: "<|VIDEO|>" * qwen_count(clip),
        tensors=qwen_videos("video_second_per_grid"),
        media_tokens=("<|VIDEO|>",),
        tower="model.visual",
    ),
    Case(
        name="qwen25omni-audio",
        family="qwen25omni",
        model_class=OMNI,
        write=chatml("<|audio_bos|>", "<|audio_eos|>"),
        piece=lambda clip: "<|AUDIO|>" * sound_count(clip),
        tensors=sounds,
        media_tokens=("<|AUDIO|>",),
        tower="model.audio_tower",
        media="audio",
        n_frames=0,
        has_sound=True,
    ),
    Case(
        name="qwen25omni-both",
        family="qwen25omni",
        model_class=OMNI,
        write=chatml("<|vision_bos|>", "<|vision_eos|>"),
        # The whole window is within the first turn of two seconds.
        piece=lambda clip: (
            "<|audio_bos|>" + "<|VIDEO|>" * qwen_count(clip) + "<|AUDIO|>" * sound_count(clip) + "<|audio_eos|>"
        ),
        tensors=videos_with_sound,
        media_tokens=("<|VIDEO|>", "<|AUDIO|>"),
        tower="model.visual",
        media="both",
        has_sound=True,
    ),
    Case(
        name="internvl",
        family="internvl",
        model_class="InternVLForConditionalGeneration",
        write=internvl,
        piece=internvl_piece,
        tensors=images,
        media_tokens=("<IMG_CONTEXT>",),
        tower="model.vision_tower",
        parameters={"n_frames": 4},
    ),
)
BY_NAME = {case.name: case for case in CASES}


@lru_cache(maxsize=4)
def qformer_tokenizer(folder: Path) -> Any:
    """The tokenizer of InstructBLIP's Q-Former."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "qformer_tokenizer")


@dataclass
class Asked:
    """One prompt of one clip: the real model's inputs, and where media and instruction are in the ids."""

    inputs: dict[str, Any]
    media: list[int]
    instruction: list[int]


class Oracle:
    """The real model of a case, called for one prompt at a time."""

    def __init__(self, case: Case, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        from transformers import AutoTokenizer

        self.case, self.folder = case, folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        with no_progress_bars():
            model_class = getattr(importlib.import_module("transformers"), case.model_class)
            self.model = model_class.from_pretrained(folder, dtype=dtype).eval()
        # Answers go on behind their end, so that a test can put the end where it wants.
        for model in (self.model, getattr(self.model, "language_model", None)):
            if model is not None and getattr(model, "generation_config", None) is not None:
                model.generation_config.eos_token_id = None
        self._states: dict[tuple[int, str | None], torch.Tensor] = {}
        self._answers: dict[tuple[int, str | None], tuple[list[int], torch.Tensor]] = {}

    def ask(self, clip: ClipMedia, text: str | None, shown: Sequence[Demonstration] = ()) -> Asked:
        """Write the prompt out, behind demonstrations."""
        write, piece = self.case.write, self.case.piece
        before = ""
        for one in shown:
            start, end = write(piece(one.media), one.instruction)
            before += start.removeprefix(SYSTEM) + one.instruction + end + one.answer + "<|im_end|>\n"
        start, after = write(piece(clip), text)
        before = start if not shown else SYSTEM * start.startswith(SYSTEM) + before + start.removeprefix(SYSTEM)
        encoded = self.tokenizer(before + (text or "") + after, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        inputs: dict[str, Any] = {}
        if self.case.family == "instructblipvideo":
            inputs = self._questions(text)
            # Eight query tokens of each of four frames.
            queries = [self.tokenizer.convert_tokens_to_ids("<video>")] * 32
            ids, offsets = queries + ids, [(0, 0)] * 32 + offsets
        input_ids = torch.tensor([ids])
        inputs |= {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            **self.case.tensors(self.folder, [*(one.media for one in shown), clip]),
            **self.case.further(input_ids, self.tokenizer),
        }
        first, end = len(before) - len(start), len(before) + len(text or "")
        media = {self.tokenizer.convert_tokens_to_ids(token) for token in self.case.media_tokens}
        return Asked(
            inputs,
            [i for i, token in enumerate(ids) if token in media and offsets[i][0] >= (first if shown else 0)],
            [i for i, (left, right) in enumerate(offsets) if left < end and right > len(before)],
        )

    def _questions(self, text: str | None) -> dict[str, Any]:
        made = qformer_tokenizer(self.folder)(text or "", return_tensors="pt")
        return {"qformer_input_ids": made["input_ids"], "qformer_attention_mask": made["attention_mask"]}

    @torch.no_grad()
    def forward(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Hidden states (n_layers, n_tokens, width) of one top-level forward."""
        output = self.model(**inputs, output_hidden_states=True)
        output = output.get("language_model_outputs", output)
        return torch.stack([state[0] for state in output.hidden_states])

    @torch.no_grad()
    def generate(self, inputs: Mapping[str, Any], n_new: int = N_NEW) -> tuple[list[int], torch.Tensor]:
        """Tokens of the real `generate`, and the states (n_layers, n_new, width) of all but the last."""
        output = self.model.generate(
            **inputs,
            max_new_tokens=n_new + 1,
            do_sample=False,
            return_dict_in_generate=True,
            output_hidden_states=True,
        )
        tokens = output.sequences[0].tolist()[-n_new - 1 :]
        steps = [torch.stack([state[0, -1] for state in step]) for step in output.hidden_states[1:]]
        return tokens[:n_new], torch.stack(steps, dim=1)

    def states(self, clip: ClipMedia, text: str | None) -> torch.Tensor:
        """What `forward` gives, kept."""
        key = (clip.clip.index, text)
        if key not in self._states:
            self._states[key] = self.forward(self.ask(clip, text).inputs)
        return self._states[key]

    def answer(self, clip: ClipMedia, text: str | None) -> tuple[list[int], torch.Tensor]:
        """What `generate` gives, kept."""
        key = (clip.clip.index, text)
        if key not in self._answers:
            self._answers[key] = self.generate(self.ask(clip, text).inputs)
        return self._answers[key]

    def expected(self, pooling: str, clip: ClipMedia, text: str | None) -> torch.Tensor:
        """The pooled states (n_layers, width) of one clip of :meth:`Case.clips` and one instruction."""
        if pooling == "generated":
            return self.answer(clip, text)[1].mean(dim=1)
        states = self.states(clip, text)
        if pooling == "last":
            return states[:, -1]
        asked = self.ask(clip, text)
        span = asked.media if pooling == "media" else asked.instruction
        return states[:, [i for i in span if i >= SINKS]].mean(dim=1)


def relative_error(found: Any, expected: torch.Tensor) -> float:
    """Largest ``||found - expected|| / ||expected||`` of a layer, both (n_layers, ...)."""
    found, expected = torch.as_tensor(np.asarray(found)).double().flatten(1), expected.double().flatten(1)
    assert found.shape == expected.shape
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def drive(extractor: Any, clips: Media, texts: Sequence[str | None], **options: Any) -> Answers:
    """Run the engine itself on clips of one shape with the prompts of a loaded family."""
    batch = extractor._architecture.prepare(clips, extractor._setup)
    prompts = [build(extractor, batch, text) for text in texts]
    arguments: dict[str, Any] = {
        "poolings": ("generated", "last", "instruction"),
        "decoding": extractor._decoding,
        "shares": extractor._architecture.shares,
        **options,
    }
    return run(extractor._loaded(batch), prompts, len(clips), **arguments)


def build(extractor: Any, batch: Any, text: str | None) -> Any:
    """The prompt of an instruction for a batch."""
    return extractor._prompts.build(text, batch.expand, n_media=batch.n_tokens, shape=batch.shape)


def processed(
    case: Case, processor: Any, clips: Media, texts: Sequence[str | None], answers: Sequence[str] = ()
) -> Any:
    """One prompt by the real processor and its own template: all clips but the last are demonstrations."""
    if case.family == "instructblipvideo":
        return processor(images=clips[0].frames, text=texts[0] or "", return_tensors="pt")
    messages: list[dict[str, Any]] = []
    for i, text in enumerate(texts):
        told = [] if text is None else [{"type": "text", "text": text}]
        messages.append({"role": "user", "content": [{"type": "audio" if case.media == "audio" else "video"}, *told]})
        messages += [{"role": "assistant", "content": [{"type": "text", "text": one}]} for one in answers[i : i + 1]]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    arguments: dict[str, Any] = {}
    if case.n_frames:
        arguments["videos"] = [clip.frames for clip in clips]
    if case.has_sound:
        arguments |= {"audio": [clip.audio for clip in clips], "sampling_rate": RATE}
    if case.family in ("qwen25vl", "internvl"):
        indices = list(range(case.n_frames))
        metadata = {"total_num_frames": case.n_frames, "fps": case.n_frames / WINDOW, "frames_indices": indices}
        arguments["video_metadata"] = [metadata] * len(clips)
    if case.family == "qwen25omni":
        size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 8 * 28 * 28}
        arguments["videos_kwargs"] = {"size": size, "fps": case.n_frames / WINDOW}
    if case.media == "both":
        arguments |= {"audio_from_video_indices": list(range(len(clips))), "load_audio_from_video": True}
    return processor(text=[prompt], return_tensors="pt", **arguments)


@dataclass
class Watch:
    """All hidden states and positions of every pass of a decoder, seen by hooks of the test's own."""

    states: list[torch.Tensor] = field(default_factory=list)
    positions: list[torch.Tensor | None] = field(default_factory=list)


@contextmanager
def watched(model: Any) -> Iterator[Watch]:
    """Watch the text model of a model; a pass's states are (n_layers, n_rows, n_tokens, width)."""
    decoder = model.get_decoder()
    watch, passing = Watch(), []

    def at_door(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        watch.positions.append(arguments.get("position_ids"))
        passing[:] = [arguments["inputs_embeds"]]

    def behind_layer(_: Any, __: Any, output: Any) -> None:
        passing.append(output[0] if isinstance(output, tuple) else output)

    def behind_norm(_: Any, __: Any, output: torch.Tensor) -> None:
        watch.states.append(torch.stack([*passing, output]))

    hooks = [decoder.register_forward_pre_hook(at_door, with_kwargs=True)]
    hooks += [layer.register_forward_hook(behind_layer) for layer in decoder.layers[:-1]]
    hooks.append(decoder.norm.register_forward_hook(behind_norm))
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def hooked(model: Any) -> list[str]:
    """Names of the modules that have a hook of the product's, or a forward call that is not their class's own."""
    found = []
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        ours = any(hook.__module__.startswith("bids_mllm") for hook in hooks)
        if ours or getattr(module.forward, "__func__", None) is not type(module).forward:
            found.append(name)
    return found
