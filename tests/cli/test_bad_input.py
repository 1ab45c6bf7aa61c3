"""Every bad input gives one sentence that names it, and the exit status of its kind."""

import csv
import gzip
import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

FAST = ("--map-views", "none", "--sloppy", "--nprocs", "1", "--confounds", "motion", "--alphas", "1", "1e6", "3")
SPACE = "MNI152NLin2009cAsym"


def participant(call, study, out, *arguments):
    return call(study, out, "participant", "--participant-label", "01", *FAST, *arguments)


def sentence(result, *parts):
    """The last line of standard error, which must hold every part and no traceback."""
    assert "Traceback" not in result.err
    last = result.err.strip().splitlines()[-1]
    for part in parts:
        assert part in last, last
    return last


def bold_files(study):
    return sorted((study / "derivatives/fmriprep/sub-01").rglob("*desc-preproc_bold.nii.gz"))


def test_no_such_folder(call, tmp_path):
    result = call(tmp_path / "nowhere", tmp_path / "out", "participant")
    assert result.status == 2
    sentence(result, str(tmp_path / "nowhere"), "does not exist")


def test_output_is_the_data_set(call, study):
    result = call(study, study / "derivatives" / "..", "participant")
    assert result.status == 2
    sentence(result, str(study), "choose another")


def test_work_folder_inside_the_data_set(call, study, tmp_path):
    result = call(study, tmp_path / "out", "participant", "-w", study / "work")
    assert result.status == 2
    sentence(result, "--work-dir")


def test_unknown_participant(call, study, tmp_path):
    result = call(study, tmp_path / "out", "participant", "--participant-label", "sub-09", "01")
    assert result.status == 2
    sentence(result, "09", "available are 01, 02")


def test_filters_that_match_nothing(call, study, tmp_path):
    result = participant(call, study, tmp_path / "out", "--task-id", "friends")
    assert result.status == 2
    sentence(result, "task friends", "bourne01")


def test_no_events(call, own_study, tmp_path):
    for path in own_study.glob("*_events.tsv"):
        path.unlink()
    result = participant(call, own_study, tmp_path / "out")
    assert result.status == 70
    sentence(result, "None of 5 runs", "no events file", "--stimulus-map")


def test_missing_stimulus_costs_its_runs_only(call, own_study, tmp_path):
    (own_study / "stimuli/wolf/wolf01.mkv").unlink()
    result = participant(call, own_study, tmp_path / "out", "--models", "melspectrogram")
    assert result.status == 0
    assert "ses-001_task-wolf01 is left out" in result.err
    assert "wolf/wolf01.mkv" in result.err
    assert "datalad get" in result.err
    page = (tmp_path / "out/sub-01.html").read_text(encoding="utf-8")
    assert "wolf01.mkv" in page


def test_all_stimuli_missing(call, own_study, tmp_path):
    shutil.rmtree(own_study / "stimuli")
    result = participant(call, own_study, tmp_path / "out")
    assert result.status == 70
    sentence(result, "None of 5 runs", "datalad get", "--stimuli-dir")


def test_stimulus_that_is_no_media_file(call, own_study, tmp_path):
    (own_study / "stimuli/bourne/bourne01.mkv").write_text("not a film", encoding="utf-8")
    result = participant(call, own_study, tmp_path / "out", "--task-id", "bourne01")
    assert result.status == 70
    sentence(result, "bourne01.mkv")


