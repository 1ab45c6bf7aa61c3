"""Records that go to disk and come back the same: designs, scores, probes of stimuli."""

import json
import os
import wave
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest

from bids_mllm.align.windows import align_run
from bids_mllm.exceptions import BidsMllmError
from bids_mllm.io.design import design_to_text, read_design
from bids_mllm.io.probes import ProbeCache
from bids_mllm.io.scores import load_scores, save_scores
from bids_mllm.outcomes import ModelScores
from bids_mllm.records import Condition, DroppedRun, ParticipantDesign, Run, Showing, TRWindows


def design() -> ParticipantDesign:
    first = Run(
        "01", "001", "life01", 1, "T1w", Path("/a/b.nii.gz"), Path("/a/m.nii.gz"), None, 1.49, 0.745, 9,
        Path("/r/task-life01_events.tsv"), (Showing("life/life01.mkv", 1.0, 2.0, 7.0),), "one row", "2",
    )  # fmt: skip
    second = Run("01", None, "rest", None, "T1w", None, None, Path("/a/c.tsv"), 2.0, 0.0, 4, None,
                 (Showing("x.mkv", -1.0), Showing("y.mkv", 3.0)))  # fmt: skip
    films = {"life/life01.mkv": 30.0, "x.mkv": 4.0, "y.mkv": 2.0}
    windows = tuple(align_run(run, films) for run in (first, second))
    return ParticipantDesign("01", "T1w", (first, second), windows, (DroppedRun("01", "x", "why"),), (1,))


def same_windows(a: TRWindows, b: TRWindows) -> bool:
    for field in fields(TRWindows):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, np.ndarray):
            if left.dtype != right.dtype or not np.array_equal(left, right, equal_nan=left.dtype.kind == "f"):
                return False
        elif left != right:
            return False
    return True


@pytest.mark.parametrize("test_runs", [(1,), None])
def test_a_design_comes_back_the_same(tmp_path, test_runs):
    made = replace(design(), test_runs=test_runs)
    path = tmp_path / "design.json"
    path.write_text(design_to_text(made))
    read = read_design(path)
    for field in fields(ParticipantDesign):
        if field.name != "windows":
            assert getattr(read, field.name) == getattr(made, field.name), field.name
    assert all(same_windows(a, b) for a, b in zip(read.windows, made.windows, strict=True))
    assert not made.windows[0].valid.all()  # NaN edges made the trip


def test_the_text_of_a_design_is_strict_json_and_the_same_for_equal_designs():
    text = design_to_text(design())
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert text == design_to_text(design())
    assert text != design_to_text(replace(design(), participant="02"))


def test_what_json_cannot_hold_is_refused():
    odd = replace(design(), dropped=(DroppedRun("01", "x", {1, 2}),))
    with pytest.raises(TypeError, match=r"set"):
        design_to_text(odd)


def test_a_damaged_design_is_one_sentence(tmp_path):
    (tmp_path / "design.json").write_text("{")
    with pytest.raises(BidsMllmError, match=r"design.json cannot be read"):
        read_design(tmp_path / "design.json")


def test_scores_come_back_the_same(tmp_path):
    rng = np.random.default_rng(0)
    maps = {
        name: rng.standard_normal((2, 3, 5)).astype(np.float32)
        for name in ("r", "r_concatenated", "r2", "cv_r2", "alpha")
    }
    maps["r"][0, 0, 0] = np.nan
    scores = ModelScores(
        model="tinymllm",
        conditions=(Condition("generated", "AR"), Condition("media")),
        layers=(0, 4, 7),
        **maps,
        alpha_edge=maps["r"] > 0,
        best_r=maps["r"][0, 0],
        best_r2=maps["r2"][0, 0],
        best_condition=np.array([0, 1, -1, 0, 1], dtype=np.int16),
        best_layer=np.array([2, 1, -1, 0, 0], dtype=np.int16),
        condition_best_r=maps["r"][:, 0],
        condition_best_layer=np.zeros((2, 5), dtype=np.int16),
        fold_cv_r2=maps["r"][..., 0][None],
        fold_names=("ses-001_task-life01, ses-002_task-life01", "ü"),
        warnings=("Layer 0 has no variance.",),
    )
    path = tmp_path / "scores.npz"
    save_scores(path, scores)
    assert [p.name for p in tmp_path.iterdir()] == ["scores.npz"]
    read = load_scores(path)
    for field in fields(ModelScores):
        left, right = getattr(scores, field.name), getattr(read, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        else:
            assert left == right, field.name


def sound(path: Path, seconds: float) -> Path:
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(8000)
        stream.writeframes(np.zeros(int(8000 * seconds), dtype=np.int16).tobytes())
    return path


def test_probes_are_remembered_between_calls_until_the_file_changes(tmp_path):
    path, memory = sound(tmp_path / "a.wav", 1.0), tmp_path / "work" / "stimuli.json"
    first = ProbeCache(memory).probe("a.wav", tmp_path)
    assert first.audio_duration == pytest.approx(1.0, abs=0.01)
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert ProbeCache(memory).probe("a.wav", tmp_path) == first  # same size and time: not hashed again
    os.utime(path, ns=(0, 0))
    again = ProbeCache(memory).probe("a.wav", tmp_path)
    assert again.sha256 != first.sha256
    assert asdict(again) | {"sha256": first.sha256} == asdict(first)


@pytest.mark.parametrize("content", ["{", "", "[]"])
def test_a_damaged_memory_of_probes_costs_only_time(tmp_path, content):
    sound(tmp_path / "a.wav", 0.5)
    (tmp_path / "stimuli.json").write_text(content)
    stimulus = ProbeCache(tmp_path / "stimuli.json").probe("a.wav", tmp_path)
    assert stimulus == ProbeCache(None).probe("a.wav", tmp_path)
