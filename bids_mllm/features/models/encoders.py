"""Encoders that follow no instruction: what their families share before any weight is loaded.

A family is a file with an `EncoderFamily`, which `make_family` turns into the `Family` of the registry. It
gives two functions:

``layout(found)``
    From a checkpoint's small files: what to decode, how many layers, how wide, how many tokens a clip has
    (`Layout`). It must not import torch.
``tower(found, layout)``
    The part that needs torch, imported inside the function: the classes of transformers, how clips become
    inputs, and where the layers are (`Tower` in ``encoders_extractor``).

Every family reads out one condition, ``stimulus``, and its features are defined alike. Layer 0 is the
embedding that enters the first block, layer i what leaves block i, and the last one has been through the
model's final norm wherever the model has one, also in families whose ``hidden_states`` end before it. A layer is
averaged in float32 over the tokens that stand for a piece of the stimulus, and over frames where the model
sees them one by one: class, register and padding tokens are left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bids_mllm.exceptions import CheckpointError, PackageError, UsageError
from bids_mllm.features.extractor import Cost, ExtractionPlan, Extractor, Family, ReadOut
from bids_mllm.features.models import checkpoint
from bids_mllm.features.models.checkpoint import BYTES_OF_DTYPE
from bids_mllm.features.models.pixel_settings import (
    DEFAULTS,
    ODD_FRAME,
    PixelSettings,
    prepared_size,
    settings_from_file,
)
from bids_mllm.records import Condition, MediaRequest, ModelSpec

if TYPE_CHECKING:
    from bids_mllm.features.models.encoders_extractor import Tower

STIMULUS = Condition("stimulus")
PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
# Frames of a clip for models that see single images.
IMAGE_FRAMES = 4
# Wide models fill a GPU with few clips; narrow ones are bound by the cost of each call.
WIDE = 1024
BATCH_WIDE, BATCH_NARROW = 8, 32
# Tensors of the width of a token that a block holds at once: residual, projections, four of the inner layer.
LIVE_TENSORS = 12


@dataclass(frozen=True)
class Found:
    """A checkpoint that was found and checked, its record, and the window's length in seconds."""

    folder: Path
    config: Mapping[str, Any]
    spec: ModelSpec
    window: float

    def number(self, name: str, default: int, section: str | None = None) -> int:
        """Return a positive whole number of config.json, from a section of it when one is named.

        A file leaves out what its class of transformers has by `default`.
        """
        values = self.config if section is None else self.config.get(section, {})
        value = values.get(name, default) if isinstance(values, Mapping) else values
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            where = name if section is None else f"{section}.{name}"
            raise CheckpointError(
                f"{self.folder / 'config.json'} has {value!r} as {where}, but a whole number above 0 is needed; "
                "copy the checkpoint again."
            )
        return value


@dataclass(frozen=True)
class Layout:
    """What an encoder makes of a clip.

    Attributes
    ----------
    request
        What to decode.
    n_layers, width
        Layers with the embedding, and features of each.
    n_tokens
        Tokens of one clip, of all its frames together; for the estimate of costs.
    identity
        JSON-ready values that say how media become inputs.
    settings
        The same for the family's own use in ``tower``: `PixelSettings`, or what sound needs.
    weights
        Prefixes of the names of the weights that a clip passes through; for the estimate of costs.
    flops
        Operations of one clip, where two for each weight and token are wide of the mark.
    """

    request: MediaRequest
    n_layers: int
    width: int
    n_tokens: int
    identity: Mapping[str, Any]
    settings: Any = None
    weights: tuple[str, ...] = ("",)
    flops: float | None = None


@dataclass(frozen=True)
class EncoderFamily:
    """One architecture: its name, the ``model_type`` of its checkpoints, its two functions and its parameters.

    `attention` is the implementation asked of transformers: ``eager`` for a model that has no other. `needs` are
    packages beside torch and transformers.
    """

    name: str
    model_types: tuple[str, ...]
    layout: Callable[[Found], Layout]
    tower: Callable[[Found, Layout], "Tower"]
    parameters: tuple[str, ...] = ()
    attention: Literal["sdpa", "eager"] = "sdpa"
    needs: tuple[str, ...] = ()


def read_media_config(folder: Path, section: str) -> dict[str, Any]:
    """Return the settings of the processor of images, video or sound, from whichever file has them.

    Newer saves nest them in processor_config.json under `section` (``video_processor``, ``image_processor`` or
    ``feature_extractor``); older ones have a file of their own.
    """
    nested = folder / "processor_config.json"
    if nested.is_file():
        settings = checkpoint.read_json(nested).get(section)
        if isinstance(settings, dict):
            return settings
    names = PROCESSOR_FILES if section == "video_processor" else PROCESSOR_FILES[1:]
    for name in names:
        if (folder / name).is_file():
            return checkpoint.read_json(folder / name)
    raise CheckpointError(
        f"{folder} has none of processor_config.json with {section}, and {' and '.join(names)}; copy the "
        "checkpoint again."
    )


def pixel_settings(found: Found, processor: str, *, side: int | None = None) -> PixelSettings:
    """Return how frames become pixel values, from the checkpoint's file.

    Parameters
    ----------
    found
        The checkpoint.
    processor
        The class of transformers that reads the file, unless the file names another one that is known.
    side
        Pixels of the square that the model takes; None for a model that takes any size.
    """
    section = "video_processor" if processor.endswith("VideoProcessor") else "image_processor"
    file = read_media_config(found.folder, section)
    named = file.get("video_processor_type") or file.get("image_processor_type") or file.get("feature_extractor_type")
    named = str(named).removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    settings = settings_from_file(file, named if named in DEFAULTS else processor)
    size = prepared_size(*ODD_FRAME, settings)
    if side is not None and size != (side, side):
        raise CheckpointError(
            f"The processor file of {found.folder} makes frames of {size[0]} x {size[1]} pixels, but config.json "
            f"says that the model takes {side} x {side}; copy the checkpoint again."
        )
    return settings


