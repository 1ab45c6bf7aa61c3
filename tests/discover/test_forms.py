"""Series of every form are found with their files, sizes and clocks; what does not fit together is one sentence."""

from dataclasses import replace

import nibabel as nib
import pytest

from bids_mllm.discover.headers import read_header
from bids_mllm.discover.lost import usable_runs
from bids_mllm.exceptions import InputDataError, UsageError
from bids_mllm.records import Showing

from .forms import add_dense, add_parcels_of_cifti, add_store, add_surfaces, add_table
from .tree import SPACE, TR, dangle, write_json

NAMES = ("LH_Vis_1", "LH_Vis_2", "RH_Vis_1")
SCHAEFER = "MNI152NLin2009cAsym:atlas-Schaefer18"


def made_by(root, name):
    write_json(
        root / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.8.0", "GeneratedBy": [{"Name": name}]}
    )
    return root


# Dense CIFTI


def test_grayordinates_have_no_desc_and_their_clock_in_the_sidecar_of_bold(study, find):
    study.add("01", None, "a", n_volumes=9)
    path = add_dense(study, "a", n_volumes=9)
    write_json(path.with_name(path.name.replace(".dtseries.nii", ".dtseries.json")), {"space": "fsLR"})
    write_json(path.with_name(path.name.replace(".dtseries.nii", ".json")), {"RepetitionTime": TR, "StartTime": 0.7})
    (run,) = find(spaces=("fsLR:den-91k",))
    assert (run.form, run.space, run.density, run.place) == ("grayordinates", "fsLR", "91k", "fsLR_den-91k")
    assert (run.bold, run.bold_right, run.mask, run.n_volumes) == (path, None, None, 9)
    assert (run.repetition_time, run.start_time, run.derivative, run.denoised) == (TR, 0.7, "fmriprep", False)
    assert run.confounds.name == "sub-01_task-a_desc-confounds_timeseries.tsv"


def test_the_header_of_a_cifti_gives_the_repetition_time_where_no_sidecar_does(study, find):
    add_dense(study, "a")
    assert find(spaces=("fsLR",))[0].repetition_time == TR


def test_the_size_of_a_cifti_is_that_of_its_header_in_full(tmp_path, study):
    path = add_dense(study, "a", n_volumes=11)
    image = nib.load(path)
    header = read_header("grayordinates", path)
    assert (header.n_volumes, header.places[0]) == image.shape == (11, 13)
    assert header.repetition_time == image.header.get_axis(0).step


def test_a_cifti_of_another_density_names_both_files(study, find):
    first, second = add_dense(study, "a"), add_dense(study, "b", n_vertices=9)
    with pytest.raises(InputDataError) as caught:
        find(spaces=("fsLR",))
    assert all(word in str(caught.value) for word in (str(first), str(second), "13 gray", "19 gray", "one grid"))


def test_two_densities_are_two_places(study, find):
    add_dense(study, "a")
    add_dense(study, "a", n_vertices=9, density="170k")
    assert [run.place for run in find(spaces=("fsLR",))] == ["fsLR_den-170k", "fsLR_den-91k"]
    assert [run.place for run in find(spaces=("fsLR:den-91k",))] == ["fsLR_den-91k"]


@pytest.mark.parametrize("content", [b"", b"no image" * 100])
def test_a_damaged_cifti_is_one_sentence(study, find, content):
    add_dense(study, "a").write_bytes(content)
    with pytest.raises(InputDataError, match=r"dtseries\.nii (cannot be read|is no CIFTI)"):
        find(spaces=("fsLR",))


# Surfaces


@pytest.mark.parametrize("space", ["fsaverage5", "fsaverage6", "fsnative", "fsLR_den-32k"])
def test_both_hemispheres_are_one_run(study, find, space):
    study.add("01", None, "a")
    left = add_surfaces(study, "a", space)
    (run,) = find(spaces=(space.replace("_", ":"),))
    assert (run.form, run.place, run.n_volumes, run.repetition_time) == ("surface", space, 5, TR)
    assert (run.bold, run.bold_right) == (left, left.with_name(left.name.replace("hemi-L", "hemi-R")))
    assert run.confounds is not None


