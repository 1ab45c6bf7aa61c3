"""The whole simulated data set: stimuli, model, features, brains, files."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bids_mllm.exceptions import UsageError
from bids_mllm.records import FloatArray, Stimulus
from bids_mllm.simulate.brain import Brain, make_brain
from bids_mllm.simulate.design import make_viewings
from bids_mllm.simulate.drivers import (
    TINY_MODEL,
    Driver,
    common_duration,
    extract_driver,
    make_drivers,
    with_other_instruction,
)
from bids_mllm.simulate.layout import write_derivative, write_derivative_run, write_raw, write_raw_run
from bids_mllm.simulate.noise import ar_noise, draw_noise, head_motion, scan
from bids_mllm.simulate.planting import leading_components, plant_signals
from bids_mllm.simulate.stimuli import (
    DEFAULT_REPETITION_TIME,
    choose_repetition_time,
    copy_films,
    list_films,
    make_stimuli,
)
from bids_mllm.simulate.truth import (
    describe_driver,
    instruction_cka,
    measured_ceiling,
    voxel_drivers,
    write_atlas,
    write_truth,
    write_voxels,
)

DEFAULT_RUNS: Mapping[str, int] = {"bourne": 4, "wolf": 3, "life": 1}
REPEATED_FILM = "life"
DEFAULT_RUN_SECONDS = 120.0
N_DRIVERS = 3

Components = Mapping[str, Mapping[str, FloatArray]]


@dataclass(frozen=True)
class _Study:
    """What all participants share. `repeated` are the tasks that everyone sees twice."""

    root: Path
    stimuli: Mapping[str, Stimulus]
    repeated: tuple[str, ...]
    repetition_time: float
    seed: int
    brain: Brain
    drivers: NDArray[np.str_]
    components: Components

    @property
    def test_tasks(self) -> tuple[str, ...]:
        """The tasks whose runs the ceilings are measured in."""
        return self.repeated or tuple(self.stimuli)


def simulate_dataset(
    out: Path,
    *,
    participants: int = 3,
    films: Path | None = None,
    seed: int = 0,
    run_seconds: float = DEFAULT_RUN_SECONDS,
    runs: Mapping[str, int] = DEFAULT_RUNS,
) -> Path:
    """Write a BIDS data set of film viewing whose voxels answer to known features.

    Each voxel of some regions follows ``response * (F w)``, the leading components F of one feature space
    (motion energy, mel spectrogram, or one layer of a tiny multimodal model under one instruction) with
    random weights w, convolved with a haemodynamic response within 1 to 5 TR; autocorrelated noise, drift and
    a motion artefact are added. The answers are in ``sourcedata/truth``.

    Parameters
    ----------
    out
        Folder to make; it must not exist or be empty.
    participants
        Number of participants.
    films
        Folder with the user's own films or sounds, each shown once as one run; None makes films from random
        numbers.
    seed
        The same seed gives the same images and tables.
    run_seconds
        Least length in seconds of a film that is made.
    runs
        Segments of each film that is made; those of ``life`` are shown twice.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    UsageError
        `out` is not empty, there is no participant, or `films` holds no media.
    """
    _check(out, participants, films)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    # mkdtemp makes a private folder; the data set gets the usual permissions.
    root = scratch / "dataset"
    root.mkdir()
    try:
        n_films = sum(runs.values()) if films is None else len(list_films(films))
        with tqdm(total=n_films * (1 + N_DRIVERS) + participants, desc="simulate", unit="step") as bar:
            if films is None:
                stimuli = make_stimuli(
                    root / "stimuli", runs=runs, run_seconds=run_seconds, seed=seed, advance=bar.update
                )
            else:
                stimuli = copy_films(root / "stimuli", films)
                bar.update(n_films)
            study = _plan_study(root, stimuli, made=films is None, seed=seed, advance=bar.update)
            names = [f"{number + 1:02d}" for number in range(participants)]
            for number, name in enumerate(names):
                _simulate_participant(study, name, number)
                bar.update()
            write_raw(root, stimuli, names, repetition_time=study.repetition_time)
            write_derivative(root / "derivatives" / "fmriprep")
        root.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _check(out: Path, participants: int, films: Path | None) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty folder; give a new folder or empty this one.")
    if participants < 1:
        raise UsageError(f"--participants is {participants}, but at least 1 is needed.")
    if films is not None:
        list_films(films)


def _plan_study(
    root: Path, stimuli: dict[str, Stimulus], *, made: bool, seed: int, advance: Callable[[], object]
) -> _Study:
    """Extract the features that drive the voxels and write what all participants share."""
    from bids_mllm.features.models.tiny import save_tiny_qwen25vl

    repetition_time = DEFAULT_REPETITION_TIME if made else choose_repetition_time(stimuli)
    repeated = tuple(task for task in stimuli if made and task.startswith(REPEATED_FILM))
    model_folder = root / "models" / TINY_MODEL
    model_folder.parent.mkdir()
    save_tiny_qwen25vl(model_folder, seed=seed)
    components: dict[str, dict[str, FloatArray]] = {}
    answers = {}
    for driver in make_drivers(model_folder, tuple(stimuli.values()), repetition_time):
        features = extract_driver(driver, tuple(stimuli.values()), advance)
        planted = {stim: values[driver.condition][:, driver.layer] for stim, values in features.items()}
        components[driver.name] = leading_components(planted)
        answers[driver.name] = describe_driver(driver, _compare_instructions(driver, stimuli))
    brain = make_brain()
    drivers = voxel_drivers(brain, tuple(components))
    study = _Study(root, stimuli, repeated, repetition_time, seed, brain, drivers, components)
    truth = root / "sourcedata" / "truth"
    write_atlas(truth, brain)
    write_truth(
        truth / "truth.json",
        answers,
        seed=seed,
        repetition_time=repetition_time,
        test_tasks=study.test_tasks,
    )
    return study


def _compare_instructions(driver: Driver, stimuli: Mapping[str, Stimulus]) -> dict[str, float]:
    """CKA between two instructions in the shortest stimulus, where the driver follows instructions."""
    if driver.condition.instruction is None:
        return {}
    shortest = min(stimuli.values(), key=common_duration)
    both = with_other_instruction(driver)
    return instruction_cka(both, extract_driver(both, (shortest,), lambda: None))


def _simulate_participant(study: _Study, name: str, number: int) -> None:
    """Write the runs and the voxel table of one participant."""
    viewings = make_viewings(
        study.stimuli,
        study.repeated,
        repetition_time=study.repetition_time,
        seed=study.seed,
        participant=number,
    )
    signals = plant_signals(
        study.components,
        study.drivers,
        [(viewing.stim_file, viewing.n_volumes) for viewing in viewings],
        seed=study.seed,
        participant=number,
    )
    rng = np.random.default_rng([study.seed, 4, number])
    noise = draw_noise((study.drivers != "none").astype(float), rng)
    noises = [noise.size * ar_noise(viewing.n_volumes, noise.ar, rng) for viewing in viewings]
    for viewing, signal, added in zip(viewings, signals, noises, strict=True):
        motion = head_motion(viewing.n_volumes, rng)
        bold = scan(signal, added, motion, noise.size, rng)
        write_raw_run(study.root, name, viewing, repetition_time=study.repetition_time)
        write_derivative_run(
            study.root / "derivatives" / "fmriprep",
            name,
            viewing,
            study.brain,
            bold,
            motion,
            repetition_time=study.repetition_time,
            rng=rng,
        )
    tested = [place for place, viewing in enumerate(viewings) if viewing.task in study.test_tasks]
    ceiling = measured_ceiling(
        [signals[place] for place in tested],
        [noises[place] for place in tested],
        [viewings[place] for place in tested],
    )
    path = study.root / "sourcedata" / "truth" / f"sub-{name}_voxels.tsv"
    write_voxels(path, study.brain, study.drivers, noise, ceiling)
