"""Fixtures of discovery: a small study, and a function that finds its runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bids_mllm.discover.layout import choose_participants, index_derivative
from bids_mllm.discover.runs import find_runs
from bids_mllm.discover.series import RunQuery
from bids_mllm.discover.spaces import parse_space

from .tree import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


@pytest.fixture
def find(study: Study) -> Callable[..., Any]:
    """Index the derivative and find runs in it."""

    def _find(**query: Any) -> Any:
        roots = {"fmriprep": study.prep, **query.pop("others", {})}
        participants = choose_participants(list(roots.values()), query.pop("participants", ()))
        spaces = tuple(map(parse_space, query.pop("spaces", ("MNI152NLin2009cAsym",))))
        derivatives = [index_derivative(name, root, participants) for name, root in roots.items()]
        return find_runs(derivatives, study.raw, RunQuery(participants, spaces, **query))

    return _find
