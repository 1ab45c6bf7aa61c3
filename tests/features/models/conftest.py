"""Tiny checkpoints of the real architectures, clips, and the real processors where torchvision is there."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bids_mllm.features.extractor import ReadOut
from bids_mllm.features.instructions import load_instructions
from bids_mllm.records import Clip, ClipMedia, ModelSpec

WINDOW = 1.49
HAS_TORCHVISION = find_spec("torchvision") is not None
SCHEMAS = None
if HAS_TORCHVISION:
    # torchvision's wheel is built for CUDA and looks up two operators that a CPU torch does not have; with
    # their schemas declared it imports, and its transforms, which are all that is needed, work.
    SCHEMAS = torch.library.Library("torchvision", "DEF")
    SCHEMAS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    SCHEMAS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Imported here as everything that imports transformers, because the schemas above have to come before.
    from bids_mllm.features.models.tiny import save_tiny_qwen25vl

    return save_tiny_qwen25vl(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def make_spec(tiny_folder: Path) -> Callable[..., ModelSpec]:
    def make(source: Path = tiny_folder, **parameters: Any) -> ModelSpec:
        return ModelSpec(
            key="tiny",
            family="qwen25vl",
            media="video",
            source=str(source),
            kind="instruction-tuned video",
            parameters=parameters,
        )

    return make


@pytest.fixture(scope="session")
def make_readout() -> Callable[..., ReadOut]:
    def make(*poolings: Any, n_instructions: int = 3, max_new_tokens: int = 5) -> ReadOut:
        return ReadOut(
            window=WINDOW,
            poolings=poolings,
            instructions=load_instructions()[:n_instructions],
            max_new_tokens=max_new_tokens,
        )

    return make


@pytest.fixture(scope="session")
def make_clips() -> Callable[..., list[ClipMedia]]:
    def make(n_clips: int, *, n_frames: int = 4, size: tuple[int, int] = (56, 56), seed: int = 0) -> list[ClipMedia]:
        from instructed_cases import smooth_movie

        rng = np.random.default_rng(seed)
        return [
            ClipMedia(
                Clip("film.mp4", i, i * WINDOW, (i + 1) * WINDOW),
                frames=smooth_movie(rng, n_frames, *size),
            )
            for i in range(n_clips)
        ]

    return make


@pytest.fixture(scope="session")
def real_processor(tiny_folder: Path) -> Any:
    """The real processor of the tiny checkpoint."""
    if not HAS_TORCHVISION:
        pytest.skip("the real video processor needs torchvision")
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny checkpoint of an instruction-following family, not to be changed by a test."""
    from bids_mllm.features.models.tiny import TINY_CHECKPOINTS

    root = tmp_path_factory.mktemp("instructed")

    @cache
    def get(family: str) -> Path:
        return TINY_CHECKPOINTS[family](root / family)

    return get


@pytest.fixture(scope="session")
def oracle_of(folder_of: Callable[[str], Path]) -> Callable[[Any], Any]:
    """The real model of a case, called for one prompt at a time."""
    from instructed_cases import Oracle

    made: dict[str, Oracle] = {}

    def get(case: Any) -> Oracle:
        if case.name not in made:
            made[case.name] = Oracle(case, folder_of(case.family))
        return made[case.name]

    return get


@pytest.fixture(scope="session")
def extractor_of(folder_of: Callable[[str], Path]) -> Callable[..., Any]:
    """A loaded extractor of a case with all poolings, on the shared path where there is one or on the plain one."""
    from instructed_cases import make_readout

    made: dict[tuple[str, bool], Any] = {}

    def get(case: Any, plain: bool = False) -> Any:
        if (case.name, plain) not in made:
            readout = make_readout("generated", "last", "instruction", "media", plain=plain)
            made[case.name, plain] = case.product().load(case.spec(folder_of(case.family)), readout, "cpu")
        return made[case.name, plain]

    return get


@pytest.fixture(scope="session")
def processor_of(folder_of: Callable[[str], Path]) -> Callable[[Any], Any]:
    """The real processor of a case."""
    from transformers import AutoProcessor

    def get(case: Any) -> Any:
        if case.family != "qwen2audio" and not HAS_TORCHVISION:
            pytest.skip("the real video processor needs torchvision")
        return AutoProcessor.from_pretrained(folder_of(case.family))

    return get