@pytest.mark.parametrize("side", ["L", "R"])
def test_a_missing_hemisphere_is_named(study, find, side):
    left = add_surfaces(study, "a", "fsaverage5")
    gone = left.with_name(left.name.replace("hemi-L", f"hemi-{side}"))
    gone.unlink()
    with pytest.raises(InputDataError) as caught:
        find(spaces=("fsaverage5",))
    assert f"there is no {gone}" in str(caught.value)


def test_hemispheres_of_different_length(study, find):
    add_surfaces(study, "a", "fsaverage5", n_volumes=(5, 6))
    with pytest.raises(InputDataError, match=r"has 5 volumes but .*hemi-R.* has 6"):
        find(spaces=("fsaverage5",))


def test_surfaces_of_different_meshes(study, find):
    add_surfaces(study, "a", "fsnative")
    add_surfaces(study, "b", "fsnative", n_vertices=8)
    with pytest.raises(InputDataError, match=r"7 \+ 7 vertices but .* 8 \+ 8 vertices"):
        find(spaces=("fsnative",))


def test_only_the_beginning_of_a_gifti_is_read(study, find):
    left = add_surfaces(study, "a", "fsaverage5")
    content = left.read_bytes()
    left.write_bytes(content[: content.index(b"<Data>")])
    assert find(spaces=("fsaverage5",))[0].n_volumes == 5


def test_a_link_to_a_hemisphere_names_the_file_to_get(study, find):
    left = add_surfaces(study, "a", "fsaverage5")
    right = dangle(left.with_name(left.name.replace("hemi-L", "hemi-R")))
    (run,) = find(spaces=("fsaverage5",))
    assert (run.bold, run.n_volumes, run.missing) == (None, 0, right)
    assert usable_runs([run])[1][0].reason.endswith(f"datalad get {right}")


# Parcels


def test_tables_of_xcp_d_are_denoised_and_take_confounds_and_start_from_fmriprep(study, find, tmp_path):
    bold = study.add("01", None, "a", sidecar={"RepetitionTime": TR, "StartTime": 0.7})
    xcp = made_by(tmp_path / "xcp", "xcp_d")
    path = add_table(xcp, "task-a_space-MNI152NLin2009cAsym_seg-4S456Parcels_stat-mean", NAMES)
    add_table(xcp, "task-a_space-MNI152NLin2009cAsym_seg-4S456Parcels_stat-coverage", NAMES)
    add_table(xcp, "task-a_space-MNI152NLin2009cAsym_seg-4S156Parcels_stat-mean", NAMES)
    (run,) = find(spaces=("MNI152NLin2009cAsym:seg-4S456Parcels",), others={"xcp": xcp})
    assert (run.form, run.bold, run.n_volumes, run.segmentation) == ("parcels", path, 5, "4S456Parcels")
    assert (run.place, run.derivative, run.denoised) == ("MNI152NLin2009cAsym_seg-4S456Parcels", "xcp", True)
    assert (run.repetition_time, run.start_time) == (TR, 0.7)
    assert run.confounds == bold.with_name("sub-01_task-a_desc-confounds_timeseries.tsv")


def test_older_names_of_parcels_and_tables_of_no_known_software(study, find):
    path = add_table(
        study.prep, "task-a_space-MNI152NLin6Asym_atlas-Schaefer417", NAMES, sidecar={"RepetitionTime": 2.0}
    )
    (run,) = find(spaces=("MNI152NLin6Asym:seg-Schaefer417",))
    assert (run.bold, run.segmentation, run.denoised, run.repetition_time) == (path, "Schaefer417", False, 2.0)


def test_a_table_without_a_repetition_time(study, find):
    path = add_table(study.prep, "task-a_space-A_seg-B", NAMES)
    with pytest.raises(InputDataError, match=rf"RepetitionTime of {path}"):
        find(spaces=("A:seg-B",))


