"""Planning of models that follow instructions, the same for every family; torch is loaded with the weights."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from bids_mllm.exceptions import CheckpointError, UsageError
from bids_mllm.features.extractor import Cost, Demonstration, ExtractionPlan, Extractor, Family, ReadOut
from bids_mllm.features.models import checkpoint
from bids_mllm.features.models.architecture import DTYPES, Architecture, Setup
from bids_mllm.features.models.prompts import JOINED_TOKENS, ORDERS, SINK_TOKENS, Order
from bids_mllm.records import Condition, ModelSpec

POOLINGS = ("generated", "last", "instruction", "media")
#: Parameters of every family that say where files come from, and change no number.
COMMON_PARAMETERS = ("order", "trust_remote_code")
#: Wide models fill a GPU with few clips; narrow ones are bound by the cost of each call.
WIDE = 1024
BATCH_WIDE, BATCH_NARROW = 8, 32
#: About how many tokens an instruction and the template around it take.
TEXT_TOKENS = 30


def instructed_family(architecture: Architecture) -> Family:
    """Return the family of an architecture, with the shared planning and loading."""

    def plan_it(spec: ModelSpec, readout: ReadOut) -> ExtractionPlan:
        return plan(architecture, spec, readout)

    def load_it(spec: ModelSpec, readout: ReadOut, device: str) -> Extractor:
        return load(architecture, spec, readout, device)

    return Family(name=architecture.name, plan=plan_it, load=load_it)


def _check_spec(architecture: Architecture, spec: ModelSpec) -> None:
    """Raise a UsageError for a parameter or dtype that this family does not know."""
    known = (*architecture.parameters, *COMMON_PARAMETERS)
    unknown = sorted(set(spec.parameters) - set(known))
    if unknown:
        raise UsageError(
            f"The model {spec.key} has the unknown parameter {unknown[0]!r}; choose from {', '.join(known)}."
        )
    if spec.dtype not in DTYPES:
        raise UsageError(f"The model {spec.key} has dtype {spec.dtype!r}; choose from {', '.join(DTYPES)}.")
    order = spec.parameters.get("order", ORDERS[0])
    if order not in ORDERS:
        raise UsageError(f"The model {spec.key} has order {order!r}; choose from {', '.join(ORDERS)}.")


def prepare(architecture: Architecture, spec: ModelSpec, readout: ReadOut) -> Setup:
    """Find and check the checkpoint of a record, and settle its media for the read-out's window."""
    _check_spec(architecture, spec)
    _check_demonstrations(architecture, spec, readout)
    folder = checkpoint.find_folder(spec.source, revision=spec.revision)
    config = checkpoint.read_config(folder, need_weights=spec.weights == "pretrained")
    checkpoint.check_model_type(folder, config, architecture.model_types)
    if spec.weights == "pretrained":
        checkpoint.check_weights(folder)
    media = architecture.settle(spec, folder, config, readout.window)
    order = cast(Order, spec.parameters.get("order", ORDERS[0]))
    return Setup(spec, folder, config, media, order, readout.window, readout.demonstrations)


def _check_demonstrations(architecture: Architecture, spec: ModelSpec, readout: ReadOut) -> None:
    """Raise a UsageError where demonstrations are missing, or given to a model that takes none."""
    in_context = spec.kind.startswith("in-context")
    if in_context and not readout.demonstrations:
        raise UsageError(
            f"The model {spec.key} learns from demonstrations in its context; give them with --demonstrations FILE."
        )
    if readout.demonstrations and not architecture.demonstrations:
        raise UsageError(f"The family {architecture.name} of the model {spec.key} takes no demonstrations.")


def read_out_conditions(spec: ModelSpec, readout: ReadOut) -> tuple[Condition, ...]:
    """Return the conditions that a read-out asks for, in its order; `media` comes once, uninstructed.

    An empty instruction has no tokens of its own to take a mean of.
    """
    conditions: list[Condition] = []
    for pooling in readout.poolings:
        if pooling not in POOLINGS:
            raise UsageError(f"The model {spec.key} has no pooling {pooling!r}; choose from {', '.join(POOLINGS)}.")
        if pooling == "media":
            conditions.append(Condition("media"))
            continue
        if not readout.instructions:
            raise UsageError(f"The pooling {pooling!r} of {spec.key} needs at least one instruction.")
        conditions += [
            Condition(pooling, instruction.key)
            for instruction in readout.instructions
            if instruction.text or pooling != "instruction"
        ]
    if "generated" in readout.poolings and readout.max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {readout.max_new_tokens}, but must be at least 1.")
    return tuple(conditions)


