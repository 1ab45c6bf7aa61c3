"""Fill a feature store with one job and with two, and take the memory of an extraction on short and long films.

usage: python benchmarks/extraction.py [--quick]

Three models, one of them a checkpoint with random weights that follows five instructions, fill an empty store from
one generated film. One job does it alone, then two at the same time on the same cores share the work; the stores are
compared byte for byte, and the shortest time of a few turns counts. Jobs are forks of a process that has loaded the
libraries; their time is from their start to the end of the last one, loading of the models included. A job decodes in
a thread of its own beside its models, so that on two cores two jobs cannot be twice as fast as one; the processor
time of two over that of one says what sharing costs, whatever else the machine does.

Memory is how much the peak resident size of a job grows while it runs the checkpoint on 1 and on 10 minutes of film,
with windows of 1.49 s every half second, so that the short film already has two chunks of them.

The last line is one JSON object: `concurrent`, the seconds of one job over those of two; `memory`, the growth in MB
on the long film less that on the short one; and the figures that they are made of.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av

WINDOW = 1.49
INSTRUCTIONS = 5

SERVER = """
import json, os, sys, time
from pathlib import Path
import librosa.core.spectrum, librosa.feature.spectral, moten, torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from bids_mllm.features.extractor import ReadOut
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models import instructed_extractor
from bids_mllm.features.registry import load_family, resolve_models
from bids_mllm.interfaces.extraction import Machine, extract_film, make_task
from bids_mllm.io.clips import probe_stimulus
from bids_mllm.io.store import FeatureStore
from bids_mllm.records import WindowGrid

torch.set_num_threads(1)

def rss(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) / 1024

def job(film, folder, requests, step, window, poolings, n_instructions):
    before = rss("VmRSS")
    stimulus, store = probe_stimulus(Path(film), Path(film).name), FeatureStore(Path(folder))
    seconds = min(stimulus.video_duration, stimulus.audio_duration)
    grid = WindowGrid(0.0, step, window, int((seconds - window) / step) + 1)
    tasks = []
    for spec in resolve_models(requests, sloppy=True):
        instructions = load_instructions(media=spec.media)[:n_instructions] if spec.instructed else ()
        readout = ReadOut(window, tuple(poolings), instructions, 8)
        tasks.append(make_task(stimulus, spec, readout, load_family(spec.family), [grid], store))
    extract_film(stimulus, tasks, store, Machine("cpu"))
    print(json.dumps({"windows": grid.n_windows, "peak_mb": rss("VmHWM") - before}), flush=True)

for line in sys.stdin:
    jobs = json.loads(line)
    begin, before, children = time.time(), os.times(), []
    for given in jobs:
        child = os.fork()
        if not child:
            job(**given)
            os._exit(0)
        children.append(child)
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    print(json.dumps({"seconds": time.time() - begin, "cpu": cpu, "failed": failed}), flush=True)
"""


class Jobs:
    """The process that the jobs are forked from."""

    def __init__(self) -> None:
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **threads},
        )

    def run(self, *jobs: dict[str, Any]) -> dict[str, float]:
        """Run jobs at the same time; returns what one of them says, seconds until the last has ended, and of all."""
        self._server.stdin.write(json.dumps(jobs) + "\n")
        self._server.stdin.flush()
        said = [json.loads(self._server.stdout.readline() or "{}") for _ in (*jobs, None)]
        if said[-1].get("failed", 1):
            raise RuntimeError("A job failed.")
        return said[0] | said[-1]

    def close(self) -> None:
        """End the process."""
        self._server.communicate()


def digest(store: Path) -> str:
    """Of all files of a store but the marks of use."""
    found = hashlib.sha256()
    for path in sorted(store.rglob("*")):
        if path.is_file() and path.name != "used":
            found.update(path.relative_to(store).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def longer(source: Path, target: Path, repeat: int) -> Path:
    """A film of several copies of another."""
    with av.open(str(source)) as film, av.open(str(target), mode="w") as copy:
        streams = {stream.index: copy.add_stream_from_template(stream) for stream in film.streams}
        packets = [(p.stream_index, p.pts, p.dts, p.time_base, p.is_keyframe, bytes(p)) for p in film.demux() if p.size]
        seconds = float(film.duration) / av.time_base
        for number in range(repeat):
            for index, pts, dts, base, key, content in packets:
                packet = av.Packet(content)
                shift = round(seconds * number / base)
                packet.pts, packet.dts = pts + shift, None if dts is None else dts + shift
                packet.time_base, packet.stream, packet.is_keyframe = base, streams[index], key
                copy.mux(packet)
    return target


def measure(quick: bool) -> dict[str, float]:
    """Take the times and the memory; see the head of this file."""
    from bids_mllm.features.models.tiny import TINY_CHECKPOINTS
    from bids_mllm.simulate.films import write_film

    figures: dict[str, float] = {"cores": len(os.sched_getaffinity(0))}
    jobs = Jobs()
    with tempfile.TemporaryDirectory(prefix="bids-mllm-benchmark-") as folder:
        root = Path(folder)
        minute = root / "minute.mkv"
        write_film(minute, seconds=60.0, seed=1)
        film = longer(minute, root / "film.mkv", 5 if quick else 30)
        model = TINY_CHECKPOINTS["qwen25vl"](root / "model", hidden_size=192, n_layers=8)
        shared = {
            "film": str(film), "requests": [f"tiny={model}", "melspectrogram", "motionenergy"], "window": WINDOW,
            "step": WINDOW, "poolings": ["generated", "last", "media"], "n_instructions": INSTRUCTIONS,
        }  # fmt: skip
        one, two = [], []
        for turn in range(2 if quick else 3):
            stores = [root / f"{name}{turn}" for name in ("one", "two")]
            one.append(jobs.run({**shared, "folder": str(stores[0])}))
            two.append(jobs.run(*[{**shared, "folder": str(stores[1])}] * 2))
            if digest(stores[0]) != digest(stores[1]):
                raise RuntimeError("Two jobs left another store than one.")
        figures["windows"] = one[0]["windows"]
        for name, said in (("one", one), ("two", two)):
            # What others do on the machine only ever adds.
            figures |= {f"{name}_s": min(s["seconds"] for s in said), f"{name}_cpu_s": min(s["cpu"] for s in said)}
        small = TINY_CHECKPOINTS["qwen25vl"](root / "small")
        for minutes in (1, 10):
            long = longer(minute, root / f"{minutes}.mkv", minutes)
            alone = {"film": str(long), "folder": str(root / f"store{minutes}"), "requests": [f"tiny={small}"]}
            said = jobs.run({**shared, **alone, "step": 0.5, "poolings": ["last", "media"], "n_instructions": 2})
            figures |= {f"windows_{minutes}_min": said["windows"], f"peak_mb_{minutes}_min": said["peak_mb"]}
    jobs.close()
    figures["concurrent"] = figures["one_s"] / figures["two_s"]
    figures["memory"] = figures["peak_mb_10_min"] - figures["peak_mb_1_min"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="take shorter films, under 50 s in all")
    options = parser.parse_args()
    figures = {name: round(value, 3) for name, value in measure(options.quick).items()}
    first = {name: figures.pop(name) for name in ("concurrent", "memory")}
    print(json.dumps({**first, "quick": options.quick, **figures}))


if __name__ == "__main__":
    main()
