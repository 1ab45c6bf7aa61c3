"""Fetching files of TemplateFlow into its folder with its own client: beside checkpoints all that uses a network."""

import gzip
import os
import re
import shutil
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, suppress
from functools import lru_cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.owners import ORPHAN_SECONDS, Owner, is_gone, this_process
from bids_mllm.io.templates import Template, find_template, is_filled

ADDRESS = "https://templateflow.s3.amazonaws.com"
#: Names another address with the same files, such as a mirror.
ADDRESS_VARIABLE = "BIDS_MLLM_TEMPLATEFLOW_URL"
#: Folders of what is being fetched: which process uses one, as `bids_mllm.io.owners` tells processes apart.
_STAGING = re.compile(r"\.fetching-([0-9a-f]{12})-(\d+)-(\d+)-.+")


@lru_cache(maxsize=1)
def _held() -> frozenset[str]:
    """Return the names of all files that TemplateFlow has, from the list that its client brings along."""
    spec = find_spec("templateflow")  # its import would lay out a folder
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise InputDataError("The package templateflow is not installed; install it with: pip install templateflow.")
    with ZipFile(Path(next(iter(places))) / "conf" / "templateflow-skel.zip") as listing:
        return frozenset(listing.namelist())


def held_choice(template: Template) -> tuple[str, ...]:
    """Return the files of the best choice that TemplateFlow has, with its table; empty where it has none."""
    held = _held()
    for names in template.choices:
        if held.issuperset(names):
            return (*names, *((template.table,) if template.table in held else ()))
    return ()


def fetch_templates(templates: Sequence[Template], home: Path) -> Iterator[Path]:
    """Fetch what is missing in a folder, and yield each file when it is there; each is whole or not there at all.

    Parameters
    ----------
    templates
        What TemplateFlow does not have is left out.
    home
        TemplateFlow's folder, made and laid out as TemplateFlow does where it is new.

    Raises
    ------
    InputDataError
        Without a network, for a file that the server does not give whole, or where the folder cannot be written.
    """
    _sweep(home)
    if not _lacking(templates, home):
        return
    try:
        _lay_out(home)
        owner = this_process()
        prefix = f".fetching-{owner.machine}-{owner.pid}-{owner.started}-"
        with TemporaryDirectory(prefix=prefix, dir=home) as folder:
            staging, names = Path(folder), _lacking(templates, home)
            for name in names:
                (staging / name).parent.mkdir(exist_ok=True)
                (staging / name).touch()
            client = _client(staging)
            for name in names:
                yield _fetched(client, staging, home, name)
    except OSError as error:
        raise InputDataError(
            f"The templates' folder {home} cannot be written ({error.strerror or error}); choose another, with "
            "TEMPLATEFLOW_HOME or --to."
        ) from error


def _sweep(home: Path) -> None:
    """Remove what processes left that were killed: dead ones of this machine, after a day those of others too."""
    for folder in home.glob(".fetching-*"):
        match = _STAGING.fullmatch(folder.name)
        if match is None:
            continue
        owner = Owner(match[1], int(match[2]), int(match[3]))
        elsewhere = owner.machine != this_process().machine
        with suppress(OSError):  # another process may be removing it
            if is_gone(owner) or (elsewhere and time.time() - folder.stat().st_mtime > ORPHAN_SECONDS):
                shutil.rmtree(folder, ignore_errors=True)


def _lacking(templates: Sequence[Template], home: Path) -> list[str]:
    """Return the files to fetch; of what is there its table at most."""
    names: dict[str, None] = {}
    for template in templates:
        held, is_here = held_choice(template), find_template(template, home) is not None
        names |= dict.fromkeys(name for name in held if not is_here or name == template.table)
    return [name for name in names if not is_filled(home / name)]


def _lay_out(home: Path) -> None:
    """Lay out a new folder as TemplateFlow does, so that other programs can use it too."""
    home.mkdir(parents=True, exist_ok=True)
    if not any(home.iterdir()):
        _client(home).cache.ensure()


def _client(root: Path) -> Any:
    """Return a client for a folder; importing the package would lay out the folder of its variable."""
    before = os.environ.get("TEMPLATEFLOW_HOME")
    os.environ["TEMPLATEFLOW_HOME"] = str(root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from templateflow import TemplateFlowClient
    finally:
        if before is None:
            del os.environ["TEMPLATEFLOW_HOME"]
        else:
            os.environ["TEMPLATEFLOW_HOME"] = before
    address = os.environ.get(ADDRESS_VARIABLE) or ADDRESS
    return TemplateFlowClient(root=root, s3_root=address.rstrip("/"), use_datalad=False, autoupdate=False)


def _fetched(client: Any, staging: Path, home: Path, name: str) -> Path:
    """Fetch one file beside its place and put it there when it is whole."""
    layout, source = client.cache.layout, staging / name
    own = layout.get_file(str(source)).get_entities()
    query = {entity: own.get(entity) for entity in layout.get_entities()}
    try:
        with redirect_stderr(StringIO()):  # the client draws a bar for every file
            client.get(query.pop("template"), **query)
        _check_whole(source)
    except (OSError, RuntimeError, EOFError, zlib.error) as error:
        # What requests raises is an OSError without an error of the system.
        if getattr(error, "errno", None) is not None:
            raise
        address = client.cache.config.s3_root
        raise InputDataError(
            f"{name} cannot be fetched from {address} ({_reason(error)}); check the network and call the same command "
            "again: what is there is kept."
        ) from error
    place = home / name
    if place.is_symlink() and not place.exists():
        raise InputDataError(
            f"{place} is a link to content that was not fetched; fetch it with: datalad get {place.name}"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    source.replace(place)
    return place


def _reason(error: Exception) -> str:
    """Return in a few words why a file did not come."""
    from requests.exceptions import ChunkedEncodingError, ConnectionError, Timeout

    if isinstance(error, Timeout):
        return "no answer in time"
    if isinstance(error, ChunkedEncodingError) or "ended before" in str(error):
        return "it was cut off on its way"
    if isinstance(error, ConnectionError):
        return "no connection"
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check_whole(path: Path) -> None:
    """Raise an error when a file was cut off on its way, which a server that tells no length does not show."""
    if path.name.endswith(".gz"):
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass
    elif path.name.endswith(".gii") and not path.read_bytes().rstrip().endswith(b"</GIFTI>"):
        raise EOFError("it was cut off on its way")
