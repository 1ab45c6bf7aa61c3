"""X-CLIP's vision tower: CLIP's, with a token through which the frames of a film exchange messages.

The frames of a clip run together and are averaged. As in CLIP, the final norm is put on the patches' tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bids_mllm.features.models.encoders import (
    EncoderFamily,
    Found,
    Layout,
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
    section = SECTION if found.config["model_type"] == "xclip" else None
    side, n_frames = found.number("image_size", 224, section), found.number("num_frames", 8, section)
    settings = pixel_settings(found, "VideoMAEImageProcessor", side=side)
    return Layout(
        request=MediaRequest("video", n_frames=n_frames),
        n_layers=found.number("num_hidden_layers", 12, section) + 1,
        width=found.number("hidden_size", 768, section),
        n_tokens=n_frames * ((side // found.number("patch_size", 32, section)) ** 2 + 2),
        identity=frames_identity(settings, n_frames),
        settings=settings,
        weights=("",) if section is None else ("vision_model.",),
    )


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the classes; the model takes the frames of all clips in one row and parts them by their number."""
    from transformers import XCLIPVisionConfig, XCLIPVisionModel

    from bids_mllm.features.models.encoders_extractor import Tower, image_batch

    def batch(clips: Sequence[ClipMedia]) -> "Batch":
        return image_batch(clips, layout.settings)

    return Tower(
        model_class=XCLIPVisionModel,
        config_class=XCLIPVisionConfig,
        batch=batch,
        layers=lambda model: model.encoder.layers,
        final_norm=lambda model: model.post_layernorm,
        # Unlike CLIP's, the class does not find its weights among those of both towers by itself.
        reading={"key_mapping": {r"^vision_model\.": ""}},
    )


FAMILY = make_family(EncoderFamily("xclip", ("xclip", "xclip_vision_model"), _layout, _tower))
