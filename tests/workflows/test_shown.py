"""What was shown, from files as the data sets have them to windows, against hand-made cases to the millisecond."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bids_mllm.align.windows import align_run
from bids_mllm.config import Settings
from bids_mllm.exceptions import InputDataError, StimulusError, UsageError
from bids_mllm.records import Run, Stimulus
from bids_mllm.workflows.reports import alignment_warnings
from bids_mllm.workflows.shown import read_map, shown_runs

MS = 1e-3
HEADER = "task\tsession\trun\tstim_file\trun_onset\tmedia_onset\tduration\n"


class Probes:
    """Stimuli of known length."""

    def __init__(self, **seconds):
        self.seconds = {name.replace("_", "."): value for name, value in seconds.items()}

    def probe(self, stim_file, folder):
        if stim_file not in self.seconds:
            raise StimulusError(f"{folder / stim_file} is not there.")
        seconds = self.seconds[stim_file]
        return Stimulus(stim_file, folder / stim_file, "", seconds, seconds)


class Study:
    """Runs with events files, a stimulus map, and films, in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.options = folder, {}

    def run(self, task, run, events=None, *, n_volumes=300, tr=1.5, start=0.0, participant="01"):
        path = None
        if events is not None:
            path = self.folder / f"sub-{participant}_task-{task}_run-{run}_events.tsv"
            path.write_text(events)
        return Run(participant, None, task, run, "T1w", None, None, None, tr, start, n_volumes, path)

    def map(self, *rows, **options):
        self.options = {"stimulus_map": self.folder / "map.tsv"} | options
        self.options["stimulus_map"].write_text(HEADER + "".join(f"{row}\n" for row in rows))

    def shown(self, *runs, with_media=True, **films):
        settings = Settings(self.folder, self.folder / "out", "participant", **self.options)
        return shown_runs(
            settings, runs, read_map(settings, runs), Probes(**films), with_media=with_media, tolerate_missing=False
        )  # fmt: skip

    def windows(self, run, **films):
        """Windows of one run."""
        (shown,), _, lost = self.shown(run, **films)
        assert not lost
        return align_run(shown, {name.replace("_", "."): seconds for name, seconds in films.items()})


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


def check(windows, starts, length):
    np.testing.assert_allclose(windows.start, starts, rtol=0, atol=MS)
    np.testing.assert_allclose(windows.end, np.asarray(starts) + length, rtol=0, atol=MS)


NARRATIVES = "onset\tduration\ttrial_type\tstim_file\n"


@pytest.mark.parametrize("rows", [
    "1.5\t13\tmusic\ta.wav\n16.5\t422\tstory\ta.wav\n",
    "16.5\t422\tstory\ta.wav\nn/a\tn/a\tbreak\tn/a\n1.5\t13\tmusic\ta.wav\n1.5\t13\tmusic\ta.wav\n",
    "1.5\tn/a\tmusic\ta.wav\n14.5\t2\tsilence\ta.wav\n16.5\tn/a\tstory\ta.wav\n438\t0.5\tsilence\ta.wav\n",
])  # fmt: skip
def test_narratives_plays_music_and_story_of_one_file_once(study, rows):
    windows = study.windows(study.run("pieman", None, NARRATIVES + rows), a_wav=437.0)
    times = np.arange(300) * 1.5
    # 437 s from 1.5 s on: volume 1 to the one that ends at 438.0 s, and none of 438.5 s.
    check(windows, np.where((times >= 1.5) & (times + 1.5 <= 438.5), times - 1.5, np.nan), 1.5)
    assert windows.report["rule"] == "one continuous playback"
    assert windows.report["unexplained_seconds"] == 0.0
    assert windows.report["run_without_film_seconds"] == pytest.approx(450.0 - 437.0, abs=MS)


def test_several_files_under_one_task(study):
    rows = "-4.5\t100\tstory\ta.wav\n120\t60\tstory\tb.wav\n"
    windows = study.windows(study.run("stories", 1, NARRATIVES + rows), a_wav=100.0, b_wav=60.0)
    times = np.arange(300) * 1.5
    first, second = times + 1.5 <= 95.5, (times >= 120.0) & (times < 180.0)
    check(windows, np.select([first, second], [times + 4.5, times - 120.0], np.nan), 1.5)
    np.testing.assert_array_equal(windows.showing, np.select([first, second], [0, 1], -1))


FRAMES = "onset\tduration\tframeidx\tvideotime\taudiotime\tlasttrigger\n"


def frame_rows(rate, first, *, seconds=900.0, unit=1.0, film=""):
    lines = []
    for k in range(round(25 * seconds)):
        at = first + k / 25 / rate
        lines.append(f"{at:.3f}\t0.040\t{k}\t{k / 25 * unit:.3f}\t{k / 25 * unit:.3f}\t{at // 2 * 2:.3f}{film}\n")
    return "".join(lines)


@pytest.mark.parametrize("unit", [1.0, 1000.0])
@pytest.mark.parametrize(("rate", "start"), [(1.0, 0.0), (1.001, 1.0), (0.9995, 0.0)])
def test_studyforrest_takes_the_film_of_the_map_and_the_clock_of_the_frames(study, rate, start, unit):
    study.map("movie\tn/a\t2\tseg.mkv\tn/a\tn/a\tn/a")
    events = FRAMES + frame_rows(rate, 0.021, unit=unit)
    windows = study.windows(study.run("movie", 2, events, n_volumes=451, tr=2.0, start=start), seg_mkv=902.0)
    times = start + np.arange(451) * 2.0
    whole = (times >= 0.021) & (times + 2.0 <= 0.021 + 900.0 / rate)
    check(windows, np.where(whole, (times - 0.021) * rate, np.nan), 2.0 * rate)
    assert windows.report["rule"] == "frame clock"
    assert windows.report["frame_clock_drift_seconds"] == pytest.approx((rate - 1) * 900.0 / rate, abs=2 * MS)
    assert windows.report["frame_clock_residual_seconds"] <= 1 * MS
    assert windows.report["unexplained_seconds"] == 0.0


