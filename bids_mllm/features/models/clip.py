"""CLIP's vision tower: a transformer over the patches of single images, trained to match their captions.

The frames of a clip are seen one by one and averaged. The model itself puts its final norm on the class token
alone; here it is put on the patches' tokens, as on any other encoder's.
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


SECTION = "vision_config"


def _layout(found: Found) -> Layout:
    """Return frames and sizes; a checkpoint holds both towers, or the vision tower alone."""
    section = SECTION if found.config["model_type"] == "clip" else None
    side, n_frames = found.number("image_size", 224, section), frame_count(found, IMAGE_FRAMES)
    settings = pixel_settings(found, "CLIPImageProcessor", side=side)
    return Layout(
        request=MediaRequest("video", n_frames=n_frames),
        n_layers=found.number("num_hidden_layers", 12, section) + 1,
        width=found.number("hidden_size", 768, section),
        n_tokens=n_frames * ((side // found.number("patch_size", 32, section)) ** 2 + 1),
        identity=frames_identity(settings, n_frames),
        settings=settings,
        weights=("",) if section is None else ("vision_model.",),
    )


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the classes."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from bids_mllm.features.models.encoders_extractor import Tower, image_batch

    def batch(clips: Sequence[ClipMedia]) -> "Batch":
        return image_batch(clips, layout.settings)

    return Tower(
        model_class=CLIPVisionModel,
        config_class=CLIPVisionConfig,
        batch=batch,
        layers=lambda model: model.encoder.layers,
        final_norm=lambda model: model.post_layernorm,
    )


FAMILY = make_family(EncoderFamily("clip", ("clip", "clip_vision_model"), _layout, _tower, parameters=("n_frames",)))
