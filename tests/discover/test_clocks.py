"""Repetition time and time of the first volume, by hand, for series of every form."""

import pytest

from bids_mllm.discover.clocks import Clock, Clocks
from bids_mllm.discover.names import FolderIndex, parse_name
from bids_mllm.exceptions import InputDataError

from .tree import TR, dangle, write_json

NIFTI = "sub-01/ses-001/func/sub-01_ses-001_task-a_run-1_space-T1w_desc-preproc_bold.nii.gz"
CIFTI = "sub-01/ses-001/func/sub-01_ses-001_task-a_run-1_space-fsLR_den-91k_bold.dtseries.nii"
GIFTI = "sub-01/ses-001/func/sub-01_ses-001_task-a_run-1_hemi-L_space-fsaverage5_bold.func.gii"
XCP_D = "sub-01/ses-001/func/sub-01_ses-001_task-a_run-1_space-fsLR_seg-Glasser_stat-mean_timeseries.tsv"
RAW = "sub-01/ses-001/func/sub-01_ses-001_task-a_run-01_bold.json"


@pytest.fixture
def clock(tmp_path):
    """Write sidecars below ``raw`` and ``prep``, and return the clock of a series."""

    def _clock(series, prep=(), raw=(), header_tr=0.0):
        for folder, files in (("raw", raw), ("prep", prep)):
            for name, content in dict(files).items():
                write_json(tmp_path / folder / name, content)
        clocks = Clocks(tmp_path / "raw", tmp_path / "prep", FolderIndex())
        return clocks.clock(parse_name(tmp_path / "prep" / series), header_tr)

    return _clock


def own(series: str) -> str:
    return series.partition(".")[0] + ".json"


@pytest.mark.parametrize(
    ("sidecar", "start"),
    [
        ({}, 0.0),
        ({"DelayTime": 0.5}, 0.0),
        ({"SliceTiming": [0.0, 1.4]}, 0.0),
        ({"SliceTimingCorrected": False, "DelayTime": 0.5}, 0.0),
        ({"SliceTimingCorrected": True}, 1.0),
        ({"SliceTimingCorrected": True, "DelayTime": 0.5}, 0.75),
        ({"SliceTimingCorrected": True, "SliceTiming": [0.7, 0.0, 1.4, 0.7]}, 0.7),
        ({"SliceTimingCorrected": True, "SliceTiming": [0.1, 1.5], "DelayTime": 0.5}, 0.8),
        ({"SliceTimingCorrected": True, "SliceTiming": [0.0, 1.4], "StartTime": 0.345}, 0.345),
        ({"SliceTimingCorrected": True, "StartTime": 0}, 0.0),
        ({"StartTime": 2.0}, 2.0),
    ],
)
def test_the_time_of_the_first_volume(clock, sidecar, start):
    assert clock(NIFTI, {own(NIFTI): {"RepetitionTime": 2.0} | sidecar}) == Clock(2.0, pytest.approx(start, abs=1e-12))


def test_slice_times_and_delay_may_stand_in_the_raw_sidecar_only(clock):
    corrected = {own(NIFTI): {"RepetitionTime": 2.0, "SliceTimingCorrected": True}}
    assert clock(NIFTI, corrected, {RAW: {"DelayTime": 0.4}}).start_time == pytest.approx(0.8, abs=1e-12)
    raw = {"sub-01/sub-01_task-a_bold.json": {"SliceTiming": [0.0, 0.6, 1.2]}}
    assert clock(NIFTI, corrected, raw).start_time == pytest.approx(0.6, abs=1e-12)


def test_a_start_time_of_the_raw_series_is_not_that_of_the_preprocessed_one(clock):
    raw = {RAW: {"RepetitionTime": 2.0, "StartTime": 0.5, "SliceTimingCorrected": True}}
    assert clock(NIFTI, {}, raw) == Clock(2.0, 0.0)


@pytest.mark.parametrize("series", [NIFTI, CIFTI, GIFTI, XCP_D])
def test_the_repetition_time_of_every_form(clock, series):
    assert clock(series, {own(series): {"RepetitionTime": 1.49}}).repetition_time == 1.49


