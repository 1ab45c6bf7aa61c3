"""Time the stages of the demo: simulate, participant (first and second call) and group.

usage: python benchmarks/demo_stages.py [--quick] [FOLDER]

The last line is one JSON object: seconds of each stage, and the share of the first participant call that a second,
unchanged one takes. With --quick a smaller data set and the cheapest
model serve (under 50 s on two cores).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def timed(*words: object) -> float:
    """Run one command and return its seconds."""
    begin = time.monotonic()
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - begin


def simulate(folder: Path, quick: bool) -> float:
    """Simulate the demo's data set, or a smaller one."""
    size = "participants=1, run_seconds=30.0, runs={'bourne': 1, 'wolf': 1, 'life': 1}" if quick else ""
    code = (
        "from pathlib import Path; from bids_mllm.simulate.dataset import simulate_dataset; "
        f"simulate_dataset(Path({str(folder)!r}), {size})"
    )
    return timed(sys.executable, "-c", code)


def measure(folder: Path, quick: bool) -> dict[str, float]:
    """Seconds of each stage."""
    bids, out, work = folder / "bids", folder / "out", folder / "work"
    stages = {"simulate": simulate(bids, quick)}
    app = (sys.executable, "-m", "bids_mllm.cli.run", bids, out)
    model = f"qwen25vltiny={bids / 'models/qwen25vltiny'}"
    models = ("motionenergy", "--nprocs", "1") if quick else ("motionenergy", "melspectrogram", model)
    participant = (
        *app, "participant", "-w", work, "--sloppy", "--test-task", "life*", "--alphas", "1", "1e7", "8",
        "--models", *models,
    )  # fmt: skip
    stages["participant"] = timed(*participant)
    stages["participant_again"] = timed(*participant)
    stages["group"] = timed(*app, "group", "-w", work)
    return stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="bids-mllm-benchmark-"))
    try:
        stages = measure(folder, options.quick)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    figures = {f"{name}_s": round(seconds, 1) for name, seconds in stages.items()}
    figures["rerun_share"] = round(stages["participant_again"] / stages["participant"], 3)
    print(json.dumps({"quick": options.quick} | figures))


if __name__ == "__main__":
    main()
