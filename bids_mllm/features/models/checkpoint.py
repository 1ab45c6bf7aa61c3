"""The files of a checkpoint: where they are, whether they are whole, and what their bytes are.

Importing this module loads neither torch nor transformers, and nothing here unpickles.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any

from bids_mllm.exceptions import CheckpointError

# Everything that a model's numbers depend on; pickled weights (.bin, .pt) are left out on purpose.
FILE_PATTERNS = (
    "*.json",
    "*.jinja",
    "*.safetensors",
    "merges.txt",
    "vocab.txt",
    "qformer_tokenizer/*.json",
    "qformer_tokenizer/vocab.txt",
)
INDEX = "model.safetensors.index.json"
# model_type of the sections whose own they may leave out, as the classes of transformers take it.
SECTION_TYPES = {
    ("video_llava", "text_config"): "llama",
    ("video_llava", "vision_config"): "clip_vision_model",
    ("llava_next_video", "text_config"): "llama",
    ("llava_next_video", "vision_config"): "clip_vision_model",
    ("llava_onevision", "text_config"): "qwen2",
    ("llava_onevision", "vision_config"): "siglip_vision_model",
    ("qwen2_audio", "text_config"): "qwen2",
    ("qwen2_audio", "audio_config"): "qwen2_audio_encoder",
    ("instructblip", "vision_config"): "instructblip_vision_model",
    ("instructblip", "qformer_config"): "instructblip_qformer",
    ("instructblipvideo", "vision_config"): "instructblipvideo_vision_model",
    ("instructblipvideo", "qformer_config"): "instructblipvideo_qformer",
    ("internvl", "text_config"): "qwen2",
    ("internvl", "vision_config"): "internvl_vision",
    ("clip", "vision_config"): "clip_vision_model",
    ("xclip", "vision_config"): "xclip_vision_model",
    ("clap", "audio_config"): "clap_audio_model",
    ("qwen2_5_omni", "thinker_config"): "qwen2_5_omni_thinker",
    ("qwen2_5_omni_thinker", "text_config"): "qwen2_5_omni_text",
    ("qwen2_5_omni_thinker", "vision_config"): "qwen2_5_omni_vision_encoder",
    ("qwen2_5_omni_thinker", "audio_config"): "qwen2_5_omni_audio_encoder",
}
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
FLOATING = ("F64", "F32", "F16", "BF16")
BYTES_OF_DTYPE = {"float32": 4, "bfloat16": 2, "float16": 2}
# A header of more than this is no header: the format itself ends there.
LONGEST_HEADER = 100_000_000
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


def read_config(folder: Path, *, need_weights: bool = True) -> dict[str, Any]:
    """Return the config.json of a checkpoint folder that has weights as safetensors.

    A section such as ``text_config`` may leave out sizes that have the default of its own model_type; they are
    filled in, as transformers does.

    Parameters
    ----------
    folder
        The checkpoint.
    need_weights
        False for a model whose weights are drawn at random.

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
    config = _filled(read_json(folder / "config.json"))
    if need_weights and not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} has no weights as *.safetensors; pickled weights are never opened, so convert them."
        )
    return config


@lru_cache(maxsize=1)
def _section_defaults() -> dict[str, dict[str, Any]]:
    """Return the sizes that a section of a config.json has where it does not say them, by its model_type."""
    packaged = resources.files("bids_mllm").joinpath("data", "config_defaults.json")
    defaults: dict[str, dict[str, Any]] = json.loads(packaged.read_text("utf-8"))
    return defaults


def _filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the sizes that its sections leave out."""
    filled = dict(config)
    for name, section in config.items():
        if name.endswith("_config") and isinstance(section, Mapping):
            model_type = section.get("model_type") or SECTION_TYPES.get((str(config.get("model_type")), name))
            filled[name] = _filled({**_section_defaults().get(str(model_type), {}), **section})
    return filled


def check_model_type(folder: Path, config: Mapping[str, Any], expected: Collection[str]) -> None:
    """Raise a CheckpointError when config.json names none of the expected architectures."""
    if config.get("model_type") not in expected:
        needed = " or ".join(repr(name) for name in expected)
        raise CheckpointError(
            f"{folder / 'config.json'} has model_type {config.get('model_type')!r}, but this family of "
            f"models needs {needed}; check the label and the folder."
        )


@dataclass(frozen=True)
class TensorHeader:
    """What the header of a safetensors file says of one tensor: its dtype as written there, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers that the tensor holds."""
        return prod(self.shape)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of the weights that are loaded: one file, else the shards of the index, else all.

    This is the order in which transformers looks; a folder without any gives an empty tuple.

    Raises
    ------
    CheckpointError
        When the index cannot be read or names a file that is missing.
    """
    if (folder / "model.safetensors").is_file():
        return (folder / "model.safetensors",)
    if (folder / INDEX).is_file():
        return tuple(folder / name for name in sorted(_shards(folder)))
    return tuple(sorted(folder.glob("*.safetensors")))


