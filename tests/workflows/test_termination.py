"""SIGTERM, as schedulers send it: the end comes soon, nothing is left behind, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import psutil
import pytest

from bids_mllm.workflows.stopping import end_processes, terminated_by_sigterm

OPTIONS = (
    "--map-views", "none",
    "--sloppy", "--confounds", "none", "--alphas", "1", "1e6", "3", "--test-task", "life*", "--participant-label", "01",
    "--instructions", "AR", "ESA", "--poolings", "generated", "media", "--permutations", "19", "--block-length", "3",
)  # fmt: skip
#: What the app promises; Slurm kills 30 s after SIGTERM.
SECONDS = 30


def command(study, out, work, nprocs):
    app = [sys.executable, "-m", "bids_mllm.cli.run", study, out, "participant", *OPTIONS, "-w", work]
    return [str(word) for word in (*app, "--nprocs", nprocs, "--models", f"tiny={study / 'models/qwen25vltiny'}")]


def claimed(out):
    return list((out / "sourcedata/features/.claims").glob("[!.]*.json"))


def ended(process):
    begin = time.monotonic()
    _, err = process.communicate(timeout=2 * SECONDS)
    return time.monotonic() - begin, err


def maps(out):
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(out.glob("sub-*/func/*_statmap.nii.gz"))}


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(study, folder / "out", folder / "w", 1), check=True, capture_output=True)
    return maps(folder / "out")


@pytest.mark.parametrize(("nprocs", "to"), [(1, "main"), (2, "main"), (2, "all")])
def test_sigterm_in_the_middle_of_an_extraction(study, tmp_path, undisturbed, nprocs, to):
    out, given = tmp_path / "out", command(study, tmp_path / "out", tmp_path / "w", nprocs)
    process = subprocess.Popen(given, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 120
    while not claimed(out):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.01)
    started = psutil.Process(process.pid).children(recursive=True)
    assert nprocs == 1 or len(started) >= 2
    # A scheduler may signal the process it started, or all of a task's.
    (os.kill if to == "main" else os.killpg)(process.pid, signal.SIGTERM)
    seconds, err = ended(process)
    assert seconds < SECONDS
    assert process.returncode == 143, err
    assert "Ended by SIGTERM; what was finished is kept, and the same command goes on from there." in err
    assert "Traceback" not in err
    psutil.wait_procs(started, timeout=5)
    assert [child for child in started if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert claimed(out) == []
    assert list(tmp_path.rglob(".tmp-*")) == []
    assert not list(out.glob("sub-*/func/*"))
    again = subprocess.run(given, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    found = maps(out)
    assert set(found) == set(undisturbed)
    for name, values in undisturbed.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)


BUSY = """
import hashlib, sys
from bids_mllm.exceptions import Terminated
from bids_mllm.workflows.stopping import terminated_by_sigterm
with terminated_by_sigterm(1.0):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**31 - 1)  # for half an hour or more
"""


def test_a_call_that_does_not_return_does_not_hold_the_end_up():
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        watched = psutil.Process(process.pid)
        before = watched.cpu_times().user
        while watched.cpu_times().user < before + 0.5:  # then it is in the call
            time.sleep(0.05)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 143
        assert time.monotonic() - begin > 0.9  # it was given its second


DESTRUCTOR = """
import sys, time
from bids_mllm.workflows.stopping import terminated_by_sigterm

class Held:
    def __del__(self):
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(1000):
            pass

try:
    with terminated_by_sigterm(60.0):
        for _ in range(2):
            Held()
        time.sleep(50)
finally:
    print("unwound", flush=True)
"""


def test_the_end_is_raised_again_where_a_destructor_dropped_it():
    with subprocess.Popen(
        [sys.executable, "-c", DESTRUCTOR],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        for _ in range(2):  # the second destructor drops it once more
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert (out, err) == ("unwound\n", "")


def test_other_things_that_cannot_be_raised_are_reported_as_before(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    before = sys.unraisablehook
    with terminated_by_sigterm(60.0):

        class Broken:
            def __del__(self):
                raise ValueError("a fault of its own")

        Broken()
    assert [args.exc_type for args in reported] == [ValueError]
    assert sys.unraisablehook is before


DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(99)
"""


def test_children_that_do_not_listen_are_killed():
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for code in (DEAF, DEAF.replace("SIG_IGN", "SIG_DFL"))
    ]
    assert [child.stdout.readline() for child in children] == ["ready\n", "ready\n"]
    end_processes(seconds=1.0)
    assert children[0].wait(timeout=10) == -signal.SIGKILL
    assert not psutil.pid_exists(children[1].pid)  # it was waited for
    children[1].wait()
    for child in children:
        child.stdout.close()


def workers_of(process):
    return [
        child for child in psutil.Process(process.pid).children(recursive=True) if child.name() != "resource_tracker"
    ]


def test_workers_do_not_outlive_a_main_process_that_is_killed(study, tmp_path):
    out, given = tmp_path / "out", command(study, tmp_path / "out", tmp_path / "w", 2)
    with subprocess.Popen(given, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not claimed(out):
            assert time.monotonic() < until
            time.sleep(0.01)
        workers = workers_of(process)
        assert len(workers) >= 2
        process.kill()
    gone, alive = psutil.wait_procs(workers, timeout=15)
    assert alive == []
    assert len(gone) == len(workers)
    assert claimed(out) == []


def test_a_process_that_is_gone_is_no_hindrance(monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    end_processes([child.pid], seconds=0.1)


def test_handlers_are_put_back(call, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "bids").mkdir()
    assert call(tmp_path / "bids", tmp_path / "out", "group").status == 70
    assert signal.getsignal(signal.SIGTERM) is before
