"""Checks of tasks that share an output folder: over the stimuli of all of them, in whatever order they end."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_check_node import FILMS, INSTRUCTIONS, conditions_of, made_values, run, spec_of, write_store

from bids_mllm.interfaces import conditioning
from bids_mllm.interfaces.check_record import checks_locked
from bids_mllm.interfaces.conditioning import COVERED_FILE, must_check_again
from bids_mllm.io.files import read_json
from bids_mllm.records import Condition

__all__ = ["run"]  # the fixture

Run = Callable[..., Any]


def folder_of(tmp_path: Path, out: str = "out") -> Path:
    return tmp_path / out / "sourcedata" / "checks"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*")}


@pytest.fixture
def films(tmp_path: Path) -> list[Path]:
    """Manifests of two films, one a task."""
    return write_store(tmp_path, made_values(conditions_of("last")))


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0)])
def test_tasks_in_any_order_give_the_files_of_one_call(
    tmp_path: Path, films: list[Path], run: Run, order: tuple[int, ...]
) -> None:
    run(films, spec_of(), out="whole")
    for number in order:
        run([films[number]], spec_of())
    found = contents(folder_of(tmp_path))
    assert json.loads(found["model-tiny_conditioning.json"])["Clips"] == sum(FILMS.values())
    assert found == contents(folder_of(tmp_path, "whole"))


def test_what_is_covered_is_left_alone(tmp_path: Path, films: list[Path], run: Run, monkeypatch: Any) -> None:
    run([films[0]], spec_of())
    first = shutil.copytree(tmp_path / "work", tmp_path / "first")
    run([films[1]], spec_of())
    before = times(folder_of(tmp_path))
    assert not must_check_again(first, tmp_path / "out", "tiny"), "nipype's node of the first task counts as done"
    monkeypatch.setattr(conditioning, "check_features", None)
    run([films[0]], spec_of())
    run(films, spec_of())
    assert times(folder_of(tmp_path)) == before


def test_a_step_without_a_record_of_its_own_is_left_to_nipype(tmp_path: Path) -> None:
    assert not must_check_again(tmp_path, tmp_path / "out", "tiny")


@pytest.mark.parametrize("name", ["columns.tsv", "conditioning.json", "covered.json"])
def test_files_that_were_changed_or_removed_are_made_again(
    tmp_path: Path, films: list[Path], run: Run, name: str
) -> None:
    run(films, spec_of())
    before, file = contents(folder_of(tmp_path)), folder_of(tmp_path) / f"model-tiny_{name}"
    for damage in (lambda: file.write_text("changed"), file.unlink):
        damage()
        assert must_check_again(tmp_path / "work", tmp_path / "out", "tiny")
        run(films, spec_of())
        assert contents(folder_of(tmp_path)) == before


def test_other_instructions_and_seeds_are_not_covered(tmp_path: Path, films: list[Path], run: Run) -> None:
    run(films, spec_of())
    fewer = [path.with_name(f"fewer_{path.name}") for path in films]
    for path, own in zip(films, fewer, strict=True):
        manifest = json.loads(path.read_text())
        manifest["entries"] = [row for row in manifest["entries"] if row["instruction"] in (None, "AR", "VU")]
        own.write_text(json.dumps(manifest))
    run([fewer[0]], spec_of())
    summary = read_json(folder_of(tmp_path) / "model-tiny_conditioning.json")
    assert list(summary["Instructions"]) == ["AR", "VU"]
    assert summary["Clips"] == FILMS["b.mkv"], "the other film was checked with other instructions"
    run(films, spec_of())
    before = times(folder_of(tmp_path))
    run(films, spec_of(), seed=1)
    assert times(folder_of(tmp_path)) != before


@pytest.mark.parametrize("change", ["read out otherwise", "not whole", "gone"])
def test_films_of_others_must_be_whole_and_read_out_in_the_same_way(
    tmp_path: Path, films: list[Path], run: Run, change: str
) -> None:
    run([films[0]], spec_of())
    own = films[1]
    rows = json.loads(films[0].read_text())["entries"]
    if change == "read out otherwise":
        own = write_store(tmp_path, made_values(conditions_of("last")), max_new_tokens=9)[1]
    elif change == "not whole":
        next(Path(rows[3]["path"]).glob("*.safetensors")).unlink()
    else:
        for row in rows:
            shutil.rmtree(row["path"])
    run([own], spec_of())
    summary = read_json(folder_of(tmp_path) / "model-tiny_conditioning.json")
    assert summary["Clips"] == FILMS["a.mkv"]
    assert list(read_json(folder_of(tmp_path) / "model-tiny_covered.json")["Stimuli"]) == ["a.mkv"]


def test_a_store_that_was_moved_serves_as_before(tmp_path: Path, films: list[Path], run: Run) -> None:
    run([films[0]], spec_of())
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    films[1].write_text(films[1].read_text().replace(str(tmp_path / "store"), str(tmp_path / "elsewhere")))
    run([films[1]], spec_of())
    covered = (folder_of(tmp_path) / "model-tiny_covered.json").read_text()
    assert list(json.loads(covered)["Stimuli"]) == ["a.mkv", "b.mkv"]
    assert str(tmp_path) not in covered


def test_a_film_that_was_changed_counts_once(tmp_path: Path, films: list[Path], run: Run) -> None:
    run(films, spec_of())
    before = read_json(folder_of(tmp_path) / "model-tiny_covered.json")["Stimuli"]
    changed = write_store(tmp_path, made_values(conditions_of("last")), edition="2")
    run([changed[0]], spec_of())
    assert read_json(folder_of(tmp_path) / "model-tiny_conditioning.json")["Clips"] == sum(FILMS.values())
    after = read_json(folder_of(tmp_path) / "model-tiny_covered.json")["Stimuli"]
    assert after["a.mkv"] == before["a.mkv"]
    rows = json.loads(changed[0].read_text())["entries"]
    (grid,) = after["b.mkv"]
    assert set(grid["entries"].values()) == {Path(row["path"]).name for row in rows}


def test_a_task_waits_for_the_one_that_checks(tmp_path: Path, films: list[Path], run: Run) -> None:
    task = threading.Thread(target=run, args=([films[0]], spec_of()))
    with checks_locked(tmp_path / "out", "tiny"):
        task.start()
        task.join(1.5)
        assert task.is_alive()
        assert contents(folder_of(tmp_path)) == {}
        with checks_locked(tmp_path / "out", "tiny+random"):
            pass  # another model is not waited for
    task.join(30)
    assert "model-tiny_conditioning.json" in contents(folder_of(tmp_path))


def test_the_record_names_instructions_and_entries(tmp_path: Path, films: list[Path], run: Run) -> None:
    run(films, spec_of())
    record = read_json(folder_of(tmp_path) / "model-tiny_covered.json")
    assert [one["key"] for one in record["Instructions"]] == [one.key for one in INSTRUCTIONS]
    (grid,) = record["Stimuli"]["a.mkv"]
    assert (grid["origin"], grid["step"], grid["n_windows"]) == (0.0, 1.49, 9)
    rows = json.loads(films[1].read_text())["entries"]
    assert grid["entries"] == {
        Condition(row["pooling"], row["instruction"]).label: Path(row["path"]).name for row in rows
    }
    assert read_json(tmp_path / "work" / COVERED_FILE)["Stimuli"] == record["Stimuli"]
