"""Node that estimates the noise ceiling of one participant in one space."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, InputMultiPath, SimpleInterface, TraitedSpec, traits

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.design import feature_design
from bids_mllm.fit.participants import scores_from_participants
from bids_mllm.fit.ridge import alpha_grid
from bids_mllm.fit.targets import prepare_targets
from bids_mllm.interfaces.encoding import FitOptions, fit_options_from_json
from bids_mllm.interfaces.rows import Rows, make_rows, stack_targets
from bids_mllm.io.design import read_design
from bids_mllm.io.files import read_json
from bids_mllm.io.scores import save_ceiling
from bids_mllm.outcomes import CeilingMap
from bids_mllm.records import FloatArray, Fold, IntArray, ParticipantDesign
from bids_mllm.score.ceiling import all_subsets, extrapolate_ceiling, repeat_ceiling
from bids_mllm.score.held_out import score_columns

Method = Literal["repeats", "participants", "participants-exponential"]
# Volumes of repeats from which a ceiling says anything.
MIN_VOLUMES = 20
# Others of whom every subset is tried; of more, this many random subsets of each size.
ALL_SUBSETS_UP_TO = 5
SUBSETS_A_SIZE = 10
# Share of the rows of every side of every fold that another participant must have.
SHARED = 0.5
VOXEL_TILE = 4096


class _CeilingInputSpec(BaseInterfaceInputSpec):
    designs = InputMultiPath(File(exists=True), mandatory=True, desc="the participant's own design first")
    bolds = InputMultiPath(File(exists=True), mandatory=True, desc="JSONs that PrepareBold wrote, in the same order")
    cvs = traits.Str(mandatory=True, desc="JSON list: the options of each participant's fit, in the same order")
    method = traits.Str(mandatory=True)
    device = traits.Str("cpu", usedefault=True, nohash=True)
    max_block_bytes = traits.Int(2**31, usedefault=True, nohash=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    app_version = traits.Str(mandatory=True)


class _CeilingOutputSpec(TraitedSpec):
    ceiling = File(exists=True, desc="npz of a CeilingMap")


class EstimateCeiling(SimpleInterface):
    """Estimate how well any model could predict a participant on held-out rows."""

    input_spec = _CeilingInputSpec
    output_spec = _CeilingOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        options = [fit_options_from_json(json.dumps(one)) for one in json.loads(self.inputs.cvs)]
        designs = [read_design(Path(path)) for path in self.inputs.designs]
        files = [Path(read_json(Path(path))["series"]) for path in self.inputs.bolds]
        viewers = [
            Viewer(design, make_rows(design, delays=own.delays, cv=own.cv), series)
            for design, own, series in zip(designs, options, files, strict=True)
        ]
        if self.inputs.method == "repeats":
            ceiling = ceiling_from_repeats(viewers[0])
        else:
            ceiling = ceiling_from_participants(
                viewers, options[0], self.inputs.method, self.inputs.device, self.inputs.max_block_bytes
            )
        path = Path(runtime.cwd) / "ceiling.npz"
        save_ceiling(path, ceiling)
        self._results["ceiling"] = str(path)
        return runtime


@dataclass(frozen=True)
class Viewer:
    """A participant's design, rows and series."""

    design: ParticipantDesign
    rows: Rows
    series: Path

    def targets(self) -> FloatArray:
        """Rows of the BOLD, z-scored per run."""
        return stack_targets(np.load(self.series, mmap_mode="r"), self.rows)

    def moments(self) -> "list[tuple[str, float]]":
        """What each row shows: the stimulus and the second in it at which its window starts."""
        moments = []
        for windows, usable in zip(self.design.windows, self.rows.usable, strict=True):
            for volume in np.flatnonzero(usable):
                moments.append((windows.stim_files[windows.showing[volume]], float(windows.start[volume])))
        return moments


def ceiling_from_repeats(viewer: Viewer) -> CeilingMap:
    """Ceiling of single viewings from the held-out films that the participant saw more than once.

    Viewings are paired on the clock of the film, never by counting volumes.
    """
    matched = matched_repeats(viewer)
    if matched is None:
        raise DesignError(no_repeats(viewer.design.participant))
    Y = viewer.targets()
    tiles = [slice(start, start + VOXEL_TILE) for start in range(0, Y.shape[1], VOXEL_TILE)]
    ceiling = np.concatenate([repeat_ceiling(Y[:, tile][matched], averaged=False) for tile in tiles])
    facts = {
        "Method": "repeats: square root of the explainable variance of a single viewing, bias-corrected",
        "Viewings": len(matched),
        "Volumes": int(matched.shape[1]),
        "Of": "correlation with single viewings",
    }
    return CeilingMap(ceiling.astype(np.float32), facts)


def no_repeats(participant: str) -> str:
    """Say that a ceiling from repeats cannot be had."""
    return (
        f"sub-{participant} saw no held-out film more than once for {MIN_VOLUMES} volumes or more, so there is no "
        "noise ceiling from repeats; choose --noise-ceiling participants or none."
    )


