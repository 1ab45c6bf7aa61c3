"""The comparison of results from a container with those of a run outside finds what differs, and only that."""

import base64
import gzip
import importlib.util
import json
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import save_file

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{width}"><path d="M 0 {y}"/></svg>'
PATH = Path(__file__).with_name("compare.py")


def png(width, height, level):
    """Return a grey PNG."""
    row = b"\0" + bytes([level]) * width
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(row * height)))
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*parts, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def page(root, *, width=4, level=7, svg="", packed=bytes(9), number=0.25, minutes="1.5", pictures=1):
    """Return a page with a picture, numbers for a script, and what a run took."""
    uri = base64.b64encode(svg.encode() if svg else png(width, 3, level)).decode()
    kind = "svg+xml" if svg else "png"
    content = json.dumps({"codes": base64.b64encode(gzip.compress(packed, mtime=0)).decode(), "low": number})
    return (
        f"<p>Written 2026-01-02 03:04 UTC</p>\n<dd>{root}/data/model</dd>\n"
        + f'<img src="data:image/{kind};base64,{uri}" alt="A picture.">\n' * pictures
        + f'<script type="application/json">{content}</script>\n'
        + f'<section id="resources" aria-labelledby="r">\n<td>{minutes}</td>\n</section>\n'
    )


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
    (folder / "page.html").write_text(page(root))
    (folder / "figure.png").write_bytes(png(6, 5, 10))
    (folder / "figure.svg").write_text(SVG.format(width=10, y=1))
    percent = "percent_difference\tn\n12.5\t3\n2500.125\tn/a\n"
    (folder / "percent.tsv").write_text(percent)
    took = {"WallSeconds": len(root) * 1.5, "PeakMemoryMB": 100.0 + len(root), "Started": "2026-01-02 03:04:05 UTC"}
    (folder / "logs" / run / "resources.json").write_text(json.dumps({**took, "Nodes": 12, "PeakGPUMemoryMB": None}))
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
    assert "11 files compared" in capsys.readouterr().out


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


def rewritten(**changes):
    """Return a change of the page."""
    return lambda folder: (folder / "page.html").write_text(page("", **changes))


def smaller(folder):
    (folder / "figure.png").write_bytes(png(6, 4, 10))


CHANGES = {
    "pixels": (smaller, "figure.png: the pictures are a PNG of 6 x 5 pixels and a PNG of 6 x 4 pixels"),
    "cut": (lambda folder: (folder / "figure.png").write_bytes(png(6, 5, 10)[:-6]), "figure.png: a PNG is cut off"),
    "svg": (text("figure.svg", "</svg>", ""), "figure.svg: a picture is neither PNG nor SVG"),
    "root": (text("figure.svg", "svg", "html"), "figure.svg: an SVG begins with"),
    "no figure": (lambda folder: (folder / "figure.svg").unlink(), "figure.svg is missing inside."),
    "percent": (text("percent.tsv", "12.5", "12.502"), "percent.tsv: line 2"),
    "large": (text("percent.tsv", "2500.125", "2500.225"), "percent.tsv: line 3"),
    "count": (text("percent.tsv", "\t3\n", "\t4\n"), "percent.tsv: line 2"),
    "column": (text("percent.tsv", "\tn\n", "\tn_runs\n"), "percent.tsv: line 1"),
    "nodes": (text("logs/ba9876543210/resources.json", "12", "13"), "resources.json: /Nodes is 12 and 13"),
    "inline": (rewritten(width=5), "page.html: picture 1 of the page is"),
    "kind": (rewritten(svg=SVG.format(width=1, y=1)), "page.html: picture 1 of the page is"),
    "pictures": (rewritten(pictures=2), "page.html: the page has 1 and 2 pictures"),
    "packed": (rewritten(packed=bytes(8)), "page.html: script 1 of the page: /codes is"),
    "script": (rewritten(number=0.26), "page.html: script 1 of the page: /low is 0.25 and 0.26"),
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


def test_pictures_are_compared_by_size_and_not_byte_by_byte(compare, both):
    (both[1] / "figure.png").write_bytes(png(6, 5, 11))
    (both[1] / "figure.svg").write_text(SVG.format(width=10, y=1.00001))
    assert status(compare, both) == 0


def test_pages_may_differ_in_shades_codes_and_what_runs_took(compare, both):
    (both[1] / "page.html").write_text(page("", level=8, packed=b"1" + bytes(8), number=0.250005, minutes="9.0"))
    assert status(compare, both) == 0


def test_percent_and_large_numbers_have_a_tolerance_of_their_size(compare, both):
    text("percent.tsv", "12.5", "12.5005")(both[1])
    text("percent.tsv", "2500.125", "2500.135")(both[1])
    assert status(compare, both) == 0


def test_folders_can_be_left_out(compare, both):
    text("logs/ba9876543210/bids-mllm.toml", "/data", "/elsewhere")(both[1])
    assert status(compare, both) == 1
    assert status(compare, both, "--without", "logs") == 0
    (both[1] / "figures").mkdir()
    (both[1] / "figures/bars.tsv").write_text("r\n0.5\n")
    assert status(compare, both, "--without", "logs") == 1
    assert status(compare, both, "--without", "logs", "figures") == 0


def test_nothing_to_compare_is_a_difference(compare, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert compare.main([str(tmp_path / "one"), str(tmp_path / "two")]) == 1
