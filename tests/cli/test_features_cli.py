"""The command bids-mllm-features: what it lists, finds, removes, and leaves alone."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from bids_mllm.cli.features import COLUMNS, build_parser, main
from bids_mllm.io.claims import Claim, Claims
from bids_mllm.io.owners import Owner, this_process
from bids_mllm.io.parts import Part, part_path, save_part
from bids_mllm.io.store import FeatureStore, entry_description
from bids_mllm.records import Condition, WindowGrid

GRID = WindowGrid(0.0, 1.49, 1.49, 130)
DAY = 86400


def make(store, *, text="What is\tshown?", identity=None, condition=None, chunks=(0, 1, 2), values=None, **more):
    """An entry of 130 windows, 3 layers and 5 features."""
    description = entry_description(
        media={"sha256": "ab" * 32},
        grid=GRID,
        identity=identity or {"family": "qwen25vl", "checkpoint": "cd" * 32},
        condition=condition or Condition("generated", "AR"),
        instruction_text=text,
    )
    entry = FeatureStore(store).entry(description, n_windows=130, n_layers=3, width=5)
    if values is None:
        values = np.random.default_rng(0).standard_normal((130, 3, 5)).astype(np.float32)
    for chunk in chunks:
        rows = entry.rows(chunk)
        entry.write(chunk, values[rows], masked=more.get("masked", {}) if chunk == 0 else {})
    return entry


def call(capsys, *words):
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def rows_of(text):
    header, *lines = text.splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def size_below(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def age(path, days):
    """Make a folder and its marker look last used days ago."""
    then = time.time() - days * DAY
    for target in (path / "used", path):
        os.utime(target, (then, then))


# ls


def test_ls_lists_every_entry(tmp_path, capsys):
    values = np.random.default_rng(0).standard_normal((130, 3, 5)).astype(np.float32)
    values[[1, 9]] = np.nan
    values[3, 1, 0] = 1e5
    values[70, 2, 0] = 1e5
    full = make(tmp_path, values=values, masked={1: "x", 9: "y"})
    partly = make(
        tmp_path,
        text=None,
        condition=Condition("media"),
        identity={"family": "vit", "checkpoint": "ef" * 32, "weights": "random", "seed": 0},
        chunks=(1,),
    )
    table = make(tmp_path, text=None, condition=Condition("stimulus"), identity={"family": "table"}, chunks=())
    status, out, err = call(capsys, "ls", tmp_path)
    assert (status, err) == (0, "")
    rows = {row["entry"]: row for row in rows_of(out)}
    assert list(rows) == sorted(rows)
    assert len(rows) == 3
    assert rows[full.path.name[:12]] == {
        "entry": full.path.name[:12],
        "model": f"qwen25vl {'cd' * 6}",
        "media": "ab" * 6,
        "pooling": "generated",
        "instruction": "What is shown?",
        "windows": "130",
        "layers": "3",
        "features": "5",
        "chunks": "3/3",
        "masked": "2",
        "float32_layers": "2",
        "MB": f"{size_below(full.path) / 1e6:.1f}",
    }
    second = rows[partly.path.name[:12]]
    assert (second["model"], second["chunks"]) == (f"vit {'ef' * 6}+random", "1/3")
    assert (second["pooling"], second["instruction"]) == ("media", "n/a")
    third = rows[table.path.name[:12]]
    assert (third["model"], third["chunks"], third["masked"]) == ("table", "0/3", "0")


def test_ls_of_an_empty_store_is_a_header(tmp_path, capsys):
    assert call(capsys, "ls", tmp_path) == (0, "\t".join(COLUMNS) + "\n", "")


def test_ls_goes_on_after_a_damaged_entry(tmp_path, capsys):
    damaged, broken, whole = make(tmp_path, text="a"), make(tmp_path, text="b"), make(tmp_path, text="c")
    (damaged.path / "chunk-00001.safetensors").write_bytes(b"half")
    (broken.path / "entry.json").write_text("{")
    status, out, err = call(capsys, "ls", tmp_path)
    assert status == 1
    assert [row["entry"] for row in rows_of(out)] == [whole.path.name[:12]]
    lines = sorted(err.splitlines())
    assert len(lines) == 2
    assert any("chunk-00001.safetensors is damaged" in line for line in lines)
    assert any(f"{broken.path} has a description that cannot be used" in line for line in lines)


# verify


def flip(path, offset=-1):
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)


def test_verify_of_a_whole_store_says_nothing(tmp_path, capsys):
    make(tmp_path)
    make(tmp_path, text="other", chunks=(2,))
    assert call(capsys, "verify", tmp_path) == (0, "", "")


def test_verify_names_what_is_damaged_and_removes_it_when_asked(tmp_path, capsys):
    entry, other = make(tmp_path), make(tmp_path, text="other")
    paths = [entry.path / f"chunk-{chunk:05d}.safetensors" for chunk in range(3)]
    before = {path: path.read_bytes() for path in (*paths, entry.path / "entry.json")}
    flip(paths[0])
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    (entry.path / "chunk-00003.safetensors").write_bytes(before[paths[0]])
    status, out, err = call(capsys, "verify", tmp_path)
    assert (status, err) == (1, "")
    relative = [path.relative_to(tmp_path).as_posix() for path in (*paths[:2], paths[2].with_stem("chunk-00003"))]
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[:2] for line in lines] == [["damaged", name] for name in relative]
    assert "checksum" in lines[0][2]
    assert all(path.exists() for path in paths)
    status, out, _ = call(capsys, "verify", tmp_path, "--remove")
    assert status == 1
    assert [line.split("\t")[:2] for line in out.splitlines()] == [["removed", name] for name in relative]
    assert (entry.missing_chunks(), other.missing_chunks()) == ((0, 1), ())
    assert call(capsys, "verify", tmp_path) == (0, "", "")
    make(tmp_path, chunks=(0, 1))
    assert {path: path.read_bytes() for path in before} == before


def test_verify_finds_a_description_that_was_changed_and_the_next_run_writes_it_anew(tmp_path, capsys):
    entry = make(tmp_path)
    file = entry.path / "entry.json"
    before = file.read_bytes()
    file.write_bytes(before.replace(b"shown", b"heard"))
    status, out, _ = call(capsys, "verify", tmp_path, "--remove")
    assert status == 1
    assert "its description is not the one that the folder is named by" in out
    assert not file.exists()
    make(tmp_path, chunks=())
    assert file.read_bytes() == before
    assert entry.missing_chunks() == ()


def test_verify_leaves_an_entry_of_a_newer_format_alone(tmp_path, capsys):
    file = make(tmp_path).path / "entry.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 3}))
    assert call(capsys, "verify", tmp_path, "--remove") == (0, "", "")
    assert call(capsys, "gc", tmp_path, "--keep-days", "0", "--incomplete")[0] == 0
    assert file.exists()
    assert "it is of format 3; this version reads 2" in call(capsys, "ls", tmp_path)[2]


# gc


def collected(out):
    *lines, total = out.splitlines()
    cells = [line.split("\t") for line in lines]
    return {path: (what, int(size), reason) for what, size, path, reason in cells}, total


def test_gc_leaves_a_store_in_use_alone(tmp_path, capsys):
    entry, partly = make(tmp_path), make(tmp_path, text="b", chunks=(0,))
    age(entry.path, 400)
    assert call(capsys, "gc", tmp_path) == (0, "freed 0 bytes\n", "")
    assert entry.missing_chunks() == ()
    assert partly.missing_chunks() == (1, 2)


def test_gc_removes_entries_of_the_first_format_and_what_the_dead_left(tmp_path, capsys):
    entry = make(tmp_path)
    old = tmp_path / "ab" / f"ab{'0' * 62}.zarr"
    (old / "c/0/0").mkdir(parents=True)
    (old / "zarr.json").write_text("{}")
    (old / "c/0/0/0").write_bytes(bytes(1000))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner = Owner(this_process().machine, dead.pid, 1)
    left = entry.path / f".tmp-{owner.machine}-{owner.pid}-1-01234567~chunk-00000.safetensors"
    left.write_bytes(bytes(500))
    (tmp_path / ".claims").mkdir()
    claim = tmp_path / ".claims" / "gone.json"
    claim.write_bytes(Claim("gone", owner, "t", 60.0).to_bytes())
    expected = {
        old.relative_to(tmp_path).as_posix(): 1002,
        left.relative_to(tmp_path).as_posix(): 500,
        ".claims/gone.json": claim.stat().st_size,
    }
    status, out, _ = call(capsys, "gc", tmp_path, "--dry-run")
    rows, total = collected(out)
    assert status == 0
    assert {path: row[:2] for path, row in rows.items()} == {p: ("would remove", size) for p, size in expected.items()}
    assert total == f"would free {sum(expected.values())} bytes"
    assert old.exists()
    assert left.exists()
    assert claim.exists()
    rows, total = collected(call(capsys, "gc", tmp_path)[1])
    assert {path: row[:2] for path, row in rows.items()} == {path: ("removed", size) for path, size in expected.items()}
    assert total == f"freed {sum(expected.values())} bytes"
    assert [path.exists() for path in (old, left, claim)] == [False, False, False]
    assert entry.missing_chunks() == ()


def test_gc_keeps_what_was_used_in_the_last_days(tmp_path, capsys):
    stale, read, asked, written = (make(tmp_path, text=text) for text in "abcd")
    for entry in (stale, read, asked, written):
        age(entry.path, 40)
    read.read(1)
    make(tmp_path, text="c", chunks=())
    make(tmp_path, text="d", chunks=(1,))
    size = size_below(stale.path)
    rows, total = collected(call(capsys, "gc", tmp_path, "--keep-days", "30")[1])
    assert rows == {stale.path.relative_to(tmp_path).as_posix(): ("removed", size, "not used for 40 days")}
    assert total == f"freed {size} bytes"
    assert [entry.path.exists() for entry in (stale, read, asked, written)] == [False, True, True, True]


def test_gc_removes_incomplete_entries_when_asked(tmp_path, capsys):
    whole, partly = make(tmp_path), make(tmp_path, text="b", chunks=(0,))
    rows, _ = collected(call(capsys, "gc", tmp_path, "--incomplete")[1])
    assert [row[2] for row in rows.values()] == ["incomplete: 2 of 3 chunks are missing"]
    assert whole.path.exists()
    assert not partly.path.exists()


@pytest.mark.parametrize("how", ["covers", "name", "unknown", "unreadable"])
def test_gc_never_touches_an_entry_that_a_living_job_has_claimed(tmp_path, capsys, how):
    claimed, other = make(tmp_path, chunks=(0,)), make(tmp_path, text="b", chunks=(0,))
    for entry in (claimed, other):
        age(entry.path, 40)
    digest = claimed.path.name
    with Claims(tmp_path) as claims:
        if how == "unreadable":
            (tmp_path / ".claims/x.json").write_text("")
        else:
            name = f"{digest}-00001" if how == "name" else "film-model-00001"
            assert claims.take(name, covers=(digest,) if how == "covers" else ())
        call(capsys, "gc", tmp_path, "--incomplete", "--keep-days", "30")
        # A claim that does not say what it covers may be on any entry.
        assert (claimed.path.exists(), other.path.exists()) == (True, how in ("unknown", "unreadable"))
    (tmp_path / ".claims/x.json").unlink(missing_ok=True)
    call(capsys, "gc", tmp_path, "--incomplete")
    assert not claimed.path.exists()


@pytest.mark.parametrize("words", [[], ["--incomplete"], ["--keep-days", "30"]])
def test_gc_removes_parts_that_no_job_goes_on_with(tmp_path, capsys, words):
    """A part is what a killed job had of a chunk of several entries; it may be large."""
    first, second = make(tmp_path, chunks=(0, 2)), make(tmp_path, text="b", chunks=(0, 1))
    digests = [first.path.name, second.path.name]
    part = Part((np.zeros((5, 3, 5), dtype=np.float32),) * 2, {}, {})
    names = ("complete-00000", "wanted-00001", "claimed-00001", "unread-00001", "gone-00001")
    paths = {name: part_path(tmp_path, name) for name in names}
    for name, path in paths.items():
        save_part(path, part, ["0" * 64] if name.startswith("gone") else digests)
        os.utime(path, (time.time() - 40 * DAY, time.time() - 40 * DAY))
    paths["unread-00001"].write_bytes(b"half")
    with Claims(tmp_path) as claims:
        assert claims.take("claimed-00001", covers=digests)
        rows, _ = collected(call(capsys, "gc", tmp_path, *words)[1])
    left = {name for name, path in paths.items() if path.exists()}
    assert left == {"claimed-00001"} | ({"wanted-00001"} if not words else set())
    assert {paths[name].relative_to(tmp_path).as_posix() for name in set(names) - left} == set(rows)
    assert first.path.exists()
    assert second.path.exists()


def test_gc_removes_a_folder_without_a_description_after_a_day(tmp_path, capsys):
    folder = tmp_path / "ab" / f"ab{'0' * 62}"
    folder.mkdir(parents=True)
    assert call(capsys, "gc", tmp_path)[1] == "freed 0 bytes\n"
    os.utime(folder, (time.time() - 1.1 * DAY, time.time() - 1.1 * DAY))
    call(capsys, "gc", tmp_path)
    assert not folder.exists()


def test_gc_touches_nothing_that_is_not_a_store_s(tmp_path, capsys):
    for name in ("ab/notes.txt", "ab/0123.zarr/x", "films/a.mkv", f"zz/{'0' * 64}/x", f"{'0' * 64}.zarr/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
        os.utime((tmp_path / name).parent, (0, 0))
    before = sorted(tmp_path.rglob("*"))
    assert call(capsys, "gc", tmp_path, "--keep-days", "0", "--incomplete") == (0, "freed 0 bytes\n", "")
    assert call(capsys, "verify", tmp_path, "--remove") == (0, "", "")
    assert sorted(tmp_path.rglob("*")) == before


# Errors


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_a_folder_that_is_not_there_is_one_sentence(tmp_path, capsys, command):
    status, _, err = call(capsys, command, tmp_path / "absent")
    assert status == 1
    assert err == f"bids-mllm-features: {tmp_path / 'absent'} is no folder; give the folder of a feature store.\n"


@pytest.mark.parametrize(
    "words", [[], ["ls"], ["tidy", "."], ["gc", ".", "--keep-days", "-1"], ["gc", ".", "--keep-days", "nan"]]
)
def test_wrong_words_end_with_status_two(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: bids-mllm-features" in capsys.readouterr().err


def test_a_store_that_must_not_be_changed_is_one_sentence(tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        entry = make(disk, chunks=(0,))
        flip(entry.path / "chunk-00000.safetensors")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert call(capsys, "verify", disk)[0] == 1
        for words in (("verify", disk, "--remove"), ("gc", disk, "--incomplete")):
            status, _, err = call(capsys, *words)
            assert status == 1
            assert "is on a read-only file system" in err
            assert err.count("\n") == 1
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_command_starts_without_numpy():
    code = "import sys, bids_mllm.cli.features as f; f.build_parser(); print('numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_every_command_has_help():
    for action in build_parser()._actions:
        assert action.help