def test_frames_that_name_their_film_need_no_map(study):
    events = FRAMES.replace("\n", "\tstim_file\n") + frame_rows(1.0, 3.0, seconds=60.0, film="\tseg.mkv")
    windows = study.windows(study.run("movie", 1, events, n_volumes=40, tr=2.0), seg_mkv=60.0)
    times = np.arange(40) * 2.0
    check(windows, np.where((times >= 3.0) & (times + 2.0 <= 63.0), times - 3.0, np.nan), 2.0)


@pytest.mark.parametrize(
    "rows", [[], ["movie\tn/a\tn/a\ta.mkv\tn/a\tn/a\tn/a", "movie\tn/a\tn/a\tb.mkv\tn/a\tn/a\tn/a"]]
)
def test_frames_of_no_film_or_of_two_are_one_sentence(study, rows):
    if rows:
        study.map(*rows)
    with pytest.raises(InputDataError, match=r"says when each frame was shown.*names? .*one row there with stim_file"):
        study.shown(study.run("movie", 1, FRAMES + frame_rows(1.0, 0.0, seconds=4.0)), a_mkv=9.0, b_mkv=9.0)


def test_a_map_with_times_comes_before_the_frames(study):
    study.map("movie\tn/a\tn/a\ta.mkv\t2\t5\tn/a")
    windows = study.windows(study.run("movie", 1, FRAMES + frame_rows(1.0, 0.0, seconds=4.0), tr=2.0), a_mkv=900.0)
    assert windows.report["rule"] == "stimulus map"
    assert windows.start[1] == pytest.approx(5.0, abs=MS)


def test_nndb_has_no_events_and_run_k_starts_where_the_map_says(study):
    study.map("film\tn/a\t1\tfilm.mp4\t0\t0\t2400", "film\tn/a\t2\tfilm.mp4\t0.25\t2396.75\tn/a")
    runs = study.run("film", 1, n_volumes=2405, tr=1.0), study.run("film", 2, n_volumes=3010, tr=1.0, start=0.5)
    kept, _, _ = study.shown(*runs, film_mp4=5400.0)
    first, second = (align_run(run, {"film.mp4": 5400.0}) for run in kept)
    times = np.arange(2405.0)
    check(first, np.where(times + 1 <= 2400, times, np.nan), 1.0)
    times = 0.5 + np.arange(3010.0)
    check(second, np.where(times - 0.25 + 2396.75 + 1 <= 5400, times - 0.25 + 2396.75, np.nan), 1.0)
    assert first.report["unexplained_seconds"] == second.report["unexplained_seconds"] == 0.0
    assert first.report["run_without_film_seconds"] == pytest.approx(5.0, abs=MS)
    assert second.report["run_without_film_seconds"] == pytest.approx(0.25 + 3010.0 - 3003.5, abs=MS)


def test_a_map_speaks_of_a_run_that_is_not_there(study, caplog):
    run = study.run("film", 1)
    study.map("film\tn/a\t1\ta.mp4\t0\t0\tn/a", "film\tn/a\t3\ta.mp4\t0\t0\tn/a")
    with pytest.raises(UsageError, match=r"map.tsv, line 3: task film, run 3 \(a.mp4\).*sub-01_task-film_run-1"):
        study.shown(run, a_mp4=9.0)
    for option in ({"run_id": (1,)}, {"task_id": ("film",)}, {"participant_label": ("01",)}, {"session_label": ("1",)}):
        study.options |= {"run_id": (), "task_id": (), "participant_label": (), "session_label": ()} | option
        caplog.clear()
        (shown,), _, _ = study.shown(run, a_mp4=9.0)
        assert len(shown.showings) == 1
        assert "line 3: task film, run 3" in caplog.text


def test_a_film_of_the_map_that_is_not_there_costs_its_runs_only(study):
    study.map("film\tn/a\t1\ta.mp4\t0\t0\tn/a", "film\tn/a\t2\tgone.mp4\t0\t0\tn/a")
    kept, _, lost = study.shown(study.run("film", 1), study.run("film", 2), a_mp4=9.0)
    assert [run.run for run in kept] == [1]
    [drop] = lost
    assert (drop.label, drop.place, "gone.mp4 is not there" in drop.reason) == ("task-film_run-2", "T1w", True)


def test_frames_off_the_clock_of_the_film_are_warned_of(study):
    lines = (FRAMES + frame_rows(1.0, 0.0, seconds=60.0)).splitlines(keepends=True)
    late = [f"{float(line.partition(chr(9))[0]) + 0.4:.3f}\t{line.partition(chr(9))[2]}" for line in lines[751:]]
    study.map("movie\tn/a\tn/a\ta.mkv\tn/a\tn/a\tn/a")
    design = SimpleNamespace(windows=[
        study.windows(study.run("movie", 1, "".join([*lines[:751], *late])), a_mkv=60.0),
        study.windows(study.run("movie", 2, "".join(lines)), a_mkv=60.0),
    ])  # fmt: skip
    (warning,) = alignment_warnings(design)
    assert warning.startswith("task-movie_run-1: single frames were shown up to 0.")
