"""The folders of the simulated data set: raw BIDS, and derivatives in the shape that fMRIPrep gives them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bids_mllm import __version__
from bids_mllm.records import FloatArray, Stimulus
from bids_mllm.simulate.brain import Brain
from bids_mllm.simulate.confounds import confound_metadata, confound_table
from bids_mllm.simulate.design import Viewing
from bids_mllm.simulate.files import write_image, write_json, write_table

BIDS_VERSION = "1.11.1"
SPACE = "MNI152NLin2009cAsym"
README = """# A simulated data set

Every voxel of this data set answers to a known cause: motion energy, the mel spectrogram, one layer
of a tiny multimodal model with random weights, or nothing. `sourcedata/truth` says which, and how well
each voxel can be predicted at best. No person was scanned. The layout is that of movie10, a data set of
the Courtois project on neuronal modelling.
"""
RAW_SHAPE = (4, 4, 3)


def write_raw(
    root: Path, stimuli: Mapping[str, Stimulus], participants: Sequence[str], *, repetition_time: float
) -> None:
    """Write what the raw data set holds at its root: descriptions, events and acquisition sidecars."""
    write_json(
        root / "dataset_description.json",
        {
            "Name": "Simulated film viewing with planted responses",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "raw",
            "License": "CC0-1.0",
            "Authors": ["bids-mllm developers"],
            "GeneratedBy": [{"Name": "bids-mllm-simulate", "Version": __version__}],
        },
    )
    (root / "README.md").write_text(README, encoding="utf-8")
    (root / ".bidsignore").write_text("models\n", encoding="utf-8")
    write_table(root / "participants.tsv", pd.DataFrame({"participant_id": [f"sub-{p}" for p in participants]}))
    for task, stimulus in stimuli.items():
        seconds = max(d for d in (stimulus.video_duration, stimulus.audio_duration) if d is not None)
        row = {"onset": [0], "duration": [round(seconds, 3)], "stim_file": [stimulus.stim_file]}
        write_table(root / f"task-{task}_events.tsv", pd.DataFrame(row))
        write_json(root / f"task-{task}_bold.json", {"TaskName": task, "RepetitionTime": repetition_time})


def write_raw_run(root: Path, participant: str, viewing: Viewing, *, repetition_time: float) -> None:
    """Write a raw image of the right number of volumes; its few voxels hold a constant."""
    folder = root / f"sub-{participant}" / f"ses-{viewing.session}" / "func"
    values = np.full((*RAW_SHAPE, viewing.n_volumes), 1000, dtype=np.int16)
    path = folder / f"{viewing.name(participant, padded=True)}_bold.nii.gz"
    write_image(path, values, np.diag([40.0, 40.0, 40.0, 1.0]), repetition_time=repetition_time)


def write_derivative(root: Path) -> None:
    """Write the description of the fMRIPrep-shaped derivative."""
    write_json(
        root / "dataset_description.json",
        {
            "Name": "fMRIPrep-shaped simulation",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "License": "CC0-1.0",
            "GeneratedBy": [
                {
                    "Name": "fMRIPrep",
                    "Version": "0.0.0",
                    "Description": "Simulated by bids-mllm, not preprocessed",
                }
            ],
        },
    )
    (root / "README.md").write_text(README, encoding="utf-8")
    # BIDS has no name for confound tables yet; fMRIPrep ships the same lines.
    (root / ".bidsignore").write_text("*_timeseries.tsv\n*_timeseries.json\n", encoding="utf-8")


def write_derivative_run(
    root: Path,
    participant: str,
    viewing: Viewing,
    brain: Brain,
    bold: FloatArray,
    motion: FloatArray,
    *,
    repetition_time: float,
    rng: np.random.Generator,
) -> None:
    """Write the preprocessed series, the mask and the confounds of one run.

    Parameters
    ----------
    bold : (n_volumes, n_voxels) float
        Intensities of the voxels of the mask.
    motion : (n_volumes, 6) float
        Translations in mm and rotations in radians.
    rng
        Of the confounds that carry nothing.
    """
    folder = root / f"sub-{participant}" / f"ses-{viewing.session}" / "func"
    name = viewing.name(participant, padded=False)
    stem = folder / f"{name}_space-{SPACE}"
    series = brain.volume(bold.T.astype(np.float32))
    write_image(Path(f"{stem}_desc-preproc_bold.nii.gz"), series, brain.affine, repetition_time=repetition_time)
    write_json(
        Path(f"{stem}_desc-preproc_bold.json"),
        {
            "TaskName": viewing.task,
            "RepetitionTime": repetition_time,
            "SliceTimingCorrected": False,
            "SkullStripped": False,
        },
    )
    write_image(Path(f"{stem}_desc-brain_mask.nii.gz"), brain.mask.astype(np.uint8), brain.affine)
    write_json(Path(f"{stem}_desc-brain_mask.json"), {"Type": "Brain"})
    table = confound_table(bold, motion, repetition_time=repetition_time, rng=rng)
    write_table(folder / f"{name}_desc-confounds_timeseries.tsv", table)
    write_json(folder / f"{name}_desc-confounds_timeseries.json", confound_metadata(table))
