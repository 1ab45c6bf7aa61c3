"""ViViT: a transformer over tubelets of a film, trained to name actions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bids_mllm.exceptions import CheckpointError
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


def _tubelet(found: Found) -> tuple[int, int, int]:
    """Return the frames, rows and columns of pixels that share a token."""
    sizes = found.config.get("tubelet_size", (2, 16, 16))
    if isinstance(sizes, list | tuple) and len(sizes) == 3 and all(isinstance(n, int) and n > 0 for n in sizes):
        return (sizes[0], sizes[1], sizes[2])
    raise CheckpointError(
        f"{found.folder / 'config.json'} has {sizes!r} as tubelet_size, but frames, rows and columns are needed; "
        "copy the checkpoint again."
    )


def _layout(found: Found) -> Layout:
    """Return frames and sizes; the positions of the tokens fix both."""
    side, n_frames = found.number("image_size", 224), found.number("num_frames", 32)
    frames, rows, columns = _tubelet(found)
    settings = pixel_settings(found, "VivitVideoProcessor", side=side)
    return Layout(
        request=MediaRequest("video", n_frames=n_frames),
        n_layers=found.number("num_hidden_layers", 12) + 1,
        width=found.number("hidden_size", 768),
        n_tokens=n_frames // frames * (side // rows) * (side // columns) + 1,
        identity=frames_identity(settings, n_frames),
        settings=settings,
    )


def _tower(found: Found, layout: Layout) -> "Tower":
    """Return the classes; the pooler, which a classifier lacks, is left out."""
    from transformers import VivitConfig, VivitModel

    from bids_mllm.features.models.encoders_extractor import Tower, video_batch

    def batch(clips: Sequence[ClipMedia]) -> "Batch":
        return video_batch(clips, layout.settings, n_prefix=1)

    return Tower(
        model_class=VivitModel,
        config_class=VivitConfig,
        batch=batch,
        layers=lambda model: model.layers,
        final_norm=lambda model: model.layernorm,
        options={"add_pooling_layer": False},
    )


FAMILY = make_family(EncoderFamily("vivit", ("vivit",), _layout, _tower))