def frames_identity(settings: PixelSettings, n_frames: int) -> dict[str, Any]:
    """Return the part of an identity that says how frames become inputs."""
    return {"frames": {**settings.as_json(), "n_frames": n_frames}}


def frame_count(found: Found, default: int, *, multiple: int = 1) -> int:
    """Return the frames of a clip: the record's parameter ``n_frames``, or what the model was made for.

    `multiple` is the number of frames that share a token.
    """
    n_frames = found.spec.parameters.get("n_frames", default)
    if isinstance(n_frames, bool) or not isinstance(n_frames, int) or n_frames < 1 or n_frames % multiple:
        raise UsageError(
            f"The model {found.spec.key} has n_frames {n_frames!r}, but a whole number above 0 that {multiple} "
            "divides is needed."
        )
    return n_frames


def find(family: EncoderFamily, spec: ModelSpec, window: float) -> Found:
    """Find and check the checkpoint of a record, for windows of `window` seconds.

    Raises
    ------
    UsageError
        For a parameter or dtype that the family does not know, or a package that it needs and that is missing.
    CheckpointError
        When there is no such checkpoint, it is of another family, or its weights are missing or damaged.
    """
    unknown = sorted(set(spec.parameters) - set(family.parameters))
    if unknown:
        choices = f"choose from {', '.join(family.parameters)}" if family.parameters else "its family has none"
        raise UsageError(f"The model {spec.key} has the unknown parameter {unknown[0]!r}; {choices}.")
    absent = [package for package in family.needs if find_spec(package) is None]
    if absent:
        raise PackageError(
            f"The model {spec.key} needs the package {absent[0]}, which is not installed; install it, and whatever it "
            "needs itself in the version that fits torch."
        )
    if spec.dtype not in BYTES_OF_DTYPE:
        raise UsageError(f"The model {spec.key} has dtype {spec.dtype!r}; choose from {', '.join(BYTES_OF_DTYPE)}.")
    folder = checkpoint.find_folder(spec.source, revision=spec.revision)
    config = checkpoint.read_config(folder, need_weights=spec.weights == "pretrained")
    checkpoint.check_model_type(folder, config, family.model_types)
    if spec.weights == "pretrained":
        checkpoint.check_weights(folder)
    return Found(folder, config, spec, window)


def estimate(found: Found, layout: Layout) -> Cost:
    """Return the rough needs: two operations for each weight and token, and the tensors of one block.

    Where weights are to be drawn and there are none to count, a block is taken to have 12 squares of the width.
    """
    n_bytes = BYTES_OF_DTYPE[found.spec.dtype]
    n_parameters = checkpoint.count_parameters(found.folder, layout.weights)
    weight_bytes = checkpoint.weight_bytes(found.folder, found.spec.dtype, layout.weights)
    if not n_parameters:
        n_parameters = 12 * (layout.n_layers - 1) * layout.width**2
        weight_bytes = n_parameters * n_bytes
    return Cost(
        flops=layout.flops or 2.0 * n_parameters * layout.n_tokens,
        weight_bytes=weight_bytes,
        clip_bytes=LIVE_TENSORS * layout.n_tokens * layout.width * n_bytes,
    )


def plan(family: EncoderFamily, spec: ModelSpec, readout: ReadOut) -> ExtractionPlan:
    """Return what an extraction will do; no weight is loaded."""
    found = find(family, spec, readout.window)
    layout = family.layout(found)
    drawn = {"weights": "random", "seed": readout.seed} if spec.weights == "random" else {}
    identity = {
        "family": family.name,
        "checkpoint": checkpoint.files_digest(found.folder, weights=not drawn),
        **drawn,
        **layout.identity,
        "dtype": spec.dtype,
        "attention": family.attention,
        "versions": {name: version(name).split("+")[0] for name in ("torch", "transformers", *family.needs)},
    }
    return ExtractionPlan(
        identity=identity,
        request=layout.request,
        conditions=(STIMULUS,),
        n_layers=layout.n_layers,
        width=layout.width,
        batch_size=BATCH_NARROW if layout.width < WIDE else BATCH_WIDE,
        cost=estimate(found, layout),
    )


def load(family: EncoderFamily, spec: ModelSpec, readout: ReadOut, device: str) -> Extractor:
    """Return the model with its weights on a device (``cpu``, ``cuda``, ...)."""
    found = find(family, spec, readout.window)
    layout = family.layout(found)
    try:
        from bids_mllm.features.models.encoders_extractor import EncoderExtractor

        tower = family.tower(found, layout)
    except ImportError as error:
        # A torchvision built for another torch breaks the import of transformers' model classes.
        raise CheckpointError(
            f"The model code of transformers cannot be imported ({str(error).splitlines()[0]}); install a "
            "torchvision that matches torch, or none."
        ) from error
    return EncoderExtractor(found, layout, tower, attention=family.attention, seed=readout.seed, device=device)


def make_family(family: EncoderFamily) -> Family:
    """Return the registry's `Family` of an encoder."""
    return Family(name=family.name, plan=partial(plan, family), load=partial(load, family))
