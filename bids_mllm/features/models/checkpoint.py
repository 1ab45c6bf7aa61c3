"""The files of a checkpoint: where they are, whether they are whole, and what their bytes are.

Importing this module loads neither torch nor transformers, and nothing here unpickles.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from bids_mllm.exceptions import CheckpointError

# Everything that a model's numbers depend on; pickled weights (.bin, .pt) are left out on purpose.
FILE_PATTERNS = ("*.json", "*.jinja", "*.safetensors", "merges.txt", "vocab.txt")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
BLOB_DIGEST = re.compile(r"[0-9a-f]{64}")
READ_BLOCK = 1 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds, or raise a CheckpointError that names the file."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({type(error).__name__}); copy the checkpoint again."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; copy the checkpoint again.")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a checkpoint folder that has weights as safetensors.

    Raises
    ------
    CheckpointError
        When the folder does not exist, or lacks config.json or ``*.safetensors``.
    """
    if not folder.is_dir():
        raise CheckpointError(f"The model folder {folder} does not exist; give the folder of a checkpoint.")
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no config.json; give the folder that "
            "save_pretrained or a download of the hub wrote."
        )
    config = read_json(folder / "config.json")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} has no weights as *.safetensors; pickled weights are never opened, so convert them."
        )
    return config


def check_model_type(folder: Path, config: Mapping[str, Any], expected: str) -> None:
    """Raise a CheckpointError when config.json names another architecture."""
    if config.get("model_type") != expected:
        raise CheckpointError(
            f"{folder / 'config.json'} has model_type {config.get('model_type')!r}, but this family of "
            f"models needs {expected!r}; check the label and the folder."
        )


def _check_index(folder: Path) -> None:
    """Raise a CheckpointError when a shard that the weights' index names is missing."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    weight_map = read_json(index).get("weight_map", {})
    missing = sorted({name for name in weight_map.values() if not (folder / name).is_file()})
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights' files that its index names (first: {missing[0]}); "
            "copy the checkpoint again."
        )


def check_weights(folder: Path) -> None:
    """Raise a CheckpointError when a safetensors file is missing, truncated or damaged.

    Only the headers are read: a header gives the length that the file must have.
    """
    from safetensors import SafetensorError, safe_open

    _check_index(folder)
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"The weights' file {path} is truncated or damaged ({error}); copy it again."
            ) from error


def find_folder(source: str, *, revision: str | None, allow_download: bool) -> Path:
    """Return the folder that holds a checkpoint's files.

    Parameters
    ----------
    source
        A folder, or a hub id ``owner/name``.
    revision
        Commit, tag or branch of a hub id; of no effect for a folder.
    allow_download
        Whether a hub id that is not in the cache may be fetched.

    Raises
    ------
    CheckpointError
        When there is no such folder, and nothing cached for the hub id or its download fails.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(source):
        raise CheckpointError(f"The model folder {source} does not exist; give a folder or a hub id.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                source,
                revision=revision,
                local_files_only=not allow_download,
                allow_patterns=list(FILE_PATTERNS),
            )
        )
    except LocalEntryNotFoundError as error:
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(
            f"The model {source}{at} is not in the hub cache; add --allow-download to fetch it, or give a "
            "folder that holds it as label=FOLDER."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"The model {source} could not be downloaded ({type(error).__name__}); check the network and the "
            "revision, or give a folder that holds it as label=FOLDER."
        ) from error


@lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, modified_ns: int) -> str:
    """Return the sha256 of a file; `size` and `modified_ns` only make the cache notice a change."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(READ_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    """Return the sha256 of a file; the hub's cache already names the blob of a large file by it."""
    target = path.resolve()
    if path.is_symlink() and BLOB_DIGEST.fullmatch(target.name):
        return target.name
    stat = target.stat()
    return _file_digest(target, stat.st_size, stat.st_mtime_ns)


def files_digest(folder: Path) -> str:
    """Return one sha256 of the names and bytes of all files that a checkpoint's numbers depend on."""
    paths = sorted({path for pattern in FILE_PATTERNS for path in folder.glob(pattern)})
    lines = [f"{path.name} {_digest(path)}\n" for path in paths if path.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_processor_config(folder: Path) -> dict[str, Any]:
    """Return the settings of the video processor, from whichever file this checkpoint keeps them in.

    Newer saves nest them in processor_config.json; older ones use a file of their own, or the image
    processor's.
    """
    nested = folder / "processor_config.json"
    if nested.is_file():
        settings = read_json(nested).get("video_processor")
        if isinstance(settings, dict):
            return settings
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            return read_json(folder / name)
    raise CheckpointError(
        f"{folder} has none of processor_config.json, video_preprocessor_config.json and "
        "preprocessor_config.json; copy the checkpoint again."
    )


def read_chat_template(folder: Path) -> str | None:
    """Return the chat template kept beside the tokenizer, or None where the tokenizer has its own."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    path = folder / "chat_template.json"
    if path.is_file():
        template = read_json(path).get("chat_template")
        if isinstance(template, str):
            return template
    return None