@pytest.mark.parametrize("series", [NIFTI, CIFTI, GIFTI, XCP_D])
def test_the_repetition_time_of_the_raw_run_whose_zero_was_lost(clock, series):
    assert clock(series, {}, {RAW: {"RepetitionTime": 1.49}}).repetition_time == 1.49
    assert clock(series, {}, {"task-a_bold.json": {"RepetitionTime": 1.49}}).repetition_time == 1.49


def test_a_series_in_an_hdf5_file_has_the_clock_of_its_raw_run(clock, tmp_path):
    write_json(tmp_path / "raw" / RAW, {"RepetitionTime": 1.49})
    name = parse_name(tmp_path / "prep" / NIFTI)
    series = type(name)(tmp_path / "prep/fmri/sub-01_atlas-x_bold.h5", name.entities, "bold", ".h5")
    assert Clocks(tmp_path / "raw", tmp_path / "prep", FolderIndex()).clock(series) == Clock(1.49, 0.0)


@pytest.mark.parametrize("series", [NIFTI, GIFTI])
def test_as_movie10_has_it_the_repetition_time_is_with_the_grayordinates_only(clock, series):
    prep = {own(CIFTI): {"RepetitionTime": 1.49}, own(NIFTI): {"DelayTime": 0.1175}}
    assert clock(series, prep) == Clock(1.49, 0.0)


def test_a_sidecar_of_another_run_or_of_confounds_says_nothing(clock):
    other = own(CIFTI).replace("run-1", "run-2")
    confounds = own(NIFTI).replace("_space-T1w_desc-preproc_bold", "_desc-confounds_timeseries")
    with pytest.raises(InputDataError, match=r"RepetitionTime of .*write it into"):
        clock(NIFTI, {other: {"RepetitionTime": 1.0}, confounds: {"RepetitionTime": 3.0}})


def test_the_same_run_in_another_space_says_which_instant_volumes_stand_for(clock):
    prep = {own(NIFTI): {"RepetitionTime": 2.0, "SliceTimingCorrected": True, "StartTime": 0.97}}
    assert clock(GIFTI, prep) == Clock(2.0, 0.97)
    prep |= {own(GIFTI): {"RepetitionTime": 2.0, "SliceTimingCorrected": False}}
    assert clock(GIFTI, prep) == Clock(2.0, 0.0)


def test_a_sidecar_named_after_the_whole_extension(clock):
    name = CIFTI.replace(".dtseries.nii", ".dtseries.json")
    assert clock(CIFTI, {name: {"RepetitionTime": 0.8, "StartTime": 0.4}}) == Clock(0.8, 0.4)


BROKEN = [
    (dangle, r"not fetched; run: datalad get .*_bold\.json"),
    (lambda path: path.write_bytes(b"\x80\x04\x95pickle"), r"_bold\.json.* cannot be read \(.*codec.*\); correct it"),
    (lambda path: path.write_text('{"StartTime": 1,}'), r"_bold\.json.* cannot be read \(Expecting.*\); correct it"),
    (lambda path: path.write_text("[1]"), r"_bold\.json.* no object; correct it"),
]


@pytest.mark.parametrize(("break_it", "words"), BROKEN)
@pytest.mark.parametrize("name", [f"prep/{own(NIFTI)}", f"raw/{RAW}", "raw/task-a_bold.json"])
def test_a_sidecar_that_cannot_be_read_is_not_an_empty_one(clock, tmp_path, name, break_it, words):
    prep = {own(NIFTI): {"RepetitionTime": 2.0, "SliceTimingCorrected": True}, own(CIFTI): {"RepetitionTime": 2.0}}
    path = write_json(tmp_path / name, {})
    if name.startswith("prep"):
        prep.pop(own(NIFTI))
    break_it(path)
    with pytest.raises(InputDataError, match=words):
        clock(NIFTI, prep, header_tr=2.0)


