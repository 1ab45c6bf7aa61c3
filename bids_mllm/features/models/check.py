"""Whether a checkpoint is what its record says: its files, sizes, dtype, processor, template and instructions.

Everything runs through the code that an extraction uses, short of the weights, of which only headers are read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bids_mllm.exceptions import BidsMllmError, CheckpointError
from bids_mllm.features.catalogue import load_families, load_family
from bids_mllm.features.extractor import ReadOut
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models import checkpoint
from bids_mllm.features.models.architecture import Architecture, Setup
from bids_mllm.records import Clip, ClipMedia, MediaRequest, ModelSpec

Verdict = Literal["ok", "note", "wrong"]
DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Length in seconds of the window for which the checks plan, and height and width of its frames.
WINDOW = 2.0
FRAME_SIZE = (72, 128)
# The weights of a folder may include parts that are not loaded, or be stored in another dtype.
MEMORY_TOLERANCE = 0.1
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `verdict` is ok, note (worth knowing) or wrong."""

    topic: str
    verdict: Verdict
    text: str


def check_model(spec: ModelSpec) -> tuple[Finding, ...]:
    """Return what was found when a checkpoint was compared with its record.

    Parameters
    ----------
    spec
        A model with weights; its folder, or its hub id in the local cache, is looked at. With random weights
        those of the checkpoint are left aside.

    Returns
    -------
    Findings in the order of the checks. A check that cannot run is itself a finding; where there is no folder
    with a config.json nothing else is looked at.
    """
    try:
        folder = checkpoint.find_folder(spec.source, revision=spec.revision)
        config = checkpoint.read_config(folder, need_weights=spec.weights == "pretrained")
    except CheckpointError as error:
        return (Finding("files", "wrong", str(error)),)
    from huggingface_hub.errors import StrictDataclassError

    findings = [Finding("files", "ok", f"{folder} has config.json, model_type {config.get('model_type')!r}.")]
    for topic, check in CHECKS.items():
        try:
            # One by one, so that what was found before an error stays.
            for verdict, text in check(spec, folder):
                findings.append(Finding(topic, verdict, text))
        except BidsMllmError as error:
            findings.append(Finding(topic, "wrong", str(error)))
        except StrictDataclassError as error:
            findings.append(Finding(topic, "wrong", f"{folder / 'config.json'} contradicts itself: {_reason(error)}."))
    return tuple(findings)


Found = Iterator[tuple[Verdict, str]]


def _weights(spec: ModelSpec, folder: Path) -> Found:
    """Look at the headers of the weights: whole, how many, in which dtype, and how much memory they take."""
    if spec.weights == "random":
        yield "note", "The weights are drawn at random, so those of the folder are not looked at."
        return
    checkpoint.check_weights(folder)
    n_numbers = checkpoint.count_parameters(folder)
    memory_gb = checkpoint.weight_bytes(folder, spec.dtype) / 1e9
    yield "ok", f"All files are whole: {n_numbers:,} numbers, {memory_gb:.3g} GB in {spec.dtype}."
    if spec.memory_gb is not None and abs(memory_gb - spec.memory_gb) > max(0.1, MEMORY_TOLERANCE * spec.memory_gb):
        yield (
            "note",
            f"The record says {spec.memory_gb} GB for the part that is loaded, the whole folder takes {memory_gb:.3g}.",
        )
    stored = checkpoint.stored_dtypes(folder)
    name = max(stored, key=lambda dtype: stored[dtype])
    dtype = DTYPE_NAMES.get(name, name)
    if dtype == spec.dtype:
        yield "ok", f"The weights are stored in {dtype}, as the record says."
    elif (dtype, spec.dtype) == ("bfloat16", "float16"):
        yield "wrong", "The weights are stored in bfloat16, whose range float16 lacks; run the model in bfloat16."
    else:
        yield "note", f"The weights are stored in {dtype}; the record runs them in {spec.dtype}."


def _configuration(spec: ModelSpec, folder: Path) -> Found:
    """Load the configuration with its class of transformers, and compare the family's plan with the record."""
    yield _loaded("configuration", "AutoConfig", folder, spec, failure="wrong")
    plan = load_family(spec.family).plan(_alone(spec), _readout(spec))
    for name, found, expected in (("layers", plan.n_layers, spec.layers), ("features a layer", plan.width, spec.width)):
        if expected is None:
            yield "note", f"The checkpoint has {found} {name}; the record does not say."
        elif found == expected:
            yield "ok", f"The checkpoint has {found} {name}, as the record says."
        else:
            yield "wrong", f"The checkpoint has {found} {name}, but the record of {spec.key} says {expected}."


def _readout(spec: ModelSpec) -> ReadOut:
    """Return the read-out for which the checks plan: one instruction, one window."""
    instructions = load_instructions(media=spec.media)[:1] if spec.instructed else ()
    return ReadOut(WINDOW, ("last",) if spec.instructed else ("stimulus",), instructions)


