#!/usr/bin/env python3
"""Hold what the app wrote in a container against what it wrote outside; status 1 where something differs.

usage: compare.py OUTSIDE INSIDE [--root FOLDER] [--without NAME ...]

OUTSIDE and INSIDE are output folders. FOLDER stands outside for `/` in the container: FOLDER/data there is /data here.
Numbers may differ by 1e-5, or by as much of the larger one where that is above 1; percent by 1e-3. Pictures are drawn
from numbers, so they are compared by their kind and size. All else is equal but for times, the names that runs get, and
what says where the app ran and what it took: the container, its memory, seconds.
"""

import argparse
import base64
import gzip
import json
import re
import struct
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from safetensors.numpy import load_file

TOLERANCE = 1e-5
#: Keys, of JSON and TOML files, whose values say where and when the app ran, and what it took there.
PLACE_KEYS = {
    "Container", "mem_mb", "WallSeconds", "CPUSeconds", "Processes", "PeakMemoryMB", "LargestOtherProcessMB",
    "PeakGPUMemoryMB",
}  # fmt: skip
PNG_SIGNATURE, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
#: Of pages: what a run took, pictures, and what the scripts of the page read.
RESOURCES = re.compile(r'<section id="resources".*?</section>', re.DOTALL)
PICTURE = re.compile(r"data:image/(png|svg\+xml);base64,([A-Za-z0-9+/=]+)")
CONTENT = re.compile(r'<script type="application/json">(.*?)</script>', re.DOTALL)
#: Numbers packed for a page: the base64 of gzip.
PACKED = re.compile(r"H4sI[A-Za-z0-9+/]+=*")
TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?( UTC)?")
RUN_ID = re.compile(r"[0-9a-f]{12}")


class DifferenceError(Exception):
    """What is different in a file."""


def main(argv: list[str] | None = None) -> int:
    """Compare two folders and print what was found."""
    parser = argparse.ArgumentParser(description="Hold results of a container against those of a run outside.")
    parser.add_argument("outside", type=Path)
    parser.add_argument("inside", type=Path)
    parser.add_argument("--root", default="", help="folder that stands for / of the container")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="leave out folders of these names")
    options = parser.parse_args(argv)
    outside, inside = (files_of(folder, options.without) for folder in (options.outside, options.inside))
    findings = list(differences(outside, inside, options.root))
    for finding in findings[:20]:
        sys.stdout.write(f"{finding}\n")
    if len(findings) > 20:
        sys.stdout.write(f"... and {len(findings) - 20} more\n")
    kinds = Counter(kind_of(path) for path in outside.values())
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    sys.stdout.write(f"{sum(kinds.values())} files compared ({counts}): {len(findings)} differ\n")
    return 1 if findings else 0


def differences(expected: dict[str, Path], found: dict[str, Path], root: str) -> Iterator[str]:
    """Give a sentence for each file that is missing, new or different."""
    if not expected:
        yield "There are no files outside."
    for name in sorted(expected.keys() - found.keys()):
        yield f"{name} is missing inside."
    for name in sorted(found.keys() - expected.keys()):
        yield f"{name} is there inside only."
    for name in sorted(expected.keys() & found.keys()):
        try:
            COMPARE.get(kind_of(expected[name]), same_bytes)(expected[name], found[name], root)
        except DifferenceError as difference:
            yield f"{name}: {difference}"


def files_of(folder: Path, without: Sequence[str] = ()) -> dict[str, Path]:
    """Return the files below a folder, with the names that runs get replaced by the level that was run."""
    named = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not set(without) & set(parts[:-1]):
            named["/".join(_level(path) if RUN_ID.fullmatch(part) else part for part in parts)] = path
    return named


def _level(path: Path) -> str:
    settings = tomllib.loads((path.parent / "bids-mllm.toml").read_text("utf-8"))
    return f"<{settings['analysis_level']}>"


def kind_of(path: Path) -> str:
    """Return the last part of a name that says what is in the file."""
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix or path.name


