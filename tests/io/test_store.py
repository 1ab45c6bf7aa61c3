"""The feature store: what an address depends on, what is kept of a value, resuming, damage, and a full disk."""

import hashlib
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bids_mllm.exceptions import StoreError
from bids_mllm.io.owners import temporary_path
from bids_mllm.io.store import (
    WINDOWS_PER_CHUNK,
    FeatureStore,
    canonical_json,
    entry_description,
)
from bids_mllm.records import Condition, WindowGrid

GRID = WindowGrid(0.0, 1.49, 1.49, 130)
IDENTITY = {
    "revision": "abc",
    "dtype": "float32",
    "by_pooling": {"generated": {"max_new_tokens": 8}, "media": {"frames": 4}},
}


def describe(**changes):
    values = {
        "media": {"sha256": "00", "stream": "video"},
        "grid": GRID,
        "identity": IDENTITY,
        "condition": Condition("generated", "AR"),
        "instruction_text": "What is the actor doing?",
    }
    return entry_description(**(values | changes))


def address(tmp_path, **changes):
    store = FeatureStore(tmp_path / "store")
    return store.entry(describe(**changes), n_windows=GRID.n_windows, n_layers=3, width=5).path


@pytest.mark.parametrize(
    "changes",
    [
        {"media": {"sha256": "01", "stream": "video"}},
        {"media": {"sha256": "00", "stream": "audio"}},
        {"grid": WindowGrid(0.745, 1.49, 1.49, 130)},
        {"grid": WindowGrid(0.0, 1.5, 1.49, 130)},
        {"grid": WindowGrid(0.0, 1.49, 3.0, 130)},
        {"grid": WindowGrid(0.0, 1.49, 1.49, 131)},
        {"identity": IDENTITY | {"revision": "abe"}},
        {"identity": IDENTITY | {"dtype": "bfloat16"}},
        {"identity": IDENTITY | {"template": "x"}},
        {"identity": IDENTITY | {"by_pooling": {"generated": {"max_new_tokens": 9}}}},
        {"condition": Condition("last", "AR")},
        {"instruction_text": "What is the actor feeling?"},
        {"instruction_text": None},
    ],
)
def test_what_changes_a_number_changes_the_address(tmp_path, changes):
    assert address(tmp_path, **changes) != address(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"condition": Condition("generated", "mine")},
        {"media": {"stream": "video", "sha256": "00"}},
        {"identity": dict(reversed(IDENTITY.items()))},
        {"identity": IDENTITY | {"by_pooling": IDENTITY["by_pooling"] | {"media": {"frames": 9}}}},
    ],
)
def test_names_order_and_settings_of_other_poolings_do_not(tmp_path, changes):
    assert address(tmp_path, **changes) == address(tmp_path)


def test_canonical_json_refuses_nan():
    with pytest.raises(ValueError, match=r"not JSON compliant"):
        canonical_json({"a": float("nan")})


@pytest.fixture
def entry(tmp_path):
    return FeatureStore(tmp_path / "store").entry(describe(), n_windows=130, n_layers=3, width=5)


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((130, 3, 5)).astype(np.float32)


def fill(entry, values, chunks=None, **more):
    for chunk in range(entry.n_chunks) if chunks is None else chunks:
        entry.write(chunk, values[entry.rows(chunk)], **more)


def make(folder, values, **more):
    """A filled entry of its own for these values."""
    entry = FeatureStore(folder).entry(
        {"a": 1}, n_windows=values.shape[0], n_layers=values.shape[1], width=values.shape[2]
    )
    fill(entry, values, **more)
    return entry


def dtypes(entry, chunk):
    tensors = load_file(entry.path / f"chunk-{chunk:05d}.safetensors")
    return {name: array.dtype.name for name, array in tensors.items()}


