"""Finding the derivative and its participants, and what is indexed of it."""

import json

import pytest

from bids_mllm.discover.layout import (
    check_raw_dataset,
    choose_participants,
    find_derivatives,
    index_derivative,
    read_filters,
)
from bids_mllm.exceptions import InputDataError, UsageError


def describe(folder, **content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_description.json").write_text(json.dumps(content))
    return folder


def main_of(bids_dir, derivatives):
    return next(iter(find_derivatives(bids_dir, derivatives).values()))


def test_the_raw_description_must_say_what_bids_requires(tmp_path):
    describe(tmp_path, Name="x", BIDSVersion="1.0.1")
    check_raw_dataset(tmp_path)
    describe(tmp_path, Authors=[])
    with pytest.raises(InputDataError, match=r"no Name and no BIDSVersion.*--skip-bids-validation"):
        check_raw_dataset(tmp_path)


@pytest.mark.parametrize(
    "description",
    [
        {"GeneratedBy": [{"Name": "fMRIPrep"}]},
        {"GeneratedBy": [{"Name": "other"}, {"Name": "FMRIPREP"}]},
        {"PipelineDescription": {"Name": "fmriprep"}},
    ],
)
def test_the_one_derivative_that_fmriprep_made_is_found(tmp_path, description):
    wanted = describe(tmp_path / "derivatives" / "anything", **description)
    describe(tmp_path / "derivatives" / "mriqc", GeneratedBy=[{"Name": "MRIQC"}])
    describe(tmp_path / "derivatives" / "odd", GeneratedBy=["fMRIPrep"])
    (tmp_path / "derivatives" / "bare").mkdir()
    assert main_of(tmp_path, {}) == wanted


def test_two_derivatives_are_an_error_that_lists_both(tmp_path):
    made = [describe(tmp_path / "derivatives" / n, GeneratedBy=[{"Name": "fMRIPrep"}]) for n in ("a", "b")]
    with pytest.raises(UsageError) as caught:
        main_of(tmp_path, {})
    assert all(str(path) in str(caught.value) for path in made)


def test_named_and_bare_paths(tmp_path):
    one = describe(tmp_path / "one", GeneratedBy=[{"Name": "fMRIPrep"}])
    two = tmp_path / "two"
    two.mkdir()
    assert main_of(tmp_path, {"two": two}) == two
    assert main_of(tmp_path, {"fmriprep": two, "one": one}) == two
    assert main_of(tmp_path, {"two": two, "one": one}) == one
    with pytest.raises(UsageError, match=r"none does not exist"):
        main_of(tmp_path, {"fmriprep": tmp_path / "none"})
    with pytest.raises(UsageError, match=r"No fMRIPrep derivative"):
        main_of(tmp_path, {})


def test_unknown_participants_are_listed_with_those_there(study):
    study.add("01", None, "a")
    study.add("02", None, "a")
    assert choose_participants([study.prep], ()) == ("01", "02")
    assert choose_participants([study.prep], ("02",)) == ("02",)
    with pytest.raises(UsageError) as caught:
        choose_participants([study.prep], ("03", "01", "9"))
    assert "03, 9; available are 01, 02" in str(caught.value)


def test_a_folder_without_participants(study):
    with pytest.raises(InputDataError, match=r"holds no sub-"):
        choose_participants([study.prep], ())


def test_only_the_participants_asked_for_are_indexed(study):
    for label in ("01", "010", "02"):
        study.add(label, "001", "a")
    layout = index_derivative("fmriprep", study.prep, ("01",)).layout
    assert layout.get_subjects() == ["01"]
    assert index_derivative("fmriprep", study.prep, ("01", "02")).layout.get_subjects() == ["01", "02"]


def test_figures_and_logs_are_not_indexed(study):
    study.add("01", None, "a")
    for folder in ("figures", "log", "anat"):
        (study.prep / "sub-01" / folder).mkdir()
        (study.prep / "sub-01" / folder / "sub-01_task-a_bold.nii.gz").write_text("")
    files = index_derivative("fmriprep", study.prep, ("01",)).layout.get(suffix="bold", return_type="filename")
    assert len(files) == 1


def test_a_database_is_made_and_then_reused(study, tmp_path):
    study.add("01", None, "a")
    database = tmp_path / "deep" / "index"
    first = index_derivative("fmriprep", study.prep, ("01",), database_dir=database).layout
    assert len(first.get(suffix="bold", extension=".nii.gz")) == 1
    study.add("01", None, "b")
    again = index_derivative("fmriprep", study.prep, ("01",), database_dir=database).layout
    assert len(again.get(suffix="bold", extension=".nii.gz")) == 1
    assert len(index_derivative("fmriprep", study.prep, ("01",)).layout.get(suffix="bold", extension=".nii.gz")) == 2


def test_a_database_serves_every_participant(study, tmp_path):
    study.add("01", None, "a")
    study.add("02", None, "a")
    index_derivative("fmriprep", study.prep, ("01",), database_dir=tmp_path / "index")
    layout = index_derivative("fmriprep", study.prep, ("02",), database_dir=tmp_path / "index").layout
    assert layout.get_subjects() == ["01", "02"]


def test_a_derivative_without_a_description_is_one_sentence_or_indexed(study):
    study.add("01", None, "a")
    (study.prep / "dataset_description.json").write_text("{")
    with pytest.raises(InputDataError, match=r"PyBIDS cannot index .*dataset_description.json"):
        index_derivative("fmriprep", study.prep, ("01",))


def filter_file(tmp_path, text):
    path = tmp_path / "filter.json"
    path.write_text(text)
    return path


def test_filters_are_read(tmp_path):
    assert read_filters(None) == {}
    path = filter_file(tmp_path, '{"bold": {"task": "a", "res": null}, "mask": {}}')
    assert read_filters(path) == {"bold": {"task": "a", "res": None}, "mask": {}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[1]", "object of objects"),
        ('{"bold": "a"}', "object of objects"),
        ('{"bold": {}, "t1w": {}, "flair": {}}', "queries flair, t1w; known are bold, mask, confounds"),
    ],
)
def test_faults_of_filters(tmp_path, text, words):
    with pytest.raises(UsageError, match=words):
        read_filters(filter_file(tmp_path, text))


