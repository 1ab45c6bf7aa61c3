"""The scripts of a page, all of them inside it, and the policy that keeps the page from loading or running others."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from markupsafe import Markup

from bids_mllm.report.content import Section
from bids_mllm.report.packing import packed

_OF_KIND = {"table": "tables.js", "viewer": "viewer.js", "explorer": "explorer.js"}
_COMMON = "common.js"


@dataclass(frozen=True)
class PageScripts:
    """What the page runs.

    Parameters
    ----------
    texts
        The scripts, in order.
    library
        The packed library of the viewer, unpacked when a viewer is first seen; empty without one.
    policy
        The content security policy: nothing is loaded, and only these scripts run.
    """

    texts: tuple[Markup, ...]
    library: str
    policy: str


def page_scripts(sections: Sequence[Section]) -> PageScripts:
    """Return the scripts that the blocks of a page need."""
    kinds = {block.kind for section in sections for block in section.blocks}
    names = [name for kind, name in _OF_KIND.items() if kind in kinds]
    texts = [_own_script(name) for name in ((_COMMON, *names) if names else ())]
    has_viewer = "viewer" in kinds
    hashes = [_digest(text) for text in texts] + ([_digest(_viewer_library())] if has_viewer else [])
    allowed = " ".join(hashes) or "'none'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    library = _packed_library() if has_viewer else ""
    return PageScripts(tuple(Markup(text) for text in texts), library, policy)


@lru_cache(maxsize=8)
def _own_script(name: str) -> str:
    return (files("bids_mllm.report") / "assets" / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _viewer_library() -> str:
    """Return the script of NiiVue, which nilearn brings along."""
    return (files("nilearn") / "_assets" / "js" / "niivue.umd.js").read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _packed_library() -> str:
    return packed(_viewer_library().encode("utf-8"))


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