def matched_repeats(viewer: Viewer) -> IntArray | None:
    """Rows (n_repeats, n_times) of all viewings of held-out films at common moments; None where there are too few."""
    pairs = repeat_rows(viewer)
    if not pairs:
        return None
    n_repeats = min(len(rows) for rows in pairs)
    matched: IntArray = np.concatenate([np.stack(rows[:n_repeats]) for rows in pairs], axis=1)
    return matched if matched.shape[1] >= MIN_VOLUMES else None


def repeat_rows(viewer: Viewer) -> list[list[IntArray]]:
    """For each held-out stimulus seen more than once, the rows of each viewing at common moments."""
    moments = viewer.moments()
    tested = np.unique(np.concatenate([fold.test for fold in viewer.rows.folds]))
    repetition_time = max(run.repetition_time for run in viewer.design.runs)
    found = []
    for stim_file in dict.fromkeys(moments[row][0] for row in tested):
        own = [row for row in tested if moments[row][0] == stim_file]
        viewings = _viewings(own, viewer, moments)
        if len(viewings) < 2:
            continue
        matched = _common(viewings, repetition_time / 2)
        if matched[0].size:
            found.append(matched)
    return found


def _viewings(
    own: Sequence[int], viewer: Viewer, moments: "Sequence[tuple[str, float]]"
) -> list[tuple[FloatArray, IntArray]]:
    """Times and rows of each playback: a new one begins with another run or where the film jumps back."""
    viewings: list[list[int]] = []
    for row in own:
        last = viewings[-1][-1] if viewings else None
        same = last is not None and viewer.rows.run_of_row[last] == viewer.rows.run_of_row[row]
        if same and last is not None and moments[row][1] > moments[last][1]:
            viewings[-1].append(row)
        else:
            viewings.append([row])
    return [(np.array([moments[row][1] for row in rows]), np.array(rows)) for rows in viewings]


def _common(viewings: Sequence[tuple[FloatArray, IntArray]], tolerance: float) -> list[IntArray]:
    """Rows of all viewings nearest to the moments of the first, where each has one within `tolerance` seconds."""
    times, rows = viewings[0]
    matched, near = [rows], np.ones(len(rows), dtype=bool)
    for other_times, other_rows in viewings[1:]:
        place = nearest(other_times, times)
        near &= np.abs(other_times[place] - times) <= tolerance
        matched.append(other_rows[place])
    return [rows[near] for rows in matched]


def nearest(sorted_times: FloatArray, times: FloatArray) -> IntArray:
    """Positions in `sorted_times` that are nearest to `times`."""
    after = np.clip(np.searchsorted(sorted_times, times), 1, len(sorted_times) - 1) if len(sorted_times) > 1 else 0
    before = np.maximum(np.asarray(after) - 1, 0)
    closer = np.abs(sorted_times[before] - times) <= np.abs(sorted_times[after] - times)
    place: IntArray = np.where(closer, before, after)
    return place


def ceiling_from_participants(
    viewers: Sequence[Viewer], options: FitOptions, method: str, device: str, max_block_bytes: int
) -> CeilingMap:
    """Ceiling of the first participant by predicting it from subsets of the others, extrapolated.

    The rows are those at whose moments all that take part have one, paired on the clock of the stimulus.
    """
    target, others = viewers[0], sharing_viewers(viewers)
    if len(others) < 2:
        raise DesignError(too_few_participants(target.design.participant, [v.design.participant for v in others]))
    own, matched = common_rows([target, *others])
    folds = tuple(restricted(fold, own) for fold in target.rows.folds)
    labels = [viewer.design.participant for viewer in others]
    kernels = {
        label: Gram(viewer, places).on(device) for label, viewer, places in zip(labels, others, matched, strict=True)
    }
    Y = target.targets()[own]
    low, high, n_alphas = options.alphas
    segment = target.rows.segment_of_row[own]

    def score(predictions: FloatArray, fold: Fold) -> FloatArray:
        return score_columns(Y, predictions, segment[fold.test], rows=fold.test, device=device).r

    subsets = chosen_subsets(labels)
    scores = scores_from_participants(
        kernels, prepare_targets(Y, folds, device=device), folds, subsets,
        alphas=alpha_grid(low, high, int(n_alphas)), score=score, device=device, max_block_bytes=max_block_bytes,
    )  # fmt: skip
    curve: Literal["exponential", "reliability"] = (
        "exponential" if method == "participants-exponential" else "reliability"
    )
    fitted = extrapolate_ceiling(np.array([len(subset) for subset in subsets]), scores, curve=curve)
    facts = {
        "Method": f"participants: prediction from subsets of the others, extrapolated with the {curve} curve",
        "Participants": labels,
        "Subsets": len(subsets),
        "Volumes": len(own),
        "Bootstraps": 100,
        "Of": "correlation with single viewings",
    }
    return CeilingMap(fitted.ceiling.astype(np.float32), facts)


