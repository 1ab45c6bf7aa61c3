"""DINOv2: a transformer over the patches of single images, trained without labels.

The frames of a clip are seen one by one and averaged. Its positions stretch to any size of frame, so the
processor file alone settles it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bids_mllm.features.models.encoders import (
    IMAGE_FRAMES,
    EncoderFamily,
    Found,
    Layout,
    frame_count,
    frames_identity,
    make_family,
    pixel_settings,
)
from bids_mllm.features.models.pixel_settings import ODD_FRAME, prepared_size
from bids_mllm.records import ClipMedia, MediaRequest

if TYPE_CHECKING:
    from bids_mllm.features.models.encoders_extractor import Batch, Tower


def _layout(found: Found) -> Layout:
    """Return frames and sizes."""
    n_frames, patch = frame_count(found, IMAGE_FRAMES), found.number("patch_size", 14)
    settings = pixel_settings(found, "BitImageProcessor")
    height, width = prepared_size(*ODD_FRAME, settings)
    return Layout(
        request=MediaRequest("video", n_frames=n_frames),
        n_layers=found.number("num_hidden_layers", 12) + 1,
        width=found.number("hidden_size", 768),
        n_tokens=n_frames * ((height // patch) * (width // patch) + 1),
        identity=frames_identity(settings, n_frames),
        settings=settings,
    )


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the classes."""
    from transformers import Dinov2Config, Dinov2Model

    from bids_mllm.features.models.encoders_extractor import Tower, image_batch

    def batch(clips: Sequence[ClipMedia]) -> "Batch":
        return image_batch(clips, layout.settings)

    return Tower(
        model_class=Dinov2Model,
        config_class=Dinov2Config,
        batch=batch,
        layers=lambda model: model.encoder.layer,
        final_norm=lambda model: model.layernorm,
    )


FAMILY = make_family(EncoderFamily("dinov2", ("dinov2",), _layout, _tower, parameters=("n_frames",)))
