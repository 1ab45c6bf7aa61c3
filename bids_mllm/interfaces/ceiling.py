"""Node that estimates the noise ceiling of one participant in one space."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, InputMultiPath, SimpleInterface, TraitedSpec, traits

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.design import feature_design
from bids_mllm.fit.memory import joint_memory, part_of_targets
from bids_mllm.fit.participants import scores_from_participants
from bids_mllm.fit.ridge import alpha_grid
from bids_mllm.fit.targets import prepare_targets
from bids_mllm.interfaces.device import on_device
from bids_mllm.interfaces.encoding import FitOptions, fit_options_from_json
from bids_mllm.interfaces.rows import Rows, make_rows, stack_targets
from bids_mllm.interfaces.viewings import (
    ROUNDING,
    Moments,
    half_tr,
    moments_of,
    nearest,
    playbacks,
    viewing_groups,
    whole_viewings,
)
from bids_mllm.io.design import read_design
from bids_mllm.io.files import read_json
from bids_mllm.io.scores import save_ceiling
from bids_mllm.outcomes import CeilingMap
from bids_mllm.records import FloatArray, Fold, IntArray, ParticipantDesign
from bids_mllm.score.ceiling import all_subsets, extrapolate_ceiling, repeat_ceiling
from bids_mllm.score.held_out import score_fold, scored_predictions

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
    memory_bytes = traits.Int(2**34, usedefault=True, nohash=True, desc="memory that may be taken in all")
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
            with on_device(self.inputs.device):
                ceiling = ceiling_from_participants(
                    viewers, options[0], self.inputs.method, self.inputs.device, self.inputs.max_block_bytes,
                    memory_bytes=self.inputs.memory_bytes,
                )  # fmt: skip
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

    @property
    def n_voxels(self) -> int:
        """Voxels of the series; its values are not read."""
        return int(np.load(self.series, mmap_mode="r").shape[1])

    def targets(self, voxels: slice = slice(None)) -> FloatArray:
        """Rows of the BOLD in some voxels, z-scored per run."""
        return stack_targets(self.series, self.rows, voxels)

    def tiles(self, size: int) -> list[slice]:
        """Voxels in tiles of at most `size`."""
        return [slice(start, start + size) for start in range(0, self.n_voxels, size)]

    def moments(self) -> "list[tuple[str, float]]":
        """What each row shows: the stimulus and the second in it at which its window starts."""
        return moments_of(self.design, self.rows.usable)


def ceiling_from_repeats(viewer: Viewer) -> CeilingMap:
    """Ceiling of what is scored from the held-out films that the participant saw more than once.

    Viewings are paired on the clock of the film, never by counting volumes.
    """
    matched = matched_repeats(viewer)
    if matched is None:
        raise DesignError(no_repeats(viewer.design.participant))
    tiles = viewer.tiles(VOXEL_TILE)
    single = np.concatenate([repeat_ceiling(viewer.targets(tile)[matched], averaged=False) for tile in tiles])
    counts = scored_viewings(viewer.rows.folds)
    brought = ", brought to the mean of viewings by Spearman and Brown's formula" if max(counts) > 1 else ""
    facts = {
        "Method": f"repeats: square root of the explainable variance of a single viewing, bias-corrected{brought}",
        "Viewings": len(matched),
        "Volumes": int(matched.shape[1]),
        "Of": scored_words(counts),
    }
    return CeilingMap(ceiling_of_means(single, counts).astype(np.float32), facts)


def scored_viewings(folds: Sequence[Fold]) -> dict[int, int]:
    """Scored rows by the number of viewings that they are the mean of."""
    counts, n_rows = np.unique(np.concatenate([(fold.scored >= 0).sum(axis=0) for fold in folds]), return_counts=True)
    return dict(zip(counts.tolist(), n_rows.tolist(), strict=True))


def scored_words(counts: Mapping[int, int]) -> str:
    """Say which correlation a ceiling is of."""
    numbers = sorted(counts)
    if numbers == [1]:
        return "correlation with single viewings"
    if len(numbers) == 1:
        return f"correlation with the mean of {numbers[0]} viewings"
    return f"correlation with means of {numbers[0]} to {numbers[-1]} viewings, as they are scored"


def ceiling_of_means(single: FloatArray, counts: Mapping[int, int]) -> FloatArray:
    """Ceiling against means of viewings from that against one; mean over rows where their numbers differ."""
    reliability = single**2
    total: FloatArray = np.zeros_like(single)
    for n_viewings, n_rows in counts.items():
        total += n_rows * np.sqrt(n_viewings * reliability / (1 + (n_viewings - 1) * reliability))
    return total / sum(counts.values())


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
    """For each held-out stimulus seen more than once, the rows of each viewing at common moments.

    Viewings are those that are averaged where averages are scored.
    """
    tested = np.unique(np.concatenate([fold.test for fold in viewer.rows.folds]))
    groups = viewing_groups(tested, viewer.rows.run_of_row, viewer.moments(), half_tr(viewer.design))
    return [rows for rows in groups if len(rows) > 1]


def ceiling_from_participants(
    viewers: Sequence[Viewer],
    options: FitOptions,
    method: str,
    device: str,
    max_block_bytes: int,
    *,
    memory_bytes: int = 2**34,
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
    subsets = chosen_subsets(labels)
    n_test = max(len(fold.test) for fold in folds)
    need = joint_memory(
        len(target.rows.run_of_row), n_test, target.n_voxels, n_kernels=len(kernels) + 1, n_joint=1, wide=False
    )
    predict = Predictor(kernels, folds, subsets, target.rows.segment_of_row[own], options, device, max_block_bytes)
    tiles = target.tiles(part_of_targets(need, target.n_voxels, memory_bytes))
    scores = np.concatenate([predict(target.targets(tile)[own]) for tile in tiles], axis=1)
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
        "Of": scored_words(scored_viewings(folds)),
    }
    return CeilingMap(fitted.ceiling.astype(np.float32), facts)


@dataclass(frozen=True)
class Predictor:
    """Predicts voxels of one participant from subsets of the others, on the rows that all have."""

    kernels: Mapping[str, Any]
    folds: Sequence[Fold]
    subsets: Sequence[Sequence[str]]
    segment: IntArray
    options: FitOptions
    device: str
    max_block_bytes: int

    def __call__(self, Y: FloatArray) -> FloatArray:
        """Scores (n_subsets, n_voxels) of targets (n_rows, n_voxels)."""

        def score(predictions: FloatArray, fold: Fold) -> FloatArray:
            return score_fold(Y, scored_predictions(predictions, fold), fold, self.segment, device=self.device).r

        low, high, n_alphas = self.options.alphas
        return scores_from_participants(
            self.kernels, prepare_targets(Y, self.folds, device=self.device), self.folds, self.subsets,
            alphas=alpha_grid(low, high, int(n_alphas)), score=score, device=self.device,
            max_block_bytes=self.max_block_bytes,
        )  # fmt: skip


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
    tolerance = half_tr(target.design)
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
        total = None
        for voxels in self.viewer.tiles(VOXEL_TILE):
            Y = self.viewer.targets(voxels)[self.places]
            tile = feature_design(Y, device=device, form="kernel").values
            total = tile if total is None else total.add_(tile)
        return total


def common_rows(viewers: Sequence[Viewer]) -> tuple[IntArray, list[IntArray]]:
    """Rows of the first participant at moments that all have, and the matching rows of each other.

    A second viewing of the target is paired with the second of another where there is one, else with the first.
    """
    target = viewers[0]
    moments = target.moments()
    tolerance = half_tr(target.design)
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


def _matched_rows(moments: Moments, target: Viewer, viewer: Viewer, tolerance: float) -> "tuple[IntArray, Any]":
    theirs = viewer.moments()
    places = np.zeros(len(moments), dtype=int)
    found = np.zeros(len(moments), dtype=bool)
    for stim_file in dict.fromkeys(name for name, _ in moments):
        own = _seen(stim_file, moments, target.rows.run_of_row, tolerance)
        other = _seen(stim_file, theirs, viewer.rows.run_of_row, tolerance)
        for number, (times, rows) in enumerate(own):
            if other:
                other_times, other_rows = other[min(number, len(other) - 1)]
                place = nearest(other_times, times)
                places[rows] = other_rows[place]
                found[rows] = np.abs(other_times[place] - times) <= tolerance
    return places, found


def _seen(
    stim_file: str, moments: Moments, run_of_row: IntArray, tolerance: float
) -> list[tuple[FloatArray, IntArray]]:
    """Times and rows of each viewing of a stimulus, those in parts put together."""
    rows = [row for row, (name, _) in enumerate(moments) if name == stim_file]
    return whole_viewings(playbacks(rows, run_of_row, moments), tolerance + ROUNDING)


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
    return Fold(fold.name, train, test, tuple(inner), _restricted_viewings(fold, kept))


def _restricted_viewings(fold: Fold, kept: IntArray) -> IntArray | None:
    """Scored rows of which every viewing is kept, as positions in the test rows that are left."""
    if fold.viewings is None:
        return None
    left = np.isin(fold.test, kept)
    viewings = np.where(fold.viewings < 0, -1, (np.cumsum(left) - 1)[fold.viewings])
    whole = (left[fold.viewings] | (fold.viewings < 0)).all(axis=0)
    if not whole.any():
        raise DesignError(f"In the fold that holds out {fold.name}, no moments are left that all participants saw.")
    return viewings[:, whole]
