"""A small data set in the shape of movie10: events at the root, padding of runs lost downstream."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (3, 4, 2)
TR = 1.49
SPACE = "space-MNI152NLin2009cAsym"


def write_bold(
    path: Path,
    n_volumes: int,
    *,
    repetition_time: float = TR,
    unit: str = "sec",
    shape: tuple[int, ...] = SHAPE,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.zeros((*shape, n_volumes), dtype=np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", unit)
    image.header.set_zooms((1, 1, 1, repetition_time))
    image.to_filename(path)
    return path


def write_mask(path: Path, shape: tuple[int, ...] = SHAPE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.ones(shape, dtype=np.uint8), np.eye(4)).to_filename(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def dangle(path: Path) -> Path:
    """Replace a file by a link to annexed content that is not here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("../../.git/annex/objects/XX/MD5E-s1--0.nii.gz")
    return path


class Study:
    """Folders of a raw data set and its derivative, with writers for their runs."""

    def __init__(self, root: Path) -> None:
        self.raw = root / "raw"
        self.prep = self.raw / "derivatives" / "prep"
        write_json(self.raw / "dataset_description.json", {"Name": "films", "BIDSVersion": "1.0.1"})
        write_json(
            self.prep / "dataset_description.json",
            {
                "Name": "prep",
                "BIDSVersion": "1.4.0",
                "GeneratedBy": [{"Name": "fMRIPrep", "Version": "20.2.3"}],
            },
        )

    def stem(self, sub: str, ses: str | None, task: str, run: str | None = None) -> str:
        parts = [f"sub-{sub}", ses and f"ses-{ses}", f"task-{task}", run and f"run-{run}"]
        return "_".join(part for part in parts if part)

    def func(self, root: Path, sub: str, ses: str | None) -> Path:
        return root / f"sub-{sub}" / (f"ses-{ses}" if ses else "") / "func"

    def add(
        self,
        sub: str,
        ses: str | None,
        task: str,
        run: str | None = None,
        *,
        n_volumes: int = 5,
        sidecar: dict[str, Any] | None = None,
        space: str = SPACE,
        **options: Any,
    ) -> Path:
        """Write one preprocessed run with mask and confounds; return its BOLD."""
        folder, stem = self.func(self.prep, sub, ses), self.stem(sub, ses, task, run)
        bold = write_bold(folder / f"{stem}_{space}_desc-preproc_bold.nii.gz", n_volumes, **options)
        write_mask(folder / f"{stem}_{space}_desc-brain_mask.nii.gz")
        (folder / f"{stem}_desc-confounds_timeseries.tsv").write_text("csf\n" + "1\n" * n_volumes)
        if sidecar is not None:
            write_json(folder / f"{stem}_{space}_desc-preproc_bold.json", sidecar)
        return bold

    def events(self, path: str, stim_file: str = "life/life01.mkv") -> Path:
        """Write an events file of one row, `path` relative to the raw data set."""
        target = self.raw / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"onset\tduration\tstim_file\n0\t603.07\t{stim_file}\n")
        return target
