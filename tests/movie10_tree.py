"""Movie10 by name: the raw data set and its fMRIPrep derivative as they lie on disk, of tiny images or of links."""

import gzip
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

#: The list of the data set itself, where it is at hand, and a small one of the same structure.
REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "movie10_layout.json"
SMALL = Path(__file__).parent / "data" / "movie10_small.json"
TR = 1.49
ANNEXED = "../../.git/annex/objects/XX/YY/MD5E-s1--0/MD5E-s1--0"
#: Vertices of each hemisphere and voxels below them that the tiny CIFTI files have.
N_VERTICES, N_VOXELS = 6, 3
#: What fMRIPrep 20.2 writes for a run beside what is read: figures, transforms, segmentations, references.
OTHERS = (
    "desc-confounds_timeseries.json", "space-MNI152NLin2009cAsym_boldref.nii.gz", "space-T1w_boldref.nii.gz",
    "space-MNI152NLin2009cAsym_desc-brain_mask.json", "space-T1w_desc-brain_mask.json",
    "space-MNI152NLin2009cAsym_desc-aseg_dseg.nii.gz", "space-MNI152NLin2009cAsym_desc-aparcaseg_dseg.nii.gz",
    "space-T1w_desc-aseg_dseg.nii.gz", "space-T1w_desc-aparcaseg_dseg.nii.gz",
    "from-scanner_to-T1w_mode-image_xfm.txt", "from-T1w_to-scanner_mode-image_xfm.txt",
)  # fmt: skip
FIGURES = (
    "desc-summary_bold.html", "desc-validation_bold.html", "desc-carpetplot_bold.svg", "desc-rois_bold.svg",
    "desc-compcorvar_bold.svg", "desc-confoundcorr_bold.svg", "desc-flirtbbr_bold.svg", "desc-bbregister_bold.svg",
    "desc-sdc_bold.svg", "desc-about_bold.html", "desc-reconall_bold.svg", "desc-boldref_bold.svg",
)  # fmt: skip


#: And at its root.
AT_ROOT = (
    "logs/CITATION.bib", "logs/CITATION.html", "logs/CITATION.md", "logs/CITATION.tex", "desc-aseg_dseg.tsv",
    "desc-aparcaseg_dseg.tsv", "README", "CHANGES", "LICENSE", ".bidsignore", "participants.tsv",
)  # fmt: skip


@dataclass(frozen=True)
class RawRun:
    """One run of the list; `run` and `dup` are empty where its name has none."""

    sub: str
    ses: str
    task: str
    run: str
    dup: str
    n_volumes: int

    @property
    def stem(self) -> str:
        """Entities of the raw name."""
        return "_".join([self.sub, self.ses, f"task-{self.task}", *([f"run-{self.run}"] if self.run else [])])

    @property
    def prep_stem(self) -> str:
        """Entities of the preprocessed name, where the run has lost its zero."""
        run = [f"run-{int(self.run)}"] if self.run else []
        return "_".join([self.sub, self.ses, f"task-{self.task}", *run])


def layout() -> dict[str, Any]:
    """Return the list of the data set, of the whole one where it is at hand."""
    path = REFERENCE if REFERENCE.is_file() else SMALL
    return dict(json.loads(path.read_text(encoding="utf-8")))


def listed(content: Mapping[str, Any]) -> Iterator[RawRun]:
    """Yield every run of a list, aborted ones too."""
    for sub, sessions in content["runs"].items():
        for ses, runs in sessions.items():
            for task, run, dup, n_volumes in runs:
                yield RawRun(sub, ses, task, run, dup, n_volumes)


@cache
def nifti(n_volumes: int) -> bytes:
    """Return a gzipped NIfTI of 2 x 2 x 1 voxels; 3-D for 0 volumes."""
    shape = (2, 2, 1, n_volumes) if n_volumes else (2, 2, 1)
    image = nib.Nifti1Image(np.ones(shape, np.uint8), np.diag([2.0, 2.0, 2.0, 1.0]))
    if n_volumes:
        image.header.set_zooms((2, 2, 2, TR))
        image.header.set_xyzt_units("mm", "sec")
    return gzip.compress(image.to_bytes(), compresslevel=1)


def brain_models(n_vertices: int = N_VERTICES) -> Any:
    """Return an axis of two cortices, each without its last vertex, and one nucleus."""
    keep = np.arange(n_vertices - 1)
    sides = [
        nib.cifti2.BrainModelAxis.from_surface(keep, n_vertices, name=f"CIFTI_STRUCTURE_CORTEX_{side}")
        for side in ("LEFT", "RIGHT")
    ]
    voxels = np.zeros((2, 2, 1), bool)
    voxels.flat[:N_VOXELS] = True
    return sides[0] + sides[1] + nib.cifti2.BrainModelAxis.from_mask(voxels, affine=np.eye(4), name="thalamus_left")


@cache
def cifti(n_volumes: int, n_vertices: int = N_VERTICES) -> bytes:
    """Return a dense CIFTI series of few grayordinates."""
    axis = brain_models(n_vertices)
    values = np.zeros((n_volumes, len(axis)), np.float32)
    image = nib.Cifti2Image(values, header=(nib.cifti2.SeriesAxis(0, TR, n_volumes), axis))
    image.update_headers()
    return bytes(image.to_bytes())