def test_volumes_of_a_table_are_counted_to_the_last_full_line(study, find):
    path = add_table(study.prep, "task-a_space-A_seg-B", NAMES, 3, sidecar={"RepetitionTime": 2.0})
    path.write_bytes(path.read_bytes().rstrip(b"\n").replace(b"\n", b"\r\n"))
    assert find(spaces=("A:seg-B",))[0].n_volumes == 3
    path.write_bytes(path.read_bytes() + b"\r\n\r\n")
    assert find(spaces=("A:seg-B",))[0].n_volumes == 3


@pytest.mark.parametrize("text", ["", "\n", "a\tb", "a\tb\n", "a\tb\r\n\r\n"])
def test_a_table_without_volumes(study, find, text):
    path = add_table(study.prep, "task-a_space-A_seg-B", NAMES, sidecar={"RepetitionTime": 2.0})
    path.write_text(text)
    with pytest.raises(InputDataError, match=f"{path} holds no volume"):
        find(spaces=("A:seg-B",))


def test_tables_with_other_parcels(study, find):
    add_table(study.prep, "task-a_space-A_seg-B", NAMES, sidecar={"RepetitionTime": 2.0})
    add_table(study.prep, "task-b_space-A_seg-B", NAMES[::-1], sidecar={"RepetitionTime": 2.0})
    with pytest.raises(InputDataError, match=r"3 parcels but .* has 3 parcels in another order"):
        find(spaces=("A:seg-B",))


def test_parcels_in_cifti_come_before_the_table_of_the_same(study, find):
    add_table(study.prep, "task-a_space-fsLR_seg-4S456Parcels_stat-mean", NAMES)
    folder = study.func(study.prep, "01", None)
    name = "sub-01_task-a_space-fsLR_seg-4S456Parcels_den-91k_stat-mean_timeseries.ptseries.nii"
    path = add_parcels_of_cifti(folder / name)
    (run,) = find(spaces=("fsLR:seg-4S456Parcels",))
    assert (run.bold, run.form, run.n_volumes, run.repetition_time) == (path, "parcels", 5, TR)


def test_series_without_confounds_by_their_name(study, find):
    bold = study.add("01", None, "a")
    bold.rename(bold.with_name(bold.name.replace("desc-preproc", "desc-denoised")))
    assert [run.denoised for run in find()] == [True]


# HDF5


@pytest.fixture
def algonauts(tmp_path):
    root = tmp_path / "fmri"
    shapes = {
        "ses-001_task-bourne01": (12, 4),
        "ses-006_task-life01_run-1": (8, 4),
        "ses-009_task-life01_run-2": (9, 4),
    }
    return root, add_store(root, shapes)


def test_every_key_of_a_store_is_a_run(study, find, algonauts):
    root, path = algonauts
    for task in ("bourne01", "life01"):
        study.events(f"task-{task}_events.tsv", f"{task[:-2]}/{task}.mkv")
        write_json(study.raw / f"task-{task}_bold.json", {"RepetitionTime": TR})
    runs = find(spaces=(SCHAEFER,), others={"algonauts": root})
    assert [(run.dataset, run.label, run.n_volumes) for run in runs] == [
        ("ses-001_task-bourne01", "ses-001_task-bourne01", 12),
        ("ses-006_task-life01_run-1", "ses-006_task-life01_run-1", 8),
        ("ses-009_task-life01_run-2", "ses-009_task-life01_run-2", 9),
    ]
    for run in runs:
        assert (run.bold, run.form, run.derivative, run.denoised) == (path, "parcels", "algonauts", True)
        assert (run.place, run.repetition_time) == ("MNI152NLin2009cAsym_seg-Schaefer18", TR)
        assert run.events == study.raw / f"task-{run.task}_events.tsv"


