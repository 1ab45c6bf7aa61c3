"""A tiny checkpoint of the real architecture, clips, and the real processor where torchvision is there."""

from collections.abc import Callable
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
    # Imported here because the schemas above have to come before transformers.
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


@pytest.fixture(scope="session")
def make_clips() -> Callable[..., list[ClipMedia]]:
    def make(n_clips: int, *, n_frames: int = 4, size: tuple[int, int] = (56, 56), seed: int = 0) -> list[ClipMedia]:
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