def same_images(outside: Path, inside: Path, root: str) -> None:
    """Equal grids and values within the tolerance."""
    one, other = nib.load(outside), nib.load(inside)
    if one.shape != other.shape or not np.array_equal(one.affine, other.affine):
        raise DifferenceError(f"the grids differ ({one.shape} and {other.shape})")
    same_numbers(one.get_fdata(), other.get_fdata())


def same_tensors(outside: Path, inside: Path, root: str) -> None:
    """The same arrays with values within the tolerance."""
    one, other = load_file(outside), load_file(inside)
    if one.keys() != other.keys():
        raise DifferenceError(f"the arrays are {sorted(one)} and {sorted(other)}")
    for name, values in one.items():
        if values.shape != other[name].shape or values.dtype != other[name].dtype:
            raise DifferenceError(
                f"{name} is {values.shape} {values.dtype} and {other[name].shape} {other[name].dtype}"
            )
        same_numbers(values, other[name])


def same_numbers(one: np.ndarray, other: np.ndarray) -> None:
    """NaN in the same places, values within the tolerance."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    if not np.array_equal(np.isnan(one), np.isnan(other)):
        raise DifferenceError("NaN stands in other places")
    gap = float(np.nanmax(np.abs(one - other), initial=0.0))
    if gap > TOLERANCE:
        raise DifferenceError(f"values differ by {gap:.2g}")


def same_tables(outside: Path, inside: Path, root: str) -> None:
    """Cell by cell: numbers within the tolerance, words equal."""
    one, other = (path.read_text("utf-8").splitlines() for path in (outside, inside))
    if len(one) != len(other):
        raise DifferenceError(f"{len(one)} and {len(other)} lines")
    # a percent is a hundred times a share
    scales = [100.0 if name.startswith("percent") else 1.0 for name in one[0].split("\t")] if one else []
    for number, (left, right) in enumerate(zip(one, other, strict=True), start=1):
        cells, others = left.split("\t"), right.split("\t")
        same = len(cells) == len(others) == len(scales) and all(map(_same_cell, cells, others, scales))
        if not same:
            raise DifferenceError(f"line {number} is {left!r} and {right!r}")


def _same_cell(one: str, other: str, scale: float) -> bool:
    if one == other:
        return True
    try:
        return _close(float(one), float(other), scale)
    except ValueError:
        return False


def _close(one: float, other: float, scale: float = 1.0) -> bool:
    """Within the tolerance, which of numbers above 1 is one of their size."""
    return abs(one - other) <= TOLERANCE * max(scale, abs(one), abs(other))


def same_json(outside: Path, inside: Path, root: str) -> None:
    """Equal but for the keys that say where the app ran."""
    one, other = (json.loads(path.read_text("utf-8")) for path in (outside, inside))
    _same_values(one, other, root, "")


def same_settings(outside: Path, inside: Path, root: str) -> None:
    """Equal but for the keys that say where the app ran."""
    one, other = (tomllib.loads(path.read_text("utf-8")) for path in (outside, inside))
    _same_values(one, other, root, "")


def _same_values(one: Any, other: Any, root: str, where: str) -> None:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = (one.keys() | other.keys()) - PLACE_KEYS
        for key in sorted(keys):
            if key not in one or key not in other:
                raise DifferenceError(f"{where}/{key} is on one side only")
            _same_values(one[key], other[key], root, f"{where}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            _same_values(left, right, root, f"{where}/{number}")
    elif not _same_value(one, other, root):
        raise DifferenceError(f"{where} is {one!r} and {other!r}")


def _same_value(one: Any, other: Any, root: str) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return _plain(one, root) == _plain(other, "")
    if isinstance(one, float) and isinstance(other, float):
        return _close(one, other)
    return type(one) is type(other) and bool(one == other)


def same_text(outside: Path, inside: Path, root: str) -> None:
    """Equal but for times."""
    _same_lines(_plain(outside.read_text("utf-8"), root), _plain(inside.read_text("utf-8"), ""))


def same_pages(outside: Path, inside: Path, root: str) -> None:
    """Equal but for times and what runs took; pictures of the same size, numbers for scripts of the same length."""
    one, other = (RESOURCES.sub("", path.read_text("utf-8")) for path in (outside, inside))
    for number, (left, right) in enumerate(_pairs(CONTENT, one, other, "scripts"), start=1):
        left, right = (json.loads(PACKED.sub(_unpacked_size, content[1])) for content in (left, right))
        _same_values(left, right, root, f"script {number} of the page: ")
    for number, (left, right) in enumerate(_pairs(PICTURE, one, other, "pictures"), start=1):
        kinds = [(found[1], _size(base64.b64decode(found[2]))) for found in (left, right)]
        if kinds[0] != kinds[1]:
            raise DifferenceError(f"picture {number} of the page is {kinds[0]} and {kinds[1]}")
    one, other = (PICTURE.sub("<picture>", CONTENT.sub("<script>", text)) for text in (one, other))
    _same_lines(_plain(one, root), _plain(other, ""))


def _unpacked_size(found: re.Match[str]) -> str:
    """Return how many bytes are packed; which ones hangs on numbers that may differ a little."""
    return f"{len(gzip.decompress(base64.b64decode(found[0])))} packed bytes"


def _pairs(pattern: re.Pattern[str], one: str, other: str, what: str) -> list[tuple[re.Match[str], re.Match[str]]]:
    left, right = list(pattern.finditer(one)), list(pattern.finditer(other))
    if len(left) != len(right):
        raise DifferenceError(f"the page has {len(left)} and {len(right)} {what}")
    return list(zip(left, right, strict=True))


def _same_lines(text: str, text_inside: str) -> None:
    one, other = text.splitlines(), text_inside.splitlines()
    if len(one) != len(other):
        raise DifferenceError(f"{len(one)} and {len(other)} lines")
    for number, (left, right) in enumerate(zip(one, other, strict=True), start=1):
        if left != right:
            raise DifferenceError(f"line {number} is {left[:200]!r} and {right[:200]!r}")


def _plain(text: str, root: str) -> str:
    return TIME.sub("<time>", text.replace(root, "") if root else text)


def same_pictures(outside: Path, inside: Path, root: str) -> None:
    """Of the same size; the lines are drawn from numbers, which the table beside the picture holds."""
    one, other = (_size(path.read_bytes()) for path in (outside, inside))
    if one != other:
        raise DifferenceError(f"the pictures are {one} and {other}")


def _size(picture: bytes) -> str:
    """Return the size of a PNG in pixels; of an SVG that it is one, since its box follows the text it holds."""
    if picture.startswith(PNG_SIGNATURE):
        if len(picture) < 24 or not picture.endswith(PNG_END):
            raise DifferenceError("a PNG is cut off")
        return "a PNG of {} x {} pixels".format(*struct.unpack(">II", picture[16:24]))
    try:
        root = ElementTree.fromstring(picture)
    except ElementTree.ParseError as error:
        raise DifferenceError(f"a picture is neither PNG nor SVG ({error})") from error
    if root.tag != "{http://www.w3.org/2000/svg}svg":
        raise DifferenceError(f"an SVG begins with {root.tag!r}")
    return "an SVG"


def same_bytes(outside: Path, inside: Path, root: str) -> None:
    """Equal byte by byte."""
    if outside.read_bytes() != inside.read_bytes():
        raise DifferenceError("the bytes differ")


COMPARE: dict[str, Callable[[Path, Path, str], None]] = {
    ".nii.gz": same_images,
    ".safetensors": same_tensors,
    ".tsv": same_tables,
    ".json": same_json,
    ".toml": same_settings,
    ".html": same_pages,
    ".md": same_text,
    ".tex": same_text,
    ".png": same_pictures,
    ".svg": same_pictures,
}

if __name__ == "__main__":
    sys.exit(main())