def test_films_and_series_of_a_participant_are_runs_of_one_place(study, find, algonauts):
    root, films = algonauts
    shapes = {"ses-001_task-s01e02a": (7, 4), "ses-001_task-s01e02b": (6, 4)}
    friends = add_store(root, shapes, task="friends", desc="_desc-s123456")
    write_json(study.raw / "bold.json", {"RepetitionTime": TR})
    study.add("01", "001", "bourne01", n_volumes=12)
    runs = find(spaces=(SCHAEFER,), others={"algonauts": root})
    assert {run.place for run in runs} == {"MNI152NLin2009cAsym_seg-Schaefer18"}
    assert [(run.bold, run.label, run.n_volumes) for run in runs if run.session == "001"] == [
        (films, "ses-001_task-bourne01", 12),
        (friends, "ses-001_task-s01e02a", 7),
        (friends, "ses-001_task-s01e02b", 6),
    ]


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ({"tasks": ("life01",)}, ["ses-006_task-life01_run-1", "ses-009_task-life01_run-2"]),
        ({"sessions": ("001",)}, ["ses-001_task-bourne01"]),
        ({"runs": (2,)}, ["ses-009_task-life01_run-2"]),
        ({"filters": {"bold": {"run": None}}}, ["ses-001_task-bourne01"]),
        ({"filters": {"bold": {"run": "*", "session": ["006", "001"]}}}, ["ses-006_task-life01_run-1"]),
        ({"filters": {"bold": {"task": "life01", "run": 2}}}, ["ses-009_task-life01_run-2"]),
        ({"filters": {"bold": {"extension": ".h5"}}, "sessions": ("009",)}, ["ses-009_task-life01_run-2"]),
    ],
)
def test_keys_are_chosen_as_files_are(study, find, algonauts, query, keys):
    write_json(study.raw / "bold.json", {"RepetitionTime": TR})
    study.add("01", "001", "bourne01", n_volumes=12)
    runs = find(spaces=(SCHAEFER,), others={"algonauts": algonauts[0]}, **query)
    assert [run.dataset for run in runs] == keys


def test_a_store_takes_its_clock_from_fmriprep(study, find, algonauts):
    study.add(
        "01", "001", "bourne01", n_volumes=12, sidecar={"RepetitionTime": 1.6, "StartTime": 0.2}, repetition_time=1.6
    )
    (run,) = find(spaces=(SCHAEFER,), others={"algonauts": algonauts[0]}, tasks=("bourne01",))
    assert (run.repetition_time, run.start_time) == (1.6, 0.2)


def test_a_link_to_a_store_is_listed_and_dropped(study, find, algonauts):
    write_json(study.raw / "bold.json", {"RepetitionTime": TR})
    root, path = algonauts
    dangle(path)
    study.add("01", None, "a")
    (run,) = find(spaces=(SCHAEFER,), others={"algonauts": root})
    assert (run.bold, run.dataset, run.n_volumes) == (None, None, 0)
    assert f"datalad get {path}" in usable_runs([run])[1][0].reason


def test_stores_that_hold_no_runs(study, find, tmp_path):
    study.add("01", None, "a")
    for shapes, words in (({"everything": (4, 4)}, "key 'everything'"), ({"ses-1_task-a": (4,)}, "no array")):
        root = tmp_path / f"store{len(shapes)}{words[-4:-1]}"
        add_store(root, shapes)
        with pytest.raises(InputDataError, match=words):
            find(spaces=(SCHAEFER,), others={"algonauts": root})


# Several derivatives, and what is said


def test_one_run_in_two_derivatives_names_both_files(study, find, tmp_path):
    bold = study.add("01", None, "a", "01")
    other = made_by(tmp_path / "again", "fMRIPrep")
    again = other / "sub-01" / "func" / bold.name.replace("run-01", "run-1")
    again.parent.mkdir(parents=True)
    again.write_bytes(bold.read_bytes())
    with pytest.raises(UsageError) as caught:
        find(others={"again": other})
    assert all(word in str(caught.value) for word in (str(bold), str(again), "--derivatives"))


