"""Motion energy of a film: spatio-temporal Gabor filters of pymoten, read causally.

The temporal filters of pymoten are centred: its response at time t uses frames up to half a filter
after t. Here each response is dated at the END of its support instead, and a window averages the
responses whose last frame lies inside the window. No frame after the window's end is used, so the
features of a window cannot know what comes next; the frames before the window that the first
responses need are requested as `lead`.

The filters meet the film in the order of time, so that a filter of direction 0 prefers motion to the
right, as pymoten's definition of the filters says. Its own projection convolves, which turns the filters
round in time and makes them prefer the opposite direction; it equals this one on the film run backwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_mllm.exceptions import StimulusError, UsageError
from bids_mllm.features.extractor import Extracted, ExtractionPlan, Extractor, Family, ReadOut
from bids_mllm.records import ClipMedia, Condition, FloatArray, IntArray, MediaRequest, ModelSpec

CONDITION = Condition("stimulus")
# pymoten sets filter pixels below this amplitude to zero (moten.core.dotspatial_frames).
MASK_LIMIT = 0.001
# Offset of the logarithm in moten.utils.log_compress.
LOG_OFFSET = 1e-5
BATCH_SIZE = 16
DEFAULTS: Mapping[str, Any] = {
    "fps": 24,
    "frame_size": (72, 128),
    "temporal_frequencies": (0, 2, 4),
    "spatial_frequencies": (0, 2, 4, 8, 16),
    "spatial_directions": (0, 45, 90, 135, 180, 225, 270, 315),
    "filter_temporal_width": None,
}


@dataclass(frozen=True)
class FilterBank:
    """The filters of a pyramid, shared parts stored once.

    Attributes
    ----------
    spatial : (n_pixels, 2 * n_spatial) float32
        Sine Gabors, then cosine Gabors, of the directions below 180 degrees.
    spatial_index, temporal_index : (n_filters,) int
        The spatial and the temporal filter of each filter of the pyramid.
    sign : (n_filters,) float
        -1 for a direction of 180 degrees or more: its sine Gabor is the opposite one's with the sign
        turned, its cosine Gabor is the same.
    temporal : (n_temporal, 2, filter_width) float
        Sine and cosine time courses, the weight of the earliest frame first.
    """

    spatial: NDArray[np.float32]
    spatial_index: IntArray
    temporal_index: IntArray
    sign: FloatArray
    temporal: FloatArray

    @property
    def filter_width(self) -> int:
        """Frames in the support of each filter."""
        return int(self.temporal.shape[2])


def motion_energy_parameters(spec: ModelSpec) -> dict[str, Any]:
    """Return the parameters of `spec` completed with the defaults and checked."""
    unknown = sorted(set(spec.parameters) - set(DEFAULTS))
    if unknown:
        raise UsageError(
            f"Model {spec.key} has the unknown parameter {unknown[0]!r}; motion energy takes "
            f"{', '.join(sorted(DEFAULTS))}."
        )
    values = {**DEFAULTS, **spec.parameters}
    fps = values["fps"]
    if int(fps) != fps or fps < 2:
        raise UsageError(f"Model {spec.key} has fps {fps!r}, but pymoten needs a whole number of at least 2.")
    values["fps"] = int(fps)
    values["frame_size"] = tuple(int(side) for side in values["frame_size"])
    for name in ("temporal_frequencies", "spatial_frequencies", "spatial_directions"):
        values[name] = tuple(float(entry) for entry in values[name])
    # The default of pymoten: two thirds of a second.
    values["filter_temporal_width"] = int(values["filter_temporal_width"] or fps * (2 / 3.0))
    fastest = max(values["temporal_frequencies"])
    if fastest > fps / 2:
        raise UsageError(
            f"Model {spec.key} asks for a temporal frequency of {fastest:g} Hz, but {fps} frames a second "
            f"carry at most {fps / 2:g} Hz; lower the frequency or raise fps."
        )
    return values


def _pyramid(values: Mapping[str, Any]) -> Any:
    from moten.pyramids import MotionEnergyPyramid

    return MotionEnergyPyramid(
        stimulus_vhsize=values["frame_size"],
        stimulus_fps=values["fps"],
        temporal_frequencies=list(values["temporal_frequencies"]),
        spatial_frequencies=list(values["spatial_frequencies"]),
        spatial_directions=list(values["spatial_directions"]),
        filter_temporal_width=values["filter_temporal_width"],
    )


def build_filter_bank(values: Mapping[str, Any]) -> FilterBank:
    """Return the filters of pymoten's pyramid for the parameters `values`."""
    from moten.core import mk_3d_gabor

    pyramid = _pyramid(values)
    table = pyramid.parameters
    where = np.stack([table[name] for name in ("centerh", "centerv", "spatial_freq", "spatial_env")], axis=1)
    where = np.column_stack([where, table["direction"] % 180])
    when = np.stack([table["temporal_freq"], table["temporal_env"]], axis=1)
    _, first_where, spatial_index = np.unique(where, axis=0, return_index=True, return_inverse=True)
    _, first_when, temporal_index = np.unique(when, axis=0, return_index=True, return_inverse=True)
    sines, cosines = [], []
    for index in first_where:
        gabor = {**pyramid.filters[index], "direction": table["direction"][index] % 180}
        sine, cosine, _, _ = mk_3d_gabor(values["frame_size"], **gabor)
        kept = np.abs(sine) + np.abs(cosine) > MASK_LIMIT
        sines.append((sine * kept).ravel())
        cosines.append((cosine * kept).ravel())
    temporal = np.stack([np.stack(mk_3d_gabor((2, 2), **pyramid.filters[index])[2:]) for index in first_when])
    return FilterBank(
        spatial=np.stack(sines + cosines, axis=1).astype(np.float32),
        spatial_index=spatial_index.ravel(),
        temporal_index=temporal_index.ravel(),
        sign=np.where(table["direction"] % 360 >= 180, -1.0, 1.0),
        temporal=temporal,
    )


