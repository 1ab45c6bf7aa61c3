"""Compare two output folders of bids-mllm: the same files, and in them the same but for paths, times and 1e-5.

usage: compare_outputs.py EXPECTED FOUND; prints what differs and ends with status 1 where anything does.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

TOLERANCE = 1e-5
#: Of one call or one process: logs, crash files, claims and the time at which an entry was used last.
OF_ONE_CALL = re.compile(r"(^|/)(logs?|\.claims)/|/used$")
PATH_OR_TIME = re.compile(r"/|^\d{4}-\d\d-\d\d")


def names(root: Path) -> set[str]:
    """Return the names of the files that every way of running leaves."""
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return {name for name in found if not OF_ONE_CALL.search(name)}


def same_json(expected: Any, found: Any) -> bool:
    """Whether two values of JSON are the same but for texts that are paths or times."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(same_json(expected[key], found[key]) for key in expected)
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(same_json, expected, found))
    if isinstance(expected, float) and isinstance(found, float):
        return bool(np.isclose(expected, found, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))
    if isinstance(expected, str) and isinstance(found, str) and PATH_OR_TIME.search(expected):
        return PATH_OR_TIME.search(found) is not None
    return bool(expected == found)


def same_image(expected: Path, found: Path) -> bool:
    """Whether two maps have one grid and the same values, missing ones included."""
    first, second = nib.load(expected), nib.load(found)
    if first.shape != second.shape or not np.allclose(first.affine, second.affine):
        return False
    values = np.asarray(first.dataobj), np.asarray(second.dataobj)
    return bool(np.allclose(*values, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))


def same_table(expected: Path, found: Path) -> bool:
    """Whether two tables have the same columns, words and numbers."""
    first, second = (pd.read_csv(path, sep="\t") for path in (expected, found))
    if list(first.columns) != list(second.columns) or len(first) != len(second):
        return False
    for name in first.columns:
        if pd.api.types.is_numeric_dtype(first[name]) and pd.api.types.is_numeric_dtype(second[name]):
            if not np.allclose(first[name], second[name], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                return False
        elif list(first[name].fillna("")) != list(second[name].fillna("")):
            return False
    return True


def differences(expected: Path, found: Path) -> Iterator[str]:
    """Give a line for every file that is missing, too many or other."""
    first, second = names(expected), names(found)
    yield from (f"missing: {name}" for name in sorted(first - second))
    yield from (f"too many: {name}" for name in sorted(second - first))
    for name in sorted(first & second):
        if name.endswith(".nii.gz"):
            same = same_image(expected / name, found / name)
        elif name.endswith(".tsv"):
            same = same_table(expected / name, found / name)
        elif name.endswith(".json"):
            same = same_json(*(json.loads((root / name).read_text(encoding="utf-8")) for root in (expected, found)))
        else:
            same = True
        if not same:
            yield f"differs: {name}"


def main() -> int:
    """Compare the two folders of the command line."""
    lines = list(differences(Path(sys.argv[1]), Path(sys.argv[2])))
    sys.stdout.writelines(f"{line}\n" for line in lines[:20])
    if len(lines) > 20:
        sys.stdout.write(f"and {len(lines) - 20} more\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
