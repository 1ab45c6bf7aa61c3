"""Parts of chunks: what was saved comes back bit for bit, and what cannot be trusted does not come back."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bids_mllm.exceptions import StoreError
from bids_mllm.io.parts import Part, claim_of_part, load_parts, part_path, remove_parts, save_part, saved_rows

NAME = "0123abcd-00007"
ENTRIES = ("a" * 64, "b" * 64)


def part(first: int, n_rows: int, *, seed: int = 0) -> Part:
    rng = np.random.default_rng([seed, first])
    values = tuple(rng.standard_normal((n_rows, 3, width)).astype(np.float32) for width in (5, 2))
    for each in values:
        each[0] = np.nan
        each[-1, 0, 0] = 1e-42  # neither float16 nor a normal float32
    return Part(values, {1: [f"text {first + k}\tü" for k in range(n_rows)]}, {448 + first: "Damaged."}, first)


def save(store: Path, *parts: Part, entries: tuple[str, ...] = ENTRIES) -> None:
    for each in parts:
        save_part(part_path(store, NAME, each.first), each, entries)


def assert_same(found: Part, expected: Part) -> None:
    assert found.first == expected.first
    assert {number: list(said) for number, said in found.texts.items()} == expected.texts
    assert found.masked == expected.masked
    for one, other in zip(found.values, expected.values, strict=True):
        assert one.dtype == np.float32
        assert one.tobytes() == other.tobytes()


def test_parts_come_back_bit_for_bit_in_order(tmp_path: Path) -> None:
    parts = [part(0, 4), part(4, 1), part(5, 13), part(18, 2)]
    save(tmp_path, *reversed(parts))
    assert saved_rows(tmp_path, NAME, ENTRIES) == 20
    found = list(load_parts(tmp_path, NAME, ENTRIES))
    assert len(found) == 4
    for one, other in zip(found, parts, strict=True):
        assert_same(one, other)


def test_where_nothing_is_saved_there_are_no_rows(tmp_path: Path) -> None:
    assert saved_rows(tmp_path, NAME, ENTRIES) == 0
    assert list(load_parts(tmp_path, NAME, ENTRIES)) == []
    remove_parts(tmp_path, NAME)
    save(tmp_path, Part((np.zeros((0, 3, 5), np.float32),), {}, {}), entries=ENTRIES[:1])
    assert saved_rows(tmp_path, NAME, ENTRIES[:1]) == 0
    assert list(load_parts(tmp_path, NAME, ENTRIES[:1])) == []


@pytest.mark.parametrize("lost", [0, 4, 5])
def test_what_is_behind_a_gap_does_not_count(tmp_path: Path, lost: int) -> None:
    save(tmp_path, part(0, 4), part(4, 1), part(5, 13))
    part_path(tmp_path, NAME, lost).unlink()
    assert saved_rows(tmp_path, NAME, ENTRIES) == lost
    assert sum(len(found.values[0]) for found in load_parts(tmp_path, NAME, ENTRIES)) == lost


@pytest.mark.parametrize("content", [b"", b"half", b"\x10\0\0\0\0\0\0\0{}              ", None])
def test_a_part_that_cannot_be_read_is_as_good_as_none(tmp_path: Path, content: bytes | None) -> None:
    save(tmp_path, part(0, 4), part(4, 2))
    path = part_path(tmp_path, NAME, 4)
    path.write_bytes(path.read_bytes()[:-7] if content is None else content)
    assert saved_rows(tmp_path, NAME, ENTRIES) == 4
    assert [found.first for found in load_parts(tmp_path, NAME, ENTRIES)] == [0]


@pytest.mark.parametrize("entries", [ENTRIES[::-1], ENTRIES[:1], (*ENTRIES, "c" * 64), ("c" * 64, ENTRIES[1])])
def test_a_part_of_other_entries_is_none_of_these(tmp_path: Path, entries: tuple[str, ...]) -> None:
    save(tmp_path, part(0, 4))
    assert saved_rows(tmp_path, NAME, entries) == 0
    assert list(load_parts(tmp_path, NAME, entries)) == []


def test_parts_of_an_earlier_job_may_be_overwritten_in_other_steps(tmp_path: Path) -> None:
    """The chain follows the windows: what the earlier job had saved in between is passed over."""
    save(tmp_path, part(0, 4), part(4, 4), part(8, 4))
    longer = part(0, 8, seed=1)
    save(tmp_path, longer)
    found = list(load_parts(tmp_path, NAME, ENTRIES))
    assert [each.first for each in found] == [0, 8]
    assert_same(found[0], longer)
    assert saved_rows(tmp_path, NAME, ENTRIES) == 12


def test_only_the_parts_of_one_chunk_are_removed(tmp_path: Path) -> None:
    save(tmp_path, part(0, 4), part(4, 4))
    other = part_path(tmp_path, "0123abcd-00008")
    save_part(other, part(0, 4), ENTRIES)
    remove_parts(tmp_path, NAME)
    assert list((tmp_path / ".parts").iterdir()) == [other]


def test_a_part_tells_the_claim_that_it_belongs_to(tmp_path: Path) -> None:
    assert claim_of_part(part_path(tmp_path, NAME, 12)) == NAME
    assert claim_of_part(part_path(tmp_path, "with.dots-00001")) == "with.dots-00001"


def test_equal_parts_are_equal_files(tmp_path: Path) -> None:
    save(tmp_path / "one", part(0, 4))
    save(tmp_path / "two", part(0, 4))
    one, two = (part_path(tmp_path / name, NAME).read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_view_of_rows_is_saved_as_it_is_seen(tmp_path: Path) -> None:
    large = np.arange(2 * 10 * 3 * 5, dtype=np.float32).reshape(2, 10, 3, 5)
    save(tmp_path, Part((large[0, 2:6], large[1, ::2][1:]), {}, {}))
    [found] = load_parts(tmp_path, NAME, ENTRIES)
    np.testing.assert_array_equal(found.values[0], large[0, 2:6])
    np.testing.assert_array_equal(found.values[1], large[1, 2::2])


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".parts").write_text("in the way")
    with pytest.raises(StoreError, match=r"\.parts cannot be written \(File exists\); check the permissions"):
        save(tmp_path, part(0, 4))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_the_earlier_parts(tmp_path: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        save(tmp_path, part(0, 4))
        assert shutil.disk_usage(tmp_path).free < 64 * 1024
        with pytest.raises(StoreError, match=r"^The disk that holds .* is full"):
            save(tmp_path, Part((np.zeros((1000, 3, 5), np.float32),) * 2, {}, {}, 4))
        assert saved_rows(tmp_path, NAME, ENTRIES) == 4
        assert [path.name for path in (tmp_path / ".parts").iterdir()] == [f"{NAME}.00000.safetensors"]
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
