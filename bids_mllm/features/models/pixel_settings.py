"""How frames become pixel values, as a checkpoint's processor file gives it: plain settings, without torch.

The file may leave out what its processor's class has by default, so a processor is named with the file. Which
frames are taken is no matter of these settings: `num_frames`, `fps` and `do_sample_frames` are left to the
family.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bids_mllm.exceptions import CheckpointError

Resample = Literal["bilinear", "bicubic"]
# Pillow's codes of the filters; the others have no counterpart of equal bits.
RESAMPLE_OF_CODE: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SQUARE_224 = {"height": 224, "width": 224}
SQUARE_384 = {"height": 384, "width": 384}
# A frame of no model's own size, to see to which size the settings bring every frame.
ODD_FRAME = (117, 211)
KNOWN_STEPS = frozenset(
    ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_sample_frames", "do_pad")
)


def _defaults(
    resample: int,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    size: Mapping[str, int],
    *,
    crop: int | None = None,
    square: bool = False,
    rescale_factor: float = 1 / 255,
) -> dict[str, Any]:
    """Return the values that a processor's class has where the file is silent.

    `square` tells how a `size` that is one number is meant: both sides, or the shorter one.
    """
    return {
        "resample": resample,
        "image_mean": statistics[0],
        "image_std": statistics[1],
        "size": size,
        "crop_size": crop,
        "do_center_crop": crop is not None,
        "rescale_factor": rescale_factor,
        "default_to_square": square,
    }


# From the classes of transformers 5.23.
DEFAULTS: dict[str, dict[str, Any]] = {
    "LlavaOnevisionVideoProcessor": _defaults(3, CLIP, SQUARE_384),
    "LlavaNextVideoVideoProcessor": _defaults(3, CLIP, {"shortest_edge": 224}, crop=224),
    "VideoLlavaVideoProcessor": _defaults(3, CLIP, {"shortest_edge": 224}, crop=224),
    "InstructBlipVideoVideoProcessor": _defaults(3, CLIP, SQUARE_384, square=True),
    "InternVLVideoProcessor": _defaults(3, CLIP, SQUARE_384, square=True),
    "VideoMAEVideoProcessor": _defaults(2, HALF, {"shortest_edge": 224}, crop=224),
    "VideoMAEImageProcessor": _defaults(2, HALF, {"shortest_edge": 224}, crop=224),
    "VivitVideoProcessor": _defaults(2, HALF, {"shortest_edge": 256}, crop=224, rescale_factor=1 / 127.5),
    "TimesformerVideoProcessor": _defaults(2, IMAGENET, {"shortest_edge": 224}, crop=224),
    "VJEPA2VideoProcessor": _defaults(2, IMAGENET, {"shortest_edge": 292}, crop=256, square=True),
    "ViTImageProcessor": _defaults(2, HALF, SQUARE_224, square=True),
    "BitImageProcessor": _defaults(3, CLIP, {"shortest_edge": 224}, crop=224),
    "CLIPImageProcessor": _defaults(3, CLIP, {"shortest_edge": 224}, crop=224),
    "SiglipImageProcessor": _defaults(3, HALF, SQUARE_224),
    # This class does only what its file says.
    "PeVideoVideoProcessor": {
        "resample": 2,
        "rescale_factor": 1 / 255,
        "default_to_square": True,
        "do_resize": False,
        "do_center_crop": False,
        "do_rescale": False,
        "do_normalize": False,
    },
}


@dataclass(frozen=True)
class PixelSettings:
    """What is done with a frame, in this order; a step whose value is None is left out.

    Attributes
    ----------
    size
        Height and width in pixels to which a frame is resized, whatever its aspect ratio.
    shortest_edge
        Pixels of the shorter side after a resize that keeps the aspect ratio; in place of `size`.
    resample
        The filter of the resize.
    crop
        Height and width in pixels of the middle that is kept; a smaller frame is filled up with black.
    rescale_factor
        What a value of 0-255 is multiplied by.
    offset
        Whether 1 is subtracted after rescaling.
    mean, std
        Statistics of each channel, subtracted and divided by after rescaling.
    """

    size: tuple[int, int] | None
    shortest_edge: int | None
    resample: Resample
    crop: tuple[int, int] | None
    rescale_factor: float | None
    offset: bool
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def _fault(key: str, value: Any, expected: str) -> CheckpointError:
    """Return the error for a value that is not supported."""
    return CheckpointError(
        f"The checkpoint's processor file sets {key} to {value!r}, but {expected}; copy the file again or choose "
        "another checkpoint."
    )


def _side(key: str, value: Any) -> int:
    """Return a number of pixels, checked."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _fault(key, value, "a whole number of pixels is needed")
    return value


