"""The Qwen2.5-VL family: video and instruction in, hidden states of the language model out.

Planning reads the checkpoint's small files and the headers of its weights; torch and transformers are
loaded with the weights.
"""

from dataclasses import asdict
from importlib.metadata import version
from typing import cast

from bids_mllm.exceptions import CheckpointError, UsageError
from bids_mllm.features.extractor import ExtractionPlan, Extractor, Family, ReadOut
from bids_mllm.features.models import checkpoint
from bids_mllm.features.models.frames import count_frames, settings_from_config
from bids_mllm.features.models.prompts import ORDERS, Order
from bids_mllm.features.models.setup import Setup
from bids_mllm.records import Condition, MediaRequest, ModelSpec

MODEL_TYPE = "qwen2_5_vl"
PARAMETERS = ("max_fps", "max_frames", "min_pixels", "max_pixels", "order", "allow_download")
DTYPES = ("float32", "bfloat16", "float16")
POOLINGS = ("generated", "last", "instruction", "media")
# Wide models fill a GPU with few clips; narrow ones are bound by the cost of each call.
WIDE = 1024
BATCH_WIDE, BATCH_NARROW = 8, 32


def _check_spec(spec: ModelSpec) -> None:
    """Raise a UsageError for a parameter or dtype that this family does not know."""
    unknown = sorted(set(spec.parameters) - set(PARAMETERS))
    if unknown:
        raise UsageError(
            f"The model {spec.key} has the unknown parameter {unknown[0]!r}; choose from {', '.join(PARAMETERS)}."
        )
    if spec.dtype not in DTYPES:
        raise UsageError(f"The model {spec.key} has dtype {spec.dtype!r}; choose from {', '.join(DTYPES)}.")
    order = spec.parameters.get("order", ORDERS[0])
    if order not in ORDERS:
        raise UsageError(f"The model {spec.key} has order {order!r}; choose from {', '.join(ORDERS)}.")


def prepare(spec: ModelSpec, window: float) -> Setup:
    """Find and check the checkpoint of a record, and settle frames and sizes for a window in seconds."""
    _check_spec(spec)
    parameters = spec.parameters
    folder = checkpoint.find_folder(
        spec.source, revision=spec.revision, allow_download=bool(parameters.get("allow_download", False))
    )
    config = checkpoint.read_config(folder)
    checkpoint.check_model_type(folder, config, MODEL_TYPE)
    checkpoint.check_weights(folder)
    frames = settings_from_config(
        checkpoint.read_processor_config(folder),
        min_pixels=parameters.get("min_pixels"),
        max_pixels=parameters.get("max_pixels"),
    )
    n_frames = count_frames(
        window,
        max_fps=float(parameters.get("max_fps", 4.0)),
        max_frames=int(parameters.get("max_frames", 16)),
        multiple=frames.temporal_patch_size,
    )
    order = cast(Order, parameters.get("order", ORDERS[0]))
    return Setup(folder, config, frames, n_frames, order, spec.dtype)


def read_out_conditions(spec: ModelSpec, readout: ReadOut) -> tuple[Condition, ...]:
    """Return the conditions that a read-out asks for, in its order; `media` comes once, uninstructed."""
    conditions: list[Condition] = []
    for pooling in readout.poolings:
        if pooling not in POOLINGS:
            raise UsageError(f"The model {spec.key} has no pooling {pooling!r}; choose from {', '.join(POOLINGS)}.")
        if pooling == "media":
            conditions.append(Condition("media"))
            continue
        if not readout.instructions:
            raise UsageError(f"The pooling {pooling!r} of {spec.key} needs at least one instruction.")
        conditions += [Condition(pooling, instruction.key) for instruction in readout.instructions]
    if "generated" in readout.poolings and readout.max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {readout.max_new_tokens}, but must be at least 1.")
    return tuple(conditions)


def _text_size(setup: Setup) -> tuple[int, int]:
    """Return (layers with the embedding, width) of the language model; older files have them at the top."""
    text = setup.config.get("text_config") or {}
    text = text if "num_hidden_layers" in text else setup.config
    try:
        return int(text["num_hidden_layers"]) + 1, int(text["hidden_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{setup.folder / 'config.json'} does not give num_hidden_layers and hidden_size; copy it again."
        ) from error


def plan(spec: ModelSpec, readout: ReadOut) -> ExtractionPlan:
    """Return what an extraction will do; no weight is loaded."""
    conditions = read_out_conditions(spec, readout)
    setup = prepare(spec, readout.window)
    n_layers, width = _text_size(setup)
    identity = {
        "family": "qwen25vl",
        "checkpoint": checkpoint.files_digest(setup.folder),
        "frames": {
            **asdict(setup.frames),
            "mean": list(setup.frames.mean),
            "std": list(setup.frames.std),
            "n_frames": setup.n_frames,
        },
        "order": setup.order,
        "dtype": setup.dtype,
        "attention": "sdpa",
        "versions": {name: version(name).split("+")[0] for name in ("torch", "transformers")},
        "by_pooling": {"generated": {"max_new_tokens": readout.max_new_tokens}},
    }
    return ExtractionPlan(
        identity=identity,
        request=MediaRequest(media="video", n_frames=setup.n_frames),
        conditions=conditions,
        n_layers=n_layers,
        width=width,
        batch_size=BATCH_NARROW if width < WIDE else BATCH_WIDE,
    )


def load(spec: ModelSpec, readout: ReadOut, device: str) -> Extractor:
    """Return the model with its weights on a device (``cpu``, ``cuda``, ...)."""
    try:
        from bids_mllm.features.models.qwen25vl_extractor import Qwen25VLExtractor
    except ImportError as error:
        # A torchvision built for another torch breaks the import of transformers' model classes.
        raise CheckpointError(
            f"The model code of transformers cannot be imported ({str(error).splitlines()[0]}); install a "
            "torchvision that matches torch, or none."
        ) from error

    conditions = read_out_conditions(spec, readout)
    return Qwen25VLExtractor(prepare(spec, readout.window), readout, conditions, device=device)


FAMILY = Family(name="qwen25vl", plan=plan, load=load)