def content_of(folder):
    """Digest of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def names_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# What is kept of the values


def test_chunks_cover_the_windows(entry):
    assert WINDOWS_PER_CHUNK == 64
    assert entry.n_chunks == 3
    assert [entry.rows(chunk) for chunk in range(3)] == [slice(0, 64), slice(64, 128), slice(128, 130)]


def test_ordinary_layers_are_float16_and_come_back_rounded_to_it(entry, values):
    fill(entry, values)
    assert dtypes(entry, 0) == {"layer_000": "float16", "layer_001": "float16", "layer_002": "float16"}
    assert entry.read().dtype == np.float32
    np.testing.assert_array_equal(entry.read(), values.astype(np.float16).astype(np.float32))


def test_one_layer_equals_its_slice(entry, values):
    fill(entry, values)
    for layer in range(3):
        assert entry.read(layer).dtype == np.float32
        np.testing.assert_array_equal(entry.read(layer), entry.read()[:, layer])
    with pytest.raises(StoreError, match=r"has the layers 0 to 2; layer 3 was asked for"):
        entry.read(3)


@pytest.mark.parametrize(("largest", "dtype"), [(65504.0, "float16"), (65520.0, "float32"), (3e38, "float32")])
def test_a_layer_that_would_overflow_is_float32_in_that_chunk_alone(tmp_path, values, largest, dtype):
    values[3, 1, 2] = largest
    entry = make(tmp_path, values)
    assert dtypes(entry, 0) == {"layer_000": "float16", "layer_001": dtype, "layer_002": "float16"}
    assert dtypes(entry, 1)["layer_001"] == "float16"
    np.testing.assert_array_equal(entry.read(1)[3, 2], np.float32(largest))
    if dtype == "float32":
        np.testing.assert_array_equal(entry.read(1)[:64], values[:64, 1])


def test_columns_that_float16_would_drown_are_kept(tmp_path):
    """A large mean with little variation, a tiny scale, and a constant: each is lost in float16 alone."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((128, 1, 40)).astype(np.float32)
    values[:, 0, 3] = 1500 + 0.1 * rng.standard_normal(128)
    values[:, 0, 7] = 1e-7 * rng.standard_normal(128)
    values[:, 0, 9] = 0.1
    values[:, 0, 11] = 0.5  # a constant that float16 holds
    assert np.std(values[:, 0, 3].astype(np.float16).astype(np.float64)) < 0.05
    entry = make(tmp_path, values)
    tensors = load_file(entry.path / "chunk-00000.safetensors")
    assert tensors["layer_000"].dtype == np.float16
    np.testing.assert_array_equal(tensors["layer_000_columns"], [3, 7, 9])
    np.testing.assert_array_equal(tensors["layer_000_exact"], values[:64, 0, [3, 7, 9]])
    np.testing.assert_array_equal(entry.read(0)[:, [3, 7, 9, 11]], values[:, 0, [3, 7, 9, 11]])


def test_the_rounding_of_every_column_is_at_most_two_percent_of_its_deviation(tmp_path):
    """Over means and deviations of twelve orders of magnitude; the correlation with the truth is 0.9998 or more."""
    rng = np.random.default_rng(2)
    mean = 10.0 ** rng.uniform(-6, 4, (1, 1, 300)) * rng.choice([-1, 1], (1, 1, 300))
    deviation = np.abs(mean) * 10.0 ** rng.uniform(-4, 2, (1, 1, 300))
    values = np.clip(mean + deviation * rng.standard_normal((130, 1, 300)), -6e4, 6e4).astype(np.float32)
    entry = make(tmp_path, values)
    read = entry.read(0).astype(np.float64)
    for chunk in range(entry.n_chunks):
        exact = values[entry.rows(chunk), 0].astype(np.float64)
        error = np.sqrt(((read[entry.rows(chunk)] - exact) ** 2).mean(axis=0))
        assert (error <= 0.02 * exact.std(axis=0)).all()
    assert "layer_000_columns" in dtypes(entry, 0)
    for column in range(300):
        assert np.corrcoef(read[:, column], values[:, 0, column])[0, 1] >= 0.9998


