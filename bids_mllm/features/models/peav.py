"""PE-AV: sound and film in one encoder, trained to match captions, sound and film with one another.

An audio tower (a codec's encoder and a transformer) gives one token a hop of samples, a video tower one a frame.
The frames' tokens are stretched to the audio's, the two are joined, and a transformer runs over them: its layers
are read, and the last one is what the model itself gives, behind the final norm and the projection after it. A
window whose samples are no multiple of the hop is filled up with its own mirror image, as in the reference.

The tower for single frames is a model of timm, which needs torchvision. Only the encoder is loaded: the text
tower has no part in it, and the class that holds all towers cannot be read back in transformers 5.23, which
takes the frequencies of timm's rotary positions for weights.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.models import checkpoint
from bids_mllm.features.models.encoders import (
    EncoderFamily,
    Found,
    Layout,
    frame_count,
    frames_identity,
    make_family,
    pixel_settings,
    read_media_config,
)
from bids_mllm.features.models.pixel_settings import ODD_FRAME, prepared_size
from bids_mllm.records import ClipMedia, FloatArray, MediaRequest

if TYPE_CHECKING:
    from bids_mllm.features.models.encoders_extractor import Batch, Tower

SECTION = "audio_video_config"
DEFAULT_FRAMES, DEFAULT_RATE, DEFAULT_HOP = 16, 48_000, 1920
DEFAULT_RATIOS = (2, 8, 10, 12)
PATCH = 14
# The towers inside the joint encoder are stored once, under the names of the models of one medium.
AUDIO, VIDEO, JOINT = "audio_model.audio_encoder.", "video_model.video_encoder.", "audio_video_encoder."
VISION, CODEC = f"{VIDEO}embedder.vision_model.", f"{AUDIO}embedder.dac_encoder."
KEY_MAPPING = {
    rf"^{re.escape(JOINT)}": "",
    rf"^{re.escape(AUDIO)}": "embedder.audio_encoder.",
    rf"^{re.escape(VIDEO)}": "embedder.video_encoder.",
}


def _section(values: Any, *names: str) -> Mapping[str, Any]:
    """Return a section of a configuration, empty where it is left out."""
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else {}


def _frame_side(vision: Mapping[str, Any]) -> int | None:
    """Return the pixels of the square that the model of timm takes: its argument, or the end of its name."""
    side = _section(vision, "model_args").get("img_size")
    named = re.search(r"_(\d+)$", str(vision.get("architecture", "")))
    return side if isinstance(side, int) else int(named.group(1)) if named else None


def _flops(found: Found, n_samples: int, n_frames: int, n_patches: int, ratios: Sequence[int]) -> float:
    """Return the operations of one clip: two for each weight and each position at which it is used."""

    def count(*prefixes: str) -> int:
        return checkpoint.count_parameters(found.folder, prefixes)

    positions, total = float(n_samples), float(n_samples * count(f"{CODEC}conv1."))
    for block, ratio in enumerate(ratios):
        name = f"{CODEC}block.{block}."
        total += positions * count(f"{name}res_unit")
        positions /= ratio
        total += positions * count(f"{name}conv1.")
    total += positions * (count(AUDIO, JOINT) - count(f"{CODEC}block.", f"{CODEC}conv1."))
    total += n_frames * (n_patches * count(VISION) + count(VIDEO) - count(VISION))
    return 2 * total


def _layout(found: Found) -> Layout:
    """Return frames, sound and sizes; frames and samples may be any number."""
    joint = _section(found.config, SECTION)
    vision = _section(joint, "video_config", "vision_config")
    settings = pixel_settings(found, "PeVideoVideoProcessor", side=_frame_side(vision))
    n_frames = frame_count(
        found, read_media_config(found.folder, "video_processor").get("num_frames") or DEFAULT_FRAMES
    )
    sound = read_media_config(found.folder, "feature_extractor")
    rate, hop = sound.get("sampling_rate", DEFAULT_RATE), sound.get("hop_length", DEFAULT_HOP)
    ratios = _section(joint, "audio_config", "dac_config").get("downsampling_ratios", DEFAULT_RATIOS)
    if not all(isinstance(value, int) and value > 0 for value in (rate, hop)) or np.prod(ratios) != hop:
        raise CheckpointError(
            f"{found.folder} has a feature extractor of {rate} Hz with a hop of {hop} samples, but its model makes "
            f"one token of {np.prod(ratios)}; copy both from one checkpoint."
        )
    height, width = prepared_size(*ODD_FRAME, settings)
    patch = _section(vision, "model_args").get("patch_size", PATCH)
    n_patches, n_samples = (height // patch) * (width // patch), round(found.window * rate)
    return Layout(
        request=MediaRequest("both", n_frames=n_frames, sampling_rate=rate),
        n_layers=found.number("num_hidden_layers", 6, SECTION) + 1,
        width=found.number("hidden_size", 1792, SECTION),
        n_tokens=n_frames * n_patches + n_samples // hop,
        identity={**frames_identity(settings, n_frames), "sound": {"sampling_rate": rate, "hop_length": hop}},
        settings=(settings, hop),
        weights=(AUDIO, VIDEO, JOINT),
        flops=_flops(found, n_samples, n_frames, n_patches, ratios),
    )


def whole_hops(samples: FloatArray, hop: int) -> FloatArray:
    """Return samples (n_samples,) filled up to a multiple of `hop` with their mirror image."""
    missing = -len(samples) % hop
    return np.pad(samples, (0, missing), "reflect") if missing else samples


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the classes of the joint encoder."""
    import torch
    from transformers import PeAudioVideoEncoder, PeAudioVideoEncoderConfig

    from bids_mllm.features.models.encoders_extractor import Batch, Tower, video_batch

    frames, hop = layout.settings

    def batch(clips: Sequence[ClipMedia]) -> "Batch":
        made = video_batch(clips, frames, name="pixel_values_videos", n_prefix=1)
        sound = np.stack([whole_hops(np.asarray(clip.audio, np.float32), hop) for clip in clips])
        values = torch.from_numpy(sound)[:, None]
        mask = torch.ones(values.shape[0], values.shape[-1], dtype=torch.long)
        return Batch({**made.arguments, "input_values": values, "padding_mask": mask}, made.pool)

    return Tower(
        model_class=PeAudioVideoEncoder,
        config_class=PeAudioVideoEncoderConfig,
        batch=batch,
        layers=lambda model: model.layers,
        final_norm=lambda model: lambda states: model.output(model.norm(states)),
        reading={"key_mapping": KEY_MAPPING},
    )


FAMILY = make_family(
    EncoderFamily("peav", ("pe_audio_video",), _layout, _tower, parameters=("n_frames",), needs=("timm",))
)
