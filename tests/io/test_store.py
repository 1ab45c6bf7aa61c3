"""The feature store: what an address depends on, resuming, and what a full disk leaves."""

import json
import multiprocessing
import subprocess

import numpy as np
import pytest

from bids_mllm.exceptions import StoreError
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


def fill(entry, values, chunks=(0, 1, 2)):
    for chunk in chunks:
        entry.write(chunk, values[entry.rows(chunk)])


def test_chunks_cover_the_windows(entry):
    assert WINDOWS_PER_CHUNK == 64
    assert entry.n_chunks == 3
    assert [entry.rows(chunk) for chunk in range(3)] == [slice(0, 64), slice(64, 128), slice(128, 130)]


def test_an_interrupted_extraction_resumes_where_it_stopped(tmp_path, entry, values):
    assert entry.missing_chunks() == (0, 1, 2)
    fill(entry, values, (1,))
    again = FeatureStore(tmp_path / "store").entry(describe(), n_windows=130, n_layers=3, width=5)
    assert again == entry
    assert again.missing_chunks() == (0, 2)
    with pytest.raises(StoreError, match=r"lacks 2 of 3 chunks"):
        again.read()
    fill(again, values, (0, 2))
    assert again.missing_chunks() == ()
    np.testing.assert_array_equal(again.read(), values)


def test_one_layer_equals_its_slice(entry, values):
    fill(entry, values)
    assert entry.read().dtype == np.float32
    for layer in range(3):
        np.testing.assert_array_equal(entry.read(layer), values[:, layer])


def test_a_layer_is_a_part_of_its_shard(entry, values):
    import zarr

    array = zarr.open_array(entry.path, mode="r")
    assert array.shards == (64, 3, 5)
    assert array.chunks == (64, 1, 5)


@pytest.mark.parametrize("filling", [np.nan, 0.0, np.inf])
def test_a_chunk_of_one_value_counts_as_written(entry, values, filling):
    values[:64] = filling
    fill(entry, values)
    assert entry.missing_chunks() == ()
    np.testing.assert_array_equal(entry.read(), values)


def test_a_chunk_of_the_wrong_shape_is_refused(entry, values):
    with pytest.raises(StoreError, match=r"\(64, 3, 5\); expected \(2, 3, 5\)"):
        entry.write(2, values[:64])


def test_an_entry_says_what_it_holds(entry):
    attributes = json.loads((entry.path / "zarr.json").read_text())["attributes"]
    assert attributes["description"] == json.loads(canonical_json(describe()))


def test_a_stimulus_shorter_than_a_window_has_an_empty_entry(tmp_path):
    empty = FeatureStore(tmp_path).entry({"a": 1}, n_windows=0, n_layers=2, width=4)
    assert empty.missing_chunks() == ()
    assert empty.read().shape == (0, 2, 4)


def test_a_damaged_chunk_is_one_sentence(entry, values):
    fill(entry, values)
    shard = entry.path / "c" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"is damaged .*remove it"):
        entry.read()


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


def names_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_while_writing_leaves_no_chunk_and_keeps_the_finished_ones(disk):
    entry = FeatureStore(disk).entry({"a": 1}, n_windows=200, n_layers=1, width=1000)
    noise = np.random.default_rng(0).standard_normal((200, 1, 1000)).astype(np.float32)
    fill(entry, noise, (0,))
    before = names_below(disk)
    with pytest.raises(
        StoreError, match=r"The disk that holds .* is full; .*--features-dir.*what was finished is kept"
    ):
        fill(entry, noise, (1, 2))
    assert 0 not in entry.missing_chunks()
    assert 2 in entry.missing_chunks()
    assert [name for name in names_below(disk) if "partial" in name] == []
    assert set(before) <= set(names_below(disk))


def test_a_full_disk_while_creating_leaves_nothing_under_the_final_name(disk):
    with pytest.raises(OSError, match=r"No space left"):
        (disk / "ballast").write_bytes(bytes(2**20))
    with pytest.raises(StoreError, match=r"The disk that holds"):
        FeatureStore(disk).entry({"a": 1}, n_windows=10, n_layers=1, width=4)
    assert names_below(disk) == ["ballast"]


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written"):
        FeatureStore(tmp_path / "file").entry({"a": 1}, n_windows=1, n_layers=1, width=1)


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
    assert [name for name in [p.name for p in tmp_path.iterdir()] if name.startswith(".new")] == []
    assert not any(".new-" in name or "partial" in name for name in names_below(tmp_path))


def test_a_full_disk_by_its_error_number(entry, values, monkeypatch):
    import zarr.storage._local as local

    fill(entry, values, (0,))

    def full(src, dst):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local.Path, "replace", full)
    with pytest.raises(StoreError, match=r"The disk that holds .* is full"):
        fill(entry, values, (1,))
    monkeypatch.undo()
    assert entry.missing_chunks() == (1, 2)
    assert not any("partial" in name for name in names_below(entry.path))
    fill(entry, values, (1, 2))
    np.testing.assert_array_equal(entry.read(), values)
