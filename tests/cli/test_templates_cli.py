"""The command ``bids-mllm-templates``, against a server on this machine that stands in for TemplateFlow's."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest
from bucket_server import Bucket, bucket, content_of

from bids_mllm.cli.templates import main, wanted_templates
from bids_mllm.io.owners import ORPHAN_SECONDS, this_process
from bids_mllm.io.template_fetch import ADDRESS_VARIABLE, held_choice
from bids_mllm.io.templates import SCHAEFER_SCALES, background, find_template, fslr_meshes, schaefer, templates_of

MNI = "MNI152NLin2009cAsym"
T1W = f"tpl-{MNI}/tpl-{MNI}_res-02_T1w.nii.gz"
PARCELS = f"tpl-{MNI}/tpl-{MNI}_res-02_atlas-Schaefer2018_desc-400Parcels7Networks_dseg.nii.gz"
TABLE = f"tpl-{MNI}/tpl-{MNI}_atlas-Schaefer2018_desc-400Parcels7Networks_dseg.tsv"


@pytest.fixture(name="bucket")
def _bucket(monkeypatch) -> Iterator[type[Bucket]]:
    with bucket() as (address, handler):
        monkeypatch.setenv(ADDRESS_VARIABLE, f"{address}/")
        monkeypatch.setenv("TEMPLATEFLOW_HOME", "/nonexistent/never/touched")
        yield handler


@pytest.fixture
def call(capsys):
    """Call the command in this process: (status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = int(error.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def filled(home: Path) -> dict[str, bytes]:
    """Return the files with content of a folder, by name."""
    paths = [path for path in home.rglob("*") if path.is_file() and path.stat().st_size]
    return {str(path.relative_to(home)): path.read_bytes() for path in paths}


def test_prefetch_brings_what_is_asked_for_and_no_more(bucket, call, tmp_path):
    home = tmp_path / "templates"
    brought = filled_new(tmp_path / "fresh")  # among it the tables of atlases
    assert TABLE in brought
    status, out, err = call("prefetch", "--to", home, "--space", MNI, "--atlas", "Schaefer400")
    assert (status, err) == (0, "")
    assert sorted(bucket.asked) == sorted([T1W, PARCELS])
    assert filled(home) == {**brought, **{name: content_of(name) for name in (T1W, PARCELS)}}
    assert out.splitlines()[-1] == f"All 2 are there. Point to them with: export TEMPLATEFLOW_HOME={home}"
    assert not list(home.glob(".fetching-*"))
    assert os.environ["TEMPLATEFLOW_HOME"] == "/nonexistent/never/touched"


def filled_new(home: Path) -> dict[str, bytes]:
    """Return the files with content of a folder that TemplateFlow's client lays out and leaves."""
    spec = find_spec("templateflow")
    assert spec is not None
    assert spec.submodule_search_locations
    with ZipFile(Path(spec.submodule_search_locations[0]) / "conf" / "templateflow-skel.zip") as listing:
        listing.extractall(home)
    return filled(home)


def test_a_second_call_fetches_nothing(bucket, call, tmp_path):
    words = ("prefetch", "--to", tmp_path, "--space", "fsLR", "--atlas")
    assert call(*words)[0] == 0
    n_asked = len(bucket.asked)
    assert n_asked == 3  # two meshes and the anatomy of the voxels
    status, out, _ = call(*words)
    assert (status, len(bucket.asked)) == (0, n_asked)
    assert out.count("\n") == 1


def test_a_missing_table_is_fetched_beside_parcels_that_are_there(bucket, call, tmp_path):
    place = tmp_path / PARCELS
    place.parent.mkdir()
    place.write_bytes(b"own")
    assert call("prefetch", "--to", tmp_path, "--space", MNI, "--atlas", "Schaefer400")[0] == 0
    assert sorted(bucket.asked) == sorted([T1W, TABLE])
    assert place.read_bytes() == b"own"
    assert set(filled(tmp_path)) == {T1W, PARCELS, TABLE}, "only a new folder is laid out"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("cut", "it was cut off on its way"), ("unsized", "ended before"), ("absent", "status code 404")],
)
def test_a_file_is_whole_or_not_there(bucket, call, tmp_path, fault, reason):
    bucket.faults[PARCELS] = fault
    words = ("prefetch", "--to", tmp_path, "--space", MNI, "--atlas", "Schaefer400")
    status, _, err = call(*words)
    assert status == 70
    assert err.count("\n") == 1
    assert f"{PARCELS} cannot be fetched from http://127.0.0.1:" in err
    assert reason in err or "cut off" in err
    assert "call the same command again: what is there is kept" in err
    assert set(filled(tmp_path)) >= {T1W}
    assert PARCELS not in filled(tmp_path)
    assert not list(tmp_path.glob(".fetching-*"))
    del bucket.faults[PARCELS]
    assert call(*words)[0] == 0
    assert filled(tmp_path)[PARCELS] == content_of(PARCELS)
    assert bucket.asked.count(T1W) == 1


