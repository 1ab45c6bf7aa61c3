"""Machines without a network, a home, a name for the user, or a root that can be written, as containers are."""

import importlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bids_mllm.cli import environment
from bids_mllm.cli.downloads import _spaces
from bids_mllm.cli.environment import CACHES, settle_home
from bids_mllm.cli.parser import parse_settings
from bids_mllm.exceptions import UsageError

MNI = "MNI152NLin2009cAsym"


@pytest.fixture
def bare(tmp_path, monkeypatch) -> Path:
    """No variable that names a home or a cache is set, and TMPDIR is a folder of the test's own, which is returned."""
    for name in (*CACHES, "HF_HOME", "TEMPLATEFLOW_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(environment, "_has_name", lambda: True)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return folder


def own_folder(bare: Path) -> Path:
    return bare / f"bids-mllm-{os.getuid()}"


def test_a_home_that_can_be_written_is_left_alone(bare, tmp_path):
    os.environ["HOME"] = str(tmp_path)
    before = dict(os.environ)
    settle_home()
    assert os.environ == before
    assert list(bare.iterdir()) == []


def test_a_home_that_is_not_there_is_replaced(bare):
    os.environ["HOME"] = "/nonexistent"
    os.environ["MPLCONFIGDIR"] = "/own"
    settle_home()
    folder = own_folder(bare)
    assert os.environ["HOME"] == str(folder)
    assert os.environ["MPLCONFIGDIR"] == "/own"
    assert {os.environ[name] for name in CACHES if name != "MPLCONFIGDIR"} == {
        str(folder / name) for variable, name in CACHES.items() if variable != "MPLCONFIGDIR"
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    settle_home()  # the folder may be there


@pytest.mark.parametrize(("owner", "mode", "kept"), [(0, 0o755, True), (4711, 0o755, False), (0, 0o777, False)])
def test_a_cache_below_the_temporary_folder_must_be_ones_own(bare, monkeypatch, owner, mode, kept):
    monkeypatch.setattr(environment.os, "getuid", lambda: 0)
    monkeypatch.setenv("HOME", str(bare))
    (bare / "shared").mkdir(mode=mode)
    (bare / "shared").chmod(mode)
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(bare / "shared", owner, -1)
    os.environ["NUMBA_CACHE_DIR"] = str(bare / "shared" / "numba")
    os.environ["TRITON_CACHE_DIR"] = str(bare / "new" / "triton")  # not there yet: it will be made
    settle_home()
    expected = bare / "shared/numba" if kept else bare / "bids-mllm-0" / "numba"
    assert os.environ["NUMBA_CACHE_DIR"] == str(expected)
    assert os.environ["TRITON_CACHE_DIR"] == str(bare / "new" / "triton")


def test_a_user_who_has_no_home_at_all(bare, monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(environment.Path, "home", no_home)
    settle_home()
    assert os.environ["HOME"] == str(own_folder(bare))


@pytest.mark.parametrize(
    ("command", "words", "target"),
    [
        ("simulate", ["new"], "bids_mllm.simulate.dataset.simulate_dataset"),
        ("models", ["check", "vitbase"], "bids_mllm.features.models.check.check_model"),
        ("templates", ["list"], "bids_mllm.io.templates.templates_folder"),
        ("run", ["tmp", "out", "participant"], "bids_mllm.workflows.plan.plan_study"),
    ],
)
def test_every_command_that_needs_it_settles_the_home_first(bare, monkeypatch, command, words, target):
    os.environ["HOME"] = "/nonexistent"
    monkeypatch.chdir(bare.parent)
    seen = []

    def look(*_arguments, **_options):
        seen.append(os.environ["HOME"])
        raise UsageError("enough")

    monkeypatch.setattr(target, look)
    assert importlib.import_module(f"bids_mllm.cli.{command}").main(words) == 2
    assert seen == [str(own_folder(bare))]


def test_a_path_in_a_home_that_there_is_not():
    code = "from bids_mllm.cli.run import main; import sys; sys.exit(main(['.', '~nobody-at-all/x', 'participant']))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr == (
        "bids-mllm: ~nobody-at-all/x begins with ~, but there is no home folder; give the path in full.\n"
    )


def test_a_home_that_cannot_be_written_is_still_read(bare, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    os.environ["HOME"] = str(home)
    monkeypatch.setattr(environment.os, "access", lambda path, mode: False)
    settle_home()
    assert os.environ["HOME"] == str(home)
    assert os.environ["HF_HOME"] == str(home / ".cache" / "huggingface")
    assert "TEMPLATEFLOW_HOME" not in os.environ
    assert os.environ["XDG_CACHE_HOME"] == str(own_folder(bare) / "cache")


def test_a_cache_of_the_hub_that_cannot_be_written_gets_no_code(bare, tmp_path):
    os.environ["HOME"] = str(tmp_path)
    os.environ["HF_HOME"] = str(tmp_path / "new")  # made by the hub's client
    settle_home()
    assert not set(CACHES) & set(os.environ)
    os.environ["HF_HOME"] = "/proc/1"
    settle_home()
    changed = {name for name in CACHES if name in os.environ}
    assert changed == {"HF_MODULES_CACHE", "HF_XET_CACHE"}
    assert os.environ["HF_MODULES_CACHE"] == str(own_folder(bare) / "huggingface-modules")
    os.environ["HF_HOME"] = str(tmp_path / "new")  # made by the hub's client


def test_a_folder_for_caches_that_others_can_write_is_refused(bare, tmp_path):
    os.environ["HOME"] = "/nonexistent"
    own_folder(bare).mkdir(mode=0o700)
    own_folder(bare).chmod(0o777)
    with pytest.raises(UsageError, match="belongs to somebody else or can be written by others; remove it, or set"):
        settle_home()
    own_folder(bare).rmdir()
    own_folder(bare).symlink_to(tmp_path)
    with pytest.raises(UsageError, match="belongs to somebody else"):
        settle_home()


def test_no_folder_for_temporary_files(bare, monkeypatch):
    os.environ["HOME"] = "/nonexistent"
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nothing")
    with pytest.raises(UsageError, match=r"No folder for temporary files can be written \(.*\); set TMPDIR to one"):
        settle_home()


def test_a_user_without_a_name_gets_one(bare, tmp_path, monkeypatch):
    os.environ["HOME"] = str(tmp_path)
    monkeypatch.setattr(environment, "_has_name", lambda: False)
    settle_home()
    assert os.environ["LOGNAME"] == f"uid{os.getuid()}"


# A sandbox as a container is: read-only root, no network, an unknown user, hardly any variable.

PREPARE = """
set -e
for folder in {writable}; do mkdir -p $folder; mount --bind $folder $folder; done
mount -o remount,bind,ro /
cd {work}
exec unshare --user --map-user=54321 --map-group=54321 env -i PATH=/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 \\
    TMPDIR={tmp} "$@"
"""
CALLS = "connect,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,symlink,symlinkat,"
CALLS += "link,linkat,truncate,chmod,fchmodat"


@dataclass(frozen=True)
class Sandbox:
    """Folders that can be written in it; everything else cannot."""

    root: Path

    @property
    def writable(self) -> dict[str, Path]:
        return {name: self.root / name for name in ("out", "work", "features", "tmp")}

    def run(self, *words: object, trace: Path | None = None) -> subprocess.CompletedProcess[str]:
        script = PREPARE.format(writable=" ".join(map(str, self.writable.values())), **self.writable)
        sandboxed = ["unshare", "--map-root-user", "--net", "--mount", "bash", "-c", script, "bash"]
        tracing = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-e", f"trace={CALLS}", "-o", str(trace)]
        command = [*sandboxed, *(tracing if trace else ()), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)

    def app(self, *words: object, home: str | None = None, trace: Path | None = None, program: str = "run"):
        home_words = ["env", f"HOME={home}"] if home is not None else []
        return self.run(*home_words, sys.executable, "-m", f"bids_mllm.cli.{program}", *words, trace=trace)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> Sandbox:
    made = Sandbox(tmp_path_factory.mktemp("sandbox"))
    tried = made.run(sys.executable, "-c", "import os; os.mkdir('/bids-mllm-test')")
    if "Read-only file system" not in tried.stderr:
        pytest.skip(f"this machine allows no read-only root for a test: {tried.stderr.strip()[-200:]}")
    return made


@dataclass(frozen=True)
class Done:
    """Both levels in the sandbox, and what system calls they made."""

    participant: subprocess.CompletedProcess[str]
    group: subprocess.CompletedProcess[str]
    traces: tuple[Path, ...]


@pytest.fixture(scope="module")
def done(sandbox, study) -> Done:
    """Run the participant level without HOME, the group level with one that does not exist."""
    traced = shutil.which("strace") is not None
    traces = tuple(sandbox.writable["tmp"] / f"{level}.trace" for level in ("participant", "group")) if traced else ()
    out, work = sandbox.writable["out"], sandbox.writable["work"]
    participant = sandbox.app(
        study, out, "participant", "-w", work, "--features-dir", sandbox.writable["features"], "--sloppy",
        "--models", "motionenergy", "melspectrogram", f"tiny={study / 'models' / 'qwen25vltiny'}",
        "--instructions", "AR", "--test-task", "life*", "--alphas", "1", "1e7", "4", "--permutations", "19",
        "--nprocs", "2", trace=traces[0] if traced else None,
    )  # fmt: skip
    group = sandbox.app(
        study, out, "group", "-w", work, "--nprocs", "2", home="/nonexistent", trace=traces[1] if traced else None
    )
    return Done(participant, group, traces)


@pytest.mark.slow
def test_both_levels_work_in_the_sandbox(done, sandbox, study):
    out = sandbox.writable["out"]
    for level, pages in (
        (done.participant, [out / "sub-01.html", out / "sub-02.html"]), (done.group, [out / "group.html"])
    ):  # fmt: skip
        assert level.returncode == 0, level.stderr
        assert all(page.stat().st_size > 10_000 for page in pages)
        assert "Traceback" not in level.stderr
        assert "Warning" not in level.stderr
    assert "The anatomy is the MNI152 template, since that of" in (out / "sub-01.html").read_text("utf-8")
    assert _spaces(parse_settings([str(study), str(out), "group"])) == [MNI]


@pytest.mark.slow
def test_nothing_asks_the_network_or_writes_elsewhere(done, sandbox):
    if not done.traces:
        pytest.skip("strace is not installed here")
    allowed = (*(f"{path}/" for path in sandbox.writable.values()), "/dev/shm/", "/dev/null", "/dev/tty", "/proc/self/")
    own = {str(path) for path in sandbox.writable.values()}
    n_seen = 0
    for trace in done.traces:
        for call, target in attempts(trace):
            n_seen += 1
            if call == "connect":
                assert "AF_UNIX" in target, target
            else:
                assert target.startswith(allowed) or target in own, f"{call} {target}"
    assert n_seen > 500


def attempts(trace: Path) -> Iterator[tuple[str, str]]:
    """Give every call that connects or would change a file, also where it failed, with its address or path."""
    for line in trace.read_text("utf-8", "replace").splitlines():
        match = re.match(r"\d+ +(\w+)\((.*)", line)
        if match is None:
            continue  # the end of a call that began on another line
        call, words = match[1], match[2]
        if call == "connect":
            yield call, words
            continue
        if call in ("open", "openat") and not re.search("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", words):
            continue
        for folder, path in re.findall(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"', words):
            yield call, os.path.normpath(Path(folder) / path)


@pytest.mark.slow
def test_what_is_missing_offline_is_one_sentence(sandbox, study, tmp_path):
    words = (study, sandbox.writable["out"] / "none", "participant", "-w", sandbox.writable["work"] / "none")
    atlas = sandbox.app(*words, "--atlas", "Schaefer400")
    assert atlas.returncode == 2
    last = atlas.stderr.strip().splitlines()[-1]
    assert last.startswith("bids-mllm: --atlas Schaefer400 is not in TemplateFlow's folder ")
    assert f"`bids-mllm-templates prefetch --to DIR --space {MNI} --atlas Schaefer400x7`" in last
    assert "set TEMPLATEFLOW_HOME to DIR" in last
    model = sandbox.app(*words, "--models", "vitbase", home="/")
    assert model.returncode == 70
    last = model.stderr.strip().splitlines()[-1]
    assert "google/vit-base-patch16-224" in last
    assert "is not in the local cache of the hub" in last
    assert "bids-mllm-models prefetch google/vit-base-patch16-224" in last
    for found in (atlas, model):
        assert "Traceback" not in found.stderr


@pytest.mark.slow
def test_the_other_commands_work_in_the_sandbox(sandbox, study):
    for program, words, text in (
        ("models", ["list"], "qwen25vl7b"),
        ("models", ["check", "tiny", study / "models" / "qwen25vltiny"], "tiny: 0 of"),
        ("templates", ["list"], "0 of "),
        ("features", ["gc", "--dry-run", sandbox.writable["features"]], "would free"),
    ):
        found = sandbox.app(*words, program=program)
        assert found.returncode == 0, found.stderr
        assert text in found.stdout
        assert found.stderr == ""
    fetched = sandbox.app("prefetch", "vitbase", "--to", sandbox.writable["out"] / "m", program="models")
    assert fetched.returncode == 70
    assert fetched.stderr.count("\n") == 1
    fetched = sandbox.app("prefetch", "--to", sandbox.writable["out"] / "t", "--atlas", program="templates")
    assert fetched.returncode == 70
    assert fetched.stderr.count("\n") == 1
    assert "(no connection)" in fetched.stderr
