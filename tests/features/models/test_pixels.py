"""Pixel values against the real processors of transformers, bit by bit."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bids_mllm.exceptions import CheckpointError, StimulusError
from bids_mllm.features.models.pixel_settings import DEFAULTS, prepared_size, settings_from_file
from bids_mllm.features.models.pixels import prepare_frames

needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="the real processors need torchvision")
# Landscape, square, portrait; smaller and larger than what the models take; odd sides.
SIZES = [(56, 56), (72, 128), (240, 427), (101, 67), (427, 240)]
IMAGE_PROCESSORS = {"VideoMAEImageProcessor", "ViTImageProcessor", "BitImageProcessor", "CLIPImageProcessor"}
IMAGE_PROCESSORS |= {"SiglipImageProcessor"}
# Beside what each class has by default: what hub files of these families say.
FILES: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in DEFAULTS if name != "PeVideoVideoProcessor"],
    ("LlavaOnevisionVideoProcessor", {"size": {"height": 42, "width": 70}, "do_center_crop": None}),
    ("LlavaNextVideoVideoProcessor", {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}),
    ("VideoLlavaVideoProcessor", {"size": {"shortest_edge": 60}, "crop_size": {"height": 80, "width": 90}}),
    ("InstructBlipVideoVideoProcessor", {"size": 64, "do_normalize": False}),
    ("InternVLVideoProcessor", {"size": {"height": 448, "width": 448}, "resample": 3, "num_frames": 8}),
    ("VideoMAEVideoProcessor", {"size": 64, "crop_size": 48, "rescale_factor": 0.00392156862745098}),
    ("VivitVideoProcessor", {"rescale_factor": 0.00784313725490196, "do_normalize": False}),
    ("VivitVideoProcessor", {"do_rescale": False}),
    ("TimesformerVideoProcessor", {"image_mean": [0.45, 0.45, 0.45], "image_std": [0.225, 0.225, 0.225]}),
    ("VJEPA2VideoProcessor", {"crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 500}}),
    ("ViTImageProcessor", {"size": 64, "resample": 3}),
    ("ViTImageProcessor", {"size": [48, 64]}),
    ("BitImageProcessor", {"size": {"shortest_edge": 256}, "image_mean": [0.485, 0.456, 0.406]}),
    ("CLIPImageProcessor", {"size": 64, "crop_size": 64}),
    ("CLIPImageProcessor", {"do_resize": False, "do_center_crop": False, "do_rescale": False}),
    ("SiglipImageProcessor", {"size": {"height": 70, "width": 70}, "do_rescale": False, "do_normalize": False}),
    ("PeVideoVideoProcessor", {"size": 64, "do_resize": True, "do_rescale": True}),
]


def reference(name: str, file: dict[str, Any], frames: np.ndarray) -> torch.Tensor:
    """What the real processor makes of the frames."""
    import transformers

    processor = getattr(transformers, name)(**file)
    if name in IMAGE_PROCESSORS:
        given = [list(frames)] if name == "VideoMAEImageProcessor" else list(frames)
        values = processor(given, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        return values[0] if name == "VideoMAEImageProcessor" else values
    batch = processor([frames], return_tensors="pt", input_data_format="channels_last")
    return next(iter(batch.values()))[0]


@needs_torchvision
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(("name", "file"), FILES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(FILES)])
def test_the_bits_of_the_real_processor(
    name: str, file: dict[str, Any], size: tuple[int, int], make_clips: Callable[..., Any]
) -> None:
    frames = make_clips(1, n_frames=2, size=size)[0].frames
    frames[0, ::3, ::2] = np.random.default_rng(1).integers(0, 256, frames[0, ::3, ::2].shape)
    settings = settings_from_file(file, name)
    values = prepare_frames(frames, settings)
    expected = reference(name, file, frames)
    assert values.dtype == torch.float32
    assert torch.equal(values, expected.to(torch.float32))
    assert tuple(values.shape[-2:]) == prepared_size(*size, settings)


@needs_torchvision
@pytest.mark.parametrize("name", DEFAULTS)
def test_a_saved_processor_file_is_read_as_its_class_reads_it(name: str, tmp_path: Path) -> None:
    import transformers

    processor = getattr(transformers, name)()
    processor.save_pretrained(tmp_path)
    saved = json.loads(next(tmp_path.iterdir()).read_text())
    if name == "PeVideoVideoProcessor":
        saved |= {"do_resize": False}
    assert settings_from_file(saved, name) == settings_from_file({}, name)


def test_no_offset_where_the_file_says_so() -> None:
    frames = np.full((1, 224, 224, 3), 100, np.uint8)
    file = {"do_resize": False, "do_normalize": False}
    with_offset = prepare_frames(frames, settings_from_file(file, "VivitVideoProcessor"))
    without = prepare_frames(frames, settings_from_file({**file, "offset": False}, "VivitVideoProcessor"))
    assert torch.equal(without, torch.full_like(without, 100) * (1 / 127.5))
    assert torch.equal(with_offset, without - 1)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"resample": 1}, "sets resample to 1, but only 2"),
        ({"size": {"longest_edge": 300}}, "sets size to"),
        ({"size": {"shortest_edge": 300, "longest_edge": 400}}, "sets size to"),
        ({"size": -4}, "sets size to -4"),
        ({"size": "large"}, "sets size to 'large'"),
        ({"do_center_crop": True, "crop_size": {"height": 3}}, "sets crop_size to"),
        ({"do_center_crop": True, "crop_size": 0}, "sets crop_size to 0"),
        ({"do_pad": True, "pad_size": {"height": 500, "width": 500}}, "sets pad_size to"),
        ({"do_flip_channel_order": True}, "sets do_flip_channel_order to True"),
        ({"crop_to_patches": True}, "sets crop_to_patches to True"),
        ({"image_mean": [0.5]}, r"sets image_mean to \[0\.5\]"),
        ({"image_std": [0.5, 0, 0.5]}, "sets image_std to"),
    ],
)
def test_what_is_not_supported_is_named(file: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        settings_from_file(file, "CLIPImageProcessor")


def test_a_crop_without_a_size() -> None:
    with pytest.raises(CheckpointError, match="sets crop_size to None"):
        settings_from_file({"do_center_crop": True}, "ViTImageProcessor")


def test_steps_that_do_nothing_to_the_frames_of_one_film_are_let_through() -> None:
    file = {"do_pad": True, "do_convert_rgb": True, "do_sample_frames": True, "num_frames": 8, "do_flip": False}
    assert settings_from_file(file, "ViTImageProcessor") == settings_from_file({}, "ViTImageProcessor")


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 5, 5), np.uint8), np.zeros((2, 5, 5, 4), np.uint8), np.zeros((2, 5, 5, 3)), np.zeros((0, 5, 5, 3))],
)
def test_frames_of_another_shape(frames: np.ndarray) -> None:
    with pytest.raises(StimulusError, match="The frames have shape"):
        prepare_frames(frames, settings_from_file({}, "ViTImageProcessor"))


def test_the_settings_are_plain_values_for_the_identity() -> None:
    settings = settings_from_file({}, "VivitVideoProcessor")
    assert json.loads(json.dumps(settings.as_json())) == {
        "size": None,
        "shortest_edge": 256,
        "resample": "bilinear",
        "crop": [224, 224],
        "rescale_factor": 1 / 127.5,
        "offset": True,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }


def test_settings_come_without_torch() -> None:
    code = "import sys; import bids_mllm.features.models.pixel_settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
