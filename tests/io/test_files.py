"""Small files: whole or not at all."""

import errno
import gzip
import os
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bids_mllm.exceptions import BidsMllmError, StoreError
from bids_mllm.io.files import (
    atomic_path,
    read_columns,
    read_json,
    read_tsv,
    write_array,
    write_columns,
    write_json,
    write_text,
    write_text_if_changed,
    write_tsv,
)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few pages, filled up."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_file_appears_whole_with_its_extension(tmp_path):
    path = tmp_path / "new" / "a_bold.nii.gz"
    with atomic_path(path) as scratch:
        assert scratch.parent == path.parent
        assert scratch.name.endswith(".nii.gz")
        scratch.write_text("half")
        assert not path.exists()
        scratch.write_text("whole")
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_error_inside_leaves_nothing_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as scratch:
            scratch.write_text("new")
            raise ValueError("stop")

    with pytest.raises(ValueError, match=r"stop"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.tsv"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_follows_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~mask


def test_a_full_disk_is_one_sentence_and_leaves_nothing(small_disk):
    path = small_disk / "a.npy"
    with pytest.raises(StoreError, match=r"a.npy cannot be written .*no space left on device.*free space"):
        write_array(path, lambda scratch: np.save(scratch, np.zeros(10**6)))
    assert [p.name for p in small_disk.iterdir()] == []


def test_a_full_disk_by_its_error_number(tmp_path):
    def full(scratch: Path) -> None:
        scratch.write_bytes(b"part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StoreError, match=r"No space left on device.*what was finished is kept"):
        write_array(tmp_path / "a.npy", full)
    assert [p.name for p in tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"a.txt cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_text_is_written_again_only_when_it_changed(tmp_path):
    path = tmp_path / "a.json"
    write_text_if_changed(path, "x")
    os.utime(path, (0, 0))
    write_text_if_changed(path, "x")
    assert path.stat().st_mtime == 0
    write_text_if_changed(path, "y")
    assert path.stat().st_mtime > 0
    assert path.read_text() == "y"


def test_json_round_trip_and_damage(tmp_path):
    content = {"b": [1, 2.5, None], "a": {"ü": "é\n"}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")
    (tmp_path / "b.json").write_text("{")
    for name in ("b.json", "none.json"):
        with pytest.raises(BidsMllmError, match=f"{name} cannot be read as JSON"):
            read_json(tmp_path / name)


def test_tables_round_trip(tmp_path):
    rows = [{"a": "x y", "b": 1, "c": True}, {"a": "", "b": -2, "c": "é"}]
    write_tsv(tmp_path / "a.tsv", rows)
    assert (tmp_path / "a.tsv").read_text() == "a\tb\tc\nx y\t1\tTrue\n\t-2\té\n"
    assert read_tsv(tmp_path / "a.tsv") == [{k: str(v) for k, v in row.items()} for row in rows]


def test_columns_choose_order_and_what_is_missing_is_na(tmp_path):
    write_tsv(tmp_path / "a.tsv", [{"a": 1, "b": 2}, {"b": None}], ["b", "a", "c"])
    assert (tmp_path / "a.tsv").read_text() == "b\ta\tc\n2\t1\tn/a\nn/a\tn/a\tn/a\n"
    write_tsv(tmp_path / "b.tsv", [], ["x", "y"])
    assert read_tsv(tmp_path / "b.tsv") == []


def test_rows_are_written_one_by_one_and_chosen_ones_read(tmp_path):
    write_tsv(tmp_path / "a.tsv", ({"a": number, "b": number % 2} for number in range(5)))
    assert (tmp_path / "a.tsv").read_text().splitlines()[:2] == ["a\tb", "0\t0"]
    assert read_tsv(tmp_path / "a.tsv", lambda row: row["b"] == "1") == [{"a": "1", "b": "1"}, {"a": "3", "b": "1"}]


@pytest.mark.parametrize("kind", [float, np.float64, np.float32])
def test_numbers_of_every_kind(tmp_path, kind):
    write_tsv(tmp_path / "a.tsv", [{"a": kind("nan"), "b": kind(0.125), "c": kind(1e-9)}])
    assert read_tsv(tmp_path / "a.tsv") == [{"a": "n/a", "b": "0.125", "c": "1e-09"}]


@pytest.mark.parametrize("text", ["two\nlines", "a\ttab", "carriage\r\nreturn"])
def test_text_with_breaks_stays_one_cell(tmp_path, text):
    write_tsv(tmp_path / "a.tsv", [{"a": text, "b": "next\u2028line\x85"}])
    (row,) = read_tsv(tmp_path / "a.tsv")
    assert row["a"] == " ".join(text.split())
    assert row["b"] == "next\u2028line\x85"


@pytest.mark.parametrize("content", [b"a\tb\n1\n", b"a\tb\n1\t2\t3\n", b"\xff\xfe"])
def test_a_damaged_table_is_one_sentence(tmp_path, content):
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(BidsMllmError, match=r"a.tsv cannot be read as a table"):
        read_tsv(tmp_path / "a.tsv")


COLUMNS = {"place": np.array([0, 7, 123456]), "value": np.array([0.1, np.nan, -1.23456789e-7]), "x": np.arange(3.0)}
KINDS = {"place": int, "value": float, "x": float}


def test_columns_are_written_as_their_rows_would_be(tmp_path):
    write_columns(tmp_path / "columns.tsv", COLUMNS)
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
    write_tsv(tmp_path / "rows.tsv", rows)
    assert (tmp_path / "columns.tsv").read_bytes() == (tmp_path / "rows.tsv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["columns.tsv", "rows.tsv"]


@pytest.mark.parametrize("name", ["columns.tsv", "columns.tsv.gz"])
def test_columns_are_read_with_their_kinds(tmp_path, name):
    write_columns(tmp_path / "columns.tsv", COLUMNS)
    (tmp_path / "columns.tsv.gz").write_bytes(gzip.compress((tmp_path / "columns.tsv").read_bytes()))
    found = read_columns(tmp_path / name, KINDS)
    assert {key: values.dtype.kind for key, values in found.items()} == {"place": "i", "value": "f", "x": "f"}
    for key, values in COLUMNS.items():
        np.testing.assert_allclose(found[key], values, rtol=5e-6)  # six digits are written


def test_columns_without_rows_stay_without(tmp_path):
    write_columns(tmp_path / "columns.tsv", {key: values[:0] for key, values in COLUMNS.items()})
    assert [len(values) for values in read_columns(tmp_path / "columns.tsv", KINDS).values()] == [0, 0, 0]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-5],
        lambda text: text.removesuffix("\t2\n") + "\n",
        lambda text: text.replace("\tx\n", "\ty\n", 1),
        lambda text: text.replace("0.1", "much"),
        lambda text: text.replace("7\t", "n/a\t", 1),
        lambda text: "",
    ],
)  # fmt: skip
def test_a_damaged_table_of_columns_is_named(tmp_path, change):
    path = tmp_path / "columns.tsv"
    write_columns(path, COLUMNS)
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    with pytest.raises(BidsMllmError, match=r"columns\.tsv cannot be read as a table"):
        read_columns(path, KINDS)


def test_a_damaged_compressed_table_of_columns_is_named(tmp_path):
    path = tmp_path / "columns.tsv.gz"
    whole = gzip.compress(b"place\n" + b"\n".join(b"%d" % number for number in range(1000)) + b"\n")
    for content in (whole[:-20], whole[:40] + b"\0\0" + whole[42:], b"place\n1\n", None):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BidsMllmError, match=r"columns\.tsv\.gz cannot be read as a table"):
            read_columns(path, {"place": int})
