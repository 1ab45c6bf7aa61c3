"""Names, the inheritance of events, the rows of events files and stimulus maps."""

from pathlib import Path

import pytest

from bids_mllm.discover.events import find_events, read_events, read_frames
from bids_mllm.discover.names import FolderIndex, parse_name, read_json
from bids_mllm.discover.stimulus_map import idle_rows, mapped_showings, read_stimulus_map
from bids_mllm.exceptions import InputDataError, UsageError
from bids_mllm.records import Run, Showing

BOLD = "sub-01_ses-001_task-life01_run-1_space-T1w_desc-preproc_bold.nii.gz"


def test_a_name_is_taken_apart():
    name = parse_name(Path("a/sub-01_ses-001_task-life01_run-01_bold.nii.gz"))
    assert name is not None
    assert dict(name.entities) == {"sub": "01", "ses": "001", "task": "life01", "run": "01"}
    assert (name.suffix, name.extension) == ("bold", ".nii.gz")


@pytest.mark.parametrize(
    "text",
    [
        "sub-03_ses-001_task-wolf01_bold__dup-01.nii.gz",
        "sub-01_task-a_task-b_bold.nii.gz",
        "sub-_task-a_bold.nii.gz",
        "notes.txt.swp~",
        "sub-01_extra_bold.nii.gz",
        "sub-01_task-a_run-1_bold~.nii.gz",
    ],
)
def test_other_names_are_none(text):
    name = parse_name(Path(text))
    assert name is None or name.suffix != "bold"


def test_run_keys_ignore_padding_and_derivation_only():
    raw = parse_name(Path("sub-01_ses-001_task-life01_run-01_bold.nii.gz"))
    assert parse_name(Path(BOLD)).run_key == raw.run_key
    assert parse_name(Path(BOLD.replace("run-1", "run-2"))).run_key != raw.run_key
    assert parse_name(Path(BOLD.replace("task-life01", "task-life01_acq-b"))).run_key != raw.run_key


def events_of(raw: Path, *names: str, bold: str = BOLD) -> Path | None:
    for name in names:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_text("")
    found = find_events(raw, parse_name(Path(bold)), FolderIndex())
    return found and found.relative_to(raw)


ROOT = "task-life01_events.tsv"
SUBJECT = "sub-01/sub-01_task-life01_events.tsv"
SESSION = "sub-01/ses-001/sub-01_ses-001_task-life01_events.tsv"
OWN = "sub-01/ses-001/func/sub-01_ses-001_task-life01_run-01_events.tsv"


@pytest.mark.parametrize("n_levels", [1, 2, 3, 4])
def test_the_deepest_events_win_and_padding_of_runs_does_not_count(tmp_path, n_levels):
    levels = (ROOT, SUBJECT, SESSION, OWN)[:n_levels]
    assert events_of(tmp_path, *levels) == Path(levels[-1])


def test_within_a_folder_the_file_with_most_entities_wins(tmp_path):
    own = "task-life01_run-1_events.tsv"
    assert events_of(tmp_path, ROOT, own, "events.tsv") == Path(own)


@pytest.mark.parametrize(
    "foreign",
    [
        "task-life02_events.tsv",
        "task-life01_run-2_events.tsv",
        "task-life01_acq-b_events.tsv",
        "task-life01_dir-AP_events.tsv",
        "task-life01_ses-002_events.tsv",
        "sub-02/sub-02_task-life01_events.tsv",
        "sub-01/ses-002/func/sub-01_ses-002_task-life01_events.tsv",
        "task-life01_events__dup-01.tsv",
        "task-life01_events.json",
        "task-life01_physio.tsv",
    ],
)
def test_foreign_events_never_apply(tmp_path, foreign):
    assert events_of(tmp_path, foreign) is None


def test_acquisition_and_direction_must_agree(tmp_path):
    bold = "sub-01_task-rest_acq-fast_dir-PA_space-T1w_desc-preproc_bold.nii.gz"
    names = ["task-rest_acq-fast_events.tsv", "task-rest_acq-slow_dir-PA_events.tsv"]
    assert events_of(tmp_path, *names, bold=bold) == Path(names[0])
    both = "task-rest_acq-fast_dir-PA_events.tsv"
    assert events_of(tmp_path, *names, both, bold=bold) == Path(both)


