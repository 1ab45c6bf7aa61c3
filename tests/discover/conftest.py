"""Fixtures of discovery: a small study, and a function that finds its runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bids_mllm.discover.layout import choose_participants, index_derivative
from bids_mllm.discover.runs import RunQuery, find_runs

from .tree import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


@pytest.fixture
def find(study: Study) -> Callable[..., Any]:
    """Index the derivative and find runs in it."""

    def _find(**query: Any) -> Any:
        participants = choose_participants(study.prep, query.pop("participants", ()))
        spaces = query.pop("spaces", ("MNI152NLin2009cAsym",))
        layout = index_derivative(study.prep, participants)
        return find_runs(layout, study.raw, study.prep, RunQuery(participants, spaces, **query))

    return _find
