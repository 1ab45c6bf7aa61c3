"""Names of the pages of participants: stable from call to call, whatever spaces a call has."""

import re
from collections.abc import Collection
from pathlib import Path

#: Enough of a page to hold its head.
HEAD_CHARACTERS = 2000


def page_path(output_dir: Path, participant: str, place: str, *, first: bool) -> Path:
    """Return where the page of one participant in one place is written; remove another page of the same place.

    ``sub-<label>.html`` is that of the place for which it was first written; every other place has
    ``sub-<label>_space-<place>.html``. So a later call in another space neither replaces a page nor leaves one behind.

    Parameters
    ----------
    output_dir
    participant
        Label.
    place
        As in the file names of maps.
    first
        Whether this is the first place of the participant in this call, which takes the plain name when it is free.
    """
    plain = output_dir / f"sub-{participant}.html"
    own = output_dir / f"sub-{participant}_space-{place}.html"
    owner = _place_of(plain)
    if owner == place or (owner is None and first):
        own.unlink(missing_ok=True)
        remove_session_pages(own)
        return plain
    return own


def session_page_path(page: Path, session: str) -> Path:
    """Return the path of the page of one session beside the participant's page `page`."""
    participant, *place = page.stem.split("_", 1)
    return page.with_name("_".join([participant, f"ses-{session}", *place]) + page.suffix)


def remove_session_pages(page: Path, *, kept: Collection[Path] = ()) -> None:
    """Remove pages of sessions that an earlier call wrote beside the participant's page `page`, but for those kept."""
    pattern = session_page_path(page, "*").name
    spaced = "_space-" in page.stem
    for path in page.parent.glob(pattern):
        if path not in kept and ("_space-" in path.stem) == spaced:
            path.unlink()


def _place_of(page: Path) -> str | None:
    """Place that a page speaks of; None where there is no page, or one that does not tell."""
    if not page.is_file():
        return None
    with page.open(encoding="utf-8", errors="replace") as stream:
        found = re.search(r'<meta name="place" content="([^"]*)">', stream.read(HEAD_CHARACTERS))
    return found[1] if found else None
