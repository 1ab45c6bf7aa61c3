"""Time the index of one participant, and the table of runs of a whole data set, on Movie10's tree of 12,000 files.

usage: python benchmarks/index.py [--quick] [FOLDER]

The tree is built by name with tiny images; the CIFTI files have headers and brain models of full size. The last line
is one JSON object: seconds to find the runs of one participant in one space with all their files, headers and clocks,
import of PyBIDS not counted; and wall seconds and peak memory of the process of `bids-mllm ... --dry-run` for every
participant in two spaces. With --quick two participants serve.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
sys.path.insert(0, str(FOLDER / "tests"))

import movie10_tree  # noqa: E402

#: Vertices of a hemisphere whose number makes as many grayordinates, and as much XML, as the standard space of 91k.
N_VERTICES = 45_641
SPACES = ("MNI152NLin2009cAsym", "fsLR:den-91k")


def index_seconds(raw: Path, prep: Path) -> float:
    """Seconds to find the runs of one participant."""
    import bids  # noqa: F401 - its import is not what is measured

    from bids_mllm.discover.layout import index_derivative
    from bids_mllm.discover.runs import find_runs
    from bids_mllm.discover.series import RunQuery
    from bids_mllm.discover.spaces import parse_space

    begin = time.perf_counter()
    derivative = index_derivative("fmriprep", prep, ("01",))
    runs = find_runs([derivative], raw, RunQuery(("01",), (parse_space(SPACES[0]),)))
    seconds = time.perf_counter() - begin
    print(f"{len(runs)} runs of sub-01")
    return seconds


def dry_run(raw: Path, prep: Path) -> dict[str, float]:
    """Wall seconds and peak memory of one call in a process of its own."""
    app = [sys.executable, "-m", "bids_mllm.cli.run", raw, raw.parent / "out", "participant", "--dry-run"]
    words = [*map(str, app), "--derivatives", f"fmriprep={prep}", "--space", *SPACES]
    begin = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    table = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError("The dry run failed.")
    print(f"{len(table.splitlines()) - 1} rows")
    return {"dry_run_seconds": time.perf_counter() - begin, "dry_run_gib": usage.ru_maxrss / 2**20}


def widen(prep: Path) -> None:
    """Give the CIFTI files a header and XML of full size, and values that take no space on disk."""
    import nibabel as nib

    content = movie10_tree.cifti(1, N_VERTICES)
    header = nib.Nifti2Header(content[:540])
    xml, n_places = content[540 : int(header["vox_offset"])], int(header["dim"][6])
    for path in prep.glob("sub-*/ses-*/func/*_bold.dtseries.nii"):
        n_volumes = int(nib.Nifti2Header(path.read_bytes()[:540])["dim"][5])
        header["dim"][5] = n_volumes
        path.write_bytes(header.binaryblock + xml)
        os.truncate(path, int(header["vox_offset"]) + 4 * n_volumes * n_places)


def measure(folder: Path, quick: bool) -> dict[str, float]:
    content: dict[str, Any] = movie10_tree.layout()
    subs = list(content["runs"])[: 2 if quick else None]
    raw, prep = movie10_tree.build(folder, content, participants=subs)
    widen(prep)
    print(f"{sum(len(files) for _, _, files in os.walk(prep))} files of {len(subs)} participants")
    return {"index_seconds": index_seconds(raw, prep), **dry_run(raw, prep)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bids-mllm-benchmark-") as scratch:
        result = measure(options.folder or Path(scratch), options.quick)
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


if __name__ == "__main__":
    main()