@pytest.mark.parametrize(("ratio", "exact"), [(20.0, False), (300.0, True)])
def test_the_limit_lies_between_means_of_twenty_and_three_hundred_deviations(tmp_path, ratio, exact):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((64, 1, 8)).astype(np.float32)
    values[:, 0, 5] += ratio
    assert ("layer_000_columns" in dtypes(make(tmp_path, values), 0)) == exact


def test_a_layer_of_which_half_the_columns_would_drown_is_float32(tmp_path):
    values = np.random.default_rng(4).standard_normal((64, 2, 8)).astype(np.float32)
    values[:, 1, :4] += 1000
    entry = make(tmp_path, values)
    assert dtypes(entry, 0) == {"layer_000": "float16", "layer_001": "float32"}
    np.testing.assert_array_equal(entry.read(1), values[:, 1])


def test_a_constant_column_stays_constant_across_chunks_of_different_dtype(tmp_path):
    """Else scaling would turn the step between two chunks into a feature."""
    values = np.random.default_rng(5).standard_normal((130, 1, 6)).astype(np.float32)
    values[:, 0, 4] = 0.3
    values[70, 0, 1] = 1e6
    entry = make(tmp_path, values)
    assert (dtypes(entry, 0)["layer_000"], dtypes(entry, 1)["layer_000"]) == ("float16", "float32")
    assert np.unique(entry.read(0)[:, 4]).tolist() == [np.float32(0.3)]


@pytest.mark.parametrize("filling", [np.nan, 0.0, np.inf, -np.inf])
def test_a_chunk_of_one_value_counts_as_written(entry, values, filling):
    values[:64] = filling
    fill(entry, values)
    assert entry.missing_chunks() == ()
    np.testing.assert_array_equal(entry.read()[:64], values[:64])


def test_missing_values_of_a_table_do_not_change_what_is_kept_of_the_others(tmp_path):
    values = np.random.default_rng(6).standard_normal((64, 1, 9)).astype(np.float32)
    values[::3, 0, 2] = np.nan
    values[:, 0, 5] = np.nan
    values[:, 0, 7] += 1000
    values[5, 0, 7] = np.nan
    values[6, 0, 8] = -np.inf
    entry = make(tmp_path, values)
    expected = values[:, 0].astype(np.float16).astype(np.float32)
    expected[:, 7] = values[:, 0, 7]
    np.testing.assert_array_equal(entry.read(0), expected)


def test_a_chunk_of_the_wrong_shape_is_refused(entry, values):
    with pytest.raises(StoreError, match=r"\(64, 3, 5\); expected \(2, 3, 5\)"):
        entry.write(2, values[:64])


def test_a_stimulus_shorter_than_a_window_has_an_empty_entry(tmp_path):
    empty = FeatureStore(tmp_path).entry({"a": 1}, n_windows=0, n_layers=2, width=4)
    assert empty.missing_chunks() == ()
    assert empty.read().shape == (0, 2, 4)
    assert empty.read(1).shape == (0, 4)
    assert (empty.masked(), empty.texts()) == ({}, None)


# Masked windows and texts


def test_masked_windows_are_nan_and_named(entry, values):
    values[[3, 129]] = np.nan
    entry.write(0, values[:64], masked={3: "the film is damaged at 4.5 s"})
    entry.write(1, values[64:128])
    entry.write(2, values[128:], masked={129: "the film ends"})
    assert entry.masked() == {3: "the film is damaged at 4.5 s", 129: "the film ends"}
    assert np.flatnonzero(np.isnan(entry.read(1)).all(axis=1)).tolist() == [3, 129]
    assert not np.isnan(np.delete(entry.read(), [3, 129], axis=0)).any()


def test_masking_a_window_that_has_features_or_is_elsewhere_is_refused(entry, values):
    with pytest.raises(StoreError, match=r"window 3 as masked; expected one of 0 to 63 with NaN"):
        entry.write(0, values[:64], masked={3: "x"})
    values[70] = np.nan
    with pytest.raises(StoreError, match=r"window 70 as masked; expected one of 0 to 63"):
        entry.write(0, values[:64], masked={70: "x"})
    assert entry.missing_chunks() == (0, 1, 2)


