"""The values that the rooms hand to one another: frozen dataclasses on numpy alone.

Units are seconds (float) unless a name says otherwise; TR and window indices are integers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]
BoolArray = NDArray[np.bool_]
Media = Literal["video", "audio", "both", "table"]
Pooling = Literal["generated", "last", "instruction", "media", "stimulus"]
WindowPosition = Literal["end", "center", "start"]
#: What the columns of a series are: voxels, vertices of both hemispheres, CIFTI grayordinates, or parcels.
Form = Literal["volume", "surface", "grayordinates", "parcels"]
#: Spaces in which places of participants do not correspond.
#: How brain maps are drawn: rows of panels, in the order of a figure.
MAP_VIEWS = ("glass", "slices", "inflated", "flat")
NATIVE_SPACES = ("T1w", "T2w", "fsnative", "boldref", "scanner")


@dataclass(frozen=True)
class Showing:
    """One continuous playback of a stimulus within a run.

    Attributes
    ----------
    stim_file
        Path of the stimulus relative to the stimuli folder, with forward slashes.
    run_onset
        Seconds on the run's clock at which the playback starts (0 = the first stored volume;
        negative when it started before).
    media_onset
        Seconds on the stimulus clock at which the playback starts.
    duration
        Seconds of playback on the run's clock, or None where the events do not say.
    rate
        Seconds of the stimulus that pass in one second of the run; 1 unless the clocks drift.
    residual
        Largest distance in seconds of single frames from that line, where the events give every frame.
    """

    stim_file: str
    run_onset: float
    media_onset: float = 0.0
    duration: float | None = None
    rate: float = 1.0
    residual: float | None = None


@dataclass(frozen=True)
class Run:
    """One functional run of one participant in one space.

    `start_time` is the time of the first volume on the run's clock (BIDS StartTime), so volume i is
    at ``start_time + i * repetition_time``. `run` is an integer so that run-01 and run-1 are equal.
    `non_steady_state` counts the first volumes that are left out since magnetisation was not steady yet.
    `showings_rule` names the rule by which the events became showings. On surfaces `bold` is the left hemisphere and
    `bold_right` the right one. `segmentation` is the label of the parcels of a table, `dataset` the series within an
    HDF5 file. `derivative` is the name of the derivative data set that `bold` lies in; `denoised` tells that confounds
    were removed there. `missing` is a file that is named but not here, a link to content that was not fetched.
    """

    participant: str
    session: str | None
    task: str
    run: int | None
    space: str
    bold: Path | None
    mask: Path | None
    confounds: Path | None
    repetition_time: float
    start_time: float
    n_volumes: int
    events: Path | None = None
    showings: tuple[Showing, ...] = ()
    showings_rule: str = ""
    resolution: str | None = None
    non_steady_state: int = 0
    form: Form = "volume"
    bold_right: Path | None = None
    density: str | None = None
    segmentation: str | None = None
    dataset: str | None = None
    derivative: str = "fmriprep"
    denoised: bool = False
    missing: Path | None = None

    @property
    def place(self) -> str:
        """What the maps are in, as in file names, e.g. ``fsLR_den-91k``."""
        entities = {"seg": self.segmentation, "res": self.resolution, "den": self.density}
        return "_".join([self.space, *(f"{key}-{label}" for key, label in entities.items() if label)])

    @property
    def label(self) -> str:
        """BIDS-like name of the run without participant and space, e.g. ``ses-001_task-life01_run-1``."""
        parts = [f"ses-{self.session}"] if self.session else []
        parts.append(f"task-{self.task}")
        if self.run is not None:
            parts.append(f"run-{self.run}")
        return "_".join(parts)


@dataclass(frozen=True)
class DroppedRun:
    """A run that takes no part, and the reason in one sentence; `place` is the one that lacks it, None for all."""

    participant: str
    label: str
    reason: str
    place: str | None = None


@dataclass(frozen=True)
class Stimulus:
    """A media file: what it holds and which bytes it is.

    `video_duration` and `audio_duration` are seconds from the stimulus clock's zero to the end of the
    chosen stream (None = no such stream); `sha256` is of the whole file.
    """

    stim_file: str
    path: Path
    sha256: str
    video_duration: float | None
    audio_duration: float | None
    width: int = 0
    height: int = 0
    frame_rate: float = 0.0

    def duration(self, media: Media) -> float | None:
        """Seconds of the stream that a model of this kind of media reads; of the shorter one for both."""
        if media == "both":
            ends = (self.video_duration, self.audio_duration)
            return None if None in ends else min(end for end in ends if end is not None)
        return self.audio_duration if media == "audio" else self.video_duration


@dataclass(frozen=True)
class WindowGrid:
    """Equally spaced windows on the clock of one stimulus.

    Window k is ``[origin + k * step, origin + k * step + length)`` seconds; edges are computed from
    these floats, never by adding up rounded steps.
    """

    origin: float
    step: float
    length: float
    n_windows: int

    @property
    def starts(self) -> FloatArray:
        """Seconds at which each window starts, shape (n_windows,)."""
        return self.origin + np.arange(self.n_windows) * self.step

    @property
    def ends(self) -> FloatArray:
        """Seconds at which each window ends, shape (n_windows,)."""
        return self.starts + self.length


@dataclass(frozen=True)
class TRWindows:
    """For each volume of a run, the window of the stimulus that it is paired with.

    Attributes
    ----------
    showing : (n_trs,) int
        Index into `stim_files` and `grids`; -1 where no complete window belongs to the volume.
    index : (n_trs,) int
        Row of the window in the grid of its showing; -1 where masked.
    start, end : (n_trs,) float
        Edges of the window in seconds on the stimulus clock; NaN where nothing is shown.
    stim_files, grids
        One entry a showing.
    report
        Plain values for the JSON: rule, rows cut before and after, unexplained seconds.
    """

    run_label: str
    showing: IntArray
    index: IntArray
    start: FloatArray
    end: FloatArray
    stim_files: tuple[str, ...]
    grids: tuple[WindowGrid, ...]
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def valid(self) -> BoolArray:
        """True for the volumes that have a complete window, shape (n_trs,)."""
        return self.index >= 0


@dataclass(frozen=True)
class Clip:
    """One window of one stimulus: seconds on the stimulus clock."""

    stim_file: str
    index: int
    start: float
    end: float


@dataclass(frozen=True)
class MediaRequest:
    """What an extractor wants of each clip.

    Video: `n_frames` frames at the centres of equal parts of ``[start - lead, end)``, each the frame on
    screen at that instant, scaled to `frame_size` (height, width) when given. Audio: mono samples of
    ``[start - lead, end)`` at `sampling_rate` Hz. Both: the one and the other of the same seconds.
    """

    media: Literal["video", "audio", "both"]
    n_frames: int = 0
    frame_size: tuple[int, int] | None = None
    sampling_rate: int = 0
    lead: float = 0.0


@dataclass(frozen=True)
class ClipMedia:
    """The media of one clip: frames (n_frames, height, width, 3) uint8 with their times on the stimulus
    clock (n_frames,), or audio (n_samples,) float32 in [-1, 1] at `sampling_rate` Hz, or both.

    Where the file is damaged inside the clip, `fault` says how in one sentence, and there is no media.
    """

    clip: Clip
    frames: NDArray[np.uint8] | None = None
    frame_times: FloatArray | None = None
    audio: NDArray[np.float32] | None = None
    sampling_rate: int = 0
    fault: str | None = None


@dataclass(frozen=True)
class ClipJob:
    """What one model wants of one stimulus: clips in order of their start, drawn only as decoding reaches them."""

    clips: Iterable[Clip]
    request: MediaRequest


@dataclass(frozen=True)
class FastFeature:
    """A low-level feature of a stimulus in short bins, fast enough to tell when it was shown.

    `values` (n_bins,) hold bin k over ``[origin + k * step, origin + (k + 1) * step)`` seconds on the stimulus clock,
    NaN where it is not known. `name` is a word for tables and pages, e.g. ``sound``.
    """

    name: str
    origin: float
    step: float
    values: FloatArray


@dataclass(frozen=True)
class Instruction:
    """A text that the model follows while it sees a clip; `key` is alphanumeric (e.g. ``AR``)."""

    key: str
    name: str
    text: str
    group: str


@dataclass(frozen=True)
class Condition:
    """How one feature matrix of a model was read out: a pooling, and the instruction if it has one."""

    pooling: Pooling
    instruction: str | None = None

    @property
    def label(self) -> str:
        """Alphanumeric label for file names, e.g. ``generatedAR``, ``media``, ``stimulus``."""
        return f"{self.pooling}{self.instruction or ''}"


@dataclass(frozen=True)
class ModelSpec:
    """A model as the registry records it.

    `key` is the label of file names, letters and digits with ``+random`` behind it for a control, `source` a
    hub id or a folder ('' for a model without weights), `parameters` whatever its family needs and that changes
    a number. `layers` counts the embedding, `memory_gb` is what the weights take on the device in GB; None
    where it is not known. With `weights` ``random`` the configuration is the source's and the weights are
    drawn from a seed.
    """

    key: str
    family: str
    media: Media
    source: str = ""
    revision: str | None = None
    kind: str = "low-level"
    licence: str = ""
    commercial: bool | None = None
    dtype: str = "float32"
    layers: int | None = None
    width: int | None = None
    memory_gb: float | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def instructed(self) -> bool:
        """Whether the model follows instructions."""
        return self.kind.startswith(("instruction-tuned", "in-context"))


@dataclass(frozen=True)
class FeatureSpace:
    """The columns of one model x condition x layer. Layer 0 is the embedding."""

    model: str
    condition: Condition
    layer: int

    @property
    def label(self) -> str:
        """Readable name, e.g. ``qwen25vl7b generatedAR layer 12``."""
        return f"{self.model} {self.condition.label} layer {self.layer}"


@dataclass(frozen=True)
class Fold:
    """One outer split: rows of the stacked samples, and the inner splits of its training rows.

    `inner` holds pairs (train, validation) of positions INTO `train`. `name` says what is held out. `viewings`
    (n_viewings, n_scored) are positions INTO `test` of the rows that are averaged before they are scored, -1 where a
    moment has fewer viewings; None where every row is scored by itself.
    """

    name: str
    train: IntArray
    test: IntArray
    inner: tuple[tuple[IntArray, IntArray], ...]
    viewings: IntArray | None = None

    @property
    def scored(self) -> IntArray:
        """Rows behind each scored row, shape (n_viewings, n_scored); -1 where a moment has fewer viewings."""
        if self.viewings is None:
            return self.test[None]
        return np.where(self.viewings < 0, -1, self.test[self.viewings])


@dataclass(frozen=True)
class RidgeFit:
    """Ridge of one feature space on one training set.

    Attributes
    ----------
    predictions : (n_test, n_targets) float
    best_alphas : (n_targets,) float
    cv_r2 : (n_targets,) float
        R2 over the inner validation rows at the best alpha; from training rows only.
    """

    predictions: FloatArray
    best_alphas: FloatArray
    cv_r2: FloatArray


@dataclass(frozen=True)
class Atlas:
    """Regions among the places of the maps that have scores; regions may overlap.

    Attributes
    ----------
    name
        Label in file names.
    n_voxels
        Places that have scores.
    members
        For each region the positions (n_members,) of its places among these, increasing.
    names
        Of the regions.
    kinds
        For each region area, group (of areas) or set (of groups).
    indices
        Label of each area in its file; None for groups and sets.
    total_voxels
        Places of each region on the whole grid, with or without scores.
    hierarchy
        Rank of each region in the cortical hierarchy, NaN where none is known; empty where none is.
    notes
        Sentences for the sidecars: terms, and what the atlas lacks.
    sources
        For each group and set what it is and where that comes from.
    """

    name: str
    n_voxels: int
    members: tuple[IntArray, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    indices: tuple[int | None, ...]
    total_voxels: tuple[int, ...]
    hierarchy: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def flat_members(self) -> tuple[IntArray, IntArray]:
        """Region and position of every membership, each (n_memberships,)."""
        region = np.repeat(np.arange(len(self.members)), [len(own) for own in self.members])
        return region, np.concatenate([np.zeros(0, dtype=np.int64), *self.members])


@dataclass(frozen=True)
class ParticipantDesign:
    """What one participant's encoding in one space rests on.

    `test_runs` are indices into `runs` that are held out as a fixed test set, None where runs take turns.
    `windows` has one entry a run.
    """

    participant: str
    space: str
    runs: tuple[Run, ...]
    windows: tuple[TRWindows, ...]
    dropped: tuple[DroppedRun, ...]
    test_runs: tuple[int, ...] | None

    @property
    def place(self) -> str:
        """What the maps are in, as in file names, e.g. ``fsLR_den-91k``."""
        return self.runs[0].place