def luminance(frames: NDArray[np.uint8]) -> FloatArray:
    """CIE L* of RGB frames (n_frames, height, width, 3), as float (n_frames, height, width) in [0, 100].

    The colour conversion is pymoten's own; its wrapper for arrays is passed by because it imports a
    module that SciPy is about to remove.
    """
    from moten.colorspace import rgb2lab

    n_frames, height, width, _ = frames.shape
    rows = (frames / 255.0).reshape(n_frames * height, width, 3)
    lightness: FloatArray = rgb2lab(rows)[..., 0].reshape(n_frames, height, width)
    return lightness


def _temporal_matrices(kernel: FloatArray, n_frames: int) -> tuple[FloatArray, FloatArray]:
    """Matrices (n_responses, n_frames) that apply a sine and a cosine time course to every complete
    support but the first, whose last frame still lies before the window.
    """
    width = kernel.shape[1]
    n_responses = n_frames - width
    sine, cosine = np.zeros((2, n_responses, n_frames))
    for row in range(n_responses):
        sine[row, row + 1 : row + 1 + width] = kernel[0]
        cosine[row, row + 1 : row + 1 + width] = kernel[1]
    return sine, cosine


def clip_energy(projected: FloatArray, bank: FilterBank) -> FloatArray:
    """Mean over a window of ``log(sqrt(sin^2 + cos^2) + 1e-5)`` of each filter's quadrature pair.

    Parameters
    ----------
    projected : (n_frames, 2 * n_spatial) float
        Frames of lead and window times the spatial filters.
    bank
        The filters.

    Returns
    -------
    energy : (n_filters,) float
    """
    n_spatial = projected.shape[1] // 2
    sines, cosines = projected[:, :n_spatial], projected[:, n_spatial:]
    energy = np.empty(len(bank.sign))
    for index, kernel in enumerate(bank.temporal):
        time_sine, time_cosine = _temporal_matrices(kernel, len(projected))
        chosen = bank.temporal_index == index
        space, sign = bank.spatial_index[chosen], bank.sign[chosen]
        out_sine = sign * (time_cosine @ sines)[:, space] + (time_sine @ cosines)[:, space]
        out_cosine = (time_cosine @ cosines)[:, space] - sign * (time_sine @ sines)[:, space]
        energy[chosen] = np.log(np.hypot(out_sine, out_cosine) + LOG_OFFSET).mean(axis=0)
    return energy


@dataclass(frozen=True)
class MotionEnergyExtractor:
    """A filter bank with the number of frames that each clip must have."""

    bank: FilterBank
    request: MediaRequest

    def extract(self, clips: Sequence[ClipMedia]) -> Extracted:
        """Return the motion energy of each clip, an array (n_clips, 1, n_filters)."""
        frames = [self._frames(media) for media in clips]
        pixels = luminance(np.concatenate(frames)).astype(np.float32)
        projected = pixels.reshape(len(pixels), -1) @ self.bank.spatial
        per_clip = projected.astype(np.float64).reshape(len(clips), self.request.n_frames, -1)
        energy = np.stack([clip_energy(rows, self.bank) for rows in per_clip])
        return Extracted({CONDITION: energy[:, None, :].astype(np.float32)})

    def close(self) -> None:
        """Nothing is held outside Python's memory."""

    def _frames(self, media: ClipMedia) -> NDArray[np.uint8]:
        expected = (self.request.n_frames, *(self.request.frame_size or ()), 3)
        if media.frames is None or media.frames.shape != expected:
            found = "no frames" if media.frames is None else f"frames of shape {media.frames.shape}"
            raise StimulusError(
                f"Window {media.clip.index} of {media.clip.stim_file} came with {found}, but motion energy "
                f"needs {expected}; check that the film has a video stream for the whole window."
            )
        return media.frames


def plan_motion_energy(spec: ModelSpec, read_out: ReadOut) -> ExtractionPlan:
    """Return what the extraction needs: frames at `fps` over the window and one filter before it."""
    values = motion_energy_parameters(spec)
    width = values["filter_temporal_width"]
    n_inside = round(read_out.window * values["fps"])
    if n_inside < 1:
        raise UsageError(
            f"A window of {read_out.window:g} s holds no frame at {values['fps']} frames a second; "
            f"lengthen the window or raise fps of model {spec.key}."
        )
    request = MediaRequest(
        "video", n_frames=n_inside + width, frame_size=values["frame_size"], lead=width / values["fps"]
    )
    identity = {
        "family": FAMILY.name,
        "parameters": {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()},
        "dating": "end of support",
        "filters": "forward in time",
        "versions": {name: version(name) for name in ("pymoten", "numpy")},
    }
    return ExtractionPlan(identity, request, (CONDITION,), 1, _pyramid(values).nfilters, BATCH_SIZE)


def load_motion_energy(spec: ModelSpec, read_out: ReadOut, device: str) -> Extractor:
    """Return the extractor; it computes on the CPU whatever `device` is."""
    del device
    request = plan_motion_energy(spec, read_out).request
    return MotionEnergyExtractor(build_filter_bank(motion_energy_parameters(spec)), request)


FAMILY = Family("motionenergy", plan_motion_energy, load_motion_energy)