def test_what_killed_processes_left_is_removed(bucket, call, tmp_path):
    own = this_process()
    dead = subprocess.Popen(["true"])
    dead.wait()
    day_old = time.time() - ORPHAN_SECONDS - 60
    folders = {
        "dead": tmp_path / f".fetching-{own.machine}-{dead.pid}-1-x",
        "alive": tmp_path / f".fetching-{own.machine}-{own.pid}-{own.started}-x",
        "elsewhere": tmp_path / f".fetching-{'a' * 12}-{dead.pid}-1-x",
        "elsewhere and old": tmp_path / f".fetching-{'b' * 12}-{dead.pid}-1-x",
    }
    for folder in folders.values():
        (folder / f"tpl-{MNI}").mkdir(parents=True)
    os.utime(folders["elsewhere and old"], (day_old, day_old))
    for name in (T1W, PARCELS, TABLE):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"here")
    assert call("prefetch", "--to", tmp_path, "--space", MNI, "--atlas", "Schaefer400")[0] == 0
    assert bucket.asked == (), "nothing has to be fetched for that"
    assert {name for name, folder in folders.items() if folder.is_dir()} == {"alive", "elsewhere"}


def test_no_network(call, tmp_path, monkeypatch):
    monkeypatch.setenv(ADDRESS_VARIABLE, "http://127.0.0.1:9")
    status, out, err = call("prefetch", "--to", tmp_path / "new", "--space", MNI, "--atlas")
    assert (status, out) == (70, "")
    assert err == (
        f"bids-mllm-templates: {T1W} cannot be fetched from http://127.0.0.1:9 (no connection); check the network and "
        "call the same command again: what is there is kept.\n"
    )


def test_a_folder_that_cannot_be_made(bucket, call, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = call("prefetch", "--to", tmp_path / "file", "--space", MNI, "--atlas")
    assert status == 70
    assert err.startswith(f"bids-mllm-templates: The templates' folder {tmp_path / 'file'} cannot be written (")
    assert bucket.asked == ()


def test_content_of_datalad_is_not_replaced(bucket, call, tmp_path):
    place = tmp_path / T1W
    place.parent.mkdir()
    place.symlink_to("../.git/annex/objects/lost")
    status, _, err = call("prefetch", "--to", tmp_path, "--space", MNI, "--atlas")
    assert status == 70
    assert "is a link to content that was not fetched; fetch it with: datalad get" in err
    assert place.is_symlink()


def test_list_says_what_is_there(bucket, call, tmp_path):
    status, out, _ = call("list", "--home", tmp_path, "--space", MNI, "--atlas", "Schaefer400", "Schaefer400x17")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["missing", "missing", "missing", "0", "Fetch"]
    call("prefetch", "--to", tmp_path, "--space", MNI, "--atlas", "Schaefer400")
    _, out, _ = call("list", "--home", tmp_path, "--space", MNI, "--atlas", "Schaefer400", "Schaefer400x17")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["here", "here", "missing", "2", "Fetch"]
    assert lines[0].endswith(str(tmp_path / T1W))
    assert f"2 of 3 are in {tmp_path}" in lines


def test_list_looks_where_the_app_looks(call, tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    assert f"are in {tmp_path}" in call("list")[1]
    monkeypatch.delenv("TEMPLATEFLOW_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert f"are in {tmp_path / 'caches' / 'templateflow'}" in call("list")[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--space", "MNI152NLin7"), "TemplateFlow has nothing for MNI152NLin7 that bids-mllm reads; check --space."),
        (("--space", "T1w"), "TemplateFlow has nothing for T1w"),
        (("--space", "bold"), "--space bold is another grid in every run"),
        (("--atlas", "Glasser"), "--atlas Glasser does not come from TemplateFlow; give Schaefer100"),
        (("--space", "fsLR", "--atlas", "Schaefer400"), "TemplateFlow has none of Schaefer400 in fsLR"),
        (("--space", MNI, "--atlas", "Schaefer900"), f"TemplateFlow has none of Schaefer900 in {MNI}"),
    ],
)
def test_what_templateflow_does_not_have(bucket, call, tmp_path, words, sentence):
    status, _, err = call("prefetch", "--to", tmp_path / "new", *words)
    assert status == 2
    assert err.startswith(f"bids-mllm-templates: {sentence}")
    assert not (tmp_path / "new").exists()


def test_by_default_everything_that_the_app_reads_is_wanted():
    wanted = wanted_templates(None, None)
    assert {background(MNI), background("MNI152NLin6Asym"), fslr_meshes()} <= set(wanted)
    parcels = {schaefer(s, n, k) for s in (MNI, "fsaverage") for n in SCHAEFER_SCALES for k in ("7", "17")}
    assert parcels <= set(wanted)
    assert all(map(held_choice, wanted))
    assert templates_of("T1w") == templates_of("fsaverage6") == ()


def test_an_empty_table_does_not_serve(tmp_path):
    template = schaefer(MNI, "400", "7")
    assert template is not None
    (tmp_path / PARCELS).parent.mkdir()
    (tmp_path / PARCELS).write_bytes(b"x")
    assert find_template(template, tmp_path) == (tmp_path / PARCELS,)
    (tmp_path / TABLE).write_bytes(b"")
    assert find_template(template, tmp_path) is None
    assert find_template(template, None) is None


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom bids_mllm.cli.templates import main\n"
        "try:\n    main([*sys.argv[1:], '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'templateflow', 'nipype', 'bids', 'requests'}\n"
        "sys.stderr.write(' '.join(sorted(heavy & set(sys.modules))))"
    )
    for words in ([], ["list"], ["prefetch"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert "usage: bids-mllm-templates" in done.stdout