def test_runs_of_one_place_may_come_from_two_derivatives(study, find, tmp_path):
    study.add("01", None, "a")
    bold = study.add("01", None, "b")
    other = made_by(tmp_path / "again", "fMRIPrep") / "sub-01" / "func"
    other.mkdir(parents=True)
    bold.rename(other / bold.name)
    runs = find(others={"again": tmp_path / "again"})
    assert [(run.task, run.derivative, run.mask is None) for run in runs] == [
        ("a", "fmriprep", False),
        ("b", "again", True),
    ]
    assert runs[1].confounds.parent == study.func(study.prep, "01", None)


def test_one_run_twice_in_one_derivative(study, find):
    for name in ("parcel-400", "parcel-1000"):
        add_table(study.prep, f"task-a_space-A_atlas-B_{name}", NAMES)
    with pytest.raises(InputDataError, match=r"parcel-1000.* and .*parcel-400.* are the same run"):
        find(spaces=("A:atlas-B",))


def test_an_unknown_space_lists_those_there_by_form(study, find, algonauts):
    study.add("01", None, "a", space=f"{SPACE}_res-2")
    add_dense(study, "a")
    add_surfaces(study, "a", "fsaverage6")
    with pytest.raises(UsageError) as caught:
        find(spaces=("MNI152NLin2009cAsym", "MNI152NLin6Asym:res-2"), others={"algonauts": algonauts[0]})
    for words in (
        "space MNI152NLin6Asym:res-2",
        "volumes in MNI152NLin2009cAsym:res-2",
        "surfaces in fsaverage6",
        "grayordinates in fsLR:den-91k",
        "parcels in MNI152NLin2009cAsym:seg-Schaefer18",
    ):
        assert words in str(caught.value)


def test_padded_resolutions_are_one_place(study, find):
    for task, res in (("a", "02"), ("b", "2")):
        study.add("01", None, task, space=f"{SPACE}_res-{res}")
    assert {run.place for run in find(spaces=("MNI152NLin2009cAsym:res-2",))} == {"MNI152NLin2009cAsym_res-2"}
    assert all(run.mask is None or "desc-brain" in run.mask.name for run in find())


def test_runs_of_a_participant_on_different_grids(study, find):
    study.add("01", None, "a")
    study.add("01", None, "b", shape=(3, 4, 3))
    (study.func(study.prep, "01", None) / f"sub-01_task-b_{SPACE}_desc-brain_mask.nii.gz").unlink()
    with pytest.raises(InputDataError, match=r"3 x 4 x 2 voxels but .*task-b.* has 3 x 4 x 3 voxels"):
        find()


# Links


def test_a_link_to_events_drops_the_run_unless_a_map_says_what_was_shown(study, find):
    study.add("01", None, "a")
    events = dangle(study.raw / "task-a_events.tsv")
    (run,) = find()
    assert (run.events, run.missing) == (None, events)
    assert usable_runs([run])[1][0].reason.endswith(f"datalad get {events}")
    assert len(usable_runs([replace(run, showings=(Showing("a.mkv", 0.0),))])[0]) == 1


def test_a_link_to_confounds_drops_the_run_where_they_are_removed(study, find):
    study.add("01", None, "a")
    path = dangle(study.func(study.prep, "01", None) / "sub-01_task-a_desc-confounds_timeseries.tsv")
    runs = [replace(run, showings=(Showing("a.mkv", 0.0),)) for run in find()]
    assert len(usable_runs(runs)[0]) == 1
    assert f"datalad get {path}" in usable_runs(runs, use_confounds=True)[1][0].reason
    assert len(usable_runs([replace(runs[0], denoised=True)], use_confounds=True)[0]) == 1


def test_the_bold_that_is_not_here_is_named(study, find):
    path = dangle(study.add("01", None, "a", sidecar={"RepetitionTime": TR}))
    assert usable_runs(find())[1][0].reason.endswith(f"datalad get {path}")