def damage(film, change):
    content = bytearray(film.read_bytes())
    change(content, len(content) // 2)
    film.write_bytes(bytes(content))


def check_damage_is_masked(result, out, words):
    """The windows that need what is damaged are named and left out; the film's other windows are used."""
    assert result.status == 0, result.err
    assert "Traceback" not in result.err
    said = [line for line in result.err.splitlines() if "is left out: " in line and words in line]
    assert said
    assert all("of bourne/bourne01.mkv" in line for line in said)
    page = (out / "sub-01.html").read_text(encoding="utf-8")
    assert f"{len(said)} windows of bourne/bourne01.mkv have no features and are left out" in page
    assert words in page
    assert "runs take no part" not in page


def test_film_that_lacks_a_part_in_the_middle(call, own_study, tmp_path):
    def blank(content, middle):
        content[middle : middle + 20_000] = bytes(20_000)

    damage(own_study / "stimuli/bourne/bourne01.mkv", blank)
    result = participant(call, own_study, tmp_path / "out", "--models", "motionenergy")
    check_damage_is_masked(result, tmp_path / "out", "The stimulus bourne/bourne01.mkv is damaged from 2")


def test_video_that_cannot_be_decoded(call, own_study, tmp_path):
    def flip(content, middle):
        for place in range(middle, middle + 20_000, 200):
            content[place] ^= 0xFF

    damage(own_study / "stimuli/bourne/bourne01.mkv", flip)
    result = participant(call, own_study, tmp_path / "out", "--models", "motionenergy")
    check_damage_is_masked(result, tmp_path / "out", "The stimulus bourne/bourne01.mkv is damaged from 2")


def test_film_without_the_needed_sound(call, own_study, tmp_path):
    import av

    film = own_study / "stimuli/bourne/bourne01.mkv"
    silent = own_study / "silent.mkv"
    with av.open(str(film)) as source, av.open(str(silent), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    silent.replace(film)
    result = participant(call, own_study, tmp_path / "out", "--models", "melspectrogram")
    assert result.status == 70
    sentence(result, "melspectrogram needs sound", "bourne01.mkv", "no audio stream")


def test_nan_and_constant_voxels_are_set_aside(call, own_study, tmp_path):
    first = bold_files(own_study)[0]
    image = nib.load(first)
    mask = nib.load(str(first).replace("desc-preproc_bold", "desc-brain_mask"))
    inside = np.argwhere(np.asarray(mask.dataobj) > 0)
    data = np.asarray(image.dataobj, dtype=np.float32)
    broken = [tuple(inside[10]), tuple(inside[20])]
    data[broken[0]] = np.nan
    data[broken[1]] = 7.0
    nib.Nifti1Image(data, image.affine, image.header).to_filename(first)
    result = participant(call, own_study, tmp_path / "out", "--models", "melspectrogram")
    assert result.status == 0
    path = next((tmp_path / "out/sub-01/func").glob("*stat-r_desc-best_statmap.nii.gz"))
    values = np.asarray(nib.load(path).dataobj)
    assert all(np.isnan(values[place]) for place in broken)
    assert np.isfinite(values).sum() == len(inside) - 2
    encoding = next((tmp_path / "out/sub-01/func").glob("*desc-encoding_mask.nii.gz"))
    assert np.asarray(nib.load(encoding).dataobj).sum() == len(inside) - 2


def test_mask_of_another_shape(call, own_study, tmp_path):
    path = str(bold_files(own_study)[0]).replace("desc-preproc_bold", "desc-brain_mask")
    nib.Nifti1Image(np.ones((3, 4, 5), dtype=np.uint8), np.eye(4)).to_filename(path)
    result = participant(call, own_study, tmp_path / "out")
    assert result.status == 70
    sentence(result, "mask", "(3, 4, 5)", "one grid")


def test_repetition_time_that_disagrees(call, own_study, tmp_path):
    sidecar = bold_files(own_study)[0]
    sidecar = sidecar.with_name(sidecar.name.replace(".nii.gz", ".json"))
    content = json.loads(sidecar.read_text(encoding="utf-8"))
    sidecar.write_text(json.dumps(content | {"RepetitionTime": 2.0}), encoding="utf-8")
    result = participant(call, own_study, tmp_path / "out")
    assert result.status == 70
    sentence(result, "RepetitionTime is 2 s", "1.49 s", "header")


def test_truncated_bold(call, own_study, tmp_path):
    path = bold_files(own_study)[0]
    whole = gzip.compress(gzip.decompress(path.read_bytes()))
    path.write_bytes(whole[: len(whole) // 2])
    result = participant(call, own_study, tmp_path / "out", "--models", "melspectrogram")
    assert result.status == 1
    assert path.name in result.err
    assert "Traceback" not in result.err
    assert (tmp_path / "out/dataset_description.json").is_file()
    assert (tmp_path / "out/.bidsignore").is_file()
    assert path.name in (tmp_path / "out/sub-01.html").read_text(encoding="utf-8")


def test_too_few_runs_to_test_on_others(call, study, tmp_path):
    result = participant(call, study, tmp_path / "out", "--task-id", "life01", "--test-task", "life*")
    assert result.status == 70
    sentence(result, "2 are for testing and 0 for training")


def test_test_task_that_matches_nothing(call, study, tmp_path):
    result = participant(call, study, tmp_path / "out", "--test-task", "friends*")
    assert result.status == 2
    sentence(result, "friends*", "its tasks are bourne01, bourne02, life01, wolf01")


def test_run_too_short_to_cut(call, study, tmp_path):
    result = participant(call, study, tmp_path / "out", "--task-id", "wolf01", "--n-folds", "12")
    assert result.status == 70
    sentence(result, "fold")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--models", "gpt9"), ("gpt9", "motionenergy")),
        (("--models", "qwen25vltiny={study}/models/qwen25vltiny", "--instructions", "XYZ"), ("XYZ", "ESA")),
        (("--models", "mine={study}/stimuli"), ("stimuli", "config.json")),
        (("--models", "mine={study}/nowhere"), ("nowhere",)),
        (("--atlas", "{study}/nowhere.nii.gz"), ("nowhere.nii.gz",)),
        (("--delays", "1", "1"), ("--delays",)),
        (("--mem", "lots"), ("--mem", "16G")),
        (("--derivatives", "fmriprep={study}/nowhere"), ("nowhere", "--derivatives")),
        (("--space", "fsLR"), ("fsLR", "volumes in MNI152NLin2009cAsym", "tasks bourne01")),
        (("--space", "fsLR:91k"), ("fsLR:91k", "den-LABEL")),
    ],
)
def test_wrong_values(call, study, tmp_path, arguments, parts):
    filled = [argument.format(study=study) for argument in arguments]
    result = participant(call, study, tmp_path / "out", *filled)
    assert result.status == 2
    sentence(result, *parts)


def write_table(folder, stim_file, rows, columns=("onset", "duration", "words")):
    path = (folder / stim_file).with_suffix(".tsv")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(columns)
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([(0, 10, 1), (20, 30, 2)], ("wolf01", "words", "10")),
        ([(0, 10, "many"), (10, 40, 2)], ("wolf01.tsv, line 2", "words", "'many'")),
        ([(0, 60, 1)], ("wolf01", "row")),
        ([(0, 5, 1), (5, 5, 1)], ("wolf01", "10")),
    ],
    ids=["gap", "text", "one row", "too few rows"],
)
def test_feature_tables_that_cannot_be_used(call, study, tmp_path, rows, parts):
    write_table(tmp_path / "words", "wolf/wolf01.mkv", rows)
    result = participant(
        call, study, tmp_path / "out", "--task-id", "wolf01", "--feature-table", f"words={tmp_path / 'words'}"
    )
    assert result.status == 70
    sentence(result, *parts)