def _shards(folder: Path) -> dict[str, list[str]]:
    """Return the names of the weights by the shard in which the index of a folder says they are."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} names no weights; copy the checkpoint again.")
    shards: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        shards.setdefault(str(file), []).append(name)
    missing = sorted(file for file in shards if Path(file).name != file or not (folder / file).is_file())
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights' files that its index names (first: {missing[0]}); "
            "copy the checkpoint again."
        )
    return shards


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Return the tensors that a safetensors file says it holds; no weight is read.

    The file begins with the length of a JSON object (8 bytes, little-endian) that gives for each tensor dtype,
    shape and place; the places tell how long the file must be.

    Raises
    ------
    CheckpointError
        When the header is damaged, or the file is shorter or longer than it says.
    """
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        tensors = {name: TensorHeader(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
        expected, found = 8 + length + end, path.stat().st_size
        if expected != found:
            raise ValueError(f"{found} bytes, but its header says {expected}")
    except PermissionError as error:
        raise CheckpointError(f"The weights' file {path} may not be read by you; change its permissions.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"The weights' file {path} is truncated or damaged ({error}); copy it again.") from error
    return tensors


def check_weights(folder: Path) -> None:
    """Raise a CheckpointError when a safetensors file is missing, truncated or damaged.

    Only the headers are read: a header gives the length that the file must have, and the index of a checkpoint
    in shards gives the weights that each must hold.
    """
    from safetensors import SafetensorError, safe_open

    shards = _shards(folder) if (folder / INDEX).is_file() else {}
    for path in sorted({*weight_files(folder), *(folder / name for name in shards)}):
        absent = sorted(set(shards.get(path.name, ())) - set(read_header(path)))
        if absent:
            raise CheckpointError(
                f"The weights' file {path} lacks {len(absent)} weights that the index of its folder says it holds "
                f"(first: {absent[0]}); copy the checkpoint again."
            )
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"The weights' file {path} is truncated or damaged ({error}); copy it again."
            ) from error


def _tensors(folder: Path, prefixes: tuple[str, ...]) -> list[TensorHeader]:
    """Return the headers of the weights whose names begin with one of the prefixes."""
    headers = [read_header(path) for path in weight_files(folder)]
    return [tensor for header in headers for name, tensor in header.items() if name.startswith(prefixes)]


def count_parameters(folder: Path, prefixes: tuple[str, ...] = ("",)) -> int:
    """Return how many numbers the weights of a checkpoint are, from the headers of their files.

    Parameters
    ----------
    folder
        The checkpoint; one without weights' files has 0.
    prefixes
        Beginnings of the names of the weights to count, such as ``("thinker.",)``; all by default.
    """
    return sum(tensor.size for tensor in _tensors(folder, prefixes))


def weight_bytes(folder: Path, dtype: str, prefixes: tuple[str, ...] = ("",)) -> int:
    """Return the bytes that the weights of a checkpoint take when they run in a dtype.

    Weights that are whole numbers keep their own size; see `count_parameters` for the other arguments.
    """
    floating = 8 * BYTES_OF_DTYPE[dtype]
    tensors = _tensors(folder, prefixes)
    return sum(t.size * (floating if t.dtype in FLOATING else BITS.get(t.dtype, 8)) for t in tensors) // 8


def stored_dtypes(folder: Path) -> dict[str, int]:
    """Return how many numbers of each dtype the weights' files hold, by the dtype's name in their headers."""
    counts: dict[str, int] = {}
    for tensor in _tensors(folder, ("",)):
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.size
    return counts


def find_folder(source: str, *, revision: str | None) -> Path:
    """Return the folder that holds a checkpoint's files; the network is never used.

    Parameters
    ----------
    source
        A folder, or a hub id ``owner/name`` whose files are in the local cache of the hub.
    revision
        Commit, tag or branch of a hub id; of no effect for a folder.

    Raises
    ------
    CheckpointError
        When there is no such folder, and nothing cached for the hub id; it says which command fetches it.
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
            snapshot_download(source, revision=revision, local_files_only=True, allow_patterns=list(FILE_PATTERNS))
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        at, option = (f" at revision {revision}", f" --revision {revision}") if revision else ("", "")
        raise CheckpointError(
            f"The model {source}{at} is not in the local cache of the hub; fetch it where there is a network with "
            f"`bids-mllm-models prefetch {source}{option} --to DIR` and give its folder as LABEL=FOLDER, or add "
            "--allow-download to bids-mllm."
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


def files_digest(folder: Path, *, weights: bool = True) -> str:
    """Return one sha256 of the names and bytes of all files that a checkpoint's numbers depend on.

    Without `weights` those of the weights are left out, for a model whose weights are drawn at random.
    """
    found = sorted({path for pattern in FILE_PATTERNS for path in folder.glob(pattern) if path.is_file()})
    paths = [path for path in found if weights or "safetensors" not in path.name]
    lines = [f"{path.relative_to(folder).as_posix()} {_digest(path)}\n" for path in paths]
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
