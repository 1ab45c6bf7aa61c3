"""Who saw what: the runs of each simulated participant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bids_mllm.records import Stimulus
from bids_mllm.simulate.drivers import common_duration, count_windows

# Volumes by which a run may differ from its film: scans are stopped by hand.
SPREAD = (-3, -1, 0, 0, 1, 4)
SMALL_SPREAD = (-1, 0, 0, 1, 2)
SMALL_RUN = 60
RUNS_PER_SESSION = 4


@dataclass(frozen=True)
class Viewing:
    """One run of one participant: what was shown, how many volumes were kept, how many windows it has."""

    session: str
    task: str
    run: int | None
    stim_file: str
    n_volumes: int
    n_windows: int

    def name(self, participant: str, *, padded: bool) -> str:
        """Start of the run's file names; raw data write ``run-01`` where fMRIPrep writes ``run-1``."""
        run = "" if self.run is None else f"_run-{self.run:02d}" if padded else f"_run-{self.run}"
        return f"sub-{participant}_ses-{self.session}_task-{self.task}{run}"


def make_viewings(
    stimuli: Mapping[str, Stimulus],
    repeated: Sequence[str],
    *,
    repetition_time: float,
    seed: int,
    participant: int,
) -> tuple[Viewing, ...]:
    """Return the runs of one participant, in the order of sessions.

    Tasks come in a random order of their own for each participant, four to a session; the second viewings
    of the `repeated` tasks are a last session.
    """
    rng = np.random.default_rng([seed, 3, participant])
    once = [str(task) for task in rng.permutation(sorted(stimuli))]
    planned = [(place // RUNS_PER_SESSION, task, 1) for place, task in enumerate(once)]
    last = planned[-1][0] + 1
    planned += [(last, task, 2) for task in sorted(repeated)]
    viewings = []
    for session, task, number in planned:
        stimulus = stimuli[task]
        n_film = round(common_duration(stimulus) / repetition_time)
        spread = SMALL_SPREAD if n_film < SMALL_RUN else SPREAD
        viewings.append(
            Viewing(
                session=f"{session + 1:03d}",
                task=task,
                run=number if task in repeated else None,
                stim_file=stimulus.stim_file,
                n_volumes=n_film + int(rng.choice(spread)),
                n_windows=count_windows(stimulus, repetition_time),
            )
        )
    return tuple(viewings)
