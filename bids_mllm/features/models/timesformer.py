"""TimeSformer: attention over time and over space in turn, trained to name actions."""

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


def _layout(found: Found) -> Layout:
    """Return frames and sizes; other frames than its own would only stretch what it knows of positions."""
    side, n_frames = found.number("image_size", 224), found.number("num_frames", 8)
    settings = pixel_settings(found, "TimesformerVideoProcessor", side=side)
    return Layout(
        request=MediaRequest("video", n_frames=n_frames),
        n_layers=found.number("num_hidden_layers", 12) + 1,
        width=found.number("hidden_size", 768),
        n_tokens=n_frames * (side // found.number("patch_size", 16)) ** 2 + 1,
        identity=frames_identity(settings, n_frames),
        settings=settings,
    )


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the classes."""
    from transformers import TimesformerConfig, TimesformerModel

    from bids_mllm.features.models.encoders_extractor import Tower, video_batch

    def batch(clips: Sequence[ClipMedia]) -> "Batch":
        return video_batch(clips, layout.settings, n_prefix=1)

    return Tower(
        model_class=TimesformerModel,
        config_class=TimesformerConfig,
        batch=batch,
        layers=lambda model: model.encoder.layer,
        final_norm=lambda model: model.layernorm,
    )


# The class has no attention but its own.
FAMILY = make_family(EncoderFamily("timesformer", ("timesformer",), _layout, _tower, attention="eager"))
