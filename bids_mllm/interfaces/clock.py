"""Nodes that check the clocks: fast features of each stimulus, and the lag at which BOLD follows them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, InputMultiPath, SimpleInterface, TraitedSpec, traits

from bids_mllm.align.windows import volume_times
from bids_mllm.features.fast import fast_features, fast_jobs
from bids_mllm.interfaces.features import stimulus_from_json
from bids_mllm.io.clock import load_fast_features, save_clock, save_fast_features
from bids_mllm.io.design import read_design
from bids_mllm.io.files import read_json
from bids_mllm.io.films import read_film
from bids_mllm.outcomes import ClockCheck
from bids_mllm.records import FastFeature, FloatArray, ParticipantDesign, Run, Showing
from bids_mllm.score.lag import Viewing, lag_curves, lags_of

# At most so many voxels, evenly spaced, and so many values of BOLD in memory.
MOST_VOXELS = 20_000
MOST_VALUES = 2**26
# Volumes count from this many seconds into a playback, when a response to it is there to be seen.
SETTLED = 6.0
FEWEST_VOLUMES = 10

Features = Mapping[str, tuple[FastFeature, ...]]


class _FastInputSpec(BaseInterfaceInputSpec):
    stimulus = traits.Str(mandatory=True, desc="JSON of a Stimulus")
    app_version = traits.Str(mandatory=True)


class _FastOutputSpec(TraitedSpec):
    features = File(exists=True, desc="npz of the fast features of the stimulus")


class ReadFastFeatures(SimpleInterface):
    """Read the level of the sound and the change of the pictures of one stimulus."""

    input_spec = _FastInputSpec
    output_spec = _FastOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        stimulus = stimulus_from_json(self.inputs.stimulus)
        features = fast_features(stimulus, read_film(stimulus, list(fast_jobs(stimulus).values())))
        path = Path(runtime.cwd) / "fast.npz"
        save_fast_features(path, stimulus.stim_file, features)
        self._results["features"] = str(path)
        return runtime


class _ClockInputSpec(BaseInterfaceInputSpec):
    design = File(exists=True, mandatory=True, desc="JSON of a ParticipantDesign")
    bold = File(exists=True, mandatory=True, desc="JSON that PrepareBold wrote")
    features = InputMultiPath(File(exists=True), mandatory=True, desc="npz files that ReadFastFeatures wrote")
    app_version = traits.Str(mandatory=True)


class _ClockOutputSpec(TraitedSpec):
    clock = File(exists=True, desc="npz of a ClockCheck")


class CheckClock(SimpleInterface):
    """Find the lag at which the best voxels of a participant follow fast features of what was shown."""

    input_spec = _ClockInputSpec
    output_spec = _ClockOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        design = read_design(Path(self.inputs.design))
        series = np.load(Path(read_json(Path(self.inputs.bold))["series"]), mmap_mode="r")
        check = check_clock(design, series, dict(load_fast_features(Path(path)) for path in self.inputs.features))
        path = Path(runtime.cwd) / "clock.npz"
        save_clock(path, check)
        self._results["clock"] = str(path)
        return runtime


def check_clock(design: ParticipantDesign, series: FloatArray, features: Features) -> ClockCheck:
    """Return the lag curves of one participant.

    Parameters
    ----------
    design
    series : (n_volumes of all runs, n_voxels) float
    features
        Of each stimulus that is a media file.
    """
    viewings = viewings_of(design, series, features)
    lags = lags_of(min(run.repetition_time for run in design.runs))
    curves = lag_curves(viewings, lags)
    facts = {
        "Viewings": len(viewings),
        "Volumes": sum(len(viewing.times) for viewing in viewings),
        "Voxels": len(_voxels(series)),
        "Best": "the hundredth of the voxels that follow best, chosen on one half of each viewing, drawn on the other",
    }
    return ClockCheck(
        features=tuple(curves),
        lags=lags,
        r=np.array([curve.r for curve in curves.values()]).reshape(len(curves), len(lags)),
        peaks=np.array([curve.peak for curve in curves.values()]),
        strengths=np.array([curve.strength for curve in curves.values()]),
        facts=facts,
    )


def viewings_of(design: ParticipantDesign, series: FloatArray, features: Features) -> list[Viewing]:
    """Return the volumes of every playback on the clock of its stimulus, on voxels that are evenly spaced."""
    columns = _voxels(series)
    viewings, first = [], 0
    for run in design.runs:
        times = volume_times(run.n_volumes, repetition_time=run.repetition_time, start_time=run.start_time)
        for showing in run.showings:
            fast = tuple(_while_shown(one, showing) for one in features.get(showing.stim_file, ()))
            rows = _rows(run, showing, times, fast)
            if len(rows) >= FEWEST_VOLUMES:
                on_media = showing.media_onset + showing.rate * (times[rows] - showing.run_onset)
                own = np.asarray(series[first + rows[0] : first + rows[-1] + 1, columns])
                viewings.append(Viewing(on_media, own, fast))
        first += run.n_volumes
    return viewings


def _voxels(series: FloatArray) -> Any:
    n_volumes, n_voxels = series.shape
    return np.arange(0, n_voxels, max(1, -(-n_voxels // min(MOST_VOXELS, max(1, MOST_VALUES // n_volumes)))))


def _while_shown(feature: FastFeature, showing: Showing) -> FastFeature:
    """Return the feature, unknown where the playback did not show it."""
    edges = feature.origin + feature.step * np.arange(len(feature.values))
    end = np.inf if showing.duration is None else showing.media_onset + showing.rate * showing.duration
    shown = (edges >= showing.media_onset - 1e-6) & (edges + feature.step <= end + 1e-6)
    return replace(feature, values=np.where(shown, feature.values, np.nan))


def _rows(run: Run, showing: Showing, times: FloatArray, features: tuple[FastFeature, ...]) -> Any:
    """Volumes of a run from `SETTLED` seconds into a playback to its end, neighbours all."""
    ends = [one.origin + one.step * len(one.values) for one in features]
    if not ends:
        return np.zeros(0, dtype=int)
    played = (max(ends) - showing.media_onset) / showing.rate
    last = showing.run_onset + (played if showing.duration is None else min(played, showing.duration))
    inside = (times >= showing.run_onset + SETTLED) & (times < last) & (np.arange(len(times)) >= run.non_steady_state)
    return np.flatnonzero(inside)
