"""Spaces, derivatives and files that do not fit together: one sentence that names the files, and the exit status."""

import json
import shutil
from pathlib import Path

import pytest
from movie10_tree import SMALL, build, cifti

TASK = "task-bourne01"


@pytest.fixture
def tree(tmp_path) -> tuple[Path, Path]:
    return build(tmp_path, json.loads(SMALL.read_text()), participants=["sub-01"])


@pytest.fixture
def refused(call, tree, tmp_path):
    """Call the app, which refuses in one sentence; return its status and the sentence."""

    def _refused(*options: object, **others: Path) -> tuple[int, str]:
        named = [f"{name}={path}" for name, path in {"fmriprep": tree[1], **others}.items()]
        result = call(tree[0], tmp_path / "out", "participant", "--derivatives", *named, *options)
        [sentence] = [line for line in result.err.splitlines() if line.startswith("bids-mllm: ")]
        assert "Traceback" not in result.err
        assert not (tmp_path / "out").exists()
        return result.status, sentence

    return _refused


def bold(prep: Path, ending: str) -> Path:
    [path] = prep.glob(f"sub-01/ses-001/func/*{TASK}_{ending}")
    return path


def test_a_missing_hemisphere(refused, tree):
    left = bold(tree[1], "space-T1w_desc-preproc_bold.json")
    left = left.with_name(
        left.name.replace("space-T1w_desc-preproc_bold.json", "hemi-L_space-fsaverage6_bold.func.gii")
    )
    left.write_text("<GIFTI/>")
    status, sentence = refused("--space", "fsaverage6")
    assert status == 70
    assert str(left.with_name(left.name.replace("hemi-L", "hemi-R"))) in sentence


def test_a_cifti_of_another_density(refused, tree):
    path = bold(tree[1], "space-fsLR_den-91k_bold.dtseries.nii")
    path.write_bytes(cifti(405, 8))
    status, sentence = refused("--space", "fsLR:den-91k")
    assert status == 70
    assert all(word in sentence for word in (str(path), "17 grayordinates", "13 grayordinates"))


def test_overlapping_runs_in_two_derivatives(refused, tree, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(tree[1], again, symlinks=True)
    (again / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.8.0"}))
    status, sentence = refused("--dry-run", again=again)
    assert status == 2
    name = bold(tree[1], "space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz")
    assert str(name) in sentence
    assert str(again / name.relative_to(tree[1])) in sentence


def test_an_unknown_space(refused):
    status, sentence = refused("--space", "MNI152NLin6Asym:res-2", "--dry-run")
    assert status == 2
    for words in ("MNI152NLin6Asym:res-2", "volumes in MNI152NLin2009cAsym, T1w", "grayordinates in fsLR:den-91k"):
        assert words in sentence


def test_links_of_every_kind_name_the_file_to_get(call, tree, tmp_path):
    raw, prep = tree
    mask = bold(prep, "space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz")
    gone = {
        "bourne01": mask,
        "bourne10": next(prep.glob("sub-01/*/func/*task-bourne10_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz")),
        "wolf17": next(prep.glob("sub-01/*/func/*task-wolf17_desc-confounds_timeseries.tsv")),
        "wolf01": raw / "task-wolf01_events.tsv",
    }
    for path in gone.values():
        path.unlink()
        path.symlink_to("../.git/annex/objects/gone")
    tables = tmp_path / "tables"
    tables.mkdir()
    options = ("--task-id", *gone, "--feature-table", f"t={tables}", "-w", tmp_path / "work")
    result = call(raw, tmp_path / "out", "participant", "--derivatives", f"fmriprep={prep}", *options)
    assert result.status == 70
    sentence = result.err.splitlines()[-1]
    assert all(f"datalad get {path}" in sentence for path in gone.values())