def test_feature_table_missing(call, study, tmp_path):
    (tmp_path / "words").mkdir()
    result = participant(
        call, study, tmp_path / "out", "--task-id", "wolf01", "--feature-table", f"words={tmp_path / 'words'}"
    )
    assert result.status == 70
    sentence(result, "wolf01.tsv does not exist")


@pytest.mark.slow
def test_full_disk_leaves_nothing_half_written(study, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        command = [
            sys.executable, "-m", "bids_mllm.cli.run", study, tmp_path / "out", "participant", *FAST,
            "--participant-label", "01", "--features-dir", small, "-w", tmp_path / "work",
        ]  # fmt: skip
        result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        left = [path for path in small.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", small], check=True)
    assert result.returncode == 1
    assert "is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert not [path for path in left if "partial" in path.name or path.name.startswith(".new")]
    again = subprocess.run(
        [str(c) if c != small else str(tmp_path / "large") for c in command], capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr


def test_layers_that_no_model_has(call, study, tmp_path):
    model = f"qwen25vltiny={study / 'models/qwen25vltiny'}"
    words = ("--models", model, "--instructions", "AR", "--poolings", "media", "--layers", "77", "--test-task", "life*")
    result = participant(call, study, tmp_path / "out", *words)
    assert result.status == 1
    assert "--layers asks for 77, but qwen25vltiny has the layers 0 to 4" in result.err
    assert "Traceback" not in result.err


def test_a_participant_without_any_run_is_not_passed_over_in_silence(call, own_study, tmp_path):
    for path in (own_study / "derivatives/fmriprep/sub-02").rglob("*desc-preproc_bold.nii.gz"):
        path.unlink()
        path.symlink_to("../.git/annex/objects/none")
    result = call(own_study, tmp_path / "out", "participant", *FAST, "--models", "melspectrogram")
    assert result.status == 1
    assert "sub-02 has no run that can be used" in result.err
    assert "datalad get" in result.err
    assert (tmp_path / "out/sub-01.html").is_file()


def test_two_atlases_of_one_name(call, own_study, tmp_path):
    atlas = own_study / "sourcedata/truth/atlas-planted_dseg.nii.gz"
    other = tmp_path / "atlas-planted_scale-2_dseg.nii.gz"
    shutil.copyfile(atlas, other)
    shutil.copyfile(atlas.with_name("atlas-planted_dseg.tsv"), tmp_path / "atlas-planted_scale-2_dseg.tsv")
    result = participant(call, own_study, tmp_path / "out", "--atlas", atlas, other)
    assert result.status == 2
    sentence(result, "both carry the name planted")


@pytest.mark.parametrize(
    ("option", "values", "parts"),
    [
        ("--task-id", ("life01", "typo99"), ("task typo99", "bourne01, bourne02, life01, wolf01")),
        ("--session-label", ("001", "nope"), ("ses nope", "001, 002")),
        ("--run-id", ("1", "77"), ("run 77", "1, 2")),
        ("--space", (SPACE, "MNI152NLin6Asym"), ("space MNI152NLin6Asym", SPACE)),
    ],
)
def test_unknown_labels_beside_known_ones(call, study, tmp_path, option, values, parts):
    result = participant(call, study, tmp_path / "out", option, *values)
    assert result.status == 2
    sentence(result, *parts)


def test_run_that_ends_before_its_film_starts_is_left_out(call, own_study, tmp_path):
    (own_study / "task-wolf01_events.tsv").write_text(
        "onset\tduration\tstim_file\n500\t45\twolf/wolf01.mkv\n", encoding="utf-8"
    )
    result = participant(call, own_study, tmp_path / "out", "--models", "melspectrogram")
    assert result.status == 0
    assert "ses-001_task-wolf01 is left out: only 0 of 3" in result.err
    assert "of the training segment next to the held-out one are left out" in (tmp_path / "out/sub-01.html").read_text(
        "utf-8"
    )


def test_atlas_without_a_table_is_refused_before_any_work(call, study, tmp_path):
    atlas = tmp_path / "atlas-bare_dseg.nii.gz"
    shutil.copyfile(study / "sourcedata/truth/atlas-planted_dseg.nii.gz", atlas)
    result = participant(call, study, tmp_path / "out", "--atlas", atlas)
    assert result.status == 2
    sentence(result, "atlas-bare_dseg.tsv")
    assert not (tmp_path / "out").exists()


def test_feature_table_with_one_name_twice(call, study, tmp_path):
    rows = [(0, 20, 1, 2), (20, 30, 1, 2)]
    write_table(tmp_path / "words", "wolf/wolf01.mkv", rows, columns=("onset", "duration", "words", "words"))
    result = participant(
        call, study, tmp_path / "out", "--task-id", "wolf01", "--feature-table", f"words={tmp_path / 'words'}"
    )
    assert result.status == 70
    sentence(result, "the column words twice")


@pytest.mark.parametrize(
    ("words", "status", "what"),
    [
        (("--partition", "melspectrogram"), 2, "--partition names melspectrogram, which has 0 instructions"),
        (("--bands", "melspectrogram", "words"), 2, "--bands names words, but the models and tables asked for are"),
        (("--bands", "melspectrogram:language", "melspectrogram"), 2, "the groups of instructions that are asked of"),
        (("--noise-ceiling", "participants", "--participant-label", "01"), 70, "two or more others in the call"),
        (("--noise-ceiling", "repeats", "--task-id", "wolf01", "bourne01"), 70, "saw no held-out film more than once"),
        (("--cv", "kfold", "--n-folds", "40"), 70, "40 folds of runs are asked for"),
        (("--permutations", "5"), 2, "--permutations is 5, but must be 19 or more"),
        (("--equal-rank", "0"), 2, "--equal-rank is 0"),
    ],
)
def test_statistics_that_cannot_be_had_are_refused_before_any_work(call, study, tmp_path, words, status, what):
    result = participant(call, study, tmp_path / "out", "--models", "melspectrogram", *words)
    assert result.status == status
    sentence(result, what)
    assert not list((tmp_path / "out").glob("sub-*/func"))


@pytest.mark.parametrize(
    ("content", "status", "what"),
    [
        ("{", 2, "cannot be read"),
        ("[]", 2, "has no list Folds"),
        ('{"Folds": []}', 70, "split.json holds no folds"),
        ('{"Folds": [{"Train": {"task-x": [[0, 9]]}, "Test": {}, "Inner": []}]}', 70, "names the run task-x"),
    ],
)
def test_split_files_that_cannot_be_used(call, study, tmp_path, content, status, what):
    (tmp_path / "split.json").write_text(content)
    result = participant(
        call, study, tmp_path / "out", "--models", "melspectrogram", "--cv-file", tmp_path / "split.json"
    )
    assert result.status == status
    sentence(result, what)


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("tpl-MNI152NLin6Asym_atlas-own_dseg", None, "is in the space MNI152NLin6Asym, but the maps are in"),
        ("space-MNI152NLin2009cAsym_atlas-own_dseg", "index\tname\n901\tV1\n", "No label of the table"),
    ],
)
def test_an_atlas_that_does_not_fit_is_refused_before_any_work(call, study, tmp_path, name, table, said):
    truth = study / "sourcedata/truth"
    atlas = tmp_path / f"{name}.nii.gz"
    shutil.copyfile(truth / "atlas-planted_dseg.nii.gz", atlas)
    (tmp_path / f"{name}.tsv").write_text(table or (truth / "atlas-planted_dseg.tsv").read_text())
    result = participant(call, study, tmp_path / "out", "--atlas", atlas)
    assert result.status == 2
    sentence(result, atlas.name, said)


def test_an_atlas_that_templateflow_has_not_fetched_is_told_with_the_command(call, study, tmp_path):
    result = participant(call, study, tmp_path / "out", "--atlas", "Schaefer400")
    assert result.status == 2
    sentence(
        result, "bids-mllm-templates prefetch --to DIR --space MNI152NLin2009cAsym --atlas Schaefer400x7", "is missing"
    )
