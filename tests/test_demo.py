"""The demo, as a new user runs it: it ends with status 0 only where all that was planted is found."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_demo_finds_what_was_planted(tmp_path):
    environment = {**os.environ, "BIDS_MLLM_VENV": sys.prefix}
    found = subprocess.run(
        [REPOSITORY / "bin" / "demo", tmp_path / "demo"], capture_output=True, text=True, env=environment
    )
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
    lines = found.stdout.splitlines()
    rows = [line for line in lines if line.startswith(("01", "02", "03"))]
    assert len(rows) == 3 * 10
    assert all(row.rstrip().endswith("yes") for row in rows)
    assert any(line.startswith("Linear CKA of qwen25vltiny layer 3") for line in lines)
    assert lines[-1] == f"Report: {tmp_path / 'demo' / 'results' / 'group.html'}"
    assert (tmp_path / "demo" / "results" / "group.html").stat().st_size > 100_000
