"""VideoMAE: a transformer over tubelets of a film, pre-trained by filling in masked ones.

A checkpoint fine-tuned to name actions has its final norm behind the mean over tokens, in the classifier; a
pre-trained one has it in the encoder.
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

CLASSIFIER = "VideoMAEForVideoClassification"


def _layout(found: Found) -> Layout:
    """Return frames and sizes; the positions of the tokens fix both."""
    side, n_frames = found.number("image_size", 224), found.number("num_frames", 16)
    settings = pixel_settings(found, "VideoMAEVideoProcessor", side=side)
    return Layout(
        request=MediaRequest("video", n_frames=n_frames),
        n_layers=found.number("num_hidden_layers", 12) + 1,
        width=found.number("hidden_size", 768),
        n_tokens=n_frames // found.number("tubelet_size", 2) * (side // found.number("patch_size", 16)) ** 2,
        identity=frames_identity(settings, n_frames),
        settings=settings,
        # A pre-training checkpoint also has the decoder that fills in what was masked.
        weights=("videomae.", "embeddings.", "encoder."),
    )


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the classes, and the classifier's where it holds the final norm."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

    from bids_mllm.features.models.encoders_extractor import Tower, video_batch

    def batch(clips: Sequence[ClipMedia]) -> "Batch":
        return video_batch(clips, layout.settings)

    tuned = CLASSIFIER in (found.config.get("architectures") or ()) and found.config.get("use_mean_pooling", True)
    return Tower(
        model_class=VideoMAEForVideoClassification if tuned else VideoMAEModel,
        config_class=VideoMAEConfig,
        batch=batch,
        layers=lambda model: (model.videomae if tuned else model).encoder.layer,
        final_norm=lambda model: model.fc_norm if tuned else model.layernorm,
        norm_after_pooling=bool(tuned),
    )


FAMILY = make_family(EncoderFamily("videomae", ("videomae",), _layout, _tower))