def test_only_files_that_matter_are_indexed(study):
    bold = study.add("01", "001", "a")
    stem = bold.name.partition("_space-")[0]
    wanted = (
        f"{stem}_space-T1w_bold.nii", f"{stem}_space-fsLR_den-91k_bold.dtseries.nii",
        f"{stem}_hemi-L_space-fsnative_bold.func.gii", f"{stem}_space-A_seg-B_stat-mean_timeseries.tsv",
        f"{stem}_space-A_seg-B_timeseries.ptseries.nii", f"{stem}_space-A_atlas-B_bold.h5",
        f"{stem}_desc-confounds_regressors.tsv",
    )  # fmt: skip
    others = (
        f"{stem}_space-T1w_boldref.nii.gz", f"{stem}_space-T1w_desc-aseg_dseg.nii.gz", f"{stem}_bold.json",
        f"{stem}_physio.json", f"{stem}_space-T1w_desc-preproc_bold__dup-01.nii.gz", f"{stem}_events.tsv",
        f"{stem}_desc-confounds_timeseries.json", f"{stem}_from-scanner_to-T1w_mode-image_xfm.txt",
    )  # fmt: skip
    for name in (*wanted, *others):
        (bold.parent / name).write_text("")
    files = index_derivative("fmriprep", study.prep, ("01",)).layout.get(return_type="filename")
    there = {path.rpartition("/")[2] for path in files}
    own = {bold.name, bold.name.replace("preproc_bold", "brain_mask"), f"{stem}_desc-confounds_timeseries.tsv"}
    assert there == {*wanted, *own}


def test_all_derivatives_are_named_the_main_one_first(tmp_path):
    made = {
        name: describe(tmp_path / name, GeneratedBy=[{"Name": software} for software in chain])
        for name, chain in {"xcp": ("XCP_D", "fMRIPrep"), "prep": ("fMRIPrep",), "other": ("nilearn",)}.items()
    }
    assert list(find_derivatives(tmp_path, made)) == ["prep", "xcp", "other"]
    assert find_derivatives(tmp_path, {"other": made["other"]}) == {"other": made["other"]}
    assert list(find_derivatives(tmp_path, {"other": made["other"], "xcp": made["xcp"]})) == ["other", "xcp"]
    with pytest.raises(UsageError, match=r"More than one fMRIPrep derivative was given"):
        find_derivatives(tmp_path, {"a": made["prep"], "b": made["prep"]})


def test_participants_of_all_derivatives_count(study, tmp_path):
    study.add("01", None, "a")
    (tmp_path / "fmri" / "sub-02").mkdir(parents=True)
    assert choose_participants([study.prep, tmp_path / "fmri"], ()) == ("01", "02")