def test_texts_come_back_word_for_word(entry, values):
    texts = [f'{number}: "läuft"\t\n\U0001f3ac \\' for number in range(130)]
    for chunk in range(3):
        entry.write(chunk, values[entry.rows(chunk)], texts=texts[entry.rows(chunk)])
    assert entry.texts() == tuple(texts)
    with pytest.raises(StoreError, match=r"is given 64 texts; expected one a window, 2"):
        entry.write(2, values[128:], texts=texts[:64])


def test_an_entry_without_generated_tokens_has_no_texts(entry, values):
    fill(entry, values)
    assert entry.texts() is None
    assert entry.masked() == {}


# Bytes


def test_an_entry_says_what_it_holds(entry):
    content = json.loads((entry.path / "entry.json").read_text())
    assert content == {
        "format": 2,
        "description": json.loads(canonical_json(describe())),
        "n_windows": 130,
        "n_layers": 3,
        "width": 5,
        "windows_per_chunk": 64,
    }
    digest = hashlib.sha256(canonical_json(describe()).encode()).hexdigest()
    assert entry.path.relative_to(entry.path.parents[1]).as_posix() == f"{digest[:2]}/{digest}"


def test_a_chunk_says_its_dtypes_and_checksums(tmp_path, values):
    values[0, 1, 0] = 1e5
    entry = make(tmp_path, values)
    path = entry.path / "chunk-00000.safetensors"
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert list(header["__metadata__"]) == ["bids_mllm"]
    content = json.loads(header["__metadata__"]["bids_mllm"])["content"]
    assert [layer["dtype"] for layer in content["layers"]] == ["float16", "float32", "float16"]
    stored = load_file(path)
    sums = [hashlib.sha256(stored[f"layer_{layer:03d}"].tobytes()).hexdigest() for layer in range(3)]
    assert [layer["sha256"] for layer in content["layers"]] == sums


_WRITE = """
import sys, numpy as np
from pathlib import Path
from bids_mllm.io.store import FeatureStore
values = np.random.default_rng(0).standard_normal((130, 3, 50)).astype(np.float32)
values[:, 1, 4] += 1000
values[100, 2] = 1e6
values[[5, 7]] = np.nan
entry = FeatureStore(Path(sys.argv[1])).entry({"b": 1, "a": 2}, n_windows=130, n_layers=3, width=50)
for chunk in map(int, sys.argv[2]):
    rows = entry.rows(chunk)
    masked = {7: "x", 5: "y"} if chunk == 0 else {}
    entry.write(chunk, values[rows], masked=masked, texts=[str(n) for n in range(rows.start, rows.stop)])
"""


def test_the_bytes_do_not_depend_on_process_or_order(tmp_path):
    """Hash seeds differ between processes, and libraries that iterate over maps follow them."""
    for name, order in (("a", "012"), ("b", "2101"), ("c", "021")):
        subprocess.run([sys.executable, "-c", _WRITE, str(tmp_path / name), order], check=True)
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b") == content_of(tmp_path / "c")
    assert len(content_of(tmp_path / "a")) == 5


def test_the_bits_of_a_nan_do_not_change_the_bytes(tmp_path, values):
    values[4, 1] = np.nan
    other = values.copy()
    other.view(np.uint32)[4, 1] = 0xFFC12345
    assert np.isnan(other[4, 1]).all()
    assert content_of(make(tmp_path / "a", values).path) == content_of(make(tmp_path / "b", other).path)


def test_other_umasks_of_a_shared_store_are_kept(tmp_path, values):
    before = os.umask(0o002)
    try:
        entry = make(tmp_path, values)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in entry.path.iterdir()} == {0o664}


# Resuming


def test_an_interrupted_extraction_resumes_where_it_stopped(tmp_path, entry, values):
    assert entry.missing_chunks() == (0, 1, 2)
    fill(entry, values, (1,))
    again = FeatureStore(tmp_path / "store").entry(describe(), n_windows=130, n_layers=3, width=5)
    assert again == entry
    assert again.missing_chunks() == (0, 2)
    for ask in (again.read, again.masked, again.texts):
        with pytest.raises(StoreError, match=r"lacks 2 of 3 chunks"):
            ask()
    fill(again, values, (0, 2))
    assert again.missing_chunks() == ()


