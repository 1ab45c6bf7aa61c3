"""Weights and tokenizers from a checkpoint's folder, or random weights of its architecture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.models.progress import quiet_loading

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    SafetensorError,
    StrictDataclassError,
)


def load_model(
    model_class: Any, folder: Path, *, dtype: str, device: str, options: Mapping[str, Any] | None = None
) -> Any:
    """Return a model in eval mode on a device, read from safetensors alone.

    Parameters
    ----------
    model_class
        A class of transformers with ``from_pretrained``.
    folder
        The checkpoint.
    dtype
        ``float32``, ``bfloat16`` or ``float16``.
    device
        ``cpu``, ``cuda``, ...
    options
        Further arguments of ``from_pretrained``, such as an `attn_implementation` other than sdpa.

    Raises
    ------
    CheckpointError
        When the checkpoint cannot be read, or a weight is missing or misshapen.
    """
    arguments: dict[str, Any] = {"attn_implementation": "sdpa", **(options or {})}
    try:
        with quiet_loading():
            model, report = model_class.from_pretrained(
                folder,
                dtype=DTYPES[dtype],
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **arguments,
            )
    except LOADING_ERRORS as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"The checkpoint {folder} cannot be loaded ({reason[0]}); copy it again or check its family."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"The checkpoint {folder} lacks {len(missing)} weights (first: {missing[0]}); copy it again."
        )
    return model.to(device).eval()


def random_model(
    model_class: Any,
    folder: Path,
    *,
    seed: int,
    dtype: str,
    device: str,
    config_class: Any = None,
    config: Any = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Return the architecture of a checkpoint with weights drawn from a seed by its own initialisation.

    No weight is read. The weights are drawn on the CPU in float32, so that they do not depend on the device
    or the dtype; the global random generator is left as it was. `config` takes the place of what `config_class`
    would read.
    """
    arguments: dict[str, Any] = {"attn_implementation": "sdpa", **(options or {})}
    try:
        if config is None:
            config = config_class.from_pretrained(folder, local_files_only=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = model_class._from_config(config, dtype=torch.float32, **arguments)
    except LOADING_ERRORS as error:
        raise CheckpointError(
            f"No model can be made from {folder / 'config.json'} ({error}); copy it again or check its family."
        ) from error
    # As of a loaded checkpoint, buffers that are not saved, such as rotary frequencies, keep float32.
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(DTYPES[dtype])
    return model.to(device).eval()


def load_tokenizer(folder: Path) -> Any:
    """Return the checkpoint's tokenizer, which must be able to give character offsets."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(
            f"The tokenizer of {folder} cannot be loaded ({type(error).__name__}); copy the checkpoint again."
        ) from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder} has no tokenizer.json, which is needed to locate the instruction.")
    return tokenizer