def _alone(spec: ModelSpec) -> ModelSpec:
    """Return a model without the demonstrations that it is asked for at other times."""
    return replace(spec, kind="instruction-tuned") if spec.kind.startswith("in-context") else spec


def _loaded(what: str, loader: str, folder: Path, spec: ModelSpec, *, failure: Verdict) -> tuple[Verdict, str]:
    """Load a part of the checkpoint with an Auto class of transformers and say what it is, or why it does not."""
    entry = load_families().get(spec.family)
    if entry is not None and entry.remote_code:
        return "note", f"The {what} needs code from the checkpoint's own repository, which is not run here."
    from huggingface_hub.errors import StrictDataclassError

    try:
        import transformers

        part = getattr(transformers, loader).from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        return "note", f"The {what} of transformers cannot be loaded here: {_reason(error)}; features do without it."
    except (*LOADING_ERRORS, StrictDataclassError) as error:
        return failure, f"The {what} of {folder} cannot be loaded by transformers: {_reason(error)}."
    return "ok", f"The {what} loads as {type(part).__name__}."


def _reason(error: Exception) -> str:
    """Return the first sentence of an error."""
    words = " ".join(str(error).split())
    return words.split(". ")[0].rstrip(".") or type(error).__name__


def _processor(spec: ModelSpec, folder: Path) -> Found:
    """Load the processor, feature extractor or image processor with its class of transformers.

    The app prepares frames itself and reads the settings on its own, so that a failure here is only a note.
    """
    yield _loaded("processor", "AutoProcessor", folder, spec, failure="note")


def _instructions(spec: ModelSpec, folder: Path) -> Found:
    """Build the prompt of every built-in instruction around silent, black media, as an extraction does."""
    architecture = _architecture(spec)
    if not spec.instructed or architecture is None:
        return
    if architecture.render is not None:
        yield "note", f"The family {architecture.name} makes its prompts itself; no chat template is read."
        return
    from bids_mllm.features.models.instructed import prepare

    setup = prepare(architecture, _alone(spec), _readout(spec))
    batch = architecture.prepare([_blank_clip(setup.media.request)], setup)
    builder = _prompt_builder(architecture, setup)
    instructions = load_instructions(media=spec.media)
    for instruction in instructions:
        builder.build(instruction.text, batch.expand, n_media=batch.n_tokens, shape=batch.shape)
    yield (
        "ok",
        f"The prompt keeps all {len(instructions)} instructions word for word, {setup.order}, and holds "
        f"{batch.n_tokens} media tokens for a small clip.",
    )


def _architecture(spec: ModelSpec) -> Architecture | None:
    """Return the architecture of a family that follows instructions, None for any other."""
    load_family(spec.family)
    families = load_families()
    target = families[spec.family].target if spec.family in families else spec.family
    found = getattr(import_module(target.partition(":")[0]), "ARCHITECTURE", None)
    return found if isinstance(found, Architecture) else None


def _prompt_builder(architecture: Architecture, setup: Setup) -> Any:
    """Return what builds prompts in an extraction."""
    import transformers

    from bids_mllm.features.models.instructed_extractor import prompt_builder
    from bids_mllm.features.models.loading import load_tokenizer

    tokenizer = load_tokenizer(setup.folder)
    config = getattr(transformers, architecture.config_class).from_pretrained(setup.folder, local_files_only=True)
    ids = [getattr(config, name, None) for name in architecture.media_tokens]
    for name, token in zip(architecture.media_tokens, ids, strict=True):
        if token is None or tokenizer.convert_ids_to_tokens(token) is None:
            raise CheckpointError(
                f"{setup.folder / 'config.json'} has {token!r} as {name}, which is no token of the tokenizer; copy "
                "the checkpoint again."
            )
    return prompt_builder(architecture, setup, tokenizer, [token for token in ids if token is not None])


def _blank_clip(request: MediaRequest) -> ClipMedia:
    """Return a clip of a black picture and silence."""
    frames, times, audio = None, None, None
    if request.media != "audio":
        height, width = request.frame_size or FRAME_SIZE
        frames = np.zeros((request.n_frames, height, width, 3), dtype=np.uint8)
        times = (np.arange(request.n_frames) + 0.5) * WINDOW / max(1, request.n_frames)
    if request.media != "video":
        audio = np.zeros(round((WINDOW + request.lead) * request.sampling_rate), dtype=np.float32)
    return ClipMedia(Clip("", 0, 0.0, WINDOW), frames, times, audio, request.sampling_rate)


CHECKS: dict[str, Callable[[ModelSpec, Path], Found]] = {
    "weights": _weights,
    "configuration": _configuration,
    "processor": _processor,
    "instructions": _instructions,
}