def test_a_removed_entry_lacks_all_chunks(entry):
    (entry.path / "entry.json").unlink()
    (entry.path / "used").unlink()
    entry.path.rmdir()
    assert entry.missing_chunks() == (0, 1, 2)


def test_an_entry_of_another_shape_is_refused_and_a_damaged_description_written_anew(tmp_path, entry):
    store = FeatureStore(tmp_path / "store")
    with pytest.raises(StoreError, match=r"\(130, 3, 5\), but the model gives \(130, 4, 5\)"):
        store.entry(describe(), n_windows=130, n_layers=4, width=5)
    before = (entry.path / "entry.json").read_bytes()
    (entry.path / "entry.json").write_bytes(before[:50])
    store.entry(describe(), n_windows=130, n_layers=3, width=5)
    assert (entry.path / "entry.json").read_bytes() == before


def test_what_a_killed_process_left_half_written_is_removed(tmp_path, entry):
    code = (
        "import sys, time; from pathlib import Path; from bids_mllm.io.owners import temporary_path; "
        "p = temporary_path(Path(sys.argv[1])); p.write_bytes(b'half'); print(p, flush=True); time.sleep(60)"
    )
    target = str(entry.path / "chunk-00000.safetensors")
    with subprocess.Popen([sys.executable, "-c", code, target], stdout=subprocess.PIPE, text=True) as process:
        left = process.stdout.readline().strip()
        own = temporary_path(entry.path / "chunk-00001.safetensors")
        own.write_bytes(b"half")
        foreign = entry.path / own.name.replace(own.name[5:17], "0123456789ab")
        foreign.write_bytes(b"half")

        def reopen():
            FeatureStore(tmp_path / "store").entry(describe(), n_windows=130, n_layers=3, width=5)
            return {path.name for path in entry.path.iterdir() if path.name.startswith(".tmp-")}

        everything = {os.path.basename(left), own.name, foreign.name}  # noqa: PTH119
        assert reopen() == everything
        process.kill()
    assert reopen() == {own.name, foreign.name}
    os.utime(foreign, (time.time() - 90000, time.time() - 90000))
    assert reopen() == {own.name}


_KILLED = """
import sys, numpy as np
from pathlib import Path
from bids_mllm.io.store import FeatureStore
values = np.random.default_rng(0).standard_normal((1280, 4, 400)).astype(np.float32)
print("ready", flush=True)
entry = FeatureStore(Path(sys.argv[1])).entry({"a": 1}, n_windows=1280, n_layers=4, width=400)
for chunk in entry.missing_chunks():
    entry.write(chunk, values[entry.rows(chunk)])
"""