@pytest.mark.parametrize(("break_it", "words"), BROKEN)
def test_a_broken_sidecar_of_another_space_stops_a_run_only_where_it_is_needed(clock, tmp_path, break_it, words):
    break_it(write_json(tmp_path / "prep" / own(CIFTI), {}))
    says = {"RepetitionTime": 2.0, "SliceTimingCorrected": False}
    assert clock(NIFTI, {own(NIFTI): says}) == Clock(2.0, 0.0)
    assert clock(NIFTI, {own(NIFTI): {"StartTime": 0.5}}, header_tr=2.0) == Clock(2.0, 0.5)
    with pytest.raises(InputDataError, match=words):
        clock(NIFTI, {own(NIFTI): {"StartTime": 0.5}})
    with pytest.raises(InputDataError, match=words):
        clock(NIFTI, {own(NIFTI): {"RepetitionTime": 2.0}})
    assert clock(NIFTI, {own(NIFTI): {}, own(GIFTI): says}) == Clock(2.0, 0.0)


def test_other_broken_files_of_a_run_stop_nothing(clock, tmp_path):
    folder = (tmp_path / "prep" / XCP_D).parent
    stem = "sub-01_ses-001_task-a_run-1"
    dangle(folder / f"{stem}_desc-confounds_timeseries.json")
    dangle(tmp_path / "raw" / RAW.replace("_bold", "_physio"))
    dangle(tmp_path / "raw" / RAW.replace("run-01", "run-02"))
    assert clock(XCP_D, {own(XCP_D): {"RepetitionTime": 2.0}}) == Clock(2.0, 0.0)


def test_a_run_that_is_not_here_is_listed_though_its_sidecar_is_not_here_either(study, find):
    bold = dangle(study.add("01", None, "a"))
    dangle(bold.with_name(bold.name.replace(".nii.gz", ".json")))
    write_json(study.raw / "task-a_bold.json", {"RepetitionTime": TR})
    (run,) = find()
    assert (run.bold, run.missing, run.repetition_time) == (None, bold, TR)


def test_the_header_comes_last(clock):
    assert clock(NIFTI, header_tr=1.5) == Clock(1.5, 0.0)
    with pytest.raises(InputDataError, match=r"2 s in the sidecar .* but 1.5 s in its header"):
        clock(NIFTI, {own(NIFTI): {"RepetitionTime": 2.0}}, header_tr=1.5)


@pytest.mark.parametrize(
    "sidecar",
    [
        {"StartTime": -0.1},
        {"StartTime": 2.001},
        {"SliceTimingCorrected": True, "DelayTime": 2.5},
        {"SliceTimingCorrected": True, "SliceTiming": [0.0, 1400.0]},
        {"SliceTimingCorrected": True, "SliceTiming": [-0.1, 1.0]},
    ],
)
def test_a_time_outside_the_tr_is_one_sentence(clock, sidecar):
    with pytest.raises(InputDataError, match=r"(StartTime|DelayTime|SliceTiming) is .* RepetitionTime of 2 s; correct"):
        clock(NIFTI, {own(NIFTI): {"RepetitionTime": 2.0} | sidecar})


@pytest.mark.parametrize("slices", [[], "0, 1", [0.0, None], [0.0, True]])
def test_slice_times_that_are_none(clock, slices):
    sidecar = {"RepetitionTime": 2.0, "SliceTimingCorrected": True, "SliceTiming": slices}
    with pytest.raises(InputDataError, match=r"SliceTiming in the sidecar of .* must be a list"):
        clock(NIFTI, {own(NIFTI): sidecar})


def test_sparse_sampling_is_refused(clock):
    with pytest.raises(InputDataError, match=r"VolumeTiming and no RepetitionTime.*sparse"):
        clock(NIFTI, {}, {RAW: {"VolumeTiming": [0.0, 4.0, 12.0]}}, header_tr=4.0)
    both = {RAW: {"VolumeTiming": [0.0, 4.0], "RepetitionTime": 4.0}}
    assert clock(NIFTI, {}, both).repetition_time == 4.0
