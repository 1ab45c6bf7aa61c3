"""What drives the simulated voxels: features of the app's own models, extracted as the app does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bids_mllm.features.extraction import extract_clips
from bids_mllm.features.extractor import ReadOut
from bids_mllm.features.instructions import choose_instructions, load_instructions
from bids_mllm.features.registry import load_family, resolve_models
from bids_mllm.io.clips import read_clips
from bids_mllm.records import Clip, Condition, ModelSpec, Stimulus

TINY_MODEL = "qwen25vltiny"
INSTRUCTION = "AR"
OTHER_INSTRUCTION = "ESA"
PLANTED_LAYER = 3
MAX_NEW_TOKENS = 8
# Windows that end this much after the stream, in seconds, still count as complete: rounding of time stamps.
END_TOLERANCE = 1e-6

ConditionFeatures = Mapping[Condition, NDArray[np.float32]]


@dataclass(frozen=True)
class Driver:
    """A feature space that responses are made of; `name` is how voxel tables and regions call it."""

    name: str
    spec: ModelSpec
    read_out: ReadOut
    condition: Condition
    layer: int


def common_duration(stimulus: Stimulus) -> float:
    """Seconds for which every stream of the stimulus lasts."""
    return min(d for d in (stimulus.video_duration, stimulus.audio_duration) if d is not None)


def count_windows(stimulus: Stimulus, repetition_time: float) -> int:
    """Number of complete windows of one TR from the start of the stimulus."""
    return int((common_duration(stimulus) + END_TOLERANCE) / repetition_time)


def make_drivers(model_folder: Path, stimuli: Sequence[Stimulus], repetition_time: float) -> tuple[Driver, ...]:
    """Return the drivers that all stimuli can serve, with the settings of a quick trial run.

    Parameters
    ----------
    model_folder
        Checkpoint of the tiny model.
    stimuli
        A driver of video is left out where a stimulus has no pictures, one of sound where it has none.
    repetition_time
        Seconds; each window is one TR long.
    """
    instructions = choose_instructions(load_instructions(), (INSTRUCTION,))
    specs = resolve_models(("motionenergy", "melspectrogram", f"{TINY_MODEL}={model_folder}"), sloppy=True)
    drivers = []
    for spec in specs:
        if any(stimulus.duration(spec.media) is None for stimulus in stimuli):
            continue
        if spec.instructed:
            condition = Condition("generated", INSTRUCTION)
            read_out = ReadOut(repetition_time, ("generated",), instructions, MAX_NEW_TOKENS)
            drivers.append(Driver("model", spec, read_out, condition, PLANTED_LAYER))
        else:
            read_out = ReadOut(repetition_time, ("stimulus",), ())
            drivers.append(Driver(spec.key, spec, read_out, Condition("stimulus"), 0))
    return tuple(drivers)


def with_other_instruction(driver: Driver) -> Driver:
    """Return the driver of an instructed model with a second instruction beside the planted one."""
    instructions = choose_instructions(load_instructions(), (INSTRUCTION, OTHER_INSTRUCTION))
    return replace(driver, read_out=replace(driver.read_out, instructions=instructions))


def extract_driver(
    driver: Driver, stimuli: Sequence[Stimulus], advance: Callable[[], object]
) -> dict[str, ConditionFeatures]:
    """Return for each stimulus the features of every condition, (n_windows, n_layers, width).

    `advance` is called after each stimulus.
    """
    family = load_family(driver.spec.family)
    plan = family.plan(driver.spec, driver.read_out)
    extractor = family.load(driver.spec, driver.read_out, "cpu")
    features: dict[str, ConditionFeatures] = {}
    try:
        for stimulus in stimuli:
            clips = _windows(stimulus, driver.read_out.window)
            media = read_clips(stimulus, clips, plan.request)
            features[stimulus.stim_file] = extract_clips(extractor, plan, media, model=driver.spec.key)
            advance()
    finally:
        extractor.close()
    return features


def _windows(stimulus: Stimulus, length: float) -> list[Clip]:
    n_windows = count_windows(stimulus, length)
    return [Clip(stimulus.stim_file, k, k * length, k * length + length) for k in range(n_windows)]