def _put(path: Path, content: bytes | str | None) -> None:
    """Write a file; None makes a link to content that was not fetched."""
    if content is None:
        path.symlink_to(ANNEXED + "".join(path.suffixes))
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _describe(root: Path, **content: Any) -> None:
    root.mkdir(parents=True, exist_ok=True)
    _put(root / "dataset_description.json", json.dumps({"Name": root.name, **content}))


def build(
    root: Path, content: Mapping[str, Any], *, participants: Sequence[str] = (), dangling: bool = False
) -> tuple[Path, Path]:
    """Write the raw data set and its derivative below `root`; return both.

    Parameters
    ----------
    root
    content
        The list of the data set.
    participants
        Labels with ``sub-``; all of the list when empty.
    dangling
        Links to content that was not fetched instead of tiny images.
    """
    raw, prep = root / "movie10", root / "movie10.fmriprep"
    runs = [run for run in listed(content) if not participants or run.sub in participants]
    _raw_root(raw, content, runs)
    _describe(
        prep, BIDSVersion="1.4.0", DatasetType="derivative", GeneratedBy=[{"Name": "fMRIPrep", "Version": "20.2.3"}]
    )
    pickles = set(content["physio_json_that_are_pickles"])
    for run in runs:
        for base in (raw, prep):
            (base / run.sub / run.ses / "func").mkdir(parents=True, exist_ok=True)
        (prep / run.sub / "figures").mkdir(exist_ok=True)
        _raw_run(raw, run, pickles)
        if not run.dup:
            _preprocessed(prep, run, dangling=dangling)
    for sub in {run.sub for run in runs}:
        (prep / sub / "ses-099" / "func").mkdir(parents=True)
        _put(prep / f"{sub}.html", "")
    (prep / "logs").mkdir()
    for name in AT_ROOT:
        _put(prep / name, "")
    return raw, prep


def _raw_root(raw: Path, content: Mapping[str, Any], runs: Sequence[RawRun]) -> None:
    _describe(raw, BIDSVersion="1.0.1")
    (raw / "stimuli").mkdir()
    aborted = [f"{run.sub}/{run.ses}/func/{run.stem}_bold{run.dup}.*" for run in runs if run.dup]
    _put(raw / ".bidsignore", "\n".join(aborted) + "\n")
    _put(raw / "participants.tsv", "participant_id\n" + "\n".join(sorted({run.sub for run in runs})) + "\n")
    for task, shown in content["stimuli"].items():
        _put(raw / f"task-{task}_bold.json", json.dumps({"TaskName": task, "RepetitionTime": TR}))
        row = "\t".join([shown["onset"], shown["duration"], shown["stim_file"]])
        _put(raw / f"task-{task}_events.tsv", f"onset\tduration\tstim_file\n{row}\n")


def _raw_run(raw: Path, run: RawRun, pickles: set[str]) -> None:
    folder = raw / run.sub / run.ses / "func"
    _put(folder / f"{run.stem}_bold{run.dup}.nii.gz", None)
    _put(folder / f"{run.stem}_bold{run.dup}.json", json.dumps({"TaskName": run.task}))
    physio = folder / f"{run.stem}_physio.json"
    if not run.dup:
        is_pickle = physio.relative_to(raw).as_posix() in pickles
        _put(physio, pickle.dumps({"SamplingFrequency": 1000}, protocol=4) if is_pickle else "{}")
        _put(folder / f"{run.stem}_physio.tsv.gz", None)


def _preprocessed(prep: Path, run: RawRun, *, dangling: bool) -> None:
    folder = prep / run.sub / run.ses / "func"
    stem = f"{folder}/{run.prep_stem}_"
    delay = json.dumps({"DelayTime": 0.1175, "SkullStripped": False, "SliceTimingCorrected": False})
    bold = None if dangling else nifti(run.n_volumes)
    for space in ("MNI152NLin2009cAsym", "T1w"):
        _put(Path(f"{stem}space-{space}_desc-preproc_bold.nii.gz"), bold)
        _put(Path(f"{stem}space-{space}_desc-preproc_bold.json"), delay)
        _put(Path(f"{stem}space-{space}_desc-brain_mask.nii.gz"), None if dangling else nifti(0))
    dense = f"{stem}space-fsLR_den-91k_bold"
    _put(Path(f"{dense}.dtseries.nii"), None if dangling else cifti(run.n_volumes))
    _put(Path(f"{dense}.dtseries.json"), json.dumps({"grayordinates": "91k", "space": "fsLR"}))
    _put(Path(f"{dense}.json"), json.dumps({"RepetitionTime": TR, "SkullStripped": False}))
    _put(Path(f"{stem}desc-confounds_timeseries.tsv"), "csf\ttrans_x\n" + "0.5\t0\n" * run.n_volumes)
    for name in OTHERS:
        _put(Path(f"{stem}{name}"), None if name.endswith(".nii.gz") else "{}")
    for name in FIGURES:
        _put(prep / run.sub / "figures" / f"{run.prep_stem}_{name}", "")
