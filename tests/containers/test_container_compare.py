"""The comparison of results from a container with those of a run outside finds what differs, and only that."""

import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import save_file

PATH = Path(__file__).with_name("compare.py")


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("container_compare", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder, *, run, root, container):
    """Make results as the app leaves them; `root` is where data and output folders lie."""
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    values[0, 0, 0] = np.nan
    (folder / "logs" / run).mkdir(parents=True)
    toml = f'bids_dir = "{root}/data"\nanalysis_level = "participant"\nmem_mb = {len(root) * 1.5}\n'
    (folder / "logs" / run / "bids-mllm.toml").write_text(toml)
    nib.save(nib.Nifti1Image(values, np.eye(4)), folder / "map.nii.gz")
    save_file({"layer_000": values[0, 1:]}, folder / "chunk.safetensors")
    (folder / "table.tsv").write_text("region\tr\nV1\t0.25\nV2\tn/a\n")
    generated = {"Name": "bids-mllm", **({"Container": {"Type": container}} if container else {})}
    (folder / "sidecar.json").write_text(json.dumps({"GeneratedBy": [generated], "Delay": 1.5, "From": f"{root}/data"}))
    (folder / "page.html").write_text(f"<p>Written 2026-01-02 03:04 UTC</p>\n<dd>{root}/data/model</dd>\n")
    (folder / "used").write_bytes(b"")


@pytest.fixture
def both(tmp_path):
    root = str(tmp_path / "outside")
    write(tmp_path / "outside" / "out", run="0123456789ab", root=root, container=None)
    write(tmp_path / "inside", run="ba9876543210", root="", container="docker")
    page = tmp_path / "inside" / "page.html"
    page.write_text(page.read_text().replace("2026-01-02 03:04", "2027-05-06 07:08"))
    return tmp_path / "outside" / "out", tmp_path / "inside", root


def status(compare, both, *more):
    outside, inside, root = both
    return compare.main([str(outside), str(inside), "--root", root, *more])


def test_place_and_time_are_no_difference(compare, both, capsys):
    assert status(compare, both) == 0
    assert "7 files compared" in capsys.readouterr().out


def test_paths_differ_where_no_root_is_given(compare, both):
    outside, inside, _ = both
    assert compare.main([str(outside), str(inside)]) == 1


def values(change):
    """Return a change of one value of the map."""

    def edit(folder):
        image = nib.load(folder / "map.nii.gz")
        data = image.get_fdata(dtype=np.float32)
        change(data)
        nib.save(nib.Nifti1Image(data, image.affine), folder / "map.nii.gz")

    return edit


def text(name, old, new):
    def edit(folder):
        path = folder / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return edit


def shifted(data):
    data[1, 1, 1] += 1e-3


def unmasked(data):
    data[0, 0, 0] = 0


def affine(folder):
    data = nib.load(folder / "map.nii.gz").get_fdata(dtype=np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([2, 2, 2, 1])), folder / "map.nii.gz")


def tensors(folder):
    save_file({"layer_000": np.zeros((2, 4), np.float32)}, folder / "chunk.safetensors")


CHANGES = {
    "value": (values(shifted), "map.nii.gz: values differ by 0.001"),
    "nan": (values(unmasked), "map.nii.gz: NaN stands in other places"),
    "grid": (affine, "map.nii.gz: the grids differ"),
    "features": (tensors, "chunk.safetensors: values differ"),
    "number": (text("table.tsv", "0.25", "0.2501"), "table.tsv: line 2"),
    "word": (text("table.tsv", "V2", "V3"), "table.tsv: line 3"),
    "lines": (text("table.tsv", "V2\tn/a\n", ""), "table.tsv: 3 and 2 lines"),
    "json": (text("sidecar.json", "1.5", "1.6"), "sidecar.json: /Delay is 1.5 and 1.6"),
    "key": (text("sidecar.json", "Delay", "Lag"), "sidecar.json: /Delay is on one side only"),
    "setting": (text("logs/ba9876543210/bids-mllm.toml", "/data", "/data2"), "bids-mllm.toml: /bids_dir is"),
    "page": (text("page.html", "Written", "Made"), "page.html: line 1"),
    "missing": (lambda folder: (folder / "used").unlink(), "used is missing inside."),
    "new": (lambda folder: (folder / "extra").touch(), "extra is there inside only."),
    "bytes": (lambda folder: (folder / "used").write_bytes(b"x"), "used: the bytes differ"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_difference_is_named(compare, both, capsys, change):
    edit, sentence = CHANGES[change]
    edit(both[1])
    assert status(compare, both) == 1
    first, *_ = capsys.readouterr().out.splitlines()
    assert sentence in first


def test_small_differences_of_numbers_are_none(compare, both):
    values(lambda data: data.__iadd__(5e-6))(both[1])
    text("table.tsv", "0.25", "0.250005")(both[1])
    assert status(compare, both) == 0


def test_folders_can_be_left_out(compare, both):
    text("logs/ba9876543210/bids-mllm.toml", "/data", "/elsewhere")(both[1])
    assert status(compare, both) == 1
    assert status(compare, both, "--without", "logs") == 0


def test_nothing_to_compare_is_a_difference(compare, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert compare.main([str(tmp_path / "one"), str(tmp_path / "two")]) == 1