def too_few_participants(participant: str, others: Sequence[str]) -> str:
    """Say that a ceiling from participants cannot be had."""
    named = ", ".join(others) if others else "nobody"
    return (
        "A noise ceiling from participants needs two or more others in the call who saw most of what "
        f"sub-{participant} saw, but there is {named}; name more with --participant-label or choose --noise-ceiling "
        "repeats or none."
    )


def sharing_viewers(viewers: Sequence[Viewer]) -> list[Viewer]:
    """Others who saw at least half of both sides of every fold of the first participant."""
    target = viewers[0]
    moments = target.moments()
    tolerance = max(run.repetition_time for run in target.design.runs) / 2
    sharing = []
    for viewer in viewers[1:]:
        _, found = _matched_rows(moments, target, viewer, tolerance)
        sides = [side for fold in target.rows.folds for side in (fold.train, fold.test)]
        if all(found[side].mean() >= SHARED for side in sides):
            sharing.append(viewer)
    return sharing


def chosen_subsets(labels: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """All subsets of up to five others; of more, ten random ones of each size, always the same."""
    if len(labels) <= ALL_SUBSETS_UP_TO:
        return all_subsets([*labels, ""], exclude="")
    rng = np.random.default_rng(0)
    subsets = {
        tuple(sorted(rng.choice(labels, size, replace=False).tolist()))
        for size in range(1, len(labels) + 1)
        for _ in range(SUBSETS_A_SIZE)
    }
    return tuple(sorted(subsets, key=lambda subset: (len(subset), subset)))


@dataclass(frozen=True)
class Gram:
    """The voxels of another participant at matched rows, brought to a Gram matrix tile by tile."""

    viewer: Viewer
    places: IntArray

    def on(self, device: str) -> Any:
        """Gram matrix (n_rows, n_rows) float64 on a device."""
        Y = self.viewer.targets()
        total = None
        for start in range(0, Y.shape[1], VOXEL_TILE):
            tile = feature_design(Y[self.places, start : start + VOXEL_TILE], device=device, form="kernel").values
            total = tile if total is None else total.add_(tile)
        return total


def common_rows(viewers: Sequence[Viewer]) -> tuple[IntArray, list[IntArray]]:
    """Rows of the first participant at moments that all have, and the matching rows of each other.

    A second viewing of the target is paired with the second of another where there is one, else with the first.
    """
    target = viewers[0]
    moments = target.moments()
    tolerance = max(run.repetition_time for run in target.design.runs) / 2
    near = np.ones(len(moments), dtype=bool)
    matched = []
    for viewer in viewers[1:]:
        places, found = _matched_rows(moments, target, viewer, tolerance)
        near &= found
        matched.append(places)
    own = np.flatnonzero(near)
    if own.size == 0:
        raise DesignError(
            f"sub-{target.design.participant} shares no moment of a stimulus with all of "
            f"{', '.join(viewer.design.participant for viewer in viewers[1:])}; choose --noise-ceiling repeats or none."
        )
    return own, [places[own] for places in matched]


def _matched_rows(
    moments: "Sequence[tuple[str, float]]", target: Viewer, viewer: Viewer, tolerance: float
) -> "tuple[IntArray, Any]":
    theirs = viewer.moments()
    places = np.zeros(len(moments), dtype=int)
    found = np.zeros(len(moments), dtype=bool)
    for stim_file in dict.fromkeys(name for name, _ in moments):
        own = _viewings([row for row, (name, _) in enumerate(moments) if name == stim_file], target, moments)
        other = _viewings([row for row, (name, _) in enumerate(theirs) if name == stim_file], viewer, theirs)
        for number, (times, rows) in enumerate(own):
            if other:
                other_times, other_rows = other[min(number, len(other) - 1)]
                place = nearest(other_times, times)
                places[rows] = other_rows[place]
                found[rows] = np.abs(other_times[place] - times) <= tolerance
    return places, found


def restricted(fold: Fold, kept: IntArray) -> Fold:
    """Return a fold over the rows `kept` alone, renumbered."""
    new = {int(row): place for place, row in enumerate(kept)}

    def renumbered(rows: IntArray) -> IntArray:
        return np.array([new[int(row)] for row in rows if int(row) in new], dtype=int)

    train = renumbered(fold.train)
    inner = []
    for fit, held in fold.inner:
        sides = [np.searchsorted(train, renumbered(fold.train[side])) for side in (fit, held)]
        if min(len(side) for side in sides):
            inner.append((sides[0], sides[1]))
    test = renumbered(fold.test)
    if not inner or not len(test):
        raise DesignError(f"In the fold that holds out {fold.name}, no moments are left that all participants saw.")
    return Fold(fold.name, train, test, tuple(inner))
