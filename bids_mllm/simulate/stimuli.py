"""The stimuli of a simulated data set: films made from random numbers, or the user's own files."""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bids_mllm.exceptions import StimulusError, UsageError
from bids_mllm.io.clips import probe_stimulus
from bids_mllm.records import Stimulus
from bids_mllm.simulate.drivers import common_duration
from bids_mllm.simulate.films import FRAME_RATE, write_film

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
AUDIO_SUFFIXES = (".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav")
DEFAULT_REPETITION_TIME = 1.49
SHORTEST_REPETITION_TIME = 0.25
FEWEST_VOLUMES = 20
SHORTEST_FILM_VOLUMES = 3
# Segments of one film are up to this share longer than the length asked for.
LENGTH_SPREAD = 0.1


def make_stimuli(
    folder: Path, *, runs: Mapping[str, int], run_seconds: float, seed: int, advance: Callable[[], object]
) -> dict[str, Stimulus]:
    """Write the segments of each film under `folder` and return them by task, e.g. ``bourne01``.

    Parameters
    ----------
    folder
        The data set's stimuli folder.
    runs
        Number of segments of each film.
    run_seconds
        Shortest length of a segment; each is up to a tenth longer.
    seed
        Of pictures, sound and lengths.
    advance
        Called after each segment.
    """
    rng = np.random.default_rng([seed, 1])
    planned: dict[str, tuple[float, int]] = {}
    for number, (film, n_segments) in enumerate(runs.items()):
        (folder / film).mkdir(parents=True)
        for segment in range(1, n_segments + 1):
            seconds = round(run_seconds * rng.uniform(1, 1 + LENGTH_SPREAD) * FRAME_RATE) / FRAME_RATE
            film_seed = np.random.SeedSequence([seed, 2, number, segment]).generate_state(1)[0]
            planned[f"{film}/{film}{segment:02d}.mkv"] = (seconds, int(film_seed))
    stimuli: dict[str, Stimulus] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        writing = {
            stim_file: pool.submit(write_film, folder / stim_file, seconds=seconds, seed=film_seed)
            for stim_file, (seconds, film_seed) in planned.items()
        }
        for stim_file, job in writing.items():
            job.result()
            stimuli[Path(stim_file).stem] = probe_stimulus(folder / stim_file, stim_file)
            advance()
    return stimuli


def list_films(films: Path) -> list[Path]:
    """Return the media files directly in a folder, by name."""
    if not films.is_dir():
        raise UsageError(f"--films {films} is not a folder; give a folder that holds films or sounds.")
    found = sorted(p for p in films.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES + AUDIO_SUFFIXES and not p.is_dir())
    if not found:
        raise UsageError(
            f"The folder {films} holds no media file; its films must end in one of "
            f"{', '.join(VIDEO_SUFFIXES + AUDIO_SUFFIXES)}."
        )
    return found


def copy_films(folder: Path, films: Path) -> dict[str, Stimulus]:
    """Copy a user's films into the data set's stimuli folder and return them by task.

    The task is made of the letters and digits of the file's name; a number tells equal ones apart. A film
    that is shorter than three of the shortest TRs that are simulated is refused.
    """
    folder.mkdir(parents=True)
    stimuli: dict[str, Stimulus] = {}
    for path in list_films(films):
        base = re.sub(r"[^0-9a-zA-Z]", "", path.stem) or "film"
        task, number = base, 1
        while task in stimuli:
            number += 1
            task = f"{base}{number}"
        stimulus = probe_stimulus(path, path.name)
        seconds, least = common_duration(stimulus), SHORTEST_FILM_VOLUMES * SHORTEST_REPETITION_TIME
        if seconds < least:
            raise StimulusError(
                f"The film {path.name} lasts {seconds:.2f} s, but at least {least:.2f} s are needed for "
                f"{SHORTEST_FILM_VOLUMES} volumes; take it out of {films}."
            )
        shutil.copyfile(path, folder / path.name)
        stimuli[task] = probe_stimulus(folder / path.name, path.name)
    return stimuli


def choose_repetition_time(stimuli: Mapping[str, Stimulus]) -> float:
    """Seconds of a TR that give the shortest film about 20 volumes, between 0.25 and 1.49."""
    shortest = min(common_duration(stimulus) for stimulus in stimuli.values())
    wanted = np.floor(shortest / FEWEST_VOLUMES * 100) / 100
    return float(np.clip(wanted, SHORTEST_REPETITION_TIME, DEFAULT_REPETITION_TIME))
