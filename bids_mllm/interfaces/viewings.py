"""Which rows show the same moments of a film: viewings are paired on the film's clock, never by counting volumes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bids_mllm.records import BoolArray, FloatArray, Fold, IntArray, ParticipantDesign

#: Share of the moments of the longest viewing that another must have to be averaged with it.
SHARED_MOMENTS = 0.5
# Seconds by which rounded clocks may miss half a TR.
ROUNDING = 1e-6

#: What a row shows: the stimulus and the second in it at which its window starts.
Moments = Sequence[tuple[str, float]]


def moments_of(design: ParticipantDesign, usable: Sequence[BoolArray]) -> list[tuple[str, float]]:
    """Say what each row shows; `usable` tells the volumes of each run that are rows."""
    moments = []
    for windows, rows in zip(design.windows, usable, strict=True):
        for volume in np.flatnonzero(rows):
            moments.append((windows.stim_files[windows.showing[volume]], float(windows.start[volume])))
    return moments


def playbacks(own: Sequence[int], run_of_row: IntArray, moments: Moments) -> list[tuple[FloatArray, IntArray]]:
    """Times and rows of each playback: a new one begins with another run or where the film jumps back."""
    found: list[list[int]] = []
    for row in own:
        last = found[-1][-1] if found else None
        same = last is not None and run_of_row[last] == run_of_row[row]
        if same and last is not None and moments[row][1] > moments[last][1]:
            found[-1].append(row)
        else:
            found.append([row])
    return [(np.array([moments[row][1] for row in rows]), np.array(rows)) for rows in found]


def at_common_moments(viewings: Sequence[tuple[FloatArray, IntArray]], tolerance: float) -> list[IntArray]:
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


def half_tr(design: ParticipantDesign) -> float:
    """Seconds by which moments that count as the same may differ."""
    return max(run.repetition_time for run in design.runs) / 2


def averaged(fold: Fold, run_of_row: IntArray, moments: Moments, tolerance: float) -> Fold:
    """Return the fold with the held-out viewings of each stimulus averaged at their common moments.

    A stimulus seen once, and a viewing that has less than `SHARED_MOMENTS` of the moments of the longest one, is
    scored as it is. A playback that goes on where another ended is of the same viewing.
    """
    groups = viewing_groups(fold.test, run_of_row, moments, tolerance)
    n_viewings = max(len(group) for group in groups)
    rows = np.concatenate(
        [np.pad(np.stack(group), ((0, n_viewings - len(group)), (0, 0)), constant_values=-1) for group in groups],
        axis=1,
    )
    order = np.argsort(fold.test)
    positions = order[np.searchsorted(fold.test, rows.clip(min=0), sorter=order).clip(max=len(order) - 1)]
    viewings = np.where(rows < 0, -1, positions)
    return replace(fold, viewings=viewings[:, np.argsort(rows[0], kind="stable")])


def viewing_groups(tested: IntArray, run_of_row: IntArray, moments: Moments, tolerance: float) -> list[list[IntArray]]:
    """For each stimulus, the rows of its viewings at their common moments, and each other viewing by itself.

    A viewing that has less than `SHARED_MOMENTS` of the moments of the longest one is by itself.
    """
    groups: list[list[IntArray]] = []
    for stim_file in dict.fromkeys(moments[row][0] for row in tested):
        own = sorted(int(row) for row in tested if moments[row][0] == stim_file)
        groups += _grouped(
            whole_viewings(playbacks(own, run_of_row, moments), tolerance + ROUNDING), tolerance + ROUNDING
        )
    return groups


def whole_viewings(
    played: Sequence[tuple[FloatArray, IntArray]], tolerance: float
) -> list[tuple[FloatArray, IntArray]]:
    """Put playbacks of different parts of a film together into viewings; each in the order of the film."""
    viewings: list[tuple[FloatArray, IntArray]] = []
    for times, rows in played:
        for number, (other_times, other_rows) in enumerate(viewings):
            if not _near(times, other_times, tolerance).any():
                order = np.argsort(np.concatenate([other_times, times]), kind="stable")
                merged = np.concatenate([other_times, times])[order], np.concatenate([other_rows, rows])[order]
                viewings[number] = merged
                break
        else:
            viewings.append((times, rows))
    return viewings


def _grouped(viewings: Sequence[tuple[FloatArray, IntArray]], tolerance: float) -> list[list[IntArray]]:
    """Rows of the viewings that are averaged, and each other viewing by itself."""
    longest = max(viewings, key=lambda viewing: len(viewing[0]))[0]
    shares = [_near(longest, times, tolerance).mean() >= SHARED_MOMENTS for times, _ in viewings]
    together = [viewing for viewing, shared in zip(viewings, shares, strict=True) if shared]
    alone = [[rows] for (_, rows), shared in zip(viewings, shares, strict=True) if not shared]
    matched = at_common_moments(together, tolerance)
    # Three viewings may each share half of the moments and have none in common.
    return [*([matched] if matched[0].size else [[rows] for _, rows in together]), *alone]


def _near(times: FloatArray, other: FloatArray, tolerance: float) -> BoolArray:
    """Whether each of `times` has one of `other` within the tolerance."""
    near: BoolArray = np.abs(other[nearest(other, times)] - times) <= tolerance
    return near
