"""Pages of participants with many sessions: one of the whole, and one a session with its runs and their alignment."""

from collections.abc import Mapping
from dataclasses import replace

from bids_mllm.report.pages import ParticipantPage, SessionLink

#: A participant with more has a page for each.
MOST_SESSIONS = 4


def sessions_of(page: ParticipantPage) -> tuple[str, ...]:
    """Return the sessions that have pages of their own: none where there are `MOST_SESSIONS` or fewer."""
    sessions = tuple(dict.fromkeys(run.session for run in page.runs if run.session is not None))
    return sessions if len(sessions) > MOST_SESSIONS else ()


def split_page(
    page: ParticipantPage, file_names: Mapping[str, str]
) -> tuple[ParticipantPage, dict[str, ParticipantPage]]:
    """Take the runs of sessions out of a participant's page.

    Parameters
    ----------
    page
    file_names
        Name of the page of each session that is to have one; all other runs stay.

    Returns
    -------
    main : ParticipantPage
        With a link to the page of each session.
    pages : dict
        By session, what the page holds: its runs and their windows, and the warnings that name one of these runs.
    """
    windows = page.windows or (None,) * len(page.runs)
    pairs = list(zip(page.runs, windows, strict=True))
    links, pages = [], {}
    for session, file_name in file_names.items():
        own = [(run, window) for run, window in pairs if run.session == session]
        runs, aligned = tuple(run for run, _ in own), tuple(window for _, window in own if window is not None)
        n_volumes = sum(run.n_volumes for run in runs)
        n_used = sum(int(window.valid.sum()) for window in aligned) if aligned else None
        links.append(SessionLink(session, file_name, len(runs), n_volumes, n_used))
        used = "n/a" if n_used is None else f"{n_used} of {n_volumes}"
        pages[session] = ParticipantPage(
            participant=page.participant,
            app_version=page.app_version,
            created=page.created,
            place=page.place,
            warnings=tuple(text for text in page.warnings if any(f"{run.label}:" in text for run in runs)),
            summary={"Session": f"ses-{session}", "Runs used": len(runs), "Volumes with a complete window": used},
            runs=runs,
            windows=aligned,
        )
    left = [(run, window) for run, window in pairs if run.session not in file_names]
    main = replace(
        page,
        runs=tuple(run for run, _ in left),
        windows=tuple(window for _, window in left if window is not None),
        sessions=tuple(links),
    )
    return main, pages
