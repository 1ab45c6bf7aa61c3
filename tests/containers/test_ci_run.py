"""What the continuous integration makes of its parts: a failure anywhere fails, a part without tools is told."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"
PARTS = ("bin/test", "tests/containers/run", "tests/slurm/run")


def run(folder, statuses):
    """Run a copy of the script on parts that end with the given exit statuses."""
    for part, status in zip(PARTS, statuses, strict=True):
        path = folder / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"echo this is {part}\nexit {status}\n")
    (folder / "bin/_venv.sh").write_text('make_venv() { echo "environment: $1"; [ ! -e broken ]; }\n')
    (folder / ".ci").mkdir()
    shutil.copy(SCRIPT, folder / ".ci" / "run")
    return subprocess.run(["/bin/bash", folder / ".ci" / "run"], cwd="/", capture_output=True, text=True, check=False)


def test_all_parts_are_run_and_are_there(tmp_path):
    done = run(tmp_path, (0, 0, 0))
    assert done.returncode == 0
    assert all(f"this is {part}\n" in done.stdout for part in PARTS)
    assert all((SCRIPT.parents[1] / part).is_file() for part in PARTS)
    assert "NOT RUN" not in done.stdout


@pytest.mark.parametrize("failing", range(3))
def test_any_failure_fails_after_all_parts_were_run(tmp_path, failing):
    done = run(tmp_path, tuple(3 * (index == failing) for index in range(3)))
    assert done.returncode == 1
    assert f"FAILED: {PARTS[failing]}\n" in done.stdout
    assert all(f"this is {part}\n" in done.stdout for part in PARTS)


def test_a_part_without_tools_is_told_and_no_failure(tmp_path):
    done = run(tmp_path, (0, 77, 0))
    assert done.returncode == 0
    assert "NOT RUN: tests/containers/run, for the reason that it gives above.\n" in done.stdout


def test_a_part_without_tools_hides_no_failure(tmp_path):
    assert run(tmp_path, (0, 77, 1)).returncode == 1


def test_the_environment_is_made_before_any_part_begins(tmp_path):
    lines = run(tmp_path, (0, 0, 0)).stdout.splitlines()
    assert lines[0] == "environment: test"


def test_nothing_is_run_without_an_environment(tmp_path):
    (tmp_path / "broken").touch()
    done = run(tmp_path, (0, 0, 0))
    assert done.returncode == 1
    assert "this is" not in done.stdout