def text_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that describes the language model, wherever this checkpoint has it."""
    thinker = config.get("thinker_config")
    if isinstance(thinker, Mapping):
        return text_settings(thinker)
    text = config.get("text_config")
    return text if isinstance(text, Mapping) and "num_hidden_layers" in text else config


def text_size(folder: Path, config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (layers with the embedding, width) of the language model."""
    text = text_settings(config)
    try:
        return int(text["num_hidden_layers"]) + 1, int(text["hidden_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} does not give num_hidden_layers and hidden_size; copy it again."
        ) from error


def plan(architecture: Architecture, spec: ModelSpec, readout: ReadOut) -> ExtractionPlan:
    """Return what an extraction will do; no weight is loaded."""
    conditions = read_out_conditions(spec, readout)
    setup = prepare(architecture, spec, readout)
    n_layers, width = text_size(setup.folder, setup.config)
    return ExtractionPlan(
        identity=_identity(architecture, setup, readout),
        request=setup.media.request,
        conditions=conditions,
        n_layers=n_layers,
        width=width,
        batch_size=BATCH_NARROW if width < WIDE else BATCH_WIDE,
        cost=_cost(architecture, setup, readout),
    )


def _identity(architecture: Architecture, setup: Setup, readout: ReadOut) -> dict[str, Any]:
    """Return everything about the model that changes a number."""
    drawn = {"weights": "random", "seed": readout.seed} if setup.spec.weights == "random" else {}
    return {
        "family": architecture.name,
        "checkpoint": checkpoint.files_digest(setup.folder, weights=not drawn),
        **drawn,
        "media": dict(setup.media.identity),
        "order": setup.order,
        "demonstrations": [_demonstration_identity(shown) for shown in setup.demonstrations],
        "dtype": setup.spec.dtype,
        "attention": "sdpa",
        "sink_tokens": SINK_TOKENS,
        "versions": {name: version(name).split("+")[0] for name in ("torch", "transformers")},
        "by_pooling": {"generated": {"max_new_tokens": readout.max_new_tokens, "decoding": "greedy"}},
    }


def _demonstration_identity(shown: Demonstration) -> list[str | float]:
    """Return the file, the seconds, the instruction and the answer of a demonstration."""
    return [shown.sha256, shown.clip.start, shown.clip.end, shown.instruction, shown.answer]


def _cost(architecture: Architecture, setup: Setup, readout: ReadOut) -> Cost:
    """Return rough needs: two operations a parameter and token, keys and values, and one layer's activations.

    Prompts that share nothing are run one after the other, and their keys and values are kept for the answers.
    """
    n_parameters = checkpoint.count_parameters(setup.folder)
    itemsize = 4 if setup.spec.dtype == "float32" else 2
    texts = max(1, len(readout.instructions))
    asked = readout.max_new_tokens if "generated" in readout.poolings else 0
    shared = architecture.shares and setup.order == "media-first"
    branches = texts * (TEXT_TOKENS + asked)
    n_media = setup.media.n_tokens * (1 + len(setup.demonstrations))
    n_tokens = n_media * (1 if shared else texts) + branches
    text = text_settings(setup.config)
    n_layers, width = text_size(setup.folder, setup.config)
    heads = int(text.get("num_attention_heads") or 1)
    keys = int(text.get("num_key_value_heads") or heads) * width // heads
    row = n_media + branches
    one = n_media + TEXT_TOKENS + asked
    apart = min(texts * one, max(JOINED_TOKENS, one)) if asked else one
    kept = row if shared else apart
    inner = 4 * width + 3 * int(text.get("intermediate_size") or 4 * width)
    return Cost(
        flops=2.0 * n_parameters * n_tokens,
        weight_bytes=n_parameters * itemsize,
        clip_bytes=itemsize * (kept * 2 * n_layers * keys + row * inner),
    )


def load(architecture: Architecture, spec: ModelSpec, readout: ReadOut, device: str) -> Extractor:
    """Return the model with its weights on a device (``cpu``, ``cuda``, ...)."""
    conditions = read_out_conditions(spec, readout)
    setup = prepare(architecture, spec, readout)
    try:
        from bids_mllm.features.models.instructed_extractor import InstructedExtractor
    except ImportError as error:
        # A torchvision built for another torch breaks the import of transformers' model classes.
        raise CheckpointError(
            f"The model code of transformers cannot be imported ({str(error).splitlines()[0]}); install a "
            "torchvision that matches torch, or none."
        ) from error
    return InstructedExtractor(architecture, setup, readout, conditions, device=device)
