"""ViT: a transformer over the patches of single images, trained to name what is in them.

The frames of a clip are seen one by one and averaged.
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
from bids_mllm.records import ClipMedia, MediaRequest

if TYPE_CHECKING:
    from bids_mllm.features.models.encoders_extractor import Batch, Tower


def _layout(found: Found) -> Layout:
    """Return frames and sizes."""
    side, n_frames = found.number("image_size", 224), frame_count(found, IMAGE_FRAMES)
    settings = pixel_settings(found, "ViTImageProcessor", side=side)
    return Layout(
        request=MediaRequest("video", n_frames=n_frames),
        n_layers=found.number("num_hidden_layers", 12) + 1,
        width=found.number("hidden_size", 768),
        n_tokens=n_frames * ((side // found.number("patch_size", 16)) ** 2 + 1),
        identity=frames_identity(settings, n_frames),
        settings=settings,
    )


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the classes; the pooler, which a classifier lacks, is left out."""
    from transformers import ViTConfig, ViTModel

    from bids_mllm.features.models.encoders_extractor import Tower, image_batch

    def batch(clips: Sequence[ClipMedia]) -> "Batch":
        return image_batch(clips, layout.settings)

    return Tower(
        model_class=ViTModel,
        config_class=ViTConfig,
        batch=batch,
        layers=lambda model: model.layers,
        final_norm=lambda model: model.layernorm,
        options={"add_pooling_layer": False},
    )


FAMILY = make_family(EncoderFamily("vit", ("vit",), _layout, _tower, parameters=("n_frames",)))