def _both_sides(key: str, size: Any) -> tuple[int, int]:
    """Return height and width in pixels, from one number, a pair or a mapping."""
    if isinstance(size, int):
        return _side(key, size), _side(key, size)
    if isinstance(size, list | tuple) and len(size) == 2:
        return _side(key, size[0]), _side(key, size[1])
    given = {name: value for name, value in size.items() if value is not None} if isinstance(size, Mapping) else {}
    if set(given) == {"height", "width"}:
        return _side(key, given["height"]), _side(key, given["width"])
    raise _fault(key, size, "height and width are needed, or for size shortest_edge alone")


def _shorter_side(size: Any, square: bool) -> int | None:
    """Return the pixels of the shorter side where that is what `size` gives, else None."""
    if isinstance(size, Mapping) and {name for name, value in size.items() if value is not None} == {"shortest_edge"}:
        return _side("size", size["shortest_edge"])
    return _side("size", size) if isinstance(size, int) and not square else None


def _read_statistics(key: str, value: Any) -> tuple[float, ...]:
    """Return three numbers, one a channel."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = (value,) * 3
    numbers = isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value)
    if not numbers or len(value) != 3 or (key == "image_std" and 0 in value):
        raise _fault(key, value, "three numbers are needed, and none of a deviation may be 0")
    return tuple(float(item) for item in value)


def _check_steps(values: Mapping[str, Any]) -> None:
    """Raise a CheckpointError for a step that is not done here, by the key that asks for it."""
    for key, value in values.items():
        unknown = key.startswith("do_") and key not in KNOWN_STEPS
        if value and (unknown or key == "crop_to_patches"):
            raise _fault(key, value, "this step is not supported")
    # Frames of one film have one size, so padding to the largest of them does nothing.
    if values.get("do_pad") and values.get("pad_size"):
        raise _fault("pad_size", values["pad_size"], "padding to a size is not supported")


def settings_from_file(config: Mapping[str, Any], processor: str) -> PixelSettings:
    """Return the settings that a checkpoint's processor file gives.

    Parameters
    ----------
    config
        The file's values; a key that is absent or null takes the default of `processor`.
    processor
        Name of the class of transformers that reads the file, one of `DEFAULTS`.

    Raises
    ------
    CheckpointError
        When the file asks for a step or a filter that is not supported; the message names the key.
    """
    values = {"do_resize": True, "do_rescale": True, "do_normalize": True, **DEFAULTS[processor]}
    values |= {key: value for key, value in config.items() if value is not None}
    _check_steps(values)
    size, edge = None, None
    if values["do_resize"]:
        edge = _shorter_side(values.get("size"), values["default_to_square"])
        size = _both_sides("size", values.get("size")) if edge is None else None
    resample = RESAMPLE_OF_CODE.get(values["resample"])
    if resample is None:
        raise _fault("resample", values["resample"], "only 2 (bilinear) and 3 (bicubic) are supported")
    crop = _both_sides("crop_size", values.get("crop_size")) if values["do_center_crop"] else None
    if processor == "VJEPA2VideoProcessor":
        # This class derives the resize from the height of the crop, whatever the file has as size.
        height = _both_sides("crop_size", values.get("crop_size"))[0]
        size, edge = (None, int(height * 256 / 224)) if values["do_resize"] else (None, None)
    normalised = bool(values["do_normalize"])
    return PixelSettings(
        size=size,
        shortest_edge=edge,
        resample=resample,
        crop=crop,
        rescale_factor=float(values["rescale_factor"]) if values["do_rescale"] else None,
        offset=processor == "VivitVideoProcessor" and bool(values["do_rescale"]) and bool(values.get("offset", True)),
        mean=_read_statistics("image_mean", values.get("image_mean")) if normalised else None,
        std=_read_statistics("image_std", values.get("image_std")) if normalised else None,
    )


def resized_size(height: int, width: int, settings: PixelSettings) -> tuple[int, int]:
    """Return the (height, width) in pixels of a frame after the resize."""
    if settings.size is not None:
        return settings.size
    if settings.shortest_edge is None:
        return height, width
    short, long = sorted((height, width))
    new_long = int(settings.shortest_edge * long / short)
    return (new_long, settings.shortest_edge) if width <= height else (settings.shortest_edge, new_long)


def prepared_size(height: int, width: int, settings: PixelSettings) -> tuple[int, int]:
    """Return the (height, width) in pixels of what `prepare_frames` makes of a frame."""
    return settings.crop if settings.crop is not None else resized_size(height, width, settings)
