"""V-JEPA 2: a transformer over tubelets, pre-trained to predict what is masked in its own representation.

Only the encoder is read; the predictor is not run.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bids_mllm.features.models.encoders import (
    EncoderFamily,
    Found,
    Layout,
    frame_count,
    frames_identity,
    make_family,
    pixel_settings,
)
from bids_mllm.records import ClipMedia, MediaRequest

if TYPE_CHECKING:
    from bids_mllm.features.models.encoders_extractor import Batch, Tower


def _layout(found: Found) -> Layout:
    """Return frames and sizes; positions are rotary, so the number of frames is free but not their side."""
    side, tubelet = found.number("crop_size", 256), found.number("tubelet_size", 2)
    n_frames = frame_count(found, found.number("frames_per_clip", 64), multiple=tubelet)
    settings = pixel_settings(found, "VJEPA2VideoProcessor", side=side)
    return Layout(
        request=MediaRequest("video", n_frames=n_frames),
        n_layers=found.number("num_hidden_layers", 24) + 1,
        width=found.number("hidden_size", 1024),
        n_tokens=n_frames // tubelet * (side // found.number("patch_size", 16)) ** 2,
        identity=frames_identity(settings, n_frames),
        settings=settings,
        weights=("encoder.", "vjepa2.encoder."),
    )


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the classes."""
    from transformers import VJEPA2Config, VJEPA2Model

    from bids_mllm.features.models.encoders_extractor import Batch, Tower, video_batch

    def batch(clips: Sequence[ClipMedia]) -> "Batch":
        made = video_batch(clips, layout.settings, name="pixel_values_videos")
        return Batch({**made.arguments, "skip_predictor": True}, made.pool)

    return Tower(
        model_class=VJEPA2Model,
        config_class=VJEPA2Config,
        batch=batch,
        layers=lambda model: model.encoder.layer,
        final_norm=lambda model: model.encoder.layernorm,
    )


FAMILY = make_family(EncoderFamily("vjepa2", ("vjepa2",), _layout, _tower, parameters=("n_frames",)))
