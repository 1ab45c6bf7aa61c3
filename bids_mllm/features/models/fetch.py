"""Fetching a checkpoint from the hub into a folder or its cache; no other code of models uses a network."""

import os
from collections.abc import Iterable
from errno import EROFS
from fnmatch import fnmatch
from pathlib import Path

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.models.checkpoint import FILE_PATTERNS, check_weights, find_folder, read_config
from bids_mllm.features.registry import load_families
from bids_mllm.records import ModelSpec

# The same weights a second time, in another dtype.
VARIANTS = ("*.fp16*.safetensors", "*.fp32*.safetensors")
# What code from a checkpoint's own repository needs: itself, its tokenizer, and an encoder that lies beside it.
REMOTE_CODE_PATTERNS = ("*.py", "*.model", "whisper-large-v3/*.json", "whisper-large-v3/*.safetensors")

# Seconds to wait for the hub's first answer.
TIMEOUT = 30.0


def wanted_files(names: Iterable[str], *, remote_code: bool = False) -> tuple[str, ...]:
    """Return the files of a repository that are fetched, in order.

    Parameters
    ----------
    names
        Paths in the repository, with forward slashes.
    remote_code
        Whether Python files and what they need are fetched too.

    Returns
    -------
    Settings, tokenizers and weights as safetensors, each once. Pickled weights are never among them, nor are
    files of sub-folders that no family reads.
    """
    patterns = (*FILE_PATTERNS, *(REMOTE_CODE_PATTERNS if remote_code else ()))
    return tuple(sorted(name for name in names if _matches(name, patterns) and not _matches(name, VARIANTS)))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a path matches a pattern folder by folder: an asterisk never stands for a slash."""
    parts = name.split("/")
    for pattern in patterns:
        wanted = pattern.split("/")
        if len(wanted) == len(parts) and all(map(fnmatch, parts, wanted)):
            return True
    return False


def is_cached(spec: ModelSpec, *, remote_code: bool = False) -> bool:
    """Whether the hub's cache on this machine holds a checkpoint whole; the network is not used.

    Parameters
    ----------
    spec
        Its `source` is the hub id; with random weights those of the checkpoint may be missing.
    remote_code
        Whether a model that runs code from its repository needs that here.
    """
    try:
        folder = find_folder(spec.source, revision=spec.revision)
        read_config(folder, need_weights=spec.weights == "pretrained")
        if spec.weights == "pretrained":
            check_weights(folder)
    except CheckpointError:
        return False
    family = load_families().get(spec.family)
    return not (remote_code and family is not None and family.remote_code) or any(folder.glob("*.py"))


def fetch_checkpoint(
    spec: ModelSpec, folder: Path | None, *, remote_code: bool = False, option: str = "--revision"
) -> str:
    """Fetch a checkpoint from the hub into a folder; what is there already and whole is not fetched again.

    Parameters
    ----------
    spec
        Its `source` is the hub id, its `revision` the commit, tag or branch.
    folder
        Made where it does not exist; None for the hub's cache.
    remote_code
        Whether the Python files of the repository are fetched; nothing runs them here.
    option
        By which the caller takes a revision, for the sentence when there is none.

    Returns
    -------
    The commit that was fetched, by which the record can be pinned.

    Raises
    ------
    CheckpointError
        Without a network, for an unknown or closed repository or revision, for one without weights as
        safetensors, or where the folder cannot be written.
    """
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise CheckpointError(
            f"{spec.source} cannot be fetched while HF_HUB_OFFLINE is set; unset it for this command."
        )
    from huggingface_hub import HfApi, snapshot_download

    try:
        found = HfApi().model_info(spec.source, revision=spec.revision, timeout=TIMEOUT)
    except Exception as error:
        raise _failure(spec, error, option) from error
    names = wanted_files((file.rfilename for file in found.siblings or ()), remote_code=remote_code)
    if not any(name.endswith(".safetensors") for name in names):
        raise CheckpointError(
            f"{spec.source} has no weights as *.safetensors{_at(spec)}, and pickled weights are never fetched; give "
            f"{option} with one that has them, such as the refs/pr/N of a conversion on the hub."
        )
    commit = str(found.sha or spec.revision or "main")
    # The cache finds a tag or branch again by its name only when it was fetched by it.
    revision = commit if folder is not None else spec.revision
    try:
        snapshot_download(spec.source, revision=revision, local_dir=folder, allow_patterns=list(names))
    except Exception as error:
        raise _failure(spec, error, option) from error
    return commit


def _at(spec: ModelSpec) -> str:
    """Return the words for a revision."""
    return f" at revision {spec.revision}" if spec.revision else ""


def _failure(spec: ModelSpec, error: Exception, option: str) -> CheckpointError:
    """Return the sentence for a fetch that failed."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return CheckpointError(
            f"{spec.source} is open only to those who accepted its terms; accept them on its page of the hub and log "
            "in with `hf auth login`."
        )
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(f"{spec.source} has no revision {spec.revision}; give another with {option}.")
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(f"The hub has no {spec.source}, or it is private; check the hub id.")
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == EROFS:
        path = getattr(error, "filename", None) or "the folder"
        return CheckpointError(
            f"{spec.source} cannot be fetched, because {path} cannot be written; choose another folder, for the hub's "
            "cache with HF_HOME."
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return CheckpointError(
        f"{spec.source} cannot be fetched ({reason.rstrip('.')}); check the network, the space on the disk and the "
        "revision, and call the same command again: it goes on where it stopped."
    )
