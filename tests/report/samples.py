"""Records and pages made up for the tests of the report."""

from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image

from bids_mllm.records import (
    Condition,
    DroppedRun,
    FloatArray,
    Fold,
    Instruction,
    IntArray,
    ModelSpec,
    Run,
    Showing,
    TRWindows,
    WindowGrid,
)
from bids_mllm.report.methods import MethodsFacts, ModelFacts

TR = 1.49
INSTRUCTIONS = (
    Instruction("AR", "Action Recognition", "What are the main events captured in the video?", "perceptual"),
    Instruction("NU", "Narrative Understanding", "Summarize the main storyline of the movie.", "language"),
    Instruction("SU", "Spatial Understanding", "Where is this video taken from?", "spatiotemporal"),
)
QWEN = ModelSpec(
    "qwen25vl7b", "qwen25vl", "video", source="Qwen/Qwen2.5-VL-7B-Instruct", revision="cc594898",
    kind="instruction-tuned video", licence="apache-2.0", dtype="bfloat16",
    parameters={"max_frames": 16, "order": "media-first"},
)  # fmt: skip
MOTION = ModelSpec("motionenergy", "motionenergy", "video", parameters={"fps": 24})


def make_run(task: str, *, n_volumes: int = 60, run: int | None = None, session: str = "001") -> Run:
    showing = Showing(f"films/{task}.mkv", run_onset=3.0, duration=80.0)
    return Run(
        participant="01", session=session, task=task, run=run, space="MNI152NLin2009cAsym", bold=None,
        mask=None, confounds=None, repetition_time=TR, start_time=0.0, n_volumes=n_volumes,
        events=Path("e.tsv"), showings=(showing,), showings_rule="one playback from the first row",
    )  # fmt: skip


def make_windows(run: Run, *, before: int = 3, after: int = 4) -> TRWindows:
    n = run.n_volumes
    index = np.arange(n) - before
    index[:before] = -1
    index[n - after :] = -1
    start = np.where(index >= 0, index * TR, np.nan)
    grid = WindowGrid(0.0, TR, TR, n)
    report = {
        "rule": run.showings_rule,
        "stimuli": [{"stim_file": run.showings[0].stim_file, "media_duration": 80.25}],
        "unexplained_seconds": 0.25,
    }
    return TRWindows(
        run.label,
        np.where(index >= 0, 0, -1),
        index,
        start,
        start + TR,
        (run.showings[0].stim_file,),
        (grid,),
        report,
    )


def make_folds(n_runs: int, rows_a_run: int) -> tuple[tuple[Fold, ...], IntArray]:
    """Leave one run out; one row at each end of the held-out run is left unused."""
    run_of_row = np.repeat(np.arange(n_runs), rows_a_run)
    folds = []
    for held_out in range(n_runs):
        train = np.flatnonzero(run_of_row != held_out)
        test = np.flatnonzero(run_of_row == held_out)[1:-1]
        half = len(train) // 2
        inner = (
            (np.arange(half), np.arange(half, len(train))),
            (np.arange(half, len(train)), np.arange(half)),
        )
        folds.append(Fold(f"run {held_out + 1}", train, test, inner))
    return tuple(folds), run_of_row


def head_grid(voxel_size: float = 8.0) -> tuple[FloatArray, FloatArray]:
    """Return an ellipsoid of a head in MNI space: NaN outside, 0 inside, and the affine."""
    affine = np.diag([voxel_size, voxel_size, voxel_size, 1.0])
    affine[:3, 3] = (-72.0, -108.0, -56.0)
    shape = tuple(int(extent / voxel_size) for extent in (152, 184, 136))
    world = world_coordinates(np.zeros(shape), affine)
    inside = (((world - (0, -17, 10)) / (66, 82, 58)) ** 2).sum(axis=-1) < 1.0
    return np.where(inside, 0.0, np.nan), affine


def world_coordinates(values: FloatArray, affine: FloatArray) -> FloatArray:
    """Return the world millimetres of every voxel, shape (*values.shape, 3)."""
    voxels = np.moveaxis(np.indices(values.shape), 0, -1)
    return np.asarray(voxels @ affine[:3, :3].T + affine[:3, 3], dtype=float)


def blob_image(centre: tuple[float, float, float], *, height: float = 0.5, width: float = 14.0) -> Nifti1Image:
    """Return a map that is 0 in the head but for a bump at `centre` (MNI millimetres)."""
    values, affine = head_grid()
    distance = ((world_coordinates(values, affine) - centre) ** 2).sum(axis=-1)
    return Nifti1Image(values + height * np.exp(-distance / (2 * width**2)), affine)


def make_facts(**changes: object) -> MethodsFacts:
    values: dict[str, object] = {
        "app_version": "0.1.0", "fmriprep_versions": ("20.2.3",), "participants": ("01", "02"), "n_runs": 12,
        "space": "MNI152NLin2009cAsym", "repetition_times": (1.49,), "window_length": 2.98,
        "window_position": "end", "delays": (1, 2, 3, 4, 5), "confounds_strategy": "motion6",
        "confound_columns": ("trans_x", "rot_z"), "high_pass": 0.0078, "models": (QWEN_FACTS, MOTION_FACTS),
        "alphas": tuple(np.logspace(-1, 8, 10)), "himalaya_version": "0.4.11",
        "cv_scheme": "Each film was held out in turn.", "scores": ("r", "r2"),
        "library_versions": {"torch": "2.13.0", "numpy": "2.4.6"},
    }  # fmt: skip
    return MethodsFacts(**(values | changes))  # type: ignore[arg-type]


QWEN_FACTS = ModelFacts(
    "qwen25vl7b", "qwen25vl", "video", "instruction-tuned video", 29, 3584, source=QWEN.source,
    revision="cc594898", dtype="bfloat16", poolings=("generated", "media"), instructions=INSTRUCTIONS,
    max_new_tokens=8, n_frames=16,
)  # fmt: skip
MOTION_FACTS = ModelFacts("motionenergy", "motionenergy", "video", "low-level", 1, 2530, poolings=("stimulus",))
CONDITIONS = tuple(Condition("generated", i.key) for i in INSTRUCTIONS)
DROPPED = (DroppedRun("01", "ses-002_task-wolf16", "its stimulus wolf/wolf16.mkv is a dangling link."),)
