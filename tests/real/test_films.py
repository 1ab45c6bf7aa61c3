"""Real films through the whole app: two video streams, several audio streams, 5.1 sound, webm and mp4.

Skipped where the films are not there.
"""

import json

import numpy as np
import pytest

from bids_mllm.cli.run import main
from bids_mllm.io.results import find_results
from bids_mllm.simulate.dataset import simulate_dataset
from tests.conftest import SHARED

VIDEOS = SHARED / "data" / "videos"


@pytest.mark.slow
@pytest.mark.skipif(not VIDEOS.is_dir(), reason="the real films are not here")
def test_real_films_run_to_the_end(tmp_path):
    bids = simulate_dataset(tmp_path / "bids", participants=1, films=VIDEOS)
    out, work = tmp_path / "out", tmp_path / "work"
    common = ["-w", str(work), "--nprocs", "1"]
    model = f"qwen25vltiny={bids / 'models/qwen25vltiny'}"
    status = main(
        [
            str(bids), str(out), "participant", "--sloppy", "--models", "motionenergy", "melspectrogram", model,
            "--instructions", "AR", "NU", "--poolings", "last", "media", "--high-pass", "0.02",
            "--alphas", "1", "1e6", "4", "--map-views", "none", *common,
        ]
    )  # fmt: skip
    assert status == 0
    assert main([str(bids), str(out), "group", *common]) == 0
    results = {result.model: result for result in find_results(out)}
    assert set(results) == {"motionenergy", "melspectrogram", "qwen25vltiny"}
    design = json.loads(next(work.rglob("*MNI152NLin2009cAsym.json")).read_text(encoding="utf-8"))
    spans = {
        stimulus["stim_file"]: stimulus["media_duration"]
        for windows in design["windows"]
        for stimulus in windows["report"]["stimuli"]
    }
    assert len(spans) == 3
    narrated = next(seconds for name, seconds in spans.items() if "jwst" in name)
    assert narrated == pytest.approx(13.0, abs=0.1)  # the container says 16.57 s
    for result in results.values():
        assert np.isfinite(result.map("r", "best")[0]).sum() > 500
    assert "sub-01" in (out / "group.html").read_text(encoding="utf-8")
