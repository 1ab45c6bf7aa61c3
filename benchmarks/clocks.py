"""Wall and CPU seconds of calls, and of the stages of an extraction."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from bids_mllm.features.extractor import ReadOut
from bids_mllm.features.models.architecture import Architecture
from bids_mllm.features.models.instructed import load
from bids_mllm.features.models.instructed_extractor import load_architecture
from bids_mllm.records import ClipMedia, ModelSpec

#: Preparing media, picture or sound, common beginning, branches, generated tokens; `rest` is what they leave.
STAGES = ("media", "tower", "beginning", "branches", "decoding", "rest")


def clock(device: str) -> tuple[float, float]:
    """Return wall and CPU seconds, when the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def timed(call: Callable[[], Any], device: str) -> tuple[Any, np.ndarray]:
    """Return what a call gave, and its wall and CPU seconds."""
    before = clock(device)
    gave = call()
    return gave, np.subtract(clock(device), before)


def text_model(model: Any) -> Any:
    """Return the part of a model that has the layers of the language model."""
    decoder = model.get_decoder()
    while not hasattr(decoder, "layers"):
        decoder = decoder.get_decoder()
    return decoder


class Stopwatch:
    """Wall seconds that calls of a model's parts take, by stage."""

    def __init__(self, model: Any, towers: Sequence[str], device: str, *, n_branches: int) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._device, self._n_branches = device, n_branches
        self._stack = ExitStack()
        for name in towers:
            self._watch(attrgetter(name)(model), lambda _: "tower")
        self._watch(text_model(model), self._stage)

    def _stage(self, arguments: Mapping[str, Any]) -> str:
        if not arguments["past_key_values"].get_seq_length():
            return "beginning"
        return "decoding" if arguments["inputs_embeds"].shape[1] <= self._n_branches else "branches"

    def _watch(self, module: Any, stage_of: Callable[[Mapping[str, Any]], str]) -> None:
        begun: list[tuple[str, float]] = []

        def before(_: Any, __: Any, arguments: Mapping[str, Any]) -> None:
            begun.append((stage_of(arguments), clock(self._device)[0]))

        def after(_: Any, __: Any, ___: Any) -> None:
            stage, start = begun.pop()
            self.seconds[stage] += clock(self._device)[0] - start

        self._stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        self._stack.callback(module.register_forward_hook(after).remove)

    def close(self) -> None:
        """Take the hooks away."""
        self._stack.close()


class Watched:
    """An extractor of which the model inside is known, and how long its media take to prepare."""

    def __init__(self, architecture: Architecture, spec: ModelSpec, readout: ReadOut, device: str) -> None:
        self._architecture, self._readout, self._device = architecture, readout, device
        self._preparing = 0.0
        inner = replace(architecture, load=self._load, prepare=self._prepare)
        self.extractor = load(inner, spec, readout, device)

    def _load(self, setup: Any, device: str, seed: int) -> Any:
        self.model = load_architecture(self._architecture, setup, device, seed)
        return self.model

    def _prepare(self, clips: Sequence[ClipMedia], setup: Any) -> Any:
        made, (wall, _) = timed(lambda: self._architecture.prepare(clips, setup), self._device)
        self._preparing += wall
        return made

    def stages(self, clips: Sequence[ClipMedia]) -> dict[str, float]:
        """Return the wall seconds of one extraction by stage."""
        self.extractor.extract(clips)
        self._preparing = 0.0
        watch = Stopwatch(
            self.model, self._architecture.towers, self._device, n_branches=len(self._readout.instructions)
        )
        _, (wall, _) = timed(lambda: self.extractor.extract(clips), self._device)
        watch.close()
        stages = {**watch.seconds, "media": self._preparing}
        return {**stages, "rest": float(wall) - sum(stages.values())}