def test_killed_at_ten_moments_the_store_ends_as_an_undisturbed_one(tmp_path):
    words = [sys.executable, "-c", _KILLED]
    subprocess.run([*words, str(tmp_path / "whole")], check=True, stdout=subprocess.PIPE)
    rng = np.random.default_rng(0)
    for _ in range(10):
        with subprocess.Popen([*words, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            time.sleep(float(rng.uniform(0, 0.02)))
            process.send_signal(signal.SIGKILL)
    subprocess.run([*words, str(tmp_path / "killed")], check=True, stdout=subprocess.PIPE)
    assert content_of(tmp_path / "killed") == content_of(tmp_path / "whole")


def test_the_last_use_is_kept_to_the_day(entry, values):
    fill(entry, values)
    marker = entry.path / "used"
    for age, touched in ((3600, False), (90000, True)):
        then = time.time() - age
        os.utime(marker, (then, then))
        entry.read(0)
        assert (abs(marker.stat().st_mtime - then) > 1) == touched


# Damage


def damage(path, name):
    """Flip one bit in the middle of a tensor's bytes."""
    raw = bytearray(path.read_bytes())
    size = int.from_bytes(raw[:8], "little")
    first, last = json.loads(raw[8 : 8 + size])[name]["data_offsets"]
    raw[8 + size + (first + last) // 2] ^= 1
    path.write_bytes(raw)


def test_a_layer_is_read_without_the_bytes_of_the_others(entry, values):
    fill(entry, values)
    expected = entry.read(0), entry.read(2)
    for chunk in range(3):
        damage(entry.path / f"chunk-{chunk:05d}.safetensors", "layer_001")
    np.testing.assert_array_equal(entry.read(0), expected[0])
    np.testing.assert_array_equal(entry.read(2), expected[1])
    with pytest.raises(StoreError, match=r"chunk-00000.safetensors is damaged \(layer 1 does not match its checksum"):
        entry.read(1)
    with pytest.raises(StoreError, match=r"layer 1 does not match its checksum"):
        entry.read()


@pytest.mark.parametrize("part", ["layer_000", "layer_000_columns", "layer_000_exact"])
def test_one_flipped_bit_is_found(tmp_path, values, part):
    values[:, 0, 3] += 1000
    entry = make(tmp_path, values)
    damage(entry.path / "chunk-00001.safetensors", part)
    with pytest.raises(StoreError) as caught:
        entry.read(0)
    sentence = f"remove it with `bids-mllm-features verify {tmp_path} --remove` and run the participant level again"
    assert sentence in str(caught.value)
    assert "chunk-00001.safetensors is damaged" in str(caught.value)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_chunk_is_one_sentence(entry, values, size):
    fill(entry, values)
    path = entry.path / "chunk-00000.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    for ask in (lambda: entry.read(0), entry.masked, entry.texts):
        with pytest.raises(StoreError, match=r"chunk-00000.safetensors is damaged \(.*\); remove it with") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_record_that_was_changed_is_found(entry, values):
    values[7] = np.nan
    entry.write(0, values[:64], masked={7: "reason"})
    fill(entry, values, (1, 2))
    path = entry.path / "chunk-00000.safetensors"
    path.write_bytes(path.read_bytes().replace(b"reason", b"raeson"))
    with pytest.raises(StoreError, match=r"its record does not match its checksum"):
        entry.masked()


def test_a_chunk_under_the_name_of_another_is_found(entry, values):
    fill(entry, values)
    (entry.path / "chunk-00001.safetensors").write_bytes((entry.path / "chunk-00000.safetensors").read_bytes())
    with pytest.raises(StoreError, match=r"it belongs to another entry or chunk"):
        entry.read()


def test_a_file_of_others_under_the_name_of_a_chunk_is_found(entry, values):
    fill(entry, values)
    save_file({"layer_000": values[:64, 0]}, entry.path / "chunk-00000.safetensors")
    with pytest.raises(StoreError, match=r"its header has no record"):
        entry.read()


def test_a_chunk_that_is_removed_while_it_is_read_is_one_sentence(entry, values, monkeypatch):
    fill(entry, values)
    monkeypatch.setattr(type(entry), "_check_complete", lambda self: None)
    (entry.path / "chunk-00001.safetensors").unlink()
    with pytest.raises(StoreError, match=r"chunk-00001.safetensors cannot be read .*run the participant level again"):
        entry.read()


# Disks that are full or read-only


@pytest.fixture
def disk(tmp_path):
    """A file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_while_writing_leaves_no_chunk_and_keeps_the_finished_ones(disk):
    noise = np.random.default_rng(0).standard_normal((256, 1, 1000)).astype(np.float32)
    noise[0::64] = 1e6  # so that all is float32: 256 kB a chunk, of which the disk holds one and a part of another
    entry = FeatureStore(disk).entry({"a": 1}, n_windows=256, n_layers=1, width=1000)
    fill(entry, noise, (0,))
    (disk / "ballast").write_bytes(bytes(50_000))
    before = content_of(disk)
    with pytest.raises(
        StoreError, match=r"The disk that holds .* is full \(No space left.*--features-dir.*what was finished is kept"
    ):
        fill(entry, noise, (1, 2))
    assert entry.missing_chunks() == (1, 2, 3)
    assert content_of(disk) == before


def test_a_full_disk_while_creating_leaves_nothing_under_the_final_name(disk):
    with pytest.raises(OSError, match=r"No space left"):
        (disk / "ballast").write_bytes(bytes(2**20))
    with pytest.raises(StoreError, match=r"The disk that holds"):
        FeatureStore(disk).entry({"a": 1}, n_windows=10, n_layers=1, width=4)
    assert names_below(disk) == ["ballast"]


def test_a_read_only_store_is_read_and_refuses_writing_in_one_sentence(disk):
    values = np.random.default_rng(0).standard_normal((70, 1, 4)).astype(np.float32)
    entry = FeatureStore(disk).entry({"a": 1}, n_windows=70, n_layers=1, width=4)
    fill(entry, values, (0, 1))
    os.utime(entry.path / "used", (0, 0))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    again = FeatureStore(disk).entry({"a": 1}, n_windows=70, n_layers=1, width=4)
    np.testing.assert_array_equal(again.read(0), values[:, 0].astype(np.float16))
    for write in (
        lambda: FeatureStore(disk).entry({"a": 2}, n_windows=70, n_layers=1, width=4),
        lambda: fill(entry, values, (0,)),
    ):
        with pytest.raises(StoreError, match=r"is on a read-only file system; choose another --features-dir"):
            write()


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written \(.*check the permissions"):
        FeatureStore(tmp_path / "file").entry({"a": 1}, n_windows=1, n_layers=1, width=1)


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (28, r"The disk that holds .* is full"),
        (122, r"The disk that holds .* is full \(Disk quota exceeded\)"),
        (13, r"cannot be written \(Permission denied\); check the permissions"),
    ],
)
def test_the_sentence_follows_from_the_error_number(entry, values, monkeypatch, number, sentence):
    fill(entry, values, (0,))

    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=sentence):
        fill(entry, values, (1,))
    monkeypatch.undo()
    assert entry.missing_chunks() == (1, 2)
    assert not any(".tmp-" in name for name in names_below(entry.path))


# Several processes


def _make_at_once(folder, barrier, results):
    store = FeatureStore(folder)
    barrier.wait()
    entries = [store.entry({"a": number}, n_windows=70, n_layers=2, width=3) for number in range(20)]
    for entry in entries:
        for chunk in range(entry.n_chunks):
            rows = entry.rows(chunk)
            entry.write(chunk, np.full((rows.stop - rows.start, 2, 3), 7, dtype=np.float32))
    results.put([str(entry.path) for entry in entries])


def test_two_processes_make_the_same_entries_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_make_at_once, args=(tmp_path, barrier, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    first, second = (results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert first == second
    assert len(set(first)) == 20
    for number in range(20):
        entry = FeatureStore(tmp_path).entry({"a": number}, n_windows=70, n_layers=2, width=3)
        assert (entry.read() == 7).all()
    assert not any(".tmp-" in name for name in names_below(tmp_path))


def test_a_store_that_only_finds_writes_nothing(tmp_path):
    shape = {"n_windows": GRID.n_windows, "n_layers": 3, "width": 5}
    finding = FeatureStore(tmp_path / "store", only_find=True)
    lacking = finding.entry(describe(), **shape)
    assert lacking.missing_chunks() == (0, 1, 2)
    assert not (tmp_path / "store").exists()
    made = FeatureStore(tmp_path / "store").entry(describe(), **shape)
    assert lacking == made
    made.write(1, np.zeros((WINDOWS_PER_CHUNK, 3, 5), np.float32))
    (made.path / "used").unlink()
    assert finding.entry(describe(), **shape).missing_chunks() == (0, 2)
    assert {path.name for path in made.path.iterdir()} == {"entry.json", "chunk-00001.safetensors"}
    with pytest.raises(StoreError, match=r"\(windows, layers, features\)"):
        finding.entry(describe(), **(shape | {"width": 6}))
