"""Decode a film once for overlapping windows, against opening, seeking and decoding for each window.

usage: python benchmarks/decode_once.py [--quick]

Windows of 4 s every 1.49 s with 8 frames, of a generated 720p H.264 film with key frames as far apart as the encoder
sets them (250 frames), on one core. The last line is one JSON object: CPU seconds of the obvious script over those of
`read_film` for one model (`decode_once`) and for three models of the same windows (`three_models`), and the CPU seconds
themselves. Without --quick also the peak of memory in MB while 1 and 10 minutes of film are read.
With --quick a film of 24 s serves.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from bids_mllm.io.clips import probe_stimulus
from bids_mllm.io.films import read_film
from bids_mllm.records import Clip, ClipJob, MediaRequest

STEP, LENGTH, N_FRAMES, RATE = 1.49, 4.0, 8, 25
REQUEST = MediaRequest("video", n_frames=N_FRAMES, frame_size=(252, 448))


def write_film(path: Path, seconds: float, width: int, height: int, preset: str) -> Path:
    """A film of a texture that moves, with the encoder's own distance of key frames."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 8, width // 8 * 2), dtype=np.uint8)
    texture = np.kron(coarse, np.ones((8, 8), dtype=np.uint8))
    chroma = np.full((height // 2, width), 128, dtype=np.uint8)
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": preset})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 250
        for index in range(round(seconds * RATE)):
            grey = np.roll(texture, 2 * index, axis=1)[:, :width]
            frame = av.VideoFrame.from_ndarray(np.concatenate([grey, chroma]), format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def windows(name: str, seconds: float) -> list[Clip]:
    """All complete windows of a film."""
    starts = np.arange(int((seconds - LENGTH) / STEP) + 1) * STEP
    return [Clip(name, k, float(start), float(start + LENGTH)) for k, start in enumerate(starts)]


def decode_each(path: Path, clips: list[Clip]) -> list[np.ndarray]:
    """The obvious script: open the file, seek to the window and decode it, for every window."""
    found = []
    for clip in clips:
        instants = clip.start + (np.arange(N_FRAMES) + 0.5) * (clip.end - clip.start) / N_FRAMES
        shown: list[np.ndarray] = []
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            container.seek(int(instants[0] / stream.time_base), stream=stream)
            held = None
            for frame in container.decode(stream):
                while len(shown) < N_FRAMES and held is not None and frame.time > instants[len(shown)] + 5e-4:
                    height, width = REQUEST.frame_size
                    small = held.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
                    shown.append(small.to_ndarray())
                if len(shown) == N_FRAMES:
                    break
                held = frame
        found.append(np.stack(shown))
    return found


def decode_once(path: Path, clips: list[Clip], n_models: int = 1) -> list[np.ndarray]:
    """One pass for all windows of all models; returns the frames of the first model."""
    stimulus = probe_stimulus(path, path.name)
    jobs = [ClipJob(iter(clips), REQUEST) for _ in range(n_models)]
    return [media.frames for number, media in read_film(stimulus, jobs) if number == 0]


@contextmanager
def one_core() -> Iterator[None]:
    """Run on one core only."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call gives and the CPU seconds that it takes."""
    begin = time.process_time()
    result = call()
    return result, time.process_time() - begin


def peak_memory(path: Path, seconds: float) -> float:
    """Peak resident memory in MB of a process that reads all windows of a film."""
    code = (
        "import sys; from pathlib import Path; import decode_once as d; path = Path(sys.argv[1]); "
        "stimulus = d.probe_stimulus(path, path.name); "
        "request = d.MediaRequest('video', n_frames=d.N_FRAMES); "
        "jobs = [d.ClipJob(iter(d.windows(path.name, float(sys.argv[2]))), request)]; "
        "n = sum(1 for _ in d.read_film(stimulus, jobs)); "
        # The kernel's figure for this program alone; getrusage also counts the one that started it.
        "print(int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024)"
    )
    arguments = [sys.executable, "-c", code, str(path), str(seconds)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
    return float(done.stdout)


def measure(quick: bool) -> dict[str, float]:
    """Ratio of CPU seconds for one and for three models, the seconds, and the peaks of memory."""
    seconds = 24.0 if quick else 90.0
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bids-mllm-benchmark-") as folder:
        path = write_film(Path(folder) / "film.mp4", seconds, 1280, 720, "veryfast")
        # The last window is not complete until a picture follows its last instant.
        clips = windows(path.name, seconds)
        with one_core():
            each, each_s = timed(lambda: decode_each(path, clips))
            once, once_s = timed(lambda: decode_once(path, clips))
            _, three_s = timed(lambda: decode_once(path, clips, 3))
        for one, other in zip(each, once, strict=True):
            np.testing.assert_array_equal(one, other)
        figures |= {"ratio": each_s / once_s, "three_models": 3 * each_s / three_s}
        figures |= {"each_s": each_s, "once_s": once_s, "windows": len(clips)}
        if not quick:
            for minutes in (1, 10):
                long = write_film(Path(folder) / f"{minutes}.mp4", 60.0 * minutes, 320, 192, "ultrafast")
                figures[f"peak_mb_{minutes}_min"] = peak_memory(long, 60.0 * minutes)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    figures = {name: round(value, 2) for name, value in measure(options.quick).items()}
    print(json.dumps({"decode_once": figures.pop("ratio"), "quick": options.quick} | figures))


if __name__ == "__main__":
    main()