def test_a_bold_without_session_and_task_events_at_the_root(tmp_path):
    assert events_of(tmp_path, "task-a_events.tsv", bold="sub-9_task-a_space-T1w_bold.nii") == Path("task-a_events.tsv")


def test_undecodable_json_counts_as_empty(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\x80\x04\x95binary pickle")
    (tmp_path / "b.json").write_text("[1]")
    assert read_json(tmp_path / "a.json") == read_json(tmp_path / "b.json") == read_json(tmp_path / "none") == {}


def write_events(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "task-a_events.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_without_a_stimulus_are_passed_over_and_order_is_by_onset(tmp_path):
    path = write_events(
        tmp_path,
        "\ufeffonset\tduration\ttrial_type\tstim_file\n15.5\tn/a\tstory\tb.wav\n0\t13\tmusic\ta.wav\nn/a\tn/a\tx\tn/a\n-3\t1\tx\t\n",
    )
    rows = read_events(path)
    assert [(r.stim_file, r.onset, r.duration, r.media_onset) for r in rows] == [
        ("a.wav", 0.0, 13.0, None),
        ("b.wav", 15.5, None, None),
    ]


def test_negative_onsets_are_legal(tmp_path):
    assert read_events(write_events(tmp_path, "onset\tduration\tstim_file\n-4.5\t10\ta.mkv\n"))[0].onset == -4.5


@pytest.mark.parametrize(
    "column",
    ["stim_onset", "media_onset", "stimulus_onset", "stim_file_onset", "movie_onset", "video_onset", "audio_onset"],
)
def test_a_column_says_where_in_the_media_a_row_starts(tmp_path, column):
    path = write_events(tmp_path, f"onset\tduration\tstim_file\t{column}\n5\t10\ta.mkv\t60.25\n20\t5\ta.mkv\tn/a\n")
    assert [row.media_onset for row in read_events(path)] == [60.25, None]


@pytest.mark.parametrize("bad", ["1,5", "", "nan", "inf", "five"])
def test_an_onset_that_is_no_number_names_file_line_and_text(tmp_path, bad):
    path = write_events(tmp_path, f"onset\tduration\tstim_file\n0\t1\ta.mkv\n{bad}\t3\ta.mkv\n")
    with pytest.raises(InputDataError) as caught:
        read_events(path)
    assert str(path) in str(caught.value)
    assert f"line 3: onset is {bad!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "example"),
    [("603,07", "603.07"), ("-1,5", "-1.5"), ("1.234,5", "12.5"), ("five", "12.5")],
)
def test_a_comma_names_file_line_column_and_what_to_write(tmp_path, text, example):
    path = write_events(tmp_path, f"onset\tduration\tstim_file\n0\t{text}\ta.mkv\n")
    with pytest.raises(InputDataError) as caught:
        read_events(path)
    assert str(caught.value) == (
        f"{path}, line 2: duration is '{text}', but must be a number of seconds with a point (such as {example}); "
        "correct the file."
    )


def test_a_negative_duration_names_file_line_and_value(tmp_path):
    path = write_events(tmp_path, "onset\tduration\tstim_file\n0\t0\ta.mkv\n9\t-1.5\ta.mkv\n")
    with pytest.raises(InputDataError, match=rf"{path}, line 3: duration is -1.5, but must not be negative"):
        read_events(path)


def test_rows_without_an_onset_and_rows_that_repeat_another_are_passed_over(tmp_path):
    path = write_events(
        tmp_path,
        "onset\tduration\tstim_file\tnote\nn/a\t13\ta.wav\tx\n5\t13\ta.wav\ty\n5.0\t13.0\ta.wav\tz\n5\t14\ta.wav\t\n",
    )
    assert [(row.onset, row.duration) for row in read_events(path)] == [(5.0, 13.0), (5.0, 14.0)]


@pytest.mark.parametrize("column", ["stim_onset", "stimulus_onset"])
def test_a_column_that_repeats_the_onset_is_no_time_in_the_media(tmp_path, column):
    path = write_events(tmp_path, f"onset\tduration\tstim_file\t{column}\n5\t10\ta.mkv\t5\n20\t5\ta.mkv\t20\n")
    with pytest.raises(InputDataError, match=rf"column {column} of .* repeats the column onset.*media_onset"):
        read_events(path)
    start = write_events(tmp_path, f"onset\tduration\tstim_file\t{column}\n0\t10\ta.mkv\t0\n")
    assert read_events(start)[0].media_onset == 0.0


FRAMES = "onset\tduration\tframeidx\tvideotime\taudiotime\tlasttrigger\n"


def test_frames_are_read_in_order_and_broken_rows_passed_over(tmp_path):
    rows = "0.061\t0.040\t2\t40.0\t0\t0\n0.021\tn/a\t1\t0.0\t0\t0\nn/a\t1\t3\t80\t0\t0\n0.101\t0.04\t3\tn/a\t0\t0\n"
    path = write_events(tmp_path, FRAMES + rows + "0.061\t0.040\t2\t40.0\t0\t0\n")
    (film,) = read_frames(path)
    assert film.stim_file == ""
    assert film.onset.tolist() == [0.021, 0.061]
    assert film.frame_index.tolist() == [1, 2]
    assert film.video_time.tolist() == [0.0, 40.0]


def test_frames_of_several_films_are_told_apart(tmp_path):
    header = "onset\tframeidx\tvideotime\tstim_file\n"
    path = write_events(tmp_path, header + "0\t0\t0\ta.mkv\n1\t0\t0\tb.mkv\n2\t1\t2\tn/a\n0.04\t1\t0.04\ta.mkv\n")
    assert [(film.stim_file, film.onset.tolist()) for film in read_frames(path)] == [
        ("a.mkv", [0.0, 0.04]),
        ("b.mkv", [1.0]),
    ]


def test_events_of_stimuli_hold_no_frames(tmp_path):
    assert read_frames(write_events(tmp_path, "onset\tduration\tstim_file\n0\t1\ta.mkv\n")) == ()


def test_a_comma_in_the_time_of_a_frame(tmp_path):
    path = write_events(tmp_path, FRAMES + "0,021\t0.040\t1\t0.0\t0\t0\n")
    with pytest.raises(InputDataError, match=r"line 2: onset is '0,021'.*such as 0.021"):
        read_frames(path)


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(InputDataError, match=r"no column duration, stim_file.*--stimulus-map"):
        read_events(write_events(tmp_path, "onset\ttrial_type\n0\tx\n"))


@pytest.mark.parametrize("make", [lambda p: p.write_bytes(b"\xff\xfe\x00onset"), lambda p: p.symlink_to("gone.tsv")])
def test_events_that_cannot_be_read_are_one_sentence(tmp_path, make):
    path = tmp_path / "task-a_events.tsv"
    make(path)
    with pytest.raises(InputDataError, match=r"task-a_events.tsv cannot be read.*datalad get"):
        read_events(path)


HEADER = "task\tsession\trun\tstim_file\trun_onset\tmedia_onset\tduration\n"


def run_of(task: str = "movie", session: str | None = "001", run: int | None = 1) -> Run:
    return Run("01", session, task, run, "T1w", None, None, None, 2.0, 0.0, 10)


def read_map(tmp_path: Path, *rows: str):
    path = tmp_path / "map.tsv"
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return read_stimulus_map(path)


@pytest.mark.parametrize(
    ("row", "fits", "misses"),
    [
        ("movie\tn/a\tn/a", [run_of(), run_of(session=None, run=None), run_of(run=2)], [run_of(task="rest")]),
        ("n/a\t001\tn/a", [run_of(), run_of(task="rest")], [run_of(session="002"), run_of(session=None)]),
        ("\t\t02", [run_of(run=2), run_of(run=2, session=None)], [run_of(), run_of(run=None)]),
        ("task-movie\tses-001\trun-1", [run_of()], [run_of(run=2), run_of(session="01")]),
        ("n/a\tn/a\tn/a", [run_of(), run_of(task="x", session=None, run=None)], []),
    ],
)
def test_empty_fields_of_a_map_mean_any(tmp_path, row, fits, misses):
    rows = read_map(tmp_path, f"{row}\ta.mkv\t0\t0\tn/a")
    assert all(len(mapped_showings(rows, run)) == 1 for run in fits)
    assert all(mapped_showings(rows, run) == () for run in misses)


def test_a_map_gives_showings_in_order_of_onset(tmp_path):
    rows = read_map(tmp_path, "n/a\tn/a\tn/a\tb.mkv\t100\t7.5\t50", "n/a\tn/a\tn/a\ta.mkv\t-2\tn/a\tn/a")
    assert mapped_showings(rows, run_of()) == (
        Showing("a.mkv", -2.0, 0.0, None),
        Showing("b.mkv", 100.0, 7.5, 50.0),
    )


@pytest.mark.parametrize(
    "row",
    [
        "m\t1\tone\ta.mkv\t0\t0\t1",
        "m\t1\t1\ta.mkv\t1,5\t0\t1",
        "m\t1\t1\ta.mkv\t0\tnan\t1",
        "m\t1\t1\ta.mkv\t0\t0\tinf",
        "m\t1\t1\ta.mkv\t0\t0\t-1.5",
        "m\t1\t1\tn/a\t0\t0\t1",
    ],
)
def test_faults_of_a_map_name_the_line(tmp_path, row):
    with pytest.raises(UsageError, match=r"map.tsv, line 3:"):
        read_map(tmp_path, "m\t1\t1\ta.mkv\t0\t0\t1", row)


def test_a_map_without_a_column_or_that_is_not_there(tmp_path):
    path = tmp_path / "map.tsv"
    path.write_text("task\tstim_file\nm\ta.mkv\n")
    with pytest.raises(UsageError, match=r"no column session, run, run_onset, media_onset, duration"):
        read_stimulus_map(path)
    with pytest.raises(UsageError, match=r"cannot be read"):
        read_stimulus_map(tmp_path / "none.tsv")


def test_a_map_may_name_participants(tmp_path):
    path = tmp_path / "map.tsv"
    path.write_text(
        "participant\t" + HEADER + "sub-02\tmovie\tn/a\tn/a\ta.mkv\t0\t0\tn/a\n01\tmovie\t\t\tb.mkv\t0\t0\tn/a\n"
    )
    rows = read_stimulus_map(path)
    assert [s.stim_file for s in mapped_showings(rows, run_of())] == ["b.mkv"]
    assert [row.participant for row in rows] == ["02", "01"]


@pytest.mark.parametrize(
    ("times", "timed"), [("n/a\tn/a\tn/a", False), ("\t\t", False), ("0\tn/a\tn/a", True), ("n/a\tn/a\t5", True)]
)
def test_a_row_of_a_map_knows_whether_it_gives_times(tmp_path, times, timed):
    (row,) = read_map(tmp_path, f"movie\t001\t1\ta.mkv\t{times}")
    assert row.timed is timed
    assert row.line == 2


def test_rows_of_a_map_for_runs_that_are_not_there_name_the_line_and_the_runs(tmp_path):
    rows = read_map(
        tmp_path, "movie\tn/a\t1\ta.mkv\t0\t0\t1", "movi\tn/a\t2\tb.mkv\t0\t0\t1", "n/a\tn/a\tn/a\tc.mkv\t0\t0\t1"
    )
    (sentence,) = idle_rows(rows, [run_of(), run_of(run=2), run_of()], Path("map.tsv"))
    assert sentence == (
        "The stimulus map map.tsv, line 3: task movi, run 2 (b.mkv) is none of the runs, which are "
        "sub-01_ses-001_task-movie_run-1, sub-01_ses-001_task-movie_run-2; correct the line."
    )
    many = [run_of(run=number) for number in range(2, 50)]
    assert idle_rows(rows, many, Path("map.tsv"))[0].endswith("run-21 and 28 more; correct the line.")
