"""Where libraries may write what they keep between runs, on machines without a home folder that can be written."""

import getpass
import os
import stat
import tempfile
from pathlib import Path

from bids_mllm.exceptions import UsageError

#: Folders of libraries that would lie in the home folder, by the variable that moves each.
CACHES = {
    "XDG_CACHE_HOME": "cache",
    "MPLCONFIGDIR": "matplotlib",
    "NUMBA_CACHE_DIR": "numba",
    "NIPYPE_CONFIG_DIR": "nipype",
    "HF_MODULES_CACHE": "huggingface-modules",
    "HF_XET_CACHE": "huggingface-xet",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
}


def settle_home() -> None:
    """Give libraries a place below TMPDIR for what they would write into a home folder that cannot be written.

    Variables that are set stay as they are, but for those that name a folder for temporary files which belongs to
    somebody else, as an image's may on a machine that several people use. What is only read in a home folder that is
    there, such as the hub's cache and TemplateFlow's folder, is still found in it. A user without an entry in the list
    of users gets a name.

    Raises
    ------
    UsageError
        Where no folder for temporary files can be written either.
    """
    if not _has_name():
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    for variable, folder in CACHES.items():
        if _is_of_another(os.environ.get(variable, "")):
            os.environ[variable] = str(_own_folder() / folder)
    hub = os.environ.get("HF_HOME")
    if hub and Path(hub).is_dir() and not os.access(hub, os.W_OK):
        for variable in ("HF_MODULES_CACHE", "HF_XET_CACHE"):
            os.environ.setdefault(variable, str(_own_folder() / CACHES[variable]))
    home = _home()
    if home is not None and os.access(home, os.W_OK):
        return
    if home is None:
        os.environ["HOME"] = str(_own_folder())
    else:
        _keep_reading(home)
    for variable, folder in CACHES.items():
        os.environ.setdefault(variable, str(_own_folder() / folder))


def _is_of_another(cache: str) -> bool:
    """Whether a cache lies in a folder for temporary files that belongs to somebody else or that others can write."""
    roots = [root for root in {Path(tempfile.gettempdir()), Path("/tmp")} if root in Path(cache).parents]
    tops = [root / Path(cache).relative_to(root).parts[0] for root in roots]
    found = [top.lstat() for top in tops if top.exists()]
    return any(status.st_uid != os.getuid() or status.st_mode & 0o022 for status in found)


def _has_name() -> bool:
    try:
        return bool(getpass.getuser())
    except (KeyError, OSError):
        return False


def _home() -> Path | None:
    """Return the home folder by its variable or the list of users; None where it is not there."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home if home.is_dir() else None


def _keep_reading(home: Path) -> None:
    """Pin what libraries look up below XDG_CACHE_HOME to where it lies, before that variable is set."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    for variable, folder in {"HF_HOME": "huggingface", "TEMPLATEFLOW_HOME": "templateflow"}.items():
        if variable not in os.environ and (caches / folder).is_dir():
            os.environ[variable] = str(caches / folder)


def _own_folder() -> Path:
    """Return a folder below TMPDIR that is this user's alone; caches hold code, which nobody else may put there."""
    try:
        folder = Path(tempfile.gettempdir()) / f"bids-mllm-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"No folder for temporary files can be written ({error.strerror}); set TMPDIR to one that can."
        ) from error
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UsageError(
            f"The folder {folder} for caches belongs to somebody else or can be written by others; remove it, or set "
            "TMPDIR to a folder of your own."
        )
    return folder
