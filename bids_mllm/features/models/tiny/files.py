"""The small files of a checkpoint, written as transformers 5 nests them or as older checkpoints split them."""

import json
import shutil
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_mllm.features.models.frames import CLIP_MEAN, CLIP_STD
from bids_mllm.features.models.progress import no_progress_bars

PARTS = {
    "preprocessor_config.json": ("image_processor", "feature_extractor"),
    "video_preprocessor_config.json": ("video_processor",),
}
# Pixels of one token of Qwen's vision towers: 2 x 2 patches of 14 x 14.
TOKEN_PIXELS = 28 * 28


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as JSON with sorted keys."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")


def pixel_settings(
    *, mean: Sequence[float], std: Sequence[float], size: Mapping[str, int], crop: int | None = None
) -> dict[str, Any]:
    """Return the settings that image and video processors share.

    Parameters
    ----------
    mean, std
        Of the three colour channels, in [0, 1].
    size
        ``height`` and ``width``, or ``shortest_edge``, in pixels.
    crop
        Edge in pixels of the square cut out of the middle; None for no cropping.
    """
    settings = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": dict(size),
    }
    if crop is not None:
        settings |= {"do_center_crop": True, "crop_size": {"height": crop, "width": crop}}
    return settings


def qwen_vision_settings(frame_tokens: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Return the settings of Qwen2-VL's image and video processors, with patches of 14 x 14 x 2 frames.

    Parameters
    ----------
    frame_tokens
        The fewest and the most tokens of one temporal step (two frames); each is 2 x 2 patches.
    """
    size = {"shortest_edge": frame_tokens[0] * TOKEN_PIXELS, "longest_edge": frame_tokens[1] * TOKEN_PIXELS}
    shared = {
        **pixel_settings(mean=CLIP_MEAN, std=CLIP_STD, size=size),
        "merge_size": 2,
        "patch_size": 14,
        "temporal_patch_size": 2,
    }
    return {
        "image_processor": {**shared, "image_processor_type": "Qwen2VLImageProcessor"},
        "video_processor": {
            **shared,
            "cap_pixels_per_frame": False,
            "do_sample_frames": False,
            "video_processor_type": "Qwen2VLVideoProcessor",
        },
    }


def whisper_settings(seconds: int) -> dict[str, Any]:
    """Return the settings of the mel spectrogram of Qwen's audio models, padded to so many seconds."""
    return {
        "chunk_length": seconds,
        "dither": 0.0,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 128,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": seconds * 16000,
        "nb_max_frames": seconds * 100,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": 16000,
    }


def write_checkpoint(
    folder: Path, model: Any, tokenizer: Any, processor: Mapping[str, Any], *, ends: Sequence[int], padding: int
) -> Path:
    """Write weights, configuration, generation settings, tokenizer, template and processor; return the folder.

    Parameters
    ----------
    folder
        Made where it does not exist.
    model, tokenizer
        Written with their own ``save_pretrained``.
    processor
        The content of processor_config.json.
    ends, padding
        Ids of the tokens that end an answer, and of the one that pads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
    model.generation_config.pad_token_id = padding
    with no_progress_bars():
        model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", weights)  # safetensors lets nobody else read its files
    tokenizer.save_pretrained(folder)
    write_json(folder / "processor_config.json", processor)
    return folder


def split_processor_files(folder: Path) -> Path:
    """Rewrite the processor's settings as older checkpoints of the hub keep them, and return the folder.

    processor_config.json keeps what is the processor's own; images and audio go to preprocessor_config.json
    and videos to video_preprocessor_config.json.
    """
    path = folder / "processor_config.json"
    own = json.loads(path.read_text("utf-8"))
    for name, parts in PARTS.items():
        settings = [own.pop(part) for part in parts if part in own]
        if settings:
            write_json(folder / name, {"processor_class": own["processor_class"], **ChainMap(*settings)})
    write_json(path, own)
    return folder
